"""Engines for a finished bundle: built from its tails, which are made half or int8 where they are not. No torch."""

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from aecnn_deploy.bundle.manifest import ENGINE_SOURCES, ONNX_FP16, ONNX_INT8, ONNXRUNTIME, Manifest, VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.errors import ExportError
from aecnn_deploy.exporters.engines import EngineRequest, Target, build_engine, targets
from aecnn_deploy.exporters.half_tail import half_tail
from aecnn_deploy.exporters.int8_tail import int8_tail
from aecnn_deploy.exporters.progress import Progress, Silent
from aecnn_deploy.runtimes.base import Array
from aecnn_deploy.runtimes.edge_runners import engine_of
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.samples import VariantSamples, read_samples
from aecnn_deploy.runtimes.tensorrt_probe import load_product
from aecnn_deploy.runtimes.verification import SAMPLES, verify_logits

PlanesOf = Callable[[VariantSpec], Array]


def add_engines(
    bundle: Bundle,
    out: Path,
    request: EngineRequest,
    *,
    planes_of: PlanesOf | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write ``bundle`` to ``out`` with one more engine a variant for each architecture and precision of ``request``.

    An engine that stands there for the same target is built anew. ``planes_of`` a variant: uint8 (N, C', h, w), of
    photographs that int8 tails are calibrated with, also those that stand there; None: of the bundle's samples, for
    those that are missing. A tail that is made here, and an engine for the GPU of this machine, are held against the
    bundle's samples where it keeps any. Raises SettingsError, MissingExtraError, ExportError, VerificationError,
    BundleError; what fails leaves no bundle.
    """
    progress = progress or Silent()
    built_for = targets(request)
    manifest = bundle.manifest
    samples = read_samples(bundle).variants if manifest.samples else {}
    if "int8" in request.precisions and not samples and planes_of is None:
        _check_int8_tails(bundle)
    writer = BundleWriter(out, replace=replace)
    wanted = {target.name for target in built_for}
    replaced = {spec.engines[name].file for spec in manifest.variants for name in spec.engines.keys() & wanted}
    with writer:
        for name in manifest.files:
            if name not in replaced:
                writer.copy(bundle.file(name), name)
        tails = _Tails(bundle, writer, samples, planes_of)
        progress.stage("engines", len(manifest.variants) * len(built_for))
        variants = []
        for spec in manifest.variants:
            for precision in dict.fromkeys(request.precisions):
                spec = tails.with_tail(spec, precision)
            for target in built_for:
                spec = _with_engine(spec, writer, target, request, samples.get(spec.id), progress)
            variants.append(spec)
        version = load_product(request.product).__version__
        return writer.commit_changed(
            manifest, variants=tuple(variants), tools={**manifest.tools, request.product: version}
        )


def _check_int8_tails(bundle: Bundle) -> None:
    """Raises ExportError: a variant has no int8 tail; nothing is at hand to make it with."""
    for spec in bundle.manifest.variants:
        if ONNX_INT8 not in spec.tails:
            raise ExportError(
                f"{bundle.path} keeps no samples to calibrate an int8 tail of {spec.id} with; "
                "give photographs by --images, or choose --precision fp16"
            )


class _Tails:
    """Makes the tails that engines are built from, where the bundle lacks them."""

    def __init__(
        self,
        bundle: Bundle,
        writer: BundleWriter,
        samples: Mapping[str, VariantSamples],
        planes_of: PlanesOf | None,
    ) -> None:
        self._bundle, self._writer, self._samples, self._planes_of = bundle, writer, samples, planes_of

    def with_tail(self, spec: VariantSpec, precision: str) -> VariantSpec:
        """``spec`` with a tail in ``precision``. Raises ExportError, VerificationError."""
        target = ENGINE_SOURCES[precision]
        given = self._planes_of if target == ONNX_INT8 else None
        if target in spec.tails and given is None:
            return spec
        name = spec.tails.get(target, f"tails/{spec.id}.{precision}.onnx")
        path, source = self._writer.path(name), self._bundle.file(spec.tails[ONNXRUNTIME])
        own = self._samples.get(spec.id)
        if target == ONNX_FP16:
            half_tail(source, path)
        else:
            planes = given(spec) if given else self._samples[spec.id].planes
            int8_tail(source, planes, path)
            own = own or _samples_of(source, planes[:SAMPLES])
        if own is not None:
            verify_logits(OnnxRuntimeRunner(path), name, own.planes, own.logits, precision)
        return msgspec.structs.replace(spec, tails={**spec.tails, target: name})


def _samples_of(source: Path, planes: Array) -> VariantSamples:
    """What the fp32 tail makes of ``planes``, for a bundle that keeps no samples."""
    with OnnxRuntimeRunner(source) as runner:
        return VariantSamples(planes, runner.infer(planes))


def _with_engine(
    spec: VariantSpec,
    writer: BundleWriter,
    target: Target,
    request: EngineRequest,
    own: VariantSamples | None,
    progress: Progress,
) -> VariantSpec:
    name = f"tails/{spec.id}.{target.name}.engine"
    progress.note(name)
    path = writer.path(name)
    engine = build_engine(
        writer.path(spec.tails[ENGINE_SOURCES[target.precision]]),
        path,
        target,
        name=name,
        precision=target.precision,
        batch=request.batch,
        workspace_mib=request.workspace_mib,
        timing_cache=request.timing_cache,
        note=lambda phase: progress.note(f"{name}: {phase}"),
    )
    if target.here and own is not None:
        verify_logits(engine_of(path, engine), name, own.planes, own.logits, target.precision)
    progress.step()
    return msgspec.structs.replace(
        spec, tails={**spec.tails, target.name: name}, engines={**spec.engines, target.name: engine}
    )
