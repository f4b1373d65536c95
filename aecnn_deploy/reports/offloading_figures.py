"""Figures of one table each: policies in one scenario, in scenarios they do not know, and on DROO's channels.

``draw_*`` gives matplotlib's figure, ``*_figure`` the drawing that a page shows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from aecnn_deploy.optional import require
from aecnn_deploy.reports.canvas import WHY, Drawing, canvas, png
from aecnn_deploy.reports.offloading_documents import Comparison, DrooTable, TransferTable
from aecnn_deploy.reports.offloading_looks import BOUND, Look, label, labels
from aecnn_deploy.reports.offloading_numbers import Named, Paired, named, paired, plural, plus_minus, score

Looks = Mapping[str, Look]
SCORE = "score: right answers in time, 1/s"
SOFT = "#6B6B6B"
FINE = {"elinewidth": 0.9, "capsize": 2.5, "capthick": 0.9}
_PAPER = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}  # lines pass behind numbers
_PERFECT = 1e-7  # the least shortfall that the logarithmic axis of DROO shows


def comparison_figure(document: Comparison, looks: Looks, name: str) -> Drawing:
    """Scores as bars, beside how far each policy is behind the best, seed by seed."""
    rows = named(document.rows)
    several = len(document.seeds) > 1
    alt = "Bars of the score: " + "; ".join(f"{item.name} {item.row.score_mean:.4g}" for item in rows) + "."
    caption = f"Mean over {plural(len(document.seeds), 'seed')}"
    caption += "; thin lines are standard deviations over the seeds." if several else "."
    if document.bound:
        alt += f" {document.bound.kind}: {document.bound.score_mean:.4g}."
        caption += f" Dashed: the bound, {document.bound.kind}."
    if _differences(document, rows):
        caption += (
            f" Right: the score of {rows[0].name} less the policy's, each seed in the same worlds: strokes are seeds, "
            "the dot is their mean, the line its standard deviation."
        )
    return Drawing(name, png(draw_comparison(document, looks)), alt, caption)


def draw_comparison(document: Comparison, looks: Looks) -> Any:
    rows = named(document.rows)
    pairs = _differences(document, rows)
    figure, panels = canvas(8.4, 1.5 + 0.34 * len(rows), 1, 2 if pairs else 1)
    bars, bound = panels[0], document.bound
    for place, item in enumerate(rows):
        row, look = item.row, looks[item.name]
        sd = row.score_sd if len(document.seeds) > 1 else 0.0
        face = "white" if look.hollow else look.colour
        bars.barh(place, row.score_mean, 0.66, color=face, edgecolor=look.colour, linewidth=1.2, zorder=2)
        if sd:
            bars.errorbar(row.score_mean, place, xerr=sd, fmt="none", ecolor="black", zorder=3, **FINE)
        _beside(bars, row.score_mean + sd, place, plus_minus(score(row, len(document.seeds))))
    if bound:
        words = label(f"bound: {bound.kind}", 60)
        bars.axvline(bound.score_mean, color=BOUND, linestyle="--", linewidth=1.2, zorder=1, label=words)
        figure.legend(loc="outside lower center", fontsize=8.5, frameon=False)
    most = max(item.row.score_mean + item.row.score_sd for item in rows)
    bars.set_xlim(0, max(most * (1.45 if pairs else 1.2), (bound.score_mean * 1.03) if bound else 0.0) or 1.0)
    bars.set_yticks(range(len(rows)), labels([item.name for item in rows]))
    bars.set_xlabel(SCORE)
    if pairs:
        _draw_differences(panels[1], rows, pairs)
    for axes in panels:
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
    return figure


def _differences(document: Comparison, rows: Sequence[Named]) -> dict[str, Paired]:
    """By name; empty without several seeds and their scores."""
    if len(document.seeds) < 2:
        return {}
    return {item.name: pair for item in rows[1:] if (pair := paired(rows[0].row, item.row))}


def _draw_differences(axes: Any, rows: Sequence[Named], pairs: Mapping[str, Paired]) -> None:
    ends = []
    for place, item in enumerate(rows):
        pair = pairs.get(item.name)
        if pair is None:
            words = "the best" if place == 0 else "no scores by seed"
            _beside(axes, 0.0, place, words, colour=SOFT)
            continue
        mean, sd = pair.spread.mean, pair.spread.sd or 0.0
        axes.plot(pair.differences, [place + 0.22] * pair.spread.n, "|", color=SOFT, markersize=5, zorder=2)
        axes.errorbar(mean, place - 0.05, xerr=sd, fmt="o", color="black", markersize=4, zorder=3, **FINE)
        end = max(*pair.differences, mean + sd)
        _beside(axes, end, place - 0.05, plus_minus(pair.spread))
        ends += [end, min(*pair.differences, mean - sd)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    span = (high - low) or 1.0
    axes.axvline(0, color=BOUND, linewidth=0.9, zorder=1)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(low - 0.05 * span, high + 0.5 * span)
    axes.set_yticks(range(len(rows)), [""] * len(rows))
    axes.set_xlabel(f"behind {label(rows[0].name, 24)}, 1/s")


def transfer_figure(document: TransferTable, looks: Looks, name: str) -> Drawing | None:
    """Each policy's score over that of one trained in the scenario. None: no row has a ratio."""
    rows = [row for row in document.rows if row.ratio is not None]
    if not rows:
        return None
    said = "; ".join(f"{row.policy}, trained on {row.trained_on}, in {row.scenario}: {row.ratio:.4f}" for row in rows)
    caption = (
        "Scenario: policy from the scenario that it was trained in. 100 % (dashed): the score of one that was trained "
        "where both are tried. Lines: the standard deviation of the policy's "
        "own score over seeds; that of the other one is not in them."
    )
    return Drawing(name, png(draw_transfer(document, looks)), f"Ratios of scores. {said}.", caption)


def draw_transfer(document: TransferTable, looks: Looks) -> Any:
    rows = [row for row in document.rows if row.ratio is not None]
    order = list(dict.fromkeys(row.scenario for row in rows))
    rows.sort(key=lambda row: order.index(row.scenario))
    figure, (axes,) = canvas(8.4, 1.1 + 0.32 * len(rows), 1)
    ends = [100.0]
    for place, row in enumerate(rows):
        look, percent = looks[row.policy], 100 * (row.ratio or 0.0)
        sd = percent * (row.score_sd or 0.0) / row.score_mean if row.score_mean else 0.0
        axes.errorbar(percent, place, xerr=sd or None, **{**look.plot(), "linestyle": "none"}, **FINE, zorder=3)
        _beside(axes, percent + sd, place, f"{percent:.1f} %")
        ends += [percent - sd, percent + sd]
    for place in range(1, len(rows)):
        if rows[place].scenario != rows[place - 1].scenario:
            axes.axhline(place - 0.5, color="#CFCFCF", linewidth=0.8)
    axes.axvline(100, color=BOUND, linestyle="--", linewidth=1.0, zorder=1)
    span = max(ends) - min(ends) or 1.0
    axes.set_xlim(min(ends) - 0.06 * span, max(ends) + 0.14 * span)
    words = [f"{label(row.scenario, 20)}: {label(row.policy, 24)} from {label(row.trained_on, 20)}" for row in rows]
    axes.set_yticks(range(len(rows)), words)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("score, % of that of a policy trained in the scenario")
    return figure


def droo_figure(document: DrooTable, looks: Looks, name: str) -> Drawing:
    """Normalised rates against evaluations of the critic, on an axis that tells 0.999 from 0.9999."""
    said = "; ".join(f"{row.policy}, {row.critic_evaluations:g}: {row.rate_mean:.6f}" for row in document.rows)
    caption = (
        "Rate over the published optimum, mean over the channels; the axis is logarithmic in what is missing to 1, so "
        f"that each step up is a tenth of the loss. Rates of 1 and above stand at the top, {1 - _PERFECT:.7f}. Thin "
        "lines reach down to the 5th percentile of the channels where it is known."
    )
    return Drawing(name, png(draw_droo(document, looks)), f"Mean rate by critic evaluations. {said}.", caption)


def draw_droo(document: DrooTable, looks: Looks) -> Any:
    figure, (axes,) = canvas(8.4, 4.6, 1)
    ticker = require("matplotlib.ticker", why=WHY)
    shortfalls = []
    every = sorted({row.critic_evaluations for row in document.rows})
    names = list(dict.fromkeys(row.policy for row in document.rows))
    for number, name in enumerate(names):
        rows = sorted((row for row in document.rows if row.policy == name), key=lambda row: row.critic_evaluations)
        missing = [max(1 - row.rate_mean, _PERFECT) for row in rows]
        tails = [max(1 - row.rate_p5, _PERFECT) if row.rate_p5 is not None else None for row in rows]
        # Side by side, where policies have equally many evaluations.
        aside = 0.02 * (number - (len(names) - 1) / 2)
        evaluations = [row.critic_evaluations + aside * max(row.critic_evaluations, 1.0) for row in rows]
        axes.plot(evaluations, missing, **looks[name].plot(), label=label(name), zorder=3)
        for x, low, high in zip(evaluations, missing, tails, strict=True):
            if high is not None:
                axes.plot([x, x], [low, high], color=looks[name].colour, linewidth=0.8, alpha=0.7, zorder=2)
        shortfalls += [*missing, *(tail for tail in tails if tail is not None)]
    axes.set_xscale("symlog", linthresh=1.0, linscale=0.35)
    axes.set_xlim(-0.15 if every[0] < 1 else every[0] * 0.8, max(every[-1], 1.0) * 1.4)
    axes.set_xticks(every if len(every) <= 12 else every[:: len(every) // 6], minor=False)
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_yscale("log")
    axes.set_ylim(max(shortfalls) * 2, min(shortfalls) / 2)
    axes.yaxis.set_major_locator(
        ticker.LogLocator(subs=(1.0,) if max(shortfalls) > 30 * min(shortfalls) else (1.0, 2.0, 5.0))
    )
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{1 - value:.7f}".rstrip("0").rstrip(".")))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel("evaluations of the critic a decision")
    axes.set_ylabel("rate over the published optimum")
    legend(figure, axes)
    return figure


def legend(figure: Any, axes: Any, *, last_first: bool = False) -> None:
    """Below the panels, in as many columns as the names have room for; ``last_first``: what was drawn on top."""
    handles, names = axes.get_legend_handles_labels()
    if last_first:
        handles, names = handles[::-1], names[::-1]
    longest = max(map(len, names), default=0)
    columns = min(5, max(1, int(8.2 / (0.55 + 0.072 * longest))))
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False, handlelength=2.6
    )


def _beside(axes: Any, x: float, y: float, words: str, *, colour: str = "black") -> None:
    axes.annotate(words, (x, y), (5, 0), textcoords="offset points", va="center", fontsize=8, color=colour, bbox=_PAPER)
