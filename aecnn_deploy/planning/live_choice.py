"""Which variant and coder for this frame: the most accurate one whose forecast fits into what is left of the deadline.

Hysteresis, so that the choice does not flap: down to a less accurate variant at once where the one in use no longer
fits, up only after a better one has fitted for a while: the less room it leaves, the longer. A way up that did not
hold makes the next one wait longer. What only one frame is late by (it waited for the head, a message is ahead of it)
changes the choice for that frame, not the variant in use. Pure: no clock and no I/O, the caller says what time it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aecnn_deploy.planning.live_candidates import Candidate
from aecnn_deploy.planning.live_forecast import EdgeNow, Forecast, Forecaster
from aecnn_deploy.planning.live_link import LinkNow

_NEW = 0.25  # weight of a frame's delay against the mean of those before
_ROOM_SHARE = 0.1  # of the deadline: to spare for a way up,
_MUCH_SHARE = 0.25  # and where a way up that failed is no reason to wait longer
_HOLD_S, _UNSURE_S, _TIGHT_S = 0.4, 1.0, 2.0  # it must be there for so long: surely, with room to spare, at all
_LONGEST_S, _LONGEST_TIGHT_S = 8.0, 60.0  # the same after ways up that failed
_PROVEN_S = 10.0  # a way up that held for so long was right
_OTHER_LINK = 3.0  # times slower than at the way up: the link has changed, and the way up was right
_UNKNOWN_TIMES = 5.0  # slower than is guessed: what a link may be that nothing is known of
_SMALL_MS = 4.0  # on the link: messages of so little do not show its rate, as answers are late by as much
_MORE_TIMES, _MORE_FRAMES, _MORE_S, _MORE_LONGEST_S = 4.0, 2, 1.0, 16.0  # faster it may be; tries; how often they are
_TRY_S = 0.5  # where nothing fits, one frame in so long is tried,
_TRY_ANYWAY_S = 2.0  # and in so long where the one before it has no answer yet


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for one frame, and why. ``forecast``: None where nothing fits.

    ``trial``: it does not fit, and is sent all the same, to see what the link does. ``state``: the hysteresis in words.
    """

    forecast: Forecast | None
    trial: bool
    forecasts: tuple[Forecast, ...]  # of all that could be run, the most accurate first
    elapsed_ms: float
    deadline_ms: float
    link: LinkNow
    state: str

    @property
    def left_ms(self) -> float:
        """What the frame still has."""
        return self.deadline_ms - self.elapsed_ms

    @property
    def expected_ms(self) -> float:
        """When the answer is expected after the capture, without the margin; 0 where nothing is sent."""
        return self.elapsed_ms + self.forecast.expected_ms if self.forecast is not None else 0.0

    @property
    def promised_s(self) -> float:
        """The same with the margin, in seconds."""
        return (self.elapsed_ms + self.forecast.rest_ms) / 1e3 if self.forecast is not None else 0.0

    def fits(self, forecast: Forecast) -> bool:
        """Whether the variant is expected to be done in time."""
        return forecast.rest_ms <= self.left_ms

    def why_nothing(self) -> str:
        """One line for a person, where nothing fits."""
        if not self.forecasts:
            return "no variant may run: its head is too slow here, or it is not accurate enough"
        fastest = min(self.forecasts, key=lambda forecast: forecast.rest_ms)
        return (
            f"no variant fits: {max(0.0, self.left_ms):.1f} of {self.deadline_ms:g} ms left, the fastest, "
            f"{fastest.candidate.variant}, would take {fastest.rest_ms:.1f} ms"
        )

    def document(self) -> dict[str, Any]:
        """What ``--explain`` shows, as JSON; milliseconds."""
        link, chosen = self.link, self.forecast
        return {
            "variant": chosen.candidate.variant if chosen is not None else None,
            "coder": chosen.coder if chosen is not None else None,
            "trial": self.trial,
            "state": self.state,
            "deadline_ms": self.deadline_ms,
            "elapsed_ms": round(self.elapsed_ms, 3),
            "link": {
                "megabits_per_s": round(0.008 / link.ms_per_byte, 3),
                "fixed_ms": round(link.fixed_ms, 3),
                "backlog_ms": round(link.free_in_ms, 3),
            },
            "candidates": [self._row(forecast) for forecast in self.forecasts],
        }

    def _row(self, forecast: Forecast) -> dict[str, Any]:
        over_ms = forecast.rest_ms - self.left_ms
        return {
            "variant": forecast.candidate.variant,
            "accuracy": forecast.candidate.accuracy,
            "coder": forecast.coder,
            "message_bytes": round(forecast.message_bytes, 1),
            "head_ms": round(forecast.head_ms, 3),
            "encode_ms": round(forecast.encode_ms, 3),
            "send_ms": round(forecast.backlog_ms + forecast.send_ms + forecast.fixed_ms, 3),
            "edge_queue_ms": round(forecast.wait_ms, 3),
            "edge_decode_ms": round(forecast.decode_ms, 3),
            "edge_tail_ms": round(forecast.tail_ms, 3),
            "margin_ms": round(forecast.margin_ms, 3),
            "total_ms": round(self.elapsed_ms + forecast.rest_ms, 3),
            "fits": over_ms <= 0,
            "why": None if over_ms <= 0 else f"{over_ms:.1f} ms too long",
            "chosen": forecast is self.forecast,
        }


class LiveChoice:
    """Chooses for one frame after the other; what it learns from is told to ``forecaster``. Not thread safe."""

    def __init__(self, candidates: Sequence[Candidate], deadline_ms: float) -> None:
        self.forecaster = Forecaster(candidates, deadline_ms)
        self._deadline_ms = deadline_ms
        self._current: int | None = None  # the variant in use; None: none fits
        self._usual_ms: float | None = None  # what a frame has spent when the head takes it
        self._fits_since_s: dict[int, float] = {}  # by variant: fits since
        self._room_since_s: dict[int, float] = {}  # with room to spare
        self._sure_since_s: dict[int, float] = {}  # the same, even if the link is worse than it seems
        self._hold_s, self._tight_s = _HOLD_S, _TIGHT_S
        self._up_s: float | None = None  # the last way up, as long as it is not proven
        self._up_ms_per_byte = 0.0
        self._more_s, self._more_left, self._more_next_s = _MORE_S, 0, float("-inf")  # tries with larger messages
        self._guessed = False  # the variant in use is what is tried first
        self._sent_s = float("-inf")  # the last frame that anything was chosen for
        self.switches = 0  # of the variant in use

    @property
    def current(self) -> int | None:
        """Index of the variant in use; None: none fits."""
        return self._current

    def look(self, elapsed_ms: float, link: LinkNow, edge: EdgeNow, now_s: float) -> Choice:
        """What fits for a frame that has spent ``elapsed_ms``; changes nothing, and ``forecast`` is the best of it."""
        forecasts = self.forecaster.forecasts(link, edge, now_s)
        best = _first(forecasts, self._deadline_ms - elapsed_ms)
        return Choice(best, False, forecasts, elapsed_ms, self._deadline_ms, link, "")

    def take(self, index: int, elapsed_ms: float, link: LinkNow, edge: EdgeNow, now_s: float) -> Choice | None:
        """The variant ``index`` for one frame, as somebody else decided; None: it cannot be run now.

        The variant in use stays what it is.
        """
        forecasts = self.forecaster.forecasts(link, edge, now_s)
        taken = next((forecast for forecast in forecasts if forecast.candidate.index == index), None)
        if taken is None:
            return None
        self._sent_s = now_s
        return Choice(taken, False, forecasts, elapsed_ms, self._deadline_ms, link, "as the controller advised")

    def choose(self, elapsed_ms: float, link: LinkNow, edge: EdgeNow, now_s: float, *, idle: bool) -> Choice:
        """For a frame that was captured ``elapsed_ms`` ago and whose head would start at ``now_s``.

        ``idle``: nothing that was sent before is without an answer.
        """
        forecasts = self.forecaster.forecasts(link, edge, now_s)
        before_ms = elapsed_ms if self._usual_ms is None else self._usual_ms
        self._usual_ms = before_ms + _NEW * (elapsed_ms - before_ms)
        state = self._settle(forecasts, link, now_s)
        left_ms = self._deadline_ms - elapsed_ms
        chosen = next((f for f in forecasts if f.candidate.index == self._current and f.rest_ms <= left_ms), None)
        trial = False
        if chosen is None:
            chosen = self._instead(forecasts, left_ms)
            if chosen is not None:
                state = f"for this frame only: {state}"
            elif forecasts and self._may_try(now_s, idle=idle):
                fastest = min(forecasts, key=lambda forecast: forecast.rest_ms)
                if fastest.device_ms < left_ms:
                    chosen, trial = fastest, True
            if chosen is None or trial:
                state = f"nothing fits; one frame in {_TRY_S:g} s is tried" + (": this one" if trial else "")
        elif (more := self._more(forecasts, chosen, left_ms, link, now_s)) is not None:
            chosen, trial = more, more.rest_ms > left_ms
            state = f"{state}; this frame is larger, to see what the link does with more"
        if chosen is not None:
            self._sent_s = now_s
        return Choice(chosen, trial, forecasts, elapsed_ms, self._deadline_ms, link, state)

    def _more(
        self, forecasts: Sequence[Forecast], chosen: Forecast, left_ms: float, link: LinkNow, now_s: float
    ) -> Forecast | None:
        """The next better variant, where the one in use is too small to tell whether the link has room for it."""
        if self._more_next_s == float("-inf"):
            self._more_next_s = now_s + self._more_s
        place = forecasts.index(chosen)
        if place == 0 or chosen.send_ms >= _SMALL_MS or link.free_in_ms > 0 or not link.measured:
            return None
        better = forecasts[place - 1]
        saved_ms = better.send_ms * (1 - 1 / _MORE_TIMES)
        if better.rest_ms - saved_ms > left_ms or better.rest_ms > 2 * self._deadline_ms:
            return None
        if not self._more_left:
            if now_s < self._more_next_s:
                return None
            self._more_left, self._more_s = _MORE_FRAMES, min(_MORE_LONGEST_S, self._more_s * 2)
            self._more_next_s = now_s + self._more_s
        self._more_left -= 1
        return better

    def _may_try(self, now_s: float, *, idle: bool) -> bool:
        return now_s - self._sent_s >= (_TRY_S if idle else _TRY_ANYWAY_S)

    def _instead(self, forecasts: Sequence[Forecast], left_ms: float) -> Forecast | None:
        """For one frame that the variant in use is too slow for: rather a less accurate one than a risk."""
        order = [forecast.candidate.index for forecast in forecasts]
        below = forecasts[order.index(self._current) + 1 :] if self._current in order else forecasts
        return _first(below, left_ms) or _first(forecasts, left_ms)

    def _settle(self, forecasts: Sequence[Forecast], link: LinkNow, now_s: float) -> str:
        """Which variant is in use from now on, for frames as they usually come; in words."""
        assert self._usual_ms is not None
        left_ms = self._deadline_ms - self._usual_ms
        room_ms = {forecast.candidate.index: left_ms - _steady_ms(forecast) for forecast in forecasts}
        doubt_ms = {forecast.candidate.index: forecast.doubt_ms for forecast in forecasts}
        spare_ms = _ROOM_SHARE * self._deadline_ms
        _follow(self._fits_since_s, {index for index, room in room_ms.items() if room >= 0}, now_s)
        _follow(self._room_since_s, {index for index, room in room_ms.items() if room >= spare_ms}, now_s)
        sure = {index for index, room in room_ms.items() if room - doubt_ms[index] >= spare_ms}
        _follow(self._sure_since_s, sure, now_s)
        if self._up_s is not None and now_s - self._up_s >= _PROVEN_S:
            self._up_s = None
            self._hold_s, self._tight_s = max(_HOLD_S, self._hold_s / 2), max(_TIGHT_S, self._tight_s / 2)
        names = {forecast.candidate.index: forecast.candidate.variant for forecast in forecasts}
        order = list(names)
        if not link.measured:
            beside_ms = {f.candidate.index: room_ms[f.candidate.index] + f.send_ms for f in forecasts}
            slow = [f for f in forecasts if f.send_ms * _UNKNOWN_TIMES <= beside_ms[f.candidate.index]]
            first = slow[0] if slow else min(forecasts, key=lambda forecast: forecast.rest_ms, default=None)
            self._current, self._guessed = first.candidate.index if first is not None else None, True
            return "the link is not known yet"
        if self._guessed:
            self._current, self._guessed = None, False
        current = self._current
        if current is None or current not in names or room_ms[current] < 0:
            return self._leave(order, names, room_ms, sure, link, now_s)
        waits: list[tuple[str, float, float]] = []
        for index in order[: order.index(current)]:
            much = room_ms[index] - doubt_ms[index] >= _MUCH_SHARE * self._deadline_ms
            ways = (
                (self._sure_since_s.get(index), _HOLD_S if much else self._hold_s),
                (self._room_since_s.get(index), max(_UNSURE_S, self._hold_s)),
                (self._fits_since_s.get(index), self._tight_s),
            )
            for since_s, hold_s in ways:
                if since_s is None:
                    continue
                if now_s - since_s >= hold_s:
                    self._use(index)
                    self._up_s, self._up_ms_per_byte = now_s, link.ms_per_byte
                    self._more_s, self._more_left, self._more_next_s = _MORE_S, 0, now_s + _MORE_S
                    return f"up to {names[index]}, which fits since {hold_s:g} s and more"
                waits.append((names[index], now_s - since_s, hold_s))
        if waits:
            name, waited_s, hold_s = waits[0]
            return f"{names[current]} in use; up to {name} if it fits on: {waited_s:.1f} of {hold_s:g} s"
        return f"{names[current]} in use"

    def _leave(
        self,
        order: Sequence[int],
        names: dict[int, str],
        room_ms: dict[int, float],
        sure: set[int],
        link: LinkNow,
        now_s: float,
    ) -> str:
        """The variant in use does not fit, or there is none."""
        current = self._current
        fitting = [index for index in order if room_ms[index] >= 0]
        if current in order:
            below = [index for index in fitting if order.index(index) > order.index(current)]
            chosen = next(iter(below or fitting), None)
        else:
            chosen = next((index for index in fitting if index in sure), fitting[-1] if fitting else None)
        if self._up_s is not None and current is not None:
            if link.ms_per_byte < _OTHER_LINK * self._up_ms_per_byte:
                self._hold_s = min(_LONGEST_S, self._hold_s * 2)
                self._tight_s = min(_LONGEST_TIGHT_S, self._tight_s * 2)
            self._up_s = None
        self._use(chosen)
        if chosen is None:
            return "nothing fits"
        if current is None:
            return f"{names[chosen]} in use"
        old = f"{names[current]} no longer fits" if current in names else "the edge has not loaded the one before"
        return (
            f"down to {names[chosen]}: {old}"
            if current not in names or chosen in order[order.index(current) :]
            else (f"to {names[chosen]}: {old}")
        )

    def _use(self, index: int | None) -> None:
        self.switches += index != self._current
        self._current = index


def _steady_ms(forecast: Forecast) -> float:
    """Without what is ahead of this one frame on the link."""
    return forecast.rest_ms - forecast.backlog_ms


def _first(forecasts: Sequence[Forecast], left_ms: float) -> Forecast | None:
    return next((forecast for forecast in forecasts if forecast.rest_ms <= left_ms), None)


def _follow(since_s: dict[int, float], now: set[int], now_s: float) -> None:
    """``since_s``: since when what is in ``now`` has been there without a break."""
    for index in list(since_s):
        if index not in now:
            del since_s[index]
    for index in now:
        since_s.setdefault(index, now_s)
