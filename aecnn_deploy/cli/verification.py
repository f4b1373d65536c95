"""The table of verified files, for ``export`` and ``bundle verify --deep``; it fits 80 columns."""

from typing import Any

import typer

HEADER = "  reference  samples  largest     mean    cosine  top-1 tolerance      s"


def echo_row(file: str, verdict: str, verified: "dict[str, Any] | None", reason: str | None = None) -> None:
    """One file: its name and verdict, and below them what was measured, or why nothing was."""
    typer.echo(f"{verdict}: {file}")
    if verified is None:
        typer.echo(f"  {reason}")
        return
    top1 = "-" if verified["top1_agreement"] is None else f"{verified['top1_agreement']:.0%}"
    typer.echo(
        f"  {verified['reference']:<10} {verified['frames']:>7} {verified['largest_difference']:>8.1e} "
        f"{verified['mean_difference']:>8.1e} {verified['cosine']:>9.6f} {top1:>6} {verified['tolerance']:>9.0e} "
        f"{verified['seconds']:>6.2f}"
    )


def echo_legend() -> None:
    """What the numbers are."""
    typer.echo(HEADER)
    typer.echo("  differences: planes in quantisation steps, logits as shares of the largest;")
    typer.echo("  the tolerance is of the largest, of int8 heads against fp32 of the mean")
