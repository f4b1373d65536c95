"""The 36 bytes before every payload: docs/wire-format.md, table 1."""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from aecnn_deploy.errors import PayloadTooBigError, WireError
from aecnn_deploy.wire.limits import WireLimits

WIRE_VERSION = 1
MAGIC = b"AECN"

_FIELDS = struct.Struct(">4sBBHQHBBIII")  # all but the checksum
_CRC = struct.Struct(">I")
HEADER_BYTES = _FIELDS.size + _CRC.size


class Kind(IntEnum):
    """What a message is. The numbers stand in every message and never change."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    INFER = 4
    RESULT = 5
    FAILED = 6
    GOODBYE = 7


ABOUT_A_REQUEST = frozenset({Kind.INFER, Kind.RESULT, Kind.FAILED})  # the kinds with a request id


@dataclass(frozen=True, slots=True)
class Header:
    """One message's header. ``variant``, ``coder``, ``deadline_ms`` and ``raw_bytes`` are an INFER's, else 0."""

    kind: Kind
    request_id: int
    variant: int
    coder: int
    deadline_ms: int
    payload_bytes: int
    raw_bytes: int
    crc32: int

    @classmethod
    def parse(cls, data: bytes | bytearray, limits: WireLimits) -> Self:
        """The header in the first 36 bytes of ``data``; its checksum is compared once the payload is there.

        Raises WireError: another magic, version or kind, a field that breaks the rules. PayloadTooBigError: a size
        over ``limits``.
        """
        magic, version, kind, flags, request_id, variant, coder, reserved, deadline_ms, payload_bytes, raw_bytes = (
            _FIELDS.unpack_from(data)
        )
        if magic != MAGIC:
            raise WireError(f"message begins with {magic!r}, expected {MAGIC!r}; the peer speaks another protocol")
        if version != WIRE_VERSION:
            raise WireError(
                f"message has wire version {version}, this half reads {WIRE_VERSION}; upgrade the older half"
            )
        if kind not in Kind._value2member_map_:
            raise WireError(f"message has the unknown kind {kind}; wire version {WIRE_VERSION} has 1 to {max(Kind)}")
        if flags or reserved:
            raise WireError(f"message has flags {flags:#x} and reserved {reserved:#x}; both are 0 in this version")
        header = cls(
            kind=Kind(kind),
            request_id=request_id,
            variant=variant,
            coder=coder,
            deadline_ms=deadline_ms,
            payload_bytes=payload_bytes,
            raw_bytes=raw_bytes,
            crc32=_CRC.unpack_from(data, _FIELDS.size)[0],
        )
        header.check(limits)
        return header

    def check(self, limits: WireLimits) -> None:
        """Raises WireError, PayloadTooBigError: a field that this kind must not have, or a size over ``limits``."""
        name = self.kind.name
        if (self.request_id > 0) != (self.kind in ABOUT_A_REQUEST):
            raise WireError(f"{name} has request id {self.request_id}; requests and their answers have one, others 0")
        if self.kind is Kind.INFER:
            if not self.payload_bytes or not self.raw_bytes:
                raise WireError(f"INFER declares {self.payload_bytes} bytes for {self.raw_bytes}; it cannot be empty")
            _check_size(self.payload_bytes, limits.max_payload_bytes)
            _check_size(self.raw_bytes, limits.max_raw_bytes)
            return
        if self.variant or self.coder or self.deadline_ms or self.raw_bytes:
            raise WireError(
                f"{name} has variant {self.variant}, coder {self.coder}, deadline {self.deadline_ms} and raw size "
                f"{self.raw_bytes}; these are 0 in all but INFER"
            )
        _check_size(self.payload_bytes, limits.max_control_bytes)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise PayloadTooBigError(size, limit)


@dataclass(frozen=True, slots=True)
class Message:
    """One whole message, its checksum compared."""

    header: Header
    payload: bytes


def checksum(fields: bytes | bytearray | memoryview, payload: bytes) -> int:
    """CRC-32 (zlib's) over the 32 header bytes before the checksum, then the payload."""
    return zlib.crc32(payload, zlib.crc32(fields))


def pack(
    kind: Kind,
    payload: bytes,
    *,
    request_id: int = 0,
    variant: int = 0,
    coder: int = 0,
    deadline_ms: int = 0,
    raw_bytes: int = 0,
) -> bytes:
    """One message as bytes. Raises WireError: a field is out of its range in table 1."""
    try:
        fields = _FIELDS.pack(
            MAGIC,
            WIRE_VERSION,
            kind,
            0,
            request_id,
            variant,
            coder,
            0,
            deadline_ms,
            len(payload),
            raw_bytes,
        )
    except struct.error as exc:
        raise WireError(f"{kind.name} cannot be packed: {exc}; see table 1 of docs/wire-format.md") from None
    return b"".join((fields, _CRC.pack(checksum(fields, payload)), payload))
