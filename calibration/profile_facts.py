"""What every latency profile says of its measurement: releases and time; and what of an earlier one still holds."""

import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import msgspec

from aecnn_deploy import __version__
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import PlanError
from aecnn_deploy.optional import require
from aecnn_deploy.planning.profile_store import profiles_here
from aecnn_deploy.planning.profiles import DeviceProfile, EdgeProfile

_PACKAGES = ("numpy", "pillow", "websockets", "zstandard", "pyjpegls")

P = TypeVar("P", DeviceProfile, EdgeProfile)


def versions() -> dict[str, str]:
    """The releases that a time depends on. Raises MissingExtraError: no ONNX Runtime."""
    found = {
        "aecnn-deploy": __version__,
        "onnxruntime": str(require("onnxruntime", why="measuring latency").__version__),
        "python": platform.python_version(),
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_since(began_s: float) -> float:
    """Of ``time.perf_counter``, rounded for a profile."""
    return round(time.perf_counter() - began_s, 2)


def with_other_variants(bundle: Bundle, profile: P, folder: Path | None = None) -> P:
    """``profile``, and of the kept one that it will replace the variants that were not measured now.

    Where that one was measured with other releases, settings or is damaged, nothing of it is kept.
    """
    try:
        kept = profiles_here(bundle, type(profile), profile.machine, folder)
    except PlanError:
        return profile
    for before in kept:
        if before.versions != profile.versions or before.threads != profile.threads:
            continue
        if isinstance(before, DeviceProfile) and isinstance(profile, DeviceProfile):
            return msgspec.structs.replace(
                profile, heads=before.heads | profile.heads, coders=before.coders | profile.coders
            )
        if isinstance(before, EdgeProfile) and isinstance(profile, EdgeProfile):
            if (before.runner, before.precision) != (profile.runner, profile.precision):
                continue
            return msgspec.structs.replace(
                profile, tails=before.tails | profile.tails, coders=before.coders | profile.coders
            )
    return profile
