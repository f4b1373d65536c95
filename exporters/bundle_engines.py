"""Engines for a finished bundle: built from its fp16 tails, or from fp32 ones that are made half for it. No torch."""

import warnings
from pathlib import Path

import msgspec

from aecnn_deploy.bundle.manifest import ONNX_FP16, ONNXRUNTIME, Manifest, VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.errors import ExportError
from aecnn_deploy.exporters.engines import EngineRequest, Target, build_engine, targets
from aecnn_deploy.exporters.progress import Progress, Silent
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.edge_runners import engine_of
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.samples import VariantSamples, read_samples
from aecnn_deploy.runtimes.tensorrt_probe import load_product
from aecnn_deploy.runtimes.verification import verify_logits


def add_engines(
    bundle: Bundle, out: Path, request: EngineRequest, *, replace: bool = False, progress: Progress | None = None
) -> Manifest:
    """Write ``bundle`` to ``out`` with one more engine a variant for each architecture of ``request``.

    An engine that stands there for the same target is built anew. A fp16 tail that is made here, and an engine for the
    GPU of this machine, are held against the bundle's samples where it keeps any. Raises SettingsError,
    MissingExtraError, ExportError, VerificationError, BundleError; what fails leaves no bundle.
    """
    progress = progress or Silent()
    built_for = targets(request)
    manifest = bundle.manifest
    writer = BundleWriter(out, replace=replace)
    wanted = {target.name for target in built_for}
    replaced = {spec.engines[name].file for spec in manifest.variants for name in spec.engines.keys() & wanted}
    with writer:
        for name in manifest.files:
            if name not in replaced:
                writer.copy(bundle.file(name), name)
        progress.stage("engines", len(manifest.variants) * len(built_for))
        variants = []
        samples = read_samples(bundle).variants if manifest.samples else {}
        for spec in manifest.variants:
            own = samples.get(spec.id)
            with_half = _half_tail(bundle, spec, writer, own)
            for target in built_for:
                with_half = _with_engine(with_half, writer, target, request.batch, own, progress)
            variants.append(with_half)
        version = load_product(request.product).__version__
        return writer.commit_changed(
            manifest, variants=tuple(variants), tools={**manifest.tools, request.product: version}
        )


def _half_tail(bundle: Bundle, spec: VariantSpec, writer: BundleWriter, own: VariantSamples | None) -> VariantSpec:
    """``spec`` with a fp16 tail: TensorRT takes its precision from the ONNX file, and Turing knows no fp32 product."""
    if ONNX_FP16 in spec.tails:
        return spec
    onnx = require("onnx", why="making a tail half", extra="train")
    from onnxruntime.transformers.float16 import convert_float_to_float16

    name = f"tails/{spec.id}.fp16.onnx"
    path = writer.path(name)
    with warnings.catch_warnings():  # of weights that underflow; what that costs is measured below
        warnings.simplefilter("ignore")
        try:
            half = convert_float_to_float16(onnx.load(str(bundle.file(spec.tails[ONNXRUNTIME]))), keep_io_types=True)
        except Exception as exc:  # the converter's own errors share no base
            raise ExportError(
                f"the tail of {spec.id} cannot be made half: {exc}; export the run with --engine"
            ) from exc
    onnx.save(half, str(path))
    if own is not None:
        verify_logits(OnnxRuntimeRunner(path), name, own.planes, own.logits, "fp16")
    return msgspec.structs.replace(spec, tails={**spec.tails, ONNX_FP16: name})


def _with_engine(
    spec: VariantSpec,
    writer: BundleWriter,
    target: Target,
    batch: tuple[int, int, int],
    own: VariantSamples | None,
    progress: Progress,
) -> VariantSpec:
    name = f"tails/{spec.id}.{target.name}.engine"
    progress.note(name)
    path = writer.path(name)
    engine = build_engine(
        writer.path(spec.tails[ONNX_FP16]),
        path,
        target,
        name=name,
        precision="fp16",
        batch=batch,
        note=lambda phase: progress.note(f"{name}: {phase}"),
    )
    if target.here and own is not None:
        verify_logits(engine_of(path, engine), name, own.planes, own.logits, "fp16")
    progress.step()
    return msgspec.structs.replace(
        spec, tails={**spec.tails, target.name: name}, engines={**spec.engines, target.name: engine}
    )
