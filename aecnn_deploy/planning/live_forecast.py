"""What each variant is expected to take for the next frame, from what the frames before it took. No clock, no I/O.

    rest = head + encode + backlog + bytes on the link · ms a byte + fixed + edge's queue + decode + tail + margin

All times are milliseconds. The margin is how wrong these predictions were lately.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from aecnn_deploy.codec import DELTA_CODERS
from aecnn_deploy.planning.link import bytes_on_link
from aecnn_deploy.planning.live_candidates import Candidate
from aecnn_deploy.planning.live_link import LinkNow

_HEADS = 9  # runs of a head that its time is the median of
_NEW = 0.25  # weight of a new measurement against the mean of those before
_FRESH_S = 1.0  # what an edge told of its queue holds for so long, and then for half as much every second
_EDGE_IS_FASTER = 4.0  # before anything is known of an edge: than this device's head, by multiply-adds
_GUESS_SHARE = 0.25  # of the deadline: no more is guessed for a tail
_LEAST_SHARE, _MOST_SHARE, _FIRST_SHARE = 0.02, 0.25, 0.05  # of the deadline: the margin, and what it begins with
_CLIP_SHARE = 0.15  # of the deadline: one frame's error counts for no more
_DEVIATIONS = 2.5  # mean absolute ones: some 2 standard deviations
_MOST_CHANGE = 4.0  # of the bytes of frames in a run
_HALF_LIFE_S = 2.0  # of what was learnt of errors, when nothing is heard


@dataclass(frozen=True, slots=True)
class CoderEstimate:
    """What one coder makes of a variant's frame. ``message_bytes``: of the whole INFER message."""

    coder: str
    message_bytes: float
    encode_ms: float
    decode_ms: float


class TailLoad(Protocol):
    """What an edge told of one variant: the wait of a request that comes now, and the run of the tail for it."""

    @property
    def wait_ms(self) -> float: ...
    @property
    def run_ms(self) -> float: ...


@dataclass(frozen=True, slots=True)
class EdgeNow:
    """The edge. ``loads``: by variant, only of those that it has loaded; empty: it does not tell.

    ``busy_in_ms``: by variant, when the answer to this device's newest request of it is expected.
    """

    loads: Mapping[int, TailLoad] = field(default_factory=dict)
    age_s: float = 0.0  # of what it told
    busy_in_ms: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Forecast:
    """One variant's next frame, from the head on. ``doubt_ms``: by how much the link may be worse than it seems."""

    candidate: Candidate
    coder: str
    head_ms: float
    encode_ms: float
    backlog_ms: float
    send_ms: float
    fixed_ms: float
    wait_ms: float
    decode_ms: float
    tail_ms: float
    margin_ms: float
    doubt_ms: float
    message_bytes: float

    @property
    def device_ms(self) -> float:
        """What passes before its first byte is sent."""
        return self.head_ms + self.encode_ms

    @property
    def expected_ms(self) -> float:
        """Without the margin."""
        return (
            self.device_ms
            + self.backlog_ms
            + self.send_ms
            + self.fixed_ms
            + self.wait_ms
            + self.decode_ms
            + self.tail_ms
        )

    @property
    def rest_ms(self) -> float:
        """What must fit into the time that is left."""
        return self.expected_ms + self.margin_ms


class PredictionError:
    """How far predictions were off: a bias and a mean absolute deviation, forgotten while nothing is heard."""

    def __init__(self, deadline_ms: float) -> None:
        self._deadline_ms = deadline_ms
        self._bias_ms, self._deviation_ms = 0.0, _FIRST_SHARE * deadline_ms / _DEVIATIONS
        self._heard_s: float | None = None

    def was(self, error_ms: float, now_s: float) -> None:
        """An answer came ``error_ms`` later than was predicted (negative: earlier)."""
        self._bias_ms, self._deviation_ms = self._forgotten(now_s)
        self._heard_s = now_s
        most_ms = _CLIP_SHARE * self._deadline_ms
        error_ms = max(-most_ms, min(most_ms, error_ms))
        self._deviation_ms += _NEW * (abs(error_ms - self._bias_ms) - self._deviation_ms)
        self._bias_ms += _NEW * (error_ms - self._bias_ms)

    def margin_ms(self, now_s: float) -> float:
        """What to add to a prediction, so that it is kept nearly always: 2 to 25 % of the deadline."""
        bias_ms, deviation_ms = self._forgotten(now_s)
        margin_ms = bias_ms + _DEVIATIONS * deviation_ms
        return max(_LEAST_SHARE * self._deadline_ms, min(_MOST_SHARE * self._deadline_ms, margin_ms))

    def _forgotten(self, now_s: float) -> tuple[float, float]:
        silent_s = 0.0 if self._heard_s is None else max(0.0, now_s - self._heard_s - _FRESH_S)
        kept = 0.5 ** (silent_s / _HALF_LIFE_S)
        usual_ms = _FIRST_SHARE * self._deadline_ms / _DEVIATIONS
        return self._bias_ms * kept, usual_ms + (self._deviation_ms - usual_ms) * kept


class _Known:
    """What was measured of one variant."""

    def __init__(self) -> None:
        self.heads: deque[float] = deque(maxlen=_HEADS)
        self.coders: tuple[CoderEstimate, ...] = ()
        self.content = 1.0  # as the Forecaster's, when ``coders`` was told
        self.wait_ms = self.tail_ms = 0.0
        self.answers = 0


class Forecaster:
    """Running estimates of every candidate. Not thread safe."""

    def __init__(self, candidates: Sequence[Candidate], deadline_ms: float) -> None:
        self.candidates = tuple(candidates)
        self._deadline_ms = deadline_ms
        self._known = {candidate.index: _Known() for candidate in candidates}
        self._newest: int | None = None  # that a frame was coded of
        self._content = 1.0  # bytes of frames as they are now, against the first ones
        self.error = PredictionError(deadline_ms)

    def ran_head(self, index: int, took_ms: float) -> None:
        """A variant's head ran."""
        self._known[index].heads.append(took_ms)

    def head_ms(self, index: int) -> float:
        """The median of its last runs; 0 before the first."""
        heads = self._known[index].heads
        return median(heads) if heads else 0.0

    def coded(self, index: int, coders: Sequence[CoderEstimate], *, of_a_frame: bool = True) -> None:
        """What the coders of a variant are expected to make of its frames now. ``of_a_frame``: one of the run."""
        known = self._known[index]
        if of_a_frame and self._newest in (None, index):
            # Frames that are harder to code are so for the variants that are not used, too.
            change = _change(known.coders, coders)
            self._content = max(1 / _MOST_CHANGE, min(_MOST_CHANGE, self._content * change))
        if of_a_frame:
            self._newest = index
        known.coders, known.content = tuple(coders), self._content

    def answered(self, index: int, *, queue_ms: float, tail_ms: float) -> None:
        """The edge answered a request of a variant by RESULT, which says these."""
        known = self._known[index]
        known.answers += 1
        weight = max(_NEW, 1 / known.answers)
        known.wait_ms += weight * (queue_ms - known.wait_ms)
        known.tail_ms += weight * (tail_ms - known.tail_ms)

    def forecasts(self, link: LinkNow, edge: EdgeNow, now_s: float) -> tuple[Forecast, ...]:
        """One for each candidate that can be run now, the most accurate first, by its best coder on this link."""
        margin_ms = self.error.margin_ms(now_s)
        # What is not loaded there would wait for that, for seconds; an edge that tells of none does not say.
        told = [candidate for candidate in self.candidates if candidate.index in edge.loads]
        return tuple(self._forecast(candidate, link, edge, margin_ms) for candidate in told or self.candidates)

    def _forecast(self, candidate: Candidate, link: LinkNow, edge: EdgeNow, margin_ms: float) -> Forecast:
        known = self._known[candidate.index]
        scale = self._content / known.content

        def send_ms(coder: CoderEstimate) -> float:
            return bytes_on_link(coder.message_bytes * scale) * link.ms_per_byte

        coder = min(
            known.coders,
            key=lambda coder: coder.encode_ms + send_ms(coder) + coder.decode_ms,
            default=CoderEstimate("", 0.0, 0.0, 0.0),
        )
        head_ms = self.head_ms(candidate.index)
        backlog_ms = max(0.0, link.free_in_ms - head_ms - coder.encode_ms)
        before_ms = head_ms + coder.encode_ms + backlog_ms + send_ms(coder)
        tail_ms = self._tail_ms(candidate, edge)
        # An own request before this one may still run there then, but no more than one: what waits is run together.
        busy_ms = min(tail_ms, edge.busy_in_ms.get(candidate.index, 0.0) - before_ms - link.fixed_ms)
        return Forecast(
            candidate=candidate,
            coder=coder.coder,
            head_ms=head_ms,
            encode_ms=coder.encode_ms,
            backlog_ms=backlog_ms,
            send_ms=send_ms(coder),
            fixed_ms=link.fixed_ms,
            wait_ms=max(0.0, busy_ms, self._wait_ms(candidate, edge)),
            decode_ms=coder.decode_ms,
            tail_ms=tail_ms,
            margin_ms=margin_ms,
            doubt_ms=bytes_on_link(coder.message_bytes * scale) * link.spread_ms_per_byte,
            message_bytes=coder.message_bytes * scale,
        )

    def _wait_ms(self, candidate: Candidate, edge: EdgeNow) -> float:
        load = edge.loads.get(candidate.index)
        if load is not None:
            return float(load.wait_ms * 0.5 ** max(0.0, edge.age_s - _FRESH_S))
        return self._known[candidate.index].wait_ms

    def _tail_ms(self, candidate: Candidate, edge: EdgeNow) -> float:
        """As the edge told; as its answers said; by another variant's and their multiply-adds; or a guess."""
        own = self._told_tail_ms(candidate.index, edge)
        if own is not None:
            return own
        others = [other for other in self.candidates if self._told_tail_ms(other.index, edge) is not None]
        if others:
            like = min(others, key=lambda other: abs(other.tail_macs - candidate.tail_macs))
            told_ms = self._told_tail_ms(like.index, edge) or 0.0
            return told_ms * candidate.tail_macs / like.tail_macs if like.tail_macs else told_ms
        head_ms_per_mac = self.head_ms(candidate.index) / max(1, candidate.head_macs)
        return min(candidate.tail_macs * head_ms_per_mac / _EDGE_IS_FASTER, _GUESS_SHARE * self._deadline_ms)

    def _told_tail_ms(self, index: int, edge: EdgeNow) -> float | None:
        load, known = edge.loads.get(index), self._known[index]
        if load is not None:
            return load.run_ms
        return known.tail_ms if known.answers else None


def _change(before: Sequence[CoderEstimate], now: Sequence[CoderEstimate]) -> float:
    """How many times the bytes a frame takes now, by the best coder of single frames; 1 where there is none."""
    known = {coder.coder: coder.message_bytes for coder in now if coder.coder not in DELTA_CODERS}
    both = [coder for coder in before if coder.coder in known]
    if not both:
        return 1.0
    best = min(both, key=lambda coder: coder.message_bytes)
    return known[best.coder] / best.message_bytes
