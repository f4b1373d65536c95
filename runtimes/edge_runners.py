"""Which runner runs a tail: by name, or the best that the bundle has a file for and this machine can run."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aecnn_deploy.bundle.manifest import ONNXRUNTIME, EngineSpec, VariantSpec
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
class RunnerOptions:
    """How runners are made. ``threads`` 0 takes every core; both settings are ONNX Runtime's."""

    name: str = AUTO
    threads: int = 0
    spinning: bool = False

    def __post_init__(self) -> None:
        if self.name != AUTO and self.name not in RUNNERS:
            raise SettingsError(f"no runner {self.name!r}; known are {', '.join((AUTO, *RUNNERS))}")
        if not 0 <= self.threads <= 1024:
            raise SettingsError(f"threads is {self.threads}, expected 0 (every core) to 1024")


@dataclass(frozen=True, slots=True)
class ActiveTail:
    """A tail that is loaded, and the manifest's target that it came from."""

    runner: Runner
    target: str


def activate_tail(bundle: Bundle, variant: VariantSpec, options: RunnerOptions) -> ActiveTail:
    """Load ``variant``'s tail. Call it on the thread that will run it.

    Raises RunnerError or EngineMismatchError: the runner that was named cannot run it here; the message says why.
    """
    if options.name != AUTO:
        return _activate(bundle, variant, options.name, options)
    for name in RUNNERS:
        if name == ONNXRUNTIME:
            break
        try:
            return _activate(bundle, variant, name, options)
        except AecnnError as exc:  # `auto` asks for what works, and ONNX Runtime is the last that is tried
            if any(spec.product == name for spec in variant.engines.values()):
                logger.info("%s: not on %s: %s", variant.id, name, exc)
    return _activate(bundle, variant, ONNXRUNTIME, options)


def make_onnxruntime(path: Path, options: RunnerOptions, variant: str | None = None) -> Runner:
    """A runner for an ONNX file; of ``variant`` and no other, where it says."""
    return _make(ONNXRUNTIME, path, threads=options.threads, spinning=options.spinning, variant=variant)


def engine_runner(bundle: Bundle, spec: EngineSpec) -> Runner:
    """A runner for one engine of the bundle, not active yet."""
    return engine_of(bundle.file(spec.file), spec)


def engine_of(path: Path, spec: EngineSpec) -> Runner:
    """A runner for the engine at ``path``, not active yet."""
    return _make(spec.product, path, spec)


def _activate(bundle: Bundle, variant: VariantSpec, name: str, options: RunnerOptions) -> ActiveTail:
    if name == ONNXRUNTIME:
        runner = make_onnxruntime(bundle.file(variant.tails[ONNXRUNTIME]), options, variant.id)
        return ActiveTail(runner.activate(), ONNXRUNTIME)
    targets = [target for target, spec in sorted(variant.engines.items()) if spec.product == name]
    if not targets:
        raise RunnerError(
            f"{bundle.path} holds no {name} engine for {variant.id}; export it again with --engine {name}, "
            "or serve with --runner onnxruntime"
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
    assert mismatch is not None
    raise mismatch


def _make(name: str, *args: Any, **kwargs: Any) -> Runner:
    module, _, attribute = RUNNERS[name].partition(":")
    runner: Runner = getattr(import_module(module), attribute)(*args, **kwargs)
    return runner
