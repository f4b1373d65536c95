"""An edge's application on Ray Serve: its replicas' placement, number, health and models are Serve's business."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import aecnn_deploy
from aecnn_deploy.errors import AecnnError, ServeError
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.ray_address import LOCAL, check_release, connect, node_name
from aecnn_deploy.runtimes.ray_files import Shelf, first_line
from aecnn_deploy.runtimes.ray_replica import Home, TailReplica, replicas_wanted
from aecnn_deploy.runtimes.ray_settings import IN_FLIGHT, RaySettings

logger = logging.getLogger("aecnn_deploy.edge")

PREFIX = "aecnn-edge-"
NAMESPACE = "aecnn-deploy"
DEPLOYMENT = "tails"

_CALL_S = 30.0  # of anything that Ray is asked
_PROBE_S = 60.0  # a worker process that starts on a node
_STORE_BYTES = 256 * 2**20  # of a cluster of our own: the models that its replicas fetch
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S, _LEAVE_S = 2.0, 20.0, 15.0
_KILL_S = 5.0  # for Serve to end by force what did not leave by itself
_LOOK_BACK_S, _METRICS_S = 5.0, 1.0  # over which autoscaling averages what replicas tell so often
# Serve's own 10 s would be the longest part of scaling up.
_ENVIRONMENT = {"RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": str(_METRICS_S), "RAY_SERVE_LOG_TO_STDERR": "0"}

T = TypeVar("T")


class RayApp:
    """One application of ours on a Serve instance that others may use, too; it is taken away by ``close``."""

    def __init__(self, settings: RaySettings) -> None:
        # Read when Ray is imported: a thread that asks late, when the cluster has been left, must not join it again.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        self._ray: Any = require("ray", why="serving tails on a Ray cluster", extra="scale")
        self._serve: Any = require("ray.serve", why="serving tails on a Ray cluster", extra="scale")
        self._settings, self._home = settings, Home("", 0, b"", "", "", None)
        self.name = f"{PREFIX}{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
        self._deployed = self._ours = False

    def connect(self) -> str:
        """Join the cluster; the address of this machine that its nodes know. ``close`` leaves it again.

        Raises SettingsError: the address is of no known form. ServeError: no cluster answers; none of its nodes can
        ever run a replica, or one that can has another release of this package.
        """
        settings, local = self._settings, self._settings.address == LOCAL
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        self._ours = not self._ray.is_initialized()
        if self._ours:
            # Not on a thread that ends: a cluster of our own would end with it.
            connect(self._ray, settings.address, ServeError, store_bytes=_STORE_BYTES, namespace=NAMESPACE)
        self._check_nodes(0.0 if local else settings.start_s)
        return str(bounded(self._ray.util.get_node_ip_address, _CALL_S, "Ray names no address of this machine"))

    def deploy(self, host: str, port: int, secret: bytes) -> None:
        """Start the replicas, which come to ``host``:``port``. Raises ServeError: Serve does not take them."""
        pinned = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy

        def begin() -> None:
            here = pinned(self._ray.get_runtime_context().get_node_id(), soft=False)
            shelf = self._ray.remote(num_cpus=0, scheduling_strategy=here)(Shelf)
            handle = shelf.options(name=self.name, namespace=NAMESPACE).remote()
            self._ray.get(handle.alive.remote(), timeout=_PROBE_S)
            self._home = Home(host, port, secret, aecnn_deploy.__version__, self.name, handle)
            # On a cluster that others use, Serve begins as they would have it begin; here nobody needs its HTTP.
            self._serve.start(**({"proxy_location": "Disabled"} if self._settings.address == LOCAL else {}))
            self._remove_orphans()

        bounded(begin, _PROBE_S + _CALL_S, "Ray Serve does not start")
        settings = self._settings
        options: dict[str, Any] = {
            "name": DEPLOYMENT,
            "max_ongoing_requests": IN_FLIGHT,
            "health_check_period_s": _HEALTH_PERIOD_S,
            "health_check_timeout_s": _HEALTH_TIMEOUT_S,
            "graceful_shutdown_timeout_s": _LEAVE_S,
            "graceful_shutdown_wait_loop_s": 0.1,
            "ray_actor_options": {
                "num_cpus": settings.cpus,
                "num_gpus": settings.gpus,
                "runtime_env": {"env_vars": _ENVIRONMENT},
            },
        }
        if settings.min_replicas == settings.max_replicas:
            options["num_replicas"] = settings.max_replicas
        else:
            options["autoscaling_config"] = {
                "min_replicas": settings.min_replicas,
                "max_replicas": settings.max_replicas,
                "target_ongoing_requests": settings.target_in_flight,
                "upscale_delay_s": settings.upscale_s,
                "downscale_delay_s": settings.downscale_s,
                "look_back_period_s": _LOOK_BACK_S,
                "metrics_interval_s": _METRICS_S,  # else Serve warns that its own is longer than the look back
                "policy": {"policy_function": replicas_wanted},
            }
        application = self._serve.deployment(**options)(TailReplica).bind(self._home, settings)
        target = self._serve.RunTarget(application, name=self.name, route_prefix=None)
        self._deployed = True
        bounded(
            lambda: self._serve.run_many(
                [target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
            ),
            _CALL_S,
            "Ray Serve takes no application",
        )

    def put(self, bundle_id: str, files: dict[str, Any]) -> None:
        """Lay arrays into the object store, from where nodes fetch them. Raises ServeError: it does not take them."""

        def lay() -> None:
            refs = {name: self._ray.put(content) for name, content in files.items()}
            self._ray.get(self._home.shelf.put.remote(bundle_id, refs), timeout=_CALL_S)

        bounded(lay, 2 * _CALL_S, "Ray's object store does not take the bundle")

    def drop(self, bundle_id: str) -> None:
        """Let the object store free a bundle's files."""
        self._home.shelf.drop.remote(bundle_id)

    def state(self) -> tuple[int, str]:
        """Replicas that Serve has or wants, and what it says that is wrong, if anything. Raises ServeError: nothing."""
        status = bounded(self._serve.status, _CALL_S, "Ray Serve tells no status")
        app = status.applications.get(self.name)
        deployment = app.deployments.get(DEPLOYMENT) if app is not None else None
        if app is None or deployment is None:
            return 0, "" if app is None else str(app.message)
        wanted = sum(count for state, count in deployment.replica_states.items() if state != "STOPPING")
        healthy = app.status == "RUNNING"
        return wanted, "" if healthy else f"{deployment.message or app.message}"

    def explain_missing(self) -> str:
        """Why there may be no replica, in words: what it needs, and what the nodes have free."""
        with suppress(ServeError):
            free = bounded(self._ray.available_resources, _CALL_S, "")
            resources = " and ".join(f"{free.get(name, 0):g} {name}" for name in self._needs())
            return f"each needs {self._words()}, and {resources} are free on all nodes together"
        return f"each needs {self._words()}"

    def close(self) -> None:
        """Take the application away and leave the cluster; a cluster that was started here ends."""
        if self._deployed:
            with suppress(ServeError):
                self._delete()
        if self._ours and self._ray.is_initialized():
            with suppress(ServeError):
                bounded(self._ray.shutdown, _LEAVE_S, "Ray does not end")

    def _delete(self) -> None:
        """Waiting is done here: a call that still waits when the cluster is left ends the process in native code."""
        bounded(lambda: self._serve.delete(self.name, _blocking=False), _CALL_S, "Ray Serve deletes no application")
        end_s = time.monotonic() + _LEAVE_S + _KILL_S
        while time.monotonic() < end_s:
            if self.name not in bounded(self._serve.status, _CALL_S, "Ray Serve tells no status").applications:
                return
            time.sleep(0.1)

    def _needs(self) -> dict[str, float]:
        needs = {"CPU": self._settings.cpus, "GPU": self._settings.gpus}
        return {name: count for name, count in needs.items() if count}

    def _words(self) -> str:
        return " and ".join(f"{count:g} {name}" for name, count in self._needs().items())

    def _check_nodes(self, limit_s: float) -> None:
        """Some node can run a replica, now or within ``limit_s``, and all that can have this release."""
        end_s = time.monotonic() + limit_s
        while True:
            alive = [node for node in bounded(self._ray.nodes, _CALL_S, "Ray names no nodes") if node["Alive"]]
            able = [node for node in alive if all(node["Resources"].get(k, 0) >= n for k, n in self._needs().items())]
            if able:
                break
            if time.monotonic() >= end_s:
                raise ServeError(
                    f"none of the {len(alive)} nodes of the Ray cluster has the {self._words()} that a replica needs; "
                    "add such a node with: ray start --address HOST:PORT, or give less in --ray-cpus and --ray-gpus"
                )
            time.sleep(0.5)
        pinned = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        replies = []
        for node in able:
            here = pinned(node["NodeID"], soft=False)
            task = self._ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(release)
            replies.append((node, task.remote()))
        errors = self._ray.exceptions
        for node, reply in replies:
            try:
                check_release(node, self._ray.get(reply, timeout=_PROBE_S), ServeError)
            except errors.TaskUnschedulableError:
                continue  # it died a moment ago; replicas start on the others
            except (errors.RayError, errors.GetTimeoutError) as exc:
                raise ServeError(
                    f"{node_name(node)} cannot run a task: {type(exc).__name__}: {first_line(exc)}; "
                    "is aecnn-deploy installed there?"
                ) from None

    def _remove_orphans(self) -> None:
        """Take away what edges left that were killed before a replica of theirs could: their actor is gone."""
        for name in self._serve.status().applications:
            if name.startswith(PREFIX) and name != self.name:
                try:
                    self._ray.get_actor(name, namespace=NAMESPACE)
                except ValueError:
                    logger.warning("removing %s, whose edge is gone", name)
                    self._serve.delete(name)


def release() -> str:
    """On a node: its release of this package."""
    return aecnn_deploy.__version__


def bounded(function: Callable[[], T], limit_s: float, otherwise: str) -> T:
    """What ``function`` gives: a call of Ray waits for ever where a head node is gone.

    Raises ServeError: it did not return within ``limit_s`` seconds, or raised something of Ray's. What it raises of
    ours is raised here.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=call, name="ask ray", daemon=True)
    thread.start()
    thread.join(limit_s)
    if results:
        return results[0]
    if not errors:
        raise ServeError(f"{otherwise}: no answer within {limit_s:g} s; see 'ray status'")
    if isinstance(errors[0], AecnnError) or not isinstance(errors[0], Exception):
        raise errors[0]
    raise ServeError(f"{otherwise}: {type(errors[0]).__name__}: {first_line(errors[0])}; see 'ray status'") from errors[
        0
    ]
