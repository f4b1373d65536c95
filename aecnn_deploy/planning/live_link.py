"""The uplink as a live choice sees it: its rate with the suspicion that is due to it, and what is on it already."""

from collections.abc import Sequence
from dataclasses import dataclass

from aecnn_deploy.planning.link import bytes_on_link

_BELIEVED = 2  # answers since the link was slow, after which it is believed to be fast


@dataclass(frozen=True, slots=True)
class LinkNow:
    """The uplink. ``ms_per_byte``: of bytes on the link. ``free_in_ms``: when it has carried what is under way.

    ``measured``: an answer has shown the rate; else it is a guess.
    """

    ms_per_byte: float
    spread_ms_per_byte: float
    fixed_ms: float  # an empty message there and back
    free_in_ms: float = 0.0
    measured: bool = True


@dataclass(frozen=True, slots=True)
class UnderWay:
    """An own message. ``began_s``: when it was sent; None: it will be."""

    message_bytes: float
    began_s: float | None


def drained_in_ms(
    under_way: Sequence[UnderWay], ms_per_byte: float, now_s: float, through_s: float = float("-inf")
) -> float:
    """When a link that carries one message after the other is through with ``under_way``, in the order of sending.

    ``through_s``: when the last answered one was through. 0: it is free.
    """
    free_s = through_s
    for message in under_way:
        began_s = now_s if message.began_s is None else message.began_s
        free_s = max(free_s, began_s) + bytes_on_link(message.message_bytes) * ms_per_byte / 1e3
    return max(0.0, (free_s - now_s) * 1e3)


class SlowerFirst:
    """Of an estimated rate: slower is believed at once, faster after two answers, or with nothing under way.

    A message that is late shows while it is without an answer that the link became slow; one answer alone does not
    tell whether it was the link or that message. As long as others are under way, the next answer will.
    """

    def __init__(self) -> None:
        self._ms_per_byte, self._at_answer = 0.0, 0

    def ms_per_byte(self, estimate: float, answers: int, *, idle: bool) -> float:
        """Milliseconds a byte to go by. ``answers``: how many came so far; ``idle``: nothing is under way."""
        if estimate >= self._ms_per_byte or idle or answers - self._at_answer >= _BELIEVED:
            self._ms_per_byte, self._at_answer = estimate, answers
        return self._ms_per_byte
