"""What a controller tells Prometheus. docs/controller.md lists it."""

from collections.abc import Iterator
from typing import Any

from aecnn_deploy.offloading.live.generations import Advisers
from aecnn_deploy.optional import require


class AdviserMetrics:
    """A collector over the advisers' counts: asked at each scrape, nothing to keep."""

    def __init__(self, advisers: Advisers) -> None:
        self._advisers = advisers
        self._core = require("prometheus_client.core", why="a controller", extra="edge")

    def describe(self) -> Iterator[Any]:
        """Nothing before the first scrape."""
        return iter(())

    def collect(self) -> Iterator[Any]:
        """The families, as they are now."""
        adviser = self._advisers.present
        counts = adviser.counts  # of both
        for name, text, value in (
            ("slots", "Slots that began", counts.slots),
            ("decisions", "Slots that the policy decided", counts.decisions),
            ("failed_decisions", "Slots that the policy failed at", counts.failed),
            ("late_slots", "Slots that began late", counts.late),
            ("broken_devices", "Devices that broke the protocol", counts.broken),
        ):
            yield self._core.CounterMetricFamily(f"aecnn_controller_{name}", text, value=value)
        advice = self._core.CounterMetricFamily("aecnn_controller_advice", "Advice to devices", labels=["way"])
        for way, value in (("local", counts.local), ("idle", counts.idle), *counts.by_edge.items()):
            advice.add_metric([way], value)
        yield advice
        now_s = adviser.clock()
        for name, text, value in (
            ("devices", "Devices that are connected", sum(len(one.roster.members) for one in self._advisers.all)),
            (
                "stale_devices",
                "Devices that are connected and say nothing",
                sum(one.roster.stale(now_s) for one in self._advisers.all),
            ),
        ):
            yield self._core.GaugeMetricFamily(f"aecnn_controller_{name}", text, value=value)
        times = adviser.status()
        decide = self._core.GaugeMetricFamily(
            "aecnn_controller_decide_seconds", "Of the last decisions", labels=["quantile"]
        )
        for quantile, key in (("0.5", "decide_ms_p50"), ("0.99", "decide_ms_p99")):
            value_ms = times[key]
            if isinstance(value_ms, float):
                decide.add_metric([quantile], value_ms / 1e3)
        yield decide


def metrics_route(advisers: Advisers) -> Any:
    """``GET /metrics`` of a controller alone."""
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    prometheus = require("prometheus_client", why="a controller", extra="edge")
    registry = prometheus.CollectorRegistry()
    registry.register(AdviserMetrics(advisers))

    async def metrics(_: Request) -> Response:
        return Response(prometheus.generate_latest(registry), headers={"content-type": prometheus.CONTENT_TYPE_LATEST})

    return Route("/metrics", metrics)
