"""Which of a variant's heads a device runs: float32 or int8, whichever is faster on its processor."""

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from aecnn_deploy.bundle.manifest import FP32, INT8, VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import BundleError, SettingsError
from aecnn_deploy.optional import require
from aecnn_deploy.planning.machine import describe_processor
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

logger = logging.getLogger("aecnn_deploy.device")

AUTO = "auto"
PRECISIONS = (FP32, INT8)
_FORMAT = 1
_ROUNDS = 15
_WARM_UP = 3
_SHORTEST_S = 0.3  # of all rounds of a head: what takes microseconds is timed more often
_MOST_ROUNDS = 500


class DeviceProfile(msgspec.Struct, frozen=True):
    """How long a bundle's heads take on one machine: variant -> precision -> milliseconds of one frame."""

    format: int
    bundle_id: str
    machine: str
    onnxruntime: str
    threads: int
    heads: dict[str, dict[str, float]]


def head_times(heads: Mapping[str, Path], *, threads: int, variant: str | None = None) -> dict[str, float]:
    """Median milliseconds of one frame for each of ``heads``, run in turns. Raises RunnerError: one does not load."""
    runners = {name: OnnxRuntimeRunner(path, threads=threads, variant=variant) for name, path in heads.items()}
    times: dict[str, list[float]] = {name: [] for name in heads}
    try:
        for runner in runners.values():
            runner.activate()
        frame = np.random.default_rng(0).integers(0, 256, (1, *next(iter(runners.values())).input_shape), np.uint8)
        for _ in range(_WARM_UP):
            for runner in runners.values():
                runner.infer(frame)
        began_s = time.perf_counter()
        least_s = _SHORTEST_S * len(runners)
        while len(next(iter(times.values()))) < _ROUNDS or (
            time.perf_counter() - began_s < least_s and len(next(iter(times.values()))) < _MOST_ROUNDS
        ):
            for name, runner in runners.items():
                start_s = time.perf_counter()
                runner.infer(frame)
                times[name].append(time.perf_counter() - start_s)
    finally:
        for runner in runners.values():
            runner.deactivate()
    return {name: round(float(np.median(values)) * 1e3, 4) for name, values in times.items()}


def time_bundle(bundle: Bundle, *, threads: int = 0, variants: tuple[str, ...] = ()) -> DeviceProfile:
    """Time every head of ``variants`` (none: all) on this machine. Raises RunnerError, BundleError: no such variant."""
    chosen = [bundle.variant(name) for name in variants] or list(bundle.manifest.variants)
    heads = {
        spec.id: head_times(
            {precision: bundle.file(file) for precision, file in spec.head_files.items()},
            threads=threads,
            variant=spec.id,
        )
        for spec in chosen
    }
    return DeviceProfile(_FORMAT, bundle.id, describe_processor(), _version(), threads, heads)


def write_profile(profile: DeviceProfile) -> Path:
    """Keep ``profile`` for this user, with what was timed of other variants. Raises BundleError: cannot be written."""
    before = read_profile(profile.bundle_id, profile.threads)
    if before is not None:
        profile = msgspec.structs.replace(profile, heads=before.heads | profile.heads)
    path = _profile_path(profile.bundle_id, profile.threads)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n")
        partial.replace(path)
    except OSError as exc:
        raise BundleError(f"cannot write {path}: {exc.strerror or exc}; set XDG_CACHE_HOME") from None
    return path


def read_profile(bundle_id: str, threads: int) -> DeviceProfile | None:
    """What was timed for this bundle on this machine, with its ONNX Runtime; None: nothing that still holds."""
    path = _profile_path(bundle_id, threads)
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=DeviceProfile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as exc:
        logger.warning("%s cannot be read (%s); run: aecnn-deploy calibrate device", path, exc)
        return None
    expected = (_FORMAT, bundle_id, describe_processor(), _version(), threads)
    if (profile.format, profile.bundle_id, profile.machine, profile.onnxruntime, profile.threads) != expected:
        logger.info("%s was timed with another processor or ONNX Runtime; run: aecnn-deploy calibrate device", path)
        return None
    return profile


def profiled_threads(bundle_id: str, onnxruntime: str) -> list[int]:
    """For which counts of threads the heads were timed on this machine with the release ``onnxruntime``.

    It is not imported. 0 stands for every core. A profile that cannot be read counts as none.
    """
    found = []
    for path in sorted(_profile_path(bundle_id, 0).parent.glob(_profile_name(bundle_id, "*"))):
        try:
            profile = msgspec.json.decode(path.read_bytes(), type=DeviceProfile)
        except (OSError, msgspec.DecodeError, msgspec.ValidationError):
            continue
        if (profile.format, profile.machine, profile.onnxruntime) == (_FORMAT, describe_processor(), onnxruntime):
            found.append(profile.threads)
    return sorted(found)


def choose_head(bundle: Bundle, spec: VariantSpec, wanted: str = AUTO, *, threads: int = 0) -> tuple[str, str]:
    """The precision and the file of the head to run.

    ``wanted`` "auto": the faster one, as ``calibrate device`` found on this machine; else what the bundle takes by
    default. Raises SettingsError: an unknown precision, or one that the bundle has no head of.
    """
    check_precision(wanted)
    heads = spec.head_files
    if wanted != AUTO:
        if wanted not in heads:
            raise SettingsError(
                f"{bundle.path} has no {wanted} head of {spec.id}, it has {', '.join(heads)}; "
                f"export it again with --head-precision {wanted}"
            )
        return wanted, heads[wanted]
    default = next(precision for precision, file in heads.items() if file == spec.head)
    if len(heads) > 1 and (profile := read_profile(bundle.id, threads)) is not None:
        times = {name: ms for name, ms in profile.heads.get(spec.id, {}).items() if name in heads}
        default = min(times, key=times.__getitem__, default=default)
    return default, heads[default]


def check_precision(wanted: str) -> None:
    """Raises SettingsError: no precision that heads have."""
    if wanted not in (AUTO, *PRECISIONS):
        raise SettingsError(f"no head precision {wanted!r}; choose one of {', '.join((AUTO, *PRECISIONS))}")


def _version() -> str:
    version: str = require("onnxruntime", why="running heads").__version__
    return version


def _profile_path(bundle_id: str, threads: int) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aecnn-deploy" / "devices"
    return cache / _profile_name(bundle_id, str(threads))


def _profile_name(bundle_id: str, threads: str) -> str:
    # One file a machine too: homes are shared over networks.
    host = hashlib.sha256(describe_processor().encode()).hexdigest()[:8]
    return f"{bundle_id[:32]}-{host}-t{threads}.json"
