"""serve-edge --upstream before a real Triton server: nvidia-pytriton's, with its Python backend on the CPU.

AECNN_TRITON_PYTHON names a Python with nvidia-pytriton and onnxruntime (tools/triton_python.sh makes one); without it
the tests are skipped.
"""

import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import RunnerError, UpstreamError
from aecnn_deploy.exporters.triton_repository import write_repository
from aecnn_deploy.exporters.triton_settings import TritonSettings
from aecnn_deploy.runtimes.device_client import DeviceSettings, run_device
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.triton_runner import TritonRunner
from aecnn_deploy.runtimes.triton_settings import UpstreamSettings
from aecnn_deploy.runtimes.triton_tails import TritonTails
from aecnn_deploy.wire import ResultReceived
from tests.bundles import make_bundle, make_photos, run_directly, serving
from tests.edge_client import Client, get, metric, planes_of, post
from tests.inference_server import free_port
from tests.triton_server.process import PYTHON, TritonProcess, served
from tests.triton_servers import install, triton

pytestmark = [
    pytest.mark.triton,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PYTHON, reason="AECNN_TRITON_PYTHON names no Python with nvidia-pytriton"),
]

PATIENT_S = 60.0
FIRST, SECOND = "tiny-l1-v2-u8", "tiny-l1-v4-u4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    make_bundle(folder / "tiny")
    return open_bundle(folder / "tiny")


@pytest.fixture(scope="module")
def other(folder: Path) -> Bundle:
    make_bundle(folder / "other", seed=1)
    return open_bundle(folder / "other")


@pytest.fixture(scope="module")
def server(folder: Path, bundle: Bundle) -> Iterator[TritonProcess]:
    """The bundle's models, three instances of the first one; the same under other names, as a server may have them."""
    models = served(bundle)
    models[FIRST].instances = 3
    models[FIRST].sleep_s = 0.05
    models["swapped-" + FIRST] = replace(models.pop(SECOND), parameters={})
    models["broken-" + FIRST] = replace(models[FIRST], parameters={}, fails="no memory\nleft for it", instances=1)
    process = TritonProcess(folder, free_port(), free_port(), models)
    try:
        process.start()
        yield process
    finally:
        process.kill()


@pytest.fixture
def tails_of(server: TritonProcess) -> Iterator[Callable[..., TritonTails]]:
    with ExitStack() as ends:

        def make(**settings: Any) -> TritonTails:
            tails = TritonTails(UpstreamSettings(server.url, **{"wait_s": 1.0} | settings))
            ends.callback(tails.close)
            return tails

        yield make


def first_runner(tails: TritonTails, bundle: Bundle) -> TritonRunner:
    runner = tails.runner(bundle, bundle.manifest.variants[0])
    assert runner is not None
    return runner


def test_a_device_gets_what_the_local_tail_gives_and_batches_go_upstream_several_at_once(
    server: TritonProcess, bundle: Bundle, tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "photos", 4)
    spec = bundle.manifest.variants[0]
    with serving(bundle.path, "--upstream", server.url, "--upstream-parallel", "3") as edge:
        assert edge.ready["targets"] == {FIRST: server.url}
        with serving(bundle.path) as local:
            reports = [
                run_device(
                    bundle,
                    DeviceSettings(each.url, variant=FIRST, threads=1),
                    str(photos[0].parent),
                    stdin=io.BytesIO(),
                )
                for each in (edge, local)
            ]
        upstream, here = ([(image.label, image.score) for image in report.images] for report in reports)
        assert len(upstream) == 4
        assert upstream == here
        before = len(server.batches(FIRST))
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(edge, bundle)) for _ in range(4)]
            for client in clients:
                client.event()
            for number in range(24):
                clients[number % 4].ask(spec, 0, planes_of(spec, number))
            for number in range(24):
                assert isinstance(clients[number % 4].event(PATIENT_S), ResultReceived)
        batches = server.batches(FIRST)[before:]
        assert sum(images for images, _ in batches) == 24
        assert max(images for images, _ in batches) > 1
        assert max(running for _, running in batches) > 1
        status, answer = post(edge, photos[0].read_bytes())
        assert (status, answer["path"]) == (200, "full")
        assert server.batches("full")[-1][0] == 1
        assert metric(edge, f'aecnn_upstream_seconds_count{{variant="{FIRST}"}}') > 0


def test_logits_are_the_local_tails_to_the_bit_with_real_planes(
    tails_of: Callable[..., TritonTails], bundle: Bundle
) -> None:
    spec = bundle.manifest.variants[0]
    frames = np.random.default_rng(7).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    with OnnxRuntimeRunner(bundle.file(spec.head), threads=1) as head:
        planes = np.concatenate([head.infer(frame[None]) for frame in frames])
    with first_runner(tails_of(), bundle) as runner:
        logits = runner.infer(planes)
        many = runner.infer(np.concatenate([planes] * 4))  # over the model's limit of 8
    expected = np.stack([run_directly(bundle, frame, FIRST) for frame in frames])
    assert np.array_equal(logits, expected)
    assert np.array_equal(many, np.concatenate([expected] * 4))


def test_a_real_server_refuses_what_is_not_the_bundles(
    tails_of: Callable[..., TritonTails], bundle: Bundle, other: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RunnerError, match=f"is of bundle {bundle.id[:12]}, this edge serves bundle {other.id[:12]}"):
        first_runner(tails_of(), other).activate()
    with pytest.raises(RunnerError, match="it has no model absent-tiny-l1-v2-u8 that is ready"):
        first_runner(tails_of(prefix="absent-"), bundle).activate()
    with pytest.raises(RunnerError, match=r"takes planes UINT8 \[-1, 2, 16, 16\], tiny-l1-v2-u8 needs planes UINT8"):
        first_runner(tails_of(prefix="swapped-"), bundle).activate()
    broken = first_runner(tails_of(prefix="broken-"), bundle).activate()
    assert sum("does not say which bundle" in record.message for record in caplog.records) == 1
    with pytest.raises(UpstreamError, match="no memory left for it"):
        broken.infer(planes_of(bundle.manifest.variants[0])[None])


def test_a_repository_that_is_written_for_triton_is_what_an_edge_asks_for(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_repository(bundle, tmp_path / "models", TritonSettings(max_batch=4, threads=1))
    port = free_port()
    options = ("--allow-grpc=true", "--grpc-address=127.0.0.1", f"--grpc-port={port}", "--exit-timeout-secs=1")
    with triton(install(tmp_path), tmp_path / "models", tmp_path / "log", *options):
        tails = TritonTails(UpstreamSettings(f"triton://127.0.0.1:{port}"))
        try:
            spec = bundle.manifest.variants[0]
            batch = np.stack([planes_of(spec, seed) for seed in range(6)])
            with OnnxRuntimeRunner(bundle.file(spec.tails["onnxruntime"]), threads=1) as local:
                assert np.array_equal(first_runner(tails, bundle).activate().infer(batch), local.infer(batch))
            full = tails.runner(bundle, None)
            assert full is not None
            full.activate()
        finally:
            tails.close()
    assert not [record.message for record in caplog.records if record.name.startswith("aecnn_deploy")]


def test_a_server_that_is_killed_and_started_again_under_load_costs_no_request(
    server: TritonProcess, bundle: Bundle
) -> None:
    spec = bundle.manifest.variants[0]
    outcomes, stop = Counter[str](), threading.Event()

    def drive(client: Client, number: int) -> None:
        sent = 0
        while not stop.is_set() or sent < 3:
            client.ask(spec, 0, planes_of(spec, number))
            event = client.event(PATIENT_S)
            outcomes["ok" if isinstance(event, ResultReceived) else f"{event.failed.code}: {event.failed.reason}"] += 1
            sent += 1

    def answered(count: int) -> None:
        end = time.monotonic() + PATIENT_S
        goal = outcomes["ok"] + count
        while outcomes["ok"] < goal:
            assert time.monotonic() < end, outcomes
            time.sleep(0.02)

    options = ("--upstream", server.url, "--upstream-retry-s", "60", "--upstream-parallel", "2")
    with serving(bundle.path, *options) as edge, ExitStack() as stack:
        clients = [stack.enter_context(Client(edge, bundle)) for _ in range(3)]
        for client in clients:
            client.event()
        threads = [threading.Thread(target=drive, args=(client, number)) for number, client in enumerate(clients)]
        for thread in threads:
            thread.start()
        try:
            answered(6)
            server.kill()
            server.models = {FIRST: server.models[FIRST]}  # which is sooner there
            server.start()
            answered(6)
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENT_S)
        assert set(outcomes) == {"ok"}, outcomes
        assert metric(edge, f'aecnn_upstream_retries_total{{variant="{FIRST}"}}') > 0
        assert get(edge, "/readyz")[0] == 200
        status, errors = edge.stop()
    assert status == 0
    assert f"{FIRST} is back after" in errors
