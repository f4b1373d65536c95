"""Tables and the figure of a plan, from its result documents: what ``docs/scaling.md`` shows is made here."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aecnn_deploy.errors import PlanError
from benchmarks.scaling_settings import Inputs

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
_ALL_ANSWERED = 0.999


def tables(inputs: Inputs, document: dict[str, Any], figure: str) -> dict[str, str]:
    """Markdown by the name of its place: inputs, check, plan, network, limits, storms, figure."""
    return {
        "inputs": inputs_table(inputs),
        "check": check_table(document["check"]) if document["check"] else "Not run.",
        "plan": plan_table(document["plan"], hop_measured=document["hop_measured"]),
        "network": network_table(document["plan"]),
        "limits": limits_table(document["plan"]["limits"]),
        "storms": storms_table(document["plan"]["storms"]),
        "figure": f"![99th percentile against boxes, and what breaks first]({figure})",
    }


def fill(path: Path, made: dict[str, str]) -> None:
    """Put each table into its place in a page, between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.

    Raises PlanError: the page has no such place.
    """
    text = path.read_text()
    for name, table in made.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise PlanError(
                f"{path} has no place for {name}; add the lines <!-- begin {name} --> and <!-- end {name} -->"
            )
        text = pattern.sub(lambda found, table=table: f"{found.group(1)}{table}\n{found.group(2)}", text)
    path.write_text(text)


def inputs_table(inputs: Inputs) -> str:
    """What was measured, and how."""
    sizes = f"{inputs.received_bytes_per_image:,.0f}, {inputs.sent_bytes_per_image:,.0f}"
    tail = "; ".join(f"{size}: {size / seconds:,.0f}" for size, seconds in inputs.batch_s)
    rows = [
        ("event loop, a message in and its answer out", _us(inputs.receive_answer_s), "half of one core's most"),
        ("the same with TLS", _us(inputs.tls_receive_answer_s), "closed loop, less the same without TLS"),
        ("other threads of the process an image", _us(inputs.beside_s), "the tail takes no time"),
        ("messages a second of one core", f"{inputs.messages_per_s_one_core:,.0f}", "closed loop, process on one core"),
        ("decoding an image", _us(inputs.decode_s), "zstd, median"),
        (f"tail, images a second by batch, {inputs.tail_cores} cores", tail, "bare runner"),
        ("a connection, CPU time", _us(inputs.connect_s), "TCP to WELCOME"),
        ("the same with TLS", _us(inputs.tls_connect_s), "P-256, TLS 1.3, nothing resumed"),
        ("TLS connections a second and core", f"{1 / inputs.tls_connect_s:,.0f}", "from the line above"),
        ("memory of a connection", _kb(inputs.memory_bytes_per_connection), "growth of the resident process"),
        ("the same with TLS", _kb(inputs.tls_memory_bytes_per_connection), "the same"),
        ("planes kept for differences, a device", _kb(inputs.kept_planes_bytes), "computed: 9 frames of one variant"),
        ("a process before its first device", f"{inputs.process_bytes / 1e6:,.0f} MB", "one tail loaded"),
        ("sockets of a connection", f"{inputs.sockets_per_connection:.2f}", "counted"),
        ("bytes of a request, an answer", sizes, "with WebSocket's headers"),
        ("start of a process, loading a tail", f"{inputs.start_s:.1f} s, {inputs.load_s:.1f} s", "wall time"),
        ("series of a process, a scrape", f"{inputs.series}, {inputs.scrape_ms:.1f} ms", "wall time"),
    ]  # fmt: skip
    return markdown(("what", "found", "how"), rows)


def check_table(found: dict[str, Any]) -> str:
    """Measured and simulated side by side."""
    rows = []
    for row in found["loads"]:
        real, ours, error = row["measured"], row["simulated"], row["error"]
        cells = [
            f"{real[name]:g} / {ours[name]:g} ({error[name]:+.0%})"
            for name in ("images_per_s", "queue_ms_p50", "queue_ms_p99", "total_ms_p50", "total_ms_p99")
        ]
        rows.append((f"{row['load']:.0%}", *cells))
    head = ("load", "images/s", "queue p50, ms", "queue p99", "edge's total p50", "edge's total p99")
    most = f"{found['saturated_images_per_s']:g} images/s in a closed loop, {found['devices']} devices"
    return f"Measured / simulated (error); 100 % is {most}.\n\n" + markdown(head, rows)


def plan_table(plan: dict[str, Any], *, hop_measured: bool) -> str:
    """The layouts. ``hop_measured``: the hop is of ``benchmarks.ray_tails``, not assumed."""
    rows = [
        (
            row["name"],
            f"{row['boxes']:,}",
            f"{row['processes']:,}",
            f"{row['devices_per_process']:g}",
            f"{row['gpus']:,}" if row["gpus"] else "–",
            f"{row['tail_cores'] or row['front_cores']:,g}",
            f"{row['memory_gb']:g}",
            f"{row['simulated']['edge_ms'].get('p50', 0):.0f}, {row['simulated']['edge_ms'].get('p99', 0):.0f}",
            f"{row['simulated']['ok']:.2%}",
        )
        for row in plan["layouts"]
    ]
    head = (
        "layout",
        "boxes",
        "processes",
        "devices each",
        "GPUs",
        "CPU cores: tails, else fronts",
        "GB",
        "edge p50, p99, ms",
        "answered",
    )
    settings = plan["settings"]
    load = f"{plan['images_per_s']:,.0f} images a second"
    what = f"{settings['devices']:,} devices at {settings['fps']:g} frames a second: {load}."
    hop = f"The hop takes {settings['hop_ms']:g} ms ({'measured with Ray' if hop_measured else 'assumed'})."
    share = f"A front takes {plan['front_us']:g} µs of a core an image, a process of two cores does at most "
    return f"{what} {share}{plan['process_images_per_s']:,.0f} images a second. {hop}\n\n" + markdown(head, rows)


def network_table(plan: dict[str, Any]) -> str:
    """Bytes on the wire."""
    found = plan["network"]
    rows = [
        ("towards the edges", f"{found['up_bytes_per_image']:,.0f}", f"{found['up_mbit_per_s']:,.0f}"),
        ("towards the devices", f"{found['down_bytes_per_image']:,.0f}", f"{found['down_mbit_per_s']:,.0f}"),
    ]
    return markdown(("all devices together", "bytes an image, all headers", "Mbit/s"), rows)


def limits_table(found: Sequence[dict[str, Any]]) -> str:
    """What breaks first."""
    rows = [
        (
            f"{row['devices']:,}" if row["devices"] is not None else "any number",
            row["resource"],
            row["scope"],
            row["then"],
            row["source"],
            row["remedy"],
        )
        for row in found
    ]
    return markdown(("devices", "resource", "of", "then", "source", "remedy"), rows)


def storms_table(found: Sequence[dict[str, Any]]) -> str:
    """What goes wrong, and how long."""
    rows = []
    for row in found:
        connected = row["connected_s"]
        limited = row["connections_waiting_at_most"]
        worst = max((second.get("p99", 0.0) for second in row["edge_ms_by_second"]), default=0.0)
        rows.append(
            (
                row["what"] + (f", {limited} waiting at most" if limited else ""),
                f"{row['devices_hit']:,}",
                f"{row['attempts']:,}",
                f"{connected['p50']:g}, {connected['p99']:g}, {connected['p100']:g}" if connected else "–",
                f"{row['frames_without_an_edge']:,}",
                f"{worst:,.0f}",
            )
        )
    head = (
        "what",
        "devices hit",
        "attempts",
        "connected again after, s: p50, p99, last",
        "frames without an edge",
        "worst second's p99, ms",
    )
    return markdown(head, rows)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(plan: dict[str, Any], out: Path) -> None:
    """99th percentile against boxes for each layout; beside it, what breaks first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    for colour, found in zip(_COLOURS, plan["sweeps"], strict=False):
        points = [point for point in found["points"] if point["edge_ms"]]
        counts, p99 = [point["count"] for point in points], [point["edge_ms"]["p99"] for point in points]
        left.plot(counts, p99, "-", lw=1.2, color=colour, label=found["name"])
        for point in points:
            whole = point["answered"] >= _ALL_ANSWERED
            left.plot(
                point["count"], point["edge_ms"]["p99"], "o", ms=5, color=colour, mfc=colour if whole else "white"
            )
    ticks = [value for value in (2, 5, 10, 20, 50, 100, 200, 500) if value <= 2 * max(left.get_xlim())]
    left.set(xscale="log", yscale="log", xlabel="boxes (fronts apart: GPUs)", ylabel="99th percentile at the edge, ms")
    left.set_xticks(ticks, [str(tick) for tick in ticks])
    left.set_yticks([10, 20, 50, 100, 200, 500, 1000], ["10", "20", "50", "100", "200", "500", "1000"])
    left.set_ylim(top=4 * left.get_ylim()[1])  # room for the legend
    left.minorticks_off()
    settings = plan["settings"]
    left.set_title(
        f"{settings['devices']:,} devices, {settings['fps']:g} frames a second; hollow: frames are lost", fontsize=10
    )
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    known = [row for row in plan["limits"] if row["devices"]]
    names = [f"{row['resource']} ({row['scope']})" for row in known]
    colours = ["#d9a441" if "assumed" in row["source"] else "#7f9fbf" for row in known]
    bars = right.barh(range(len(known)), [row["devices"] for row in known], color=colours)
    right.bar_label(bars, [f"{row['devices']:,}" for row in known], padding=3, fontsize=8)
    right.set_yticks(range(len(known)), names, fontsize=8)
    right.invert_yaxis()
    right.axvline(settings["devices"], color="#d62728", lw=1)
    counts = [settings["devices"], *(row["devices"] for row in known)]
    about = "red: the fleet, amber: assumed"
    right.set(xscale="log", xlim=(min(counts) / 3, max(counts) * 6))
    right.set_xlabel(f"devices at {settings['fps']:g} frames a second; {about}")
    right.set_title("what breaks first", fontsize=10)
    right.grid(axis="x", alpha=0.3)
    save(figure, out)


def save(figure: Any, out: Path) -> None:
    """Write a figure."""
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs"


def _kb(size_bytes: float) -> str:
    return f"{size_bytes / 1e3:,.0f} kB"
