"""Which runner runs a tail: by name, or the best that the bundle has a file for and this machine can run."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from aecnn_deploy.bundle.manifest import ENGINE_SOURCES, ONNXRUNTIME, EngineSpec, VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import AecnnError, EngineMismatchError, RunnerError, SettingsError
from aecnn_deploy.runtimes.base import Runner
from aecnn_deploy.runtimes.tensorrt_probe import usable

logger = logging.getLogger("aecnn_deploy.edge")

AUTO = "auto"

# name -> "module:attribute", imported when it is used; in the order in which `auto` tries them
RUNNERS: Mapping[str, str] = MappingProxyType(
    {
        "tensorrt": "aecnn_deploy.runtimes.tensorrt_runner:TensorRTRunner",
        "tensorrt-rtx": "aecnn_deploy.runtimes.tensorrt_runner:TensorRTRtxRunner",
        ONNXRUNTIME: "aecnn_deploy.runtimes.onnxruntime_runner:OnnxRuntimeRunner",
    }
)


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine that is no file of the bundle, and what its target would be called there."""

    path: Path
    spec: EngineSpec
    target: str


class EngineSource(Protocol):
    """Where an edge gets an engine that its bundle lacks."""

    def engine(self, bundle: Bundle, variant: VariantSpec, product: str, precision: str | None) -> BuiltEngine:
        """Raises an AecnnError: there is none, and none can be built."""

    def cancel(self) -> None:
        """End a build that goes on. Called from any thread."""


class RemoteTails(Protocol):
    """Runs an edge's models somewhere else: on a Triton server, on a Ray cluster."""

    target: str  # what stands where a local model has the manifest's target

    def runner(self, bundle: Bundle, variant: VariantSpec | None) -> Runner | None:
        """A runner for the variant's tail, or for the unsplit model, not active yet; None: it runs on this machine.

        ``activate`` raises an AecnnError where the far side lacks the model or has another one.
        """


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How runners are made. ``threads`` 0 takes every core; it and ``spinning`` are ONNX Runtime's.

    ``precision`` is that of engines; None prefers fp16, then int8. ``engines``: where those come from that the bundle
    lacks; None: nowhere. ``remote`` comes before everything on this machine.
    """

    name: str = AUTO
    threads: int = 0
    spinning: bool = False
    precision: str | None = None
    engines: EngineSource | None = None
    remote: RemoteTails | None = None

    def __post_init__(self) -> None:
        if self.name != AUTO and self.name not in RUNNERS:
            raise SettingsError(f"no runner {self.name!r}; known are {', '.join((AUTO, *RUNNERS))}")
        if not 0 <= self.threads <= 1024:
            raise SettingsError(f"threads is {self.threads}, expected 0 (every core) to 1024")
        if self.precision is not None and self.precision not in ENGINE_SOURCES:
            raise SettingsError(f"no engine is of {self.precision!r}; choose one of {', '.join(ENGINE_SOURCES)}")
        if self.precision is not None and self.name == ONNXRUNTIME:
            raise SettingsError(f"a precision goes with engines, not with the runner {ONNXRUNTIME}")
        if self.remote is not None and (self.name != AUTO or self.precision is not None):
            raise SettingsError(f"tails that run on {self.remote.target} take neither a runner nor a precision of here")


@dataclass(frozen=True, slots=True)
class ActiveTail:
    """A tail, or the unsplit model, that is loaded, and the manifest's target that it came from."""

    runner: Runner
    target: str


def activate_tail(bundle: Bundle, variant: VariantSpec, options: RunnerOptions) -> ActiveTail:
    """Load ``variant``'s tail. Call it on the thread that will run it.

    An engine of the bundle comes before one that is built. Raises an AecnnError: the runner that was named cannot run
    it here; the message says why.
    """
    remote = _remote(bundle, variant, options)
    if remote is not None:
        return remote
    if options.name == ONNXRUNTIME:
        return _onnxruntime(bundle, variant, options)
    if options.name != AUTO:
        return _engine(bundle, variant, options.name, options)
    for engines in (None,) if options.engines is None else (None, options.engines):
        for name in RUNNERS:
            if name == ONNXRUNTIME or (engines is not None and usable(name) is not None):
                continue
            try:
                return _engine(bundle, variant, name, replace(options, engines=engines))
            except AecnnError as exc:  # `auto` asks for what works, and ONNX Runtime is the last that is tried
                if engines is not None:
                    logger.warning("%s: not on %s: %s", variant.id, name, exc)
                elif any(spec.product == name for spec in variant.engines.values()):
                    logger.info("%s: not on %s: %s", variant.id, name, exc)
    return _onnxruntime(bundle, variant, options)


def activate_full(bundle: Bundle, options: RunnerOptions) -> ActiveTail:
    """Load the unsplit model. Call it on the thread that will run it. Raises an AecnnError: it cannot be loaded."""
    remote = _remote(bundle, None, options)
    if remote is not None:
        return remote
    return ActiveTail(make_onnxruntime(bundle.file(bundle.manifest.full), options).activate(), ONNXRUNTIME)


def make_onnxruntime(path: Path, options: RunnerOptions, variant: str | None = None) -> Runner:
    """A runner for an ONNX file; of ``variant`` and no other, where it says."""
    return _make(ONNXRUNTIME, path, threads=options.threads, spinning=options.spinning, variant=variant)


def engine_runner(bundle: Bundle, spec: EngineSpec) -> Runner:
    """A runner for one engine of the bundle, not active yet."""
    return engine_of(bundle.file(spec.file), spec)


def engine_of(path: Path, spec: EngineSpec) -> Runner:
    """A runner for the engine at ``path``, not active yet."""
    return _make(spec.product, path, spec)


def _remote(bundle: Bundle, variant: VariantSpec | None, options: RunnerOptions) -> ActiveTail | None:
    if options.remote is None:
        return None
    runner = options.remote.runner(bundle, variant)
    return None if runner is None else ActiveTail(runner.activate(), options.remote.target)


def _onnxruntime(bundle: Bundle, variant: VariantSpec, options: RunnerOptions) -> ActiveTail:
    runner = make_onnxruntime(bundle.file(variant.tails[ONNXRUNTIME]), options, variant.id)
    return ActiveTail(runner.activate(), ONNXRUNTIME)


def _engine(bundle: Bundle, variant: VariantSpec, name: str, options: RunnerOptions) -> ActiveTail:
    """The bundle's engine of the product ``name`` that fits this machine, else the one that ``options.engines`` has."""
    targets = _engines(variant, name, options.precision)
    if not targets and options.engines is None:
        kind = f"{options.precision} {name}" if options.precision else name
        raise RunnerError(
            f"{bundle.path} holds no {kind} engine for {variant.id}; add one with 'aecnn-deploy bundle engines', "
            "serve without --no-build, or with --runner onnxruntime"
        )
    reason = usable(name)
    if reason is not None:
        raise RunnerError(f"the runner {name} cannot run here: {reason}; serve with --runner onnxruntime")
    mismatch: EngineMismatchError | None = None
    for target in targets:  # one engine for each GPU architecture: the runner knows which fits this GPU
        spec = variant.engines[target]
        try:
            return ActiveTail(engine_runner(bundle, spec).activate(), target)
        except EngineMismatchError as exc:
            mismatch = exc
    if options.engines is not None:
        built = options.engines.engine(bundle, variant, name, options.precision)
        return ActiveTail(engine_of(built.path, built.spec).activate(), built.target)
    assert mismatch is not None
    raise mismatch


def _engines(variant: VariantSpec, product: str, precision: str | None) -> list[str]:
    """Targets of the variant's engines of ``product``, the preferred precision first."""
    order = list(ENGINE_SOURCES)
    found = [
        (order.index(spec.precision) if spec.precision in order else len(order), target)
        for target, spec in variant.engines.items()
        if spec.product == product and precision in (None, spec.precision)
    ]
    return [target for _, target in sorted(found)]


def _make(name: str, *args: Any, **kwargs: Any) -> Runner:
    module, _, attribute = RUNNERS[name].partition(":")
    runner: Runner = getattr(import_module(module), attribute)(*args, **kwargs)
    return runner
