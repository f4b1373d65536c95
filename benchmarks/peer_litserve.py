"""The peer LitServe: its batching API behind its own FastAPI front. A process of ``benchmarks.peers``.

At its best: the body comes as bytes, so that FastAPI parses nothing; the answer leaves as a ready ``Response``, so
that it makes no JSON a second time; ``fast_queue`` carries answers over ZeroMQ. It has its own uvicorn, with uvloop
and httptools where they are installed.
"""

from typing import Annotated, Any

import litserve
from fastapi import Body
from starlette.responses import Response

from aecnn_deploy.runtimes.edge_models import Top
from benchmarks.peer_model import PeerModel, PeerSettings, json_answer, settings_from

PATH = "/predict"


class TailApi(litserve.LitAPI):
    """Decodes, runs and answers batches. ``setup`` is called in the worker's process, the rest after it."""

    def __init__(self, peer: PeerSettings) -> None:
        super().__init__(max_batch_size=peer.max_batch, batch_timeout=peer.batch_wait_ms / 1e3, api_path=PATH)
        self._peer = peer

    def setup(self, device: Any) -> None:
        self._model = PeerModel(self._peer)

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, x: list[bytes]) -> list[Top]:
        return self._model.run(x)

    def unbatch(self, output: list[Top]) -> list[Top]:
        return output

    def encode_response(self, output: Top) -> Response:
        return Response(json_answer(output), media_type="application/json")


def main() -> None:
    peer = settings_from()
    server = litserve.LitServer(TailApi(peer), accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=peer.port, num_api_servers=1, generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main()
