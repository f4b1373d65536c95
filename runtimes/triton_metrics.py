"""What ``GET /metrics`` tells of a Triton server. docs/observability.md lists it."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from aecnn_deploy.optional import require

_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class UpstreamMetrics:
    """A collector for the edge's registry; ``up`` is asked at each scrape. Any thread may tell it what happens.

    Labels are the bundle's names of models and codes of gRPC or ours, so that no peer can make a series.
    """

    def __init__(self, up: Callable[[], bool]) -> None:
        prometheus = require("prometheus_client", why="serving an edge")
        self._up, self._gauge = up, require("prometheus_client.core", why="serving an edge").GaugeMetricFamily
        self._seconds = prometheus.Histogram(
            "aecnn_upstream_seconds",
            "Seconds of one call upstream that was answered, the way there and back included",
            ["variant"],
            buckets=_BUCKETS_S,
            registry=None,
        )
        self._failures = prometheus.Counter(
            "aecnn_upstream_failures",
            "Batches that failed upstream, after all retries",
            ["variant", "code"],
            registry=None,
        )
        self._retries = prometheus.Counter(
            "aecnn_upstream_retries", "Calls upstream that were made again", ["variant"], registry=None
        )

    def known(self, variant: str) -> None:
        """There are series of ``variant`` from now on: a rate over one that begins at 1 misses its first."""
        self._seconds.labels(variant)
        self._retries.labels(variant)

    def answered(self, variant: str, seconds: float) -> None:
        """One call was answered."""
        self._seconds.labels(variant).observe(seconds)

    def failed(self, variant: str, code: str) -> None:
        """A batch failed for good."""
        self._failures.labels(variant, code).inc()

    def retried(self, variant: str) -> None:
        """A call is made again."""
        self._retries.labels(variant).inc()

    def collect(self) -> Iterator[Any]:
        """All families as they are now."""
        up = "1 while the server upstream answers for a model that is loaded here"
        yield self._gauge("aecnn_upstream_up", up, value=float(self._up()))
        yield from itertools.chain(self._seconds.collect(), self._failures.collect(), self._retries.collect())
