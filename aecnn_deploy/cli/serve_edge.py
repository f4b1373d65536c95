"""``aecnn-deploy serve-edge``: the tails of a bundle behind one port."""

import logging
import os
import sys
from dataclasses import replace
from typing import Annotated

import msgspec
import typer

from aecnn_deploy.cli.bundle_argument import BundleArgument, open_named
from aecnn_deploy.cli.console import say
from aecnn_deploy.cli.controller_options import ControllerOption, SlotOption, controller_annex
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
from aecnn_deploy.cli.ray_options import (
    RayCpusOption,
    RayGpusOption,
    RayOption,
    RayReplicasOption,
    RayStartOption,
    ray_tails,
)
from aecnn_deploy.cli.upstream_options import (
    UpstreamCaOption,
    UpstreamOption,
    UpstreamParallelOption,
    UpstreamPrefixOption,
    UpstreamRetryOption,
    UpstreamTimeoutOption,
    UpstreamWaitOption,
    upstream_tails,
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
    preload: Annotated[
        str, typer.Option(help="Variants to load before it is ready: first, all, none, or their names with commas.")
    ] = "first",
    memory_limit_mb: Annotated[
        float | None, typer.Option(help="Megabytes for all models; the one unused longest makes room for another.")
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Most requests that are run together.")] = 16,
    batch_wait_ms: Annotated[float, typer.Option(help="Longest wait of a request for others to run with it.")] = 0.0,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait for one variant.")] = 256,
    max_in_flight: Annotated[int, typer.Option(help="Requests of all devices that may wait for an answer.")] = 512,
    max_streams: Annotated[int, typer.Option(help="Devices that may be connected for a split stream.")] = 256,
    reference_bytes: Annotated[
        int, typer.Option(help="Bytes of a device's last planes that are kept for differences; 0: none.")
    ] = 1 << 19,
    drain_s: Annotated[float, typer.Option(help="Seconds that requests in flight get after Ctrl-C.")] = 10.0,
    previous_s: Annotated[
        float, typer.Option(help="After a reload: seconds without a device until the bundle before it is dropped.")
    ] = 600.0,
    log_format: Annotated[
        str, typer.Option(help="How the log on stderr is written: text, or json (one object a line).")
    ] = "text",
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log a line for each request.")] = False,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    client_ca: ClientCaOption = None,
    token_file: TokenFileOption = None,
    open_status: OpenStatusOption = False,
    peer_connections: PeerConnectionsOption = 64,
    peer_bytes_per_s: PeerBytesOption = 64 << 20,
    peer_burst_bytes: PeerBurstOption = 32 << 20,
    peer_in_flight: PeerInFlightOption = 256,
    idle_s: IdleOption = 300.0,
    handshake_s: HandshakeOption = 10.0,
    message_s: MessageOption = 30.0,
    unread_s: UnreadOption = 10.0,
    upstream: UpstreamOption = None,
    upstream_ca: UpstreamCaOption = None,
    upstream_prefix: UpstreamPrefixOption = None,
    upstream_parallel: UpstreamParallelOption = None,
    upstream_timeout: UpstreamTimeoutOption = None,
    upstream_retry: UpstreamRetryOption = None,
    upstream_wait: UpstreamWaitOption = None,
    ray: RayOption = None,
    ray_replicas: RayReplicasOption = "1",
    ray_cpus: RayCpusOption = 1.0,
    ray_gpus: RayGpusOption = 0.0,
    ray_start_s: RayStartOption = 60.0,
    controller: ControllerOption = None,
    slot_ms: SlotOption = 100.0,
    as_json: Annotated[bool, typer.Option("--json", help="Say that it is ready as one JSON line on stdout.")] = False,
) -> None:
    """Serve a bundle's tails to devices, and its unsplit model to anyone who posts an image.

    With TensorRT and a GPU, an engine that the bundle lacks is built at the first start, which may take minutes, and
    kept in ~/.cache/aecnn-deploy/engines. SIGHUP reads the bundle again and serves it without a break. Ctrl-C finishes
    what is in flight and exits 0; a second Ctrl-C stops at once.
    """
    from aecnn_deploy.exporters.edge_engines import EdgeEngines
    from aecnn_deploy.runtimes.edge_runners import RunnerOptions
    from aecnn_deploy.runtimes.edge_server import ReadyEdge, serve
    from aecnn_deploy.runtimes.edge_settings import EdgeSettings
    from aecnn_deploy.runtimes.log_lines import JSON, LogSettings, configure_logging
    from aecnn_deploy.systemd.notify import READY, notify

    def ready(edge: ReadyEdge) -> None:
        notify(READY, f"STATUS=serving {len(edge.variants)} variants of bundle {edge.bundle_id[:12]}")
        if as_json:
            sys.stdout.write(msgspec.json.encode(edge).decode() + "\n")
            sys.stdout.flush()
        else:
            loaded = ", ".join(f"{name} ({target})" for name, target in edge.targets.items()) or "nothing loaded"
            others = len(edge.variants) - len(edge.targets)
            rest = f"; {others} more at their first use" if others else ""
            text = f"serving bundle {edge.bundle_id[:12]} at {edge.url}: {loaded}{rest}; Ctrl-C stops"
            if log_format == JSON:
                logging.getLogger("aecnn_deploy.edge").info(text)
            else:
                say(text)

    upstream_seconds = (upstream_timeout, upstream_retry, upstream_wait)
    remote = upstream_tails(upstream, upstream_ca, upstream_prefix, upstream_parallel, upstream_seconds, ray=ray)
    engines = EdgeEngines() if build and remote is None else None
    settings = EdgeSettings(
        host=host,
        port=port,
        runner=RunnerOptions(runner, threads, spinning, precision, engines, remote),
        preload=preload,
        memory_limit_bytes=None if memory_limit_mb is None else max(0, int(memory_limit_mb * 1e6)),
        max_batch=max_batch,
        batch_wait_ms=batch_wait_ms,
        max_queue=max_queue,
        max_in_flight=max_in_flight,
        max_streams=max_streams,
        previous_s=previous_s,
        max_reference_bytes=reference_bytes,
        drain_s=drain_s,
        guard=guard_settings(
            (tls_cert, tls_key, client_ca, token_file),
            (peer_connections, peer_bytes_per_s, peer_burst_bytes, peer_in_flight),
            (idle_s, handshake_s, message_s, unread_s),
            open_status=open_status,
        ),
    )
    configure_logging(LogSettings(log_format, log_requests), sys.stderr)
    served = open_named(bundle)
    with ray_tails(
        ray,
        ray_replicas,
        (ray_cpus, ray_gpus),
        ray_start_s,
        runner=runner,
        precision=precision,
        threads=threads,
        spinning=spinning,
        build=build,
    ) as tails:
        if tails is not None:
            settings = replace(settings, runner=replace(settings.runner, remote=tails))
        annex = controller_annex(controller, served, slot_ms)
        end = serve(served, settings, ready, reopen=lambda: open_named(bundle), annex=annex)
    status = 130 if end.forced else 0
    if not end.models_idle:
        # A model still runs on its thread. The interpreter's own way out would take ONNX Runtime away under it,
        # which ends in an abort instead of this status.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise typer.Exit(status)
