"""The order of messages, from both sides, without I/O: docs/wire-format.md, tables 3 and 4.

What may happen is data: ``(state, input) -> next state``; whatever is absent is an error. A call that a table does
not have raises WireError and changes nothing. Bytes from the peer that break the rules end the session: the error
comes from ``receive`` now and at every later call, and the caller says REFUSED or GOODBYE and closes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Generic, TypeVar

from aecnn_deploy.errors import PayloadTooBigError, WireError
from aecnn_deploy.wire.events import (
    DeviceEvent,
    EdgeEvent,
    FailureReceived,
    GoodbyeReceived,
    HelloReceived,
    InferReceived,
    RefusedByEdge,
    ResultReceived,
    Welcomed,
)
from aecnn_deploy.wire.header import WIRE_VERSION, Kind, Message, pack
from aecnn_deploy.wire.limits import WireLimits
from aecnn_deploy.wire.messages import (
    Control,
    Failed,
    Goodbye,
    Hello,
    Refused,
    Result,
    Welcome,
    decode_control,
    encode_control,
)
from aecnn_deploy.wire.reader import MessageReader


class State(Enum):
    """Where a session stands; the same words on both sides."""

    NEW = "new"  # nothing was said
    GREETING = "greeting"  # HELLO was said, no answer yet
    OPEN = "open"
    DEVICE_LEFT = "device left"  # the device said GOODBYE: it asks nothing more
    EDGE_DRAINING = "edge draining"  # the edge said GOODBYE: what it still gets it answers, mostly with FAILED
    PARTED = "parted"  # both said GOODBYE: only answers to what is in flight
    CLOSED = "closed"  # refused


class Input(Enum):
    """A message sent or received by this side."""

    SEND_HELLO = "send HELLO"
    SEND_WELCOME = "send WELCOME"
    SEND_REFUSED = "send REFUSED"
    SEND_INFER = "send INFER"
    SEND_RESULT = "send RESULT"
    SEND_FAILED = "send FAILED"
    SEND_GOODBYE = "send GOODBYE"
    RECV_HELLO = "receive HELLO"
    RECV_WELCOME = "receive WELCOME"
    RECV_REFUSED = "receive REFUSED"
    RECV_INFER = "receive INFER"
    RECV_RESULT = "receive RESULT"
    RECV_FAILED = "receive FAILED"
    RECV_GOODBYE = "receive GOODBYE"


Table = Mapping[tuple[State, Input], State]

DEVICE_TABLE: Table = MappingProxyType(
    {
        (State.NEW, Input.SEND_HELLO): State.GREETING,
        (State.GREETING, Input.RECV_WELCOME): State.OPEN,
        (State.GREETING, Input.RECV_REFUSED): State.CLOSED,
        (State.OPEN, Input.SEND_INFER): State.OPEN,
        (State.OPEN, Input.RECV_RESULT): State.OPEN,
        (State.OPEN, Input.RECV_FAILED): State.OPEN,
        (State.OPEN, Input.SEND_GOODBYE): State.DEVICE_LEFT,
        (State.OPEN, Input.RECV_GOODBYE): State.EDGE_DRAINING,
        (State.DEVICE_LEFT, Input.RECV_RESULT): State.DEVICE_LEFT,
        (State.DEVICE_LEFT, Input.RECV_FAILED): State.DEVICE_LEFT,
        (State.DEVICE_LEFT, Input.RECV_GOODBYE): State.PARTED,
        (State.EDGE_DRAINING, Input.RECV_RESULT): State.EDGE_DRAINING,
        (State.EDGE_DRAINING, Input.RECV_FAILED): State.EDGE_DRAINING,
        (State.EDGE_DRAINING, Input.SEND_GOODBYE): State.PARTED,
        (State.PARTED, Input.RECV_RESULT): State.PARTED,
        (State.PARTED, Input.RECV_FAILED): State.PARTED,
    }
)

EDGE_TABLE: Table = MappingProxyType(
    {
        (State.NEW, Input.RECV_HELLO): State.GREETING,
        (State.NEW, Input.SEND_REFUSED): State.CLOSED,
        (State.GREETING, Input.SEND_WELCOME): State.OPEN,
        (State.GREETING, Input.SEND_REFUSED): State.CLOSED,
        (State.OPEN, Input.RECV_INFER): State.OPEN,
        (State.OPEN, Input.SEND_RESULT): State.OPEN,
        (State.OPEN, Input.SEND_FAILED): State.OPEN,
        (State.OPEN, Input.SEND_GOODBYE): State.EDGE_DRAINING,
        (State.OPEN, Input.RECV_GOODBYE): State.DEVICE_LEFT,
        (State.DEVICE_LEFT, Input.SEND_RESULT): State.DEVICE_LEFT,
        (State.DEVICE_LEFT, Input.SEND_FAILED): State.DEVICE_LEFT,
        (State.DEVICE_LEFT, Input.SEND_GOODBYE): State.PARTED,
        # Sent by a device that had not read the GOODBYE yet.
        (State.EDGE_DRAINING, Input.RECV_INFER): State.EDGE_DRAINING,
        (State.EDGE_DRAINING, Input.SEND_RESULT): State.EDGE_DRAINING,
        (State.EDGE_DRAINING, Input.SEND_FAILED): State.EDGE_DRAINING,
        (State.EDGE_DRAINING, Input.RECV_GOODBYE): State.PARTED,
        (State.PARTED, Input.SEND_RESULT): State.PARTED,
        (State.PARTED, Input.SEND_FAILED): State.PARTED,
    }
)

FROM_EDGE = frozenset({Kind.WELCOME, Kind.REFUSED, Kind.RESULT, Kind.FAILED, Kind.GOODBYE})
FROM_DEVICE = frozenset({Kind.HELLO, Kind.INFER, Kind.GOODBYE})

_SEND = {kind: Input[f"SEND_{kind.name}"] for kind in Kind}
_RECV = {kind: Input[f"RECV_{kind.name}"] for kind in Kind}

E = TypeVar("E", DeviceEvent, EdgeEvent)


class _Session(ABC, Generic[E]):
    """What both sides share: the state, the reader, and the requests in flight. Not thread safe."""

    def __init__(self, limits: WireLimits, table: Table, kinds: frozenset[Kind]) -> None:
        self.limits, self.state = limits, State.NEW
        self._table = table
        self._reader = MessageReader(limits, kinds=kinds)
        self._error: WireError | None = None
        self._open_requests: set[int] = set()

    @property
    def in_flight(self) -> int:
        """Requests without an answer."""
        return len(self._open_requests)

    @property
    def at_boundary(self) -> bool:
        """Whether all that was received is whole messages, none of them broken."""
        return self._error is None and self._reader.at_boundary

    @property
    def finished(self) -> bool:
        """Whether nothing more may be said but GOODBYE: the connection can be closed without loss."""
        said_goodbye = self.state in (State.DEVICE_LEFT, State.EDGE_DRAINING, State.PARTED)
        return self.state is State.CLOSED or (said_goodbye and not self._open_requests)

    def receive(self, data: bytes | bytearray | memoryview) -> list[E]:
        """The events that ``data`` completes, in any chunks.

        Raises WireError (or PayloadTooBigError): the peer broke the rules, now or before. Events before the break
        are returned first; the error then comes with the next call, and ``at_boundary`` is false at once.
        """
        if self._error is not None:
            raise self._error.with_traceback(None)
        events: list[E] = []
        try:
            for message in self._reader.feed(data):
                next_state = self._next(_RECV[message.header.kind])
                events.append(self._event(message))
                self.state = next_state
        except WireError as exc:
            self._error = exc
            if not events:
                raise
        return events

    def goodbye(self, reason: str) -> bytes:
        """GOODBYE: this side starts nothing new."""
        return self._say(Kind.GOODBYE, Goodbye(reason))

    @abstractmethod
    def _event(self, message: Message) -> E:
        """The event for a message that the table allows; raises WireError without any effect."""

    def _next(self, step: Input) -> State:
        try:
            return self._table[self.state, step]
        except KeyError:
            raise WireError(f"cannot {step.value} while the session is {self.state.value!r}") from None

    def _say(self, kind: Kind, control: Control, *, request_id: int = 0) -> bytes:
        next_state = self._next(_SEND[kind])
        data = pack(kind, encode_control(control), request_id=request_id)
        self.state = next_state
        return data

    def _close_request(self, request_id: int) -> None:
        if request_id not in self._open_requests:
            raise WireError(f"answer to request {request_id}, which is not in flight")
        self._open_requests.remove(request_id)


class DeviceSession(_Session[DeviceEvent]):
    """The device's side: ``start``, then ``infer`` and ``receive`` in any order, then ``goodbye``."""

    def __init__(self, hello: Hello, limits: WireLimits) -> None:
        super().__init__(limits, DEVICE_TABLE, FROM_EDGE)
        self.hello = hello
        self.welcome: Welcome | None = None
        self._last_request_id = 0

    @property
    def next_request_id(self) -> int:
        """The id that the next ``infer`` gives."""
        return self._last_request_id + 1

    def start(self) -> bytes:
        """HELLO."""
        return self._say(Kind.HELLO, self.hello)

    def infer(
        self, variant: int, coder_id: int, payload: bytes, raw_bytes: int, deadline_ms: int = 0
    ) -> tuple[int, bytes]:
        """The id of a new request and its INFER message.

        ``variant`` is the index into the HELLO's variants. Raises WireError: not open, too many in flight, a variant
        that the edge does not serve. PayloadTooBigError: over a limit of the WELCOME. After an error nothing changed.
        """
        next_state = self._next(Input.SEND_INFER)
        assert self.welcome is not None  # the table opens a session by WELCOME only
        if self.in_flight >= self.welcome.max_in_flight:
            raise WireError(
                f"{self.in_flight} requests are in flight, the edge allows {self.welcome.max_in_flight}; "
                "read an answer first"
            )
        variants = self.hello.variants
        if not 0 <= variant < len(variants) or variants[variant] not in self.welcome.variants:
            raise WireError(f"the edge does not serve variant {variant}; it serves {', '.join(self.welcome.variants)}")
        if not payload or raw_bytes < 1:
            raise WireError(f"a request of {len(payload)} bytes for {raw_bytes} cannot be empty")
        for size, limit in (
            (len(payload), self.welcome.max_payload_bytes),
            (raw_bytes, self.welcome.max_raw_bytes),
        ):
            if size > limit:
                raise PayloadTooBigError(size, limit)
        request_id = self.next_request_id
        data = pack(
            Kind.INFER,
            payload,
            request_id=request_id,
            variant=variant,
            coder=coder_id,
            deadline_ms=deadline_ms,
            raw_bytes=raw_bytes,
        )
        self.state, self._last_request_id = next_state, request_id
        self._open_requests.add(request_id)
        return request_id, data

    def _event(self, message: Message) -> DeviceEvent:
        request_id = message.header.request_id
        match message.header.kind:
            case Kind.WELCOME:
                self.welcome = self._accepted(decode_control(Welcome, message.payload))
                return Welcomed(self.welcome)
            case Kind.REFUSED:
                return RefusedByEdge(decode_control(Refused, message.payload))
            case Kind.RESULT:
                result = decode_control(Result, message.payload)
                self._close_request(request_id)
                return ResultReceived(request_id, result)
            case Kind.FAILED:
                failed = decode_control(Failed, message.payload)
                self._close_request(request_id)
                return FailureReceived(request_id, failed)
            case _:
                return GoodbyeReceived(decode_control(Goodbye, message.payload))

    def _accepted(self, welcome: Welcome) -> Welcome:
        hello = self.hello
        if welcome.wire_version != WIRE_VERSION:
            raise WireError(
                f"the edge welcomes to wire version {welcome.wire_version}, this device speaks {WIRE_VERSION}"
            )
        if welcome.bundle_id != hello.bundle_id:
            raise WireError(f"the edge welcomes to bundle {welcome.bundle_id!r}, this device has {hello.bundle_id!r}")
        for what, got, offered in (
            ("variants", welcome.variants, hello.variants),
            ("coders", welcome.coders, hello.coders),
        ):
            if not got or not set(got) <= set(offered):
                raise WireError(f"the edge welcomes {what} {got}, this device offered {offered}")
        return welcome


class EdgeSession(_Session[EdgeEvent]):
    """The edge's side: a HELLO is answered by ``welcome`` or ``refuse``, each request by ``result`` or ``fail``."""

    def __init__(self, limits: WireLimits) -> None:
        super().__init__(limits, EDGE_TABLE, FROM_DEVICE)
        self._max_in_flight = 0

    def welcome(self, welcome: Welcome) -> bytes:
        """WELCOME. Raises WireError: it promises more than this side's limits."""
        for size, limit in (
            (welcome.max_payload_bytes, self.limits.max_payload_bytes),
            (welcome.max_raw_bytes, self.limits.max_raw_bytes),
        ):
            if size > limit:
                raise WireError(f"WELCOME promises {size} bytes, over this edge's limit of {limit}; raise WireLimits")
        data = self._say(Kind.WELCOME, welcome)
        self._max_in_flight = welcome.max_in_flight
        return data

    def refuse(self, code: str, reason: str) -> bytes:
        """REFUSED, with a RefusalCode; also before a HELLO came."""
        return self._say(Kind.REFUSED, Refused(code, reason))

    def result(self, request_id: int, result: Result) -> bytes:
        """RESULT: the answer to one request. Raises WireError: it is not in flight, or a score is not finite."""
        return self._answer(Kind.RESULT, request_id, result)

    def fail(self, request_id: int, failed: Failed) -> bytes:
        """FAILED: no result for one request. Raises WireError: it is not in flight."""
        return self._answer(Kind.FAILED, request_id, failed)

    def _answer(self, kind: Kind, request_id: int, control: Result | Failed) -> bytes:
        if request_id not in self._open_requests:
            raise WireError(f"answer to request {request_id}, which is not in flight")
        data = self._say(kind, control, request_id=request_id)
        self._open_requests.remove(request_id)
        return data

    def _event(self, message: Message) -> EdgeEvent:
        header = message.header
        match header.kind:
            case Kind.HELLO:
                return HelloReceived(decode_control(Hello, message.payload))
            case Kind.INFER:
                if header.request_id in self._open_requests:
                    raise WireError(f"request {header.request_id} came twice; its first has no answer yet")
                if self.in_flight >= self._max_in_flight:
                    raise WireError(
                        f"request {header.request_id} would be one too many: the device was allowed "
                        f"{self._max_in_flight} in flight"
                    )
                self._open_requests.add(header.request_id)
                return InferReceived(
                    request_id=header.request_id,
                    variant=header.variant,
                    coder_id=header.coder,
                    payload=message.payload,
                    raw_bytes=header.raw_bytes,
                    deadline_ms=header.deadline_ms,
                )
            case _:
                return GoodbyeReceived(decode_control(Goodbye, message.payload))
