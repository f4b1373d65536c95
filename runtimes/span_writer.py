"""Spans made after the fact, on a thread of their own, and sent by OpenTelemetry's OTLP/HTTP exporter.

Where nothing is configured no package of OpenTelemetry is imported. The variables are the standard's: an endpoint in
OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT) turns tracing on, OTEL_TRACES_SAMPLER says how much of it.
"""

import logging
import os
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aecnn_deploy import __version__
from aecnn_deploy.errors import MissingExtraError
from aecnn_deploy.optional import require
from aecnn_deploy.wire import RequestTrace

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

logger = logging.getLogger("aecnn_deploy.tracing")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_MAX_WAITING = 2048  # images whose spans are not made yet


@dataclass(frozen=True, slots=True)
class StageTime:
    """A child span: one stage, between two moments of the wall clock in nanoseconds."""

    name: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class HalfTrace:
    """One half's spans of one image: a span with its stages as children.

    ``ids`` are those that both halves derive: the device's own, or with ``remote`` the parent's. None: random ones.
    """

    name: str
    start_ns: int
    end_ns: int
    stages: tuple[StageTime, ...]
    ids: RequestTrace | None
    remote: bool
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)
    error: str | None = None


class SpanWriter:
    """Takes images' times from any thread without waiting, and makes spans of them on its own."""

    def __init__(self, service: str) -> None:
        """Raises MissingExtraError: OpenTelemetry is not installed."""
        self._provider, self._ids = _provider(service)
        self._waiting: queue.Queue[HalfTrace | None] = queue.Queue(_MAX_WAITING)
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="spans", daemon=True)
        self._thread.start()

    def write(self, trace: HalfTrace) -> None:
        """Hand over one image's spans; dropped and counted where the thread does not keep up."""
        try:
            self._waiting.put_nowait(trace)
        except queue.Full:
            self.dropped += 1
            logger.warning("spans of %d images were dropped: they come faster than they can be made", self.dropped)

    def close(self, timeout_s: float = 2.0) -> None:
        """Send what is left, for ``timeout_s`` at most: a collector that is away must not hold up the end."""
        try:
            self._waiting.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _work(self) -> None:
        tracer = self._provider.get_tracer("aecnn_deploy", __version__)
        while (trace := self._waiting.get()) is not None:
            self._make(tracer, trace)
        self._provider.shutdown()

    def _make(self, tracer: "Tracer", trace: HalfTrace) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        context = Context()
        if trace.ids is not None and trace.remote:
            context = self._parent(trace.ids, trace.name)
        else:
            self._ids.root = trace.ids
        kind = SpanKind.SERVER if trace.remote else SpanKind.INTERNAL
        span = tracer.start_span(trace.name, context, kind=kind, attributes=trace.attributes, start_time=trace.start_ns)
        self._ids.root = None
        if span.is_recording():
            inside = set_span_in_context(span, context)
            for stage in trace.stages:
                kind = SpanKind.CLIENT if stage.name == "link" else SpanKind.INTERNAL
                tracer.start_span(stage.name, inside, kind=kind, start_time=stage.start_ns).end(stage.end_ns)
            if trace.error is not None:
                span.set_status(Status(StatusCode.ERROR, trace.error))
        span.end(trace.end_ns)

    def _parent(self, ids: RequestTrace, name: str) -> "Context":
        """The device's span as parent. Whether it was sampled is not on the wire: the same sampler on both halves
        says the same of the same trace id."""
        from opentelemetry.context import Context
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

        sampled = self._provider.sampler.should_sample(Context(), ids.trace_id, name).decision.is_sampled()
        flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        parent = SpanContext(ids.trace_id, ids.span_id, is_remote=True, trace_flags=flags)
        return set_span_in_context(NonRecordingSpan(parent), Context())


def open_writer(service: str) -> SpanWriter | None:
    """A writer of ``service``'s spans; None where the environment configures no endpoint for them.

    An endpoint that cannot be served is a warning: tracing is no reason not to classify.
    """
    environment = os.environ
    if (
        not any(environment.get(name) for name in _ENDPOINTS)
        or environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp"
    ):
        return None
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        logger.warning("no traces: the protocol %r is not supported; set %s=%s", protocol, _PROTOCOLS[1], _PROTOCOL)
        return None
    try:
        return SpanWriter(service)
    except MissingExtraError as exc:
        logger.warning("no traces: %s", exc)
        return None


def _provider(service: str) -> "tuple[TracerProvider, Any]":
    """A provider that exports, and its generator of ids, whose ``root`` are those of the next root span."""
    for module in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"):
        require(module, why="sending traces")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):  # type: ignore[misc]
        """Random ids, but for a root span whose ids are given."""

        root: RequestTrace | None = None

        def generate_trace_id(self) -> int:
            return self.root.trace_id if self.root is not None else int(super().generate_trace_id())

        def generate_span_id(self) -> int:
            return self.root.span_id if self.root is not None else int(super().generate_span_id())

    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": service, "service.version": __version__})
    ids = Ids()
    provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider, ids
