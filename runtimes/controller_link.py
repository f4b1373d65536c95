"""A device's connection to its controller: tells its state once a slot, hears advice, and comes back when it was lost.

One thread does all of it. Whatever goes wrong here costs a frame nothing: without advice the device decides itself.
"""

import logging
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from aecnn_deploy.errors import AecnnError, CredentialsError, EdgeUnreachableError, SessionRefusedError, WireError
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.backoff import Backoff
from aecnn_deploy.runtimes.controller_advice import AdviceBox
from aecnn_deploy.runtimes.controller_messages import (
    ADVICE_PATH,
    MAX_ADVICE_BYTES,
    PROTOCOL,
    Advice,
    Hello,
    Refused,
    State,
    Welcome,
    encoded,
    from_controller,
)
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.device_link import websocket_url
from aecnn_deploy.runtimes.handshake import refusal_of, unreachable

logger = logging.getLogger("aecnn_deploy.device")
_websockets_logger = logging.getLogger("aecnn_deploy.device.websockets")

_CLOSE_S = 0.5
_LONGEST_S = 5.0  # between attempts
_LEAD_SHARE = 0.15  # of a slot: so long before the next advice is due the state is told
_SILENT_S = 10.0  # without advice, after which the connection is made again
_JOIN_S = 2.0


class ControllerLink:
    """``tell``: the device's state, for a slot; ``box`` gets the advice, ``heard`` is called then. All under ``lock``.

    Raises SettingsError, CredentialsError: the address or the credentials cannot be used.
    """

    def __init__(
        self,
        controller: str,
        hello: Hello,
        *,
        credentials: Credentials,
        timeout_s: float,
        lock: Lock,
        box: AdviceBox,
        tell: Callable[[int, float], State],
        heard: Callable[[], None] = lambda: None,
        seed: int | None = None,
    ) -> None:
        self.url = websocket_url(controller, ADVICE_PATH, "--controller")
        credentials.check(self.url)
        self._hello, self._credentials, self._timeout_s = hello, credentials, timeout_s
        self._lock, self._box, self._tell, self._heard = lock, box, tell, heard
        self._closed = require("websockets.exceptions", why="running a device").ConnectionClosed
        self._backoff = Backoff(random.Random(seed), longest_s=_LONGEST_S)
        self._closing = threading.Event()
        self._guard: socket.socket | None = None
        self._said = ""  # the last line about it
        self._thread = threading.Thread(target=self._always, name="aecnn-advice", daemon=True)

    def start(self) -> None:
        """Connect, and again whenever the connection is lost."""
        self._thread.start()

    def close(self) -> None:
        """End it, some seconds at most."""
        self._closing.set()
        guard = self._guard
        if guard is not None:
            with suppress(OSError):
                guard.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def _always(self) -> None:
        while not self._closing.is_set():
            try:
                final = False
                self._session()
            except AecnnError as exc:
                final = isinstance(exc, SessionRefusedError)
                why = exc.why if isinstance(exc, EdgeUnreachableError) else str(exc)
                self._say(f"no advice from the controller at {self.url}: {why}; this device decides itself")
            if not self._closing.is_set():
                self._closing.wait(self._backoff.pause_s(final=final))

    def _session(self) -> None:
        """One connection until it ends. Raises EdgeUnreachableError, SessionRefusedError, WireError."""
        with ExitStack() as stack:
            connection = self._connect(stack)
            try:
                self._converse(connection)
            except (self._closed, OSError, EOFError) as exc:
                raise EdgeUnreachableError(self.url, f"the connection ended ({type(exc).__name__})") from None
            finally:
                self._guard = None

    def _converse(self, connection: Any) -> None:
        connection.send(encoded(self._hello))
        try:
            answer = from_controller(connection.recv(timeout=self._timeout_s))
        except TimeoutError:
            raise EdgeUnreachableError(self.url, f"no answer within {self._timeout_s:g} s") from None
        if isinstance(answer, Refused):
            raise SessionRefusedError(answer.code, _printable(answer.reason))
        if not isinstance(answer, Welcome) or answer.protocol != PROTOCOL:
            raise WireError(f"the controller's first message is no WELCOME to version {PROTOCOL} of its protocol")
        slot_s = answer.slot_ms / 1e3
        tell_s = heard_s = time.perf_counter()
        while not self._closing.is_set():
            now_s = time.perf_counter()
            if now_s >= tell_s:
                with self._lock:
                    state = self._tell(self._box.slot, now_s)
                connection.send(encoded(state))
                tell_s = now_s + slot_s
            if now_s - heard_s > max(_SILENT_S, 20 * slot_s):
                raise EdgeUnreachableError(self.url, f"it said nothing for {now_s - heard_s:.0f} s")
            try:
                message = from_controller(connection.recv(timeout=max(0.0, tell_s - now_s)))
            except TimeoutError:
                continue
            if isinstance(message, Refused):  # the device's bundle is advised no longer
                raise SessionRefusedError(message.code, _printable(message.reason))
            if not isinstance(message, Advice):
                raise WireError("the controller says something else than ADVICE")
            heard_s = time.perf_counter()
            with self._lock:
                box, valid_ms = self._box, message.valid_for_ms
                box.put(message.slot, message.edge, message.variant, valid_ms, heard_s, idle=message.idle)
                self._heard()
            tell_s = heard_s + slot_s * (1 - _LEAD_SHARE)  # just before the next one
            self._backoff.reset()
            self._said_back()

    def _connect(self, stack: ExitStack) -> Any:
        client = require("websockets.sync.client", why="running a device")
        from websockets.exceptions import InvalidStatus, WebSocketException

        try:
            return stack.enter_context(
                client.connect(
                    self.url,
                    ssl=self._credentials.ssl_context(self.url),
                    additional_headers=self._credentials.headers(),
                    sock=self._socket(stack),
                    compression=None,
                    open_timeout=self._timeout_s,
                    close_timeout=_CLOSE_S,
                    max_size=MAX_ADVICE_BYTES,
                    logger=_websockets_logger,
                )
            )
        except InvalidStatus as exc:
            raise refusal_of(self.url, exc.response.status_code, exc.response.body or b"") from None
        except (WebSocketException, EOFError, AssertionError, OSError) as exc:  # as an edge's link does
            raise unreachable(self.url, exc, self._timeout_s, self._credentials) from None
        except CredentialsError as exc:  # a file that was good when the link was made
            raise EdgeUnreachableError(self.url, str(exc)) from None

    def _socket(self, stack: ExitStack) -> socket.socket:
        parts = urlsplit(self.url)
        port = parts.port or (443 if parts.scheme == "wss" else 80)
        connected = socket.create_connection((parts.hostname, port), timeout=self._timeout_s)
        connected.settimeout(None)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: a peer that vanished ends a send, too
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._timeout_s * 1e3))
        self._guard = stack.enter_context(connected.dup())
        if self._closing.is_set():  # ``close`` may have found no socket to end
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
        return connected

    def _say(self, text: str) -> None:
        if text != self._said and not self._closing.is_set():
            self._said = text
            logger.warning("%s", text)

    def _said_back(self) -> None:
        if self._said:
            self._said = ""
            logger.warning("the controller at %s advises again", self.url)


def _printable(text: str) -> str:
    return "".join(mark if mark.isprintable() else "?" for mark in text)[:500]
