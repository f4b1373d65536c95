"""The peer Triton: its real server, with a Python function as the model, by nvidia-pytriton. A process of
``benchmarks.peers`` in a Python of its own (tools/triton_python.sh): nvidia-pytriton needs numpy before 2.

Two models: ``body`` takes what the other peers take, as one element of Triton's BYTES; ``planes`` takes raw planes as a
UINT8 tensor, which is Triton's own way, with more bytes and nothing to decode. HTTP is on the given port, gRPC on the
next one.
"""

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from aecnn_deploy.runtimes.base import Array
from aecnn_deploy.runtimes.edge_models import TOP_K, Top
from benchmarks.peer_model import PeerModel, settings_from


def main() -> None:
    peer = settings_from()
    model = PeerModel(peer)

    @batch
    def run_bodies(body: Array) -> dict[str, Array]:
        return _tensors(model.run([row[0] for row in body]))

    @batch
    def run_planes(planes: Array) -> dict[str, Array]:
        return _tensors(model.run_planes(planes))

    shared = ModelConfig(
        max_batch_size=peer.max_batch,
        batcher=DynamicBatcher(max_queue_delay_microseconds=round(peer.batch_wait_ms * 1e3)),
    )
    outputs = [
        Tensor(name="index", dtype=np.int32, shape=(TOP_K,)),
        Tensor(name="score", dtype=np.float32, shape=(TOP_K,)),
    ]
    body = Tensor(name="body", dtype=bytes, shape=(1,))
    planes = Tensor(name="planes", dtype=np.uint8, shape=tuple(model.planes))
    addresses = TritonConfig(
        http_address="127.0.0.1",
        http_port=peer.port,
        grpc_address="127.0.0.1",
        grpc_port=peer.port + 1,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=addresses) as triton:
        triton.bind("body", run_bodies, inputs=[body], outputs=outputs, config=shared)
        triton.bind("planes", run_planes, inputs=[planes], outputs=outputs, config=shared)
        triton.serve()


def _tensors(found: list[Top]) -> dict[str, Array]:
    return {
        "index": np.array([[index for index, _ in top] for top in found], np.int32),
        "score": np.array([[score for _, score in top] for top in found], np.float32),
    }


if __name__ == "__main__":
    main()
