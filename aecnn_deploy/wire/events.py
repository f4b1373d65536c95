"""What a session reports of the bytes that it received."""

from dataclasses import dataclass

from aecnn_deploy.wire.messages import Failed, Goodbye, Hello, Refused, Result, Welcome


@dataclass(frozen=True, slots=True)
class Welcomed:
    """Device: the session is open."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class RefusedByEdge:
    """Device: there will be no session."""

    refused: Refused


@dataclass(frozen=True, slots=True)
class ResultReceived:
    """Device: the answer to one request."""

    request_id: int
    result: Result


@dataclass(frozen=True, slots=True)
class FailureReceived:
    """Device: one request has no result; the session goes on."""

    request_id: int
    failed: Failed


@dataclass(frozen=True, slots=True)
class HelloReceived:
    """Edge: to be answered by ``welcome`` or ``refuse``."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class InferReceived:
    """Edge: to be answered by ``result`` or ``fail``; nothing of the payload is checked yet but its sizes."""

    request_id: int
    variant: int  # index into the HELLO's variants
    coder_id: int
    payload: bytes
    raw_bytes: int
    deadline_ms: int  # time that the device still gives this request, 0: any


@dataclass(frozen=True, slots=True)
class GoodbyeReceived:
    """Both: the peer starts nothing new."""

    goodbye: Goodbye


DeviceEvent = Welcomed | RefusedByEdge | ResultReceived | FailureReceived | GoodbyeReceived
EdgeEvent = HelloReceived | InferReceived | GoodbyeReceived
Event = DeviceEvent | EdgeEvent
