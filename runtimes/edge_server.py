"""The edge's life: take the port, load the models, serve, reload, drain, end. uvicorn does the networking."""

import asyncio
import errno
import gc
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import AecnnError, ServeError
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.edge_app import build_app
from aecnn_deploy.runtimes.edge_gate import Gate
from aecnn_deploy.runtimes.edge_guard import Guard
from aecnn_deploy.runtimes.edge_service import EdgeService
from aecnn_deploy.runtimes.edge_settings import EdgeSettings
from aecnn_deploy.runtimes.edge_view import EdgeState
from aecnn_deploy.wire import HEADER_BYTES

if TYPE_CHECKING:
    from uvicorn import Config

_CLOSE_S = 2  # for connections and threads once the drain is over
_HOUSEKEEPING_S = 1.0
_SWITCH_INTERVAL_S = 0.0005  # Python's own 5 ms would be the longest part of a quick answer


@dataclass(frozen=True, slots=True)
class ReadyEdge:
    """What an edge says once it serves."""

    bundle_id: str
    url: str
    port: int
    runner: str
    variants: list[str]
    targets: dict[str, str]  # variant that is loaded -> the manifest's target that runs it


@dataclass(frozen=True, slots=True)
class ServingEnd:
    """How serving ended."""

    forced: bool  # by a second signal, before the drain was done
    models_idle: bool  # false: a model still runs on its thread, which only the end of the process can stop


class Annex(Protocol):
    """What an edge serves beside its own: an offloading controller."""

    def routes(self) -> list[Any]: ...

    def collector(self) -> Any:
        """Of metrics, in Prometheus' form."""

    async def run(self, look: Callable[[], EdgeState]) -> None:
        """While the edge is ready; ``look`` says how it is."""

    async def renew(self, bundle: Bundle) -> None:
        """After a reload: the edge serves ``bundle`` now, which may be the one that it served before."""


def serve(
    bundle: Bundle,
    settings: EdgeSettings,
    on_ready: Callable[[ReadyEdge], None],
    reopen: Callable[[], Bundle] | None = None,
    annex: Annex | None = None,
) -> ServingEnd:
    """Serve ``bundle`` until SIGINT or SIGTERM; at SIGHUP, serve what ``reopen`` gives, which may raise BundleError.

    ``annex``: what else is served on the same port.

    Raises, before a model is loaded: CredentialsError: a certificate, a key or the token file cannot be used;
    ServeError: the address cannot be taken; SettingsError: the settings name no variant of the bundle;
    MissingExtraError: the edge's extra is not installed. Then RunnerError: a tail cannot be loaded; ServeError: one
    does not fit the manifest.
    """
    for module in ("uvicorn", "starlette", "websockets", "prometheus_client", "onnxruntime"):
        require(module, why="serving an edge", extra="edge")
    gate = Gate(settings.guard)
    with closing(listening_socket(settings.host, settings.port)) as listener:
        service = EdgeService(bundle, settings)
        service.current.preloaded()  # raises SettingsError before anything is loaded
        gate.on_refused = service.observer.connection_refused
        gate.warn_of_open_tokens(settings.host)
        if annex is not None:
            service.observer.metrics.add(annex.collector())
        server = _make_server(service, gate, listener, on_ready, reopen, annex)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        server.run(sockets=[listener])
    models_idle = service.close(0.0 if server.force_exit else _CLOSE_S)
    if server.load_error is not None:
        raise server.load_error
    return ServingEnd(server.force_exit, models_idle)


def listening_socket(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ServeError: the address cannot be taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise ServeError(f"cannot serve on host {host!r}: {exc.strerror}; choose another --host") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Sockets bound with SO_REUSEADDR share a port until one of them listens: so listen now, before loading.
        listener.listen(1024)
    except OSError as exc:
        listener.close()
        remedy = "stop that process, or choose another --port" if exc.errno == errno.EADDRINUSE else "choose another"
        why = "the port is in use" if exc.errno == errno.EADDRINUSE else exc.strerror
        raise ServeError(f"cannot serve on {host}:{port}: {why}; {remedy}") from None
    return listener


def uvicorn_config(app: Any, gate: Gate, *, ws_max_size: int, close_s: int) -> "Config":
    """What serves the ASGI application ``app`` behind ``gate``, an edge's or a controller's.

    ``ws_max_size``: bytes of a WebSocket message. ``close_s``: seconds for connections once the server shuts down.
    """
    import uvicorn

    from aecnn_deploy.runtimes.edge_protocol import EdgeWebSocket, http_protocol

    return uvicorn.Config(
        Guard(app, gate),
        http=http_protocol(gate),  # TLS is its part, too: uvicorn's own has no time limit of ours
        ws=EdgeWebSocket,
        ws_max_size=ws_max_size,
        ws_per_message_deflate=False,  # planes are coded already
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=close_s,
    )


def _make_server(
    service: EdgeService,
    gate: Gate,
    listener: socket.socket,
    on_ready: Callable[[ReadyEdge], None],
    reopen: Callable[[], Bundle] | None,
    annex: Annex | None,
) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        """Loads the models once it listens, and drains before it stops listening.

        uvicorn's own way raises a captured signal again after its shutdown, which would end the process by that
        signal; here a signal is a request, and the exit status says how it went.
        """

        load_error: AecnnError | None = None

        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            self.chores: set[asyncio.Task[Any]] = set()  # kept, or they might be collected before they end

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit:
                self.force_exit = True
            self.should_exit = True

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
            loading = asyncio.ensure_future(service.load())
            while not loading.done() and not self.force_exit:
                await asyncio.wait([loading], timeout=0.05)
                if self.should_exit:
                    service.cancel_loading()
            if not loading.done():
                loading.cancel()
                return
            try:
                loading.result()
            except AecnnError as exc:
                if not self.should_exit:  # else it is what the signal ended
                    self.load_error, self.should_exit = exc, True
                return
            if not self.should_exit:
                gc.collect()
                gc.freeze()  # what was loaded stays: nothing that a collection in mid-request should look at
                self.chore(self.keep_house())
                if annex is not None:
                    self.chore(annex.run(service.look))
                on_ready(_ready(service, listener))

        def reload(self) -> None:
            if reopen is not None and service.ready:
                self.chore(self.reload_all(reopen))

        async def reload_all(self, reopen: Callable[[], Bundle]) -> None:
            if await service.reload(reopen) and annex is not None:
                await annex.renew(service.bundle)

        def chore(self, work: Coroutine[Any, Any, Any]) -> None:
            task = asyncio.create_task(work)
            self.chores.add(task)
            task.add_done_callback(self.chores.discard)

        async def keep_house(self) -> None:
            while True:
                await asyncio.sleep(_HOUSEKEEPING_S)
                await service.retire_unused()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            for task in list(self.chores):
                task.cancel()
            await service.drain(lambda: self.force_exit)
            await super().shutdown(sockets=sockets)

    limits = service.settings.limits
    config = uvicorn_config(
        build_app(service, annex.routes() if annex is not None else ()),
        gate,
        ws_max_size=HEADER_BYTES + max(limits.max_payload_bytes, limits.max_control_bytes),
        close_s=_CLOSE_S,
    )
    return Server(config)


def _ready(service: EdgeService, listener: socket.socket) -> ReadyEdge:
    host, port = listener.getsockname()[:2]
    scheme = "wss" if service.settings.guard.tls_cert else "ws"
    return ReadyEdge(
        bundle_id=service.bundle.id,
        url=f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}",
        port=port,
        runner=service.current.runner_name,
        variants=list(service.current.tails),
        targets=service.current.targets,
    )
