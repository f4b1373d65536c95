"""What every figure shares: colours, markers, a canvas without a display, the PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from types import MappingProxyType
from typing import Any

from aecnn_deploy.optional import require
from aecnn_deploy.reports.points import NAMES, SMALL_SHARE, Point

DPI = 160
WHY = "drawing a report"

# Okabe and Ito's colours, which stay apart for colour-blind readers; no two arms share a marker.
STYLES = MappingProxyType(
    {
        "aecnn": ("#0072B2", "o"),
        "aecnn-fast": ("#D55E00", "D"),
        "strided": ("#009E73", "^"),
        "ca-pruned": ("#56B4E9", "s"),
        "bottlenetpp": ("#CC79A7", "v"),
        "random": ("#9A9A9A", "<"),
        "l1": ("#9A9A9A", ">"),
        "se": ("#9A9A9A", "p"),
        "cbam": ("#9A9A9A", "h"),
        "jpeg-features": ("#7A5195", "P"),
        "late-split": ("#6B6B00", "d"),
        "jpeg": ("#E69F00", "X"),
        "webp": ("#A65E00", "H"),
        "avif": ("#000000", "*"),
        "local-int8": ("#000000", "8"),
    }
)


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure: its file name, its PNG, what it shows for those who do not see it, and what it says."""

    name: str
    png: bytes
    alt: str
    caption: str


def canvas(width: float, height: float, panels: int, columns: int = 1) -> tuple[Any, tuple[Any, ...]]:
    """A figure in inches and its panels: ``panels`` rows, one above the other, of ``columns`` each, row by row."""
    figures = require("matplotlib.figure", why=WHY)
    require("matplotlib.backends.backend_agg", why=WHY)
    figure = figures.Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    axes = tuple(figure.subplots(panels, columns, squeeze=False).ravel())
    for panel in axes:
        panel.grid(color="#E6E6E6", linewidth=0.7, zorder=0)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: Any) -> bytes:
    """The PNG, the same bytes for the same numbers: matplotlib's version stays out of it."""
    buffer = BytesIO()
    agg = require("matplotlib.backends.backend_agg", why=WHY)
    agg.FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def explain_marks(axes: Any, points: Sequence[Point]) -> None:
    """Legend entries for what a ring and a hollow marker say, where ``points`` have such."""
    look: dict[str, Any] = {"marker": "o", "linestyle": "", "markerfacecolor": "none", "markeredgecolor": "#555555"}
    heads = [point for point in points if point.split is not None]
    if any(point.head_share <= SMALL_SHARE for point in heads):
        axes.plot([], [], label="ring: head of 10 % or less", markersize=10, markeredgewidth=0.7, **look)
    if not all(point.counts for point in heads):
        axes.plot([], [], label="hollow: head above 30 %", markersize=5.5, markeredgewidth=1.1, **look)


def legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    # The lines stay last; the arms come drawn baselines first, and are read the other way round.
    arms = [pair for pair in zip(handles, labels, strict=True) if pair[1] in NAMES.values()]
    others = [pair for pair in zip(handles, labels, strict=True) if pair[1] not in NAMES.values()]
    handles, labels = zip(*arms[::-1], *others, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)


def plain_ticks(axes: Any) -> None:
    """Ticks as 1,000 rather than 10^3."""
    ticker = require("matplotlib.ticker", why=WHY)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=24))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.tick_params(axis="x", labelsize=8.5)
