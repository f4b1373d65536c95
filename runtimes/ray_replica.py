"""What runs on a node of a Ray cluster: one replica of the Serve deployment, with the models of an edge."""

import math
import os
import select
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aecnn_deploy
from aecnn_deploy.errors import AecnnError, RunnerError
from aecnn_deploy.runtimes.base import Array
from aecnn_deploy.runtimes.edge_runners import ActiveTail, RunnerOptions, activate_full, activate_tail
from aecnn_deploy.runtimes.ray_files import NodeBundles, first_line, parts_of
from aecnn_deploy.runtimes.ray_settings import IN_FLIGHT, RaySettings
from aecnn_deploy.runtimes.ray_wire import (
    BatchHead,
    Introduction,
    Inventory,
    LogitsHead,
    ModelInfo,
    Orders,
    prove,
    receive,
    send,
    tensor_of,
    tune,
)

LOAD = "batches"  # what autoscaling sees of a replica

_CONNECT_S = 5.0
_AGAIN_S = 0.3  # between two tries to reach the edge
_HEARD_S = 1.0
_MISSING_S = 5.0  # without the edge, before Ray is asked whether it lives
_UNHEALTHY_S = 30.0  # without an edge that lives: another node may reach it
_LEAVE_S = 10.0  # for batches that are under way when the replica is taken away
_QUIET_S = 0.2  # without a batch, until it is believed that none is under way
_SWITCH_INTERVAL_S = 0.0005  # Python's own 5 ms would be the longest part of a quick answer


@dataclass(frozen=True, slots=True)
class Home:
    """Where replicas find their edge: ``shelf`` is the handle of its actor, ``app`` their application on Serve."""

    host: str
    port: int
    secret: bytes
    release: str
    app: str
    shelf: Any


class TailReplica:
    """Runs batches of the models that its edge orders, one at a time.

    Serve makes it, gives it its GPU, watches its health, scales and replaces it. Orders and batches come from the edge
    itself, on connections that the replica makes. Raises RunnerError: the node has another release.
    """

    def __init__(self, home: Home, settings: RaySettings) -> None:
        import ray
        from ray import serve

        if home.release != aecnn_deploy.__version__:
            where = f"Ray node {socket.gethostname()} has aecnn-deploy {aecnn_deploy.__version__}"
            raise RunnerError(f"{where}, the edge has {home.release}; install the same on both")
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._ray, self._serve, self._home = ray, serve, home
        self._gpu = settings.gpus > 0
        self._options = RunnerOptions(
            threads=settings.threads or math.ceil(settings.cpus),
            spinning=settings.spinning,
            engines=settings.engines() if settings.engines is not None and self._gpu else None,
        )
        self._name = serve.get_replica_context().replica_tag
        self._folder = tempfile.TemporaryDirectory(prefix="aecnn-ray-")
        self._bundles = NodeBundles(ray, home.shelf, Path(self._folder.name))
        self._models: dict[str, ActiveTail] = {}
        self._failed: dict[str, str] = {}
        self._turn = threading.Lock()  # one batch at a time: the replica's cores or GPU are one model's
        self._ordered = threading.Condition()
        self._orders: Orders | None = None  # that nobody has begun with
        self._lock = threading.Lock()  # guards what is below
        self._control: socket.socket | None = None
        self._busy, self._waiting, self._leaving = 0, 0.0, False
        self._last_s = self._heard_s = time.monotonic()
        for target in (self._keep_in_touch, self._follow, *[self._work] * IN_FLIGHT):
            threading.Thread(target=target, daemon=True).start()

    async def check_health(self) -> None:
        """Raises RunnerError, so that Serve replaces it: it has not reached the edge for long, though that lives."""
        silent_s = time.monotonic() - self._heard_s
        if silent_s > _UNHEALTHY_S:
            raise RunnerError(
                f"the edge at {self._home.host}:{self._home.port} has not been reached for {silent_s:.0f} s"
            )

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Batches that run or wait here, and its share of those that wait in the edge for any replica."""
        with self._lock:
            return {LOAD: self._busy + (self._waiting if self._busy else 0.0)}

    def __del__(self) -> None:
        """Serve takes the replica away: give back what is under way first. Serve itself calls it, and once."""
        if not hasattr(self, "_heard_s"):
            return  # its making failed
        with self._lock:
            left, self._leaving = self._leaving, True
        if left:
            return
        self._tell()
        end_s = time.monotonic() + _LEAVE_S
        while time.monotonic() < end_s and (self._busy or time.monotonic() - self._last_s < _QUIET_S):
            time.sleep(0.02)
        with suppress(OSError):
            if self._control is not None:
                self._control.shutdown(socket.SHUT_RDWR)

    def _follow(self) -> None:
        """Load and free models as ordered; one that cannot be loaded is told. Batches are run meanwhile."""
        while True:
            with self._ordered:
                while self._orders is None:
                    self._ordered.wait()
                wanted, self._orders = self._orders.models, None
            for key in [key for key in self._models if key not in wanted]:
                tail = self._models.pop(key)
                self._tell()
                with self._turn:
                    tail.runner.deactivate()
            self._failed = {key: why for key, why in self._failed.items() if key in wanted}
            for key in wanted:
                if key not in self._models:
                    try:
                        self._models[key] = self._load(key)
                        self._failed.pop(key, None)
                    except AecnnError as exc:
                        self._failed[key] = str(exc)
                    except Exception as exc:  # whatever a runtime throws: the other models go on
                        self._failed[key] = f"{type(exc).__name__}: {first_line(exc)}"
                    self._tell()
            self._tell()

    def _load(self, key: str) -> ActiveTail:
        bundle_id, variant = parts_of(key)
        bundle = self._bundles.bundle(bundle_id, variant, gpu=self._gpu)
        if variant is None:
            return activate_full(bundle, self._options)
        return activate_tail(bundle, bundle.variant(variant), self._options)

    def _inventory(self) -> Inventory:
        loaded = {
            key: ModelInfo(
                tail.runner.input_shape,
                tail.runner.output_shape,
                tail.runner.input_dtype.name,
                tail.runner.output_dtype.name,
                tail.target,
            )
            for key, tail in list(self._models.items())
        }
        return Inventory(loaded, dict(self._failed), self._leaving)

    def _tell(self) -> None:
        with self._lock, suppress(OSError):  # of a connection that is gone: the next one begins with it
            if self._control is not None:
                send(self._control, self._inventory())

    def _keep_in_touch(self) -> None:
        """Hold the connection of orders and what came of them; without an edge that lives, end the application."""
        asked_s = time.monotonic()
        while not self._leaving:
            try:
                with self._reach(data=False) as control:
                    with self._lock:
                        self._control = control
                    self._tell()
                    while True:
                        self._heard_s = time.monotonic()
                        if not select.select([control], [], [], _HEARD_S)[0]:
                            continue
                        orders, _ = receive(control, Orders)
                        with self._ordered:
                            self._orders = orders
                            self._ordered.notify()
            except OSError:
                pass
            with self._lock:
                self._control = None
            if min(time.monotonic() - self._heard_s, time.monotonic() - asked_s) > _MISSING_S:
                asked_s = time.monotonic()
                if self._edge_is_over():
                    self._serve.delete(self._home.app)  # else a killed edge's replicas would hold their GPUs for ever
                    return
            time.sleep(_AGAIN_S)

    def _edge_is_over(self) -> bool:
        errors = self._ray.exceptions
        try:
            self._ray.get(self._home.shelf.alive.remote(), timeout=_MISSING_S)
        except errors.ActorUnavailableError:
            return False
        except errors.ActorDiedError:
            return True
        except (errors.RayError, errors.GetTimeoutError):
            return False
        return False

    def _work(self) -> None:
        while not self._leaving:
            try:
                with self._reach(data=True) as connection:
                    while True:
                        self._serve_batch(connection)
            except OSError:
                time.sleep(_AGAIN_S)

    def _serve_batch(self, connection: socket.socket) -> None:
        head, body = receive(connection, BatchHead)
        with self._lock:
            self._busy, self._waiting = self._busy + 1, head.waiting
        try:
            send(connection, *self._infer(head, body))
        finally:
            with self._lock:
                self._busy -= 1
                self._last_s = time.monotonic()

    def _infer(self, head: BatchHead, body: bytearray) -> tuple[LogitsHead, Array | None]:
        with self._turn:
            tail = self._models.get(head.model)
            if tail is None:
                return LogitsHead(absent=True), None
            began_s = time.perf_counter()
            try:
                logits = tail.runner.infer(tensor_of(body, tail.runner.input_dtype.name, head.shape))
            except RunnerError as exc:
                return LogitsHead(error=str(exc)), None
            except Exception as exc:  # whatever a runtime throws: this batch fails, the replica goes on
                return LogitsHead(error=f"{type(exc).__name__}: {first_line(exc)}"), None
            return LogitsHead(logits.shape, time.perf_counter() - began_s), logits

    def _reach(self, *, data: bool) -> socket.socket:
        """A new connection to the edge. Raises OSError: it is not there, or does not let this replica in."""
        connection = socket.create_connection((self._home.host, self._home.port), timeout=_CONNECT_S)
        try:
            tune(connection)
            prove(connection, self._home.secret)
            send(connection, Introduction(self._name, data, socket.gethostname(), os.getpid()))
            connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
        return connection


def replicas_wanted(context: Any) -> tuple[float, dict[str, Any]]:
    """Serve's autoscaling policy: as many replicas as give each ``target_ongoing_requests`` batches, with its state.

    Serve itself sees no request, since batches do not go through it; replicas tell what they have, and what waits.
    """
    loads = (context.aggregated_metrics or {}).get(LOAD, {})
    if not loads:
        return context.target_num_replicas, {}
    return sum(loads.values()) / context.config.target_ongoing_requests, {}
