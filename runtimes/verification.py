"""A model file against what it should give: for its export, and again wherever the bundle goes."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from aecnn_deploy.bundle.manifest import INT8
from aecnn_deploy.errors import ExportError, VerificationError
from aecnn_deploy.runtimes.base import Array, Runner
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

REFERENCE = "torch fp32"
INT8_REFERENCE = "int8 head"  # itself, where it was exported: integers are the same everywhere
SAMPLES = 5  # photographs; also the larger of the two batches
BATCHES = (1, SAMPLES)
# A value that lies on the edge between two quantisation steps may fall either way in another library.
MAX_STEP = 1
MAX_STEP_SHARE = 1e-3
# Mean difference of an int8 head's planes from the fp32 ones, as a share of the planes' levels. What it costs in
# accuracy is measured by `calibrate ranges`; this refuses ranges that have nothing to do with the photographs.
INT8_MEAN_SHARE = 0.05
# Largest difference of two logits, as a share of the largest logit.
LOGIT_TOLERANCE: Mapping[str, float] = MappingProxyType({"fp32": 1e-3, "fp16": 5e-2, "int8": 2e-1})
# Where the exporter is not to blame.
_REMEDIES = {"int8": "calibrate with other photographs (--images), or choose --precision fp16"}


class Verified(msgspec.Struct, frozen=True):
    """What was measured of one file; stands in the manifest's measurements.

    Differences are quantisation steps for planes, shares of the largest logit for logits.
    """

    runner: str
    frames: int
    batches: tuple[int, ...]
    precision: str
    largest_difference: float
    tolerance: float
    mean_difference: float
    cosine: float  # of the whole output and the whole reference, the worse batch
    seconds: float  # loading the file included
    differing_share: float | None = None  # planes: share of the values that differ
    top1_agreement: float | None = None  # logits
    reference: str = REFERENCE


def verify_planes(path: Path, name: str, frames: Array, expected: Array) -> Verified:
    """Compare the head ``path`` in ONNX Runtime with the reference's planes (uint8, (SAMPLES, C', h, w)).

    Raises VerificationError: a value differs by more than one step, or too many differ by one.
    """
    began_s = time.perf_counter()
    largest, share, mean, cosine = 0, 0.0, 0.0, 1.0
    with OnnxRuntimeRunner(path) as runner:
        _check_shape(runner, name, expected)
        for batch in BATCHES:
            got = _infer(runner, frames, batch)
            difference = np.abs(got.astype(np.int16) - expected)
            step, part = int(difference.max()), float((difference > 0).mean())
            if step > MAX_STEP:
                raise VerificationError(name, "largest difference in quantisation steps is", step, MAX_STEP, batch)
            if part > MAX_STEP_SHARE:
                raise VerificationError(name, "share of values that differ by one step is", part, MAX_STEP_SHARE, batch)
            largest, share = max(largest, step), max(share, part)
            mean, cosine = max(mean, float(difference.mean())), min(cosine, _cosine(got, expected))
    return Verified(
        runner=runner.name,
        frames=len(expected),
        batches=BATCHES,
        precision="fp32",
        largest_difference=largest,
        tolerance=MAX_STEP,
        mean_difference=mean,
        cosine=cosine,
        seconds=round(time.perf_counter() - began_s, 3),
        differing_share=share,
    )


def verify_int8_planes(path: Path, name: str, frames: Array, expected: Array, bits: int) -> tuple[Verified, Array]:
    """Compare the int8 head ``path`` with the fp32 reference's planes; what was measured, and the head's planes.

    The tolerance is of the mean difference. Raises VerificationError: that is exceeded, or a batch of several gives
    other planes than one frame at a time.
    """
    began_s = time.perf_counter()
    tolerance = INT8_MEAN_SHARE * (2**bits - 1)
    with OnnxRuntimeRunner(path) as runner:
        _check_shape(runner, name, expected)
        planes, *others = (_infer(runner, frames, batch) for batch in BATCHES)
    difference = np.abs(planes.astype(np.int16) - expected)
    mean = float(difference.mean())
    if mean > tolerance:
        remedy = "calibrate ranges again, on photographs like those that the device will see, or export it in fp32"
        raise VerificationError(name, "mean difference in quantisation steps is", mean, tolerance, BATCHES[0], remedy)
    for batch, other in zip(BATCHES[1:], others, strict=True):
        if differing := float((other != planes).mean()):
            raise VerificationError(name, "share of values that another batch changes is", differing, 0.0, batch)
    verified = Verified(
        runner=runner.name,
        frames=len(expected),
        batches=BATCHES,
        precision=INT8,
        largest_difference=int(difference.max()),
        tolerance=tolerance,
        mean_difference=mean,
        cosine=_cosine(planes, expected),
        seconds=round(time.perf_counter() - began_s, 3),
        differing_share=float((difference > 0).mean()),
    )
    return verified, planes


def verify_exact_planes(path: Path, name: str, frames: Array, expected: Array) -> Verified:
    """Compare the int8 head ``path`` with the planes that it gave where it was exported.

    Raises VerificationError: one value differs.
    """
    began_s = time.perf_counter()
    with OnnxRuntimeRunner(path) as runner:
        _check_shape(runner, name, expected)
        for batch in BATCHES:
            if differing := float((_infer(runner, frames, batch) != expected).mean()):
                raise VerificationError(name, "share of values that differ is", differing, 0.0, batch)
    return Verified(
        runner=runner.name,
        frames=len(expected),
        batches=BATCHES,
        precision=INT8,
        largest_difference=0,
        tolerance=0,
        mean_difference=0.0,
        cosine=1.0,
        seconds=round(time.perf_counter() - began_s, 3),
        differing_share=0.0,
        reference=INT8_REFERENCE,
    )


def verify_logits(runner: Runner, name: str, inputs: Array, expected: Array, precision: str) -> Verified:
    """Compare what ``runner`` (not active yet) runs with the reference's logits (float32, (SAMPLES, classes)).

    Raises VerificationError: a logit differs by more than the tolerance of ``precision``, or the winner of a
    photograph whose lead in the reference is larger than that differs.
    """
    began_s = time.perf_counter()
    tolerance, remedy = LOGIT_TOLERANCE[precision], _REMEDIES.get(precision)
    scale = float(np.abs(expected).max())
    winners = expected.argmax(axis=1)
    ranked = np.sort(expected, axis=1)
    decided = (ranked[:, -1] - ranked[:, -2]) > tolerance * scale
    worst, agreement, mean, cosine = 0.0, 1.0, 0.0, 1.0
    with runner:
        _check_shape(runner, name, expected)
        for batch in BATCHES:
            got = _infer(runner, inputs, batch)
            difference = np.abs(got - expected) / scale
            largest = float(difference.max())
            if not largest <= tolerance:  # so that NaN fails too
                raise VerificationError(name, "largest difference of logits is", largest, tolerance, batch, remedy)
            same = got.argmax(axis=1) == winners
            if not same[decided].all():
                wrong = float(1 - same[decided].mean())
                raise VerificationError(name, "share of clear winners that differ is", wrong, 0.0, batch, remedy)
            worst, agreement = max(worst, largest), min(agreement, float(same.mean()))
            mean, cosine = max(mean, float(difference.mean())), min(cosine, _cosine(got, expected))
    return Verified(
        runner=runner.name,
        frames=len(expected),
        batches=BATCHES,
        precision=precision,
        largest_difference=worst,
        tolerance=tolerance,
        mean_difference=mean,
        cosine=cosine,
        seconds=round(time.perf_counter() - began_s, 3),
        top1_agreement=agreement,
    )


def _infer(runner: Runner, inputs: Array, batch: int) -> Array:
    pieces = [runner.infer(inputs[start : start + batch]) for start in range(0, len(inputs), batch)]
    return np.concatenate(pieces)


def _cosine(a: Array, b: Array) -> float:
    """1 where both are nothing but zeros."""
    left, right = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    size = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / size if size else float(np.array_equal(left, right))


def _check_shape(runner: Runner, name: str, expected: Array) -> None:
    got: tuple[Any, Any] = (runner.output_shape, runner.output_dtype)
    if got != (expected.shape[1:], expected.dtype):
        raise ExportError(f"{name} gives {got[1]} {got[0]}, torch gives {expected.dtype} {expected.shape[1:]}")
