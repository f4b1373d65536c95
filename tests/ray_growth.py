"""What tests/test_serve_ray.py runs in a process of its own: replicas that grow in number with the load.

    python -m tests.ray_growth FOLDER

A cluster of one node of two cores, and an edge that may have one or two replicas: it begins with one, gets the other
under load, and loses no request by it. Then the edge is killed, and its application has to go by itself.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

from aecnn_deploy.bundle.reader import open_bundle
from tests.bundles import TinyVariant, make_bundle, serving
from tests.edge_client import metric
from tests.ray_drive import Device, running, until

# A batch takes some tenths of a second: six devices keep more batches waiting than one replica should have.
_SLOW = TinyVariant("slow", 4, 4, 8, tail_loops=60)


def grow(folder: Path, cluster: Cluster) -> dict[str, Any]:
    make_bundle(folder / "bundle", variants=(_SLOW,))
    bundle = open_bundle(folder / "bundle")
    seen: dict[str, Any] = {}
    options = ("--ray", cluster.address, "--ray-replicas", "1:2", "--max-batch", "1")
    with serving(bundle.path, *options) as edge:
        until(lambda: running(edge) == 1, "one replica")
        devices = [Device(edge, bundle) for _ in range(6)]
        seen["grown_s"] = until(lambda: running(edge) == 2, "the second replica")
        before = [device.answered for device in devices]
        until(
            lambda: all(device.answered > count + 3 for device, count in zip(devices, before, strict=True)), "answers"
        )
        for device in devices:
            device.end()
        assert metric(edge, "aecnn_ray_failures_total") == 0
        assert metric(edge, "aecnn_ray_retries_total") == 0
        seen["answered"] = sum(device.answered for device in devices)
        edge.process.send_signal(signal.SIGKILL)
        edge.process.wait(10)
        seen["gone_s"] = until(lambda: not _ours(), "the application of an edge that was killed is gone")
    return seen


def _ours() -> list[str]:
    return [name for name in serve.status().applications if name.startswith("aecnn-edge-")]


def main() -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False},
    )
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        serve.start(proxy_location="Disabled")
        print(json.dumps(grow(Path(sys.argv[1]), cluster)), flush=True)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # the cluster's processes are ended by who started this one: their own way takes seconds


if __name__ == "__main__":
    main()
