"""Figures of policies as lines: against a key that a sweep changes, and over the slots of a training.

``draw_*`` gives matplotlib's figure, ``*_figure`` the drawing that a page shows.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from aecnn_deploy.optional import require
from aecnn_deploy.reports.canvas import WHY, Drawing, canvas, png
from aecnn_deploy.reports.offloading_documents import PolicyRow, Sweep, SweepPoint, TrainingRun, Value
from aecnn_deploy.reports.offloading_figures import FINE, SCORE, Looks, legend
from aecnn_deploy.reports.offloading_looks import BOUND, label
from aecnn_deploy.reports.offloading_numbers import (
    by_label,
    distance,
    is_number,
    mean_curve,
    named,
    ordered,
    plural,
    policies,
    value_text,
)

ZOOM_PERCENT = 10.0  # the second panel of the distance to the bound ends here
KEYS = MappingProxyType(
    {
        "devices.count": "devices",
        "devices.deadline_ms": "deadline, ms",
        "servers.count": "servers",
        "servers.capacity": "capacity of the servers",
        "uncertainty.estimate_error": "error of the channel estimates, share of a path's power",
    }
)
QUANTITIES = MappingProxyType(
    {
        "eval_score": "evaluation score",
        "eval_success": "evaluation success, %",
        "train_score": "training score",
        "loss": "loss",
    }
)
Reading = tuple[float, float | None]  # a mean and its standard deviation
Read = Callable[[PolicyRow, SweepPoint], Reading | None]


def key_words(key: str) -> str:
    """A key of a scenario as a reader says it, with its unit."""
    return KEYS.get(key, key)


def key_title(key: str) -> str:
    """The same without the unit."""
    return KEYS[key].partition(", ")[0] if key in KEYS else key


def _percent(mean: float, sd: float | None) -> Reading:
    return 100 * mean, None if sd is None else 100 * sd


_PANELS: tuple[tuple[str, Read], ...] = (
    (SCORE, lambda row, _: (row.score_mean, row.score_sd)),
    ("accuracy of the tasks in time, %", lambda row, _: _percent(row.accuracy_mean, row.accuracy_sd)),
    ("success: tasks in time, %", lambda row, _: _percent(row.success_mean, row.success_sd)),
    ("throughput: tasks in time, 1/s", lambda row, _: (row.throughput_mean, row.throughput_sd)),
)


def sweep_figure(sweep: Sweep, looks: Looks, name: str) -> Drawing:
    """Score, accuracy, success and throughput against the key, a line for each policy."""
    points, _ = ordered(sweep)
    said = "; ".join(
        f"{value_text(point.value)}: best {named(point.rows)[0].name}, {named(point.rows)[0].row.score_mean:.4g}"
        for point in points
    )
    caption = f"Means over {plural(len(sweep.seeds), 'seed')}"
    caption += "; bars are standard deviations over the seeds where the document has them." if _several(sweep) else "."
    if any(point.bound for point in points):
        caption += " Dashed without markers: the bound."
    alt = f"Four panels of lines against {key_words(sweep.vary.key)}. Score, {said}."
    return Drawing(name, png(draw_sweep(sweep, looks)), alt, caption)


def draw_sweep(sweep: Sweep, looks: Looks) -> Any:
    points, numeric = ordered(sweep)
    names = policies(sweep)
    figure, panels = canvas(8.6, 6.5 + 0.2 * (len(names) // 4 + 1), 2, 2)
    for axes, (words, read) in zip(panels, _PANELS, strict=True):
        _lines(axes, sweep, looks, read)
        axes.set_ylabel(words, fontsize=9)
        _value_axis(axes, sweep, points, numeric=numeric)
    bounds = [(x, point.bound.score_mean) for x, point in _placed(points, numeric=numeric) if point.bound]
    if bounds:
        kinds = ", ".join(dict.fromkeys(point.bound.kind for point in points if point.bound))
        marker = "_" if len(bounds) == 1 else None
        words = label(f"bound: {kinds}", 60)
        look = {"color": BOUND, "linewidth": 1.3, "marker": marker, "label": words, "zorder": 4}
        panels[0].plot(*zip(*bounds, strict=True), "--", **look)
    legend(figure, panels[0], last_first=True)
    return figure


def distance_figure(sweep: Sweep, looks: Looks, name: str) -> Drawing | None:
    """Percent below the bound against the key. None: no point has a bound."""
    points, _ = ordered(sweep)
    if not _distances(sweep):
        return None
    said = []
    for policy in policies(sweep):
        found = [far for point in points for item in named(point.rows) if item.name == policy
                 if (far := distance(item.row, point.bound, sweep.seeds))]  # fmt: skip
        if found:
            said.append(f"{policy} {100 * min(f.mean for f in found):.1f} to {100 * max(f.mean for f in found):.1f}")
    kinds = ", ".join(dict.fromkeys(point.bound.kind for point in points if point.bound))
    caption = f"How far the mean score is below the bound ({kinds}), in percent of it; lower is better"
    caption += "; bars are standard deviations over seeds" if _several(sweep) else ""
    caption += f". Below: the same from 0 to {ZOOM_PERCENT:g} %." if _zooms(sweep) else "."
    alt = f"Lines of the distance to the bound in percent against {key_words(sweep.vary.key)}: {'; '.join(said)}."
    return Drawing(name, png(draw_distance(sweep, looks)), alt, caption)


def draw_distance(sweep: Sweep, looks: Looks) -> Any:
    points, numeric = ordered(sweep)
    count = 1 + _zooms(sweep)
    figure, panels = canvas(8.4, 3.3 * count + 0.5 + 0.2 * (len(policies(sweep)) // 4), count)

    def read(row: PolicyRow, point: SweepPoint) -> Reading | None:
        far = distance(row, point.bound, sweep.seeds)
        return None if far is None else _percent(far.mean, far.sd)

    for axes in panels:
        _lines(axes, sweep, looks, read)
        axes.axhline(0, color=BOUND, linestyle="--", linewidth=1.2, zorder=1)
        axes.set_ylabel("below the bound, %", fontsize=9)
        _value_axis(axes, sweep, points, numeric=numeric)
    if count > 1:
        low = min(*_distances(sweep), 0.0)
        panels[1].set_ylim(max(low, -ZOOM_PERCENT) - 0.3, ZOOM_PERCENT)
    legend(figure, panels[0], last_first=True)
    return figure


def learning_figure(runs: Sequence[TrainingRun], looks: Looks, name: str) -> Drawing | None:
    """Learning curves, mean ± standard deviation over the runs of a label. None: no line has a quantity."""
    if not _quantities(runs):
        return None
    said = []
    for title, mine in by_label(runs).items():
        curve = mean_curve(mine, "eval_score")
        if curve is not None and curve.mean.size:
            said.append(f"{title}, {curve.mean[-1]:.4g} after {curve.slots[-1]:,.0f} slots")
    caption = (
        "Thin: each run. Thick: the mean over the runs of a label as far as all of them go, with a band of a standard "
        "deviation on both sides. Evaluations have seeds that are not trained on. Scores are as the training counts "
        "them: of a task, or of a second."
    )
    alt = "Learning curves" + (f"; evaluation score: {'; '.join(said)}." if said else ".")
    return Drawing(name, png(draw_learning(runs, looks)), alt, caption)


def draw_learning(runs: Sequence[TrainingRun], looks: Looks) -> Any:
    quantities, groups = _quantities(runs), by_label(runs)
    last = max(line.slot for run in runs for line in run.lines) or 1
    figure, panels = canvas(8.4, 2.5 * len(quantities) + 0.6 + 0.2 * (len(groups) // 4), len(quantities))
    for axes, quantity in zip(panels, quantities, strict=True):
        scale = 100.0 if quantity == "eval_success" else 1.0
        for title, mine in groups.items():
            curve = mean_curve(mine, quantity)
            if curve is None:
                continue
            look = looks[title]
            several = len(curve.runs) > 1
            for slots, values in curve.runs if several else ():
                axes.plot(slots, scale * values, color=look.colour, linewidth=0.6, alpha=0.45, zorder=2)
            short = curve.slots.size < 2
            axes.plot(
                curve.slots, scale * curve.mean, look.line, color=look.colour, linewidth=1.9, zorder=3,
                marker=look.marker if short else None, label=f"{label(title)} ({plural(len(mine), 'run')})",
            )  # fmt: skip
            if curve.sd is not None:
                low, high = scale * (curve.mean - curve.sd), scale * (curve.mean + curve.sd)
                axes.fill_between(curve.slots, low, high, color=look.colour, alpha=0.16, linewidth=0, zorder=1)
        axes.set_ylabel(QUANTITIES[quantity], fontsize=9)
        ticker = require("matplotlib.ticker", why=WHY)
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlim(-0.01 * last, 1.02 * last)
    panels[-1].set_xlabel("slots of training")
    legend(figure, max(panels, key=lambda axes: len(axes.get_legend_handles_labels()[1])))
    return figure


def _quantities(runs: Sequence[TrainingRun]) -> list[str]:
    return [name for name in QUANTITIES if any(mean_curve(mine, name) for mine in by_label(runs).values())]


def _lines(axes: Any, sweep: Sweep, looks: Looks, read: Callable[[PolicyRow, SweepPoint], Reading | None]) -> None:
    points, numeric = ordered(sweep)
    # The best is drawn last, on top.
    for name in reversed(policies(sweep)):
        found = []
        for x, point in _placed(points, numeric=numeric):
            row = next((item.row for item in named(point.rows) if item.name == name), None)
            value = None if row is None else read(row, point)
            if value is not None:
                found.append((x, *value))
        if not found:
            continue
        look = looks[name].plot()
        axes.plot([x for x, _, _ in found], [y for _, y, _ in found], **look, label=label(name), zorder=3)
        spread = [(x, y, sd) for x, y, sd in found if sd] if _several(sweep) else []
        if spread:
            xs, ys, sds = zip(*spread, strict=True)
            axes.errorbar(xs, ys, yerr=sds, fmt="none", ecolor=looks[name].colour, zorder=2, **FINE)


def _placed(points: Sequence[SweepPoint], *, numeric: bool) -> list[tuple[float, SweepPoint]]:
    """Points with their place on the axis: their value, or their number in the order."""
    return [(float(p.value) if numeric and is_number(p.value) else float(n), p) for n, p in enumerate(points)]


def _value_axis(axes: Any, sweep: Sweep, points: Sequence[SweepPoint], *, numeric: bool) -> None:
    places = [x for x, _ in _placed(points, numeric=numeric)]
    words = [_tick(point.value) for point in points]
    if numeric and places[0] > 0 and places[-1] > 15 * places[0]:
        ticker = require("matplotlib.ticker", why=WHY)
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set_xticks(places, words)
    else:
        gaps = [b - a for a, b in pairwise(places)]
        if not numeric or min(gaps, default=1.0) > 0.07 * (places[-1] - places[0]):
            axes.set_xticks(places, words)
    if not numeric and max(len(line) for text in words for line in text.split("\n")) > 48 / len(words):
        axes.set_xticks(places, words, rotation=25, ha="right", rotation_mode="anchor")
    axes.set_xlabel(label(key_words(sweep.vary.key), 60), fontsize=9)
    axes.tick_params(labelsize=8.5)


def _tick(value: Value) -> str:
    """A value on an axis; a list of several has a line for each."""
    if isinstance(value, tuple) and 2 < len(value) <= 6:
        return "\n".join(label(value_text(item), 18) for item in value)
    return label(value_text(value), 18)


def _several(sweep: Sweep) -> bool:
    return len(sweep.seeds) > 1


def _distances(sweep: Sweep) -> list[float]:
    """Percent below the bound, of every policy and point that has one."""
    found = [distance(row, point.bound, sweep.seeds) for point in sweep.points for row in point.rows]
    return [100 * far.mean for far in found if far is not None]


def _zooms(sweep: Sweep) -> bool:
    found = _distances(sweep)
    return bool(found) and max(found) > 2 * ZOOM_PERCENT and min(found) < ZOOM_PERCENT
