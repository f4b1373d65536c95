"""What a plan says over a range of rates: the curves of Fig. 5, where they cross, and the best choice for each band."""

from collections.abc import Sequence
from dataclasses import dataclass

from aecnn_deploy.planning.break_even import break_even
from aecnn_deploy.planning.plan import Candidate, PlanSettings, choose
from aecnn_deploy.planning.prediction import Prediction

LOWEST_BPS, HIGHEST_BPS = 0.5e6, 200e6
_STEPS = 240
_HALVINGS = 24  # of a step, to find a band's end
_SAME_MS = 1e-6


@dataclass(frozen=True, slots=True)
class Band:
    """Rates over which one way is the choice; None: nothing fits."""

    low_bps: float
    high_bps: float
    choice: Candidate | None

    @property
    def what(self) -> str | None:
        """The variant, or the path without one."""
        return None if self.choice is None else what(self.choice.prediction)


def what(prediction: Prediction) -> str:
    """The variant, whatever its coder, or the path without one."""
    return prediction.variant or prediction.label


def sweep(low_bps: float = LOWEST_BPS, high_bps: float = HIGHEST_BPS, steps: int = _STEPS) -> list[float]:
    """Rates in even steps of a logarithmic axis, both ends included."""
    return [low_bps * (high_bps / low_bps) ** (step / steps) for step in range(steps + 1)]


def curve(ways: Sequence[Prediction], rates_bps: Sequence[float]) -> list[float]:
    """Milliseconds of the fastest of ``ways`` at each rate: with a variant's coders, the rule for entropy coding."""
    return [min(way.at_ms(rate) for way in ways) for rate in rates_bps]


def crossings(first: Sequence[Prediction], second: Sequence[Prediction]) -> list[tuple[float, float]]:
    """(rate in bits a second, milliseconds) where the curves of both take equally long, the lowest rate first."""
    found: dict[float, float] = {}
    for one in first:
        for other in second:
            rate = break_even(one, other).rate_bps
            if rate is None:
                continue
            ms = one.at_ms(rate)
            if ms <= curve(first, [rate])[0] + _SAME_MS and ms <= curve(second, [rate])[0] + _SAME_MS:
                found[rate] = ms
    return sorted(found.items())


def bands(candidates: Sequence[Candidate], settings: PlanSettings, rates_bps: Sequence[float]) -> list[Band]:
    """The choice over ``rates_bps``, which rise: neighbouring rates with the same variant or path are one band."""
    found: list[Band] = []
    for rate in rates_bps:
        choice = _choice(candidates, settings, rate)
        if not found or found[-1].what != Band(rate, rate, choice).what:
            begin = rate if not found else _boundary(candidates, settings, found[-1], rate)
            if found:
                found[-1] = Band(found[-1].low_bps, begin, found[-1].choice)
            found.append(Band(begin, rate, choice))
        else:
            found[-1] = Band(found[-1].low_bps, rate, found[-1].choice)
    return found


def _boundary(candidates: Sequence[Candidate], settings: PlanSettings, before: Band, rate_bps: float) -> float:
    """The rate between the end of ``before`` and ``rate_bps`` at which the choice is another one."""
    low, high = before.high_bps, rate_bps
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        if Band(middle, middle, _choice(candidates, settings, middle)).what == before.what:
            low = middle
        else:
            high = middle
    return high


def _choice(candidates: Sequence[Candidate], settings: PlanSettings, rate_bps: float) -> Candidate | None:
    return choose([item.at(rate_bps) for item in candidates], settings)
