"""What the numbers cost and how far they carry: epochs, seeds, seconds, images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aecnn_deploy.models.results import ResultRow
from aecnn_deploy.reports.points import CODECS, RANKED, Group, Point
from aecnn_deploy.reports.tables import TABLE_ONE_ARMS

# What the paper's tables ask for; less is a reduced size, and the title says so.
FULL_EPOCHS, FULL_SEEDS = 30, 3


@dataclass(frozen=True, slots=True)
class Scope:
    """Fewest and most epochs and seeds behind a table."""

    epochs: tuple[float, float]
    seeds: tuple[int, int]

    @property
    def reduced(self) -> bool:
        """Some row has fewer epochs or seeds than the paper's tables."""
        return self.epochs[0] < FULL_EPOCHS or self.seeds[0] < FULL_SEEDS

    def __str__(self) -> str:
        epochs = _count(*self.epochs, "epoch") if self.epochs[1] > 0 else "no training"
        seeds = _count(*self.seeds, "seed")
        return f"({epochs}, {seeds}{'; reduced size' if self.reduced else ''})"


@dataclass(frozen=True, slots=True)
class Cost:
    """One table's training: each row of the runs counts in exactly one of these."""

    title: str
    rows: int
    train_s: float
    scope: Scope
    test_images: tuple[int, ...]
    devices: tuple[str, ...]


def scope(points: Sequence[Point]) -> Scope | None:
    """Epochs and seeds of the points that were trained (of all, where none was). None: no points."""
    trained = [point for point in points if point.epochs > 0] or list(points)
    if not trained:
        return None
    epochs = [point.epochs for point in trained]
    seeds = [len(point.seeds) for point in trained]
    return Scope((min(epochs), max(epochs)), (min(seeds), max(seeds)))


def own_seconds(rows: Sequence[ResultRow]) -> list[float]:
    """Seconds that each row added, in the rows' order: a row's ``train_s`` counts all that came before it too.

    AECNN begins from CA_Pruned (of its own bits, or of the next more: it is pruned once for all), JPEG features train
    nothing, and all qualities of a codec and side share one training.
    """
    pruned: dict[tuple[object, ...], list[ResultRow]] = {}
    for row in rows:
        if row.arm == "ca-pruned":
            pruned.setdefault(_place(row), []).append(row)
    paid: set[tuple[object, ...]] = set()
    seconds = []
    for row in rows:
        own = row.train_s
        shared = (row.arm, row.side, row.seed, row.label)
        if row.arm == "jpeg-features" or (row.arm in CODECS and shared in paid):
            own = 0.0
        elif row.arm == "aecnn" and not row.ablation:
            own = max(0.0, own - _begun_from(row, pruned.get(_place(row), [])))
        paid.add(shared)
        seconds.append(own)
    return seconds


def costs(group: Group) -> tuple[Cost, ...]:
    """Seconds, epochs and seeds of every table of the group, then of all together."""
    table_one = {(r.split, r.bits) for r in group.rows if r.arm in TABLE_ONE_ARMS and not r.ablation}
    kinds: list[tuple[str, Callable[[ResultRow], bool]]] = [
        ("unsplit and local int8", lambda r: r.arm in ("unsplit", "local-int8")),
        *[
            (f"Table I, l = {split}, {bits} bits", _is_table_one(split, bits))
            for split, bits in sorted(table_one, key=lambda item: (-(item[1] or 0), item[0] or 0))
        ],
        ("other rankings", lambda r: r.arm in RANKED),
        ("faster path and strided heads", lambda r: r.arm in ("aecnn-fast", "strided")),
        ("JPEG features and late splits", lambda r: r.arm in ("jpeg-features", "late-split")),
        ("image codecs", lambda r: r.arm in CODECS),
    ]
    own = dict(zip((id(row) for row in group.rows), own_seconds(group.rows), strict=True))
    found = []
    for title, belongs in kinds:
        rows = [row for row in group.rows if not row.ablation and belongs(row)]
        points = [point for point in group.points if any(_same(point, row) for row in rows)]
        found += _cost(title, rows, points, own)
    found += _cost("ablations", [row for row in group.rows if row.ablation], group.ablations, own)
    return (*found, *_cost("all", group.rows, (*group.points, *group.ablations), own))


def _place(row: ResultRow) -> tuple[object, ...]:
    return (row.split, row.ratio, row.seed)


def _begun_from(row: ResultRow, pruned: Sequence[ResultRow]) -> float:
    """Seconds of the CA_Pruned network that ``row`` began from."""
    enough = [item for item in pruned if (item.bits or 0) >= (row.bits or 0)]
    return min(enough, key=lambda item: item.bits or 0).train_s if enough else 0.0


def _is_table_one(split: int | None, bits: int | None) -> Callable[[ResultRow], bool]:
    return lambda row: row.arm in TABLE_ONE_ARMS and (row.split, row.bits) == (split, bits)


def _same(point: Point, row: ResultRow) -> bool:
    return (point.arm, point.split, point.bits, point.label) == (row.arm, row.split, row.bits, row.label)


def _cost(title: str, rows: Sequence[ResultRow], points: Sequence[Point], own: dict[int, float]) -> list[Cost]:
    found = scope(points)
    if not rows or found is None:
        return []
    images = tuple(sorted({row.test_images for row in rows}))
    devices = tuple(sorted({row.device for row in rows}))
    return [Cost(title, len(rows), sum(own[id(row)] for row in rows), found, images, devices)]


def _count(low: float, high: float, what: str) -> str:
    number = f"{low:g}" if low == high else f"{low:g}–{high:g}"
    return f"{number} {what}{'' if number == '1' else 's'}"
