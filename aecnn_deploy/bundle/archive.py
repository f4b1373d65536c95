"""A bundle as one file: a zstd-compressed tar of its folder."""

import hashlib
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import IO, cast

import zstandard

from aecnn_deploy.bundle.manifest import MANIFEST, is_inside
from aecnn_deploy.errors import BundleError, NotABundleError

SUFFIX = ".tar.zst"
_LEVEL, _WINDOW_LOG = 12, 26
_MAX_UNPACKED_BYTES = 8 << 30
_MAX_MEMBERS = 10_000
_MAX_HEADER_BYTES = 1 << 20  # between two members' contents


def is_archive(path: Path) -> bool:
    """Whether ``path`` names a packed bundle."""
    return path.name.endswith(SUFFIX) and not path.is_dir()


def pack(root: Path, out: Path) -> None:
    """Write the folder ``root`` to the archive ``out``, the same bytes for the same files."""
    # Variants share weights: a window as large as many bundles finds them again. Every decoder takes one of 64 MiB.
    parameters = zstandard.ZstdCompressionParameters.from_level(_LEVEL, window_log=_WINDOW_LOG, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    with out.open("wb") as raw, compressor.stream_writer(raw, closefd=False) as stream:
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for file in sorted(path for path in root.rglob("*") if path.is_file()):
                # Not gettarinfo(): it would keep the owner and the time, and turn hard links into links.
                info = tarfile.TarInfo(file.relative_to(root).as_posix())
                info.size = file.stat().st_size
                with file.open("rb") as content:
                    tar.addfile(info, content)
        stream.flush(zstandard.FLUSH_FRAME)
        raw.flush()
        os.fsync(raw.fileno())


def unpack(path: Path, *, fresh: bool = False) -> Path:
    """The folder that holds the archive's content, unpacked once into the user's cache.

    The cache is keyed by the archive's SHA-256, so a changed archive is never mistaken for an old one. ``fresh``
    unpacks again and replaces what the cache holds. Raises NotABundleError: no such file, not an archive, a member that
    leads out, or too large. Raises BundleError: the cache cannot be written.
    """
    if not path.is_file():
        raise NotABundleError(path, "there is no such file")
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aecnn-deploy" / "bundles"
    target = cache / digest[:32]
    if not fresh and (target / MANIFEST).is_file():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=cache))
        try:
            _extract(path, partial)
            partial.chmod(0o755)
            if fresh or not (target / MANIFEST).is_file():
                shutil.rmtree(target, ignore_errors=True)
            try:
                partial.rename(target)
            except OSError:
                if not (target / MANIFEST).is_file():  # else another process was first
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as exc:
        raise BundleError(f"cannot unpack {path} into {cache}: {exc.strerror or exc}; set XDG_CACHE_HOME") from None
    return target


def _extract(path: Path, into: Path) -> None:
    """Write the archive's plain files under ``into``.

    By hand and not by ``tar.extract(filter="data")``, which Python before 3.11.4 lacks: a Raspberry Pi may have 3.11.2.
    """
    total = members = 0
    try:
        with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
            source = _Bounded(stream)
            with tarfile.open(fileobj=cast(IO[bytes], source), mode="r|") as tar:
                for member in tar:
                    total, members = total + max(member.size, 0), members + 1
                    if total > _MAX_UNPACKED_BYTES or members > _MAX_MEMBERS:
                        raise NotABundleError(
                            path, f"it unpacks to over {_MAX_UNPACKED_BYTES} bytes or {_MAX_MEMBERS} files"
                        )
                    source.allow(member.size)
                    _extract_member(path, tar, member, into)
    except (zstandard.ZstdError, tarfile.TarError, EOFError, ValueError, OverflowError) as exc:
        raise NotABundleError(path, f"it does not unpack ({str(exc).partition(chr(10))[0]})") from None
    if not (into / MANIFEST).is_file():
        raise NotABundleError(path, f"it has no {MANIFEST} at its top")


def _extract_member(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> None:
    name = member.name.removeprefix("./")  # as "tar -C bundle -c ." writes them
    if member.isdir():
        return  # a file's folder is made with the file
    if not is_inside(name):
        raise NotABundleError(path, f"its member {member.name!r} lies outside the bundle")
    content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if content is None:
        raise NotABundleError(path, f"its member {member.name!r} is no plain file")
    target = into / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        shutil.copyfileobj(content, out, 1 << 20)


class _Bounded:
    """The tar stream, which may not grow without end between two members: tarfile keeps long headers in memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._left = stream, _MAX_HEADER_BYTES

    def allow(self, content_bytes: int) -> None:
        self._left = content_bytes + _MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError(f"a header of over {_MAX_HEADER_BYTES} bytes")
        return data
