"""The command line: parse, call one function, print. Only here do errors become exit statuses."""

import sys
from typing import Annotated

import typer

from aecnn_deploy import __version__
from aecnn_deploy.cli import (
    bench,
    bundle,
    calibrate,
    demo,
    doctor,
    export,
    install_unit,
    plan,
    policy,
    report,
    run_device,
    serve_controller,
    serve_edge,
    simulate,
    train,
)
from aecnn_deploy.cli.console import say
from aecnn_deploy.errors import AecnnError, SettingsError

app = typer.Typer(
    name="aecnn-deploy",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = (
    train,
    report,
    export,
    calibrate,
    bundle,
    plan,
    serve_edge,
    serve_controller,
    run_device,
    simulate,
    policy,
    bench,
    demo,
    doctor,
    install_unit,
)
for command in COMMANDS:
    command.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aecnn-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Split a trained CNN between a device and an edge: train, report, export, serve, run."""


def main() -> None:
    """Run the command line. Exit status 0: done, 1: it failed, 2: wrong use, 130: interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit status of one command line."""
    try:
        # Standalone, so that wrong use is Typer's to print: newer ones carry a click of their own, and what they raise
        # is not the installed click's.
        app(args=arguments, prog_name="aecnn-deploy")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 0
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except BrokenPipeError:
        return 1
    except SettingsError as exc:
        say(f"error: {exc}")
        return 2
    except AecnnError as exc:
        say(f"error: {exc}")
        return 1
    return 0
