"""Decoded photographs, kept on disk: every task of a run, and the next run, maps them instead of decoding again.

KEY.npy     the frames, uint8 (N, H, W, 3)
KEY.json    the files' names in the order of the frames, and what did not decode
.KEY.lock   held by the process that decodes, so that the tasks that start together decode once

KEY is a SHA-256 over the input spec and each file's name, size and time of change. An entry that no data set uses any
more stays until a person removes it.
"""

import errno
import fcntl
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import PIL

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import ImageError, TrainingError
from aecnn_deploy.models.results import write_json
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.source import printable
from aecnn_deploy.training.photographs import Frames
from aecnn_deploy.training.progress import Progress, tell

_FORMAT = 1
_READ = "read photographs"
_CACHE = "cache of decoded frames"
_CHUNK = 256  # files decoded ahead of the one that is stored: 38 MB of frames at 224 pixels


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image file: ``name`` is its POSIX path below the data's root."""

    name: str
    path: Path
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """``frames`` uint8 (N, H, W, 3), the ``names`` of their N files, and ``skipped``: what does not decode, and why."""

    frames: Frames
    names: tuple[str, ...]
    skipped: tuple[str, ...]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    names: tuple[str, ...]
    skipped: tuple[str, ...]


class _CacheUnusableError(Exception):
    """The cache cannot be written or read at all: the work goes on without it."""


def decode_files(files: Sequence[ImageFile], spec: InputSpec, cache: Path | None, progress: Progress) -> Decoded:
    """The frames of ``files`` that decode, in their order: mapped from the folder ``cache``, or decoded into it.

    Mapped frames are copy-on-write: changing them never changes the cache. A damaged entry is made anew, and where
    the disk is full or refuses the frames stay in memory; ``progress`` is told of both. The length of an entry is
    checked, its pixels are not. Raises SettingsError: ``spec`` is impossible.
    """
    if cache is not None:
        try:
            return _through_cache(files, spec, cache, progress)
        except _CacheUnusableError as exc:
            tell(progress, _CACHE, f"{cache} cannot be used, the frames stay in memory: {exc}")
    frames = np.empty((len(files), spec.height, spec.width, 3), np.uint8)
    rows = iter(range(len(files)))

    def keep(frame: Frames) -> None:
        frames[next(rows)] = frame

    entry = _decode(files, spec, keep, progress)
    return Decoded(frames[: len(entry.names)], entry.names, entry.skipped)


def _through_cache(files: Sequence[ImageFile], spec: InputSpec, folder: Path, progress: Progress) -> Decoded:
    key = _key(files, spec)
    found = _find(files, spec, folder, key, progress)
    if found is not None:
        return found
    with ExitStack() as stack:
        with _disk():
            folder.mkdir(parents=True, exist_ok=True)
            _lock(stack.enter_context((folder / f".{key}.lock").open("wb")), progress)
        found = _find(files, spec, folder, key, progress)  # who held the lock has made it
        if found is not None:
            return found
        return _make(files, spec, folder, key, progress)


def _find(files: Sequence[ImageFile], spec: InputSpec, folder: Path, key: str, progress: Progress) -> Decoded | None:
    """The entry; None: there is none, or a damaged one."""
    try:
        found = _read(files, spec, folder, key)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, msgspec.DecodeError) as exc:
        tell(progress, _CACHE, f"{folder / key}.npy is damaged and made anew: {exc}")
        return None
    tell(progress, _READ, f"{len(found.names)} decoded earlier")
    return found


def _read(files: Sequence[ImageFile], spec: InputSpec, folder: Path, key: str) -> Decoded:
    entry = msgspec.json.decode((folder / f"{key}.json").read_bytes(), type=_Entry)
    known = frozenset(entry.names)
    if entry.names != tuple(file.name for file in files if file.name in known):
        raise ValueError("its list of files differs from the data's")
    header = _header(len(entry.names), spec)
    path = folder / f"{key}.npy"
    with path.open("rb") as stored:
        if stored.read(len(header)) != header:
            raise ValueError("its header is of another array")
    got_bytes, expected_bytes = path.stat().st_size, len(header) + len(entry.names) * _frame_bytes(spec)
    if got_bytes != expected_bytes:
        raise ValueError(f"it has {got_bytes} bytes, expected {expected_bytes}")
    shape = (len(entry.names), spec.height, spec.width, 3)
    return Decoded(np.memmap(path, np.uint8, "c", len(header), shape), entry.names, entry.skipped)


def _make(files: Sequence[ImageFile], spec: InputSpec, folder: Path, key: str, progress: Progress) -> Decoded:
    """Decode into the folder, one frame after the other, and map what was written."""
    needed_bytes = len(files) * _frame_bytes(spec)
    with _disk():
        free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise _CacheUnusableError(f"{needed_bytes} bytes are needed and {free_bytes} are free")
    partial = folder / f".{key}.npy"  # one name: what a killed process left is overwritten
    try:
        with _disk():
            stored = partial.open("wb", buffering=0)
        with stored:

            def keep(frame: Frames) -> None:
                with _disk():
                    _write(stored, frame.tobytes())

            with _disk():
                _write(stored, _header(len(files), spec))
            entry = _decode(files, spec, keep, progress)
            if not entry.names:
                return Decoded(np.empty((0, spec.height, spec.width, 3), np.uint8), (), entry.skipped)
            with _disk():
                stored.seek(0)  # numpy pads a header so that it keeps its length when the count of rows changes
                _write(stored, _header(len(entry.names), spec))
                os.fsync(stored.fileno())
        with _disk():
            partial.rename(folder / f"{key}.npy")
            write_json(folder / f"{key}.json", entry)
            return _read(files, spec, folder, key)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _decode(files: Sequence[ImageFile], spec: InputSpec, keep: Callable[[Frames], None], progress: Progress) -> _Entry:
    names: list[str] = []
    skipped: list[str] = []

    def decode(file: ImageFile) -> Frames | ImageError:
        try:
            return read_frame(file.path, spec, name=printable(file.name))
        except ImageError as exc:
            return exc

    progress.stage(_READ, len(files))
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), _CHUNK):
            chunk = files[start : start + _CHUNK]
            for file, result in zip(chunk, pool.map(decode, chunk), strict=True):
                if isinstance(result, ImageError):
                    skipped.append(str(result))
                    progress.step(f"skipped: {result}")
                else:
                    keep(result)
                    names.append(file.name)
                    progress.step()
    return _Entry(tuple(names), tuple(skipped))


def _key(files: Sequence[ImageFile], spec: InputSpec) -> str:
    listed = [(file.name, file.size_bytes, file.mtime_ns) for file in files]
    return hashlib.sha256(msgspec.json.encode([_FORMAT, PIL.__version__, spec, listed])).hexdigest()


def _header(count: int, spec: InputSpec) -> bytes:
    header = io.BytesIO()
    shape = (count, spec.height, spec.width, 3)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _frame_bytes(spec: InputSpec) -> int:
    return spec.height * spec.width * 3


def _write(file: io.RawIOBase, content: bytes) -> None:
    if file.write(content) != len(content):  # a nearly full disk takes a part without an error
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lock(file: BinaryIO, progress: Progress) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tell(progress, _CACHE, "another process decodes the same photographs; waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except (OSError, TrainingError) as exc:
        raise _CacheUnusableError(exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)) from None
