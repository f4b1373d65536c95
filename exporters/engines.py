"""TensorRT and TensorRT-RTX engines from an ONNX file; one builder for both products.

Precision lives in the ONNX file, so every network is strongly typed and no builder flag changes it. TensorRT-RTX
builds for any of its architectures and needs no GPU; full TensorRT times kernels and builds for the GPU at hand.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aecnn_deploy.bundle.manifest import ENGINE_SOURCES, EngineSpec
from aecnn_deploy.errors import ExportError, SettingsError
from aecnn_deploy.runtimes.cuda_worker import gpu_architecture
from aecnn_deploy.runtimes.engine_header import read_engine_header
from aecnn_deploy.runtimes.tensorrt_probe import PRODUCTS, RTX, load_product, supported_architectures, usable

Note = Callable[[str], None]

_TURING = "sm75"
_LISTEN_S = 0.1  # between two looks for Ctrl-C during a build


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """Which engines to build.

    Raises SettingsError: an unknown product or precision, a profile that is not 1 <= opt <= max, no workspace, or a
    timing cache for TensorRT-RTX.
    """

    product: str  # a key of PRODUCTS
    architectures: tuple[str, ...] = ()  # "sm75", ...; empty: the GPU of this machine
    batch: tuple[int, int, int] = (1, 1, 8)  # minimum, optimum, maximum of the optimisation profile
    precisions: tuple[str, ...] = ("fp16",)  # keys of ENGINE_SOURCES
    workspace_mib: int | None = None  # GPU memory that a layer may take beside its tensors; None: TensorRT's own limit
    timing_cache: Path | None = None  # file of measured kernels: read where it exists, written after each build

    def __post_init__(self) -> None:
        if self.product not in PRODUCTS:
            raise SettingsError(f"no engine product {self.product!r}; known: {', '.join(PRODUCTS)}")
        least, optimum, most = self.batch
        if not 1 == least <= optimum <= most:
            raise SettingsError(
                f"an optimisation profile needs 1 = minimum <= optimum <= maximum, got {self.batch}: "
                "an edge runs single images too"
            )
        check_precisions(self.precisions)
        if self.workspace_mib is not None and not 1 <= self.workspace_mib < 1 << 24:
            raise SettingsError(f"the workspace is {self.workspace_mib} MiB, expected at least 1")
        if self.timing_cache is not None and self.product == RTX:
            raise SettingsError(
                f"a timing cache does nothing for {RTX}, which times no kernels when it builds; "
                "leave out --timing-cache, or choose --engine tensorrt"
            )


@dataclass(frozen=True, slots=True)
class Target:
    """One engine's product, architecture and precision; ``here`` when it was asked for as the GPU of this machine."""

    product: str
    architecture: str
    here: bool = False
    precision: str = "fp16"

    @property
    def name(self) -> str:
        """As the manifest calls it, e.g. "tensorrt-rtx-sm75" for fp16, "tensorrt-rtx-sm75-int8" for another one."""
        return f"{self.product}-{self.architecture}" + ("" if self.precision == "fp16" else f"-{self.precision}")


def check_precisions(names: Iterable[str]) -> None:
    """Raises SettingsError: one is no precision that engines are built in."""
    for name in names:
        if name not in ENGINE_SOURCES:
            raise SettingsError(f"no engine is built in {name!r}; choose one of {', '.join(ENGINE_SOURCES)}")


def known_architectures() -> tuple[str, ...]:
    """What the installed TensorRT-RTX builds for without a GPU, oldest first: "sm75", .... Raises MissingExtraError."""
    return supported_architectures(load_product(RTX))


def targets(request: EngineRequest) -> tuple[Target, ...]:
    """The engines that ``request`` asks for, each once. Checks what can be checked before a long export.

    Raises SettingsError: an architecture that this product cannot build for, or a precision that it lacks there.
    MissingExtraError: the product is not installed. ExportError: the GPU of this machine is asked for, and there is
    none.
    """
    load_product(request.product)
    precisions = tuple(dict.fromkeys(request.precisions))
    if request.architectures:
        if request.product != RTX:
            raise SettingsError(f"{request.product} builds for the GPU of this machine only; leave out --sm")
        known = known_architectures()
        for name in request.architectures:
            if name not in known:
                raise SettingsError(f"{RTX} does not build for {name!r}; known: {', '.join(known)}")
        wanted = dict.fromkeys(request.architectures)
        return _possible(Target(RTX, name, precision=precision) for name in wanted for precision in precisions)
    if (reason := usable(request.product)) is not None:
        remedy = f"; name an architecture: {', '.join(known_architectures())}" if request.product == RTX else ""
        raise ExportError(f"{request.product} cannot build for the GPU of this machine: {reason}{remedy}")
    here = gpu_architecture()
    return _possible(Target(request.product, here, here=True, precision=precision) for precision in precisions)


def _possible(found: Iterable[Target]) -> tuple[Target, ...]:
    """Raises SettingsError: a target lacks the precision."""
    built_for = tuple(found)
    for target in built_for:
        if (target.product, target.architecture, target.precision) == (RTX, _TURING, "fp32"):
            raise SettingsError(
                f"{RTX} has no fp32 matrix product for {_TURING} (Turing); choose --precision fp16 or int8, "
                "or another --sm"
            )
    return built_for


def build_engine(
    onnx_file: Path,
    out: Path,
    target: Target,
    *,
    name: str,
    precision: str,
    batch: tuple[int, int, int] = (1, 1, 8),
    workspace_mib: int | None = None,
    timing_cache: Path | None = None,
    note: Note = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> EngineSpec:
    """Build ``onnx_file`` (one input, batch axis first) for ``target`` and write the engine to ``out``.

    ``name`` is the engine's file name in the bundle, ``precision`` what the ONNX file computes in, ``note`` is told
    TensorRT's phases; ``workspace_mib`` and ``timing_cache`` are EngineRequest's. An interrupt cancels the build, and
    so does ``cancelled``, which is asked at each step. Raises ExportError, with TensorRT's own words.
    """
    trt = load_product(target.product)
    log, monitor = _make_log(trt), _make_monitor(trt, note, cancelled)
    options = _Options(batch, workspace_mib, timing_cache)
    build, builder = _on_thread(lambda: _build(trt, log, monitor, onnx_file, target, options))
    try:
        while wait([build], _LISTEN_S).not_done:  # an interrupted Thread.join of CPython 3.11 takes it for ended
            pass
    except KeyboardInterrupt:  # TensorRT must end before its monitor and this process may
        monitor.cancelled = True
        builder.join()
        raise
    out.write_bytes(build.result())
    spec = EngineSpec(
        file=name,
        product=target.product,
        version=trt.__version__,
        architectures=(target.architecture,),
        precision=precision,
        batch=batch,
    )
    _check_header(out, spec, target)
    return spec


@dataclass(frozen=True, slots=True)
class _Options:
    """What of an EngineRequest a build itself takes."""

    batch: tuple[int, int, int]
    workspace_mib: int | None
    timing_cache: Path | None


def _build(trt: Any, log: Any, monitor: Any, onnx_file: Path, target: Target, options: _Options) -> memoryview:
    what = f"{target.product} {trt.__version__} cannot build {onnx_file.name} for {target.architecture}"
    builder = trt.Builder(log)
    # TensorRT 10 has to be told; 11 and RTX know no other kind.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx_file.read_bytes()):
        raise ExportError(f"{what}: {_parser_words(parser)}")
    if network.num_inputs != 1:
        raise ExportError(f"{what}: it has {network.num_inputs} inputs, expected 1")
    if (fixed := int(network.get_input(0).shape[0])) >= 0:
        raise ExportError(
            f"{what}: it has a fixed batch of {fixed}, an engine's batch profile needs an open axis; "
            "export the run again without --onnx-batch"
        )
    config = builder.create_builder_config()
    config.progress_monitor = monitor
    if target.product == RTX:
        capability = trt.ComputeCapability
        wanted = capability.CURRENT if target.here else capability.__members__[target.architecture.upper()]
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(wanted, 0):
            raise ExportError(f"{what}: {log.words()}")
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.timing_cache is not None:
        _read_timing_cache(config, options.timing_cache)
    tensor = network.get_input(0)
    axes = tuple(int(size) for size in tensor.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, *((size, *axes) for size in options.batch))
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"{what}: the optimisation profile {options.batch} is refused: {log.words()}")
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(f"{what}: {'it was cancelled' if monitor.cancelled else log.words()}")
    if options.timing_cache is not None:
        _write_timing_cache(config, options.timing_cache)
    return memoryview(engine)


def _read_timing_cache(config: Any, path: Path) -> None:
    """What was measured elsewhere is of no use: where the file is of another release or GPU, an empty one is begun."""
    try:
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    except OSError as exc:
        raise ExportError(f"cannot read the timing cache {path}: {exc.strerror}") from None
    if not config.set_timing_cache(cache, False):  # of another GPU; another release's is empty already
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _write_timing_cache(config: Any, path: Path) -> None:
    """Beside it and renamed: two builds that share a file leave that of the later one."""
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(memoryview(config.get_timing_cache().serialize()))
            Path(partial).replace(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise ExportError(f"cannot write the timing cache {path}: {exc.strerror}") from None


def _check_header(out: Path, spec: EngineSpec, target: Target) -> None:
    """An engine for another architecture than asked for would be found out on the edge only. RTX's header tells."""
    if target.product != RTX:
        return
    header = read_engine_header(out)
    # The bits of an architecture that has no name of its own (CURRENT on a new GPU) are not known.
    if header.version != spec.version or (not target.here and header.architectures != spec.architectures):
        raise ExportError(
            f"{spec.file} came out for {header.version} on {'+'.join(header.architectures)}, "
            f"asked for {spec.version} on {'+'.join(spec.architectures)}; report the {target.product} release"
        )


def _parser_words(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    texts = [f"{error.node_operator()} {error.node_name()!r}: {error.desc()}".strip(" ':") for error in errors]
    return _one_line("; ".join(texts)) or "the parser gives no reason"


def _one_line(text: str, limit: int = 500) -> str:
    return " ".join(text.split())[:limit]


def _on_thread(job: Callable[[], memoryview]) -> "tuple[Future[memoryview], threading.Thread]":
    """TensorRT's builder is deaf to signals; off the main thread it leaves that one free to hear Ctrl-C.

    Which has to look up now and then: a signal that another thread was given wakes no wait without end.
    """
    future: Future[memoryview] = Future()

    def main() -> None:
        try:
            future.set_result(job())
        except BaseException as exc:
            future.set_exception(exc)

    thread = threading.Thread(target=main, name="engine-builder")
    thread.start()
    return future, thread


def _make_log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]  # the base class is the installed product's
        """Keeps TensorRT's errors for ours, and prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)

        def words(self) -> str:
            """The first error: the later ones are its consequences."""
            return _one_line(self.errors[0]) if self.errors else "TensorRT gives no reason"

    return Log()


def _make_monitor(trt: Any, note: Note, cancelled: Callable[[], bool]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells ``note`` each phase; TensorRT may call it from several threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            note(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.cancelled = self.cancelled or cancelled()
            return not self.cancelled

    return Monitor()
