"""What ``GET /metrics`` tells, in Prometheus' text format."""

from collections.abc import Callable, Mapping

from aecnn_deploy.optional import require

SPLIT, FULL = "split", "full"  # the two paths of a request: a device's planes, or a whole image

_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class EdgeMetrics:
    """Counters in a registry of their own, so that two edges in one process do not share them."""

    def __init__(self, in_flight: Callable[[], float], streams: Callable[[], float]) -> None:
        prometheus = require("prometheus_client", why="serving an edge")
        self._prometheus = prometheus
        self.registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "aecnn_requests", "Requests by path and outcome", ["path", "outcome"], registry=self.registry
        )
        self._seconds = prometheus.Histogram(
            "aecnn_stage_seconds",
            "Seconds of each stage of an answered request",
            ["path", "stage"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._received = prometheus.Counter(
            "aecnn_received_bytes", "Bytes of requests, headers of our own included", ["path"], registry=self.registry
        )
        # Looked up once: a label takes a lock and a tuple.
        self._bytes = {path: self._received.labels(path) for path in (SPLIT, FULL)}
        self._ok = {path: self._requests.labels(path, "ok") for path in (SPLIT, FULL)}
        self._stages = {
            (path, stage): self._seconds.labels(path, stage)
            for path, run in ((SPLIT, "tail"), (FULL, "full"))
            for stage in ("decode", "queue", run, "total")
        }
        gauge = prometheus.Gauge("aecnn_in_flight", "Requests that wait for their answer", registry=self.registry)
        gauge.set_function(in_flight)
        gauge = prometheus.Gauge("aecnn_streams", "Open streams of devices", registry=self.registry)
        gauge.set_function(streams)

    def received(self, path: str, size_bytes: int) -> None:
        self._bytes[path].inc(size_bytes)

    def answered(self, path: str, stages_ms: Mapping[str, float]) -> None:
        """One request that succeeded, with its stages' milliseconds."""
        self._ok[path].inc()
        for stage, milliseconds in stages_ms.items():
            self._stages[path, stage].observe(milliseconds / 1e3)

    def failed(self, path: str, outcome: str) -> None:
        self._requests.labels(path, outcome).inc()

    def page(self) -> tuple[bytes, str]:
        """The page and its content type."""
        return self._prometheus.generate_latest(self.registry), self._prometheus.CONTENT_TYPE_LATEST

    def batch_ran(self, variant: str, size: int, seconds: float) -> None:
        """A batch was run."""

    def loaded(self, variant: str, seconds: float) -> None:
        """A model was loaded and is warm."""

    def evicted(self, variant: str) -> None:
        """A model was freed for another one."""

    def reloaded(self, *, ok: bool) -> None:
        """A new bundle was taken up, or refused."""
