"""What ``GET /metrics`` tells, in Prometheus' text format. docs/observability.md lists it."""

import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aecnn_deploy import __version__
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.edge_view import OK, STAGES, TOTAL, EdgeState
from aecnn_deploy.wire import WIRE_VERSION

_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_LOAD_BUCKETS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)  # an engine's build is minutes
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class EdgeMetrics:
    """Counters in a registry of their own, so that two edges in one process do not share them.

    ``look`` is asked for the edge's state at each scrape. All else is called on the event loop; labels are paths,
    stages, variants of the bundle and codes of ours, so that no peer can make a series. What has a label is looked up
    once: ``labels`` takes a lock and a tuple.
    """

    def __init__(self, look: Callable[[], EdgeState]) -> None:
        self._prometheus = prometheus = require("prometheus_client", why="serving an edge")
        prometheus.disable_created_metrics()  # a second series for each, which nobody reads; of the whole process
        self.registry = prometheus.CollectorRegistry()
        self._children: dict[tuple[str, ...], Any] = {}  # (family, *labels) -> its child
        self._families: dict[str, Any] = {}
        self._ran: dict[str, tuple[int, int]] = {}
        self._counter("requests", "Requests by path and outcome", "path", "outcome")
        self._counter(
            "open_inference_requests",
            "Requests by the Open Inference Protocol",
            "model",
            "outcome",
        )
        self._counter("received_bytes", "Bytes of requests, headers of our own included", "path")
        self._counter("sent_bytes", "Bytes of answers, headers of our own included", "path")
        self._counter("refused_connections", "Streams and connections that were not let in", "reason")
        self._counter("evictions", "Tails that were unloaded to make room", "variant")
        self._counter("reloads", "Bundles that were taken on while serving (ok) or left (failed)", "outcome")
        self._histogram("stage_seconds", "Seconds of each stage of an answered request", _BUCKETS_S, "path", "stage")
        self._histogram("queue_seconds", "Seconds that an answered request waited for its turn", _BUCKETS_S, "variant")
        self._histogram("batch_size", "Images in one run of a model", _BATCH_BUCKETS, "variant")
        self._histogram("batch_seconds", "Seconds of one run of a model", _BUCKETS_S, "variant")
        self._histogram("load_seconds", "Seconds to load and warm a tail", _LOAD_BUCKETS_S, "variant")
        build = {"version": __version__, "wire_version": str(WIRE_VERSION), "python": platform.python_version()}
        prometheus.Info("aecnn_build", "What runs here", registry=self.registry).info(build)
        prometheus.ProcessCollector(registry=self.registry)  # process_cpu_seconds_total and the like
        self.registry.register(_Now(look))
        for path in STAGES:  # there from the start: a rate over a series that begins at 1 misses its first
            self._child("requests", path, OK)
            self._child("received_bytes", path)
            self._child("sent_bytes", path)
            for stage in (*STAGES[path], TOTAL):
                self._child("stage_seconds", path, stage)
        for outcome in (OK, "failed"):
            self._child("reloads", outcome)

    def received(self, path: str, size_bytes: int) -> None:
        """Bytes of a request came, whatever becomes of it."""
        self._child("received_bytes", path).inc(size_bytes)

    def answered(self, path: str, variant: str, stages_ms: Mapping[str, float], sent_bytes: int) -> None:
        """One request succeeded; ``stages_ms`` are those of ``STAGES`` and ``total``."""
        child = self._child
        child("requests", path, OK).inc()
        child("sent_bytes", path).inc(sent_bytes)
        for stage, milliseconds in stages_ms.items():
            child("stage_seconds", path, stage).observe(milliseconds / 1e3)
        if "queue" in stages_ms:
            child("queue_seconds", variant).observe(stages_ms["queue"] / 1e3)

    def failed(self, path: str, outcome: str) -> None:
        """One request failed; ``outcome`` is a code of ours, never a peer's words."""
        self._child("requests", path, outcome).inc()

    def batch_ran(self, variant: str, size: int, seconds: float) -> None:
        """A model ran once on ``size`` images."""
        runs, images = self.ran(variant)
        self._ran[variant] = runs + 1, images + size
        self._child("batch_size", variant).observe(size)
        self._child("batch_seconds", variant).observe(seconds)

    def ran(self, variant: str) -> tuple[int, int]:
        """How often a model ran, and on how many images together."""
        return self._ran.get(variant, (0, 0))

    def open_inference(self, model: str, outcome: str) -> None:
        """One request by the Open Inference Protocol has its answer; ``model`` is one of the bundle's, or nothing."""
        self._child("open_inference_requests", model, outcome).inc()

    def loaded(self, variant: str, seconds: float) -> None:
        """A tail was loaded and warmed."""
        self._child("load_seconds", variant).observe(seconds)

    def evicted(self, variant: str) -> None:
        """A tail was unloaded to make room."""
        self._child("evictions", variant).inc()

    def reloaded(self, ok: bool) -> None:
        """A bundle was taken on while serving, or left because it is a bad one."""
        self._child("reloads", OK if ok else "failed").inc()

    def connection_refused(self, reason: str) -> None:
        """Somebody was not let in; ``reason`` is a code of ours."""
        self._child("refused_connections", reason).inc()

    def page(self) -> tuple[bytes, str]:
        """The page and its content type."""
        return self._prometheus.generate_latest(self.registry), self._prometheus.CONTENT_TYPE_LATEST

    def _counter(self, name: str, help_text: str, *labels: str) -> None:
        counter = self._prometheus.Counter(f"aecnn_{name}", help_text, labels, registry=self.registry)
        self._families[name] = counter

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> None:
        self._families[name] = self._prometheus.Histogram(
            f"aecnn_{name}", help_text, labels, buckets=buckets, registry=self.registry
        )

    def _child(self, family: str, *labels: str) -> Any:
        key = (family, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._families[family].labels(*labels)
        return child


class _Now:
    """Gauges of what is so at the scrape; what the edge no longer has leaves no series behind."""

    def __init__(self, look: Callable[[], EdgeState]) -> None:
        self._core, self._look = require("prometheus_client.core", why="serving an edge"), look

    def collect(self) -> Iterator[Any]:
        now = self._look()
        gauge = self._core.GaugeMetricFamily
        yield gauge("aecnn_in_flight", "Requests that wait for their answer", value=now.in_flight)
        yield gauge("aecnn_streams", "Open streams of devices", value=now.streams)
        yield gauge("aecnn_ready", "1 while requests are taken", value=float(now.state == "ready"))
        loaded = sum(variant.loaded for variant in now.variants)
        yield gauge("aecnn_loaded_variants", "Variants whose tail is loaded", value=loaded)
        queued = gauge("aecnn_queued", "Requests that wait for their turn on a model", labels=["variant"])
        for variant in now.variants:
            queued.add_metric([variant.id], variant.queued)
        yield queued
        bundle = self._core.InfoMetricFamily("aecnn_bundle", "What is served", labels=[])
        bundle.add_metric([], {"bundle_id": now.bundle_id, "runner": now.runner})
        yield bundle
