"""The devices that a controller advises, and the last word of each; of edges what their own pages say. No I/O."""

from dataclasses import dataclass, field

from aecnn_deploy.runtimes.controller_messages import Advice, Hello, State


@dataclass(slots=True, eq=False)
class Member:
    """One connected device. ``edges``: for each of the controller's edges the device's index of it, or None."""

    hello: Hello
    edges: tuple[int | None, ...]
    variants: tuple[int | None, ...]  # for each of the bundle's variants the device's index
    state: State | None = None
    told_s: float = 0.0  # when the state came
    states: int = 0
    advised: int = 0
    joined_s: float = 0.0
    used_s: dict[int, float] = field(default_factory=dict)  # when it last went to an edge
    mailbox: list[Advice] = field(default_factory=list)  # the newest advice, until it is sent


@dataclass(slots=True)
class EdgeSeen:
    """What an edge's own status says. ``queued``: requests that wait there; ``seen_s``: when it was asked."""

    reachable: bool
    queued: int = 0
    seen_s: float = 0.0


class Roster:
    """Who is there. ``stale_s``: a state that is older is no word of the present.

    ``any_name``: there is one edge, whatever devices call it. ``most``: devices at a time.
    """

    def __init__(
        self,
        edges: tuple[str, ...],
        variants: tuple[str, ...],
        *,
        stale_s: float,
        most: int = 512,
        any_name: bool = False,
    ) -> None:
        self._any_name = any_name
        self.edges, self.variants, self.stale_s, self.most = edges, variants, stale_s, most
        self.members: list[Member] = []
        self.seen: dict[int, EdgeSeen] = {}  # by the index of the edge

    def unknown_edges(self, hello: Hello) -> list[str]:
        """The edges of a HELLO that the controller does not have."""
        return hello.edges[1:] if self._any_name else [name for name in hello.edges if name not in self.edges]

    def join(self, hello: Hello, now_s: float) -> Member:
        """A device whose HELLO was accepted."""
        own = [*self.edges] if self._any_name else hello.edges
        edges = tuple(own.index(name) if name in own else None for name in self.edges)
        variants = tuple(hello.variants.index(name) if name in hello.variants else None for name in self.variants)
        member = Member(hello, edges, variants, joined_s=now_s)
        self.members.append(member)
        return member

    def leave(self, member: Member) -> None:
        """A device's connection has ended."""
        self.members.remove(member)

    def tell(self, member: Member, state: State, now_s: float) -> str | None:
        """A device told its state; why it makes no sense, or None."""
        edges, variants = len(member.hello.edges), len(member.hello.variants)
        if len(state.device_ms) != variants:
            return f"device_ms holds {len(state.device_ms)} times for {variants} variants"
        if any(told.edge >= edges for told in state.edges):
            return f"an edge has an index over {edges - 1}"
        if any(way.variant >= variants for told in state.edges for way in told.ways):
            return f"a variant has an index over {variants - 1}"
        member.state, member.told_s = state, now_s
        member.states += 1
        return None

    def fresh(self, now_s: float) -> list[Member]:
        """Those whose state is of the present, in the order in which they joined."""
        return [each for each in self.members if each.state is not None and now_s - each.told_s <= self.stale_s]

    def stale(self, now_s: float) -> int:
        """How many are connected and say nothing."""
        return len(self.members) - len(self.fresh(now_s))
