"""The engines that an edge's bundle lacks: built for its own GPU at the first start, kept for the next one."""

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec

from aecnn_deploy.bundle.manifest import ENGINE_SOURCES, ONNX_FP16, EngineSpec, VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import ExportError, RunnerError, VerificationError
from aecnn_deploy.exporters.engines import EngineRequest, Target, build_engine, targets
from aecnn_deploy.exporters.half_tail import half_tail
from aecnn_deploy.runtimes.base import Runner
from aecnn_deploy.runtimes.edge_runners import BuiltEngine, engine_of
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.samples import VariantSamples, read_samples
from aecnn_deploy.runtimes.tensorrt_probe import RTX, load_product
from aecnn_deploy.runtimes.verification import verify_logits

logger = logging.getLogger("aecnn_deploy.edge")

_POLL_S = 0.1  # of a lock that another start holds
_NOTE_S = 15.0  # between two lines about a build that goes on
_PARTIAL = ".partial-"


def engine_folder() -> Path:
    """Where engines are kept: $XDG_CACHE_HOME/aecnn-deploy/engines, or that in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aecnn-deploy" / "engines"


class _Record(msgspec.Struct, frozen=True):
    """What stands beside an engine: an engine that is not just so is not loaded."""

    engine: EngineSpec
    sha256: str


class EdgeEngines:
    """An EngineSource: builds with this machine's TensorRT and keeps what it built.

    An engine lies in <root>/<bundle id>/<product>-<version>-<architecture>/ with a JSON file that says what it is. Both
    are written beside and renamed. Of two starts at the same time one builds and the other waits for it. ``find`` tells
    which engine a request means: the one for this machine's GPU.
    """

    def __init__(
        self, root: Path | None = None, *, find: Callable[[EngineRequest], tuple[Target, ...]] = targets
    ) -> None:
        self._root, self._find = root or engine_folder(), find
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End the build that goes on, and those to come, with an ExportError. Call it from any thread."""
        self._cancelled.set()

    def engine(self, bundle: Bundle, variant: VariantSpec, product: str, precision: str | None) -> BuiltEngine:
        """``variant``'s engine for this machine, from the cache or built now; ``precision`` None: fp16.

        Raises SettingsError: the GPU lacks the precision. ExportError: it cannot be built, or not be kept. RunnerError:
        it was built, but gives other logits than the bundle's samples. MissingExtraError: TensorRT, pycuda or onnx.
        """
        request = EngineRequest(product, precisions=(precision or "fp16",))
        (target,) = self._find(request)
        version = load_product(product).__version__
        name = f"{quote(variant.id, safe='')}.{target.precision}.engine"
        expected = EngineSpec(name, product, version, (target.architecture,), target.precision, request.batch)
        folder = self._root / bundle.id / f"{product}-{version}-{target.architecture}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._lock(folder / ".lock", name):
                if not _is_whole(folder / name, expected):
                    self._build(bundle, variant, target, expected, folder)
        except OSError as exc:
            raise ExportError(f"cannot keep engines in {folder}: {exc.strerror or exc}; set XDG_CACHE_HOME") from None
        return BuiltEngine(folder / name, expected, target.name)

    def _build(self, bundle: Bundle, variant: VariantSpec, target: Target, spec: EngineSpec, folder: Path) -> None:
        """Put the engine ``spec`` and its record into ``folder``, whose lock is held."""
        began_s = time.monotonic()
        for left in folder.glob(f"{_PARTIAL}*"):  # of a start that was killed
            shutil.rmtree(left, ignore_errors=True)
        what = f"{spec.file} for {target.architecture} with {spec.product} {spec.version}"
        logger.info("building %s: this may take minutes", what)
        samples = read_samples(bundle).variants[variant.id] if bundle.manifest.samples else None
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=folder) as partial:
            source, out = _source(bundle, variant, target.precision, Path(partial), samples), Path(partial, spec.file)
            build_engine(
                source,
                out,
                target,
                name=spec.file,
                precision=spec.precision,
                batch=spec.batch,
                timing_cache=None if target.product == RTX else folder / "timing.cache",
                note=_Notes(what),
                cancelled=self._cancelled.is_set,
            )
            if target.here and samples is not None:
                _verify(out, spec, samples)
            record = Path(partial, "record.json")
            record.write_bytes(msgspec.json.encode(_Record(spec, _digest(out))))
            out.replace(folder / spec.file)
            record.replace(_record_file(folder / spec.file))
        logger.info("built %s in %.1f s, kept in %s", spec.file, time.monotonic() - began_s, folder)

    @contextmanager
    def _lock(self, path: Path, name: str) -> Iterator[None]:
        """Hold ``path``, which the end of a process gives back. Raises ExportError: cancelled while waiting."""
        with path.open("ab") as stream:
            waiting = False
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not waiting:
                        logger.info("another start builds in %s: waiting for it", path.parent)
                    waiting = True
                if self._cancelled.wait(_POLL_S):
                    raise ExportError(f"waiting for another start's {name} was cancelled")
            yield


class _Notes:
    """Logs TensorRT's phases, one line in a while."""

    def __init__(self, what: str) -> None:
        self._what, self._began_s = what, time.monotonic()
        self._last_s = self._began_s

    def __call__(self, phase: str) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s >= _NOTE_S:
            self._last_s = now_s
            logger.info("building %s: %s, %.0f s so far", self._what, phase, now_s - self._began_s)


def _source(bundle: Bundle, variant: VariantSpec, precision: str, folder: Path, samples: VariantSamples | None) -> Path:
    """The tail to build from; one that is made half lies in ``folder``."""
    wanted = ENGINE_SOURCES[precision]
    if wanted in variant.tails:
        return bundle.file(variant.tails[wanted])
    if wanted != ONNX_FP16:
        raise ExportError(
            f"{bundle.path} holds no {precision} tail of {variant.id}; add one with: "
            f"aecnn-deploy bundle engines BUNDLE --precision {precision} --out BUNDLE2"
        )
    path = folder / "tail.onnx"
    half_tail(bundle.file(variant.tails["onnxruntime"]), path)
    if samples is not None:
        _check(OnnxRuntimeRunner(path), f"{variant.id} made half", samples, precision)
    return path


def _verify(path: Path, spec: EngineSpec, samples: VariantSamples) -> None:
    _check(engine_of(path, spec), spec.file, samples, spec.precision)


def _check(runner: Runner, name: str, samples: VariantSamples, precision: str) -> None:
    try:
        verify_logits(runner, name, samples.planes, samples.logits, precision)
    except VerificationError as exc:
        raise RunnerError(
            f"{name} was built here and differs from the bundle's samples: {exc.finding}; "
            "serve with --runner onnxruntime"
        ) from exc


def _is_whole(path: Path, expected: EngineSpec) -> bool:
    """Whether ``path`` is the engine ``expected``, unchanged since it was built."""
    try:
        record = msgspec.json.decode(_record_file(path).read_bytes(), type=_Record)
        found = "of another kind" if record.engine != expected else "damaged"
        if record == _Record(expected, _digest(path)):
            logger.info("%s from %s", path.name, path.parent)
            return True
    except FileNotFoundError:
        return False
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = "without a readable record"
    logger.warning("%s is %s: it is built anew", path, found)
    return False


def _record_file(engine: Path) -> Path:
    return engine.with_name(f"{engine.name}.json")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
