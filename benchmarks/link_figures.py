"""The figures of ``benchmarks.link_fig5`` and ``benchmarks.link_drive``, drawn from their result documents' rows."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    for arm, found in by_arm.items():
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


def _save(figure: Any, out: Path) -> None:
    """Write the figure; an SVG with the same bytes for the same numbers."""
    import matplotlib

    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "aecnn-deploy"}):
        figure.savefig(out, dpi=110, metadata={"Date": None} if out.suffix == ".svg" else None)
