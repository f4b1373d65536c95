"""serve-edge --upstream as devices and operators see it: a real edge before a real gRPC server."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.runtimes.edge_models import TOP_K, top_classes
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.wire import FailureReceived, ResultReceived
from tests.bundles import COMMAND, Edge, command, environment, make_bundle, make_photos, serving
from tests.edge_client import Client, get, metric, planes_of, post
from tests.inference_server import Array, free_port, inference_server, models_of

PATIENT_S = 30.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    make_bundle(folder)
    return open_bundle(folder)


def readiness(edge: Edge) -> tuple[int, str]:
    status, body = get(edge, "/readyz")
    return status, json.loads(body)["state"]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def expected_top(bundle: Bundle, planes: list[Array]) -> list[Any]:
    path = bundle.file(bundle.manifest.variants[0].tails["onnxruntime"])
    with OnnxRuntimeRunner(path, threads=1) as runner:
        return top_classes(runner.infer(np.stack(planes)), TOP_K)


def test_devices_get_the_local_tails_answers_batched_upstream_and_the_full_models_too(
    bundle: Bundle, tmp_path: Path
) -> None:
    spec = bundle.manifest.variants[0]
    models = models_of(bundle)
    run = models[spec.id].run

    def slowly(batch: Array) -> Array:
        time.sleep(0.02)  # so that requests gather
        return run(batch)

    models[spec.id].run = slowly
    planes = [planes_of(spec, seed) for seed in range(16)]
    expected = expected_top(bundle, planes)
    with inference_server(models) as url, serving(bundle.path, "--upstream", url, "--upstream-parallel", "2") as edge:
        assert edge.ready["targets"] == {spec.id: url}
        assert edge.ready["runner"] == "triton"
        assert "away" not in get(edge, "/readyz")[1].decode()
        models[spec.id].batches.clear()
        with Client(edge, bundle) as first, Client(edge, bundle) as second:
            sent: list[dict[int, int]] = [{}, {}]
            for client in (first, second):
                client.event()
            for number, each in enumerate(planes):
                client = (first, second)[number % 2]
                sent[number % 2][client.ask(spec, 0, each)] = number
            for client, numbers in zip((first, second), sent, strict=True):
                for _ in numbers:
                    event = client.event(PATIENT_S)
                    assert isinstance(event, ResultReceived)
                    want = expected[numbers[event.request_id]]
                    assert [index for index, _ in event.result.top] == [index for index, _ in want]
                    assert [score for _, score in event.result.top] == pytest.approx([score for _, score in want])
        assert sum(models[spec.id].batches) == 16
        assert max(models[spec.id].batches) > 1
        status, answer = post(edge, make_photos(tmp_path / "photos", 1)[0].read_bytes())
        assert (status, answer["path"]) == (200, "full")
        assert models["full"].batches[-1] == 1
        assert metric(edge, 'aecnn_upstream_seconds_count{variant="full"}') > 0
        assert metric(edge, "aecnn_upstream_up") == 1
        status_page = json.loads(get(edge, "/v1/status")[1])
        assert {row["id"]: row["target"] for row in status_page["variants"]}[spec.id] == url
        assert edge.stop()[0] == 0


def test_an_image_whose_logits_are_not_finite_fails_alone(bundle: Bundle) -> None:
    spec = bundle.manifest.variants[0]
    models = models_of(bundle)
    with inference_server(models) as url, serving(bundle.path, "--upstream", url) as edge:
        run = models[spec.id].run

        def spoil(batch: Array) -> Array:
            logits = run(batch).copy()
            logits[batch.reshape(len(batch), -1).max(axis=1) == 0] = np.nan
            return logits

        models[spec.id].run = spoil
        with Client(edge, bundle) as client:
            client.event()
            bad = client.ask(spec, 0, np.zeros(spec.planes, np.uint8))
            good = client.ask(spec, 0, planes_of(spec))
            events = {event.request_id: event for event in (client.event(PATIENT_S), client.event(PATIENT_S))}
        assert isinstance(events[good], ResultReceived)
        failed = events[bad]
        assert isinstance(failed, FailureReceived)
        assert (failed.failed.code, "not finite" in failed.failed.reason) == ("internal", True)


def test_without_its_server_an_edge_says_not_now_is_not_ready_and_recovers_by_itself(bundle: Bundle) -> None:
    spec, port = bundle.manifest.variants[0], free_port()
    options = ("--upstream", f"triton://127.0.0.1:{port}", "--upstream-retry-s", "0.3")
    with inference_server(models_of(bundle), port):
        serving_edge = serving(bundle.path, *options)
        edge = serving_edge.__enter__()
    try:
        with Client(edge, bundle) as client:
            client.event()
            client.ask(spec, 0, planes_of(spec))
            failed = client.event(PATIENT_S)
            assert isinstance(failed, FailureReceived)
            assert failed.failed.code == "overloaded"
            assert failed.failed.retry_after_s is not None
            assert "unavailable" in failed.failed.reason
            until(lambda: readiness(edge) == (503, "away"))
            assert metric(edge, "aecnn_ready") == 0
            assert metric(edge, f'aecnn_upstream_failures_total{{code="unavailable",variant="{spec.id}"}}') >= 1
            with inference_server(models_of(bundle), port):
                until(lambda: readiness(edge) == (200, "ready"))
                client.ask(spec, 0, planes_of(spec))
                assert isinstance(client.event(PATIENT_S), ResultReceived)
                status, errors = edge.stop()
        assert status == 0
        assert "is away" in errors
        assert "is back after" in errors
    finally:
        serving_edge.__exit__(None, None, None)


def test_a_new_bundle_is_taken_on_when_the_server_has_its_models_and_not_before(tmp_path: Path) -> None:
    old, new, current = tmp_path / "old", tmp_path / "new", tmp_path / "current"
    make_bundle(old)
    make_bundle(new, seed=1)
    current.symlink_to(old)
    bundles = open_bundle(old), open_bundle(new)
    models = models_of(bundles[0], prefix=f"{bundles[0].id[:12]}-")
    options = ("--upstream-prefix", "{bundle}-", "--upstream-wait-s", "5")
    with inference_server(models) as url, serving(current, "--upstream", url, *options) as edge:
        current.unlink()
        current.symlink_to(new)
        edge.process.send_signal(signal.SIGHUP)
        until(lambda: metric(edge, 'aecnn_reloads_total{outcome="failed"}') == 1)
        assert json.loads(get(edge, "/readyz")[1]) == {"state": "ready", "bundle_id": bundles[0].id}
        models |= models_of(bundles[1], prefix=f"{bundles[1].id[:12]}-")
        edge.process.send_signal(signal.SIGHUP)
        until(lambda: metric(edge, 'aecnn_reloads_total{outcome="ok"}') == 1)
        for bundle in bundles:  # each by its own models
            spec = bundle.manifest.variants[0]
            with Client(edge, bundle) as client:
                client.event()
                client.ask(spec, 0, planes_of(spec))
                event = client.event(PATIENT_S)
                assert isinstance(event, ResultReceived)
                assert event.result.top[0][0] == expected_top(bundle, [planes_of(spec)])[0][0][0]
        status, errors = edge.stop()
    assert status == 0
    assert f"it has no model {bundles[1].id[:12]}-tiny-l1-v2-u8 that is ready" in errors


def test_an_edge_that_waits_for_its_server_ends_at_once_when_asked(bundle: Bundle) -> None:
    words = ["serve-edge", str(bundle.path), "--port", "0", "--upstream", f"triton://127.0.0.1:{free_port()}"]
    process = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stderr is not None
        assert "waiting for tiny-l1-v2-u8" in process.stderr.readline()
        began_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENT_S) == 0
        assert time.monotonic() - began_s < 15  # of 30
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        (("--upstream", "triton://gpu", "--runner", "onnxruntime"), 2, "neither a runner nor a precision"),
        (("--upstream", "triton://127.0.0.1:1", "--upstream-wait-s", "0"), 1, "is the server running there"),
    ],
)
def test_what_cannot_be_served_so_is_said_in_one_line(
    bundle: Bundle, options: tuple[str, ...], status: int, why: str
) -> None:
    done = command("serve-edge", str(bundle.path), "--port", "0", *options)
    *_, line = done.stderr.decode().strip().splitlines()
    assert (done.returncode, why in line) == (status, True), done.stderr
    assert b"Traceback" not in done.stderr
