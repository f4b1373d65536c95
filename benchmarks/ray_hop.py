"""The second half of benchmarks.ray_tails: one batch after the other to another process, by every way there is."""

import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from benchmarks.traffic import Bytes

SIZES = {1: 200, 4: 100, 16: 100}  # batch -> times each way is measured
_ALL_WAYS = 4  # images: a larger batch goes here and by socket only, often enough to find a hop in its model's time
_WARM_UP = 5
_SWITCH_INTERVAL_S = 0.0005  # as an edge has it


def hop(connection: Connection, path: Path, variant: str, planes: Bytes, divide: int) -> None:
    """A process: the same batches here and by every way to another process of this machine."""
    import ray
    from ray import serve

    from aecnn_deploy.runtimes.ray_settings import RaySettings
    from aecnn_deploy.runtimes.ray_tails import RayTails

    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    bundle = open_bundle(path)
    tail = bundle.file(bundle.variant(variant).tails["onnxruntime"])
    tails = RayTails(RaySettings("local", cpus=0.5, threads=1))
    try:
        tails.start()
        handle = serve.run(
            serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=4)(Echo).bind(tail),
            name="echo",
            route_prefix=None,
        )
        grpc = handle.options(_by_reference=False)
        actor = ray.remote(num_cpus=0)(Echo).remote(tail)
        with (
            OnnxRuntimeRunner(tail, threads=1) as local,
            tails.runner(bundle, bundle.variant(variant)) as remote,
        ):
            ways: dict[str, Callable[[Any], Any]] = {
                "local": local.infer,
                "socket": remote.infer,
                "handle": lambda batch: handle.remote(batch).result(timeout_s=30),
                "handle_grpc": lambda batch: grpc.remote(batch).result(timeout_s=30),
                "actor": lambda batch: ray.get(actor.__call__.remote(batch), timeout=30),
            }
            connection.send({size: _ways(ways, planes, size, max(5, times // divide)) for size, times in SIZES.items()})
    finally:
        tails.close()


class Echo:
    """The same runner behind Serve's handle, or as an actor."""

    def __init__(self, tail: Path) -> None:
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._runner = OnnxRuntimeRunner(tail, threads=1).activate()

    def __call__(self, batch: Any) -> Any:
        return self._runner.infer(batch)


def _ways(ways: dict[str, Callable[[Any], Any]], planes: Bytes, size: int, times: int) -> dict[str, Any]:
    if size > _ALL_WAYS:
        ways = {name: ways[name] for name in ("local", "socket")}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(times + _WARM_UP):
        batch = planes[[(number * size + each) % len(planes) for each in range(size)]]
        expected = None
        for name, way in ways.items():
            began_s = time.perf_counter()
            logits = way(batch)
            took_s = time.perf_counter() - began_s
            expected = logits if expected is None else expected
            if not np.array_equal(logits, expected):
                raise SystemExit(f"{name} gives other logits than the tail here")
            if number >= _WARM_UP:
                taken[name].append(took_s * 1e3)
    local = taken.pop("local")
    found: dict[str, Any] = {"times": times, "bytes": int(size * planes[0].nbytes), "local_ms": _of(local)}
    for name, values in taken.items():  # each with the run here that stands beside it
        found[f"{name}_hop_ms"] = _of([there - here for there, here in zip(values, local, strict=True)])
    return found


def _of(values: Sequence[float]) -> dict[str, float]:
    return {"p50": round(float(np.percentile(values, 50)), 3), "p99": round(float(np.percentile(values, 99)), 3)}
