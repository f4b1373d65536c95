"""``aecnn-deploy report``: what training runs measured, as one page."""

from pathlib import Path
from typing import Annotated

import typer

from aecnn_deploy.cli.console import print_json
from aecnn_deploy.optional import require

EXAMPLE = "Example: aecnn-deploy report run --out report"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("report", epilog=EXAMPLE)(report)


def report(
    out: Annotated[Path, typer.Option(help="The report to write, a folder. An earlier report there is replaced.")],
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders that 'aecnn-deploy train' wrote; they are merged.", show_default=False),
    ] = None,
    offloading: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE_OR_FOLDER",
            help="What 'simulate --json' and 'policy train' wrote, with or without a RUN; may be repeated.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that holds something else; files of other names stay.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as one JSON document.")] = False,
) -> None:
    """Write one self-contained page: Table I beside the paper's numbers, baselines, rate against accuracy, costs.

    With --offloading: learning curves, policies side by side, against devices, deadlines, capacity and errors, and how
    far they are from the bound. The folder holds index.html (figures inside it, nothing to load), the figures as PNG,
    and report.json.
    """
    for module in ("matplotlib", "torch") if runs else ("matplotlib",):
        require(module, why="writing a report", extra="train" if runs else "offloading")
    from aecnn_deploy.reports.report import NUMBERS, PAGE, make_report

    document = make_report(runs or [], out, replace=force, offloading=offloading or [])
    if as_json:
        print_json(document)
        return
    for item in document["backbones"]:
        below = len(item["claim_failures"])
        typer.echo(
            f"{item['backbone']}: {len(item['points'])} points; AECNN is below a rival in {below} "
            f"comparison{'' if below == 1 else 's'}"
        )
        for line in item["verdicts"]:
            typer.echo(f"  {line}")
        unfinished = sum(not run["finished"] for run in item["runs"])
        if unfinished:
            typer.echo(
                f"  {unfinished} of {len(item['runs'])} runs have no run.json: unfinished, or kept without networks"
            )
    for line in document.get("offloading", {}).get("findings", []):
        typer.echo(line)
    pictures = sum(name.endswith(".png") for name in document["files"])
    typer.echo(f"report written to {out}: {PAGE}, {pictures} figures, {NUMBERS}")
