"""All that the page shows of one backbone, computed once: for the page, the figures and report.json alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aecnn_deploy.planning.paper import PaperTable
from aecnn_deploy.reports.canvas import Drawing
from aecnn_deploy.reports.costs import Cost, costs
from aecnn_deploy.reports.curves import (
    AblationTable,
    BudgetRow,
    FactorRow,
    SpeedRow,
    ablation_tables,
    budget_rows,
    factor_rows,
    front,
    speed_rows,
    verdict,
)
from aecnn_deploy.reports.figures import importance, multiply_adds, rate_accuracy, speed, three_axes
from aecnn_deploy.reports.points import UNKNOWN_BACKBONE, Group, Point
from aecnn_deploy.reports.tables import (
    MethodAgreement,
    RankingRow,
    Stability,
    TableOne,
    failures,
    method_agreement,
    other_rankings,
    stability,
    table_one,
)


@dataclass(frozen=True, slots=True)
class Analysis:
    """The computed tables of one backbone, in the order of the page."""

    table_one: tuple[TableOne, ...]
    claim_failures: tuple[str, ...]
    rankings: tuple[RankingRow, ...]
    stability: tuple[Stability, ...]
    agreement: tuple[MethodAgreement, ...]
    pareto_front: tuple[Point, ...]  # of all points whose head counts
    budgets: tuple[BudgetRow, ...]
    verdicts: tuple[str, ...]
    first_shape: tuple[int, int, int] | None  # C, H, W of the backbone's first split point
    factors: tuple[FactorRow, ...]
    ablations: tuple[AblationTable, ...]
    speed: tuple[SpeedRow, ...]
    costs: tuple[Cost, ...]


class Given(NamedTuple):
    """What the sections of one backbone are made of."""

    group: Group
    analysis: Analysis
    drawings: dict[str, Drawing]
    paper: PaperTable


def analyse(group: Group, paper: PaperTable) -> Analysis:
    """Compute every table. Raises RunFormatError: a ranking whose batches are of unequal length."""
    first = _first_shape(group)
    tables = table_one(group, paper)
    budgets = budget_rows(group)
    return Analysis(
        table_one=tables,
        claim_failures=tuple(failures(tables)),
        rankings=other_rankings(group),
        stability=stability(group.rankings),
        agreement=method_agreement(group.rankings),
        pareto_front=tuple(front([point for point in group.points if point.counts])),
        budgets=budgets,
        verdicts=tuple(verdict(row) for row in budgets),
        first_shape=first,
        factors=factor_rows(group, first),
        ablations=ablation_tables(group),
        speed=speed_rows(group),
        costs=costs(group),
    )


def draw(group: Group, analysis: Analysis, prefix: str) -> dict[str, Drawing]:
    """Every figure that the rows allow, by its name; files are called ``<prefix>-<name>.png``."""
    drawings: Sequence[tuple[str, Drawing | None]] = (
        ("importance", importance(group.rankings, analysis.stability, f"{prefix}-importance.png")),
        ("rate-accuracy", rate_accuracy(group, f"{prefix}-rate-accuracy.png")),
        ("multiply-adds", multiply_adds(group, f"{prefix}-multiply-adds.png")),
        ("three-axes", three_axes(group, f"{prefix}-three-axes.png")),
        ("speed", speed(analysis.speed, f"{prefix}-speed.png")),
    )
    return {name: drawing for name, drawing in drawings if drawing is not None}


def _first_shape(group: Group) -> tuple[int, int, int] | None:
    """From a row at split point 1; else from the backbone itself, whose modules import torch."""
    known = next((row.split_shape for row in group.rows if row.split == 1 and row.split_shape), None)
    if known is not None or group.backbone == UNKNOWN_BACKBONE or not group.of("aecnn", "aecnn-fast", "strided"):
        return known
    from aecnn_deploy.models.backbones import BACKBONES, build_backbone

    if group.backbone not in BACKBONES:
        return None
    point = build_backbone(group.backbone).split_point(1)
    return (point.channels, point.height, point.width)
