"""Runs one model on a Triton server: batches out, logits back, tried again while the server is away."""

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from aecnn_deploy.errors import RunnerAwayError, RunnerError, UpstreamError
from aecnn_deploy.runtimes.backoff import Backoff
from aecnn_deploy.runtimes.base import Array, Runner
from aecnn_deploy.runtimes.triton_channel import (
    BAD_ANSWER,
    CANCELLED,
    LATE,
    NOT_FOUND,
    UNAVAILABLE,
    WRONG_MODEL,
    ModelFace,
    TritonChannel,
)
from aecnn_deploy.runtimes.triton_metrics import UpstreamMetrics
from aecnn_deploy.runtimes.triton_model import BUNDLE_KEY, ModelNeeds
from aecnn_deploy.runtimes.triton_outage import Outage
from aecnn_deploy.runtimes.triton_settings import UpstreamSettings

logger = logging.getLogger("aecnn_deploy.edge")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0  # between attempts
_ASK_S = 2.0  # for one question about the model
_RETRY_AFTER_S = 2.0  # what is said when the server is away
_NOT_YET = frozenset({UNAVAILABLE, CANCELLED, NOT_FOUND, LATE})  # what may pass while an edge starts


@dataclass(frozen=True, slots=True)
class Upstream:
    """What all runners of one server share.

    ``closing`` ends all waiting; ``used`` is told of a runner that becomes active, or is so no more.
    """

    settings: UpstreamSettings
    channel: TritonChannel
    metrics: UpstreamMetrics
    closing: threading.Event
    used: "Callable[[TritonRunner, bool], None]"


class TritonRunner(Runner):
    """Runs ``needs`` on a Triton server, ``settings.parallel`` batches at a time.

    The server's model is compared with the bundle's when it is activated, each time it comes back, and whenever
    ``probe`` is called: one that was exchanged meanwhile is not used. A batch over the model's own limit is sent in
    pieces. ``patient_s``: how long ``activate`` waits for the model.
    """

    name = "triton"

    def __init__(self, needs: ModelNeeds, upstream: Upstream) -> None:
        super().__init__()
        self.needs, self.concurrency = needs, upstream.settings.parallel
        self.outage = Outage(upstream.settings.retry_s)
        self.patient_s = upstream.settings.wait_s
        self.says_bundle = False  # whether the server's configuration names the bundle; known once active
        self._upstream, self._settings, self._channel = upstream, upstream.settings, upstream.channel
        self._metrics, self._closing = upstream.metrics, upstream.closing
        self._max_batch = 0
        self._comparing = threading.Lock()

    def probe(self) -> None:
        """Ask whether the model is still there and still the bundle's; the outage knows then."""
        try:
            self._compare()
        except UpstreamError as exc:
            self._failed(exc)
        else:
            self._succeeded()

    def _activate(self) -> None:
        self._await_model()
        self.input_shape, self.output_shape = self.needs.input.shape[1:], self.needs.output.shape[1:]
        self.input_dtype, self.output_dtype = np.dtype(np.uint8), np.dtype(np.float32)
        self._metrics.known(self.needs.variant)
        self._upstream.used(self, True)

    def _await_model(self) -> None:
        end_s, told = time.monotonic() + self.patient_s, False
        backoff = Backoff(random.Random(), first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S)
        while True:
            try:
                if not self._channel.live(_ASK_S):
                    raise self._channel.error(UNAVAILABLE, "the server is not live yet")
                face = self._compare()
            except UpstreamError as exc:
                left_s = end_s - time.monotonic()
                if exc.code not in _NOT_YET or left_s <= 0 or self._closing.is_set():
                    raise RunnerError(f"{self.needs.variant} cannot run upstream: {exc}{_remedy(exc)}") from None
                if not told:
                    logger.warning("waiting for %s, %.0f s at most: %s", self.needs.name, left_s, exc)
                    told = True
                self._closing.wait(min(backoff.pause_s(), left_s))
            else:
                self.says_bundle = BUNDLE_KEY in face.parameters
                return

    def _compare(self) -> ModelFace:
        """The server's model, which is the bundle's. Raises UpstreamError: it is not, or cannot be asked."""
        name = self.needs.name
        if not self._channel.model_ready(name, _ASK_S):
            raise self._channel.error(NOT_FOUND, f"it has no model {name} that is ready")
        face = self._channel.face(name, _ASK_S)
        why = self.needs.disagreement(face)
        if why is not None:
            raise self._channel.error(WRONG_MODEL, why)
        self._max_batch = face.max_batch
        return face

    def _infer(self, batch: Array) -> Array:
        most = self._max_batch or len(batch)
        pieces = [self._run(batch[at : at + most]) for at in range(0, len(batch), most)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _run(self, piece: Array) -> Array:
        request = self._request(piece)  # the same bytes at each attempt: an inference changes nothing there
        backoff = Backoff(random.Random(), first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S)
        first_failed_s = math.inf
        while True:
            try:
                if self.outage.lost:
                    self._compare_once()
                began_s = time.perf_counter()
                logits = self._logits(self._channel.infer(request, self._settings.call_s), len(piece))
            except UpstreamError as exc:
                if not exc.passing:
                    self._metrics.failed(self.needs.variant, exc.code)
                    raise
                first_failed_s = min(first_failed_s, time.monotonic())
                gone_s = max(self._failed(exc), time.monotonic() - first_failed_s)
                pause_s = backoff.pause_s()
                if gone_s + pause_s > self._settings.retry_s or self._closing.wait(pause_s):
                    self._metrics.failed(self.needs.variant, exc.code)
                    raise RunnerAwayError(str(exc), _RETRY_AFTER_S) from None
                self._metrics.retried(self.needs.variant)
            else:
                self._metrics.answered(self.needs.variant, time.perf_counter() - began_s)
                self._succeeded()
                return logits

    def _compare_once(self) -> None:
        """Before the first batch after an outage: who answers now may be another server."""
        with self._comparing:  # one of the threads asks, the others then find that the outage is over
            if not self.outage.lost:
                return
            try:
                self._compare()
            except UpstreamError as exc:  # whatever it is: a server that starts says many things, and the batch waits
                raise UpstreamError(exc.code, str(exc), passing=True) from None
            self._succeeded()

    def _request(self, piece: Array) -> Any:
        messages = self._channel.messages
        request = messages.ModelInferRequest(model_name=self.needs.name)
        source = self.needs.input
        request.inputs.add(name=source.name, datatype=source.datatype, shape=piece.shape)
        request.outputs.add(name=self.needs.output.name)
        request.raw_input_contents.append(piece.tobytes())
        return request

    def _logits(self, answer: Any, count: int) -> Array:
        """The logits (count, classes) in ``answer``; what is not finite among them fails its own image later."""
        wanted = self.needs.output
        shape = (count, *wanted.shape[1:])
        found = [(out.name, out.datatype, tuple(out.shape)) for out in answer.outputs]
        raw, size = answer.raw_output_contents, 4 * math.prod(shape)
        sizes = [len(content) for content in raw]
        if found != [(wanted.name, wanted.datatype, shape)] or sizes != [size]:
            listed = ", ".join(f"{name} {datatype} {list(dims)}" for name, datatype, dims in found)[:200] or "nothing"
            raise self._channel.error(
                BAD_ANSWER,
                f"{self.needs.name} answered {count} images with {listed} in {sum(sizes)} bytes, expected "
                f"{wanted.name} {wanted.datatype} {list(shape)} in {size}; look at the server's log and its model",
            )
        return np.frombuffer(raw[0], self.output_dtype).reshape(shape)

    def _failed(self, error: UpstreamError) -> float:
        """Seconds since the server was lost."""
        began, gone_s = self.outage.failed(str(error))
        if began and not self._closing.is_set():
            logger.warning("%s is away: %s", self.needs.name, error)
        return gone_s

    def _succeeded(self) -> None:
        gone_s = self.outage.succeeded()
        if gone_s is not None:
            logger.warning("%s is back after %.1f s", self.needs.name, gone_s)

    def _deactivate(self) -> None:
        self._upstream.used(self, False)  # the connection is shared: it ends with the edge


def _remedy(error: UpstreamError) -> str:
    if error.code == NOT_FOUND:
        return "; write the bundle's models into its repository, or name its folder's prefix with --upstream-prefix"
    if error.code == UNAVAILABLE:
        return "; is the server running there, and is that its port for gRPC?"
    if error.code == "unimplemented":
        return "; what answers there is no inference server"
    return ""
