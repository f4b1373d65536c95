"""Where profiles are kept: in a folder beside the bundle, or, where that cannot be written, in the user's cache.

The bundle itself stays as it is: a file more in it would be another bundle.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import PlanError
from aecnn_deploy.planning.profiles import (
    FORMAT,
    AnyProfile,
    DeviceProfile,
    EdgeProfile,
    FeatureProfile,
    LinkProfile,
    Machine,
)
from aecnn_deploy.zoo import zoo_bundles

_MAX_BYTES = 8 << 20
_KINDS: dict[type, str] = {
    DeviceProfile: "device",
    EdgeProfile: "edge",
    LinkProfile: "link",
    FeatureProfile: "features",
}
_DECODER: msgspec.json.Decoder[AnyProfile] = msgspec.json.Decoder(AnyProfile)

P = TypeVar("P", DeviceProfile, EdgeProfile, LinkProfile, FeatureProfile)


def profile_folder(bundle: Bundle) -> Path:
    """``PATH.profiles`` beside the bundle; of one that came with the package the cache: nothing is installed there."""
    if bundle.path in zoo_bundles().values():
        return cache_folder(bundle)
    return bundle.path.with_name(bundle.path.name + ".profiles")


def cache_folder(bundle: Bundle) -> Path:
    """Where profiles are kept of a bundle whose own folder cannot be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "aecnn-deploy" / "profiles" / bundle.id[:32]


def write_profile(bundle: Bundle, profile: AnyProfile, folder: Path | None = None) -> Path:
    """Keep ``profile``; one of the same machine, kind and settings is replaced. Where it is.

    ``folder``: None is beside the bundle, or the cache. Raises PlanError: it cannot be written.
    """
    content = msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n"
    folders = _folders(bundle, folder)
    error: OSError | None = None
    for place in folders:
        path = place / _file_name(profile)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        try:
            place.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as exc:
            error = exc
            continue
        return path
    assert error is not None
    raise _unwritable(folders[-1], error)


def check_writable(bundle: Bundle, folder: Path | None = None) -> None:
    """Raises PlanError: ``write_profile`` would not find a place; asked before a measurement that would be lost."""
    error: OSError | None = None
    folders = _folders(bundle, folder)
    for place in folders:
        probe = place / f".probe-{os.getpid()}"
        try:
            place.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as exc:
            error = exc
            continue
        return
    assert error is not None
    raise _unwritable(folders[-1], error)


def read_profile(path: Path) -> AnyProfile:
    """Raises PlanError: it cannot be read, or is no profile of this version's format."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise PlanError(f"{path} has over {_MAX_BYTES} bytes, which no profile has; is it another file?")
        profile = _DECODER.decode(path.read_bytes())
    except OSError as exc:
        raise PlanError(f"cannot read the profile {path}: {exc.strerror or exc}") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise PlanError(f"{path} is no profile: {exc}; make one with: aecnn-deploy calibrate") from None
    if profile.format != FORMAT:
        raise PlanError(
            f"{path} is of profile format {profile.format}, this version reads {FORMAT}; measure again with: "
            f"aecnn-deploy calibrate {_KINDS[type(profile)]}"
        )
    return profile


def check_profile(profile: AnyProfile, kind: type[P], bundle: Bundle, where: Path) -> P:
    """``profile`` as a ``kind``. Raises PlanError: it is of another kind or another bundle."""
    if not isinstance(profile, kind):
        raise PlanError(f"{where} is a profile of kind {_KINDS[type(profile)]}, expected {_KINDS[kind]}")
    if profile.bundle_id != bundle.id:
        raise PlanError(
            f"{where} was measured with bundle {profile.bundle_id[:16]}…, {bundle.path} is {bundle.id[:16]}…; "
            f"measure again with: aecnn-deploy calibrate {_KINDS[kind]} {bundle.path}"
        )
    return profile


def find_profiles(
    bundle: Bundle, kind: type[P], folder: Path | None = None, damaged: Callable[[PlanError], None] | None = None
) -> list[tuple[Path, P]]:
    """The profiles of ``kind`` that are kept of this bundle, those beside it first.

    Those of another bundle, which stood here before it, are left out. ``damaged`` is told of each that cannot be read,
    and the others count. Raises PlanError: one is damaged, and nobody is told.
    """
    folders = _folders(bundle, folder)
    found: list[tuple[Path, P]] = []
    for place in folders:
        for path in sorted(place.glob(f"{_KINDS[kind]}-*.json")):
            try:
                profile = read_profile(path)
            except PlanError as exc:
                if damaged is None:
                    raise
                damaged(exc)
                continue
            if isinstance(profile, kind) and profile.bundle_id == bundle.id:
                found.append((path, profile))
    return found


def the_profile(bundle: Bundle, kind: type[P], file: Path | None = None, folder: Path | None = None) -> P:
    """The profile in ``file``, or the only one of ``kind`` that is kept of this bundle.

    Raises PlanError: there is none, or there are several, or it is of another bundle.
    """
    name = _KINDS[kind]
    if file is not None:
        return check_profile(read_profile(file), kind, bundle, file)
    found = find_profiles(bundle, kind, folder)
    if not found:
        where = folder if folder is not None else profile_folder(bundle)
        raise PlanError(
            f"no {name} profile of this bundle in {where}; run 'aecnn-deploy calibrate {name}' on that machine, and "
            "copy the file it writes here"
        )
    if len(found) > 1:
        files = ", ".join(str(path) for path, _ in found)
        raise PlanError(f"there are {len(found)} {name} profiles: {files}; choose one with --{name}")
    return found[0][1]


def profiles_here(
    bundle: Bundle,
    kind: type[P],
    machine: Machine,
    folder: Path | None = None,
    damaged: Callable[[PlanError], None] | None = None,
) -> list[P]:
    """The kept profiles of ``kind`` that were measured on ``machine``. ``damaged``, raises: as ``find_profiles``."""
    return [profile for _, profile in find_profiles(bundle, kind, folder, damaged) if profile.machine == machine]


def _unwritable(folder: Path, error: OSError) -> PlanError:
    return PlanError(f"cannot write a profile to {folder}: {error.strerror or error}; give a folder by --profiles")


def _folders(bundle: Bundle, folder: Path | None) -> list[Path]:
    """Where to look and to write, in this order."""
    return [folder] if folder is not None else list(dict.fromkeys((profile_folder(bundle), cache_folder(bundle))))


def _file_name(profile: AnyProfile) -> str:
    """The same for what replaces each other: kind, bundle, machine and settings."""
    match profile:
        case DeviceProfile():
            settings = f"t{profile.threads}"
        case EdgeProfile():
            settings = f"t{profile.threads}-{profile.runner}-{profile.precision}"
        case LinkProfile():
            settings = hashlib.sha256(profile.edge.encode()).hexdigest()[:8]
        case _:
            return f"features-{profile.bundle_id[:16]}.json"
    host = "".join(mark if mark.isalnum() or mark in "-_" else "_" for mark in profile.machine.host)[:32]
    digest = hashlib.sha256(profile.machine.processor.encode()).hexdigest()[:8]
    return f"{_KINDS[type(profile)]}-{profile.bundle_id[:16]}-{host}-{digest}-{settings}.json"
