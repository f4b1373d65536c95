"""What tests/test_serve_ray.py runs in a process of its own, which it can end whatever Ray's native code does.

    python -m tests.ray_drive FOLDER

A cluster of two nodes of one core each on this machine, somebody else's application on its Serve, and an edge with two
replicas under load: one replica is killed, the bundle is replaced, a node is killed. Everything is asserted here; what
was seen is printed as one line of JSON.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import ray
from ray import serve
from ray.cluster_utils import Cluster

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.wire import ResultReceived, Welcomed
from tests.bundles import Edge, command, make_bundle, one_line, serving
from tests.edge_client import Client, get, metric, planes_of

_WAIT_S = 60.0
_PLANES = 6


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Theirs:
    """An application of somebody else, which must outlive the edge."""

    def __call__(self) -> str:
        return "theirs"


class Log:
    """An edge's stderr as it comes."""

    def __init__(self, edge: Edge) -> None:
        self.lines: list[str] = []
        self._edge = edge
        threading.Thread(target=self._read, daemon=True).start()

    def processes(self) -> list[int]:
        """Process ids of the replicas that have connected so far, the latest last."""
        return [int(found[1]) for line in self.lines if (found := re.search(r"is connected, process (\d+)", line))]

    def _read(self) -> None:
        assert self._edge.process.stderr is not None
        for line in self._edge.process.stderr:
            self.lines.append(line.rstrip())


class Device(threading.Thread):
    """A stream that asks one thing after the other and checks each answer against the bare tail."""

    def __init__(self, edge: Edge, bundle: Bundle) -> None:
        super().__init__(daemon=True)
        self.answered, self.longest_s, self.wrong = 0, 0.0, ""
        self._edge, self._bundle = edge, bundle
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        spec = self._bundle.manifest.variants[0]
        tail = onnxruntime.InferenceSession(
            str(self._bundle.file(spec.tails["onnxruntime"])), providers=["CPUExecutionProvider"]
        )
        inputs = [planes_of(spec, seed) for seed in range(_PLANES)]
        expected = [int(np.argmax(tail.run(None, {"planes": each[np.newaxis]})[0][0])) for each in inputs]
        with Client(self._edge, self._bundle) as client:
            assert isinstance(client.event(), Welcomed)
            number = 0
            while not self._over.is_set() and not self.wrong:
                began_s = time.monotonic()
                client.ask(spec, 0, inputs[number % _PLANES])
                event = client.event(_WAIT_S)
                self.longest_s = max(self.longest_s, time.monotonic() - began_s)
                if not isinstance(event, ResultReceived):
                    self.wrong = f"{event}; answered before: {self.answered}"
                elif event.result.top[0][0] != expected[number % _PLANES]:
                    self.wrong = f"class {event.result.top[0][0]} instead of {expected[number % _PLANES]}"
                else:
                    self.answered += 1
                number += 1

    def end(self) -> None:
        self._over.set()
        self.join(_WAIT_S)
        assert not self.is_alive(), "a request is unanswered"
        assert not self.wrong, self.wrong


def until(condition: Callable[[], bool], what: str) -> float:
    """Wait for ``condition``; how many seconds it took."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() < began_s + _WAIT_S, f"{what}: not within {_WAIT_S:g} s"
        time.sleep(0.02)
    return round(time.monotonic() - began_s, 2)


def running(edge: Edge) -> float:
    return metric(edge, 'aecnn_ray_replicas{state="running"}')


def go_on(devices: list[Device], count: int = 30) -> None:
    """Every device gets ``count`` more answers."""
    goals = [device.answered + count for device in devices]
    until(
        lambda: all(device.answered >= goal or device.wrong for device, goal in zip(devices, goals, strict=True)),
        "answers",
    )
    assert not any(device.wrong for device in devices), [device.wrong for device in devices]


def refused(bundle: Path, address: str, *options: str) -> str:
    """The line and exit status of an edge that does not start."""
    began_s = time.monotonic()
    done = command("serve-edge", str(bundle), "--port", "0", "--ray", address, "--ray-start-s", "2", *options)
    assert time.monotonic() < began_s + 45
    assert done.returncode == 1, done
    return one_line(done.stderr)


def drive(folder: Path, cluster: Cluster, second: Any) -> dict[str, Any]:
    for seed in range(2):
        make_bundle(folder / f"bundle{seed}", seed=seed)
    old, new = (open_bundle(folder / f"bundle{seed}") for seed in range(2))
    link = folder / "current"
    link.symlink_to(old.path)
    seen: dict[str, Any] = {}
    with serving(link, "--ray", cluster.address, "--ray-replicas", "2", "--previous-s", "600") as edge:
        assert set(edge.ready["targets"].values()) == {"ray"}
        log = Log(edge)
        until(lambda: running(edge) == 2, "two replicas")
        devices = [Device(edge, old) for _ in range(3)]
        go_on(devices)

        killed = log.processes()[0]
        os.kill(killed, signal.SIGKILL)
        until(lambda: running(edge) == 1, "a replica is gone")
        go_on(devices)
        seen["replaced_s"] = until(lambda: running(edge) == 2, "another replica")
        assert killed not in log.processes()[1:]
        go_on(devices)

        fresh = folder / "fresh"
        fresh.symlink_to(new.path)
        fresh.rename(link)
        edge.process.send_signal(signal.SIGHUP)
        seen["reloaded_s"] = until(lambda: json.loads(get(edge, "/readyz")[1])["bundle_id"] == new.id, "the reload")
        devices.append(Device(edge, new))
        go_on(devices)

        cluster.remove_node(second, allow_graceful=False)
        until(lambda: running(edge) == 1, "the node's replica is gone")
        go_on(devices, 100)
        for device in devices:
            device.end()
        assert metric(edge, "aecnn_ray_failures_total") == 0
        assert metric(edge, 'aecnn_requests_total{outcome="ok",path="split"}') == sum(d.answered for d in devices)
        seen["answered"] = sum(device.answered for device in devices)
        seen["longest_s"] = round(max(device.longest_s for device in devices), 2)
        seen["retries"] = metric(edge, "aecnn_ray_retries_total")

        seen["no_room"] = refused(old.path, cluster.address)
        edge.process.send_signal(signal.SIGTERM)
        assert edge.process.wait(40) == 0, log.lines
    seen["no_gpu"] = refused(old.path, cluster.address, "--ray-gpus", "1")
    left = serve.status().applications
    assert [name for name, app in left.items() if app.status != "DELETING"] == ["theirs"], left
    assert serve.get_app_handle("theirs").remote().result(timeout_s=_WAIT_S) == "theirs"
    return seen


def main() -> None:
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        second = cluster.add_node(**node)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        serve.start(proxy_location="Disabled")
        serve.run(Theirs.bind(), name="theirs", route_prefix=None)
        print(json.dumps(drive(Path(sys.argv[1]), cluster, second)), flush=True)
    finally:
        # The cluster's processes are ended by who started this one: their own way takes seconds.
        os._exit(1 if sys.exc_info()[0] is not None and _told() else 0)


def _told() -> bool:
    sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    sys.stderr.flush()
    return True


if __name__ == "__main__":
    main()
