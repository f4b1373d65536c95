"""Messages and session rules between a device and an edge, without I/O: docs/wire-format.md is the specification."""

from aecnn_deploy.wire.events import (
    DeviceEvent,
    EdgeEvent,
    Event,
    FailureReceived,
    GoodbyeReceived,
    HelloReceived,
    InferReceived,
    RefusedByEdge,
    ResultReceived,
    Welcomed,
)
from aecnn_deploy.wire.header import HEADER_BYTES, WIRE_VERSION, Header, Kind, Message, pack
from aecnn_deploy.wire.limits import WireLimits
from aecnn_deploy.wire.messages import (
    Failed,
    FailureCode,
    Goodbye,
    Hello,
    Load,
    RefusalCode,
    Refused,
    Result,
    Welcome,
    decode_control,
    encode_control,
)
from aecnn_deploy.wire.reader import MessageReader
from aecnn_deploy.wire.session import DEVICE_TABLE, EDGE_TABLE, DeviceSession, EdgeSession, Input, State
from aecnn_deploy.wire.tracing import RequestTrace, new_trace, request_trace

__all__ = [
    "DEVICE_TABLE",
    "EDGE_TABLE",
    "HEADER_BYTES",
    "WIRE_VERSION",
    "DeviceEvent",
    "DeviceSession",
    "EdgeEvent",
    "EdgeSession",
    "Event",
    "Failed",
    "FailureCode",
    "FailureReceived",
    "Goodbye",
    "GoodbyeReceived",
    "Header",
    "Hello",
    "HelloReceived",
    "InferReceived",
    "Input",
    "Kind",
    "Load",
    "Message",
    "MessageReader",
    "RefusalCode",
    "Refused",
    "RefusedByEdge",
    "RequestTrace",
    "Result",
    "ResultReceived",
    "State",
    "Welcome",
    "Welcomed",
    "WireLimits",
    "decode_control",
    "encode_control",
    "new_trace",
    "pack",
    "request_trace",
]
