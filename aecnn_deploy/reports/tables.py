"""Table I, the other rankings, and how stable a ranking is: rows to be shown, without a word of HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from aecnn_deploy.errors import RunFormatError
from aecnn_deploy.models.results import Ranking
from aecnn_deploy.planning.paper import PaperRow, PaperTable
from aecnn_deploy.reports.numbers import difference_error, interpolate, spearman, spread
from aecnn_deploy.reports.points import NAMES, RANKED, Group, Point, error_of_difference

TABLE_ONE_ARMS = ("bottlenetpp", "ca-pruned", "aecnn")


@dataclass(frozen=True, slots=True)
class Margin:
    """AECNN's accuracy less a rival's, as a share: the mean over the ``seeds`` that both have, seed by seed.

    Without a seed in common, and for a rival that is read off its curve, the means are compared (``seeds`` is 0).
    ``spread``: the standard deviation of the differences; None for fewer than two seeds. ``image_error``: the standard
    error by the test images, ``error_of_difference``.
    """

    rival: str
    at: str  # what is equal: "ratio", "channels", "bytes"
    difference: float
    seeds: int
    spread: float | None
    image_error: float
    test_images: int

    @property
    def holds(self) -> bool:
        """AECNN is at least as good."""
        return self.difference >= 0


@dataclass(frozen=True, slots=True)
class TableOneRow:
    """One ratio of one split point and number of bits."""

    ratio: int
    bottlenetpp: Point | None
    ca_pruned: Point | None
    aecnn: Point | None
    bottlenetpp_at_equal_bytes: float | None  # accuracy, read off BottleNet++'s own curve at AECNN's bytes
    margins: tuple[Margin, ...]
    paper: PaperRow | None


@dataclass(frozen=True, slots=True)
class TableOne:
    """Table I for one split point and number of bits; ``paper_split`` is the paper's split that stands beside it."""

    split: int
    split_shape: tuple[int, int, int] | None
    bits: int
    paper_split: int | None
    rows: tuple[TableOneRow, ...]

    @property
    def points(self) -> tuple[Point, ...]:
        """Every point that the table shows."""
        found = [point for row in self.rows for point in (row.bottlenetpp, row.ca_pruned, row.aecnn)]
        return tuple(point for point in found if point is not None)


@dataclass(frozen=True, slots=True)
class RankingRow:
    """CA_Pruned with each ranking of the channels, by arm; the attention of the paper first."""

    split: int
    ratio: int
    bits: int
    points: dict[str, Point]


@dataclass(frozen=True, slots=True)
class Stability:
    """Spearman's correlations between the batches of one ranking, each pair once; empty for fewer than two batches."""

    task: str
    method: str
    split: int
    seed: int
    channels: int
    batch_images: int
    correlations: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MethodAgreement:
    """Spearman's correlation between two methods' importance at one split point, same seed."""

    split: int
    seed: int
    first: str
    second: str
    correlation: float


def table_one(group: Group, paper: PaperTable) -> tuple[TableOne, ...]:
    """Table I for every split point and number of bits of BottleNet++, CA_Pruned and AECNN; 8 bits first."""
    points = [point for point in group.of(*TABLE_ONE_ARMS) if None not in (point.split, point.ratio, point.bits)]
    splits = sorted({point.split or 0 for point in points})
    beside = paper_splits(group.backbone, splits, paper)
    tables = []
    for bits in sorted({point.bits or 0 for point in points}, reverse=True):
        for split in splits:
            mine = [point for point in points if (point.split, point.bits) == (split, bits)]
            if not mine:
                continue
            ratios = sorted({point.ratio or 0 for point in mine})
            rows = tuple(_table_one_row(mine, ratio, paper.row(beside.get(split), ratio)) for ratio in ratios)
            shape = next((point.split_shape for point in mine if point.split_shape), None)
            tables.append(TableOne(split, shape, bits, beside.get(split), rows))
    return tuple(tables)


def paper_splits(backbone: str, splits: Sequence[int], paper: PaperTable) -> dict[int, int]:
    """Which of the paper's split points stands beside each of ours.

    The same number for the paper's own network. Another network has other split points: there the shallowest is shown
    beside the paper's first and so on, for orientation only.
    """
    known = sorted({row.split for row in paper.rows})
    if backbone == paper.backbone:
        return {split: split for split in splits if split in known}
    return dict(zip(sorted(splits), known, strict=False))


def _table_one_row(points: Sequence[Point], ratio: int, paper: PaperRow | None) -> TableOneRow:
    bottlenetpp, ca_pruned, aecnn = (pick(points, arm, ratio) for arm in TABLE_ONE_ARMS)
    label = bottlenetpp.label if bottlenetpp else ""
    curve = [point for point in points if (point.arm, point.label) == ("bottlenetpp", label)]
    equal_bytes = None
    margins = []
    if aecnn:
        equal_bytes = at_equal_bytes(curve, aecnn)
        margins += [_margin(aecnn, ca_pruned, "ratio")] if ca_pruned else []
        same = _same_channels(curve, aecnn)
        margins += [_margin(aecnn, same, "channels")] if same else []
        if equal_bytes is not None:
            difference = aecnn.accuracy.mean - equal_bytes
            error = difference_error(aecnn.accuracy.mean, equal_bytes, aecnn.test_images)
            margins.append(Margin("bottlenetpp", "bytes", difference, 0, None, error, aecnn.test_images))
    return TableOneRow(ratio, bottlenetpp, ca_pruned, aecnn, equal_bytes, tuple(margins), paper)


def pick(points: Sequence[Point], arm: str, ratio: int) -> Point | None:
    """The arm's point at a ratio: the one without a label, else the first label's."""
    mine = [point for point in points if (point.arm, point.ratio) == (arm, ratio)]
    return min(mine, key=lambda point: point.label, default=None)


def at_equal_bytes(curve: Sequence[Point], point: Point) -> float | None:
    """Accuracy of ``curve`` at the point's wire bytes; None: it sends nothing, or less than the whole curve does."""
    known = [(item.wire_bytes, item.accuracy.mean) for item in curve if item.wire_bytes is not None]
    if point.wire_bytes is None:
        return None
    return interpolate([item[0] for item in known], [item[1] for item in known], point.wire_bytes)


def _same_channels(curve: Sequence[Point], point: Point) -> Point | None:
    if point.planes is None:
        return None
    return next((item for item in curve if item.planes and item.planes[0] == point.planes[0]), None)


def _margin(aecnn: Point, rival: Point, at: str) -> Margin:
    own, other = (dict(zip(point.seeds, point.accuracies, strict=True)) for point in (aecnn, rival))
    shared = [seed for seed in own if seed in other]
    differences = [own[seed] - other[seed] for seed in shared]
    found = spread(differences or [aecnn.accuracy.mean - rival.accuracy.mean])
    error = error_of_difference(aecnn, rival, shared or None)
    images = min(aecnn.test_images, rival.test_images)
    return Margin(rival.arm, at, found.mean, len(differences), found.sd, error, images)


def failures(tables: Sequence[TableOne]) -> list[str]:
    """One sentence for each place where AECNN is below CA_Pruned or BottleNet++."""
    equal = {
        "ratio": "at the same ratio",
        "channels": "at the same number of channels",
        "bytes": "at the same bytes on the wire",
    }
    return [
        f"l = {table.split}, V = {row.ratio}, {table.bits} bits: AECNN is {-100 * margin.difference:.2f} points below "
        f"{NAMES[margin.rival]} {equal[margin.at]}; {_doubt(margin)}"
        for table in tables
        for row in table.rows
        for margin in row.margins
        if not margin.holds
    ]


def _doubt(margin: Margin) -> str:
    """How far a margin may be chance, in words."""
    within = "within" if abs(margin.difference) <= margin.image_error else "beyond"
    said = f"{within} the standard error on {margin.test_images:,} test images, {100 * margin.image_error:.2f}"
    return said if margin.spread is None else f"{said}; ± {100 * margin.spread:.2f} over {margin.seeds} seeds"


def other_rankings(group: Group) -> tuple[RankingRow, ...]:
    """Every (split, bits, ratio) at which another ranking than the paper's was trained."""
    points = group.of("ca-pruned", *RANKED)
    others = [point for point in points if point.arm != "ca-pruned"]
    places = sorted({(point.split or 0, -(point.bits or 0), point.ratio or 0) for point in others})
    rows = []
    for split, negative_bits, ratio in places:
        mine = [point for point in points if (point.split or 0, -(point.bits or 0)) == (split, negative_bits)]
        found = {arm: pick(mine, arm, ratio) for arm in ("ca-pruned", *RANKED)}
        known = {arm: point for arm, point in found.items() if point}
        rows.append(RankingRow(split, ratio, -negative_bits, known))
    return tuple(rows)


def stability(rankings: Sequence[Ranking]) -> tuple[Stability, ...]:
    """How far random batches agree on the order of the channels. Raises RunFormatError: batches of unequal length."""
    rows = []
    for ranking in sorted(rankings, key=lambda item: (item.split, item.method, item.seed)):
        channels = len(ranking.importance)
        for batch in ranking.batches:
            if len(batch) != channels:
                raise RunFormatError(
                    f"ranking {ranking.task} has {channels} channels and a batch of {len(batch)}; train this task again"
                )
        if len(ranking.batches) < 2:
            continue
        pairs = (spearman(a, b) for a, b in combinations(ranking.batches, 2))
        known = tuple(value for value in pairs if value is not None)
        rows.append(
            Stability(ranking.task, ranking.method, ranking.split, ranking.seed, channels, ranking.batch_images, known)
        )
    return tuple(rows)


def method_agreement(rankings: Sequence[Ranking]) -> tuple[MethodAgreement, ...]:
    """How far the methods agree with each other: the lowest seed of each split point that has two methods or more."""
    rows = []
    for split in sorted({ranking.split for ranking in rankings}):
        here = [ranking for ranking in rankings if ranking.split == split]
        by_seed = {
            seed: {ranking.method: ranking for ranking in here if ranking.seed == seed}
            for seed in sorted({ranking.seed for ranking in here})
        }
        seed, methods = next(((s, m) for s, m in by_seed.items() if len(m) > 1), (0, {}))
        for first, second in combinations(sorted(methods), 2):
            a, b = methods[first].importance, methods[second].importance
            value = spearman(a, b) if len(a) == len(b) else None
            if value is not None:
                rows.append(MethodAgreement(split, seed, first, second, value))
    return tuple(rows)
