"""A queue that is fair: whoever asks for much waits behind its own requests, not others behind them."""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of many peers and of each peer's streams, taken in turns: among the peers, then among a peer's streams.

    One stream's items keep their order. Each step takes constant time but ``ahead`` and ``crowded``, which look at
    every peer. Not thread safe.
    """

    def __init__(self) -> None:
        self._peers: OrderedDict[Hashable, OrderedDict[Hashable, deque[T]]] = OrderedDict()
        self._counts: dict[Hashable, int] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        """Every item, in no order that means anything."""
        for streams in self._peers.values():
            for items in streams.values():
                yield from items

    def push(self, peer: Hashable, stream: Hashable, item: T) -> None:
        """Queue ``item`` behind those of its stream."""
        self._peers.setdefault(peer, OrderedDict()).setdefault(stream, deque()).append(item)
        self._counts[peer] = self._counts.get(peer, 0) + 1
        self._size += 1

    def pop(self) -> T:
        """The next item in turn. Raises IndexError: there is none."""
        if not self._size:
            raise IndexError("the queue is empty")
        peer, streams = next(iter(self._peers.items()))
        stream, items = next(iter(streams.items()))
        item = items.popleft()
        if items:
            streams.move_to_end(stream)
        else:
            del streams[stream]
        self._took_from(peer)
        if streams:
            self._peers.move_to_end(peer)
        return item

    def waiting(self, peer: Hashable) -> int:
        """How many items of ``peer`` wait."""
        return self._counts.get(peer, 0)

    def ahead(self, peer: Hashable, stream: Hashable) -> int:
        """At most so many items would be taken before one that was pushed now."""
        streams: OrderedDict[Hashable, deque[T]] = self._peers.get(peer, OrderedDict())
        own = len(streams.get(stream, ()))
        before = own + sum(min(len(items), own + 1) for name, items in streams.items() if name != stream)
        return before + sum(min(count, before + 1) for name, count in self._counts.items() if name != peer)

    def crowded(self, peer: Hashable, stream: Hashable) -> T | None:
        """Take out the newest item of whoever has over one more than ``peer`` and ``stream``; None: nobody has.

        This is how somebody with little gets a place in a full queue.
        """
        largest = max(self._counts, key=self._counts.__getitem__, default=None)
        if largest is None:
            return None
        if self._counts[largest] <= self.waiting(peer) + 1:
            largest = peer  # among its own streams, then
        streams = self._peers.get(largest, OrderedDict())
        longest = max(streams, key=lambda name: len(streams[name]), default=None)
        if longest is None:
            return None
        own = len(self._peers.get(peer, OrderedDict()).get(stream, ()))
        if largest == peer and len(streams[longest]) <= own + 1:
            return None
        item = streams[longest].pop()
        if not streams[longest]:
            del streams[longest]
        self._took_from(largest)
        return item

    def _took_from(self, peer: Hashable) -> None:
        self._size -= 1
        self._counts[peer] -= 1
        if not self._counts[peer]:
            del self._counts[peer], self._peers[peer]
