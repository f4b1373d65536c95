"""A training run -> a whole bundle, every file of it verified."""

import importlib.metadata
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
import torch

from aecnn_deploy import __version__
from aecnn_deploy.bundle.manifest import (
    ENGINE_SOURCES,
    FP32,
    INT8,
    ONNX_FP16,
    ONNX_INT8,
    ONNXRUNTIME,
    CodingSpec,
    EngineSpec,
    Manifest,
    VariantSpec,
)
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.calibration.plane_coding import PlaneCoding, calibrate_coding, write_coding
from aecnn_deploy.errors import ExportError, RunFormatError, SettingsError
from aecnn_deploy.exporters.engines import EngineRequest, Target, build_engine, check_precisions, targets
from aecnn_deploy.exporters.int8_calibration import HeadCalibration, calibrated_head, read_calibration
from aecnn_deploy.exporters.int8_tail import int8_tail
from aecnn_deploy.exporters.onnx_export import export_onnx
from aecnn_deploy.exporters.onnx_options import DEFAULTS, OnnxOptions
from aecnn_deploy.exporters.progress import Progress, Silent
from aecnn_deploy.exporters.verify import reference
from aecnn_deploy.runtimes.base import Array
from aecnn_deploy.runtimes.head_choice import PRECISIONS
from aecnn_deploy.runtimes.onnxruntime_runner import VARIANT_KEY, OnnxRuntimeRunner
from aecnn_deploy.runtimes.samples import BundleSamples, VariantSamples, write_samples
from aecnn_deploy.runtimes.tensorrt_probe import load_product
from aecnn_deploy.runtimes.tensorrt_runner import TensorRTRtxRunner, TensorRTRunner
from aecnn_deploy.runtimes.verification import SAMPLES, Verified, verify_int8_planes, verify_logits, verify_planes

if TYPE_CHECKING:
    from aecnn_deploy.models.run import Run, TrainedVariant

_Module = TypeVar("_Module", bound=torch.nn.Module)

FULL = "full.onnx"
NO_LICENCE = "not stated"
_RUNNERS = {"tensorrt": TensorRTRunner, "tensorrt-rtx": TensorRTRtxRunner}


@dataclass(slots=True)
class _Exported:
    """What one variant has so far."""

    variant: "TrainedVariant"
    planes: Array  # torch's, of the verification photographs
    logits: Array  # torch's, from these planes
    tails: dict[str, str]
    coding: PlaneCoding
    heads: dict[str, str]  # precision -> file
    head: str  # the default
    int8: Array | None = None  # the int8 head's planes
    engines: dict[str, EngineSpec] = field(default_factory=dict)


def export_run(
    run: "Run",
    out: Path,
    *,
    engine: EngineRequest | None = None,
    tails: Collection[str] = (),
    variants: Collection[str] | None = None,
    head_precisions: Collection[str] = (FP32,),
    replace: bool = False,
    compact: bool = False,
    calibration_frames: Array | None = None,
    samples: bool = True,
    licence: str = NO_LICENCE,
    onnx: OnnxOptions = DEFAULTS,
    on_verified: Callable[[str, Verified], None] = lambda name, verified: None,
    progress: Progress | None = None,
) -> Manifest:
    """Export ``variants`` (None: all) of ``run`` to the bundle ``out``, a folder or a .tar.zst.

    Each ONNX file is compared with torch in ONNX Runtime on the run's photographs before the bundle gets its name;
    engines for the GPU of this machine are run too, engines for others cannot be. Whatever fails leaves no bundle.
    ``tails``: precisions whose tails the bundle gets beside those that ``engine`` needs: an edge builds from them.
    ``compact`` rounds the weights to bfloat16's precision (they stay float32): an archive of the bundle takes
    less than half of the bytes. What is exported is then compared with torch on the rounded weights.
    ``calibration_frames``: photographs, uint8 (N, H, W, 3), whose planes choose how planes are predicted, train a
    zstd dictionary and give an int8 tail its ranges; None: those that the run keeps, too few for a dictionary.
    ``samples``: keep the photographs that files were compared on, and what they should give, in the bundle, for
    ``bundle verify --deep``. ``head_precisions``: "fp32", "int8" or both; int8 needs ``calibrate ranges`` before, and
    with both the one that was faster there is the default. ``licence`` of the weights stands in each file's metadata,
    ``onnx`` says how ONNX files are written. ``on_verified`` hears of each file that was compared. But for engines, the
    same run gives the same bundle id.
    Raises SettingsError, MissingExtraError, ExportError, VerificationError, BundleError.
    """
    progress = progress or Silent()
    if engine and onnx.batch is not None:
        raise SettingsError(
            f"an engine's batch profile needs the open batch axis, got a fixed batch of {onnx.batch}; "
            "leave out --onnx-batch, or the engine"
        )
    chosen = _choose(run, variants)
    if len(run.frames) < SAMPLES:
        raise ExportError(f"{run.path} keeps {len(run.frames)} photographs, verification needs {SAMPLES}; train again")
    check_precisions(tails)
    built_for = targets(engine) if engine else ()
    calibration = _calibration(run, chosen, head_precisions)
    others = {*tails, *(engine.precisions if engine else ())} - {"fp32"}
    writer = BundleWriter(out, replace=replace)
    with writer:
        frames = run.frames if calibration_frames is None else calibration_frames
        job = _Job(run, writer, progress, compact, frames, on_verified, licence, head_precisions, calibration, onnx)
        progress.stage("heads and tails", len(chosen) * (len(job.precisions) + 1 + len(others)))
        exported = [job.variant(variant, others) for variant in chosen]
        progress.stage("full model", 1)
        full = job.full()
        if engine:
            progress.stage("engines", len(exported) * len(built_for))
            for item in exported:
                for target in built_for:
                    job.engine(item, target, engine)
        kept = None
        if samples:
            references = {item.variant.id: VariantSamples(item.planes, item.logits, item.int8) for item in exported}
            kept = write_samples(writer, BundleSamples(run.frames[:SAMPLES], full, references))
        return writer.commit(
            backbone=run.backbone_name,
            samples=kept,
            labels=run.labels,
            input_spec=run.input,
            full=FULL,
            variants=tuple(_spec(item, write_coding(writer, item.variant.id, item.coding)) for item in exported),
            measurements={
                **run.measurements,
                "verification": {name: _lasting(item) for name, item in job.verified.items()},
                "coding": {item.variant.id: item.coding.measurements() for item in exported},
                **_int8_measurements(calibration),
                "onnx": onnx.record() | {"simplified": job.simplified},
            },
            tools=_tools(engine, onnx),
        )


def _choose(run: "Run", names: Collection[str] | None) -> "tuple[TrainedVariant, ...]":
    known = {variant.id: variant for variant in run.variants}
    for name in names or ():
        if name not in known:
            raise SettingsError(f"{run.path} has no variant {name!r}; it has {', '.join(known)}")
    return tuple(variant for variant in run.variants if names is None or variant.id in names)


def _calibration(
    run: "Run", chosen: "tuple[TrainedVariant, ...]", precisions: Collection[str]
) -> dict[str, HeadCalibration]:
    """Of the chosen variants, where int8 heads are asked for. Raises SettingsError, RunFormatError."""
    for precision in precisions:
        if precision not in PRECISIONS:
            raise SettingsError(f"no head precision {precision!r}; choose one or more of {', '.join(PRECISIONS)}")
    if not precisions:
        raise SettingsError(f"no head precision; choose one or more of {', '.join(PRECISIONS)}")
    if INT8 not in precisions:
        return {}
    if "input_size" in run.measurements:
        raise SettingsError(
            "int8 heads were calibrated with frames of the run's own size; leave out --input-size, "
            "or export with --head-precision fp32"
        )
    known = read_calibration(run.path).variants
    for variant in chosen:
        if variant.id not in known:
            raise RunFormatError(
                f"{variant.id} is not calibrated for an int8 head; "
                f"run: aecnn-deploy calibrate ranges {run.path} --data PHOTOGRAPHS"
            )
    return {variant.id: known[variant.id] for variant in chosen}


def _int8_measurements(calibration: dict[str, HeadCalibration]) -> dict[str, Any]:
    """What `calibrate ranges` measured, for the manifest."""
    keys = ("method", "images", "mean_difference", "agreement", "fp32_ms", "int8_ms")
    measured = {name: {key: getattr(item, key) for key in keys} for name, item in calibration.items()}
    return {"int8": measured} if measured else {}


class _Job:
    """One export: where its files go and what was measured of them."""

    def __init__(
        self,
        run: "Run",
        writer: BundleWriter,
        progress: Progress,
        compact: bool,
        calibration_frames: Array,
        on_verified: Callable[[str, Verified], None],
        licence: str,
        precisions: Collection[str],
        calibration: dict[str, HeadCalibration],
        onnx: OnnxOptions,
    ) -> None:
        self._onnx = onnx
        self.simplified: dict[str, dict[str, int]] = {}  # file -> its nodes before and after
        self._on_verified, self._licence = on_verified, licence
        self.precisions = tuple(precision for precision in PRECISIONS if precision in precisions)
        self._calibration = calibration
        self._compact, self._calibration_frames = compact, calibration_frames
        self._run, self._writer, self._progress = run, writer, progress
        self._frames: Array = run.frames[:SAMPLES]
        self._frame_shape = (run.input.height, run.input.width, 3)
        self._logit_shape = (len(run.labels),)
        self.verified: dict[str, Verified] = {}

    def variant(self, variant: "TrainedVariant", precisions: Collection[str]) -> _Exported:
        """Heads and tail, and the tail in each of ``precisions`` ("fp16", "int8")."""
        properties = self._properties({VARIANT_KEY: variant.id})
        heads = {precision: _head_file(variant, precision) for precision in self.precisions}
        head = self._rounded(variant.head())
        planes = reference(head if self._compact else variant.head(fold=False), self._frames)
        small: Array | None = None
        if FP32 in heads:
            path = self._begin(heads[FP32])
            self._write(head, "head", heads[FP32], path, (self._frame_shape, variant.planes), properties)
            self._verified(heads[FP32], verify_planes(path, heads[FP32], self._frames, planes))
            self._progress.step()
        default = heads[self.precisions[0]]
        if INT8 in heads:
            small = self._int8_head(variant, heads[INT8], planes, properties)
            if FP32 in heads:
                default = heads[self._calibration[variant.id].faster]
        with OnnxRuntimeRunner(self._writer.path(default)) as runner:
            sent = np.concatenate([runner.infer(frame[None]) for frame in self._calibration_frames])
        coding = calibrate_coding(sent, variant.bits)
        logits: Array | None = None
        tails: dict[str, str] = {}
        floats = [(ONNXRUNTIME, "fp32", ".onnx"), (ONNX_FP16, "fp16", ".fp16.onnx")]
        for target, precision, suffix in floats if "fp16" in precisions else floats[:1]:
            tail = self._rounded(variant.tail(half=precision == "fp16"))
            name = tails[target] = f"tails/{variant.id}{suffix}"
            path = self._begin(name)
            self._write(tail, "tail", name, path, (variant.planes, self._logit_shape), properties)
            if logits is None:  # fp16 is held against fp32 too: that is what it stands in for
                logits = reference(tail if self._compact else variant.tail(fold=False), planes)
            self._verified(name, verify_logits(OnnxRuntimeRunner(path), name, planes, logits, precision))
            self._progress.step()
        assert logits is not None
        if "int8" in precisions:
            name = tails[ONNX_INT8] = f"tails/{variant.id}.int8.onnx"
            path = self._begin(name)
            int8_tail(self._writer.path(tails[ONNXRUNTIME]), sent, path)
            self._verified(name, verify_logits(OnnxRuntimeRunner(path), name, planes, logits, "int8"))
            self._progress.step()
        return _Exported(variant, planes, logits, tails, coding, heads, default, small)

    def _int8_head(self, variant: "TrainedVariant", name: str, planes: Array, properties: dict[str, str]) -> Array:
        """The head for integer kernels; its planes of the verification photographs."""
        path = self._begin(name)
        calibrated_head(variant, self._calibration[variant.id], path, properties, self._onnx)
        verified, small = verify_int8_planes(path, name, self._frames, planes, variant.bits)
        tail = variant.tail()
        winners = (reference(tail, item).argmax(axis=1) for item in (planes, small))
        agreement = float(np.equal(*winners).mean())
        self._verified(name, msgspec.structs.replace(verified, top1_agreement=agreement))
        self._progress.step()
        return small

    def full(self) -> Array:
        """The unsplit model; torch's logits for the verification photographs."""
        model = self._rounded(self._run.full())
        path = self._begin(FULL)
        properties = self._properties({"aecnn.backbone": self._run.backbone_name})
        self._write(model, "full", FULL, path, (self._frame_shape, self._logit_shape), properties)
        expected = reference(model if self._compact else self._run.full(fold=False), self._frames)
        self._verified(FULL, verify_logits(OnnxRuntimeRunner(path), FULL, self._frames, expected, "fp32"))
        self._progress.step()
        return expected

    def engine(self, item: _Exported, target: Target, request: EngineRequest) -> None:
        """One engine of one variant; run only where it can be."""
        name = f"tails/{item.variant.id}.{target.name}.engine"
        path = self._begin(name)
        source = self._writer.path(item.tails[ENGINE_SOURCES[target.precision]])
        spec = build_engine(
            source,
            path,
            target,
            name=name,
            precision=target.precision,
            batch=request.batch,
            workspace_mib=request.workspace_mib,
            timing_cache=request.timing_cache,
            note=lambda phase: self._progress.note(f"{name}: {phase}"),
        )
        item.tails[target.name], item.engines[target.name] = name, spec
        if target.here:
            runner = _RUNNERS[target.product](path, spec)
            self._verified(name, verify_logits(runner, name, item.planes, item.logits, target.precision))
        self._progress.step()

    def _write(
        self,
        module: torch.nn.Module,
        part: str,
        name: str,
        path: Path,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        properties: dict[str, str],
    ) -> None:
        written = export_onnx(
            module,
            part,
            path,
            input_shape=shapes[0],
            output_shape=shapes[1],
            properties=properties,
            options=self._onnx,
        )
        if self._onnx.simplify:
            self.simplified[name] = {"nodes_before": written.nodes_translated, "nodes": written.nodes}

    def _rounded(self, module: _Module) -> _Module:
        """``module`` itself, its weights rounded where a compact bundle is asked for."""
        if self._compact:
            with torch.no_grad():
                for weight in module.parameters():
                    if weight.ndim > 1:
                        weight.copy_(weight.bfloat16().to(weight.dtype))
        return module

    def _properties(self, own: dict[str, str]) -> dict[str, str]:
        """What stands in a file's metadata."""
        labels = json.dumps(self._run.labels, ensure_ascii=False)
        return own | {"aecnn.labels": labels, "aecnn.version": __version__, "aecnn.licence": self._licence}

    def _verified(self, name: str, verified: Verified) -> None:
        self.verified[name] = verified
        self._on_verified(name, verified)

    def _begin(self, name: str) -> Path:
        self._progress.note(name)
        return self._writer.path(name)


def _lasting(verified: Verified) -> dict[str, Any]:
    """What may stand in a manifest: not how long it took, which would make every export another bundle."""
    item: dict[str, Any] = msgspec.to_builtins(verified)
    del item["seconds"]
    return item


def _head_file(variant: "TrainedVariant", precision: str) -> str:
    return f"heads/{variant.id}.onnx" if precision == FP32 else f"heads/{variant.id}.{precision}.onnx"


def _spec(item: _Exported, coding: CodingSpec) -> VariantSpec:
    variant = item.variant
    return VariantSpec(
        id=variant.id,
        split=variant.split,
        split_name=variant.split_name,
        ratio=variant.ratio,
        bits=variant.bits,
        planes=variant.planes,
        head=item.head,
        heads=item.heads,
        head_macs=variant.head_macs,
        full_macs=variant.full_macs,
        tails=item.tails,
        engines=item.engines,
        accuracy=variant.accuracy,
        agreement=variant.agreement,
        coding=coding,
    )


def _tools(engine: EngineRequest | None, onnx: OnnxOptions) -> dict[str, str]:
    names = ["onnx", "onnxruntime", "onnxscript", "torch"] + (["onnxslim"] if onnx.simplify else [])
    tools = {"aecnn-deploy": __version__} | {name: importlib.metadata.version(name) for name in names}
    if engine:
        tools[engine.product] = load_product(engine.product).__version__
    return tools
