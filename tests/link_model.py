"""A link in simulated time: a queue of a rate that changes, an edge behind it, and a device that measures both."""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from aecnn_deploy.planning.link import bytes_on_link
from aecnn_deploy.planning.link_rate import LinkRate
from aecnn_deploy.runtimes.link_timing import SendTimes

FIXED_MS = 10.0


@dataclass(frozen=True)
class Seen:
    """What the device thought before it sent a frame."""

    at_s: float
    rate_bps: float


@dataclass(frozen=True, kw_only=True)
class LinkModel:
    """``rate_bps`` is of the time in seconds. A message is through when the queue has sent it; its answer is late by up
    to twice ``jitter_ms``; one of ``lose_one_in`` costs 200 ms more, and those behind it wait for it."""

    rate_bps: Callable[[float], float]
    frames_per_s: float
    message_bytes: int
    in_flight: int = 1
    jitter_ms: float = 1.0
    lose_one_in: int = 0
    batch_s: float = 0.0  # the edge answers at multiples of it, what there is together
    seed: int = 0

    def run(self, until_s: float) -> list[Seen]:
        """What the device thought, frame by frame."""
        rng = random.Random(self.seed)
        rate, times = LinkRate(), SendTimes()
        for _ in range(3):
            rate.pinged(FIXED_MS + rng.uniform(0, 2 * self.jitter_ms), 0.0)
        answers: deque[tuple[float, int, float]] = deque()  # when, request id, the edge's seconds
        seen, free_s, number, at_s, answered_s = [], 0.0, 0, 0.0, 0.0
        while at_s < until_s:
            while answers and (answers[0][0] <= at_s or len(answers) >= self.in_flight):
                done_s, request_id, edge_s = answers.popleft()
                at_s = max(at_s, done_s)
                fixed_ms = rate.fixed_ms or 0.0
                for sample in times.answered(request_id, done_s, edge_s, fixed_ms / 1e3):
                    rate.heard(sample.wire_bytes, sample.link_ms, done_s, queued=sample.queued)
            oldest = times.waiting(at_s, (rate.fixed_ms or 0.0) / 1e3)
            rate.waiting(*(oldest or (0, 0.0)), at_s)
            seen.append(Seen(at_s, rate.rate_bps))
            number += 1
            times.sent(number, self.message_bytes, at_s)
            free_s = self._through_s(max(at_s, free_s))
            if self.lose_one_in and rng.randrange(self.lose_one_in) == 0:
                free_s += 0.2
            ready_s = max(free_s, answered_s) + 0.012
            if self.batch_s:
                ready_s = ceil(ready_s / self.batch_s) * self.batch_s
            answered_s = ready_s
            done_s = ready_s + (FIXED_MS + rng.uniform(0, 2 * self.jitter_ms)) / 1e3
            done_s = max(done_s, answers[-1][0] if answers else 0.0)  # TCP keeps the order
            answers.append((done_s, number, ready_s - free_s))
            at_s = max(at_s, number / self.frames_per_s)
        return seen

    def _through_s(self, began_s: float) -> float:
        """When a message that has the link from ``began_s`` on is through."""
        left_bits, now_s = bytes_on_link(self.message_bytes) * 8, began_s
        while left_bits > 1e-6:
            step_s = min(0.005, left_bits / self.rate_bps(now_s))
            left_bits -= step_s * self.rate_bps(now_s)
            now_s += step_s
        return now_s
