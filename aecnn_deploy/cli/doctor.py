"""``aecnn-deploy doctor``: what this machine can do, what is in the way, and what to do about it."""

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from aecnn_deploy.cli.console import print_json
from aecnn_deploy.cli.guard_options import CaOption, CertOption, DeviceTokenOption, KeyOption

if TYPE_CHECKING:
    from aecnn_deploy.runtimes.diagnosis.checks import Diagnosis

_COLUMNS = 80
_INDENT = " " * 26


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("doctor", epilog="Example: aecnn-deploy doctor bundle --edge ws://192.168.1.20:8765")(doctor)


def doctor(
    bundle: Annotated[
        str | None, typer.Argument(help="A bundle to check too: a folder, a .tar.zst of one, or zoo:NAME.")
    ] = None,
    edge: Annotated[
        str | None, typer.Option(help="An edge to reach: ws://HOST:PORT, wss://, http:// or https://.")
    ] = None,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    token_file: DeviceTokenOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Examine this machine, a bundle and the way to an edge; each finding comes with its remedy.

    Nothing is changed. Exit status 1: at least one problem; warnings alone are 0.
    """
    import msgspec

    from aecnn_deploy.bundle.reader import open_bundle
    from aecnn_deploy.runtimes.credentials import Credentials
    from aecnn_deploy.runtimes.diagnosis.checks import diagnose
    from aecnn_deploy.runtimes.diagnosis.finding import Level
    from aecnn_deploy.runtimes.diagnosis.subject import DiagnosisSettings
    from aecnn_deploy.zoo import PREFIX, zoo_bundle

    diagnosis = diagnose(
        DiagnosisSettings(bundle=bundle, edge=edge, credentials=Credentials(ca, cert, key, token_file)),
        lambda name: open_bundle(zoo_bundle(name) if name.startswith(PREFIX) else name),
    )
    if as_json:
        print_json(msgspec.to_builtins(diagnosis))
    else:
        _echo(diagnosis)
    raise typer.Exit(1 if diagnosis.count(Level.PROBLEM) else 0)


def _echo(diagnosis: "Diagnosis") -> None:
    from aecnn_deploy.runtimes.diagnosis.finding import Level

    typer.echo(
        f"aecnn-deploy {diagnosis.version}, Python {diagnosis.python}, {diagnosis.machine}, {diagnosis.cpus} CPUs"
    )
    for finding in diagnosis.findings:
        _echo_wrapped(f"{finding.level:<8}  {finding.check:<16}", finding.found)
        if finding.remedy:
            _echo_wrapped(f"{'':<8}  {'':>10}remedy", finding.remedy)
    typer.echo("extras")
    for name, extra in diagnosis.extras.items():
        if extra.missing:
            typer.echo(f"  --  {name:<13} {extra.purpose}")
            typer.echo(f"      {'':<13} pip install 'aecnn-deploy[{name}]'")
        else:
            typer.echo(f"  ok  {name:<13} {extra.purpose}")
    for name, reason in diagnosis.gpu_runners.items():
        typer.echo(f"  {'--' if reason else 'ok'}  {name} runner")
        if reason:
            typer.echo(textwrap.fill(reason, 78, initial_indent=" " * 6, subsequent_indent=" " * 6))
    typer.echo(", ".join(_counted(diagnosis.count(level), level) for level in (Level.PROBLEM, Level.WARNING)))


def _echo_wrapped(label: str, text: str) -> None:
    """The text beside its label, in lines of 80 columns; a long word (a path, a command) is not cut."""
    lines = textwrap.wrap(text, _COLUMNS - len(_INDENT) - 1, break_long_words=False, break_on_hyphens=False)
    for number, line in enumerate(lines or [""]):
        typer.echo(f"{_INDENT if number else f'{label:<{len(_INDENT)}}'} {line}")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count or 'no'} {what}s"
