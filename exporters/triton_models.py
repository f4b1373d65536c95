"""Which files of a bundle a Triton server loads, as which models: each tail by its variant's id, and ``full``."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from aecnn_deploy.bundle.manifest import ENGINE_SOURCES, ONNXRUNTIME, EngineSpec, VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import ExportError, SettingsError
from aecnn_deploy.exporters.triton_settings import BUNDLE_PLACE, CPU, DEFAULT_BATCH, TENSORRT, TritonSettings
from aecnn_deploy.exporters.triton_signature import Signature, Tensor, read_signature

FULL = "full"  # the unsplit model's name
ONNX_FILE, PLAN_FILE = "model.onnx", "model.plan"  # what Triton's backends look for

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", re.ASCII)  # a folder, and a part of Triton's URLs
_ARCHITECTURE = re.compile(r"sm(\d{1,3})(\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class TritonModel:
    """One model of a repository. ``backend`` is ONNXRUNTIME or TENSORRT."""

    name: str  # the variant's id, or FULL
    backend: str
    precision: str
    files: Mapping[str, Path]  # name in the version's folder -> the bundle's file
    signature: Signature
    max_batch: int
    capabilities: Mapping[str, str] = field(default_factory=dict)  # compute capability "9.0" -> name in ``files``
    bits: int | None = None  # of the planes
    tensorrt: str | None = None  # the release that built the plan
    note: str | None = None  # what its operator should know of the choice
    prefix: str = ""

    @property
    def served_name(self) -> str:
        """What the server knows it by: its folder's name."""
        return self.prefix + self.name


def choose_models(
    bundle: Bundle, settings: TritonSettings, variants: Collection[str] | None = None
) -> tuple[TritonModel, ...]:
    """The models of ``variants`` (None: all) in the manifest's order, and ``full`` last.

    Each ONNX file is opened, and must take and give what the manifest says. Raises BundleError: there is no such
    variant. SettingsError: ``settings`` do not fit the bundle's files. ExportError: Triton can load no file of a model.
    MissingExtraError: ONNX Runtime.
    """
    manifest = bundle.manifest
    wanted = {bundle.variant(name).id for name in variants} if variants is not None else None
    chosen = [spec for spec in manifest.variants if wanted is None or spec.id in wanted]
    for spec in chosen:
        if not _NAME.fullmatch(spec.id) or spec.id == FULL:
            raise ExportError(
                f"{bundle.path}: the variant {spec.id!r} cannot be a model's name in Triton: letters, digits, dots, "
                f"dashes and underscores, and not {FULL!r}; export the run again under another name"
            )
    classes = Tensor("logits", "TYPE_FP32", (len(manifest.labels),))
    models = []
    for spec in chosen:
        model = _tail(bundle, spec, settings)
        _check(bundle, model, Tensor("planes", "TYPE_UINT8", tuple(spec.planes)), classes)
        models.append(model)
    path = bundle.file(manifest.full)
    batch = _max_batch(settings, FULL, None)
    full = TritonModel(FULL, ONNXRUNTIME, "fp32", {ONNX_FILE: path}, read_signature(path), batch)
    frame = (manifest.input.height, manifest.input.width, 3)
    _check(bundle, full, Tensor("frames", "TYPE_UINT8", frame), classes)
    prefix = settings.prefix.replace(BUNDLE_PLACE, bundle.id[:12])
    return tuple(replace(model, prefix=prefix) for model in (*models, full))


def _check(bundle: Bundle, model: TritonModel, taken: Tensor, given: Tensor) -> None:
    """Whether the file is what the manifest says; names are the file's own, which Triton's clients ask for.

    Raises ExportError.
    """
    for found, expected in ((model.signature.input, taken), (model.signature.output, given)):
        if (found.data_type, found.dims) != (expected.data_type, expected.dims):
            raise ExportError(
                f"{bundle.path}: {model.name} has {found}, the manifest says {expected}; export the bundle again"
            )


def _tail(bundle: Bundle, spec: VariantSpec, settings: TritonSettings) -> TritonModel:
    if settings.backend != ONNXRUNTIME and settings.device != CPU:
        plans = _plans(spec, settings.precision)
        if plans:
            return _plan_model(bundle, spec, settings, plans)
        if settings.backend == TENSORRT:
            raise ExportError(_no_plan(bundle, spec, settings.precision))
    return _onnx_model(bundle, spec, settings)


def _onnx_model(bundle: Bundle, spec: VariantSpec, settings: TritonSettings) -> TritonModel:
    precision = settings.precision or "fp32"
    target = ENGINE_SOURCES[precision]
    if target not in spec.tails:
        raise ExportError(
            f"{bundle.path} has no {precision} tail of {spec.id} for ONNX Runtime; export the run again with "
            f"--precision {precision}, or leave the precision out"
        )
    path = bundle.file(spec.tails[target])
    engines = sorted({engine.product for engine in spec.engines.values()} - {TENSORRT})
    return TritonModel(
        spec.id,
        ONNXRUNTIME,
        precision,
        {ONNX_FILE: path},
        read_signature(path),
        _max_batch(settings, spec.id, None),
        bits=spec.bits,
        note=f"its {engines[0]} engines stay behind: Triton loads none" if engines else None,
    )


def _plan_model(
    bundle: Bundle, spec: VariantSpec, settings: TritonSettings, plans: Mapping[str, EngineSpec]
) -> TritonModel:
    """One plan is ``model.plan``; of several each has its own name, and Triton chooses by the GPU at hand.

    The signature is that of the ONNX file behind the engine: TensorRT keeps names and types.
    """
    engines = list({engine.file: engine for engine in plans.values()}.values())
    names = {engines[0].file: PLAN_FILE}
    if len(engines) > 1:
        names = {engine.file: f"model-{engine.architectures[0]}.plan" for engine in engines}
    source = spec.tails.get(ENGINE_SOURCES[engines[0].precision], spec.tails[ONNXRUNTIME])
    return TritonModel(
        spec.id,
        TENSORRT,
        "+".join(dict.fromkeys(engine.precision for engine in engines)),
        {name: bundle.file(file) for file, name in names.items()},
        read_signature(bundle.file(source)),
        _max_batch(settings, spec.id, min(engine.batch[2] for engine in engines)),
        capabilities={key: names[engine.file] for key, engine in plans.items()} if len(engines) > 1 else {},
        bits=spec.bits,
        tensorrt="+".join(dict.fromkeys(engine.version for engine in engines)),
    )


def _plans(spec: VariantSpec, precision: str | None) -> dict[str, EngineSpec]:
    """Compute capability -> the engine of full TensorRT that an edge would prefer there."""
    order = list(ENGINE_SOURCES)
    found: dict[str, EngineSpec] = {}
    for engine in sorted(spec.engines.values(), key=lambda each: order.index(each.precision)):
        if engine.product == TENSORRT and precision in (None, engine.precision):
            for architecture in engine.architectures:
                found.setdefault(compute_capability(architecture), engine)
    return dict(sorted(found.items(), key=lambda item: tuple(map(int, item[0].split(".")))))


def compute_capability(architecture: str) -> str:
    """ "9.0" of "sm90", "12.0" of "sm120". Raises ExportError: it is no architecture's name."""
    found = _ARCHITECTURE.fullmatch(architecture)
    if found is None:
        raise ExportError(f"an engine is for {architecture!r}, expected an architecture such as sm90; build it again")
    return f"{int(found[1])}.{found[2]}"


def _no_plan(bundle: Bundle, spec: VariantSpec, precision: str | None) -> str:
    kind = f"{precision} engine" if precision else "engine"
    others = sorted({engine.product for engine in spec.engines.values()})
    has = f"it has {', '.join(others)} engines only, and Triton loads none of RTX" if others else "it has none"
    if TENSORRT in others:
        has = f"it has {', '.join(sorted({each.precision for each in spec.engines.values()}))}"
    return (
        f"{bundle.path} holds no {kind} of full TensorRT for {spec.id}: {has}; on the server's GPU run "
        f"'aecnn-deploy bundle engines BUNDLE --engine tensorrt --out NEW', or use the backend {ONNXRUNTIME}"
    )


def _max_batch(settings: TritonSettings, name: str, profile: int | None) -> int:
    """Largest batch of a model whose engines take ``profile`` images at most. Raises SettingsError."""
    batch = settings.max_batch or min(DEFAULT_BATCH, profile or DEFAULT_BATCH)
    if profile is not None and batch > profile:
        raise SettingsError(
            f"max_batch is {batch}, the optimisation profile of {name}'s engine ends at {profile}; "
            "choose that or less, or build the engine with a larger --batch-max"
        )
    settings.check_preferred(batch)
    return batch
