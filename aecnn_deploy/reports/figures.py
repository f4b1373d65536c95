"""The report's figures: points in, PNG out. matplotlib without a display and without global state."""

from collections.abc import Iterable, Sequence
from typing import Any

from aecnn_deploy.models.results import Ranking
from aecnn_deploy.optional import require
from aecnn_deploy.reports.canvas import STYLES, WHY, Drawing, canvas, explain_marks, legend, plain_ticks, png
from aecnn_deploy.reports.curves import SpeedRow, best_point, front, front_of_work, sent
from aecnn_deploy.reports.points import CODECS, COUNTED_SHARE, NAMES, OURS, SMALL_SHARE, Group, Point
from aecnn_deploy.reports.tables import Stability

ZOOM_BYTES = (300.0, 6000.0)
# How far below its best point a figure begins, as a share of accuracy.
ZOOM_SPAN, WORK_SPAN = 0.20, 0.30
WORK_BOUNDS = (0.0, 0.001, 0.05, 0.10, 0.30, 0.60, 1.0)


def rate_accuracy(group: Group, name: str) -> Drawing | None:
    """Bytes on the wire against accuracy, whole and zoomed. None: nothing is sent."""
    points = [point for point in sent(group.points) if point.arm in STYLES]
    if not points:
        return None
    figure, (whole, zoom) = canvas(8.0, 12.2, 2)
    for axes in (whole, zoom):
        _scatter(axes, points)
        _lines(axes, group, points)
        axes.set_xscale("log")
        axes.set_xlabel("bytes on the wire an image, framing included")
        axes.set_ylabel("top-1, %")
        plain_ticks(axes)
    _left_edge(whole, group)
    whole.set_title("All points")
    inside = [p for p in points if ZOOM_BYTES[0] <= (p.wire_bytes or 0) <= ZOOM_BYTES[1]]
    top = max([p.accuracy.mean for p in inside] + [u.accuracy.mean for u in (group.unsplit,) if u] + [0.0])
    bottom = max(min((p.accuracy.mean for p in inside), default=0.0), top - ZOOM_SPAN)
    zoom.set_xlim(*ZOOM_BYTES)
    zoom.set_xticks([300, 400, 500, 700, 1000, 1400, 2000, 3000, 4000, 6000])
    zoom.xaxis.set_minor_locator(require("matplotlib.ticker", why=WHY).NullLocator())
    zoom.set_ylim(100 * bottom - 0.8, 100 * top + 0.8)
    zoom.set_title("0.3 to 6 kB")
    hidden = sum(p.accuracy.mean < bottom - 0.008 for p in inside)
    explain_marks(whole, points)
    legend(figure, whole)
    alt = (
        f"Scatter of {len(points)} points: bytes on the wire on a logarithmic axis against top-1 accuracy. "
        + _front_words("Pareto front", front(_counted(group)))
        + _front_words("Best of the codecs", front(group.of(*CODECS)))
    )
    caption = (
        "Filled: the head costs 30 % or less of the unsplit network's multiply-adds; with a ring: 10 % or less; "
        "hollow: more than 30 %, which does not count."
    )
    if front(_counted(group)):
        caption += " The full line is the Pareto front of all that counts."
    if front(group.of(*CODECS)):
        caption += " The dotted line is the best accuracy of JPEG, WebP and AVIF at or below each budget."
    if any(point.accuracy.sd is not None for point in points):
        caption += " Bars: standard deviation over seeds."
    if hidden:
        caption += f" The zoom begins at {100 * bottom:.0f} %: {hidden} points lie below it."
    return Drawing(name, png(figure), alt, caption)


def multiply_adds(group: Group, name: str) -> Drawing | None:
    """Device multiply-adds against accuracy. None: no points."""
    points = [point for point in group.points if point.arm in STYLES]
    if not points:
        return None
    figure, (axes,) = canvas(8.0, 6.6, 1)
    _scatter(axes, points, work=True)
    best = front_of_work(points)
    axes.step([100 * p.head_share for p in best], [100 * p.accuracy.mean for p in best], "-", where="post", **_FRONT)
    _unsplit_line(axes, group)
    axes.set_xscale("symlog", linthresh=1, linscale=0.6)
    axes.set_xlim(-0.25, max(130.0, *[120 * point.head_share for point in points]))
    accuracies = [point.accuracy.mean for point in points]
    bottom = max(min(accuracies), max(accuracies) - WORK_SPAN)
    axes.set_ylim(100 * bottom - 0.8, 100 * max(accuracies) + 1.2)
    hidden = sum(value < bottom - 0.008 for value in accuracies)
    axes.set_xticks([0, 1, 3, 10, 30, 100], ["0", "1", "3", "10", "30", "100"])
    axes.minorticks_off()
    for share in (SMALL_SHARE, COUNTED_SHARE):
        axes.axvline(100 * share, color="#666666", linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
    axes.set_xlabel("multiply-adds on the device, % of the unsplit network")
    axes.set_ylabel("top-1, %")
    explain_marks(axes, points)
    legend(figure, axes)
    words = "; ".join(f"{_percent(p.head_share)} of the work: {_percent(p.accuracy.mean)}, {p.name}" for p in best[-6:])
    return Drawing(
        name,
        png(figure),
        f"Scatter of {len(points)} points: multiply-adds on the device against top-1 accuracy. Front: {words}.",
        "Image codecs cost the device no multiply-adds, the whole network in int8 costs it all of them and sends "
        "nothing. The codecs stand beside each other at 0 so that each is seen. The line is the Pareto front of all "
        "points. "
        "Vertical lines: 10 % and 30 %. Bytes are not in this figure; the next one has all three axes."
        + (f" The figure begins at {100 * bottom:.0f} %: {hidden} points lie below it." if hidden else ""),
    )


def three_axes(group: Group, name: str) -> Drawing | None:
    """Bytes, accuracy and, as colour, device multiply-adds. None: nothing is sent."""
    points = [point for point in sent(group.points) if point.arm in STYLES]
    if not points:
        return None
    colours = require("matplotlib.colors", why=WHY)
    colormaps = require("matplotlib", why=WHY).colormaps
    figure, (axes,) = canvas(8.0, 7.0, 1)
    shades = colours.ListedColormap(colormaps["viridis"].reversed()([0.0, 0.2, 0.4, 0.62, 0.82, 1.0]))
    norm = colours.BoundaryNorm(WORK_BOUNDS, len(WORK_BOUNDS) - 1)
    look: dict[str, Any] = {"cmap": shades, "norm": norm, "edgecolors": "#333333", "linewidths": 0.5, "s": 44}
    mapped = None
    for arm in _arms(points):
        mine = [point for point in points if point.arm == arm]
        mapped = axes.scatter(
            [p.wire_bytes for p in mine],
            [100 * p.accuracy.mean for p in mine],
            c=[p.head_share for p in mine],
            marker=STYLES[arm][1],
            zorder=3,
            **look,
        )
        axes.plot([], [], marker=STYLES[arm][1], color="#777777", linestyle="", label=NAMES[arm])
    _unsplit_line(axes, group)
    axes.set_xscale("log")
    plain_ticks(axes)
    for point in group.of("local-int8"):
        axes.scatter(
            [0.012], [100 * point.accuracy.mean], c=[point.head_share], marker=STYLES["local-int8"][1],
            transform=axes.get_yaxis_transform(), zorder=4, **(look | {"s": 90}),
        )  # fmt: skip
        _say_local(axes, point)
    axes.set_xlabel("bytes on the wire an image, framing included")
    axes.set_ylabel("top-1, %")
    bar = figure.colorbar(mapped, ax=axes, spacing="uniform", pad=0.02)
    bar.set_ticks(list(WORK_BOUNDS), labels=["0", "0.1", "5", "10", "30", "60", "100"])
    bar.set_label("multiply-adds on the device, % of the unsplit network")
    legend(figure, axes)
    cheap = [p for p in points if p.head_share <= SMALL_SHARE]
    return Drawing(
        name,
        png(figure),
        f"Scatter of {len(points)} points: bytes against top-1 accuracy, coloured by the device's multiply-adds. "
        + _front_words("Front of what costs the device 10 % or less", front(cheap)),
        "Up and to the left is better, and lighter is cheaper for the device.",
    )


def importance(rankings: Sequence[Ranking], rows: Sequence[Stability], name: str) -> Drawing | None:
    """Importance of the channels from random batches, one panel a split point (its lowest seed). None: no batches."""
    stable = {row.task: row for row in rows}
    chosen: dict[int, Ranking] = {}
    for ranking in sorted(rankings, key=lambda item: (item.split, item.seed)):
        if ranking.method == "ca" and ranking.task in stable:
            chosen.setdefault(ranking.split, ranking)
    if not chosen:
        return None
    figure, panels = canvas(8.0, 3.3 * len(chosen) + 0.4, len(chosen))
    figure.align_ylabels(panels)
    words = []
    for axes, (split, ranking) in zip(panels, chosen.items(), strict=True):
        channels = range(len(ranking.importance))
        axes.bar(channels, ranking.importance, width=1.0, color="#DDDDDD", label="all training images", zorder=1)
        looks = (("#0072B2", "o", "-"), ("#D55E00", "^", "--"), ("#009E73", "s", ":"), ("#CC79A7", "v", "-."))
        for number, batch in enumerate(ranking.batches):
            colour, marker, line = looks[number % len(looks)]
            axes.plot(
                channels, batch, color=colour, marker=marker, linestyle=line, linewidth=0.9,
                markersize=3 if len(batch) <= 100 else 1.8,
                label=f"batch {number + 1}", zorder=2 + number,
            )  # fmt: skip
        found = stable[ranking.task].correlations
        said = f"Spearman's ρ {_range(found)}" if found else "Spearman's ρ is not defined"
        images = f", {ranking.batch_images} images a batch" if ranking.batch_images else ""
        axes.set_title(f"l = {split}: {said}{images}", fontsize=10)
        axes.set_xlabel("channel")
        axes.set_ylabel("importance (eq. 8)")
        axes.margins(x=0.01)
        axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
        words.append(f"split point {split}, {len(ranking.importance)} channels: {said}")
    return Drawing(
        name,
        png(figure),
        f"Importance of every channel from random batches. {'; '.join(words)}.",
        "The paper's Fig. 4. Lines: the importance of each channel, computed from one random batch; grey bars: from "
        "the whole training split, which is what the pruning uses.",
    )


def speed(rows: Sequence[SpeedRow], name: str) -> Drawing | None:
    """Seconds of training against accuracy, pairs joined. None: no pair has times."""
    timed = [row for row in rows if row.plain.train_s > 0 and row.fast.train_s > 0]
    if not timed:
        return None
    figure, (axes,) = canvas(8.0, 5.6, 1)
    for row in timed:
        ends = (row.plain, row.fast)
        axes.plot(
            [p.train_s for p in ends], [100 * p.accuracy.mean for p in ends], color="#BBBBBB", linewidth=0.8, zorder=1
        )
        axes.annotate(
            row.plain.name.removeprefix(f"{NAMES['aecnn']}, "),
            (row.plain.train_s, 100 * row.plain.accuracy.mean),
            xytext=(7, -3),
            textcoords="offset points",
            fontsize=7.5,
            color="#444444",
        )
    for arm, points in (("aecnn", [r.plain for r in timed]), ("aecnn-fast", [r.fast for r in timed])):
        colour, marker = STYLES[arm]
        axes.plot(
            [p.train_s for p in points], [100 * p.accuracy.mean for p in points], marker, color=colour, markersize=7,
            label=NAMES[arm], zorder=2,
        )  # fmt: skip
    axes.set_xscale("log")
    plain_ticks(axes)
    axes.margins(x=0.16)
    axes.set_xlabel("training, seconds of wall-clock (mean over seeds)")
    axes.set_ylabel("top-1, %")
    legend(figure, axes)
    return Drawing(
        name,
        png(figure),
        "; ".join(
            f"{r.plain.name}: {r.plain.train_s:.0f} s, {_percent(r.plain.accuracy.mean)}; faster path "
            f"{r.fast.train_s:.0f} s, {_percent(r.fast.accuracy.mean)}"
            for r in timed
        ),
        "Each grey line joins the same split point, ratio and bits, trained both ways. Up and to the left is better.",
    )


_FRONT: dict[str, Any] = {"color": "#333333", "linewidth": 1.3, "label": "Pareto front", "zorder": 2}


def _scatter(axes: Any, points: Sequence[Point], *, work: bool = False) -> None:
    for arm in _arms(points):
        colour, marker = STYLES[arm]
        baseline = colour == STYLES["random"][0]
        mine = [point for point in points if point.arm == arm]
        for filled in (True, False):
            some = [p for p in mine if (p.counts or arm == "local-int8") == filled]
            x = [_work_place(p) if work else p.wire_bytes for p in some]
            y = [100 * p.accuracy.mean for p in some]
            look = {"facecolors": colour if filled else "white", "edgecolors": colour, "linewidths": 1.0}
            axes.scatter(
                x, y, marker=marker, s=40 if arm in OURS else 28, alpha=0.65 if baseline else 0.95, zorder=4, **look
            )
        ringed = [p for p in mine if p.split is not None and p.head_share <= SMALL_SHARE]
        axes.scatter(
            [_work_place(p) if work else p.wire_bytes for p in ringed],
            [100 * p.accuracy.mean for p in ringed],
            marker="o", s=92, facecolors="none", edgecolors=colour, linewidths=0.6, zorder=3,
        )  # fmt: skip
        spread = [p for p in mine if p.accuracy.sd is not None]
        axes.errorbar(
            [_work_place(p) if work else p.wire_bytes for p in spread],
            [100 * p.accuracy.mean for p in spread],
            yerr=[100 * (p.accuracy.sd or 0.0) for p in spread],
            fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.5, zorder=2,
        )  # fmt: skip
        axes.plot([], [], marker=marker, color=colour, linestyle="", label=NAMES[arm])


def _work_place(point: Point) -> float:
    """Percent of the multiply-adds; the codecs, all at 0, beside each other so that each can be seen."""
    beside = {"jpeg": -0.09, "avif": 0.09}
    return 100 * point.head_share or beside.get(point.arm, 0.0)


def _lines(axes: Any, group: Group, points: Sequence[Point]) -> None:
    right = max(p.wire_bytes or 0.0 for p in points)
    for best, look in (
        (front(_counted(group)), _FRONT | {"linestyle": "-"}),
        (front(group.of(*CODECS)), _FRONT | {"linestyle": ":", "linewidth": 1.6, "label": "best of the codecs"}),
    ):
        if best:
            x = [p.wire_bytes for p in best] + [right]
            y = [100 * p.accuracy.mean for p in best] + [100 * best[-1].accuracy.mean]
            axes.step(x, y, where="post", **look)
    _unsplit_line(axes, group)


def _unsplit_line(axes: Any, group: Group) -> None:
    if group.unsplit:
        level = 100 * group.unsplit.accuracy.mean
        axes.axhline(level, color="#0072B2", linewidth=1.0, linestyle="--", zorder=1, label=f"unsplit, {level:.2f} %")


def _left_edge(axes: Any, group: Group) -> None:
    for point in group.of("local-int8"):
        colour, marker = STYLES["local-int8"]
        axes.plot(
            [0.012], [100 * point.accuracy.mean], marker, color=colour, markersize=9, zorder=5,
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
        _say_local(axes, point)


def _say_local(axes: Any, point: Point) -> None:
    axes.annotate(
        "local int8:\nsends 0 bytes",
        (0.012, 100 * point.accuracy.mean),
        xycoords=axes.get_yaxis_transform(),
        xytext=(9, -4),
        textcoords="offset points",
        fontsize=8,
        va="top",
    )


def _arms(points: Iterable[Point]) -> list[str]:
    """The arms that are there, baselines first so that what matters is drawn on top of them."""
    there = {point.arm for point in points}
    return [arm for arm in reversed(STYLES) if arm in there]


def _counted(group: Group) -> list[Point]:
    return [point for point in group.points if point.counts and point.arm in STYLES]


def _front_words(what: str, points: Sequence[Point]) -> str:
    if not points:
        return ""
    budgets = (500, 1000, 2000, 4000)
    found = [(budget, best_point(points, budget)) for budget in budgets]
    words = ", ".join(f"{_percent(p.accuracy.mean)} at {budget:,} bytes" for budget, p in found if p)
    return f"{what}: {words or 'nothing below 4,000 bytes'}. "


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
