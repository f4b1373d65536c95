"""Tails on an inference server that answers wrongly, late, or not for a while."""

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import (
    AecnnError,
    RunnerAwayError,
    UpstreamError,
)
from aecnn_deploy.runtimes.triton_outage import Outage
from aecnn_deploy.runtimes.triton_runner import TritonRunner
from aecnn_deploy.runtimes.triton_tails import TritonTails
from tests.bundles import make_bundle
from tests.inference_server import (
    Array,
    Model,
    Raw,
    RefusedError,
    free_port,
    inference_server,
    models_of,
)
from tests.upstream_tails import PATIENT_S, batch_of, counted, first_runner, locally, tails_of, until


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
