"""A device's connection to its edge: connect, greet, ask, and connect again when the edge was away."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from aecnn_deploy.codec import EncodedPlanes
from aecnn_deploy.errors import (
    CredentialsError,
    EdgeUnreachableError,
    LinkLostError,
    RequestFailedError,
    SessionRefusedError,
    SettingsError,
    TimedOutError,
    WireError,
)
from aecnn_deploy.optional import require
from aecnn_deploy.planning.link_rate import LinkRate
from aecnn_deploy.runtimes.backoff import Backoff
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.handshake import refusal_of, unreachable
from aecnn_deploy.wire import (
    HEADER_BYTES,
    DeviceEvent,
    DeviceSession,
    FailureReceived,
    GoodbyeReceived,
    Hello,
    RefusalCode,
    RefusedByEdge,
    Result,
    ResultReceived,
    State,
    Welcome,
    Welcomed,
    WireLimits,
)

# What goes wrong is raised here; websockets' own words about it are for those who configure logging.
logger = logging.getLogger("aecnn_deploy.device")
logger.addHandler(logging.NullHandler())
_websockets_logger = logging.getLogger("aecnn_deploy.device.websockets")

STREAM_PATH = "/v1/stream"

_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
_CLOSE_S = 1.0
_PINGS = 3
_NOTHING = Credentials()


@dataclass(frozen=True, slots=True)
class Reply:
    """An edge's answer to one request."""

    request_id: int
    result: Result
    wire_bytes: int  # of the whole INFER message
    round_trip_ms: float  # from the call of ``request`` to the answer
    waited_ms: float  # of it, inside the WebSocket library's send and receive


def stream_url(edge: str) -> str:
    """The WebSocket address of ``edge`` (a ws, wss, http or https URL). Raises SettingsError: it is no such URL."""
    return websocket_url(edge, STREAM_PATH, "--edge")


def websocket_url(address: str, path: str, option: str) -> str:
    """``address`` (a ws, wss, http or https URL) with ``path`` added. Raises SettingsError: it is no such URL."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise SettingsError(f"{option} {address!r} is no address: {exc}") from None
    if parts.scheme not in _SCHEMES or not host or parts.query or parts.fragment:
        what = "an edge" if option == "--edge" else "a controller"
        raise SettingsError(f"{option} {address!r} is no address of {what}; give ws://HOST:PORT or wss://HOST:PORT")
    before = parts.path.rstrip("/")
    full = before if before.endswith(path) else before + path
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, full, "", ""))


class EdgeLink:
    """One device's link, in one of two ways.

    ``request``: one at a time, from one thread, each wait at most ``timeout_s``. A link that is down is tried again
    with growing pauses between the attempts, and what is asked in a pause fails at once: a dead edge cannot hold up a
    folder of images.

    ``prepare`` and ``send`` in one thread, ``next_event`` in another: several requests in flight, whose times are the
    caller's to watch; ``abort``, from any thread, ends both.

    Raises, when it is made, SettingsError: the address, a time or options that do not go with it; CredentialsError: a
    file cannot be used.
    """

    def __init__(
        self,
        edge: str,
        hello: Hello,
        *,
        timeout_s: float,
        limits: WireLimits,
        rate: LinkRate | None = None,
        session_trace: Callable[[], str | None] = lambda: None,
        credentials: Credentials = _NOTHING,
    ) -> None:
        if not 0 < timeout_s < 1e6:
            raise SettingsError(f"timeout_s is {timeout_s}, expected a positive number of seconds")
        self.url = stream_url(edge)
        self._credentials = credentials
        credentials.check(self.url)
        self._hello, self._timeout_s, self._limits, self._session_trace = hello, timeout_s, limits, session_trace
        self._stack = ExitStack()
        self._connection: Any = None
        self._connection_closed = require("websockets.exceptions", why="running a device").ConnectionClosed
        self._session = DeviceSession(hello, limits)
        self._session_lock = threading.Lock()
        self._guard: socket.socket | None = None  # the same connection as websockets' own socket
        self._backoff, self._not_before_s = Backoff(), 0.0
        self._why, self._waited_s, self._pinged_s = "", 0.0, 0.0
        self.rate = rate if rate is not None else LinkRate()  # follows every answer to ``request``

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    @property
    def trace(self) -> str | None:
        """Of the open session; None where nothing is traced."""
        return self._session.hello.trace

    @property
    def next_request_id(self) -> int:
        """The id that the next ``request`` has in its session."""
        return self._session.next_request_id

    def open(self) -> Welcome:
        """Connect and greet. Raises EdgeUnreachableError; SessionRefusedError: the edge refuses this device."""
        if time.monotonic() < self._not_before_s:
            raise EdgeUnreachableError(self.url, f"{self._why} (tried just now)")
        try:
            welcome = self._open()
        except (EdgeUnreachableError, SessionRefusedError) as exc:
            self.close()
            self._why = exc.why if isinstance(exc, EdgeUnreachableError) else str(exc)
            # A person has to do something first where the edge does not know this device.
            final = isinstance(exc, SessionRefusedError) and exc.code == RefusalCode.UNAUTHORIZED
            self._not_before_s = time.monotonic() + self._backoff.pause_s(final=final)
            raise
        self._backoff.reset()
        return welcome

    def measure(self) -> None:
        """Send empty messages (WebSocket pings) there and back, for ``rate``, until one is not answered in time."""
        for _ in range(_PINGS):
            began_s = time.perf_counter()
            try:
                answered = self._connection.ping().wait(self._timeout_s)
            except self._connection_closed:
                return  # the next request finds it out
            if not answered:
                return
            self.rate.pinged((time.perf_counter() - began_s) * 1e3)

    def idle_ping_ms(self) -> float | None:
        """What the WebSocket library's last ping took, one in 20 s, which keeps the connection; None: no new one."""
        took_s = getattr(self._connection, "latency", 0.0)  # websockets 15 and later
        if not took_s or took_s == self._pinged_s:
            return None
        self._pinged_s = took_s
        return float(took_s) * 1e3

    def request(self, variant: int, planes: EncodedPlanes, *, deadline_ms: int) -> Reply:
        """Send one image's planes and wait for the answer.

        Raises LinkLostError: the connection was lost before the answer came, and is closed; to ask again, in a new
        session, changes nothing on the edge. EdgeUnreachableError: not open, or no answer in time. RequestFailedError:
        the edge says no.
        """
        if not self.is_open:
            raise EdgeUnreachableError(self.url, "the link is not open")
        started_s, self._waited_s = time.perf_counter(), 0.0
        try:
            return self._ask(variant, planes, deadline_ms, started_s)
        except LinkLostError:
            self.close()
            raise

    def prepare(self, variant: int, planes: EncodedPlanes, *, deadline_ms: int) -> tuple[int, bytes]:
        """The id of a new request, and its message for ``send``.

        Raises LinkLostError: the edge takes nothing more in this session. RequestFailedError: it cannot be sent.
        """
        with self._session_lock:
            if self._session.state is not State.OPEN:
                raise LinkLostError(self.url, "the edge takes nothing more on this connection")
            return self._infer(variant, planes, deadline_ms)

    def send(self, message: bytes) -> None:
        """Send what ``prepare`` made; as long as the edge takes to read it. Raises LinkLostError."""
        self._send(message)

    def next_event(self) -> DeviceEvent:
        """What the edge says next, however long it takes. Raises LinkLostError, also where it breaks the protocol."""
        try:
            return self._receive(None)[0]
        except WireError as exc:
            raise LinkLostError(self.url, f"it broke the protocol: {exc}") from None

    def abort(self) -> None:
        """End the connection at once, from any thread: whatever waits for it fails."""
        guard = self._guard
        if guard is not None:
            with suppress(OSError):
                guard.shutdown(socket.SHUT_RDWR)

    def part(self) -> None:
        """Say GOODBYE and close the WebSocket, at most a second; ``next_event`` then fails, and its thread closes."""
        connection = self._connection
        if connection is not None:
            with suppress(Exception):  # as in ``close``
                with self._session_lock:
                    message = self._session.goodbye("done")
                connection.send(message)
            with suppress(Exception):
                connection.close()

    def close(self) -> None:
        """Say GOODBYE where there is somebody to hear it, and close."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # whatever it is: the connection is being given up
                connection.send(self._session.goodbye("done"))
        self._stack.close()
        self._guard = None

    def _open(self) -> Welcome:
        client = require("websockets.sync.client", why="running a device")
        from websockets.exceptions import InvalidStatus, WebSocketException

        hello = msgspec.structs.replace(self._hello, trace=self._session_trace())
        self._session = DeviceSession(hello, self._limits)
        try:
            connection = client.connect(
                self.url,
                ssl=self._credentials.ssl_context(self.url),
                additional_headers=self._credentials.headers(),
                sock=self._socket(),
                compression=None,  # planes are coded already
                open_timeout=self._timeout_s,
                close_timeout=_CLOSE_S,
                max_size=HEADER_BYTES + self._limits.max_control_bytes,
                logger=_websockets_logger,
            )
            self._connection = self._stack.enter_context(connection)
            self._send(self._session.start())
            events = self._receive(time.monotonic() + self._timeout_s)
        except InvalidStatus as exc:
            raise refusal_of(self.url, exc.response.status_code, exc.response.body or b"") from None
        except (WebSocketException, EOFError, AssertionError, OSError) as exc:  # TLS's and TimeoutError included
            # AssertionError: websockets' own, from a peer that talks before it was asked.
            raise unreachable(self.url, exc, self._timeout_s, self._credentials) from None
        except (CredentialsError, WireError) as exc:  # a file that was good when the link was made
            raise EdgeUnreachableError(self.url, str(exc)) from None
        match events[0]:
            case Welcomed(welcome):
                return welcome
            case RefusedByEdge(refused):
                raise SessionRefusedError(refused.code, refused.reason, getattr(refused, "retry_after_s", None))
            case _:
                raise EdgeUnreachableError(self.url, "its first message is neither WELCOME nor REFUSED")

    def _socket(self) -> socket.socket:
        parts = urlsplit(self.url)
        port = parts.port or (443 if parts.scheme == "wss" else 80)
        # Made here and not by websockets: no proxy stands between a device and its edge.
        connected = socket.create_connection((parts.hostname, port), timeout=self._timeout_s)
        connected.settimeout(None)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: a peer that vanished ends a send, too
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._timeout_s * 1e3))
        # A send to a peer that reads nothing holds websockets' lock: only the socket itself can be told to end it.
        self._guard = self._stack.enter_context(connected.dup())
        return connected

    def _ask(self, variant: int, planes: EncodedPlanes, deadline_ms: int, started_s: float) -> Reply:
        request_id, message = self._infer(variant, planes, deadline_ms)
        end_s = time.monotonic() + self._timeout_s
        self._send(message)
        leaving = False
        while True:
            try:
                events = self._receive(end_s)
            except TimeoutError:
                self.close()  # else a late answer would stand before the next one
                raise TimedOutError(self.url, f"no answer within {self._timeout_s:g} s") from None
            except WireError as exc:
                raise LinkLostError(self.url, f"it broke the protocol: {exc}") from None
            for event in events:
                match event:
                    case ResultReceived(answered, result) if answered == request_id:
                        round_trip_s = time.perf_counter() - started_s
                        reply = Reply(request_id, result, len(message), round_trip_s * 1e3, self._waited_s * 1e3)
                        self.rate.heard(len(message), max(0.0, reply.round_trip_ms - result.total_ms))
                        if leaving:
                            self.close()
                        return reply
                    case FailureReceived(answered, failed) if answered == request_id:
                        if leaving:
                            self.close()
                        raise RequestFailedError(failed.code, failed.reason, failed.retry_after_s)
                    case GoodbyeReceived():
                        leaving = True  # it still answers what it has

    def _infer(self, variant: int, planes: EncodedPlanes, deadline_ms: int) -> tuple[int, bytes]:
        try:
            return self._session.infer(variant, planes.coder_id, planes.payload, planes.raw_bytes, deadline_ms)
        except WireError as exc:
            raise RequestFailedError("not-sent", str(exc)) from None

    def _send(self, message: bytes) -> None:
        connection = self._connection
        if connection is None:  # closed by the thread that receives
            raise LinkLostError(self.url, "the connection was lost")
        began_s = time.perf_counter()
        try:
            connection.send(message)
        except self._connection_closed as exc:
            raise LinkLostError(self.url, _closed(exc)) from None
        finally:
            self._waited_s += time.perf_counter() - began_s

    def _receive(self, end_s: float | None) -> list[DeviceEvent]:
        began_s = time.perf_counter()
        try:
            data = self._connection.recv(timeout=None if end_s is None else max(0.0, end_s - time.monotonic()))
        except self._connection_closed as exc:
            raise LinkLostError(self.url, _closed(exc)) from None
        finally:
            self._waited_s += time.perf_counter() - began_s
        if isinstance(data, str):
            raise WireError("a text WebSocket message came; ours are binary")
        with self._session_lock:
            events = self._session.receive(data)
            whole = self._session.at_boundary
        if len(events) != 1 or not whole:
            raise WireError("a WebSocket message must hold exactly one message of ours")
        return events


def _closed(exc: Any) -> str:
    """What a ConnectionClosed says, in words: the close code and the peer's reason, if it gave one."""
    frame = exc.rcvd
    if frame is None:
        return "the connection was lost"
    return f"it closed the stream ({frame.code}{': ' + frame.reason if frame.reason else ''})"
