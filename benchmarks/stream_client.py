"""One streaming device on a plain socket, with as little work for each message as can be.

A load generator takes its time from the cores that the edge under test runs on. So after a handshake by the library
websockets, frames are written and read here: a request is one ``pack`` and one ``send``, an answer one ``recv`` and
one JSON document. Requests are masked with zeros, which RFC 6455 allows a client that needs no protection from
itself; the edge unmasks them like any other.
"""

import socket
import ssl
import struct
from urllib.parse import urlsplit

import msgspec
from websockets.client import ClientProtocol
from websockets.protocol import State
from websockets.uri import parse_uri

from aecnn_deploy.codec import coder_names
from aecnn_deploy.errors import AecnnError, EdgeUnreachableError, SessionRefusedError, WireError
from aecnn_deploy.wire import HEADER_BYTES, WIRE_VERSION, Hello, Kind, Refused, Welcome, decode_control, pack
from aecnn_deploy.wire.messages import encode_control
from benchmarks.traffic import Planned, Traffic

STREAM_PATH = "/v1/stream"

_OPCODE_BINARY, _OPCODE_PING, _OPCODE_PONG = 2, 9, 10
_FINAL, _MASKED, _NO_MASK = 0x80, 0x80, bytes(4)
_U16, _U64 = struct.Struct(">H"), struct.Struct(">Q")
_READ_BYTES = 1 << 18


class Outcome(msgspec.Struct, frozen=True):
    """What of a RESULT or a FAILED is measured; ``code`` is empty for a RESULT."""

    code: str = ""
    retry_after_s: float | None = None
    top: list[tuple[int, float]] = []
    decode_ms: float = 0.0
    queue_ms: float = 0.0
    tail_ms: float = 0.0
    total_ms: float = 0.0


_outcomes = msgspec.json.Decoder(Outcome)


class StreamClient:
    """One session. ``max_in_flight`` is the WELCOME's.

    Raises EdgeUnreachableError: no connection, or no WebSocket (a wrong token: its status). SessionRefusedError.
    """

    def __init__(
        self,
        url: str,
        traffic: Traffic,
        *,
        token: str | None = None,
        timeout_s: float = 20.0,
        receive_buffer_bytes: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.url = url.rstrip("/") + STREAM_PATH
        self._traffic = traffic
        self._received = bytearray()
        self._end: WireError | None = None
        self._next_id = 1
        parts = urlsplit(self.url)
        self.socket = socket.socket()
        self.socket.settimeout(timeout_s)
        if receive_buffer_bytes is not None:  # before connecting: TCP says then how large its window can be
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            self.socket.connect((parts.hostname, parts.port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:  # what a record holds comes at once: have one request in flight, not more
                self.socket = tls.wrap_socket(self.socket, server_hostname=parts.hostname)
            self._shake_hands(token)
            self.welcome = self._greet()
        except OSError as exc:
            self.close()
            raise EdgeUnreachableError(self.url, exc.strerror or str(exc)) from None
        except AecnnError:
            self.close()
            raise
        self.max_in_flight = self.welcome.max_in_flight

    def fileno(self) -> int:
        return self.socket.fileno()

    def ask(self, planned: Planned) -> tuple[int, int]:
        """Send one request: its id and the bytes of the INFER. Raises OSError: the connection is gone."""
        request_id = self._next_id
        self._next_id += 1
        message = pack(
            Kind.INFER,
            planned.payload,
            request_id=request_id,
            variant=self._traffic.variant,
            coder=planned.coder_id,
            raw_bytes=planned.raw_bytes,
        )
        self._send(_OPCODE_BINARY, message)
        return request_id, len(message)

    def answers(self) -> list[tuple[int, Outcome]]:
        """(request id, outcome) of what has come; call it when the socket is readable.

        Raises WireError: the edge left, or said something else. OSError: the connection is gone.
        """
        found = []
        for message in self._messages():
            if message[5] not in (Kind.RESULT, Kind.FAILED):
                raise WireError(f"{self.url} said {Kind(message[5]).name} in the middle of a measurement")
            found.append((int.from_bytes(message[8:16]), _outcomes.decode(message[HEADER_BYTES:])))
        return found

    def close(self) -> None:
        self.socket.close()

    def _shake_hands(self, token: str | None) -> None:
        protocol = ClientProtocol(parse_uri(self.url))
        request = protocol.connect()
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        protocol.send_request(request)
        self.socket.sendall(b"".join(protocol.data_to_send()))
        while protocol.state is State.CONNECTING and protocol.handshake_exc is None:
            data = self.socket.recv(_READ_BYTES)
            if not data:
                raise EdgeUnreachableError(self.url, "it closed the connection during the handshake")
            protocol.receive_data(data)
        if protocol.handshake_exc is not None:
            raise EdgeUnreachableError(self.url, str(protocol.handshake_exc))

    def _greet(self) -> Welcome:
        hello = Hello(
            bundle_id=self._traffic.bundle_id,
            wire_versions=[WIRE_VERSION],
            variants=self._traffic.variants,
            coders=list(coder_names()),
            software="load generator",
        )
        self._send(_OPCODE_BINARY, pack(Kind.HELLO, encode_control(hello)))
        while True:
            for message in self._messages():
                if message[5] == Kind.REFUSED:
                    refused = decode_control(Refused, message[HEADER_BYTES:])
                    raise SessionRefusedError(refused.code, refused.reason)
                return decode_control(Welcome, message[HEADER_BYTES:])

    def _send(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = bytes((_FINAL | opcode, _MASKED | size))
        elif size < 1 << 16:
            head = bytes((_FINAL | opcode, _MASKED | 126)) + _U16.pack(size)
        else:
            head = bytes((_FINAL | opcode, _MASKED | 127)) + _U64.pack(size)
        self.socket.sendall(head + _NO_MASK + payload)

    def _messages(self) -> list[bytes]:
        """Whole binary messages; waits for the socket once. Raises WireError: it was closed, or sends fragments."""
        data = self.socket.recv(_READ_BYTES) if self._end is None else b""
        if not data:
            raise self._end or WireError(f"{self.url} closed the connection")
        self._received += data
        at, found = 0, []
        while (frame := self._frame(at)) is not None:
            opcode, payload, at = frame
            if opcode == _OPCODE_BINARY:
                found.append(payload)
            elif opcode == _OPCODE_PING:
                self._send(_OPCODE_PONG, payload)
            elif opcode != _OPCODE_PONG:
                why = f"{self.url} sent a frame of opcode {opcode}: {payload[2:].decode(errors='replace')}"
                self._end = WireError(why)
                break  # what came before it counts
        del self._received[:at]
        if self._end is not None and not found:
            raise self._end
        return found

    def _frame(self, at: int) -> tuple[int, bytes, int] | None:
        """(opcode, payload, where the next frame begins) of the frame at ``at``, None while it is not whole."""
        received = self._received
        if len(received) < at + 2:
            return None
        if not received[at] & _FINAL or received[at + 1] & _MASKED:
            raise WireError(f"{self.url} sent a fragment or a masked frame, which uvicorn never does")
        size, begin = received[at + 1], at + 2
        if size >= 126:
            wide = _U16 if size == 126 else _U64
            if len(received) < begin + wide.size:
                return None
            size, begin = wide.unpack_from(received, begin)[0], begin + wide.size
        end = begin + size
        return (received[at] & 0x0F, bytes(received[begin:end]), end) if len(received) >= end else None
