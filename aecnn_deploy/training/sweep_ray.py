"""A sweep's tasks on a Ray cluster, whose nodes share the folder that the tasks write to."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aecnn_deploy
from aecnn_deploy.errors import TrainingError
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.ray_address import check_release, connect, node_name
from aecnn_deploy.training.sweep import Crew, Execute, attempt

GPU_SHARE = 0.25

_PROBE_S = 60.0
# A network file system shows a new file late: its clients cache what a folder holds.
_APPEARS_S = 10.0
_LOOK_AGAIN_S = 10.0


class RayCrew(Crew):
    """Every task is a Ray task of one core, and of GPU_SHARE of a GPU where the cluster has GPUs.

    Ray queues the tasks, so any number of them may be started. A connection that the caller has made with ``ray.init``
    is used and left open. Raises SettingsError: ``address`` is of no known form. TrainingError: no cluster answers, no
    node can run a task, or one of those that can does not see ``shared`` or has another release of this package.
    """

    free = 2**31

    def __init__(self, execute: Execute, address: str, shared: Path | None) -> None:
        self._ray: Any = require("ray", why="a sweep on a Ray cluster", extra="scale")
        self._tasks: dict[Any, str] = {}
        self._ours = not self._ray.is_initialized()
        if self._ours:
            connect(self._ray, address, TrainingError)
        try:
            gpus = any(node["Resources"].get("GPU", 0) >= GPU_SHARE for node in self._alive())
            self._needs = {"CPU": 1.0, "GPU": GPU_SHARE} if gpus else {"CPU": 1.0}
            options = {"num_cpus": 1, "num_gpus": GPU_SHARE if gpus else 0, "max_retries": 0}
            self._attempt = self._ray.remote(**options)(attempt)
            # Ray's own pickle takes the functions of a script too.
            self._payload = self._ray.put(self._ray.cloudpickle.dumps(execute))
            nodes = self._able()
            if shared is not None:
                check_shared(self._ray, nodes, shared.absolute())
        except BaseException:
            self.close()
            raise

    def _alive(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _able(self) -> list[dict[str, Any]]:
        """The nodes that can run a task. Raises TrainingError: none."""
        nodes = self._alive()
        able = [node for node in nodes if all(node["Resources"].get(key, 0) >= n for key, n in self._needs.items())]
        if not able:
            needs = " and ".join(f"{count:g} {key}" for key, count in self._needs.items())
            raise TrainingError(
                f"none of the {len(nodes)} nodes of the Ray cluster can run a task, which needs {needs}; "
                "add a node with: ray start --address HOST:PORT"
            )
        return able

    def start(self, task_id: str) -> None:
        self._tasks[self._attempt.remote(self._payload, task_id)] = task_id

    def wait(self) -> list[tuple[str, str | None]]:
        while True:
            ended, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=_LOOK_AGAIN_S)
            if ended:
                return [(self._tasks.pop(ref), self._error(ref)) for ref in ended]
            self._able()  # without any node left, Ray would wait for one for ever

    def _error(self, ref: Any) -> str | None:
        try:
            error = self._ray.get(ref)
        except self._ray.exceptions.RayError as exc:
            return f"on the Ray cluster: {type(exc).__name__}: {' '.join(str(exc).split())}"
        return None if error is None else str(error)

    def close(self) -> None:
        for ref in self._tasks:
            with suppress(self._ray.exceptions.RayError):
                self._ray.cancel(ref, force=True)
        if self._ours:
            self._ray.shutdown()


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """As long as this lasts there is a connection to the cluster, also for a ``RayCrew`` of the same address.

    Before anything of an old run goes. ``None``: there is nothing to connect to. Raises as ``RayCrew``.
    """
    if address is None:
        yield
        return
    ray: Any = require("ray", why="a sweep on a Ray cluster", extra="scale")
    ours = not ray.is_initialized()
    if ours:
        connect(ray, address, TrainingError)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def check_shared(ray: Any, nodes: list[dict[str, Any]], shared: Path) -> None:
    """Whether all nodes see in ``shared`` what is written here, and the other way round.

    Raises TrainingError, naming the node: it does not, it cannot run a task or it has another release of this package.
    """
    marker = shared / f".shared-{uuid.uuid4().hex}"
    try:
        _write_token(marker, marker)
    except OSError as exc:
        raise TrainingError(
            f"cannot write to {shared}: {exc.strerror}; give a folder that is there and writable"
        ) from exc
    try:
        pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        probes = [
            ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=pinned(node["NodeID"], soft=False))(probe)
            for node in nodes
        ]
        replies = [task.remote(str(marker), node["NodeID"]) for task, node in zip(probes, nodes, strict=True)]
        for node, reply in zip(nodes, replies, strict=True):
            name = node_name(node)
            try:
                release, why = ray.get(reply, timeout=_PROBE_S)
            except ray.exceptions.RayError as exc:
                raise TrainingError(
                    f"{name} cannot run a task: {type(exc).__name__}: {' '.join(str(exc).split())}; "
                    "is aecnn-deploy installed there?"
                ) from exc
            check_release(node, release, TrainingError)
            if why is None and not _appears(marker, _answer(marker, node["NodeID"])):
                why = "what it writes does not appear here"
            if why is not None:
                raise TrainingError(
                    f"{name} does not share {shared}: {why}; "
                    "put the run on a file system that every node mounts at the same path"
                )
    finally:
        for path in (marker, *(_answer(marker, node["NodeID"]) for node in nodes)):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def probe(marker: str, node_id: str) -> tuple[str, str | None]:
    """On a node: this package's release, and why it does not share the marker's folder, or None."""
    path = Path(marker)
    if not _appears(path, path):
        return aecnn_deploy.__version__, "what is written here does not appear there"
    try:
        _write_token(path, _answer(path, node_id))
    except OSError as exc:
        return aecnn_deploy.__version__, f"it cannot write there: {exc.strerror}"
    return aecnn_deploy.__version__, None


def _answer(marker: Path, node_id: str) -> Path:
    return marker.with_name(f"{marker.name}.{node_id}")


def _write_token(marker: Path, path: Path) -> None:
    path.write_text(marker.name)


def _appears(marker: Path, path: Path) -> bool:
    """``path`` holds the marker's token now or soon."""
    limit_s = time.monotonic() + _APPEARS_S
    while True:
        with suppress(OSError):
            if path.read_text() == marker.name:
                return True
        if time.monotonic() > limit_s:
            return False
        time.sleep(0.1)
