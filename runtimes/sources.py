"""Where images come from: a folder, a file, or standard input. Names are listed first, pixels are read one by one."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aecnn_deploy.errors import SourceError
from aecnn_deploy.runtimes.frames import MAX_FILE_BYTES

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
STDIN = "-"

_MAX_LINE_BYTES = 8192
_TEXT_IMAGES = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")  # netpbm's first line is plain ASCII


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image: its name for a person, and where its bytes are."""

    name: str
    content: Path | bytes


def open_source(source: str, stdin: BinaryIO) -> Iterator[SourceImage]:
    """The images of ``source``: a folder (recursive, sorted), a file, or ``-`` for ``stdin``.

    ``stdin`` holds one image's bytes or, when it is text, one path a line; lines are taken as they come, so that a
    camera's script can go on writing them. Raises SourceError: at once when ``source`` does not exist or its folder
    holds no image, while iterating when ``stdin`` is empty.
    """
    if source == STDIN:
        return _from_stdin(stdin)
    path = Path(source)
    if path.is_dir():
        return iter(_in_folder(path))
    if not path.exists():
        raise SourceError(f"there is no file or folder {source}; give a folder, an image file, or - for stdin")
    return iter([SourceImage(_shown(source), path)])


def _in_folder(folder: Path) -> list[SourceImage]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise SourceError(f"the folder {folder} holds no image; known suffixes are {', '.join(sorted(SUFFIXES))}")
    return [SourceImage(_shown(path), path) for path in files]


def _from_stdin(stdin: BinaryIO) -> Iterator[SourceImage]:
    line = stdin.readline(_MAX_LINE_BYTES)
    if not line:
        raise SourceError("standard input is empty; it must hold one image, or one path a line")
    if _is_image(line):
        content = line + stdin.read(MAX_FILE_BYTES + 1 - len(line))
        if len(content) > MAX_FILE_BYTES:
            raise SourceError(f"the image on standard input is over the limit of {MAX_FILE_BYTES} bytes")
        yield SourceImage(STDIN, content)
        return
    found = False
    while line:
        path = os.fsdecode(line.strip())
        if path:
            found = True
            yield SourceImage(_shown(path), Path(path))
        line = stdin.readline(_MAX_LINE_BYTES)
    if not found:
        raise SourceError("standard input holds only empty lines; it must hold one image, or one path a line")


def _is_image(first_line: bytes) -> bool:
    """Whether the first bytes are an image's and not a path's: no path holds a NUL, and ours are UTF-8."""
    if b"\0" in first_line or first_line.rstrip() in _TEXT_IMAGES:
        return True
    try:
        first_line.decode()
    except UnicodeDecodeError:
        return True
    return False


def _shown(path: Path | str) -> str:
    """``path`` as text that can be printed: a file name may hold bytes that are no UTF-8."""
    return os.fsencode(path).decode(errors="replace")
