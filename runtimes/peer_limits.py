"""What one peer of an edge may take: the settings, who it is, and the accounts that hold it to them. No sockets."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from aecnn_deploy.errors import SettingsError

WAITING: Final = (
    "waiting"  # how a connection is known until it has said who it is: by its address, in an account of its own
)

_MAX_IDLE_ACCOUNTS = 4096
_LOG_LINES, _LOG_PERIOD_S = 5, 10.0


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """What one peer may take, and how slow it may be. Raises SettingsError: a number is out of its range."""

    connections: int = 64  # open at a time; and as many more that have not said yet who they are, by address
    bytes_per_s: int = 64 << 20  # received, all its connections together; 0: any. Over it, it is read more slowly
    burst_bytes: int = 32 << 20  # received at once before that begins
    in_flight: int = 256  # requests that wait for their answer
    idle_s: float = 300.0  # without a whole message either way, on a WebSocket
    handshake_s: float = 10.0  # for a TLS handshake and the head of an HTTP request together
    message_s: float = 30.0  # for one WebSocket message, from its first byte to its last
    unread_s: float = 10.0  # for the peer to read what is ready for it

    def __post_init__(self) -> None:
        for name in ("connections", "in_flight"):
            if not 1 <= getattr(self, name) < 1 << 31:
                raise SettingsError(f"{name} of a peer is {getattr(self, name)}, expected at least 1")
        if not (self.bytes_per_s == 0 or self.bytes_per_s >= 1024):
            raise SettingsError(f"bytes_per_s of a peer is {self.bytes_per_s}, expected at least 1024, or 0 for any")
        if self.burst_bytes < 1:
            raise SettingsError(f"burst_bytes of a peer is {self.burst_bytes}, expected at least 1")
        for name in ("idle_s", "handshake_s", "message_s", "unread_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise SettingsError(f"{name} of a peer is {getattr(self, name)}, expected a positive number of seconds")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end: ``name`` is its token's, its client certificate's, or its IP address."""

    name: str
    how: Literal["token", "certificate", "address", "waiting"]

    def __str__(self) -> str:
        return f"the {self.how} {self.name}" if self.how in ("token", "certificate") else self.name


class ByteBucket:
    """A token bucket that goes into debt: it says how long to read nothing, after the bytes have come."""

    def __init__(self, bytes_per_s: int, burst_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = bytes_per_s, burst_bytes, clock
        self._level, self._at_s = float(burst_bytes), clock()

    def take(self, size_bytes: int) -> float:
        """Take ``size_bytes``; the seconds until the debt is paid, 0 without one."""
        if not self._rate:
            return 0.0
        self._refill()
        self._level -= size_bytes
        return max(0.0, -self._level / self._rate)

    @property
    def is_full(self) -> bool:
        """Whether nothing would be forgotten with it."""
        self._refill()
        return not self._rate or self._level >= self._burst

    def _refill(self) -> None:
        now_s = self._clock()
        self._level = min(float(self._burst), self._level + (now_s - self._at_s) * self._rate)
        self._at_s = now_s


@dataclass(slots=True, eq=False)
class Account:
    """One peer's open connections and its bytes."""

    peer: Peer
    bucket: ByteBucket
    connections: int = field(default=0)


class Accounts:
    """The accounts of all peers that are connected, and of those that left in debt: leaving does not pay it."""

    def __init__(self, limits: PeerLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._open: OrderedDict[Peer, Account] = OrderedDict()

    def enter(self, peer: Peer) -> Account | None:
        """Count one more connection of ``peer``; None: it has as many as it may."""
        account = self._open.get(peer)
        if account is None:
            self._forget()
            bucket = ByteBucket(self._limits.bytes_per_s, self._limits.burst_bytes, self._clock)
            account = self._open[peer] = Account(peer, bucket)
        if account.connections >= self._limits.connections:
            return None
        account.connections += 1
        return account

    def leave(self, account: Account) -> None:
        """One connection of ``account`` has ended, or belongs to another now."""
        account.connections -= 1
        if not account.connections and account.bucket.is_full:
            self._open.pop(account.peer, None)

    def __len__(self) -> int:
        return len(self._open)

    def _forget(self) -> None:
        """Bound the memory of a flood from many addresses: what is unused and paid goes, then the oldest unused."""
        if len(self._open) < _MAX_IDLE_ACCOUNTS:
            return
        unused = [account for account in self._open.values() if not account.connections]
        paid = [account for account in unused if account.bucket.is_full]
        for account in paid or unused[: len(unused) // 2 + 1]:
            del self._open[account.peer]


class QuietLog:
    """A logger that says at most five lines of a kind in ten seconds: a hostile peer cannot fill the disk."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger, self._clock = logger, clock
        self._kinds: dict[str, tuple[float, int, int]] = {}  # kind -> (the period's begin, lines said, lines kept back)

    def warning(self, kind: str, text: str) -> None:
        """Say ``text`` unless five of its ``kind`` (one of few fixed words) were said in the last ten seconds."""
        now_s = self._clock()
        began_s, said, kept = self._kinds.get(kind, (now_s, 0, 0))
        if now_s - began_s > _LOG_PERIOD_S:
            began_s, said = now_s, 0
        if said >= _LOG_LINES:
            self._kinds[kind] = (began_s, said, kept + 1)
            return
        more = f" (and {kept} more like it, not logged)" if kept else ""
        self._logger.warning("%s%s", text, more)
        self._kinds[kind] = (began_s, said + 1, 0)
