"""Tails on an inference server: what is compared with the bundle, what is tried again, and what is said of the rest."""

import dataclasses
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.cli.upstream_options import upstream_tails
from aecnn_deploy.errors import (
    AecnnError,
    CredentialsError,
    RunnerAwayError,
    RunnerError,
    SettingsError,
    UpstreamError,
)
from aecnn_deploy.runtimes.edge_remote import WatchedRemote
from aecnn_deploy.runtimes.edge_runners import RunnerOptions, activate_full, activate_tail
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.triton_outage import Outage
from aecnn_deploy.runtimes.triton_runner import TritonRunner
from aecnn_deploy.runtimes.triton_settings import TritonAddress, UpstreamSettings, parse_address
from aecnn_deploy.runtimes.triton_tails import TritonTails
from tests.bundles import make_bundle
from tests.certificates import Authority
from tests.edge_client import planes_of
from tests.inference_server import (
    Array,
    Model,
    Raw,
    RefusedError,
    answering_garbage,
    free_port,
    inference_server,
    malformed_messages,
    models_of,
)

PATIENT_S = 30.0  # what a loaded machine may take for what is done at once


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    make_bundle(folder)
    return open_bundle(folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "other"
    make_bundle(folder, seed=1)
    return open_bundle(folder)


@contextmanager
def tails_of(url: str, **settings: Any) -> Iterator[TritonTails]:
    tails = TritonTails(UpstreamSettings(url, **{"wait_s": PATIENT_S, "retry_s": PATIENT_S} | settings))
    try:
        yield tails
    finally:
        tails.close()


def first_runner(tails: TritonTails, bundle: Bundle) -> TritonRunner:
    runner = tails.runner(bundle, bundle.manifest.variants[0])
    assert isinstance(runner, TritonRunner)
    return runner


def batch_of(spec: VariantSpec, count: int) -> Array:
    return np.stack([planes_of(spec, seed) for seed in range(count)])


def locally(bundle: Bundle, batch: Array) -> Array:
    with OnnxRuntimeRunner(bundle.file(bundle.manifest.variants[0].tails["onnxruntime"]), threads=1) as runner:
        return runner.infer(batch)


def counted(tails: TritonTails, sample: str, **labels: str) -> float:
    for family in tails.metrics.collect():
        for found in family.samples:
            if found.name == sample and found.labels == labels:
                return float(found.value)
    return 0.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("triton://edge-gpu:8001", TritonAddress("edge-gpu", 8001, tls=False)),
        ("triton://127.0.0.1", TritonAddress("127.0.0.1", 8001, tls=False)),
        ("tritons://gpu.example:443/", TritonAddress("gpu.example", 443, tls=True)),
        ("triton://[::1]:9000", TritonAddress("::1", 9000, tls=False)),
    ],
)
def test_an_address_is_host_and_port_with_or_without_tls(url: str, address: TritonAddress) -> None:
    assert parse_address(url) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://gpu:8000", "HTTP port is not used"),
        ("grpc://gpu:8001", "give triton://HOST:PORT"),
        ("gpu:8001", "give triton://HOST:PORT"),
        ("triton://", "names no host"),
        ("triton://gpu:0", "names no port"),
        ("triton://gpu:70000", "Port out of range"),
        ("triton://gpu:x", "Port could not be cast"),
        ("triton://gpu:8001/models", "more than a host and a port"),
        ("triton://me:secret@gpu:8001", "more than a host and a port"),
        ("triton://gp u:8001", "whose host is none"),
        ("triton://[::1:8001", "Invalid IPv6 URL"),
    ],
)
def test_what_is_no_address_is_refused_with_the_form_of_one(url: str, why: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(why)) as caught:
        parse_address(url)
    assert "triton://HOST:PORT" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"ca": Path("ca.pem")}, "--upstream-ca"),
        ({"prefix": "a/b"}, "--upstream-prefix"),
        ({"prefix": "{variant}"}, "--upstream-prefix"),
        ({"parallel": 0}, "--upstream-parallel"),
        ({"parallel": 65}, "--upstream-parallel"),
        ({"call_s": 0.0}, "--upstream-timeout-s"),
        ({"retry_s": -1.0}, "--upstream-retry-s"),
        ({"wait_s": float("nan")}, "--upstream-wait-s"),
    ],
)
def test_a_setting_out_of_its_range_names_its_option(change: dict[str, Any], option: str) -> None:
    with pytest.raises(SettingsError, match=option):
        UpstreamSettings("triton://gpu:8001", **change)


def test_options_of_an_upstream_that_is_not_given_are_refused_and_so_is_a_second_place_for_the_tails() -> None:
    assert upstream_tails(None, None, None, None, (None, None, None)) is None
    with pytest.raises(SettingsError, match="go with --upstream URL"):
        upstream_tails(None, None, None, 8, (None, None, None))
    with pytest.raises(SettingsError, match="--upstream and --ray"):
        upstream_tails("triton://gpu", None, None, None, (None, None, None), ray="auto")
    tails = upstream_tails("triton://gpu", None, None, 2, (None, 0.0, None))
    assert isinstance(tails, WatchedRemote)
    for change in ({"name": "onnxruntime"}, {"precision": "fp16"}):
        with pytest.raises(SettingsError, match="triton://gpu:8001 take neither a runner nor a precision"):
            RunnerOptions(**change, remote=tails)
    tails.close()


def test_answers_are_the_local_tails_and_a_batch_over_the_models_limit_goes_in_pieces(bundle: Bundle) -> None:
    models = models_of(bundle)
    spec = bundle.manifest.variants[0]
    with inference_server(models) as url, tails_of(url) as tails:
        active = activate_tail(bundle, spec, RunnerOptions(remote=tails))
        assert (active.target, active.runner.name, active.runner.concurrency) == (url, "triton", 4)
        batch = batch_of(spec, 19)
        for count in (1, 8, 19):
            assert np.array_equal(active.runner.infer(batch[:count]), locally(bundle, batch[:count]))
        assert models[spec.id].batches == [1, 8, 8, 8, 3]
        assert counted(tails, "aecnn_upstream_seconds_count", variant=spec.id) == 5
        full = activate_full(bundle, RunnerOptions(remote=tails))
        assert full.target == url
        frame = np.zeros((1, bundle.manifest.input.height, bundle.manifest.input.width, 3), np.uint8)
        with OnnxRuntimeRunner(bundle.file(bundle.manifest.full), threads=1) as runner:
            assert np.array_equal(full.runner.infer(frame), runner.infer(frame))


def test_the_unsplit_model_runs_here_where_the_server_has_none(bundle: Bundle) -> None:
    with inference_server(models_of(bundle, full=False)) as url, tails_of(url) as tails:
        assert activate_full(bundle, RunnerOptions(remote=tails)).target == "onnxruntime"


def test_a_model_without_a_batch_limit_takes_any_batch(bundle: Bundle) -> None:
    models = models_of(bundle)
    spec = bundle.manifest.variants[0]
    models[spec.id].max_batch = 0
    with inference_server(models) as url, tails_of(url) as tails, first_runner(tails, bundle) as runner:
        runner.infer(batch_of(spec, 40))
    assert models[spec.id].batches == [40]


def test_a_prefix_with_the_bundles_id_keeps_two_bundles_apart(bundle: Bundle, other: Bundle) -> None:
    models = {
        name: model for each in (bundle, other) for name, model in models_of(each, prefix=f"{each.id[:12]}-").items()
    }
    with inference_server(models) as url, tails_of(url, prefix="{bundle}-") as tails:
        batch = batch_of(bundle.manifest.variants[0], 2)
        for each in (bundle, other):
            with first_runner(tails, each) as runner:
                assert np.array_equal(runner.infer(batch), locally(each, batch))


DISAGREEMENTS: list[tuple[dict[str, Any], str]] = [
    ({"input": ("frames", "UINT8", (-1, 4, 16, 16))}, "takes frames UINT8 [-1, 4, 16, 16], tiny-l1-v2-u8 needs planes"),
    ({"input": ("planes", "FP32", (-1, 4, 16, 16))}, "takes planes FP32 [-1, 4, 16, 16]"),
    ({"input": ("planes", "UINT8", (-1, 2, 16, 16))}, "needs planes UINT8 [-1, 4, 16, 16]"),
    ({"input": ("planes", "UINT8", (1, 4, 16, 16))}, "takes planes UINT8 [1, 4, 16, 16]"),
    ({"output": ("logits", "FP32", (-1, 9))}, "gives logits FP32 [-1, 9], tiny-l1-v2-u8 needs logits FP32 [-1, 7]"),
    ({"output": ("scores", "FP32", (-1, 7))}, "gives scores"),
    ({"parameters": {"aecnn_bundle_id": "f" * 64}}, "is of bundle ffffffffffff, this edge serves bundle"),
    ({"parameters": {"aecnn_variant": "tiny-l1-v4-u4"}}, "is the bundle's tiny-l1-v4-u4, expected tiny-l1-v2-u8"),
]


@pytest.mark.parametrize(("change", "why"), DISAGREEMENTS)
def test_a_model_that_is_not_the_bundles_is_refused_at_once_by_both_sides(
    bundle: Bundle, change: dict[str, Any], why: str
) -> None:
    models = models_of(bundle)
    models["tiny-l1-v2-u8"] = dataclasses.replace(models["tiny-l1-v2-u8"], **change)
    with inference_server(models) as url, tails_of(url) as tails:
        began_s = time.monotonic()
        with pytest.raises(RunnerError, match=re.escape(why)) as caught:
            first_runner(tails, bundle).activate()
        assert time.monotonic() - began_s < PATIENT_S / 2
        assert "aecnn-deploy bundle triton" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert url in str(caught.value)


def test_a_server_that_does_not_say_whose_models_it_has_is_warned_of_once(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with inference_server(models_of(bundle, says_bundle=False)) as url, tails_of(url) as tails:
        for variant in bundle.manifest.variants:
            runner = tails.runner(bundle, variant)
            assert runner is not None
            runner.activate()
    assert sum("does not say which bundle" in record.message for record in caplog.records) == 1


def test_a_missing_model_is_waited_for_as_long_as_the_settings_say(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    models = models_of(bundle)
    missing = models.pop("tiny-l1-v2-u8")
    with inference_server(models) as url:
        with (
            tails_of(url, wait_s=0.2) as tails,
            pytest.raises(RunnerError, match="no model tiny-l1-v2-u8 that is ready"),
        ):
            first_runner(tails, bundle).activate()
        with tails_of(url) as tails, ThreadPoolExecutor(1) as pool:
            caplog.clear()
            arriving = pool.submit(first_runner(tails, bundle).activate)
            until(lambda: any("waiting for tiny-l1-v2-u8" in record.message for record in caplog.records))
            models["tiny-l1-v2-u8"] = missing
            arriving.result(PATIENT_S)
    assert sum("waiting for" in record.message for record in caplog.records) == 1


def test_nothing_listening_is_said_within_the_wait_and_closing_ends_it(bundle: Bundle) -> None:
    url = f"triton://127.0.0.1:{free_port()}"
    with tails_of(url, wait_s=0.1) as tails, pytest.raises(RunnerError, match="is the server running there"):
        first_runner(tails, bundle).activate()
    with tails_of(url, wait_s=600.0) as tails, ThreadPoolExecutor(1) as pool:
        arriving = pool.submit(first_runner(tails, bundle).activate)
        time.sleep(0.05)
        tails.close()
        with pytest.raises(RunnerError):
            arriving.result(PATIENT_S)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(range(256)) * 8, b""])
def test_what_is_no_grpc_server_is_refused_in_one_line(bundle: Bundle, answer: bytes) -> None:
    with answering_garbage(answer) as url, tails_of(url, wait_s=0.3) as tails:
        with pytest.raises(RunnerError, match=re.escape(url)) as caught:
            first_runner(tails, bundle).activate()
        assert str(caught.value).isprintable()


def test_answers_that_are_no_protobuf_are_refused_in_one_line(bundle: Bundle) -> None:
    with malformed_messages() as url, tails_of(url) as tails:
        with pytest.raises(RunnerError, match="internal") as caught:
            first_runner(tails, bundle).activate()
        assert str(caught.value).isprintable()


def test_a_certificate_of_the_named_ca_is_taken_and_another_is_not(bundle: Bundle, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    with inference_server(models_of(bundle), tls=authority.issue("gpu")) as url:
        batch = batch_of(bundle.manifest.variants[0], 1)
        with tails_of(url, ca=authority.ca) as tails, first_runner(tails, bundle) as runner:
            assert np.array_equal(runner.infer(batch), locally(bundle, batch))
        for ca in (stranger.ca, None):
            with (
                tails_of(url, ca=ca, wait_s=0.2) as tails,
                pytest.raises(RunnerError, match="CERTIFICATE_VERIFY_FAILED"),
            ):
                first_runner(tails, bundle).activate()
    (tmp_path / "empty.pem").write_text("nothing")
    for ca, why in ((tmp_path / "none.pem", "cannot read --upstream-ca"), (tmp_path / "empty.pem", "holds no CA")):
        with pytest.raises(CredentialsError, match=why):
            TritonTails(UpstreamSettings(url, ca=ca))


@contextmanager
def first_model(bundle: Bundle, **settings: Any) -> Iterator[tuple[Model, TritonTails, TritonRunner]]:
    models = models_of(bundle)
    with inference_server(models) as url, tails_of(url, **settings) as tails, first_runner(tails, bundle) as runner:
        yield models["tiny-l1-v2-u8"], tails, runner


WRONG: list[tuple[Any, str]] = [
    (np.zeros((2, 9), np.float32), "logits FP32 [2, 9] in 72 bytes, expected logits FP32 [2, 7] in 56"),
    (np.zeros((1, 7), np.float32), "logits FP32 [1, 7]"),
    (Raw([("logits", "FP32", (2, 7))], [b"\0" * 8]), "in 8 bytes"),
    (Raw([("logits", "FP32", (2, 7))], []), "in 0 bytes"),
    (Raw([("logits", "FP64", (2, 7))], [b"\0" * 112]), "logits FP64"),
    (Raw([("scores", "FP32", (2, 7))], [b"\0" * 56]), "scores FP32"),
    (Raw([("logits", "FP32", (2, 7))] * 2, [b"\0" * 56] * 2), "logits FP32 [2, 7], logits FP32 [2, 7]"),
    (Raw([("logits", "FP32", (-2, -7))], [b"\0" * 56]), "logits FP32 [-2, -7]"),
    (Raw([], []), "with nothing"),
]


@pytest.mark.parametrize(("answer", "why"), WRONG)
def test_an_answer_of_another_shape_fails_its_batch_and_is_not_asked_for_again(
    bundle: Bundle, answer: Any, why: str
) -> None:
    with first_model(bundle) as (model, tails, runner):
        model.run = lambda batch: answer
        with pytest.raises(UpstreamError, match=re.escape(why)):
            runner.infer(batch_of(bundle.manifest.variants[0], 2))
        assert model.batches == [2]
        assert counted(tails, "aecnn_upstream_failures_total", variant=runner.needs.variant, code="bad-answer") == 1


def test_the_servers_own_words_of_a_failure_come_in_one_line_and_are_not_asked_for_again(bundle: Bundle) -> None:
    def fail(batch: Array) -> Array:
        raise RefusedError(grpc.StatusCode.INTERNAL, "CUDA out\nof memory \x1b[31m" + "x" * 5000)

    with first_model(bundle) as (model, _, runner):
        model.run = fail
        with pytest.raises(UpstreamError, match="CUDA out of memory") as caught:
            runner.infer(batch_of(bundle.manifest.variants[0], 1))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500
        assert model.batches == [1]


def test_an_answer_over_the_limit_of_memory_is_refused(bundle: Bundle) -> None:
    with first_model(bundle) as (model, _, runner):
        model.run = lambda batch: Raw([("logits", "FP32", (1, 7))], [bytes(65 << 20)])
        with pytest.raises(UpstreamError, match="resource-exhausted"):
            runner.infer(batch_of(bundle.manifest.variants[0], 1))


def test_a_batch_that_takes_longer_than_its_time_fails_by_name(bundle: Bundle) -> None:
    release = threading.Event()
    with first_model(bundle, call_s=0.2) as (model, _, runner):
        run = model.run

        def late(batch: Array) -> Array:
            release.wait(PATIENT_S)
            return run(batch)

        model.run = late
        try:
            with pytest.raises(UpstreamError, match=r"no answer within 0\.2 s"):
                runner.infer(batch_of(bundle.manifest.variants[0], 1))
        finally:
            release.set()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.NOT_FOUND])
def test_what_a_restarting_server_says_is_asked_again(bundle: Bundle, code: grpc.StatusCode) -> None:
    batch = batch_of(bundle.manifest.variants[0], 1)
    with first_model(bundle) as (model, tails, runner):
        run, left = model.run, [code, code]

        def restarting(batch: Array) -> Array:
            if left:
                raise RefusedError(left.pop(), "starting")
            return run(batch)

        model.run = restarting
        assert np.array_equal(runner.infer(batch), locally(bundle, batch))
        assert counted(tails, "aecnn_upstream_retries_total", variant=runner.needs.variant) == 2


def test_a_server_that_comes_back_may_stammer(bundle: Bundle) -> None:
    batch = batch_of(bundle.manifest.variants[0], 1)
    with first_model(bundle) as (model, _, runner):
        model.config_fails = [grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED]
        runner.outage.failed("as if it had been lost")
        assert np.array_equal(runner.infer(batch), locally(bundle, batch))
        assert model.config_fails == []


def test_models_that_a_server_loads_one_after_the_other_are_all_waited_for(bundle: Bundle) -> None:
    models = models_of(bundle)
    late = models.pop(bundle.manifest.variants[1].id)
    with inference_server(models) as url, tails_of(url) as tails, ThreadPoolExecutor(1) as pool:
        first_runner(tails, bundle).activate()
        second = tails.runner(bundle, bundle.manifest.variants[1])
        assert second is not None
        arriving = pool.submit(second.activate)
        time.sleep(2.5)  # more than a model gets that is asked for late
        models[bundle.manifest.variants[1].id] = late
        arriving.result(PATIENT_S)


def test_a_server_that_restarts_under_load_costs_no_batch(bundle: Bundle) -> None:
    port = free_port()
    spec = bundle.manifest.variants[0]
    batch = batch_of(spec, 4)
    expected = locally(bundle, batch)
    stop, done = threading.Event(), [0, 0, 0]

    def ask(runner: TritonRunner, number: int) -> None:
        while not stop.is_set():
            assert np.array_equal(runner.infer(batch), expected)
            done[number] += 1

    with tails_of(f"triton://127.0.0.1:{port}") as tails, ThreadPoolExecutor(3) as pool:
        with inference_server(models_of(bundle), port):
            runner = first_runner(tails, bundle).activate()
            asking = [pool.submit(ask, runner, number) for number in range(3)]
            until(lambda: min(done) > 3)
        until(lambda: runner.outage.lost)
        with inference_server(models_of(bundle), port):
            before = done[:]
            until(lambda: all(now > then + 3 for now, then in zip(done, before, strict=True)) or asking_failed(asking))
            stop.set()
            for each in asking:
                each.result(PATIENT_S)
        assert tails.away() is None
        assert counted(tails, "aecnn_upstream_retries_total", variant=spec.id) > 0


def asking_failed(asking: list[Any]) -> bool:
    return any(each.done() for each in asking)


def test_a_server_that_stays_away_fails_batches_with_a_time_to_come_back_and_then_at_once(bundle: Bundle) -> None:
    port = free_port()
    batch = batch_of(bundle.manifest.variants[0], 1)
    with tails_of(f"triton://127.0.0.1:{port}", retry_s=0.4) as tails:
        with inference_server(models_of(bundle), port):
            runner = first_runner(tails, bundle).activate()
        with pytest.raises(RunnerAwayError, match="unavailable") as caught:
            runner.infer(batch)
        assert caught.value.retry_after_s > 0
        until(lambda: tails.away() is not None)
        began_s = time.monotonic()
        for _ in range(5):
            with pytest.raises(RunnerAwayError):
                runner.infer(batch)
        assert time.monotonic() - began_s < 5 * 0.4
        assert counted(tails, "aecnn_upstream_up") == 0
        with inference_server(models_of(bundle), port):
            until(lambda: tails.away() is None)  # nobody asks: the watch finds it
            runner.infer(batch)
        assert counted(tails, "aecnn_upstream_up") == 1


def test_a_server_that_comes_back_with_another_bundle_is_not_asked(bundle: Bundle, other: Bundle) -> None:
    port = free_port()
    batch = batch_of(bundle.manifest.variants[0], 1)
    with tails_of(f"triton://127.0.0.1:{port}", retry_s=0.4) as tails:
        with inference_server(models_of(bundle), port):
            runner = first_runner(tails, bundle).activate()
        with pytest.raises(RunnerAwayError):
            runner.infer(batch)
        models = models_of(other)
        with inference_server(models, port):
            until(lambda: other.id[:12] in (tails.away() or ""))
            with pytest.raises(RunnerAwayError, match=f"is of bundle {other.id[:12]}, this edge serves"):
                runner.infer(batch)
        assert models["tiny-l1-v2-u8"].batches == []


def test_models_that_are_exchanged_under_the_same_name_are_noticed(bundle: Bundle, other: Bundle) -> None:
    models = models_of(bundle)
    with inference_server(models) as url, tails_of(url, retry_s=0.0) as tails, first_runner(tails, bundle) as runner:
        models |= models_of(other)
        until(lambda: runner.outage.lost)
        with pytest.raises(RunnerAwayError, match="is of bundle"):
            runner.infer(batch_of(bundle.manifest.variants[0], 1))


def test_as_many_batches_as_the_settings_say_run_at_once(bundle: Bundle) -> None:
    together = threading.Barrier(3)
    with first_model(bundle, parallel=3) as (model, _, runner):
        run = model.run

        def meet(batch: Array) -> Array:
            together.wait(PATIENT_S)  # broken, and so a failure, if there are fewer
            return run(batch)

        model.run = meet
        with ThreadPoolExecutor(runner.concurrency) as pool:
            batch = batch_of(bundle.manifest.variants[0], 2)
            for answer in [pool.submit(runner.infer, batch) for _ in range(3)]:
                assert np.array_equal(answer.result(PATIENT_S), locally(bundle, batch))


def test_closing_ends_a_batch_that_is_tried_again(bundle: Bundle) -> None:
    with first_model(bundle, retry_s=600.0) as (model, tails, runner), ThreadPoolExecutor(1) as pool:
        model.ready = False
        waiting = pool.submit(runner.infer, batch_of(bundle.manifest.variants[0], 1))
        until(lambda: runner.outage.lost)
        tails.close()
        with pytest.raises(AecnnError):
            waiting.result(PATIENT_S)


def test_an_outage_is_told_after_its_limit_and_over_with_the_first_success() -> None:
    now = [100.0]
    outage = Outage(10.0, clock=lambda: now[0])
    assert outage.succeeded() is None
    assert outage.failed("gone") == (True, 0.0)
    now[0] += 9.0
    assert (outage.lost, outage.away) == (True, None)
    assert outage.failed("still gone") == (False, 9.0)
    now[0] += 1.0
    assert outage.away == "still gone"
    assert outage.succeeded() == 10.0
    assert (outage.lost, outage.away) == (False, None)
    assert outage.failed("again") == (True, 0.0)
