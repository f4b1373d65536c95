"""Traces of real processes: one an image, through device, link and edge; and none where none are wanted."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.runtimes.span_writer import open_writer
from aecnn_deploy.runtimes.tracing import DEVICE_SERVICE, EDGE_SERVICE, DeviceTracer, EdgeTracer, Stage
from aecnn_deploy.wire import FailureReceived, ResultReceived, request_trace
from tests.bundles import Edge, command, make_bundle, make_photos, serving
from tests.edge_client import Client, planes_of
from tests.otlp_collector import Collector, SeenSpan, collecting

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra tracing")

DEVICE_STAGES, EDGE_STAGES = ["read", "head", "encode", "link"], ["queue", "decode", "tail"]
CLOCKS_NS = 1_000_000  # between two readings of one clock, and what rounding to milliseconds costs
SERVICES = DEVICE_SERVICE, EDGE_SERVICE
TRACE = "000102030405060708090a0b0c0d0e0f"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("traced") / "bundle"
    make_bundle(path)
    return open_bundle(path)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def edge(bundle: Bundle, collector: Collector) -> Iterator[Edge]:
    with traced(collector), serving(bundle.path) as running:
        yield running


@contextmanager
def traced(collector: Collector, **more: str) -> Iterator[None]:
    """Processes that are started here send their spans to ``collector``."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (collector.environment | more).items():
            patch.setenv(name, value)
        yield


def run_device(bundle: Bundle, edge: Edge, photos: Path) -> "subprocess.CompletedProcess[bytes]":
    return command("run-device", str(bundle.path), "--edge", edge.url, "--source", str(photos))


def by_parent(spans: list[SeenSpan], parent: SeenSpan) -> list[SeenSpan]:
    return sorted((span for span in spans if span.parent_id == parent.span_id), key=lambda span: span.start_ns)


def test_one_trace_an_image_shows_device_link_and_edge(
    bundle: Bundle, edge: Edge, collector: Collector, tmp_path: Path
) -> None:
    make_photos(tmp_path / "photos", count=3)
    (tmp_path / "photos" / "spoilt.jpg").write_bytes(b"no image")
    with traced(collector):
        done = run_device(bundle, edge, tmp_path / "photos")
    assert (done.returncode, done.stderr) == (1, b"")
    spans = collector.wait_for(lambda spans: len(spans) >= 3 * 9 + 1)
    (spoilt,) = [span for span in spans if span.failed]
    assert (Path(spoilt.attributes["aecnn.source"]).name, spoilt.parent_id) == ("spoilt.jpg", "")
    spans.remove(spoilt)
    assert len(spans) == 3 * 9
    roots = [span for span in spans if not span.parent_id]
    assert len({span.trace_id for span in roots}) == 3
    assert sorted(Path(root.attributes["aecnn.source"]).name for root in roots) == [
        f"photo{number}.jpg" for number in range(3)
    ]
    for root in roots:
        mine = [span for span in spans if span.trace_id == root.trace_id]
        assert (root.service, root.name, len(mine)) == ("aecnn-device", "image", 9)
        *stages, edge_span = sorted(by_parent(mine, root), key=lambda span: span.name == "edge")
        assert [span.name for span in stages] == DEVICE_STAGES
        assert {span.service for span in stages} == {"aecnn-device"}
        link = stages[-1]
        assert (edge_span.service, edge_span.name) == ("aecnn-edge", "edge")
        inner = by_parent(mine, edge_span)
        assert [span.name for span in inner] == EDGE_STAGES
        nested = [(each, root) for each in stages] + [(edge_span, link)] + [(each, edge_span) for each in inner]
        for inside, outside in nested:
            assert outside.start_ns - CLOCKS_NS <= inside.start_ns <= inside.end_ns <= outside.end_ns + CLOCKS_NS
        for before, after in pairwise(stages):
            assert before.end_ns <= after.start_ns + CLOCKS_NS
        assert edge_span.attributes["aecnn.variant"] == bundle.manifest.variants[0].id
        assert edge_span.attributes["aecnn.received_bytes"] == root.attributes["aecnn.sent_bytes"]
        assert not any(span.failed for span in mine)


def test_an_edge_puts_its_spans_under_those_that_the_wire_format_names(
    bundle: Bundle, edge: Edge, collector: Collector
) -> None:
    spec = bundle.manifest.variants[0]
    collector.spans.clear()
    with Client(edge, bundle, trace=TRACE) as client, Client(edge, bundle) as untraced:
        for each in (untraced, client):
            each.event()
            each.ask(spec, 0, planes_of(spec))
            assert isinstance(each.event(), ResultReceived)
        client.socket.send(client.session.infer(0, 0, b"too short", 9)[1])
        assert isinstance(client.event(), FailureReceived)
    spans = collector.wait_for(lambda spans: sum(span.name == "edge" for span in spans) >= 2)
    edges = sorted((span for span in spans if span.name == "edge"), key=lambda span: span.start_ns)
    assert len(edges) == 2  # a session without a trace has none
    for request_id, span in enumerate(edges, 1):
        ids = request_trace(TRACE, request_id)
        assert (int(span.trace_id, 16), int(span.parent_id, 16)) == (ids.trace_id, ids.span_id)
    assert [span.failed for span in edges] == [False, True]
    assert edges[1].attributes["aecnn.outcome"] == "bad-payload"


def test_a_ratio_keeps_or_drops_an_image_on_both_halves_alike(bundle: Bundle, tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", count=24)
    half = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    with collecting() as collector, traced(collector, **half), serving(bundle.path) as edge:
        assert run_device(bundle, edge, tmp_path / "photos").returncode == 0
        status, errors = edge.stop()
        assert (status, "WARN" in errors, "ERROR" in errors) == (0, False, False)
    device, other = ({span.trace_id for span in collector.spans if span.service == name} for name in SERVICES)
    assert device == other
    assert 0 < len(device) < 24  # each end has a chance of 2⁻²⁴


def test_a_sampler_that_says_no_is_heeded(collector: Collector) -> None:
    collector.spans.clear()
    for sampler, expected in (("always_off", 0), ("always_on", 4)):
        with traced(collector, OTEL_TRACES_SAMPLER=sampler):
            device, edge = DeviceTracer(), EdgeTracer()
            stages = [Stage("read", 1.0, 2.0)]
            device.finished("a.jpg", 1.0, 2.0, stages, sent=(TRACE, 7))
            edge.finished(TRACE, 7, {"tail": 1.0, "total": 2.0}, attributes={})
            device.close()
            edge.close()
        assert len(collector.spans) == expected


def test_a_collector_that_is_away_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    before = set(threading.enumerate())
    tracer = EdgeTracer()
    for request_id in range(1, 100):
        tracer.finished(TRACE, request_id, {"total": 1.0}, attributes={})
    began_s = time.monotonic()
    tracer.close()
    assert time.monotonic() - began_s < 5
    # It goes on trying for some seconds, and draws its pauses with ``random``, which hypothesis watches in later tests.
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "'grpc' is not supported; set OTEL_EXPORTER_OTLP_PROTOCOL=http"),
        ("OTEL_SDK_DISABLED", "true", ""),
        ("OTEL_TRACES_EXPORTER", "none", ""),
    ],
)
def test_a_configuration_that_sends_nothing_is_heeded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    assert open_writer("test") is None
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_without_an_endpoint_no_package_of_opentelemetry_is_loaded() -> None:
    code = """
import sys, json
from aecnn_deploy.runtimes.tracing import DeviceTracer, EdgeTracer
device, edge = DeviceTracer(), EdgeTracer()
device.finished("a.jpg", 0.0, 1.0, (), sent=None)
device.close(); edge.close()
loaded = [name for name in sys.modules if name.startswith("opentelemetry")]
print(json.dumps([device.active, device.session(), edge.active, loaded]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env={})
    assert json.loads(done.stdout) == [False, None, False, []]


def test_an_endpoint_without_the_packages_is_a_warning_that_names_the_extra() -> None:
    code = """
import logging, sys
sys.modules["opentelemetry.sdk"] = None
from aecnn_deploy.runtimes.tracing import EdgeTracer
logging.basicConfig(level=logging.INFO)
print(EdgeTracer().active)
"""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    assert done.stdout == "False\n"
    assert "pip install 'aecnn-deploy[tracing]'" in done.stderr
