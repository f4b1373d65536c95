"""What a device and a controller say to each other: JSON documents, one in each WebSocket message. docs/controller.md.

    device                              controller
    HELLO  ───────────────────────────►
           ◄───────────────────────────  WELCOME, or REFUSED and the end
    STATE, once a slot ───────────────►
           ◄───────────────────────────  ADVICE, once a slot

Either side ends the connection whenever it likes. Numbers are bounded where they are read; nothing else of a message
is trusted.
"""

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from aecnn_deploy.errors import WireError

ADVICE_PATH = "/v1/advice"
PROTOCOL = 1  # its version
MAX_STATE_BYTES = 64 << 10  # of a message to the controller
MAX_ADVICE_BYTES = 16 << 10  # of a message to a device

Name = Annotated[str, Meta(min_length=1, max_length=128)]
Text = Annotated[str, Meta(max_length=1024)]
Index = Annotated[int, Meta(ge=0, le=4096)]
Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]
Slot = Annotated[int, Meta(ge=0, le=1 << 53)]

MAX_VARIANTS = 256


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """A document with its kind in ``kind``. Fields that a side does not know are ignored: later ones may have more."""


class Hello(_Message, frozen=True, kw_only=True, tag="hello"):
    """The first of a device. ``edges``: as the controller names them; indexes in what follows are into these lists."""

    protocol: int
    device: Name
    software: Annotated[str, Meta(max_length=128)]
    bundle_id: Name
    edges: Annotated[list[Name], Meta(min_length=1, max_length=64)]
    variants: Annotated[list[Name], Meta(min_length=1, max_length=MAX_VARIANTS)]


class WayTold(msgspec.Struct, frozen=True, kw_only=True):
    """One variant by one edge, for a frame whose head starts now."""

    variant: Index
    message_bytes: Annotated[float, Meta(ge=0, le=1e12)]  # of the whole request
    air_ms: Milliseconds  # waiting for what this device has under way to this edge, and sending
    decode_ms: Milliseconds
    wait_ms: Milliseconds  # for the edge's model
    tail_ms: Milliseconds  # the run of the model


class EdgeTold(msgspec.Struct, frozen=True, kw_only=True):
    """One edge, as a device knows it. ``up``: it has a session with it."""

    edge: Index
    up: bool
    rate_bps: Annotated[float, Meta(ge=0, le=1e15)] = 0.0  # of the link, headers included
    fixed_ms: Milliseconds = 0.0  # an empty message there and back
    load_age_ms: Milliseconds | None = None  # since the edge told ``wait_ms`` and ``tail_ms``; None: they are guesses
    in_flight: Index = 0  # requests of this device without an answer
    ways: Annotated[list[WayTold], Meta(max_length=MAX_VARIANTS)] = []


class State(_Message, frozen=True, kw_only=True, tag="state"):
    """What a device tells once a slot."""

    slot: Slot  # of the last advice that it heard
    frame_in_ms: Milliseconds | None  # when its next frame is expected; 0: one waits. None: none comes
    deadline_ms: Milliseconds  # what that frame has left then
    backlog_ms: Milliseconds  # until its processor is free
    local_ms: Milliseconds | None  # reading a frame and the unsplit model; None: it has none here
    device_ms: Annotated[list[Milliseconds | None], Meta(max_length=MAX_VARIANTS)]  # by variant: reading, head, coding
    edges: Annotated[list[EdgeTold], Meta(max_length=64)]


class Welcome(_Message, frozen=True, kw_only=True, tag="welcome"):
    """The controller's answer to a HELLO."""

    protocol: int
    software: Annotated[str, Meta(max_length=128)]
    policy: Text
    slot_ms: Annotated[float, Meta(ge=1, le=60_000)]


class Refused(_Message, frozen=True, kw_only=True, tag="refused"):
    """The controller does not advise this device. ``code``: a word of docs/controller.md."""

    code: Name
    reason: Text


class Advice(_Message, frozen=True, kw_only=True, tag="advice"):
    """Where the frames of the slot that begins now go. Both ``edge`` and ``variant`` null: they are computed there.

    ``idle``: the device expects none, so nothing is advised.
    """

    slot: Slot
    edge: Index | None
    variant: Name | None
    valid_for_ms: Annotated[float, Meta(ge=0, le=600_000)]
    idle: bool = False


FromDevice = Hello | State
FromController = Welcome | Refused | Advice

M = TypeVar("M")

_FROM_DEVICE: msgspec.json.Decoder[FromDevice] = msgspec.json.Decoder(FromDevice)
_FROM_CONTROLLER: msgspec.json.Decoder[FromController] = msgspec.json.Decoder(FromController)


def from_device(message: str | bytes) -> FromDevice:
    """What a device said. Raises WireError: too large, no JSON, or not as in docs/controller.md."""
    return _decoded(_FROM_DEVICE, message, MAX_STATE_BYTES)


def from_controller(message: str | bytes) -> FromController:
    """What a controller said. Raises WireError: too large, no JSON, or not as in docs/controller.md."""
    return _decoded(_FROM_CONTROLLER, message, MAX_ADVICE_BYTES)


def encoded(message: _Message) -> str:
    """The text of a WebSocket message."""
    return msgspec.json.encode(message).decode()


def _decoded(decoder: "msgspec.json.Decoder[M]", message: str | bytes, limit: int) -> M:
    if len(message) > limit:
        raise WireError(f"a message of {len(message)} bytes came, over the limit of {limit}; send less in one")
    try:
        return decoder.decode(message)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        why = "".join(mark if mark.isprintable() else "?" for mark in str(exc))[:200]
        raise WireError(f"a message is not as docs/controller.md has it: {why}") from None
