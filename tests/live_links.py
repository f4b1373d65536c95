"""A device, a link and an edge in simulated time, for what a live choice makes of them."""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from aecnn_deploy.planning.link import bytes_on_link
from aecnn_deploy.planning.link_rate import LinkRate
from aecnn_deploy.planning.live_candidates import Candidate
from aecnn_deploy.planning.live_choice import Choice, LiveChoice
from aecnn_deploy.planning.live_forecast import CoderEstimate, EdgeNow
from aecnn_deploy.planning.live_link import LinkNow, SlowerFirst, UnderWay, drained_in_ms


def candidates(*accuracies: float) -> tuple[Candidate, ...]:
    """Variants named by their accuracy, with a tail of 9000 multiply-adds."""
    return tuple(Candidate(f"a{value:g}", index, value, 1000, 9000) for index, value in enumerate(accuracies))


@dataclass(slots=True)
class Message:
    choice: Choice
    wire_bytes: int
    began_s: float
    captured_s: float
    through_s: float
    answered_s: float
    edge_ms: float


@dataclass(slots=True)
class Told:
    """One frame: when it was captured, what was chosen for it, and when its answer came (None: nothing was sent)."""

    captured_s: float
    choice: Choice
    answered_s: float | None

    def in_time(self, deadline_ms: float) -> bool:
        return self.answered_s is not None and (self.answered_s - self.captured_s) * 1e3 <= deadline_ms


@dataclass
class World:
    """Frames come ``every_s``; each is chosen for, coded and sent as soon as it is there.

    ``rate_bps``: of the link at a time. ``noise``: of what a message takes on it, evenly ± so much. ``sizes``: of the
    variants' payloads.
    """

    sizes: tuple[int, ...]
    rate_bps: Callable[[float], float]
    accuracies: tuple[float, ...] = (0.9, 0.8, 0.7)
    deadline_ms: float = 100.0
    every_s: float = 0.1
    head_ms: float = 8.0
    tail_ms: float = 5.0
    fixed_ms: float = 2.0
    noise: float = 0.0
    jitter_ms: float = 0.2
    seed: int = 0
    in_flight: int = 4
    told: list[Told] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.live = LiveChoice(candidates(*self.accuracies), self.deadline_ms)
        self.rate, self.seen, self.answers = LinkRate(), SlowerFirst(), 0
        self.rate.pinged(self.fixed_ms, 0.0)
        for index, size in enumerate(self.sizes):
            self.live.forecaster.ran_head(index, self.head_ms)
            self.live.forecaster.coded(index, (CoderEstimate("raw", size + 36, 0.5, 0.2),), of_a_frame=False)
        self.under_way: deque[Message] = deque()
        self.link_free_s = self.heard_through_s = 0.0

    def run(self, until_s: float) -> list[Told]:
        frame = len(self.told)
        while (captured_s := 1.0 + frame * self.every_s) < until_s:
            self.told.append(self._frame(captured_s))
            frame += 1
        return self.told

    def link_now(self, now_s: float) -> LinkNow:
        rate = self.rate
        waiting = [UnderWay(message.wire_bytes, message.began_s) for message in self.under_way]
        if self.under_way:
            oldest = self.under_way[0]
            since_s = max(oldest.began_s, self.heard_through_s)
            rate.waiting(oldest.wire_bytes, (now_s - since_s) * 1e3 - oldest.edge_ms, now_s)
        else:
            rate.waiting(0, 0.0, now_s)
        ms_per_byte = self.seen.ms_per_byte(rate.ms_per_byte, self.answers, idle=not waiting)
        free_in_ms = drained_in_ms(waiting, ms_per_byte, now_s, self.heard_through_s)
        return LinkNow(ms_per_byte, rate.spread_ms_per_byte, rate.fixed_ms or 0.0, free_in_ms, rate.frames > 0)

    def _frame(self, captured_s: float) -> Told:
        now_s = captured_s + 0.001
        self._hear(now_s)
        choice = self.live.choose(1.0, self.link_now(now_s), EdgeNow(), now_s, idle=not self.under_way)
        if choice.forecast is None or len(self.under_way) >= self.in_flight:
            return Told(captured_s, choice, None)
        index = choice.forecast.candidate.index
        began_s = now_s + (self.head_ms + 0.5) / 1e3
        wire_bytes = self.sizes[index] + 36
        self.link_free_s = self._through_s(max(began_s, self.link_free_s), bytes_on_link(wire_bytes))
        edge_ms = self.tail_ms + 0.2
        late_ms = self.random.uniform(0, self.jitter_ms)
        answered_s = self.link_free_s + (self.fixed_ms + edge_ms + late_ms) / 1e3
        self.under_way.append(Message(choice, wire_bytes, began_s, captured_s, self.link_free_s, answered_s, edge_ms))
        self.live.forecaster.ran_head(index, self.head_ms)
        return Told(captured_s, choice, answered_s)

    def _through_s(self, from_s: float, link_bytes: float) -> float:
        """When a link of a changing rate has carried so much."""
        left, at_s = link_bytes * self.random.uniform(1 - self.noise, 1 + self.noise), from_s
        while left > 0:
            step = self.rate_bps(at_s) / 8 * 0.001
            at_s += 0.001 * min(1.0, left / step)
            left -= step
        return at_s

    def _hear(self, now_s: float) -> None:
        while self.under_way and self.under_way[0].answered_s <= now_s:
            message = self.under_way.popleft()
            self.answers += 1
            forecast = message.choice.forecast
            assert forecast is not None
            since_s = max(message.began_s, self.heard_through_s)
            link_ms = (message.answered_s - since_s) * 1e3 - message.edge_ms
            queued = message.began_s < self.heard_through_s
            self.rate.heard(message.wire_bytes, link_ms, message.answered_s, queued=queued)
            self.heard_through_s = message.answered_s - (message.edge_ms + self.fixed_ms) / 1e3
            self.live.forecaster.answered(forecast.candidate.index, queue_ms=0.0, tail_ms=self.tail_ms)
            if not message.choice.trial:
                total_ms = (message.answered_s - message.captured_s) * 1e3
                self.live.forecaster.error.was(total_ms - message.choice.expected_ms, message.answered_s)
