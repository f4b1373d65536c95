"""Bytes in any chunks to whole messages."""

from collections.abc import Collection

from aecnn_deploy.errors import WireError
from aecnn_deploy.wire.header import HEADER_BYTES, Header, Kind, Message, checksum
from aecnn_deploy.wire.limits import WireLimits


class MessageReader:
    """Cuts a stream of bytes into messages; does no I/O.

    Any chunking of the same bytes gives the same messages and then the same error. Memory grows with the bytes that
    came, never with a size that a header only claims, and stays below the limits. ``kinds`` are those that may come.
    """

    def __init__(self, limits: WireLimits, *, kinds: Collection[Kind] = frozenset(Kind)) -> None:
        self.limits, self._kinds = limits, kinds
        self._pending = bytearray()  # of the message under way, header included
        self._header: Header | None = None
        self._error: WireError | None = None

    @property
    def at_boundary(self) -> bool:
        """Whether the stream is whole so far: no message is half read, and none was broken."""
        return self._error is None and not self._pending

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """The messages that ``data`` completes.

        Raises WireError (or PayloadTooBigError): the stream is broken, and so is every later call. Messages before
        the break are returned first; the error then comes with the next call, and ``at_boundary`` is false at once.
        """
        if self._error is not None:
            raise self._error.with_traceback(None)
        messages: list[Message] = []
        try:
            self._read(memoryview(data), messages)
        except WireError as exc:
            self._error = exc
            self._pending.clear()
            if not messages:
                raise
        return messages

    def _read(self, data: memoryview, messages: list[Message]) -> None:
        position = 0
        while True:
            wanted = HEADER_BYTES + (self._header.payload_bytes if self._header else 0)
            piece = data[position : position + wanted - len(self._pending)]
            self._pending += piece
            position += len(piece)
            if len(self._pending) < wanted:
                return
            if self._header is None:
                self._header = Header.parse(self._pending, self.limits)
                if self._header.kind not in self._kinds:
                    raise WireError(f"{self._header.kind.name} came from the side that does not send it")
            else:
                messages.append(self._finish(self._header))

    def _finish(self, header: Header) -> Message:
        with memoryview(self._pending) as view, view[: HEADER_BYTES - 4] as fields:
            payload = bytes(view[HEADER_BYTES:])
            found = checksum(fields, payload)
        if found != header.crc32:
            raise WireError(
                f"{header.kind.name} has checksum {header.crc32:08x}, its bytes give {found:08x}; send it again"
            )
        self._pending, self._header = bytearray(), None
        return Message(header, payload)
