"""What an edge runs: a variant's tail on planes, and the unsplit model on images; both as decode, then run a batch."""

import math
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from aecnn_deploy.bundle.manifest import ONNXRUNTIME, VariantSpec
from aecnn_deploy.bundle.reader import Bundle, check_file
from aecnn_deploy.codec import PlaneDecoder
from aecnn_deploy.errors import (
    AecnnError,
    CodecError,
    ImageError,
    NoReferenceError,
    RequestFailedError,
    RunnerError,
    ServeError,
)
from aecnn_deploy.runtimes.base import Array, Runner
from aecnn_deploy.runtimes.batch_times import BatchTimes
from aecnn_deploy.runtimes.edge_runners import RunnerOptions, activate_full, activate_tail
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.plane_memory import KeptPlanes, plane_dictionary
from aecnn_deploy.wire import FailureCode, InferReceived

TOP_K = 5
BAD_IMAGE = "bad-image"  # how POST /v1/classify fails, beside the wire's FailureCodes

_TUNING_S = 1.0  # for timing batches of several sizes when a model is loaded
_REPEATS = 5

Top = list[tuple[int, float]]  # (class index, softmax score), best first


@dataclass(frozen=True, slots=True)
class PlanesAsked:
    """A device's request: its planes, still coded. ``kept`` are the earlier ones of its stream and variant."""

    request: InferReceived
    kept: KeptPlanes | None


@dataclass(frozen=True, slots=True)
class TensorAsked:
    """One item of a model's batch that came as it is, and whose answer keeps the logits. ``item`` has been checked."""

    item: Array


Asked = PlanesAsked | TensorAsked | bytes  # bytes: an image file


class EdgeModel(ABC):
    """One model file with what it takes to feed it. ``load`` and ``unload`` belong to one thread.

    ``run`` may be called on ``slots`` threads at once between them.
    """

    name: str
    target = ""  # of the manifest, once it is loaded; or where it runs

    def __init__(self) -> None:
        self._runner: Runner | None = None

    @property
    def runner_name(self) -> str:
        """The runner's name while the model is loaded, else nothing."""
        return self._runner.name if self._runner else ""

    @property
    def slots(self) -> int:
        """How many batches may run at once; known while the model is loaded."""
        return self._runner.concurrency if self._runner else 1

    @property
    @abstractmethod
    def file_bytes(self) -> int:
        """Of its model file: the least memory that it will take."""

    def load(self, times: BatchTimes, max_batch: int) -> None:
        """Load the model, run it until it is warm, and time batches of 1 to ``max_batch`` for ``times``.

        Raises RunnerError, ServeError, BundleDamagedError: it is not what the manifest says, or cannot be loaded.
        """
        runner = self._activate()
        one = np.zeros((1, *runner.input_shape), runner.input_dtype)
        runner.infer(one)
        end_s = time.perf_counter() + _TUNING_S
        for size in _REPEATS * batch_sizes(max_batch):  # round after round: a slow spell is not one size's alone
            batch = np.repeat(one, size, axis=0)
            began_s = time.perf_counter()
            runner.infer(batch)
            ended_s = time.perf_counter()
            times.ran(size, ended_s - began_s)
            if ended_s > end_s:
                break
        self._runner = runner

    @abstractmethod
    def decode(self, asked: Asked) -> Array:
        """One item of the model's batch. Called on any thread. Raises RequestFailedError."""

    def run(self, items: list[Array]) -> Array:
        """The logits (len(items), classes). Raises RunnerError: the whole batch failed."""
        assert self._runner is not None
        return self._runner.infer(items[0][np.newaxis] if len(items) == 1 else np.stack(items))

    @abstractmethod
    def answered(self, asked: Asked, item: Array) -> None:
        """``asked`` is about to be answered by the result for ``item``."""

    def unload(self) -> None:
        """Free the model; twice does no harm."""
        if self._runner is not None:
            self._runner.deactivate()
            self._runner = None

    @abstractmethod
    def _activate(self) -> Runner: ...


class TailModel(EdgeModel):
    """One variant's tail."""

    def __init__(self, bundle: Bundle, variant: VariantSpec, options: RunnerOptions) -> None:
        super().__init__()
        self.variant, self.name = variant, variant.id
        self._bundle, self._options = bundle, options
        self._dictionary = plane_dictionary(bundle, variant)
        self._decoders = threading.local()  # a zstd decompressor is one thread's: two at once in it end the process

    @property
    def file_bytes(self) -> int:
        return self._bundle.manifest.files[self.variant.tails[ONNXRUNTIME]].bytes

    def decode(self, asked: Asked) -> Array:
        if isinstance(asked, TensorAsked):
            return asked.item
        assert isinstance(asked, PlanesAsked)
        request, kept = asked.request, asked.kept
        try:
            return self._decoder().decode(
                request.coder_id,
                request.payload,
                lambda distance: kept.get(request.request_id - distance) if kept is not None else None,
            )
        except NoReferenceError as exc:
            raise RequestFailedError(FailureCode.NO_REFERENCE, str(exc)) from None
        except CodecError as exc:
            raise RequestFailedError(FailureCode.BAD_PAYLOAD, str(exc)) from None

    def answered(self, asked: Asked, item: Array) -> None:
        if isinstance(asked, PlanesAsked) and asked.kept is not None:
            asked.kept.keep(asked.request.request_id, item)

    def _decoder(self) -> PlaneDecoder:
        """This thread's own."""
        decoder: PlaneDecoder | None = getattr(self._decoders, "decoder", None)
        if decoder is None:
            decoder = PlaneDecoder(self.variant.planes, self.variant.bits, dictionary=self._dictionary)
            self._decoders.decoder = decoder
        return decoder

    def _activate(self) -> Runner:
        _check_unchanged(self._bundle, self.variant.tails[ONNXRUNTIME])
        self._decoder()  # a damaged dictionary is told now
        tail = activate_tail(self._bundle, self.variant, self._options)
        planes, classes = tuple(self.variant.planes), (len(self._bundle.manifest.labels),)
        if tail.runner.input_shape != planes or tail.runner.output_shape != classes:
            raise ServeError(
                f"{self._bundle.path}: the tail of {self.variant.id} takes {tail.runner.input_shape} and gives "
                f"{tail.runner.output_shape}, the manifest says {planes} and {classes}; export the bundle again"
            )
        self.target = tail.target
        return tail.runner


class FullModel(EdgeModel):
    """The unsplit model, for whole images."""

    name = "full"

    def __init__(self, bundle: Bundle, options: RunnerOptions) -> None:
        super().__init__()
        self._bundle, self._options = bundle, options

    @property
    def file_bytes(self) -> int:
        return self._bundle.manifest.files[self._bundle.manifest.full].bytes

    def decode(self, asked: Asked) -> Array:
        if isinstance(asked, TensorAsked):
            return asked.item
        assert isinstance(asked, bytes)
        try:
            return read_frame(asked, self._bundle.manifest.input, name="the body")
        except ImageError as exc:
            raise RequestFailedError(BAD_IMAGE, str(exc)) from None
        except AecnnError as exc:
            raise RequestFailedError(FailureCode.INTERNAL, str(exc)) from None

    def answered(self, asked: Asked, item: Array) -> None:
        """Nothing is kept of an image."""

    def _activate(self) -> Runner:
        _check_unchanged(self._bundle, self._bundle.manifest.full)
        full = activate_full(self._bundle, self._options)
        self.target = full.target
        return full.runner


def batch_sizes(most: int) -> list[int]:
    """1, 2, 4, … and ``most``."""
    return [*(1 << power for power in range((most - 1).bit_length())), most]


def _check_unchanged(bundle: Bundle, name: str) -> None:
    """Raises BundleDamagedError: the file was replaced since the bundle was opened, which may be days ago."""
    check_file(bundle.path, bundle.root, bundle.manifest, name)


def top_classes(logits: Array, count: int) -> list[Top | RunnerError]:
    """Of each row of ``logits`` (batch, classes) the ``count`` best classes with their softmax scores, best first.

    The first is numpy's argmax. A RunnerError stands for a row with a NaN, or whose best logit is infinite.
    """
    best = logits.max(axis=1, keepdims=True)  # NaN if any is
    finite = np.isfinite(best[:, 0]).tolist()
    with np.errstate(invalid="ignore", over="ignore"):
        weights = np.exp(logits - best)
    totals = weights.sum(axis=1, dtype=np.float64).tolist()
    order = (-logits).argsort(axis=1, kind="stable")[:, :count]
    scores = np.take_along_axis(weights, order, axis=1).tolist()
    return [
        [(index, score / total) for index, score in zip(indices, row, strict=True)]
        if good and not math.isnan(total)
        else RunnerError("the model gave logits that are not finite; verify the bundle's export")
        for indices, row, total, good in zip(order.tolist(), scores, totals, finite, strict=True)
    ]
