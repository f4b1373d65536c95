"""An exported file against torch, on real photographs."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from aecnn_deploy.errors import ExportError, VerificationError
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.base import Array, Runner
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

if TYPE_CHECKING:
    from torch import nn

FRAMES = 5
BATCHES = (1, FRAMES)
# A value that lies on the edge between two quantisation steps may fall either way in another library.
MAX_STEP = 1
MAX_STEP_SHARE = 1e-3
# Largest difference of two logits, as a share of the largest logit.
LOGIT_TOLERANCE: Mapping[str, float] = MappingProxyType({"fp32": 1e-3, "fp16": 5e-2})


class Verified(msgspec.Struct, frozen=True):
    """What was measured of one file; stands in the manifest's measurements."""

    runner: str
    frames: int
    batches: tuple[int, ...]
    precision: str
    largest_difference: float  # planes: in quantisation steps; logits: as a share of the largest logit
    tolerance: float
    differing_share: float | None = None  # planes: share of the values that differ
    top1_agreement: float | None = None  # logits


def reference(module: "nn.Module", batch: Array) -> Array:
    """What torch computes for ``batch`` (uint8, first axis N)."""
    torch = require("torch", why="exporting")
    with torch.inference_mode():
        result: Array = module(torch.from_numpy(np.ascontiguousarray(batch))).numpy()
    return result


def verify_planes(path: Path, name: str, frames: Array, expected: Array) -> Verified:
    """Compare the head ``path`` in ONNX Runtime with torch's planes (uint8, (FRAMES, C', h, w)).

    Raises VerificationError: a value differs by more than one step, or too many differ by one.
    """
    largest, share = 0, 0.0
    with OnnxRuntimeRunner(path) as runner:
        _check_shape(runner, name, expected)
        for batch in BATCHES:
            difference = np.abs(_infer(runner, frames, batch).astype(np.int16) - expected)
            step, part = int(difference.max()), float((difference > 0).mean())
            if step > MAX_STEP:
                raise VerificationError(name, "largest difference in quantisation steps is", step, MAX_STEP, batch)
            if part > MAX_STEP_SHARE:
                raise VerificationError(name, "share of values that differ by one step is", part, MAX_STEP_SHARE, batch)
            largest, share = max(largest, step), max(share, part)
    return Verified(
        runner=runner.name,
        frames=len(expected),
        batches=BATCHES,
        precision="fp32",
        largest_difference=largest,
        tolerance=MAX_STEP,
        differing_share=share,
    )


def verify_logits(runner: Runner, name: str, inputs: Array, expected: Array, precision: str) -> Verified:
    """Compare what ``runner`` (not active yet) runs with torch's fp32 logits (float32, (FRAMES, classes)).

    Raises VerificationError: a logit differs by more than the tolerance of ``precision``, or the winner of a
    photograph whose lead in torch is larger than that differs.
    """
    tolerance = LOGIT_TOLERANCE[precision]
    scale = float(np.abs(expected).max())
    winners = expected.argmax(axis=1)
    ranked = np.sort(expected, axis=1)
    decided = (ranked[:, -1] - ranked[:, -2]) > tolerance * scale
    worst, agreement = 0.0, 1.0
    with runner:
        _check_shape(runner, name, expected)
        for batch in BATCHES:
            got = _infer(runner, inputs, batch)
            difference = float(np.abs(got - expected).max() / scale)
            if not difference <= tolerance:  # so that NaN fails too
                raise VerificationError(name, "largest difference of logits is", difference, tolerance, batch)
            same = got.argmax(axis=1) == winners
            if not same[decided].all():
                wrong = float(1 - same[decided].mean())
                raise VerificationError(name, "share of clear winners that differ is", wrong, 0.0, batch)
            worst, agreement = max(worst, difference), min(agreement, float(same.mean()))
    return Verified(
        runner=runner.name,
        frames=len(expected),
        batches=BATCHES,
        precision=precision,
        largest_difference=worst,
        tolerance=tolerance,
        top1_agreement=agreement,
    )


def _infer(runner: Runner, inputs: Array, batch: int) -> Array:
    pieces = [runner.infer(inputs[start : start + batch]) for start in range(0, len(inputs), batch)]
    return np.concatenate(pieces)


def _check_shape(runner: Runner, name: str, expected: Array) -> None:
    got: tuple[Any, Any] = (runner.output_shape, runner.output_dtype)
    if got != (expected.shape[1:], expected.dtype):
        raise ExportError(f"{name} gives {got[1]} {got[0]}, torch gives {expected.dtype} {expected.shape[1:]}")
