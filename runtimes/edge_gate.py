"""What stands between an edge and its peers: certificates, tokens, and an account for each connection."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.peer_limits import WAITING, Account, Accounts, Peer, PeerLimits, QuietLog
from aecnn_deploy.runtimes.tls import EdgeTls
from aecnn_deploy.runtimes.tokens import Token, TokenFile

logger = logging.getLogger("aecnn_deploy.edge")

CONNECTION = "connection"  # its key in the state of an ASGI scope
POLICY_VIOLATION = 1008  # close code of RFC 6455

# Why a peer is refused or cut off: the words of the log, of metrics and of close frames.
UNAUTHORIZED, CROSS_SITE, CONNECTIONS, TLS = "unauthorized", "cross-site", "connections", "tls"
SLOW_HANDSHAKE, SLOW_MESSAGE, SLOW_READER, IDLE = "slow-handshake", "slow-message", "slow-reader", "idle"
REASONS = (UNAUTHORIZED, CROSS_SITE, CONNECTIONS, TLS, SLOW_HANDSHAKE, SLOW_MESSAGE, SLOW_READER, IDLE)

_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """Who may speak to an edge, and how much. Raises SettingsError: options that do not go together."""

    tls_cert: Path | None = None  # PEM, the edge's own first; None: no TLS
    tls_key: Path | None = None  # PEM, not encrypted
    client_ca: Path | None = None  # PEM; with it every client needs a certificate of one of these
    token_file: Path | None = None  # None: whoever reaches the port may ask
    open_status: bool = False  # the status page and the metrics need no token
    limits: PeerLimits = field(default_factory=PeerLimits)

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            given, lacks = ("--tls-cert", "--tls-key") if self.tls_key is None else ("--tls-key", "--tls-cert")
            raise SettingsError(f"{given} goes with {lacks}, which is not given; a certificate needs its private key")
        if self.client_ca is not None and self.tls_cert is None:
            raise SettingsError("--client-ca goes with TLS; give --tls-cert and --tls-key, too")
        if self.open_status and self.token_file is None:
            raise SettingsError("--open-status goes with --token-file; without one the status is open to everyone")


class Connection:
    """One TCP connection, from its first byte: whose it is, and how to slow it or end it."""

    def __init__(self, gate: "Gate", address: str, account: Account) -> None:
        self.gate, self.address, self.account = gate, address, account
        self.certificate_name: str | None = None  # common name of the client's certificate
        self.token: Token | None = None  # that it showed last
        self.hold: Callable[[float], None] | None = None  # read nothing for so many seconds
        self.cut: Callable[[int, str], None] | None = None  # close an open WebSocket
        self.ended = False

    @property
    def peer(self) -> Peer:
        return self.account.peer

    def received(self, size_bytes: int) -> None:
        """Charge its peer with what came."""
        delay_s = self.account.bucket.take(size_bytes)
        if delay_s and self.hold is not None:
            self.gate.log.warning("rate", f"{self.peer} sends over {self.gate.limits.bytes_per_s} bytes/s: slowed")
            self.hold(delay_s)


class Gate:
    """The state that all connections share. Lives on one event loop.

    ``on_refused`` hears one of ``REASONS``, and a line for a person, for every peer that is refused or cut
    off. Raises CredentialsError: a certificate, key or token file cannot be used. MissingExtraError: the edge's extra
    is not installed.
    """

    def __init__(
        self, settings: GuardSettings, on_refused: Callable[[str, str], None] = lambda _reason, _text: None
    ) -> None:
        self.settings, self.limits, self.on_refused = settings, settings.limits, on_refused
        self.tls: EdgeTls | None = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            self.tls = EdgeTls(settings.tls_cert, settings.tls_key, settings.client_ca)
        self.tokens = TokenFile(settings.token_file) if settings.token_file is not None else None
        self.log = QuietLog(logger)
        self._accounts = Accounts(settings.limits)
        self._admitted: set[Connection] = set()  # by a token, for as long as it is one
        self._poll_timer: asyncio.TimerHandle | None = None

    def warn_of_open_tokens(self, host: str) -> None:
        """Say so if whoever listens in on ``host``'s network can read the tokens."""
        if self.tokens is not None and self.tls is None and host not in ("localhost", "127.0.0.1", "::1"):
            logger.warning("tokens come unencrypted; give --tls-cert and --tls-key, or put a TLS proxy in front")

    def connect(self, address: str) -> Connection | None:
        """A new TCP connection; None, and told: too many of ``address`` have not said yet who they are."""
        account = self._accounts.enter(Peer(address, WAITING))
        if account is None:
            self.refused(CONNECTIONS, f"{address} has {self.limits.connections} connections that say nothing")
            return None
        return Connection(self, address, account)

    def adopt(self, connection: Connection, peer: Peer, token: Token | None) -> bool:
        """``connection`` is ``peer``'s; False: it has as many as it may."""
        if connection.ended:  # before its request had its turn: it counts no more
            return True
        if connection.peer != peer:
            account = self._accounts.enter(peer)
            if account is None:
                return False
            self._accounts.leave(connection.account)
            connection.account = account
        connection.token = token
        return True

    def watch(self, connection: Connection) -> None:
        """End the open stream of ``connection`` when its token is taken out of the file."""
        if self.tokens is None or connection.token is None:
            return
        self._admitted.add(connection)
        if self._poll_timer is None:
            self._poll_timer = asyncio.get_running_loop().call_later(_POLL_S, self._poll)

    def disconnect(self, connection: Connection) -> None:
        """``connection`` has ended. May be told twice."""
        if not connection.ended:
            connection.ended = True
            self._accounts.leave(connection.account)
            self._admitted.discard(connection)

    def refused(self, reason: str, text: str) -> None:
        """Count and log that a peer was refused or cut off for one of ``REASONS``."""
        self.on_refused(reason, text)
        self.log.warning(reason, text)

    def _poll(self) -> None:
        self._poll_timer = None
        assert self.tokens is not None
        for connection in list(self._admitted):
            if connection.token is not None and not self.tokens.holds(connection.token):
                self._admitted.discard(connection)
                self.refused(UNAUTHORIZED, f"closed the stream of {connection.peer}: its token was taken out")
                if connection.cut is not None:
                    connection.cut(POLICY_VIOLATION, f"{UNAUTHORIZED}: the token was taken out of the edge's file")
        if self._admitted:
            self._poll_timer = asyncio.get_running_loop().call_later(_POLL_S, self._poll)
