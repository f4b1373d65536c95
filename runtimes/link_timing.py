"""How long each message's bytes took on the link alone, when several are under way at once."""

from collections import deque
from dataclasses import dataclass

_SPAN = 8  # messages that a busy link is measured over: what arrives late makes the next one seem early


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
    the same is measured over the last messages together, as each u is a little off. Where u_(i-1) is not known (its
    answer was a failure) and the message was not alone, there is no sample. Not thread safe.
    """

    def __init__(self) -> None:
        self._under_way: deque[_Sent] = deque()  # in the order of sending
        self._marks: deque[tuple[float, int]] = deque(maxlen=_SPAN)  # of the busy time: u, and bytes through by then
        self._last_answered_s = float("-inf")

    def sent(self, request_id: int, wire_bytes: int, began_s: float) -> None:
        """A message begins to be sent at ``began_s`` (any clock that all calls share)."""
        self._under_way.append(_Sent(request_id, wire_bytes, began_s))

    def answered(
        self, request_id: int, answered_s: float, edge_s: float | None, fixed_s: float
    ) -> list[tuple[int, float]]:
        """(bytes, milliseconds on the link, "fixed" included) of what can be told now; of what is unknown nothing."""
        for sent in self._under_way:
            if sent.request_id == request_id:
                sent.answered_s, sent.edge_s = answered_s, edge_s
                break
        samples = []
        while self._under_way and (first := self._under_way[0]).answered_s is not None:
            self._under_way.popleft()
            if (sample := self._sample(first, first.answered_s, fixed_s)) is not None:
                samples.append(sample)
        return samples

    def _sample(self, sent: _Sent, answered_s: float, fixed_s: float) -> tuple[int, float] | None:
        alone = sent.began_s >= self._last_answered_s
        self._last_answered_s = max(self._last_answered_s, answered_s)
        if sent.edge_s is None:
            self._marks.clear()
            return None
        u_s, free_s = answered_s - sent.edge_s, sent.began_s + fixed_s
        if alone or (self._marks and self._marks[-1][0] <= free_s):
            self._marks.clear()
            self._marks.append((free_s, 0))
        if not self._marks:
            self._marks.append((u_s, 0))
            return None
        since_s, before_bytes = self._marks[0]
        through_bytes = self._marks[-1][1] + sent.wire_bytes
        self._marks.append((u_s, through_bytes))
        return through_bytes - before_bytes, max(0.0, u_s - since_s + fixed_s) * 1e3
