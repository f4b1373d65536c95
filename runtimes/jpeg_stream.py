"""JPEGs that follow each other in a stream of bytes: of a camera's program, or of a server's multipart answer.

A protocol core without I/O: any chunking of the same bytes gives the same JPEGs. Each is found by its own markers, so
that it is complete with its last byte; what stands between two (a multipart boundary, headers, padding) is skipped.
"""

import re

from aecnn_deploy.errors import SourceError
from aecnn_deploy.runtimes.frames import MAX_FILE_BYTES

START = b"\xff\xd8"

_MAX_BETWEEN_BYTES = 1 << 20  # headers of a part are some hundred bytes
_END, _SCAN = 0xD9, 0xDA
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
# In entropy-coded data 0 follows 0xFF (stuffed), or it is a restart marker or a fill byte; else another marker begins.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class JpegSplitter:
    """Cuts a stream into JPEGs: ``feed`` it as bytes come.

    A JPEG that breaks off, because another one begins within it, is given as it is: its decoder will name it.
    """

    def __init__(self, *, limit_bytes: int = MAX_FILE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._data = bytearray()
        self._skipped = 0  # bytes since the last JPEG
        self._inside = False  # a JPEG begins at the first byte of _data
        self._at = 0  # where in it the next marker is looked for
        self._scanning = False  # entropy-coded data goes on there

    def feed(self, data: bytes) -> list[bytes]:
        """The JPEGs that are complete with ``data``. Raises SourceError: one is over the limit, or none comes."""
        self._data += data
        found = []
        while self._find_start():
            size = self._find_end()
            if size is None:
                if len(self._data) > self._limit_bytes:
                    raise SourceError(f"a JPEG in the stream is over the limit of {self._limit_bytes} bytes")
                break
            found.append(self._cut(size))
        return found

    def rest(self) -> bytes:
        """The beginning of a JPEG whose end has not come."""
        return bytes(self._data) if self._inside else b""

    def _find_start(self) -> bool:
        """Whether a JPEG begins at the first byte; what stands before it is dropped."""
        if self._inside:
            return True
        at = self._data.find(START)
        self._inside = at >= 0
        drop = at if at >= 0 else max(0, len(self._data) - 1)  # the last byte may be the first of START
        self._skipped += drop
        if self._skipped > _MAX_BETWEEN_BYTES:
            raise SourceError(f"no JPEG begins within {_MAX_BETWEEN_BYTES} bytes of the stream; it is no MJPEG")
        del self._data[:drop]
        self._at, self._scanning = len(START), False
        return self._inside

    def _find_end(self) -> int | None:
        """The size of the JPEG at the first byte; None: more bytes have to come. Goes on where it stopped."""
        data = self._data
        while True:
            if self._scanning:
                match = _MARKER.search(data, self._at)
                if match is None:
                    self._at = max(self._at, len(data) - 1)
                    return None
                self._at, self._scanning = match.start(), False
            if len(data) < self._at + 2:
                return None
            if data[self._at] != 0xFF:
                return self._next_start()  # no marker where one must be: it is damaged
            marker = data[self._at + 1]
            if marker == _END:
                return self._at + 2
            if data[self._at : self._at + 2] == START:
                return self._at  # it broke off, and this is the next one
            if marker == 0xFF or marker in _ALONE:
                self._at += 1 if marker == 0xFF else 2
                continue
            if len(data) < self._at + 4:
                return None
            size = int.from_bytes(data[self._at + 2 : self._at + 4], "big")
            if size < 2:
                return self._next_start()
            if len(data) < self._at + 2 + size:
                return None
            self._at += 2 + size
            self._scanning = marker == _SCAN

    def _next_start(self) -> int | None:
        at = self._data.find(START + b"\xff", len(START))
        return at if at >= 0 else None

    def _cut(self, size: int) -> bytes:
        jpeg = bytes(memoryview(self._data)[:size])
        del self._data[:size]
        self._inside, self._skipped = False, 0
        return jpeg
