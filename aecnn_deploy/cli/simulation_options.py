"""Options of what plays scenarios: ``simulate`` and ``policy train|evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

ScenarioArgument = Annotated[str, typer.Argument(help="A scenario by name, e.g. paper-2x14, or a .toml file.")]
SeedsOption = Annotated[int, typer.Option(min=1, max=10_000, help="How many seeds, one episode each.")]
BatchOption = Annotated[int, typer.Option(min=1, max=10_000, help="Worlds of each episode.")]
SlotsOption = Annotated[int | None, typer.Option(min=1, help="Slots of an episode; the scenario's if not given.")]
VaryOption = Annotated[
    str | None, typer.Option(metavar="KEY=A,B,...", help="Run once for each value: devices.count=7,14,20.")
]
ChangesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the scenario; may be repeated."),
]
BoundOption = Annotated[str | None, typer.Option(help="A bound beside the policies: docs/bounds.md.", metavar="KIND")]
OutOption = Annotated[Path | None, typer.Option(help="Write the JSON document to this file, too.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
