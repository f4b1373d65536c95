"""uvicorn's protocols with what they lack: TLS with a deadline, limits for slow and for fast peers."""

import asyncio
import ssl
from asyncio import sslproto
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from aecnn_deploy.runtimes.edge_gate import (
    CONNECTION,
    IDLE,
    POLICY_VIOLATION,
    SLOW_HANDSHAKE,
    SLOW_MESSAGE,
    SLOW_READER,
    TLS,
    Connection,
    Gate,
)
from aecnn_deploy.runtimes.tls import common_name
from aecnn_deploy.runtimes.valve import Valve


def http_protocol(gate: Gate) -> type["EdgeHttp"]:
    """The protocol class of an edge behind ``gate``, for uvicorn's ``http``; its ``ws`` is ``EdgeWebSocket``."""
    return type("GatedHttp", (EdgeHttp,), {"gate": gate})


class _ReadInTime(asyncio.Protocol):
    """Aborts a connection whose peer does not read what is ready for it. Closing would wait for that peer."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    connection: Connection
    _unread_timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """Something could not be written: the kernel's buffer is full."""
        super().pause_writing()
        limit_s = self.connection.gate.limits.unread_s
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(limit_s, self._unread)

    def resume_writing(self) -> None:
        """All of it is written."""
        self._stop_unread_timer()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_unread_timer()
        super().connection_lost(exc)

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _unread(self) -> None:
        gate, peer = self.connection.gate, self.connection.peer
        gate.refused(SLOW_READER, f"cut off {peer}: it did not read its answers within {gate.limits.unread_s:g} s")
        self.transport.abort()


class _Tls(sslproto.SSLProtocol):
    """asyncio's own TLS, begun by us: only so is a connection known, and bounded, before its handshake is done.

    ``loop.start_tls`` is the way that is documented, and loses what comes before its task has its turn (uvloop).
    """

    max_size = 32 << 10  # asyncio's own buffer of 256 KiB a connection is most of what a thousand idle devices take

    def _on_handshake_complete(self, handshake_exc: BaseException | None) -> None:
        if handshake_exc is not None:
            getattr(self, "_process_outgoing", int)()  # the alert, which tells the peer why; asyncio drops it
        super()._on_handshake_complete(handshake_exc)


class EdgeHttp(_ReadInTime, H11Protocol):
    """A connection from its first byte: TLS, if the edge has a certificate, then HTTP; each head within a time."""

    gate: ClassVar[Gate]
    _raw: asyncio.Transport | None = None
    _valve: Valve | None = None  # from when HTTP begins
    _upgraded = False
    _handshake_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if self._raw is not None:
            self._begin(transport)
            return
        address = transport.get_extra_info("peername")
        connection = self.gate.connect(str(address[0]) if address else "a local process")
        if connection is None:
            transport.abort()
            return
        self.connection, self._raw = connection, transport
        self.app_state = {**self.app_state, CONNECTION: connection}
        self._limit_s = self.gate.limits.handshake_s
        self.connections.add(self)  # uvicorn's, so that its end is ours while TLS has not begun
        self._start_handshake_timer()
        if self.gate.tls is None:
            self._begin(transport)
        else:
            self._encrypt(transport, self.gate.tls.context())

    def data_received(self, data: bytes) -> None:
        if self._valve is None:  # refused
            return
        self.connection.received(len(data))
        super().data_received(data)
        if self._upgraded:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._start_handshake_timer()
        else:
            self._stop_handshake_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._raw is None:
            return
        self._stop_handshake_timer()
        self.gate.disconnect(self.connection)
        if self._valve is None:
            self.connections.discard(self)
            return
        self._valve.end()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._upgraded = True
        self._stop_handshake_timer()
        self._stop_unread_timer()  # what it waits for, the WebSocket hears of
        super().handle_websocket_upgrade(event)

    def shutdown(self) -> None:
        """The server stops."""
        if self._valve is not None:
            super().shutdown()
        elif self._raw is not None:
            self._raw.abort()

    def _encrypt(self, raw: asyncio.Transport, context: ssl.SSLContext) -> None:
        shaken = self.loop.create_future()
        shaken.add_done_callback(self._handshake_done)
        # More than our own timer, which says why.
        tls = _Tls(self.loop, self, context, shaken, server_side=True, ssl_handshake_timeout=int(self._limit_s) + 2)
        raw.set_write_buffer_limits(high=1, low=0)
        raw.set_protocol(tls)
        tls.connection_made(raw)

    def _handshake_done(self, shaken: "asyncio.Future[None]") -> None:
        exc = None if shaken.cancelled() else shaken.exception()
        if exc is None:
            return  # ``connection_made`` was called again, with TLS's transport
        if isinstance(exc, ssl.SSLError):
            self.gate.refused(TLS, f"no TLS connection with {self.connection.address}: {_tls_words(exc)}")
        if self._raw is not None:
            self._raw.abort()
        self.connection_lost(None)

    def _begin(self, transport: asyncio.Transport) -> None:
        self._valve = Valve(transport, self.loop)
        self.connection.hold = self._valve.hold
        self.connection.certificate_name = common_name(transport.get_extra_info("peercert"))
        super().connection_made(self._valve)
        # Whatever cannot be handed to the kernel is told by pause_writing, not only when it is over 64 KiB.
        transport.set_write_buffer_limits(high=1, low=0)

    def _start_handshake_timer(self) -> None:
        if self._handshake_timer is None:
            self._handshake_timer = self.loop.call_later(self._limit_s, self._no_request)

    def _stop_handshake_timer(self) -> None:
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None

    def _no_request(self) -> None:
        self._handshake_timer = None
        limit_s = self._limit_s
        self.gate.refused(SLOW_HANDSHAKE, f"cut off {self.connection.address}: no whole request within {limit_s:g} s")
        transport = self._valve or self._raw
        if transport is not None:
            transport.abort()


class EdgeWebSocket(_ReadInTime, WebSocketsSansIOProtocol):
    """A WebSocket whose messages come in time, and some of them now and then."""

    _began_s: float | None = None  # when the first byte of a message came that is not whole yet
    _message_timer: asyncio.TimerHandle | None = None
    _idle_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Valve)
        self.connection = self.app_state[CONNECTION]
        self._valve, self._limits = transport, self.connection.gate.limits
        self.connection.cut = self._cut
        self._heard_s = self._active_s = self.loop.time()
        self._whole = False  # whether the data at hand ended a message, or a ping outside of one
        super().connection_made(transport)
        self._idle_timer = self.loop.call_later(self._limits.idle_s, self._check_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._message_timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        self.connection.cut = None
        self.connection.gate.disconnect(self.connection)
        self._valve.end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._heard_s = self.loop.time()
        self.connection.received(len(data))
        self._whole = not self.handshake_initiated  # what comes now is the handshake's head
        super().data_received(data)
        if self._whole:
            self._stop_message_timer()
        elif self._began_s is None:
            self._began_s, self._shut_before_s = self._heard_s, self._valve.shut_s
            self._message_timer = self.loop.call_later(self._limits.message_s, self._check_message)

    def send_receive_event_to_app(self) -> None:
        self._whole = True
        self._active_s = self.loop.time()
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        self._whole = self._whole or not self.frames  # between the fragments of a message it ends nothing
        super().handle_ping()

    def handle_pong(self, event: Any) -> None:
        self._whole = self._whole or not self.frames
        super().handle_pong(event)

    def keepalive_timeout(self) -> None:
        """No answer to a ping. It may wait behind data that we read slowly: then the peer lives."""
        if self._heard_s > self.ping_sent_at or not self._valve.is_reading():
            self.pong_timer = self.pending_ping_payload = None
            self.schedule_ping()
        else:
            super().keepalive_timeout()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.send":
            self._active_s = self.loop.time()
        elif message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # refused, but answered: uvicorn would miss an answer

    def pause_writing(self) -> None:
        super().pause_writing()
        self._valve.stop("unread")  # else pings without end, whose answers nobody reads, would fill our memory

    def resume_writing(self) -> None:
        super().resume_writing()
        self._valve.release("unread")

    def _stop_message_timer(self) -> None:
        self._began_s = None
        if self._message_timer is not None:
            self._message_timer.cancel()
            self._message_timer = None

    def _check_message(self) -> None:
        """The time for a message is over, unless we ourselves did not read for a part of it."""
        left_s = self._valve.shut_s - self._shut_before_s
        if left_s > 1e-3:
            self._shut_before_s = self._valve.shut_s
            self._message_timer = self.loop.call_later(left_s, self._check_message)
            return
        self._refuse(SLOW_MESSAGE, f"a message took over {self._limits.message_s:g} s to come")

    def _check_idle(self) -> None:
        left_s = self._active_s + self._limits.idle_s - self.loop.time()
        if left_s > 0:
            self._idle_timer = self.loop.call_later(left_s, self._check_idle)
        else:
            self._refuse(IDLE, f"no message for {self._limits.idle_s:g} s")

    def _refuse(self, reason: str, why: str) -> None:
        if not self.transport.is_closing():
            self.connection.gate.refused(reason, f"closed the stream of {self.connection.peer}: {why}")
        self._cut(POLICY_VIOLATION, f"{reason}: {why}")

    def _cut(self, code: int, reason: str) -> None:
        """Close at once: nothing is read any more, and a peer that does not read is not waited for."""
        if self.transport.is_closing() or self.close_sent or not self.handshake_complete:
            self.transport.abort()
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        try:
            self.conn.send_close(code, reason)
        except InvalidState:  # the peer is closing already
            self.transport.abort()
            return
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()


def _tls_words(exc: ssl.SSLError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {exc.verify_message}"
    return (exc.reason or "it failed").replace("_", " ").lower()
