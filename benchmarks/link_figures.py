"""The figures of ``benchmarks.link_fig5`` and ``benchmarks.link_drive``, drawn from their result documents' rows."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.link_arms import short_name

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf")


def draw_fig5(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Time against rate: points are medians with a line up to the 99th percentile, lines what the planner says."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    by_arm: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["rate_bps"] is not None:
            by_arm[row["arm"]].append(row)
    colours: dict[str, str] = {}
    for panel in axes:  # what is compared with everything
        here = by_arm.get("local", [])
        rates = [row["rate_bps"] / 1e6 for row in here]
        panel.plot(rates, [row["p50_ms"] for row in here], ":s", ms=4, lw=1, color="black", label="local")
    for arm, found in by_arm.items():
        if arm == "local":
            continue
        panel = axes[0] if found[0]["variant"] else axes[1]
        colour = colours.setdefault(found[0]["variant"] or arm, _COLOURS[len(colours) % len(_COLOURS)])
        raw = found[0]["coder"] == "raw"
        rates = [row["rate_bps"] / 1e6 for row in found]
        p50 = [row["p50_ms"] for row in found]
        above = [max(0.0, row["p99_ms"] - row["p50_ms"]) for row in found]
        panel.errorbar(
            rates, p50, yerr=[[0.0] * len(above), above], fmt="x" if raw else "o", ms=5, color=colour, capsize=2,
            lw=0.8, label=arm,
        )  # fmt: skip
        lines = [row.get("predicted_ms", row["expected_ms"]) for row in found]
        panel.plot(rates, lines, "--" if raw else "-", lw=1, color=colour)
    said = "planner" if any("predicted_ms" in row for row in rows) else "alone + bytes ÷ rate"
    for panel, title in zip(axes, ("split", "full offloading and local computing"), strict=True):
        panel.set(xscale="log", yscale="log", xlabel="rate of the link, Mbit/s", title=title)
        ticks = sorted({row["rate_bps"] / 1e6 for row in rows if row["rate_bps"] is not None})
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set_yticks([10, 20, 50, 100, 200, 500, 1000], ["10", "20", "50", "100", "200", "500", "1000"])
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    axes[0].set_ylabel(f"completion time, ms\npoints: p50 to p99, lines: {said}")
    _save(figure, out)


def draw_drive(document: dict[str, Any], out: Path) -> None:
    """The trace, and for each arm a mark for every frame: by what was chosen, pale where it was not in time."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    frames: dict[str, str] = document["frames_by_arm"]
    names = {letter: name for name, letter in document["letters"].items()}
    arms = list(frames)
    figure = Figure(figsize=(11, 2.6 + 0.42 * len(arms)), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, 0.35 * len(arms)])
    edges_s, rates = [0.0], []
    for each in document["trace"]:
        edges_s.append(edges_s[-1] + each["seconds"])
        rates.append(each["rate_bps"] / 1e6)
    above.stairs(rates, edges_s, color="black", baseline=None)
    above.set(yscale="log", ylabel="Mbit/s", ylim=(min(rates) / 1.5, max(rates) * 1.5))
    above.set_yticks(sorted(set(rates)), [f"{rate:g}" for rate in sorted(set(rates))])
    above.minorticks_off()
    above.grid(alpha=0.3)
    colours: dict[str, str] = {}
    for line, arm in enumerate(arms):
        for number, letter in enumerate(frames[arm]):
            chosen, in_time = names.get(letter.lower(), "nothing"), letter.isupper()
            colour = colours.setdefault(chosen, _COLOURS[len(colours) % len(_COLOURS)])
            second, high = number / document["pace_hz"], 0.8 if in_time else 0.25
            below.vlines(second, line - high / 2, line + high / 2, color=colour, lw=1.4, alpha=1 if in_time else 0.35)
    scores = {row["arm"]: row["score"] for row in document["rows"]}
    below.set_yticks(range(len(arms)), [f"{short_name(arm)}  {scores[arm]:.3f}" for arm in arms])
    below.set(xlabel="seconds; tall: in time, low and pale: not", ylim=(len(arms) - 0.4, -0.6))
    marks = [Line2D([], [], color=colour, lw=3, label=short_name(name)) for name, colour in colours.items()]
    below.legend(handles=marks, fontsize=8, ncols=len(marks), loc="upper center", bbox_to_anchor=(0.45, -0.2))
    _save(figure, out)


def _save(figure: Any, out: Path) -> None:
    """Write the figure; an SVG with the same bytes for the same numbers."""
    import matplotlib

    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "aecnn-deploy"}):
        figure.savefig(out, dpi=110, metadata={"Date": None} if out.suffix == ".svg" else None)
