"""How long each message's bytes took on the link alone, when several are under way at once."""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

_EDGE_TIMES = 8  # answers whose longest time on the edge is what the next may take there
_EDGE_LONGER = 1.5  # times that


class LinkSample(NamedTuple):
    """What ``LinkRate.heard`` wants of one message: its size, its time on the link with "fixed", what it began with."""

    wire_bytes: int
    link_ms: float
    queued: bool  # its time began when the one before it was through


@dataclass(slots=True)
class _Sent:
    request_id: int
    wire_bytes: int
    began_s: float
    answered_s: float | None = None
    edge_s: float | None = None  # the edge's own total; None: it does not say


class SendTimes:
    """Of one session: what bytes took on the link, with the waiting behind earlier messages taken off.

    A link is a queue: message i begins when it is sent, or when message i-1 is through, whichever comes later. With
    u = answered - the edge's own time, which is when the message had arrived plus what an empty one takes there and
    back ("fixed"), its bytes took

        u_i - max(began_i + fixed, u_(i-1))

    and alone on the link that is the round trip less the edge's time and "fixed". While the link is busy without a gap
    each u is a little off, and what one message has too much the next has too little, down to less than nothing. Where
    u_(i-1) is not known (its answer was a failure) and the message was not alone, there is no sample. Not thread safe.
    """

    def __init__(self) -> None:
        self._under_way: deque[_Sent] = deque()  # in the order of sending
        self._through_s: float | None = None  # u of the one before
        self._last_answered_s = float("-inf")
        self._edge_s: deque[float] = deque(maxlen=_EDGE_TIMES)

    def sent(self, request_id: int, wire_bytes: int, began_s: float) -> None:
        """A message begins to be sent at ``began_s`` (any clock that all calls share)."""
        self._under_way.append(_Sent(request_id, wire_bytes, began_s))

    def answered(self, request_id: int, answered_s: float, edge_s: float | None, fixed_s: float) -> list[LinkSample]:
        """What can be told now, in the order of sending; of what is unknown nothing."""
        for sent in self._under_way:
            if sent.request_id == request_id:
                sent.answered_s, sent.edge_s = answered_s, edge_s
                break
        if edge_s is not None:
            self._edge_s.append(edge_s)
        samples = []
        while self._under_way and (first := self._under_way[0]).answered_s is not None:
            self._under_way.popleft()
            if (sample := self._sample(first, first.answered_s, fixed_s)) is not None:
                samples.append(sample)
        return samples

    def waiting(self, now_s: float, fixed_s: float) -> tuple[int, float] | None:
        """(bytes, milliseconds) of the oldest message without an answer: how long the link may have had it, at most
        and with "fixed". None: there is none, or it is the edge that has it.

        What recent answers took on the edge at most, and half as much again, is taken off: where the edge is why an
        answer is late, the answer says so itself.
        """
        if not self._under_way or not self._edge_s or any(sent.answered_s is not None for sent in self._under_way):
            return None  # a later one was answered: it has passed the link
        oldest = self._under_way[0]
        before_s = self._last_answered_s if self._through_s is None else self._through_s
        since_s = max(oldest.began_s, before_s - fixed_s)
        return oldest.wire_bytes, max(0.0, now_s - since_s - _EDGE_LONGER * max(self._edge_s)) * 1e3

    def _sample(self, sent: _Sent, answered_s: float, fixed_s: float) -> LinkSample | None:
        alone, before_s = sent.began_s >= self._last_answered_s, self._through_s
        self._last_answered_s = max(self._last_answered_s, answered_s)
        if sent.edge_s is None:
            self._through_s = None
            return None
        self._through_s, free_s = answered_s - sent.edge_s, sent.began_s + fixed_s
        if before_s is None and not alone:
            return None
        queued = not alone and before_s is not None and before_s > free_s
        since_s = before_s if queued and before_s is not None else free_s
        link_ms = (self._through_s - since_s + fixed_s) * 1e3
        return LinkSample(sent.wire_bytes, link_ms if queued else max(0.0, link_ms), queued)
