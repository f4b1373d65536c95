"""What an edge's metrics tell of its replicas on a Ray cluster."""

from collections.abc import Callable, Iterator
from typing import Any

from aecnn_deploy.optional import require

_BUCKETS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class RayMetrics:
    """A collector for an edge's registry; called from any thread. ``look``: (connected, wanted) replicas."""

    def __init__(self, look: Callable[[], tuple[int, int]]) -> None:
        prometheus = require("prometheus_client", why="serving an edge")
        self._look, self._core = look, require("prometheus_client.core", why="serving an edge")
        self._seconds = prometheus.Histogram(
            "aecnn_ray_seconds", "Seconds of a batch on a replica", ("part",), buckets=_BUCKETS_S, registry=None
        )
        self._run, self._hop, self._wait = (self._seconds.labels(part) for part in ("run", "hop", "wait"))
        self._retries = prometheus.Counter(
            "aecnn_ray_retries", "Batches that were run again because their replica was lost", registry=None
        )
        self._failures = prometheus.Counter(
            "aecnn_ray_failures", "Batches that failed after every attempt", registry=None
        )

    def ran(self, wait_s: float, remote_s: float, run_s: float) -> None:
        """A batch was answered: it waited for a replica, was with it for ``remote_s``, in its model for ``run_s``."""
        self._wait.observe(wait_s)
        self._run.observe(run_s)
        self._hop.observe(max(0.0, remote_s - run_s))

    def retried(self) -> None:
        """A replica was lost with a batch."""
        self._retries.inc()

    def failed(self) -> None:
        """A batch failed for good."""
        self._failures.inc()

    def collect(self) -> Iterator[Any]:
        """For Prometheus' registry."""
        connected, wanted = self._look()
        gauge = self._core.GaugeMetricFamily("aecnn_ray_replicas", "Replicas by state", labels=["state"])
        gauge.add_metric(["running"], connected)
        gauge.add_metric(["target"], wanted)
        yield gauge
        for family in (self._seconds, self._retries, self._failures):
            yield from family.collect()
