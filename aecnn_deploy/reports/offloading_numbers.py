"""What the offloading part of a report works out of its documents: differences seed by seed, distances, mean curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from aecnn_deploy.reports.numbers import Floats, Spread, spread
from aecnn_deploy.reports.offloading_documents import (
    Bound,
    Comparison,
    Documents,
    PolicyRow,
    Sweep,
    SweepPoint,
    TrainingRun,
    Value,
)


@dataclass(frozen=True, slots=True)
class Named:
    """A row under a name that no other row of its document has."""

    name: str
    row: PolicyRow


@dataclass(frozen=True, slots=True)
class Paired:
    """The best policy's score less another's, seed by seed, both in the same worlds; ``ahead``: seeds above zero."""

    differences: tuple[float, ...]
    spread: Spread
    ahead: int


@dataclass(frozen=True, slots=True)
class MeanCurve:
    """One quantity of the runs of one label: each run's own points, and the mean where all of them have been."""

    runs: tuple[tuple[Floats, Floats], ...]  # slots and values of each run, by rising slot
    slots: Floats  # [k]
    mean: Floats  # [k]
    sd: Floats | None  # [k]; None for one run


def named(rows: Sequence[PolicyRow]) -> tuple[Named, ...]:
    """The rows, the best score first; the second row of a name is called "name (2)", in the document's order."""
    counts: dict[str, int] = {}
    taken = {row.policy for row in rows}
    found = []
    for row in rows:
        name, count = row.policy, counts.get(row.policy, 0) + 1
        if count > 1:
            while (name := f"{row.policy} ({count})") in taken:
                count += 1
        counts[row.policy] = count
        taken.add(name)
        found.append(Named(name, row))
    return tuple(sorted(found, key=lambda item: -item.row.score_mean))


def score(row: PolicyRow, seeds: int) -> Spread:
    return Spread(row.score_mean, row.score_sd if seeds > 1 else None, seeds)


def paired(best: PolicyRow, other: PolicyRow) -> Paired | None:
    """None: scores of each seed are not in the document."""
    if not best.scores or not other.scores:
        return None
    differences = np.asarray(best.scores) - np.asarray(other.scores)
    return Paired(tuple(differences.tolist()), spread(differences), int((differences > 0).sum()))


def distance(row: PolicyRow, bound: Bound | None, seeds: Sequence[int]) -> Spread | None:
    """How far a policy's mean score is below the bound's, a share of the bound.

    The deviation is that of the distances seed by seed where the bound has scores of the same seeds; else the
    policy's own. None: no bound, or one of 0.
    """
    if bound is None or bound.score_mean <= 0:
        return None
    mean, sd = 1 - row.score_mean / bound.score_mean, row.score_sd / bound.score_mean
    if bound.scores and len(bound.scores) == len(row.scores) and bound.seeds == tuple(seeds) and min(bound.scores) > 0:
        sd = spread(1 - np.asarray(row.scores) / np.asarray(bound.scores)).sd or 0.0
    return Spread(mean, sd if len(seeds) > 1 else None, len(seeds))


def other_worlds(document: Comparison | Sweep, bound: Bound) -> list[str]:
    """In what the worlds of the bound differ from the policies', as far as the document says."""
    found = []
    seeds = bound.seeds
    if seeds is not None and seeds != (len(document.seeds) if isinstance(seeds, int) else document.seeds):
        found.append(f"{plural(seeds if isinstance(seeds, int) else len(seeds), 'seed')} of its own")
    for what, its, theirs in (("slots", bound.slots, document.slots), ("worlds", bound.batch, document.batch)):
        if its is not None and theirs is not None and its != theirs:
            found.append(f"{its:,} {what} where the policies have {theirs:,}")
    return found


def number(value: float) -> str:
    """An amount with two decimals, or three where it is below 10."""
    return f"{value:,.{_decimals(value)}f}".replace("-", "−")


def plus_minus(value: Spread) -> str:
    """Mean ± standard deviation, both with the mean's decimals."""
    return number(value.mean) + ("" if value.sd is None else f" ± {value.sd:,.{_decimals(value.mean)}f}")


def _decimals(value: float) -> int:
    return 2 if abs(value) >= 10 else 3


def plural(count: int, what: str, many: str | None = None) -> str:
    return f"{count:,} {what if count == 1 else many or what + 's'}"


def is_number(value: Value) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def ordered(sweep: Sweep) -> tuple[tuple[SweepPoint, ...], bool]:
    """The points by rising value, and whether all values are numbers; else in the document's order.

    Of points of one value the last counts.
    """
    points = tuple({repr(point.value): point for point in sweep.points}.values())
    numbers = [(float(point.value), point) for point in points if is_number(point.value)]
    if len(numbers) == len(points):
        return tuple(point for _, point in sorted(numbers, key=lambda pair: pair[0])), True
    return points, False


def value_text(value: Value) -> str:
    """A value as an axis and a table write it; a pair is a range."""
    if isinstance(value, tuple):
        return ("–" if len(value) == 2 else ", ").join(map(value_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def policies(sweep: Sweep) -> list[str]:
    """Every name of a sweep, the best mean over its points first."""
    scores: dict[str, list[float]] = {}
    for point in sweep.points:
        for item in named(point.rows):
            scores.setdefault(item.name, []).append(item.row.score_mean)
    return sorted(scores, key=lambda name: -float(np.mean(scores[name])))


def all_policies(documents: Documents) -> list[str]:
    """Every policy that is in a scenario, by name."""
    names = [item.name for _, document in documents.comparisons for item in named(document.rows)]
    names += [name for _, document in documents.sweeps for name in policies(document)]
    names += [row.policy for _, document in documents.transfers for row in document.rows]
    return sorted(set(names))


def by_label(runs: Sequence[TrainingRun]) -> dict[str, list[TrainingRun]]:
    found: dict[str, list[TrainingRun]] = {}
    for run in runs:
        found.setdefault(run.label, []).append(run)
    return found


def mean_curve(runs: Sequence[TrainingRun], quantity: str) -> MeanCurve | None:
    """The mean over runs at every slot that one of them wrote, as far as all of them go; between its own points a run
    is read off a straight line. None: no run has the quantity.
    """
    known = []
    for run in runs:
        pairs = [(line.slot, value) for line in run.lines if (value := getattr(line, quantity)) is not None]
        if pairs:
            slots, values = np.asarray(pairs, dtype=np.float64).T
            known.append((slots, values))
    if not known:
        return None
    first, last = max(slots[0] for slots, _ in known), min(slots[-1] for slots, _ in known)
    grid = np.unique(np.concatenate([slots for slots, _ in known]))
    grid = grid[(grid >= first) & (grid <= last)]
    values = np.array([np.interp(grid, *pair) for pair in known]).reshape(len(known), grid.size)
    sd = values.std(axis=0, ddof=1) if len(known) > 1 else None
    return MeanCurve(tuple(known), grid, values.mean(axis=0), sd)
