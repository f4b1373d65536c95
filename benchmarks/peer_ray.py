"""The peer Ray Serve, alone: one replica with ``@serve.batch``, asked by HTTP. A process of ``benchmarks.peers``.

``benchmarks.peer_servers`` sets the environment that makes it fast: HAProxy in front, the replica speaks HTTP itself.
"""

import os
import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peer_model import PeerModel, PeerSettings, json_answer, settings_from

_OBJECT_STORE_BYTES = 100 << 20  # nothing of ours goes through it
_MOST_WAITING = 256  # as many as an edge lets wait for one variant


def application(peer: PeerSettings) -> Any:
    """The application that serves ``peer``."""

    @serve.deployment(num_replicas=1, max_ongoing_requests=_MOST_WAITING, ray_actor_options={"num_cpus": 1})
    class Tail:
        def __init__(self) -> None:
            self._model = PeerModel(peer)

        @serve.batch(max_batch_size=peer.max_batch, batch_wait_timeout_s=peer.batch_wait_ms / 1e3)
        async def run(self, bodies: list[bytes]) -> list[bytes]:
            return [json_answer(top) for top in self._model.run(bodies)]

        async def __call__(self, request: Request) -> Response:
            return Response(await self.run(await request.body()), media_type="application/json")

    return Tail.bind()


def main() -> None:
    peer = settings_from()
    # A cluster of its own, whatever else runs here. Its processors are those that it plans with: one replica's, and
    # room for its own actors; what it may run on is the affinity of this process.
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": peer.port})
    serve.run(application(peer), route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)  # what it leaves behind is ended by whoever started it: Ray's own shutdown takes seconds


if __name__ == "__main__":
    main()
