"""The results as a table of Markdown."""

from collections.abc import Mapping
from typing import Any

_HEAD = (
    "scenario",
    "system",
    "LoadGen says",
    "p50, ms",
    "p90, ms",
    "p99, ms",
    "images/s",
    "bytes an image",
    "CPU ms an image: device, edge",
    "accuracy",
)


def table(document: Mapping[str, Any]) -> str:
    """The rows of a results document, under a line that says what kind of run it was, over one for each INVALID."""
    rows, photographs = document["rows"], document["photographs"]
    lines = [
        f"{document['run_words']} {photographs['count']} photographs ({photographs['origin']}), "
        f"LoadGen {document['loadgen']}, {document['machine']['cores']} cores of {document['machine']['cpu']}.",
        "",
        "| " + " | ".join(_HEAD) + " |",
        "|" + "---|" * len(_HEAD),
        *("| " + " | ".join(_cells(row)) + " |" for row in rows),
    ]
    lines += [
        f"\n{row['scenario']}, {row['arm']}: INVALID: {'; '.join(row['reasons'])}."
        for row in rows
        if row["result"] != "VALID"
    ]
    return "\n".join(lines)


def line(row: Mapping[str, Any]) -> str:
    """A row as one line for a terminal."""
    cells = dict(zip(_HEAD, _cells(row), strict=True))
    percentiles = ", ".join(f"{name} {row['latency_ms'][name]:.1f}" for name in ("p50", "p90", "p99"))
    verdict = "" if row["answers"]["good"] else f"  WRONG: {row['answers']}"
    return (
        f"{row['scenario']:>12} {row['arm']:<5} {row['result']:<7} {percentiles} ms, "
        f"{row['images_per_s']:.1f} images/s, {cells['bytes an image']} bytes, {cells['accuracy']}{verdict}"
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    latency, cpu = row["latency_ms"], row["cpu_ms_an_image"]
    target = row["target"]
    says = row["result"]
    if row["scenario"] == "Server":
        says += f", p{target['percentile']:g} in {target['limit_ms']:g} ms at {target['offered_per_s']:.1f}/s"
    scenario = row["scenario"] + (f", {row['samples_per_query']} a query" if row["latency_of"] == "a query" else "")
    offline = row["scenario"] == "Offline"  # its latencies are the time since everything was asked at once
    return [
        scenario,
        row["arm"],
        says,
        *("–" if offline else f"{latency[name]:.1f}" for name in ("p50", "p90", "p99")),
        f"{row['images_per_s']:.1f}",
        f"{row['sent_bytes_mean']:,.0f}" if row["sent_bytes_mean"] else "–",
        f"{cpu['device']:.1f}, " + ("–" if cpu["edge"] is None else f"{cpu['edge']:.1f}"),
        _accuracy(row["accuracy"]),
    ]


def _accuracy(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    stated = "" if found["stated"] is None else f"; stated {found['stated']:.1%}"
    kind = "" if found["metric"] == "top-1" else " agreement"
    return f"{found['share']:.1%}{kind} of {found['samples']}{stated}"
