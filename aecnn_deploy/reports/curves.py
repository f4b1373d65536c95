"""What the figures rest on: fronts, the codecs' envelope, budgets, factors, ablations and the faster path."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from aecnn_deploy.reports.numbers import best_within, pareto_front
from aecnn_deploy.reports.points import CODECS, OURS, SMALL_SHARE, Group, Point, error_of_difference

BUDGETS_BYTES = (300, 400, 500, 700, 1000, 1400, 2000, 3000, 4000, 6000)
LOSSES = (0.005, 0.01, 0.02, 0.04)


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """The most accurate points at or below a budget; margins are ours less the codec's, None without both."""

    budget_bytes: int
    codec: Point | None
    ours: Point | None  # heads up to 30 % of the multiply-adds
    ours_small: Point | None  # heads up to 10 %
    aecnn: Point | None  # Algorithm 1 as written, heads up to 30 %
    margin: float | None
    margin_small: float | None
    margin_error: float | None = None  # standard error of ``margin`` by the test images: ``error_of_difference``
    margin_small_error: float | None = None

    @property
    def clear(self) -> bool:
        """The margin is more than one standard error of the test split, or ours is alone."""
        return self.wins and (self.margin is None or self.margin > (self.margin_error or 0.0))

    @property
    def wins(self) -> bool:
        """Ours is more accurate, or alone at this budget."""
        return self.ours is not None and (self.margin is None or self.margin > 0)

    @property
    def wins_small(self) -> bool:
        """The same with heads up to 10 % only."""
        return self.ours_small is not None and (self.margin_small is None or self.margin_small > 0)


@dataclass(frozen=True, slots=True)
class FactorRow:
    """The largest compression factor that loses no more than ``loss`` (a share) against the unsplit network.

    ``factor_sent`` is against the float32 tensor of the split that is sent, ``factor_first`` against that of the first
    split point; different points may reach them.
    """

    what: str
    loss: float
    factor_sent: float | None
    sent: Point | None
    factor_first: float | None
    first: Point | None


@dataclass(frozen=True, slots=True)
class AblationRow:
    """One row of an ablation; ``difference``: its accuracy less that of ``all``, None where there is no such row."""

    point: Point
    difference: float | None


@dataclass(frozen=True, slots=True)
class AblationTable:
    """Ablations of one network; ``reference`` is its row labelled "all"."""

    title: str
    reference: Point | None
    rows: tuple[AblationRow, ...]


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """Plain Algorithm 1 and the faster path at equal split, ratio and bits."""

    plain: Point
    fast: Point
    difference: float  # accuracy of the faster path less the plain one's
    speed_up: float | None  # None: no time was recorded, or not on the same device


def sent(points: Iterable[Point]) -> list[Point]:
    """The points that send something."""
    return [point for point in points if point.wire_bytes is not None and point.wire_bytes > 0]


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front of bytes and accuracy, by rising bytes."""
    known = sent(points)
    return [known[index] for index in pareto_front(_bytes(known), _accuracies(known))]


def front_of_work(points: Sequence[Point]) -> list[Point]:
    """The Pareto front of device multiply-adds and accuracy, by rising multiply-adds."""
    return [points[index] for index in pareto_front([p.head_share for p in points], _accuracies(points))]


def best_point(points: Sequence[Point], budget_bytes: float) -> Point | None:
    """The most accurate point of ``budget_bytes`` or fewer."""
    known = sent(points)
    index = best_within(_bytes(known), _accuracies(known), budget_bytes)
    return None if index is None else known[index]


def budget_rows(group: Group) -> tuple[BudgetRow, ...]:
    """The curve that decides, at ``BUDGETS_BYTES``; empty without a codec or without a network of ours."""
    codecs, ours = group.of(*CODECS), [point for point in group.of(*OURS) if point.counts]
    if not sent(codecs) or not sent(group.of(*OURS)):
        return ()
    small = [point for point in ours if point.head_share <= SMALL_SHARE]
    plain = [point for point in ours if point.arm == "aecnn"]
    rows = []
    for budget in BUDGETS_BYTES:
        codec, best, best_small, aecnn = (best_point(item, budget) for item in (codecs, ours, small, plain))
        margins = (_difference(best, codec), _difference(best_small, codec))
        errors = (_error(best, codec), _error(best_small, codec))
        rows.append(BudgetRow(budget, codec, best, best_small, aecnn, *margins, *errors))
    return tuple(rows)


def verdict(row: BudgetRow) -> str:
    """Who wins at this budget, in words."""
    budget = f"{row.budget_bytes:,} B: "
    if row.ours is None:
        return budget + ("the codecs win, nothing of ours is so small" if row.codec else "nothing is so small")
    if row.codec is None or row.margin is None:
        return budget + f"only ours is so small, {100 * row.ours.accuracy.mean:.2f} %"
    if row.margin > 0:
        text = f"the split wins by {100 * row.margin:.2f} points"
    elif row.margin < 0:
        text = f"the codecs win by {-100 * row.margin:.2f} points"
    else:
        text = "both are equal"
    text += _by_chance(row.margin, row.margin_error)
    small = f"head of {100 * SMALL_SHARE:.0f} % or less"
    if row.margin_small is None:
        return f"{budget}{text}; no {small} is so small"
    less = f"{100 * row.margin_small:+.2f}".replace("-", "−")
    return f"{budget}{text}; with a {small} {less}{_by_chance(row.margin_small, row.margin_small_error)}"


def _by_chance(margin: float, error: float | None) -> str:
    """What has to be said of a margin that other test images might turn round."""
    return f", within one standard error ({100 * error:.2f})" if error and margin and abs(margin) <= error else ""


def factor_rows(group: Group, first_shape: tuple[int, int, int] | None) -> tuple[FactorRow, ...]:
    """Compression factors at ``LOSSES``; ``first_shape``: C, H, W of the backbone's first split point."""
    unsplit = group.unsplit
    if unsplit is None or not sent(group.of(*OURS)):
        return ()
    kinds = (
        ("best of ours, head up to 30 %", [point for point in group.of(*OURS) if point.counts]),
        ("best of ours, any head", list(group.of(*OURS))),
        ("AECNN as written, any head", list(group.of("aecnn"))),
    )
    rows = []
    for what, points in kinds:
        for loss in LOSSES:
            # Shares of a few thousand images: 1e-9 only forgives the rounding of the subtraction.
            good = [p for p in sent(points) if p.accuracy.mean >= unsplit.accuracy.mean - loss - 1e-9]
            own = max(good, key=lambda p: factor(p.split_shape, p) or 0, default=None)
            least = min(good, key=lambda p: p.wire_bytes or 0, default=None)
            factor_sent = factor(own.split_shape, own) if own else None
            factor_first = factor(first_shape, least) if least else None
            rows.append(
                FactorRow(
                    what, loss, factor_sent, own if factor_sent else None, factor_first, least if factor_first else None
                )
            )
    return tuple(rows)


def factor(shape: tuple[int, int, int] | None, point: Point) -> float | None:
    """4·C·H·W / wire bytes (AECNN eq. 1 over what was really sent)."""
    return None if shape is None or not point.wire_bytes else 4 * prod(shape) / point.wire_bytes


def ablation_tables(group: Group) -> tuple[AblationTable, ...]:
    """Ablations by their reference: the row "all" of the same network, else the only "all" of the same arm."""
    references = [point for point in group.ablations if point.label == "all"]
    tables: dict[tuple[object, ...], list[Point]] = {}
    found: dict[tuple[object, ...], Point | None] = {}
    for point in group.ablations:
        same = [item for item in references if _network(item) == _network(point)]
        of_arm = [item for item in references if item.arm == point.arm]
        reference = same[0] if same else of_arm[0] if len(of_arm) == 1 else None
        key = _network(reference or point)
        tables.setdefault(key, []).append(point)
        found[key] = reference
    result = []
    for key, points in tables.items():
        reference = found[key]
        ordered = sorted(points, key=lambda point: (point.label != "all", -point.accuracy.mean))
        rows = tuple(AblationRow(point, _difference(point, reference)) for point in ordered)
        result.append(AblationTable(_title(reference or points[0]), reference, rows))
    return tuple(result)


def speed_rows(group: Group) -> tuple[SpeedRow, ...]:
    """Pairs of plain and faster training at equal split, ratio and bits (the rows without a label, else the first)."""
    fast: dict[tuple[object, ...], Point] = {}
    plain: dict[tuple[object, ...], Point] = {}
    for point in sorted(group.of("aecnn", "aecnn-fast"), key=lambda point: point.label):
        (plain if point.arm == "aecnn" else fast).setdefault(_network(point)[1:], point)
    rows = []
    for key in plain.keys() & fast.keys():
        a, b = plain[key], fast[key]
        comparable = a.devices == b.devices and a.train_s > 0 and b.train_s > 0
        rows.append(SpeedRow(a, b, b.accuracy.mean - a.accuracy.mean, a.train_s / b.train_s if comparable else None))
    return tuple(sorted(rows, key=lambda row: (row.plain.split or 0, -(row.plain.bits or 0), row.plain.ratio or 0)))


def _network(point: Point) -> tuple[object, ...]:
    return (point.arm, point.split, point.ratio, point.bits)


def _title(point: Point) -> str:
    return point.name.removesuffix(f" ({point.label})")


def _difference(point: Point | None, other: Point | None) -> float | None:
    return None if point is None or other is None else point.accuracy.mean - other.accuracy.mean


def _error(point: Point | None, other: Point | None) -> float | None:
    """Standard error of a difference in accuracy, in the test images."""
    return None if point is None or other is None else error_of_difference(point, other)


def _bytes(points: Sequence[Point]) -> list[float]:
    return [point.wire_bytes or 0.0 for point in points]


def _accuracies(points: Sequence[Point]) -> list[float]:
    return [point.accuracy.mean for point in points]
