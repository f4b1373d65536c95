"""Which of a variant's heads a device runs: float32 or int8, whichever is faster on its processor."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aecnn_deploy.bundle.manifest import FP32, INT8, VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import SettingsError
from aecnn_deploy.optional import require
from aecnn_deploy.planning.machine import this_machine
from aecnn_deploy.planning.profile_store import profiles_here
from aecnn_deploy.planning.profiles import DeviceProfile
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

logger = logging.getLogger("aecnn_deploy.device")

AUTO = "auto"
PRECISIONS = (FP32, INT8)
_ROUNDS = 15
_WARM_UP = 3
_SHORTEST_S = 0.3  # of all rounds of a head: what takes microseconds is timed more often
_MOST_ROUNDS = 500


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


def profile_here(bundle: Bundle, threads: int) -> DeviceProfile | None:
    """What was measured of ``bundle`` on this machine with so many threads and this release of ONNX Runtime.

    None: nothing that still holds. A damaged profile is warned of, and counts as none.
    """
    for profile in _profiles(bundle):
        if profile.threads != threads:
            continue
        if profile.versions.get("onnxruntime") == _version():
            return profile
        logger.info("%s was timed with another ONNX Runtime; run: aecnn-deploy calibrate device", bundle.path)
    return None


def profiled_threads(bundle: Bundle, onnxruntime: str) -> list[int]:
    """For which counts of threads ``bundle`` was timed on this machine with the release ``onnxruntime``.

    It is not imported. 0 stands for every core. A damaged profile counts as none.
    """
    return sorted(
        {each.threads for each in _profiles(bundle) if each.versions.get("onnxruntime") == onnxruntime and each.heads}
    )


def faster_head(spec: VariantSpec, profile: DeviceProfile | None) -> str:
    """The precision of ``spec``'s head that was faster in ``profile``; the bundle's default where that says nothing."""
    heads = spec.head_files
    default = next(precision for precision, file in heads.items() if file == spec.head)
    known = profile.heads.get(spec.id, {}) if profile is not None else {}
    times = {precision: known[precision].p50_ms for precision in heads if precision in known}
    return min(times, key=times.__getitem__, default=default)


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
    precision = faster_head(spec, profile_here(bundle, threads) if len(heads) > 1 else None)
    return precision, heads[precision]


def check_precision(wanted: str) -> None:
    """Raises SettingsError: no precision that heads have."""
    if wanted not in (AUTO, *PRECISIONS):
        raise SettingsError(f"no head precision {wanted!r}; choose one of {', '.join((AUTO, *PRECISIONS))}")


def _version() -> str:
    version: str = require("onnxruntime", why="running heads").__version__
    return version


def _profiles(bundle: Bundle) -> list[DeviceProfile]:
    """What was measured of ``bundle`` on this machine, less profiles that are damaged: a device runs all the same."""
    return profiles_here(bundle, DeviceProfile, this_machine(), damaged=lambda error: logger.warning("%s", error))
