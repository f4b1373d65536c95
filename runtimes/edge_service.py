"""What an edge does with a request, whichever way it came: admit it, run it on the model's thread, time it."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import MAX_DISTANCE, PlaneDecoder
from aecnn_deploy.errors import (
    AecnnError,
    CodecError,
    ImageError,
    NoReferenceError,
    RequestFailedError,
    RunnerError,
    ServeError,
    SettingsError,
)
from aecnn_deploy.runtimes.base import Array, Runner
from aecnn_deploy.runtimes.edge_gate import GuardSettings
from aecnn_deploy.runtimes.edge_metrics import FULL, SPLIT, EdgeMetrics
from aecnn_deploy.runtimes.edge_runners import RunnerOptions, activate_tail, make_onnxruntime
from aecnn_deploy.runtimes.edge_worker import Worker
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.plane_memory import KeptPlanes, plane_dictionary
from aecnn_deploy.wire import FailureCode, InferReceived, Result, WireLimits

logger = logging.getLogger("aecnn_deploy.edge")

TOP_K = 5
_ABANDON_S = 1.0

BAD_IMAGE, TOO_LARGE, TOO_SLOW = (
    "bad-image",
    "too-large",
    "too-slow",
)  # how POST /v1/classify fails, beside the wire's FailureCodes


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """How an edge serves. Raises SettingsError: a number is out of its range."""

    host: str = "127.0.0.1"
    port: int = 8765  # 0 takes a free one
    runner: RunnerOptions = field(default_factory=RunnerOptions)
    max_in_flight: int = 64  # requests of all devices together
    max_in_flight_per_stream: int = 8
    max_streams: int = 256
    max_image_bytes: int = 16 << 20  # of a body of POST /v1/classify
    max_reference_bytes: int = 1 << 19  # of a stream's last planes, kept for differences; 0: each frame on its own
    max_uploads: int = 16  # bodies that are being read; each may hold max_image_bytes of memory
    upload_timeout_s: float = 30.0  # for one body
    drain_s: float = 10.0
    hello_timeout_s: float = 10.0
    limits: WireLimits = field(default_factory=WireLimits)
    guard: GuardSettings = field(default_factory=GuardSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port is {self.port}, expected 0 to 65535")
        for name in ("max_in_flight", "max_in_flight_per_stream", "max_streams", "max_image_bytes", "max_uploads"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.max_reference_bytes < 0:
            raise SettingsError(f"max_reference_bytes is {self.max_reference_bytes}, expected 0 or more")
        for name in ("drain_s", "hello_timeout_s", "upload_timeout_s"):
            if not 0 <= getattr(self, name) < 1e6:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected 0 or more seconds")


class DrainableStream(Protocol):
    """What the service asks of an open stream when the edge stops."""

    async def finish(self) -> None:
        """Say GOODBYE, answer what is in flight, then close."""

    async def abandon(self) -> None:
        """Fail what is in flight and close."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model's thread gives back: ``top`` is (class index, softmax score), best first."""

    top: list[tuple[int, float]]
    decode_ms: float
    queue_ms: float
    run_ms: float


class Tail:
    """One variant's decoder and tail with the thread that owns both."""

    def __init__(self, bundle: Bundle, variant: VariantSpec) -> None:
        self.variant, self.target = variant, ""
        self._decoder = PlaneDecoder(variant.planes, variant.bits, dictionary=plane_dictionary(bundle, variant))
        self.worker = Worker(f"tail {variant.id}")
        self._runner: Runner | None = None

    def load(self, bundle: Bundle, options: RunnerOptions) -> None:
        """Load the tail and run it once. Call it on the worker. Raises RunnerError, ServeError."""
        tail = activate_tail(bundle, self.variant, options)
        planes, classes = tuple(self.variant.planes), (len(bundle.manifest.labels),)
        if tail.runner.input_shape != planes or tail.runner.output_shape != classes:
            raise ServeError(
                f"{bundle.path}: the tail of {self.variant.id} takes {tail.runner.input_shape} and gives "
                f"{tail.runner.output_shape}, the manifest says {planes} and {classes}; export the bundle again"
            )
        tail.runner.infer(np.zeros((1, *self.variant.planes), tail.runner.input_dtype))
        self._runner, self.target = tail.runner, tail.target

    @property
    def runner_name(self) -> str:
        return self._runner.name if self._runner else ""

    def answer(self, request: InferReceived, received_s: float, kept: KeptPlanes | None) -> Answer:
        """Run one request. Call it on the worker. Raises RequestFailedError.

        ``kept``: the planes of the stream's earlier requests; those of this one are added when it has its answer.
        """
        started_s = time.perf_counter()
        if request.deadline_ms and (started_s - received_s) * 1e3 > request.deadline_ms:
            raise RequestFailedError(
                FailureCode.DEADLINE, f"its {request.deadline_ms} ms had passed when {self.variant.id} had its turn"
            )
        assert self._runner is not None
        try:
            planes = self._decoder.decode(
                request.coder_id,
                request.payload,
                lambda distance: kept.get(request.request_id - distance) if kept is not None else None,
            )
            decoded_s = time.perf_counter()
            logits = self._runner.infer(planes[np.newaxis])
            ran_s = time.perf_counter()
            top = top_scores(logits[0], TOP_K)
        except NoReferenceError as exc:
            raise RequestFailedError(FailureCode.NO_REFERENCE, str(exc)) from None
        except CodecError as exc:
            raise RequestFailedError(FailureCode.BAD_PAYLOAD, str(exc)) from None
        except RunnerError as exc:
            raise RequestFailedError(FailureCode.INTERNAL, str(exc)) from None
        if kept is not None:
            kept.keep(request.request_id, planes)
        return Answer(top, (decoded_s - started_s) * 1e3, (started_s - received_s) * 1e3, (ran_s - decoded_s) * 1e3)

    def unload(self) -> None:
        """Free the tail. Call it on the worker."""
        if self._runner is not None:
            self._runner.deactivate()
            self._runner = None


class Full:
    """The unsplit model with its thread; loaded when the first image comes."""

    def __init__(self, bundle: Bundle, options: RunnerOptions) -> None:
        self.worker = Worker("full model")
        self._bundle = bundle
        self._runner = make_onnxruntime(bundle.file(bundle.manifest.full), options)

    def answer(self, content: bytes, received_s: float) -> Answer:
        """Classify an image file. Call it on the worker. Raises RequestFailedError."""
        started_s = time.perf_counter()
        try:
            frame = read_frame(content, self._bundle.manifest.input, name="the body")
            decoded_s = time.perf_counter()
            self._runner.activate()
            logits = self._runner.infer(frame[np.newaxis])
            ran_s = time.perf_counter()
            top = top_scores(logits[0], TOP_K)
        except ImageError as exc:
            raise RequestFailedError(BAD_IMAGE, str(exc)) from None
        except AecnnError as exc:
            raise RequestFailedError(FailureCode.INTERNAL, str(exc)) from None
        return Answer(top, (decoded_s - started_s) * 1e3, (started_s - received_s) * 1e3, (ran_s - decoded_s) * 1e3)

    def unload(self) -> None:
        """Free the model. Call it on the worker."""
        self._runner.deactivate()


class EdgeService:
    """The models of one bundle, what is in flight, and whether the edge is ready or draining.

    Lives on one event loop; only ``Tail`` and ``Full`` do work on other threads.
    """

    def __init__(self, bundle: Bundle, settings: EdgeSettings) -> None:
        self.bundle, self.settings = bundle, settings
        self.in_flight, self.uploads = 0, 0
        self.ready, self.draining = False, False
        self.streams: set[DrainableStream] = set()
        self.metrics = EdgeMetrics(lambda: self.in_flight, lambda: len(self.streams))
        self.tails = [Tail(bundle, variant) for variant in bundle.manifest.variants]
        self._full = Full(bundle, settings.runner)

    @property
    def runner_name(self) -> str:
        """The runner of the tails; joined by ``+`` where variants have different ones."""
        return "+".join(sorted({tail.runner_name for tail in self.tails}))

    def references(self, tails: Sequence[Tail], max_in_flight: int) -> int:
        """How many answered requests' planes a stream of these variants may have kept for each of them.

        One more than it may have in flight is of use: so many may be answered between a RESULT and its difference.
        """
        each = sum(tail.variant.plane_bytes for tail in tails)
        return min(max_in_flight + 1, MAX_DISTANCE, self.settings.max_reference_bytes // each)

    async def load(self) -> None:
        """Load and warm every tail. Raises RunnerError, ServeError: one cannot be loaded."""
        for tail in self.tails:  # one after the other: each takes every core while it loads
            await tail.worker.run(lambda tail=tail: tail.load(self.bundle, self.settings.runner))  # type: ignore[misc]
        self.ready = True

    def cancel_loading(self) -> None:
        """End the build of an engine, which would go on for minutes. Does nothing where none is built."""
        if self.settings.runner.engines is not None:
            self.settings.runner.engines.cancel()

    async def infer(
        self, tail: Tail, request: InferReceived, received_s: float, kept: KeptPlanes | None = None
    ) -> Result:
        """Run a device's planes; ``kept`` are the stream's earlier ones of this variant.

        ``received_s`` is ``time.perf_counter`` at its arrival. Raises RequestFailedError.
        """
        if request.raw_bytes != tail.variant.plane_bytes:
            raise RequestFailedError(
                FailureCode.BAD_PAYLOAD,
                f"{request.raw_bytes} bytes of planes, {tail.variant.id} has {tail.variant.plane_bytes}",
            )
        answer = await self._run(tail.worker, lambda: tail.answer(request, received_s, kept))
        result = Result(
            top=answer.top,
            decode_ms=answer.decode_ms,
            queue_ms=answer.queue_ms,
            tail_ms=answer.run_ms,
            total_ms=(time.perf_counter() - received_s) * 1e3,
            in_flight=self.in_flight,
            variant=tail.variant.id,
        )
        self.metrics.answered(
            SPLIT,
            {"decode": result.decode_ms, "queue": result.queue_ms, "tail": result.tail_ms, "total": result.total_ms},
        )
        return result

    async def classify(self, content: bytes, received_s: float) -> tuple[Answer, float]:
        """Run the unsplit model on an image file; the answer and its total in ms. Raises RequestFailedError."""
        answer = await self._run(self._full.worker, lambda: self._full.answer(content, received_s))
        total_ms = (time.perf_counter() - received_s) * 1e3
        self.metrics.answered(
            FULL, {"decode": answer.decode_ms, "queue": answer.queue_ms, "full": answer.run_ms, "total": total_ms}
        )
        return answer, total_ms

    def check_open(self) -> None:
        """Raises RequestFailedError: the edge takes no request now."""
        if self.draining:
            raise RequestFailedError(FailureCode.DRAINING, "the edge is shutting down; ask another one")
        if self.in_flight >= self.settings.max_in_flight:
            raise RequestFailedError(
                FailureCode.OVERLOADED,
                f"{self.in_flight} requests are in flight, the limit is {self.settings.max_in_flight}; "
                "try again later, or raise --max-in-flight",
            )

    async def _run(self, worker: Worker, job: Callable[[], Answer]) -> Answer:
        self.check_open()
        self.in_flight += 1
        try:
            return await worker.run(job)
        finally:
            self.in_flight -= 1

    async def drain(self, hurry: Callable[[], bool]) -> int:
        """Take nothing new and finish what is in flight, for ``drain_s`` at most or until ``hurry`` says so.

        Returns the number of requests that were left unfinished.
        """
        self.draining = True
        finishing = [asyncio.create_task(stream.finish()) for stream in self.streams]
        end_s = time.monotonic() + self.settings.drain_s
        while (self.in_flight or not all(task.done() for task in finishing)) and time.monotonic() < end_s:
            if hurry():
                break
            await asyncio.sleep(0.01)
        left = self.in_flight
        for task in finishing:
            task.cancel()
        # A device that reads nothing must not delay the end.
        ends = (asyncio.wait_for(stream.abandon(), _ABANDON_S) for stream in list(self.streams))
        await asyncio.gather(*finishing, *ends, return_exceptions=True)
        return left

    def close(self, timeout_s: float) -> bool:
        """Free the models and end their threads, waiting at most ``timeout_s`` for each; whether all have ended."""
        ended = [tail.worker.close(timeout_s, last=tail.unload) for tail in self.tails]
        return all([*ended, self._full.worker.close(timeout_s, last=self._full.unload)])


def top_scores(logits: Array, count: int) -> list[tuple[int, float]]:
    """The ``count`` best classes of ``logits`` (classes,) with their softmax scores, best first.

    The first is numpy's argmax. Raises RunnerError: a logit is NaN, or the best is infinite.
    """
    best = float(logits.max())  # NaN if any is
    if not math.isfinite(best):
        raise RunnerError("the model gave logits that are not finite; verify the bundle's export")
    weights = np.exp(logits - best)
    total = float(weights.sum(dtype=np.float64))
    order = (-logits).argsort(kind="stable")[:count]
    return [(index, weight / total) for index, weight in zip(order.tolist(), weights[order].tolist(), strict=True)]
