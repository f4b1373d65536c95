"""The JSON payloads of all kinds but INFER: docs/wire-format.md, table 2.

Types are strict, keys that this version does not know are ignored.
"""

from enum import StrEnum
from typing import Annotated, Any, TypeVar

import msgspec

from aecnn_deploy.errors import WireError

# No control characters: these strings reach logs and terminals.
Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f-\x9f]{0,200}\Z")]
Code = Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9-]{0,39}\Z")]
Trace = Annotated[str, msgspec.Meta(pattern=r"\A(?!0{32}\Z)[0-9a-f]{32}\Z")]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]  # what every JSON reader keeps exactly
Size = Annotated[int, msgspec.Meta(ge=1, le=(1 << 32) - 1)]
Load = tuple[Count, Milliseconds, Milliseconds]  # variant; for a request that comes now: wait, run of the tail

MAX_REASON_CHARACTERS = 500


class RefusalCode(StrEnum):
    """Why an edge refuses a HELLO."""

    BUNDLE_MISMATCH = "bundle-mismatch"
    WIRE_VERSION = "wire-version"
    NO_COMMON_CODER = "no-common-coder"
    UNAUTHORIZED = "unauthorized"
    OVERLOADED = "overloaded"
    DRAINING = "draining"
    PROTOCOL = "protocol"


class FailureCode(StrEnum):
    """Why an edge gives no result for one request; the session goes on."""

    BAD_PAYLOAD = "bad-payload"
    NO_REFERENCE = "no-reference"
    UNKNOWN_VARIANT = "unknown-variant"
    DEADLINE = "deadline"
    OVERLOADED = "overloaded"
    DRAINING = "draining"
    INTERNAL = "internal"


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """The device's first message: what it has. ``variants`` is the bundle's whole list, in the manifest's order."""

    bundle_id: Text
    wire_versions: list[Count]
    variants: list[Text]
    coders: list[Text]
    software: Text
    trace: Trace | None = None  # of a session that is traced: wire/tracing.py
    device: Text | None = None  # what the device calls itself, for people
    uses: list[Count] = []  # indexes into ``variants``: this session switches between them, and wants ``load``


class Welcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """The edge's consent: what this session may use, and how much of it."""

    wire_version: Count
    bundle_id: Text
    variants: list[Text]  # those of the HELLO that this edge serves
    coders: list[Text]  # those of the HELLO that this edge decodes
    max_in_flight: Size  # requests without an answer
    max_payload_bytes: Size
    max_raw_bytes: Size
    runner: Text
    software: Text
    references: Count = 0  # newest answered requests of each variant whose planes the edge keeps, for differences
    load: list[Load] = []  # of the variants that the HELLO uses and that are loaded


class Refused(msgspec.Struct, frozen=True):
    """The edge's refusal: a RefusalCode (a newer edge may have more) and one line for a person."""

    code: Code
    reason: str


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the tail found, and where the time went on the edge."""

    top: list[tuple[Count, float]]  # class index and softmax score, best first
    decode_ms: Milliseconds
    queue_ms: Milliseconds  # waiting for its turn
    tail_ms: Milliseconds  # of the batch that it was run in
    total_ms: Milliseconds  # from the request's last byte to this message
    in_flight: Count  # requests that the edge has from all devices, this one included
    variant: Text
    batch: Count = 0  # requests that were run together, this one included; 0: not told
    load: list[Load] = []  # as in WELCOME, when this was written


class Failed(msgspec.Struct, frozen=True):
    """No result for one request: a FailureCode (a newer edge may have more) and one line for a person."""

    code: Code
    reason: str
    retry_after_s: Annotated[float, msgspec.Meta(ge=0)] | None = None


class Goodbye(msgspec.Struct, frozen=True):
    """The sender starts nothing new; what is in flight is still answered."""

    reason: str


Control = Hello | Welcome | Refused | Result | Failed | Goodbye
C = TypeVar("C", bound=msgspec.Struct)

_encoder = msgspec.json.Encoder()
_DECODERS: dict[type[Any], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Hello, Welcome, Refused, Result, Failed, Goodbye)
}


def encode_control(control: Control) -> bytes:
    """The JSON payload. Raises WireError: a peer would refuse it (a score that is not finite, a negative time)."""
    try:
        payload = _encoder.encode(_with_one_line_reason(control))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as exc:
        raise WireError(f"{type(control).__name__} cannot be written as JSON: {exc}") from None
    decode_control(type(control), payload)  # microseconds, and what a peer must refuse never leaves
    return payload


def decode_control(kind: type[C], payload: bytes) -> C:
    """The payload as a ``kind``. Raises WireError: not JSON, a key is missing, a value has another type or range."""
    try:
        control: C = _DECODERS[kind].decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise WireError(f"{kind.__name__} is not valid: {exc}; see table 2 of docs/wire-format.md") from None
    return _with_one_line_reason(control)


def _with_one_line_reason(control: C) -> C:
    """``reason`` is for a person and may quote anything: made one printable line, whoever wrote it."""
    reason = getattr(control, "reason", None)
    if reason is None:
        return control
    line = "".join(mark if mark.isprintable() else " " for mark in reason)
    line = " ".join(line.split())[:MAX_REASON_CHARACTERS]
    return control if line == reason else msgspec.structs.replace(control, reason=line)
