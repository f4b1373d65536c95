"""What int8 heads of a run are made with: ranges on photographs, kept in the run so that exports repeat.

int8.json in the run's folder, beside run.json; ``aecnn-deploy calibrate ranges`` writes it.
"""

import hashlib
import importlib.metadata
import tempfile
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from aecnn_deploy.calibration.ranges import METHODS, Activations, gather_activations
from aecnn_deploy.errors import ExportError, RunFormatError, SettingsError
from aecnn_deploy.exporters.int8_head import HeadEnds, int8_head
from aecnn_deploy.exporters.onnx_export import export_onnx
from aecnn_deploy.exporters.onnx_options import DEFAULTS, OnnxOptions
from aecnn_deploy.exporters.progress import Progress, Silent
from aecnn_deploy.exporters.verify import reference
from aecnn_deploy.models.results import write_json
from aecnn_deploy.models.stepped import SteppedHead, frames_to_pixels
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.base import Array
from aecnn_deploy.runtimes.head_choice import head_times
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

if TYPE_CHECKING:
    from aecnn_deploy.models.run import Run, TrainedVariant

CALIBRATION_FILE = "int8.json"
FORMAT = 1
AUTO = "auto"
_BATCH = 4
_HELD_OUT = 5  # of so many photographs one measures, the rest give the ranges
_ENOUGH_TO_HOLD_OUT = 10


class HeadCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """One variant's. ``mean_difference``: method -> mean difference of int8 and fp32 planes, in steps."""

    graph: str  # fingerprint of what was calibrated
    method: str
    images: int
    ranges: dict[str, tuple[float, float]]
    means: dict[str, tuple[float, ...]]
    mean_difference: dict[str, float]
    agreement: float  # share of photographs that the tail names alike from int8 and from fp32 planes
    fp32_ms: float  # median of one frame, one thread, where it was calibrated
    int8_ms: float

    @property
    def activations(self) -> Activations:
        return Activations(self.ranges, self.means)

    @property
    def faster(self) -> str:
        """What a bundle takes by default: int8 only where it was faster."""
        return "int8" if self.int8_ms < self.fp32_ms else "fp32"


class RunCalibration(msgspec.Struct, frozen=True):
    """int8.json."""

    format: int
    variants: dict[str, HeadCalibration]
    tools: dict[str, str] = {}


class SteppedFile:
    """A variant's SteppedHead as an ONNX file in ``folder``, and what belongs around it. Raises ModelError."""

    def __init__(self, variant: "TrainedVariant", folder: Path, properties: dict[str, str] | None = None) -> None:
        self.module = SteppedHead(variant.model, variant.input, whole=True)
        spec = variant.input
        frame = (spec.height, spec.width, 3)
        pixels = frames_to_pixels(torch.zeros((1, *frame), dtype=torch.uint8), self.module)
        self.path = folder / f"{variant.id}.steps.onnx"
        export_onnx(
            self.module,
            "steps",
            self.path,
            input_shape=tuple(pixels.shape[1:]),
            output_shape=variant.planes,
            properties=properties or {},
        )
        border = None if self.module.border is None else self.module.border.numpy()
        lower, upper = (bound.numpy().astype(np.uint8) for bound in (self.module.lower, self.module.upper))
        self.ends = HeadEnds(frame, variant.planes, int(self.module.mean[0]), border, lower, upper)

    def batches(self, frames: Array) -> Iterator[Array]:
        """``frames`` as the file takes them."""
        for start in range(0, len(frames), _BATCH):
            piece = torch.from_numpy(np.ascontiguousarray(frames[start : start + _BATCH]))
            pixels: Array = frames_to_pixels(piece, self.module).numpy()
            yield np.ascontiguousarray(pixels)

    def fingerprint(self) -> str:
        """The same for the same graph and weights, whatever wrote the file."""
        onnx = require("onnx", why="int8 heads")
        graph = onnx.load(str(self.path)).graph
        digest = hashlib.sha256(repr(self.ends.frame).encode())
        for node in graph.node:
            digest.update(repr((node.op_type, list(node.input), list(node.output))).encode())
        for item in sorted(graph.initializer, key=lambda item: str(item.name)):
            digest.update(item.name.encode())
            digest.update(onnx.numpy_helper.to_array(item).tobytes())
        return digest.hexdigest()


def calibrate_heads(
    run: "Run",
    frames: Array,
    *,
    method: str = AUTO,
    variants: Collection[str] | None = None,
    progress: Progress | None = None,
) -> RunCalibration:
    """Calibrate the heads of ``run`` (``variants``; None: all) on ``frames``, and write it into the run.

    ``frames``: uint8 (N, H, W, 3), training photographs, a hundred or so. ``method``: a key of METHODS, or "auto": the
    one whose int8 planes are nearest to the fp32 ones, on every fifth photograph, which then gives no ranges. Both
    heads are timed on this machine. What was calibrated for other variants stays. Raises SettingsError: no frames, of
    another shape, or an unknown method or variant. ModelError: a design that has no int8 head. ExportError.
    """
    progress = progress or Silent()
    if method != AUTO and method not in METHODS:
        raise SettingsError(f"no calibration method {method!r}; choose one of {AUTO}, {', '.join(METHODS)}")
    check_frames(frames, (run.input.height, run.input.width, 3))
    known = {variant.id: variant for variant in run.variants}
    for name in variants or ():
        if name not in known:
            raise SettingsError(f"{run.path} has no variant {name!r}; it has {', '.join(known)}")
    methods = tuple(METHODS) if method == AUTO else (method,)
    chosen = [variant for variant in run.variants if variants is None or variant.id in variants]
    progress.stage("calibrating heads", len(chosen) * (len(methods) + 1))
    found = {variant.id: _calibrate(variant, frames, methods, progress) for variant in chosen}
    try:
        before = read_calibration(run.path).variants
    except RunFormatError:
        before = {}
    tools = {name: importlib.metadata.version(name) for name in ("onnxruntime", "torch")}
    record = RunCalibration(FORMAT, {name: (before | found)[name] for name in known if name in before | found}, tools)
    write_json(run.path / CALIBRATION_FILE, record)
    return record


def check_frames(frames: Array, frame: tuple[int, ...]) -> None:
    """Raises SettingsError: not uint8 (N, *frame) with N at least 1."""
    if frames.dtype != np.uint8 or frames.shape[1:] != frame or not len(frames):
        raise SettingsError(
            f"calibration needs uint8 frames (N, {', '.join(map(str, frame))}) with N at least 1, "
            f"got {frames.dtype} {frames.shape}; take training photographs at the network's input size"
        )


def read_calibration(run: Path) -> RunCalibration:
    """The calibration in the run's folder. Raises RunFormatError: there is none, or it cannot be read."""
    source = run / CALIBRATION_FILE
    remedy = f"run: aecnn-deploy calibrate ranges {run} --data PHOTOGRAPHS"
    if not source.is_file():
        raise RunFormatError(f"{run} is not calibrated for int8 heads; {remedy}")
    try:
        record = msgspec.json.decode(source.read_bytes(), type=RunCalibration)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise RunFormatError(f"{source} is not valid: {exc}; {remedy}") from None
    if record.format != FORMAT:
        raise RunFormatError(f"{source} has format {record.format}, this version reads {FORMAT}; {remedy}")
    return record


def calibrated_head(
    variant: "TrainedVariant",
    record: HeadCalibration,
    out: Path,
    properties: dict[str, str],
    options: OnnxOptions = DEFAULTS,
) -> None:
    """Write the variant's int8 head to ``out``. Raises ExportError: ``record`` is of other weights. ModelError."""
    with tempfile.TemporaryDirectory(prefix="aecnn-int8-") as folder:
        stepped = SteppedFile(variant, Path(folder), properties)
        if stepped.fingerprint() != record.graph:
            raise ExportError(
                f"{variant.id} was calibrated with other weights, another input size, or by another torch release; "
                "run: aecnn-deploy calibrate ranges"
            )
        int8_head(stepped.path, out, stepped.ends, record.activations, options=options)


def _calibrate(
    variant: "TrainedVariant", frames: Array, methods: tuple[str, ...], progress: Progress
) -> HeadCalibration:
    measuring, giving = frames, frames
    if len(frames) >= _ENOUGH_TO_HOLD_OUT:
        measuring, giving = frames[::_HELD_OUT], np.delete(frames, np.s_[::_HELD_OUT], axis=0)
    with tempfile.TemporaryDirectory(prefix="aecnn-int8-") as name:
        folder = Path(name)
        progress.note(f"{variant.id}: fp32")
        stepped, plain = SteppedFile(variant, folder), folder / "fp32.onnx"
        shape = stepped.ends.frame
        export_onnx(variant.head(), "head", plain, input_shape=shape, output_shape=variant.planes, properties={})
        expected = _planes(plain, measuring)
        progress.step()
        differences: dict[str, float] = {}
        gathered: dict[str, Activations] = {}
        for method in methods:
            progress.note(f"{variant.id}: {method}")
            gathered[method] = gather_activations(stepped.path, partial(stepped.batches, giving), method)
            int8_head(stepped.path, folder / f"{method}.onnx", stepped.ends, gathered[method])
            got = _planes(folder / f"{method}.onnx", measuring)
            differences[method] = round(float(np.abs(got.astype(np.int16) - expected).mean()), 4)
            progress.step()
        best = min(differences, key=differences.__getitem__)
        times = head_times({"fp32": plain, "int8": folder / f"{best}.onnx"}, threads=1)
        return HeadCalibration(
            graph=stepped.fingerprint(),
            method=best,
            images=len(frames),
            ranges=gathered[best].ranges,
            means=gathered[best].means,
            mean_difference=differences,
            agreement=_agreement(variant, plain, folder / f"{best}.onnx", frames),
            fp32_ms=times["fp32"],
            int8_ms=times["int8"],
        )


def _planes(head: Path, frames: Array) -> Array:
    with OnnxRuntimeRunner(head) as runner:
        return np.concatenate([runner.infer(frame[np.newaxis]) for frame in frames])


def _agreement(variant: "TrainedVariant", plain: Path, small: Path, frames: Array) -> float:
    tail: Any = variant.tail()
    same = 0
    for start in range(0, len(frames), _BATCH):
        piece = frames[start : start + _BATCH]
        one, other = (reference(tail, _planes(head, piece)).argmax(axis=1) for head in (plain, small))
        same += int((one == other).sum())
    return round(same / len(frames), 4)
