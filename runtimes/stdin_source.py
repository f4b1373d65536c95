"""Standard input as a source: one image, JPEGs one after the other (MJPEG), or a path on each line."""

import io
import os
import select
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from aecnn_deploy.errors import SettingsError, SourceError
from aecnn_deploy.runtimes.frames import MAX_FILE_BYTES
from aecnn_deploy.runtimes.jpeg_stream import START, JpegSplitter
from aecnn_deploy.runtimes.source import Source, SourceImage, SourceSettings, Thinner, shown

STDIN = "-"

_MAX_LINE_BYTES = 8192
_CHUNK_BYTES = 1 << 16
_TEXT_IMAGES = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")  # netpbm's first line is plain ASCII


class StdinSource(Source):
    """What comes on ``stdin``, told by its first bytes. Lines and JPEGs are taken as they come."""

    def __init__(self, stdin: BinaryIO, settings: SourceSettings) -> None:
        super().__init__(STDIN)
        self._settings = settings
        self._input = _Input(stdin)
        self._first: bytes | None = None  # the bytes that tell what it is

    @property
    def live(self) -> bool:
        """Whether JPEGs come. Waits for the first bytes: before them nobody can tell."""
        return self._peek().startswith(START)

    def close(self) -> None:
        super().close()
        self._input.wake()

    def _images(self) -> Iterator[SourceImage]:
        first = self._peek()
        if self._closed.is_set():
            return
        if not first:
            raise SourceError("standard input is empty; it must hold images, or one path a line")
        if first.startswith(START):
            yield from self._jpegs(first)
            return
        if self._settings.fps is not None:
            raise SettingsError("--fps goes with JPEGs on standard input; it holds one image, or paths")
        if _is_image(first.partition(b"\n")[0] + b"\n"):
            yield SourceImage(STDIN, self._whole(first))
        else:
            yield from self._paths(first)

    def _peek(self) -> bytes:
        """The first line, or less of a JPEG; empty: there is nothing, or ``close`` came first."""
        if self._first is None:
            head = b""
            while not head.startswith(START) and b"\n" not in head and len(head) < _MAX_LINE_BYTES:
                more = self._input.read()
                if not more:
                    break
                head += more
            self._first = head
        return self._first

    def _jpegs(self, first: bytes) -> Iterator[SourceImage]:
        splitter, thinner, count = JpegSplitter(), Thinner(self._settings.fps), 0
        data, last_s = first, time.perf_counter()
        while data:
            for jpeg in splitter.feed(data):
                count, last_s = count + 1, time.perf_counter()
                if self._closed.is_set():
                    return
                if thinner.takes(last_s):
                    yield SourceImage(STDIN if count == 1 else f"{STDIN}#{count}", jpeg, last_s)
                    last_s = time.perf_counter()  # the reader's own time is no stall
            left_s = self._settings.stall_s - (time.perf_counter() - last_s)
            try:
                data = self._input.read(max(0.0, left_s))
            except TimeoutError:
                raise SourceError(
                    f"standard input: no frame for {self._settings.stall_s:g} s; is the camera's program still running?"
                ) from None
        rest = splitter.rest()
        if self._closed.is_set() or not rest:
            return
        if count:
            raise SourceError(f"standard input ends within a JPEG, after {count} whole ones")
        yield SourceImage(STDIN, rest)  # one image that was cut: its decoder says what is missing

    def _whole(self, first: bytes) -> bytes:
        content = bytearray(first)
        while more := self._input.read():
            content += more
            if len(content) > MAX_FILE_BYTES:
                raise SourceError(f"the image on standard input is over the limit of {MAX_FILE_BYTES} bytes")
        return bytes(content)

    def _paths(self, first: bytes) -> Iterator[SourceImage]:
        found = False
        rest, ended = first, False
        while not ended and not self._closed.is_set():
            *lines, rest = rest.split(b"\n")
            if len(rest) > _MAX_LINE_BYTES:
                raise SourceError(f"a line on standard input is over the limit of {_MAX_LINE_BYTES} bytes")
            more = b"" if lines else self._input.read()  # not before the lines that are there were taken
            if not lines and not more:
                lines, ended = [rest], True
            for line in lines:
                if self._closed.is_set():
                    return
                if path := os.fsdecode(line.strip()):
                    found = True
                    yield SourceImage(shown(path), Path(path))
            rest += more
        if not found and not self._closed.is_set():
            raise SourceError("standard input holds only empty lines; it must hold images, or one path a line")


class _Input:
    """Reads what there is of a file descriptor, and can be woken; of a stream without one, what it gives."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._fd: int | None = None
        with suppress(OSError, io.UnsupportedOperation):
            self._fd = stream.fileno()
        self._woken, self._wake = os.pipe()

    def read(self, timeout_s: float | None = None) -> bytes:
        """Some bytes; empty: the end, or woken. Raises TimeoutError: nothing came for ``timeout_s``."""
        if self._fd is None:
            return self._stream.read(_CHUNK_BYTES)
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(None if timeout_s is None else timeout_s * 1e3)]
        if not ready:
            raise TimeoutError
        # Not through the stream's own buffer: what waits in there, poll would not see.
        return b"" if self._woken in ready else os.read(self._fd, _CHUNK_BYTES)

    def wake(self) -> None:
        """End this and every later ``read``."""
        os.write(self._wake, b"x")

    def __del__(self) -> None:
        os.close(self._woken)
        os.close(self._wake)


def _is_image(first_line: bytes) -> bool:
    """Whether the first bytes are an image's and not a path's: no path holds a NUL, and ours are UTF-8."""
    if b"\0" in first_line or first_line.rstrip() in _TEXT_IMAGES:
        return True
    try:
        first_line.decode()
    except UnicodeDecodeError:
        return True
    return False
