"""Memory for the models, and room for what is kept in the cache folder."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from aecnn_deploy.bundle.archive import is_archive
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.runtimes.diagnosis.finding import Finding, ok, problem, warning
from aecnn_deploy.runtimes.diagnosis.host import Host, whole_number
from aecnn_deploy.runtimes.diagnosis.subject import Subject

MIB = 1 << 20
# Python, NumPy and ONNX Runtime without a model; and what a model takes beside its file: the parsed graph and weights
# in the order that the kernels want. Both rounded up from measured runs, so an estimate.
_BASE_BYTES = 160 * MIB
_TIMES_FILE = 3
_LEAST_FREE_BYTES = 100 * MIB  # of the cache's file system
_UNPACKED_TIMES = 4  # an unpacked bundle against its archive


def available_bytes(host: Host) -> tuple[int, int] | None:
    """(memory that may be taken now, free swap), the control groups' limit included; None: not told."""
    fields = {}
    for line in (host.text("/proc/meminfo") or "").splitlines():
        words = line.replace(":", " ").split()
        kibibytes = whole_number(words[1]) if len(words) >= 2 else None
        if kibibytes is not None and kibibytes >= 0:
            fields[words[0]] = kibibytes * 1024
    if "MemAvailable" not in fields:
        return None
    free = fields["MemAvailable"]
    for line in (host.text("/proc/self/cgroup") or "").splitlines():
        if line.startswith("0::"):
            path = PurePosixPath(line[3:] or "/")
            for level in (path, *path.parents):
                folder = f"/sys/fs/cgroup/{str(level).strip('/')}"
                most, used = host.number(f"{folder}/memory.max"), host.number(f"{folder}/memory.current")
                if most is not None and used is not None:
                    free = min(free, max(0, most - used))
    return free, fields.get("SwapFree", 0)


def needed_bytes(bundle: Bundle) -> int:
    """Roughly what a device takes with the bundle's largest head and the unsplit model loaded."""
    files = bundle.manifest.files
    heads = [files[name].bytes for spec in bundle.manifest.variants for name in spec.head_files.values()]
    return _BASE_BYTES + _TIMES_FILE * (max(heads) + files[bundle.manifest.full].bytes)


def check_memory(subject: Subject) -> Iterator[Finding]:
    """Whether the bundle's models fit."""
    found = available_bytes(subject.host)
    if found is None:
        return
    free, swap = found
    text = f"{free // MIB:,} MiB available, {swap // MIB:,} MiB of swap free"
    need = _BASE_BYTES if subject.bundle is None else needed_bytes(subject.bundle)
    what = "Python and ONNX Runtime" if subject.bundle is None else "the largest head and the unsplit model"
    text += f"; {what} need about {need // MIB:,} MiB (an estimate from file sizes)"
    if free >= need:
        yield ok("memory", text)
    elif free + swap >= need:
        yield warning("memory", text, "close other programs: what is swapped out makes every frame slow")
    else:
        yield problem("memory", text, "close other programs, add swap, or take a bundle with a smaller backbone")


def check_cache(subject: Subject) -> Iterator[Finding]:
    """Whether the cache folder can be written, and has room."""
    environment = subject.host.environment
    base = environment.get("XDG_CACHE_HOME")
    cache = (Path(base) if base else Path.home() / ".cache") / "aecnn-deploy"
    place = cache
    while not place.exists() and place != place.parent:
        place = place.parent
    move = "set XDG_CACHE_HOME to a folder that this user may write and that has room"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield problem("cache", f"{cache} cannot be written: {place} is not this user's to write", move)
        return
    free = shutil.disk_usage(place).free
    text = f"{cache}: {free // MIB:,} MiB free"
    named = Path(subject.settings.bundle or "")
    need = _LEAST_FREE_BYTES
    if is_archive(named) and named.is_file():
        need += _UNPACKED_TIMES * named.stat().st_size
    if free < need:
        yield warning("cache", f"{text}, about {need // MIB:,} are wanted", f"delete old files there, or {move}")
    else:
        yield ok("cache", text)
