"""A controller as a process of its own, for the devices of several edges."""

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import FrameType
from typing import Any

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.offloading.live.advising import Adviser, ControllerSettings
from aecnn_deploy.offloading.live.app import build_controller_app
from aecnn_deploy.offloading.live.edge_pages import EdgePages
from aecnn_deploy.offloading.live.generations import Advisers
from aecnn_deploy.offloading.live.metrics import metrics_route
from aecnn_deploy.offloading.policy import Policy
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.controller_messages import MAX_STATE_BYTES
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.edge_gate import Gate, GuardSettings
from aecnn_deploy.runtimes.edge_names import NamedEdge
from aecnn_deploy.runtimes.edge_server import listening_socket, uvicorn_config

_CLOSE_S = 1


@dataclass(frozen=True, slots=True)
class ReadyController:
    """What a controller says once it serves."""

    bundle_id: str
    url: str
    port: int
    policy: str
    edges: list[str]
    slot_ms: float


def serve_controller(
    open_policy: Callable[[], Policy],
    open_bundle: Callable[[], Bundle],
    edges: Sequence[NamedEdge],
    settings: ControllerSettings,
    guard: GuardSettings,
    credentials: Credentials,
    *,
    host: str,
    port: int,
    on_ready: Callable[[ReadyController], None],
) -> None:
    """Advise until SIGINT or SIGTERM; at SIGHUP both are opened again. ``credentials``: for the status of the edges.

    Raises what they raise; SettingsError: the bundle states no accuracy, or an address is none; CredentialsError;
    ServeError: the address cannot be taken; MissingExtraError: the edge's extra is not installed.
    """
    for module in ("uvicorn", "starlette", "websockets", "prometheus_client"):
        require(module, why="a controller", extra="edge")
    names = tuple(edge.name for edge in edges)
    advisers = Advisers(lambda bundle: Adviser(open_policy(), bundle, names, settings), open_bundle())
    pages, gate = EdgePages(edges, credentials), Gate(guard)
    with closing(listening_socket(host, port)) as listener:
        gate.warn_of_open_tokens(host)
        name, bound = listener.getsockname()[:2]
        scheme = "https" if guard.tls_cert else "http"
        place = f"[{name}]" if ":" in name else name
        ready = ReadyController(
            bundle_id=advisers.present.bundle_id,
            url=f"{scheme}://{place}:{bound}",
            port=bound,
            policy=advisers.present.policy.name,
            edges=[edge.name for edge in edges],
            slot_ms=settings.slot_ms,
        )
        _make_server(advisers, open_bundle, pages, gate, lambda: on_ready(ready)).run(sockets=[listener])


def _make_server(
    advisers: Advisers,
    open_bundle: Callable[[], Bundle],
    pages: EdgePages,
    gate: Gate,
    on_ready: Callable[[], None],
) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        """As an edge's: a signal is a request to end, and the exit status says how it went."""

        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            self.chores: tuple[asyncio.Task[None], ...] = ()
            self.renewals: set[asyncio.Task[bool]] = set()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.force_exit = self.should_exit
            self.should_exit = True

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.renew)
            self.chores = (asyncio.create_task(advisers.run()), asyncio.create_task(pages.watch(advisers)))
            for chore in self.chores:
                chore.add_done_callback(self._ended)
            on_ready()

        def renew(self) -> None:
            renewal = asyncio.create_task(advisers.renew(open_bundle))
            self.renewals.add(renewal)  # kept, or it might be collected before it ends
            renewal.add_done_callback(self.renewals.discard)

        def _ended(self, chore: "asyncio.Task[None]") -> None:
            self.should_exit = True  # a defect of ours: better no controller than one that never advises

        async def shutdown(self, sockets: Any = None) -> None:
            for chore in self.chores:
                chore.cancel()
            ends = await asyncio.gather(*self.chores, return_exceptions=True)
            await super().shutdown(sockets=sockets)
            for end in ends:
                if isinstance(end, Exception):
                    raise end

    app = build_controller_app(advisers, [metrics_route(advisers)])
    return Server(uvicorn_config(app, gate, ws_max_size=MAX_STATE_BYTES, close_s=_CLOSE_S))
