"""What the runs hold, merged: rows that differ in nothing but the seed become one point."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from aecnn_deploy.errors import RunFormatError
from aecnn_deploy.models.results import Ranking, ResultRow, read_rankings, read_results, unpack_correct
from aecnn_deploy.reports.numbers import Floats, Spread, difference_error, paired_error, spread

UNKNOWN_BACKBONE = "unknown"
CODECS = ("jpeg", "webp", "avif")
# What this project sends; the other split arms are baselines.
OURS = ("aecnn", "aecnn-fast", "strided")
RANKED = ("random", "l1", "se", "cbam")
# Shares of the unsplit network's multiply-adds: a head above the first nearly is the network, one below the second is
# cheap.
COUNTED_SHARE, SMALL_SHARE = 0.30, 0.10

NAMES = MappingProxyType(
    {
        "unsplit": "unsplit, float32",
        "local-int8": "local int8",
        "aecnn": "AECNN",
        "ca-pruned": "CA_Pruned",
        "aecnn-fast": "AECNN, faster path",
        "strided": "strided head",
        "bottlenetpp": "BottleNet++",
        "random": "random ranking",
        "l1": "L1 ranking",
        "se": "SE ranking",
        "cbam": "CBAM ranking",
        "jpeg-features": "JPEG features",
        "late-split": "late split",
        "jpeg": "JPEG frame",
        "webp": "WebP frame",
        "avif": "AVIF frame",
    }
)

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One setting of one arm, averaged over its seeds. Accuracies are shares of the test split."""

    arm: str
    label: str
    split: int | None
    split_shape: tuple[int, int, int] | None
    ratio: int | None
    bits: int | None
    planes: tuple[int, int, int] | None
    quality: int | None
    side: int | None
    accuracy: Spread
    wire_bytes: float | None
    entropy_bits: Spread | None
    encode_ms: float | None
    decode_ms: float | None
    head_macs: int
    full_macs: int
    head_share: float  # of the unsplit network's multiply-adds
    epochs: float
    train_s: float
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]  # by seed, in their order
    test_images: int
    devices: tuple[str, ...]
    test_set: str | None = None  # which test photographs; None: its rows do not say, or were measured on several
    correct: tuple[str | None, ...] = ()  # by seed: which test images were classified correctly, as in the rows

    def image_by_image(self, seeds: Collection[int]) -> Floats | None:
        """(N,) the share of ``seeds`` that name each test image right; None: not all of their rows keep it."""
        kept = [correct for seed, correct in zip(self.seeds, self.correct, strict=False) if seed in seeds]
        known = [unpack_correct(correct, self.test_images) for correct in kept if correct is not None]
        return np.mean(known, axis=0, dtype=np.float64) if known and len(known) == len(kept) else None

    @property
    def name(self) -> str:
        """The point in words, e.g. ``AECNN, l = 2, V = 16, 8 bits``."""
        words = [NAMES.get(self.arm, self.arm)]
        words += [f"l = {self.split}"] if self.split is not None else []
        words += [f"V = {self.ratio}"] if self.ratio is not None else []
        words += [f"{self.bits} bits"] if self.bits is not None else []
        words += [f"q {self.quality}"] if self.quality is not None else []
        words += [f"{self.side} px"] if self.side is not None else []
        return ", ".join(words) + (f" ({self.label})" if self.label else "")

    @property
    def counts(self) -> bool:
        """The head costs 30 % or less of the unsplit network's multiply-adds."""
        return self.head_share <= COUNTED_SHARE


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One folder that went into the report; ``finished`` is false where it has no run.json."""

    path: str
    backbone: str
    finished: bool
    results: int
    rankings: int
    settings: dict[str, Any]
    tools: dict[str, str]


@dataclass(frozen=True, slots=True)
class Group:
    """All runs of one backbone."""

    backbone: str
    runs: tuple[RunInfo, ...]
    rows: tuple[ResultRow, ...]
    rankings: tuple[Ranking, ...]
    points: tuple[Point, ...]  # without the ablations
    ablations: tuple[Point, ...]
    notes: tuple[str, ...]

    def of(self, *arms: str) -> tuple[Point, ...]:
        """The points of these arms."""
        return tuple(point for point in self.points if point.arm in arms)

    def says(self, key: str) -> bool:
        """A setting is true in one of the runs."""
        return any(run.settings.get(key) is True for run in self.runs)

    @property
    def unsplit(self) -> Point | None:
        """The unsplit network: the row without a label, else the first label's."""
        return min(self.of("unsplit"), key=lambda point: point.label, default=None)


def read_groups(runs: Sequence[Path]) -> tuple[Group, ...]:
    """The runs' rows by backbone. Raises RunFormatError: a folder is no run, or one of its files is damaged."""
    infos: list[tuple[RunInfo, tuple[ResultRow, ...], tuple[Ranking, ...]]] = []
    for run in {path.resolve(): path for path in runs}.values():
        results, rankings = read_results(run), read_rankings(run)
        infos.append((_describe(run, results, rankings), results, rankings))
    groups = []
    for backbone in dict.fromkeys(info.backbone for info, _, _ in infos):
        mine = [item for item in infos if item[0].backbone == backbone]
        rows = [row for _, results, _ in mine for row in results]
        orders = [ranking for _, _, found in mine for ranking in found]
        groups.append(make_group(backbone, [info for info, _, _ in mine], rows, orders))
    return tuple(groups)


def make_group(backbone: str, runs: Sequence[RunInfo], rows: Sequence[ResultRow], rankings: Sequence[Ranking]) -> Group:
    """Merge rows of one backbone."""
    kept = _latest(rows)
    notes = []
    if len(kept) < len(rows):
        notes.append(
            f"{len(rows) - len(kept)} rows repeat the settings and the seed of another one; of each such set the row "
            "with most epochs counts, or the last run's"
        )
    images = sorted({row.test_images for row in kept})
    if len(images) > 1:
        notes.append(f"rows were measured on different numbers of test images: {', '.join(map(str, images))}")
    limits = sorted({_of_data(run, "train_limit") for run in runs} - {0})
    if limits:
        notes.append(f"Reduced size: trained on {' or '.join(f'{limit:,}' for limit in limits)} photographs at most")
    return Group(
        backbone=backbone,
        runs=tuple(runs),
        rows=tuple(kept),
        rankings=tuple(rankings),
        points=average(row for row in kept if not row.ablation),
        ablations=average(row for row in kept if row.ablation),
        notes=tuple(notes),
    )


def _of_data(run: RunInfo, key: str) -> int:
    """A number of the settings' [data]; 0 where there is none."""
    data = run.settings.get("data")
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, int) else 0


def average(rows: Iterable[ResultRow]) -> tuple[Point, ...]:
    """One point for each setting, over its seeds; in the order of their settings."""
    ordered = sorted(rows, key=lambda row: (_order(_key(row)), row.seed))
    return tuple(_point(tuple(same)) for _, same in groupby(ordered, key=_key))


def _key(row: ResultRow) -> Key:
    return (row.arm, row.split, row.ratio, row.bits, row.quality, row.side, row.planes, row.label, row.ablation)


def _order(key: Key) -> Key:
    return tuple((item is not None, item if item is not None else 0) for item in key)


def _latest(rows: Iterable[ResultRow]) -> list[ResultRow]:
    chosen: dict[Key, ResultRow] = {}
    for row in rows:
        key = (_key(row), row.seed)
        if key not in chosen or row.epochs >= chosen[key].epochs:
            chosen[key] = row
    return list(chosen.values())


def _point(rows: tuple[ResultRow, ...]) -> Point:
    first = rows[0]
    entropies = [row.entropy_bits for row in rows if row.entropy_bits is not None]
    return Point(
        arm=first.arm,
        label=first.label,
        split=first.split,
        split_shape=first.split_shape,
        ratio=first.ratio,
        bits=first.bits,
        planes=first.planes,
        quality=first.quality,
        side=first.side,
        accuracy=spread([row.accuracy for row in rows]),
        wire_bytes=_mean([row.wire_bytes for row in rows]),
        entropy_bits=spread(entropies) if entropies else None,
        encode_ms=_mean([row.encode_ms for row in rows]),
        decode_ms=_mean([row.decode_ms for row in rows]),
        head_macs=first.head_macs,
        full_macs=first.full_macs,
        head_share=first.head_macs / first.full_macs if first.full_macs > 0 else 0.0,
        epochs=max(row.epochs for row in rows),
        train_s=sum(row.train_s for row in rows) / len(rows),
        seeds=tuple(row.seed for row in rows),
        accuracies=tuple(row.accuracy for row in rows),
        test_images=first.test_images,
        devices=tuple(sorted({row.device for row in rows})),
        test_set=first.test_set if len({row.test_set for row in rows}) == 1 else None,
        correct=tuple(_checked(row) for row in rows),
    )


def _checked(row: ResultRow) -> str | None:
    if row.correct is None:
        return None
    try:
        images = unpack_correct(row.correct, row.test_images)
    except ValueError:
        images = None
    if images is None or round(row.accuracy * row.test_images) != images.sum():
        raise RunFormatError(
            f"the row {row.task} says that {row.accuracy:.4g} of {row.test_images} test images are right, image by "
            "image it says something else; train this task again, or leave its run out"
        )
    return row.correct


def error_of_difference(point: Point, other: Point, seeds: Collection[int] | None = None) -> float:
    """Standard error of the difference of two accuracies, by the test images.

    Image by image where the rows of both keep it for the same photographs, else as of two draws of so many images.
    ``seeds``: of these alone; None: of all.
    """
    if point.test_set is not None and point.test_set == other.test_set:
        own, theirs = (item.image_by_image(item.seeds if seeds is None else seeds) for item in (point, other))
        if own is not None and theirs is not None:
            return paired_error(own, theirs)
    images = min(point.test_images, other.test_images)
    return difference_error(point.accuracy.mean, other.accuracy.mean, images)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return spread(known).mean if known else None


def _describe(run: Path, results: Sequence[ResultRow], rankings: Sequence[Ranking]) -> RunInfo:
    if not (run / "run.json").is_file():
        if not (run / "results").is_dir() and not (run / "rankings").is_dir():
            raise RunFormatError(
                f"{run} is not a training run: it has neither run.json nor results; make one with: aecnn-deploy train"
            )
        settings = _begun_with(run)
        backbone = settings.get("backbone", UNKNOWN_BACKBONE)
        return RunInfo(str(run), str(backbone), False, len(results), len(rankings), settings, {})
    # Only here: a run's record stands beside its networks, whose module imports torch.
    from aecnn_deploy.models.run import read_record

    record = read_record(run)
    return RunInfo(str(run), record.backbone, True, len(results), len(rankings), record.settings, record.tools)


def _begun_with(run: Path) -> dict[str, Any]:
    """The settings that an unfinished run keeps; nothing where it keeps none."""
    path = run / "settings.json"
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as exc:
        raise RunFormatError(f"{path} is damaged: {exc}; go on with the run, or leave it out") from None
