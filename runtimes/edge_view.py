"""What those who watch an edge see of it: its state when they look, and who is at the other end of a request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

SPLIT, FULL = "split", "full"  # the two paths of a request: a device's planes, or a whole image

# path -> its stages as they are shown; whatever a total has beyond them is "other"
STAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {SPLIT: ("queue", "decode", "tail"), FULL: ("queue", "decode", "full")}
)
OTHER, TOTAL = "other", "total"

OK = "ok"

StateName = Literal["loading", "ready", "away", "draining"]  # away: so are those who run its models elsewhere


@dataclass(frozen=True, slots=True)
class VariantState:
    """One variant of the bundle: ``target`` is what runs it (empty while nothing does), ``queued`` what waits."""

    id: str
    loaded: bool
    target: str
    queued: int


@dataclass(frozen=True, slots=True)
class EdgeState:
    """An edge at one moment. ``streams``: open WebSockets, those included that said no HELLO yet."""

    state: StateName
    bundle_id: str
    runner: str
    in_flight: int
    streams: int
    variants: tuple[VariantState, ...]


@dataclass(slots=True)
class Peer:
    """Who is at the other end: one stream of a device, or one client of HTTP.

    ``name`` is what it calls itself, or with ``verified`` what its credentials say: a stranger's word either way until
    it is verified, so rows of the status page are kept apart by ``key``, which holds its host where it is not.
    """

    stream: int  # counted up in the edge's life; 0 for a client of HTTP
    address: str  # host:port; the host alone for a client of HTTP
    name: str = ""
    verified: bool = False
    software: str = ""
    trace: str | None = None  # of its HELLO
    welcomed: bool = False
    key: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.key = ("address", self.address)

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0] if self.stream else self.address

    def introduce(self, name: str, *, verified: bool, software: str, trace: str | None) -> None:
        """What its HELLO, and its credentials if it had any, say of it."""
        self.name, self.verified, self.software, self.trace, self.welcomed = name, verified, software, trace, True
        if name:
            self.key = ("name", name) if verified else ("name", name, self.host)
