"""Which way the next frame goes: to one of the edges by a variant, or to the unsplit model here.

With one edge and no controller the variant is all that is chosen. With several, a controller's advice is followed as
far as it holds and can be; else the device takes the edge whose best variant that fits is the most accurate, and of
equals stays where it is, or goes where it would be done first. The pipeline's lock guards everything here.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median

from aecnn_deploy.runtimes.controller_advice import (
    EDGE_AWAY,
    EDGE_BUSY,
    NO_LOCAL,
    NOT_LOADED,
    SILENT,
    UNEXPECTED,
    UNKNOWN_VARIANT,
    AdviceBox,
)
from aecnn_deploy.runtimes.edge_sessions import EdgeSessions, Route, Way
from aecnn_deploy.runtimes.frame_desk import FrameDesk
from aecnn_deploy.runtimes.live_variants import Flow, LiveVariants
from aecnn_deploy.runtimes.moving_frame import MovingFrame
from aecnn_deploy.runtimes.plane_coders import PlaneCoders

_GAPS = 8  # between captures, whose median is how often frames come
_NEW = 0.25  # weight of a new time of reading against the mean of those before


@dataclass(frozen=True, slots=True, eq=False)
class EdgeSide:
    """One edge as a run sees it. ``live``: chooses variants; None: there is one for all frames."""

    index: int
    name: str
    url: str
    coders: PlaneCoders
    sessions: EdgeSessions
    live: LiveVariants | None


class Turn(Enum):
    """What becomes of the frame that is next."""

    WAIT = "wait"  # for a place on its way
    HEAD = "head"  # its head runs now
    LOCAL = "local"  # the unsplit model has it, as was advised
    NOTHING = "nothing"  # no variant fits
    AWAY = "away"  # no edge is there


class FrameRhythm:
    """When the next frame is expected, from when the last ones came; and what reading one takes."""

    def __init__(self) -> None:
        self._gaps_s: deque[float] = deque(maxlen=_GAPS)
        self._last_s: float | None = None
        self.read_s = 0.0

    def captured(self, now_s: float) -> None:
        """A frame came."""
        if self._last_s is not None:
            self._gaps_s.append(now_s - self._last_s)
        self._last_s = now_s

    def read(self, took_s: float) -> None:
        """A frame was read and decoded."""
        self.read_s += (_NEW if self.read_s else 1.0) * (took_s - self.read_s)

    def next_in_s(self, now_s: float) -> float:
        """Seconds until the next frame; 0: now, or nothing is known yet."""
        if self._last_s is None or not self._gaps_s:
            return 0.0
        return max(0.0, self._last_s + median(self._gaps_s) - now_s)


class WayChoice:
    """Decides for one frame after the other. ``advice``: None where there is no controller."""

    def __init__(self, desk: FrameDesk, sides: Sequence[EdgeSide], advice: AdviceBox | None = None) -> None:
        self.desk, self.sides, self.advice = desk, tuple(sides), advice
        self.rhythm = FrameRhythm()
        self._used = 0  # the edge of the last frame
        self._head_until_s = 0.0  # when the head that runs is expected to be done

    @property
    def last_used(self) -> EdgeSide:
        """The edge of the last frame."""
        return self.sides[self._used]

    def decide_locked(self, frame: MovingFrame, now_s: float) -> Turn:
        """What becomes of the frame now; with HEAD and NOTHING its way is chosen."""
        if self.advice is not None and (turn := self._advised(self.advice, frame, now_s)) is not None:
            return turn
        there = [side for side in self.sides if side.sessions.route_locked(now_s).way is not Way.AWAY]
        if not there:
            return Turn.AWAY if self.desk.room_for_local_locked() else Turn.WAIT
        side = there[0] if len(there) == 1 else self._best(there, frame, now_s)
        if side.live is None:
            return Turn.HEAD if not self.desk.to_link else Turn.WAIT
        flow = self.flow_locked(side)
        head_is_free, local_is_free = self._room(side, side.live, flow), self.desk.room_for_local_locked()
        if not head_is_free or not local_is_free:
            fits = side.live.looks_good(frame, flow, now_s)
            if not (head_is_free if fits else local_is_free):
                return Turn.WAIT
        side.live.choose(frame, flow, now_s)
        self._goes(frame, side, now_s)
        return Turn.HEAD if frame.to_be_sent else Turn.NOTHING

    def away_locked(self, now_s: float) -> Route:
        """Why there is no edge."""
        return self.sides[0].sessions.route_locked(now_s)

    def elsewhere_locked(self, frame: MovingFrame, now_s: float) -> bool:
        """Whether a frame that its edge does not take now goes to another one, with the planes that it has."""
        if len(self.sides) == 1:
            return False
        for side in self.sides:
            if side.index != frame.edge and side.sessions.route_locked(now_s).way is Way.OPEN:
                frame.key_frame = True  # differences refer to nothing there
                if frame.advised:
                    frame.advised, frame.unadvised = False, EDGE_AWAY
                self._mark(frame, side)
                self.desk.link_turn.notify_all()
                return True
        return False

    def flow_locked(self, side: EdgeSide) -> Flow:
        """What is under way to an edge, and what it told of itself."""
        side.sessions.heard_locked()
        sents, most = side.sessions.under_way_locked()
        return Flow(sents, most, self.desk.unsent_locked(side.index), side.sessions.load_locked())

    def busy_s(self, now_s: float) -> float:
        """Seconds until the device has done what it has taken up: a head, and the unsplit model's queue."""
        return max(0.0, self._head_until_s - now_s, self.desk.local_work_s_locked())

    def _advised(self, box: AdviceBox, frame: MovingFrame, now_s: float) -> Turn | None:
        """What the controller's advice makes of the frame; None, and noted: the device decides itself."""
        advice = box.now(now_s)
        if advice is None or advice.idle:
            return self._own(frame, SILENT if advice is None else UNEXPECTED)
        if advice.edge is None:
            if not self.desk.local_in_time_locked(frame, now_s):
                return self._own(frame, NO_LOCAL)
            if not self.desk.room_for_local_locked():
                return Turn.WAIT
            frame.advised, frame.unadvised = True, None
            return Turn.LOCAL
        side = self.sides[advice.edge]
        assert side.live is not None  # a run with a controller chooses variants
        index = box.index(advice)
        if index is None:
            return self._own(frame, UNKNOWN_VARIANT)
        if side.sessions.route_locked(now_s).way is not Way.OPEN:
            return self._own(frame, EDGE_AWAY)
        flow = self.flow_locked(side)
        if not self._room(side, side.live, flow):
            stuck = side.live.waits_for_the_first_answer(flow) or side.sessions.room_locked() is None
            return self._own(frame, EDGE_BUSY) if stuck and len(self.sides) > 1 else Turn.WAIT
        if not side.live.follow(frame, flow, now_s, index):
            return self._own(frame, NOT_LOADED)
        frame.advised, frame.unadvised = True, None
        self._goes(frame, side, now_s)
        return Turn.HEAD

    def _own(self, frame: MovingFrame, why: str) -> Turn | None:
        """Noted: the device decides itself."""
        frame.advised, frame.unadvised = False, why
        return None

    def _room(self, side: EdgeSide, live: LiveVariants, flow: Flow) -> bool:
        """Whether the head may run for this edge: no frame waits for its link, and something is known of it."""
        waits = self.desk.next_for_link_locked(side.index) if len(self.sides) > 1 else self.desk.to_link
        return not waits and not live.waits_for_the_first_answer(flow)

    def _best(self, there: Sequence[EdgeSide], frame: MovingFrame, now_s: float) -> EdgeSide:
        """Of several edges the one for this frame."""
        ranks: list[tuple[float, ...]] = []
        for side in there:
            assert side.live is not None  # a run with several edges chooses variants
            look = side.live.look(frame, self.flow_locked(side), now_s)
            best = look.forecast
            soonest_ms = best.rest_ms if best else min((one.rest_ms for one in look.forecasts), default=float("inf"))
            accuracy = best.candidate.accuracy if best else -1.0
            ranks.append((accuracy, float(best is not None and side.index == self._used), -soonest_ms))
        return there[max(range(len(there)), key=ranks.__getitem__)]

    def _goes(self, frame: MovingFrame, side: EdgeSide, now_s: float) -> None:
        self._mark(frame, side)
        self._used = side.index
        if frame.choice is not None and frame.choice.forecast is not None:
            self._head_until_s = now_s + frame.choice.forecast.head_ms / 1e3

    def _mark(self, frame: MovingFrame, side: EdgeSide) -> None:
        frame.edge = side.index
        if len(self.sides) > 1:
            frame.edge_told = side.url
