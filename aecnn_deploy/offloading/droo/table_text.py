"""The table for a person: 80 columns."""

from collections.abc import Mapping
from typing import Any

_WIDTH = 31


def table_lines(document: Mapping[str, Any]) -> list[str]:
    """Lines of at most 80 characters, fewest evaluations of the critic first, best rate first among equals."""
    lines = [
        f"{document['file']}: {document['samples']} test samples of {document['devices']} devices, "
        f"{document['seeds']} seeds",
        f"{'policy':<{_WIDTH}} {'critic':>7} {'rate':>8} {'± sd':>7} {'p5':>7} {'exact':>6} {'ms':>6}",
    ]
    rows = sorted(document["rows"], key=lambda row: (row["critic_evaluations"], -row["rate_mean"]))
    for row in rows:
        spread = "" if row["rate_sd"] is None else f"{row['rate_sd']:.5f}"
        lines.append(
            f"{row['policy']:<{_WIDTH}} {row['critic_evaluations']:>7.4g} {row['rate_mean']:>8.6f} {spread:>7} "
            f"{row['rate_p5']:>7.5f} {row['exact_share']:>6.1%} {row['decision_ms_p50']:>6.2f}"
        )
    lines.append("rate: mean, over the published optimum; critic: its evaluations for a decision;")
    lines.append("exact: within 1e-6 of the optimum; ms: median of one decision on this machine")
    return lines
