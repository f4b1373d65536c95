"""A plan as a figure: completion time against rate, for image sizes (AECNN, Fig. 5(a)) and for variants (Fig. 5(b)).

One column of a paper, 80 mm, wide: what is legible there is legible everywhere.
"""

import os
from collections.abc import Sequence
from io import BytesIO
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

from aecnn_deploy.bundle.manifest import Manifest
from aecnn_deploy.errors import PlanError
from aecnn_deploy.optional import require
from aecnn_deploy.planning.plan import Plan
from aecnn_deploy.planning.predict import Predictor
from aecnn_deploy.planning.rate_sweep import HIGHEST_BPS, LOWEST_BPS, curve, sweep
from aecnn_deploy.reports.plan_curves import BLACK, Line, Panels, panels_of

_WHY = "drawing a plan"
_DPI = 300
_WIDTH_IN = 80 / 25.4
_PLOT_IN, _STRIP_IN, _ENTRY_IN = 1.95, 0.17, 0.125
_TITLE_IN, _AXIS_IN = 0.2, 0.36
_LEFT_IN, _AXES_IN = 0.5, _WIDTH_IN - 0.5 - 0.09
_FONT, _SMALL, _SMALLEST = 7.0, 6.2, 5.6
_LETTER_IN = 0.046  # of the smallest font
_RATES = (0.5, 1, 2, 5, 10, 20, 50, 100, 200)  # Mbit/s


def draw_plan(manifest: Manifest, predictor: Predictor, plan: Plan) -> Any:
    """Both panels, and below them the choice for each band of rates. Raises MissingExtraError: no matplotlib."""
    figures = require("matplotlib.figure", why=_WHY, extra="plan")
    panels = panels_of(manifest, predictor, plan)
    deadline_ms = plan.settings.deadline_ms
    more = int(deadline_ms is not None)
    entries = (_entries(panels.sizes) + more + bool(panels.points), _entries(panels.variants) + more)
    heights = (_PLOT_IN, _ENTRY_IN * entries[0], _PLOT_IN, _STRIP_IN, _ENTRY_IN * entries[1])
    height = sum(heights) + 2 * (_TITLE_IN + _AXIS_IN) + 0.16
    figure = figures.Figure(figsize=(_WIDTH_IN, height), dpi=_DPI, facecolor="white")

    def place(top_in: float, row: int) -> Any:
        box = (_LEFT_IN / _WIDTH_IN, 1 - (top_in + heights[row]) / height, _AXES_IN / _WIDTH_IN, heights[row] / height)
        return figure.add_axes(box)

    top = _TITLE_IN
    first = place(top, 0)
    _draw(first, panels.sizes, deadline_ms)
    first.set_title("(a) whole images against the split (dashes)", fontsize=_FONT, loc="left", pad=3)
    look = {"markersize": 3.6, "markerfacecolor": "white", "color": BLACK, "markeredgewidth": 0.8}
    first.plot(
        [rate / 1e6 for rate, _ in panels.points], [ms for _, ms in panels.points], "o", zorder=6, label="_", **look
    )
    _rate_axis(first)
    top += heights[0] + _AXIS_IN
    _explain(place(top, 1), panels.sizes, deadline_ms, break_even=bool(panels.points))
    top += heights[1] + _TITLE_IN
    second = place(top, 2)
    _draw(second, panels.variants, deadline_ms)
    second.set_title("(b) variants, and the choice at each rate", fontsize=_FONT, loc="left", pad=3)
    _rate_axis(second, labels=False)
    top += heights[2] + 0.06
    strip = place(top, 3)
    _strip(strip, panels)
    top += heights[3] + _AXIS_IN
    _explain(place(top, 4), panels.variants, deadline_ms)
    return figure


def write_figure(figure: Any, path: Path) -> None:
    """Write ``figure`` as SVG or PNG, as the suffix says; the same bytes for the same numbers.

    It is written beside its place and renamed. Raises PlanError: it cannot be written.
    """
    buffer = BytesIO()
    if path.suffix.lower() == ".svg":
        matplotlib = require("matplotlib", why=_WHY, extra="plan")
        svg = require("matplotlib.backends.backend_svg", why=_WHY, extra="plan")
        with matplotlib.rc_context({"svg.hashsalt": "plan"}):
            svg.FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    else:
        agg = require("matplotlib.backends.backend_agg", why=_WHY, extra="plan")
        figure.set_dpi(_DPI)  # writing SVG leaves its own
        agg.FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(buffer.getvalue())
        partial.replace(path)
    except OSError as exc:
        partial.unlink(missing_ok=True)
        raise PlanError(f"cannot write the figure {path}: {exc.strerror or exc}; name another place") from None


def _draw(axes: Any, lines: Sequence[Line], deadline_ms: float | None) -> None:
    """The curves over a logarithmic axis of milliseconds that shows all of them."""
    rates = sweep()
    drawn = [line for line in lines if line.ways]
    shown = [value for line in drawn for value in curve(line.ways, rates)] + ([deadline_ms] if deadline_ms else [])
    for line in drawn:
        axes.plot(
            [rate / 1e6 for rate in rates], curve(line.ways, rates), color=line.colour, linestyle=line.dash,
            linewidth=line.width, zorder=3, solid_capstyle="butt",
        )  # fmt: skip
    if deadline_ms is not None:
        axes.axhline(deadline_ms, color="#C00000", linewidth=0.7, zorder=2)
    axes.set_yscale("log")
    axes.set_ylim(0.8 * max(min(shown), 1e-3), 1.25 * max(shown))
    _time_ticks(axes)
    axes.set_ylabel("completion time, ms", fontsize=_FONT, labelpad=2)
    axes.grid(color="#E6E6E6", linewidth=0.5, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_linewidth(0.6)


def _time_ticks(axes: Any) -> None:
    """Plain numbers at 1, 2 and 5 of each decade, or at the decades alone where there are many."""
    ticker = require("matplotlib.ticker", why=_WHY, extra="plan")
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if log10(high / low) < 3.2 else (1,)
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    inside = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(inside, [f"{tick:,.10g}" for tick in inside])
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.tick_params(axis="y", labelsize=_SMALL, length=2, width=0.6, pad=1.5)


def _rate_axis(axes: Any, *, labels: bool = True) -> None:
    ticker = require("matplotlib.ticker", why=_WHY, extra="plan")
    axes.set_xscale("log")
    axes.set_xlim(LOWEST_BPS / 1e6, HIGHEST_BPS / 1e6)
    axes.set_xticks(_RATES, [f"{rate:g}" for rate in _RATES] if labels else [""] * len(_RATES))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.tick_params(axis="x", labelsize=_SMALL, length=2, width=0.6, pad=1.5)
    if labels:
        axes.set_xlabel("uplink rate, Mbit/s", fontsize=_FONT, labelpad=1.5)


def _strip(axes: Any, panels: Panels) -> None:
    """A bar of the choice for each band of rates: its colour, and its name where the band is wide enough."""
    whole = log10(HIGHEST_BPS / LOWEST_BPS)
    for band in panels.bands:
        low, high = band.low_bps / 1e6, band.high_bps / 1e6
        name = band.what
        if name is None:
            axes.axvspan(low, high, facecolor="white", edgecolor="#999999", hatch="//////", linewidth=0)
        else:
            axes.axvspan(low, high, color=panels.colours[name], linewidth=0)
        said = "nothing fits" if name is None else panels.names[name]
        if log10(high / low) / whole * _AXES_IN >= _LETTER_IN * len(said) + 0.06:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.9}
            axes.text(
                (low * high) ** 0.5, 0.5, said, fontsize=_SMALLEST, ha="center", va="center", bbox=box, clip_on=True
            )
    axes.set_yticks([])
    axes.set_ylim(0, 1)
    _rate_axis(axes)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)


def _entries(lines: Sequence[Line]) -> int:
    return sum(bool(line.label) for line in lines)


def _explain(axes: Any, lines: Sequence[Line], deadline_ms: float | None, *, break_even: bool = False) -> None:
    """The legend, one entry a line, in axes of its own."""
    lines2d = require("matplotlib.lines", why=_WHY, extra="plan")
    axes.set_axis_off()
    handles = [
        lines2d.Line2D([], [], color=line.colour, linestyle=line.dash, linewidth=line.width, label=line.label)
        for line in lines
        if line.label
    ]
    if deadline_ms is not None:
        handles.append(lines2d.Line2D([], [], color="#C00000", linewidth=0.7, label=f"deadline, {deadline_ms:g} ms"))
    if break_even:
        look = {"marker": "o", "markersize": 3.6, "markerfacecolor": "white", "color": BLACK, "markeredgewidth": 0.8}
        handles.append(lines2d.Line2D([], [], linestyle="", label="break-even", **look))
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, 1), borderaxespad=0, borderpad=0, fontsize=_SMALL,
        frameon=False, labelspacing=0.25, handlelength=2.4, handletextpad=0.6,
    )  # fmt: skip
