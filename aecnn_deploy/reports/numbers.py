"""The arithmetic of the report: spreads, ranks, fronts and curves. Arrays in, numbers out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Values = Sequence[float] | Floats


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean over ``n`` seeds and their standard deviation (n - 1 in the denominator; None for one seed)."""

    mean: float
    sd: float | None
    n: int


def spread(values: Values) -> Spread:
    """Mean and standard deviation of one or more values. Raises ValueError: there are none."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("no values to average")
    return Spread(float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None, int(array.size))


def share_error(share: float, images: int) -> float:
    """Standard error of a share that was counted on ``images`` images: sqrt(p(1 - p) / n); 0 without images."""
    return float(np.sqrt(max(0.0, share * (1 - share)) / images)) if images > 0 else 0.0


def difference_error(first: float, second: float, images: int) -> float:
    """Standard error of the difference of two shares of ``images`` images each; of the same images it is smaller."""
    return float(np.hypot(share_error(first, images), share_error(second, images)))


def paired_error(first: Floats, second: Floats) -> float:
    """Standard error of the mean of ``first`` less ``second``, (n,) of the same images; 0 for fewer than two."""
    difference = first - second
    return float(difference.std(ddof=1) / np.sqrt(difference.size)) if difference.size > 1 else 0.0


def ranks(values: Values) -> Floats:
    """(n,) ranks from 1 for the smallest; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    shared: Floats = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return shared


def spearman(first: Values, second: Values) -> float | None:
    """Spearman's rank correlation: Pearson's of the ranks, -1 to 1.

    None where it is not defined: fewer than two values, or all values of one side equal. Raises ValueError: the
    lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"rank correlation of {len(first)} and {len(second)} values; give equally many")
    if len(first) < 2:
        return None
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return None if scale == 0 else float(np.clip((a @ b) / scale, -1.0, 1.0))


def pareto_front(cost: Values, gain: Values) -> list[int]:
    """Indices of the points that no other point beats, by rising cost: none is as cheap or cheaper and as good."""
    costs, gains = np.asarray(cost, dtype=np.float64), np.asarray(gain, dtype=np.float64)
    order = np.lexsort((-gains, costs))
    best_before = np.concatenate(([-np.inf], np.maximum.accumulate(gains[order])))[:-1]
    return [int(index) for index in order[gains[order] > best_before]]


def best_within(cost: Values, gain: Values, budget: float) -> int | None:
    """Index of the best gain at a cost of ``budget`` or less (the cheaper of equals). None: nothing is so cheap."""
    costs, gains = np.asarray(cost, dtype=np.float64), np.asarray(gain, dtype=np.float64)
    order = np.lexsort((costs, -gains))
    within = order[costs[order] <= budget]
    return int(within[0]) if within.size else None


def interpolate(wire_bytes: Values, accuracy: Values, at_bytes: float) -> float | None:
    """Accuracy of a measured curve at ``at_bytes``: linear in the logarithm of the bytes.

    Beyond the most bytes measured the curve's last accuracy holds, since nobody has to use up a budget. None below
    the fewest bytes measured, and without points. Of points at equal bytes the best one counts.
    """
    x, y = np.asarray(wire_bytes, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if x.size == 0 or at_bytes < x.min():
        return None
    order = np.lexsort((-y, x))
    x, first = np.unique(x[order], return_index=True)
    return float(np.interp(np.log(at_bytes), np.log(x), y[order][first]))
