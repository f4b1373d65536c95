"""``aecnn-deploy serve-edge``: the tails of a bundle behind one port."""

import logging
import os
import sys
from types import TracebackType
from typing import Annotated

import msgspec
import typer

from aecnn_deploy.cli.bundle_argument import BundleArgument, open_named
from aecnn_deploy.cli.console import say
from aecnn_deploy.cli.guard_options import (
    ClientCaOption,
    HandshakeOption,
    IdleOption,
    MessageOption,
    OpenStatusOption,
    PeerBurstOption,
    PeerBytesOption,
    PeerConnectionsOption,
    PeerInFlightOption,
    TlsCertOption,
    TlsKeyOption,
    TokenFileOption,
    UnreadOption,
    guard_settings,
)

EXAMPLE = "Example: aecnn-deploy serve-edge bundle --host 0.0.0.0 --port 8765"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("serve-edge", epilog=EXAMPLE)(serve_edge)


def serve_edge(
    bundle: BundleArgument,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one and says which.")] = 8765,
    runner: Annotated[
        str, typer.Option(help="What runs the tails: auto, onnxruntime, tensorrt or tensorrt-rtx.")
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(help="What engines compute in: fp16, int8 or fp32. Default: the bundle's, fp16 before int8."),
    ] = None,
    build: Annotated[
        bool,
        typer.Option("--build/--no-build", help="Build engines that the bundle lacks for this GPU, and keep them."),
    ] = True,
    threads: Annotated[int, typer.Option(help="Threads of one ONNX Runtime model; 0 takes every core.")] = 0,
    spinning: Annotated[
        bool, typer.Option("--spinning/--no-spinning", help="Let idle ONNX Runtime threads burn their core.")
    ] = False,
    max_in_flight: Annotated[int, typer.Option(help="Requests of all devices that may wait for an answer.")] = 64,
    reference_bytes: Annotated[
        int, typer.Option(help="Bytes of a device's last planes that are kept for differences; 0: none.")
    ] = 1 << 19,
    drain_s: Annotated[float, typer.Option(help="Seconds that requests in flight get after Ctrl-C.")] = 10.0,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    client_ca: ClientCaOption = None,
    token_file: TokenFileOption = None,
    open_status: OpenStatusOption = False,
    peer_connections: PeerConnectionsOption = 64,
    peer_bytes_per_s: PeerBytesOption = 64 << 20,
    peer_burst_bytes: PeerBurstOption = 32 << 20,
    peer_in_flight: PeerInFlightOption = 64,
    idle_s: IdleOption = 300.0,
    handshake_s: HandshakeOption = 10.0,
    message_s: MessageOption = 30.0,
    unread_s: UnreadOption = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Say that it is ready as one JSON line on stdout.")] = False,
) -> None:
    """Serve a bundle's tails to devices, and its unsplit model to anyone who posts an image.

    With TensorRT and a GPU, an engine that the bundle lacks is built at the first start, which may take minutes, and
    kept in ~/.cache/aecnn-deploy/engines. Ctrl-C finishes what is in flight and exits 0; a second Ctrl-C stops at once.
    """
    from aecnn_deploy.exporters.edge_engines import EdgeEngines
    from aecnn_deploy.runtimes.edge_runners import RunnerOptions
    from aecnn_deploy.runtimes.edge_server import ReadyEdge, serve
    from aecnn_deploy.runtimes.edge_service import EdgeSettings

    def ready(edge: ReadyEdge) -> None:
        if as_json:
            sys.stdout.write(msgspec.json.encode(edge).decode() + "\n")
            sys.stdout.flush()
        else:
            variants = ", ".join(f"{name} ({edge.targets[name]})" for name in edge.variants)
            say(f"serving bundle {edge.bundle_id[:12]} at {edge.url} with {edge.runner}: {variants}; Ctrl-C stops")

    settings = EdgeSettings(
        host=host,
        port=port,
        runner=RunnerOptions(runner, threads, spinning, precision, EdgeEngines() if build else None),
        max_in_flight=max_in_flight,
        max_reference_bytes=reference_bytes,
        drain_s=drain_s,
        guard=guard_settings(
            (tls_cert, tls_key, client_ca, token_file),
            (peer_connections, peer_bytes_per_s, peer_burst_bytes, peer_in_flight),
            (idle_s, handshake_s, message_s, unread_s),
            open_status=open_status,
        ),
    )
    _log_to_stderr()
    end = serve(open_named(bundle), settings, ready)
    status = 130 if end.forced else 0
    if not end.models_idle:
        # A model still runs on its thread. The interpreter's own way out would take ONNX Runtime away under it,
        # which ends in an abort instead of this status.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise typer.Exit(status)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)


class _OneLine(logging.Formatter):
    """An exception as its last line: a stranger's broken request must not fill the log."""

    def formatException(  # noqa: N802  (the name is logging's)
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        return f"{ei[0].__name__}: {ei[1]}" if ei[0] is not None else ""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(super().format(record).split())
