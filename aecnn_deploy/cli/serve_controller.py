"""``aecnn-deploy serve-controller``: a policy that says, slot by slot, where the devices of several edges go."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from aecnn_deploy.cli.bundle_argument import open_named
from aecnn_deploy.cli.console import say
from aecnn_deploy.cli.controller_options import SlotOption, policy_of
from aecnn_deploy.cli.guard_options import (
    CaOption,
    ClientCaOption,
    OpenStatusOption,
    TlsCertOption,
    TlsKeyOption,
    TokenFileOption,
)

EXAMPLE = (
    "Example: aecnn-deploy serve-controller grl --bundle bundle --edge ws://192.168.1.20:8765 "
    "--edge ws://192.168.1.21:8765"
)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("serve-controller", epilog=EXAMPLE)(serve_controller)


def serve_controller(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="A policy file, or grl, greedy or static.")],
    bundle: Annotated[Path, typer.Option(metavar="BUNDLE", help="The bundle that edges and devices have.")],
    edge: Annotated[list[str], typer.Option(help="An edge, as the devices name it: ws://HOST:PORT or NAME=URL.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one and says which.")] = 8770,
    slot_ms: SlotOption = 100.0,
    max_devices: Annotated[int, typer.Option(help="Devices that may be connected.")] = 512,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    client_ca: ClientCaOption = None,
    token_file: TokenFileOption = None,
    open_status: OpenStatusOption = False,
    edge_token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The token to ask edges for their status with.")
    ] = None,
    ca: CaOption = None,
    log_format: Annotated[
        str, typer.Option(help="How the log on stderr is written: text, or json (one object a line).")
    ] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="Say that it is ready as one JSON line on stdout.")] = False,
) -> None:
    """Advise devices of several edges: each slot, a policy says where the next image of each device goes.

    Devices that hear nothing for a slot decide themselves. SIGHUP reads policy and bundle again. Ctrl-C ends it.
    """
    from aecnn_deploy.offloading.live.advising import ControllerSettings
    from aecnn_deploy.offloading.live.server import ReadyController
    from aecnn_deploy.offloading.live.server import serve_controller as serve
    from aecnn_deploy.runtimes.credentials import Credentials
    from aecnn_deploy.runtimes.edge_gate import GuardSettings
    from aecnn_deploy.runtimes.edge_names import named_edges
    from aecnn_deploy.runtimes.log_lines import LogSettings, configure_logging

    def ready(controller: ReadyController) -> None:
        if as_json:
            sys.stdout.write(msgspec.json.encode(controller).decode() + "\n")
            sys.stdout.flush()
        else:
            edges = ", ".join(controller.edges)
            say(f"advising by {controller.policy} at {controller.url}, for the edges {edges}; Ctrl-C stops")

    configure_logging(LogSettings(log_format, requests=False), sys.stderr)
    serve(
        lambda: policy_of(policy),
        lambda: open_named(bundle),
        named_edges(edge),
        ControllerSettings(slot_ms=slot_ms, max_devices=max_devices),
        GuardSettings(tls_cert, tls_key, client_ca, token_file, open_status=open_status),
        Credentials(ca=ca, token_file=edge_token_file),
        host=host,
        port=port,
        on_ready=ready,
    )
