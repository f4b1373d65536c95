"""``aecnn-deploy install-unit``: a device or an edge as a systemd service."""

from pathlib import Path
from typing import Annotated

import typer

from aecnn_deploy.cli.console import say


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("install-unit", epilog="Example: aecnn-deploy install-unit device --print")(install_unit)


def install_unit(
    kind: Annotated[str, typer.Argument(help="device (run-device) or edge (serve-edge).")],
    only_print: Annotated[bool, typer.Option("--print", help="Print the unit, and write nothing.")] = False,
    root: Annotated[
        Path, typer.Option(help="Write below this folder instead of /, e.g. for an image of an SD card.")
    ] = Path("/"),
) -> None:
    """Write the systemd unit of this installation, and its settings file where there is none.

    Needs sudo. The unit runs this very program, as the user aecnn. It is not started: what to do next is printed.
    """
    from aecnn_deploy.systemd.unit import plan_service, write_service

    plan = plan_service(kind, root)
    if only_print:
        typer.echo(plan.unit, nl=False)
        if plan.obstacle:
            say(f"note: {plan.obstacle}")
        return
    for path in write_service(plan):
        say(f"wrote {path}")
    say("next:")
    for command in plan.next_commands:
        typer.echo(command)
