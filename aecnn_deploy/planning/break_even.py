"""The link's rate at which two ways take equally long.

What is sent does not depend on the rate, so that a completion time is constant + bits / rate, and two of them cross
once at most: the crossing has a closed form.
"""

from dataclasses import dataclass
from math import ceil, floor, log10

from aecnn_deploy.planning.prediction import Prediction

_SAME_MS = 1e-9


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Of ``first`` and ``second``, which is faster where. ``rate_bps`` None: one of them is at every rate."""

    first: Prediction
    second: Prediction
    rate_bps: float | None
    below: Prediction | None  # the faster below the rate; without a rate the faster everywhere, None: neither is
    above: Prediction | None

    def of_first(self) -> str:
        """Where the first is the faster: ``below 17.3 Mbit/s``, ``above …``, ``always``, ``never``, ``equal``."""
        if self.below is None:
            return "equal"
        if self.rate_bps is None:
            return "always" if self.below is self.first else "never"
        return f"{'below' if self.below is self.first else 'above'} {say_rate(self.rate_bps)}"

    def sentence(self) -> str:
        """E.g. ``A is faster than B below 17.3 Mbit/s``."""
        if self.below is None or self.above is None:
            return f"{self.first.label} and {self.second.label} take equally long at every rate"
        loser = self.second if self.below is self.first else self.first
        if self.rate_bps is None:
            return f"{self.below.label} is faster than {loser.label} at every rate"
        return f"{self.below.label} is faster than {loser.label} below {say_rate(self.rate_bps)}"


def break_even(first: Prediction, second: Prediction) -> BreakEven:
    """Where ``first`` and ``second`` take equally long: rate = (difference of bits) / (difference of the rest)."""
    more_bytes = first.link_bytes - second.link_bytes
    more_ms = first.constant_ms - second.constant_ms
    if abs(more_ms) < _SAME_MS:
        more_ms = 0.0
    if more_bytes == 0 and more_ms == 0:
        return BreakEven(first, second, None, None, None)
    if more_bytes * more_ms >= 0:  # more of both, or more of one and as much of the other
        faster = second if more_bytes > 0 or more_ms > 0 else first
        return BreakEven(first, second, None, faster, faster)
    fewer, other = (second, first) if more_bytes > 0 else (first, second)
    return BreakEven(first, second, -more_bytes * 8e3 / more_ms, fewer, other)


def say_rate(rate_bps: float, *, at_least: bool = False) -> str:
    """``17.3 Mbit/s``, with three significant digits; ``at_least``: rounded up, so that what is said suffices."""
    if at_least and rate_bps > 0:
        step = 10.0 ** (floor(log10(rate_bps)) - 2)
        rate_bps = ceil(rate_bps / step - 1e-9) * step
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if rate_bps >= 0.9995 * size:
            value = rate_bps / size
            return (f"{value:.3g}" if value < 999.5 else f"{value:,.0f}") + f" {unit}"
    return f"{rate_bps:.3g} bit/s"
