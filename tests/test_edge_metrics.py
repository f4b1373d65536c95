"""The metrics: names and units as Prometheus wants them, and no series that a stranger can make."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.runtimes.edge_metrics import EdgeMetrics
from aecnn_deploy.runtimes.edge_view import FULL, SPLIT, EdgeState, VariantState
from aecnn_deploy.wire import ResultReceived
from tests.bundles import Edge, make_bundle, make_photos, serving
from tests.edge_client import Client, get, planes_of, post

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("measured") / "bundle"
    make_bundle(path)
    return open_bundle(path)


@pytest.fixture(scope="module")
def edge(bundle: Bundle) -> Iterator[Edge]:
    with serving(bundle.path) as running:
        yield running


def families(edge: Edge) -> dict[str, Metric]:
    return {metric.name: metric for metric in text_string_to_metric_families(get(edge, "/metrics")[1].decode())}


def sample(found: dict[str, Metric], name: str, **labels: str) -> float | None:
    values = [
        each.value
        for metric in found.values()
        for each in metric.samples
        if each.name == name and labels.items() <= each.labels.items()
    ]
    assert len(values) <= 1, values
    return values[0] if values else None


def test_requests_bytes_batches_and_stages_are_counted(edge: Edge, bundle: Bundle, tmp_path: Path) -> None:
    spec = bundle.manifest.variants[0]
    (photo,) = make_photos(tmp_path, count=1)
    with Client(edge, bundle) as client:
        client.event()
        for _ in range(3):
            client.ask(spec, 0, planes_of(spec))
            assert isinstance(client.event(), ResultReceived)
        found = families(edge)
        assert sample(found, "aecnn_streams") == 1
    assert post(edge, photo.read_bytes())[0] == 200
    found = families(edge)
    assert sample(found, "aecnn_requests_total", path="split", outcome="ok") == 3
    assert sample(found, "aecnn_requests_total", path="full", outcome="ok") == 1
    assert sample(found, "aecnn_batch_size_sum", variant=spec.id) == 3
    assert sample(found, "aecnn_batch_seconds_count", variant=spec.id) == 3
    assert sample(found, "aecnn_queue_seconds_count", variant=spec.id) == 3
    assert sample(found, "aecnn_load_seconds_count", variant=spec.id) == 1
    for stage in ("queue", "decode", "tail", "total"):
        assert sample(found, "aecnn_stage_seconds_count", path="split", stage=stage) == 3
    assert (sample(found, "aecnn_received_bytes_total", path="full") or 0) == len(photo.read_bytes())
    assert (sample(found, "aecnn_received_bytes_total", path="split") or 0) > 3 * 36
    assert (sample(found, "aecnn_sent_bytes_total", path="split") or 0) > 3 * 36
    assert sample(found, "aecnn_loaded_variants") == 1
    assert sample(found, "aecnn_ready") == 1
    assert sample(found, "aecnn_bundle_info", bundle_id=bundle.id) == 1
    assert sample(found, "aecnn_build_info", wire_version="1") == 1
    assert (sample(found, "process_cpu_seconds_total") or 0) > 0
    assert (sample(found, "process_resident_memory_bytes") or 0) > 1e6


def test_who_is_not_let_in_is_counted_by_reason_and_is_no_request(edge: Edge, bundle: Bundle) -> None:
    before = {(each.name, *each.labels.values()) for metric in families(edge).values() for each in metric.samples}
    for number in range(5):
        with Client(edge, bundle, bundle_id=f"{number:064x}", device=f"stranger {number}") as refused:
            refused.event()
    found = families(edge)
    assert sample(found, "aecnn_refused_connections_total", reason="bundle-mismatch") == 5
    new = {(each.name, *each.labels.values()) for metric in found.values() for each in metric.samples} - before
    assert new == {("aecnn_refused_connections_total", "bundle-mismatch")}


def test_names_have_their_unit_and_the_page_lists_each(edge: Edge) -> None:
    table = (ROOT / "docs" / "observability.md").read_text()
    ours = {name: metric for name, metric in families(edge).items() if name.startswith("aecnn_")}
    for name, metric in ours.items():
        if metric.type == "histogram":
            assert re.search(r"_(seconds|size)$", name), name
        full = name + "_total" if metric.type == "counter" else name
        assert f"| `{full}` | {metric.type} |" in table, full
        assert metric.documentation


def test_what_the_service_says_of_its_models_is_counted() -> None:
    variants = [VariantState("a", True, "onnxruntime", 4), VariantState("b", False, "", 0)]
    metrics = EdgeMetrics(lambda: EdgeState("draining", "id", "r", 7, 2, tuple(variants)))
    metrics.batch_ran("a", 8, 0.02)
    metrics.batch_ran("a", 2, 0.01)
    metrics.loaded("a", 1.5)
    metrics.evicted("b")
    metrics.reloaded(True)
    metrics.reloaded(False)
    metrics.connection_refused("unauthorized")
    metrics.received(SPLIT, 100)
    metrics.failed(FULL, "too-large")
    found = {metric.name: metric for metric in text_string_to_metric_families(metrics.page()[0].decode())}
    assert sample(found, "aecnn_batch_size_sum", variant="a") == 10
    assert sample(found, "aecnn_batch_size_bucket", variant="a", le="2.0") == 1
    assert sample(found, "aecnn_load_seconds_sum", variant="a") == 1.5
    assert sample(found, "aecnn_evictions_total", variant="b") == 1
    assert sample(found, "aecnn_reloads_total", outcome="ok") == 1
    assert sample(found, "aecnn_reloads_total", outcome="failed") == 1
    assert sample(found, "aecnn_refused_connections_total", reason="unauthorized") == 1
    assert sample(found, "aecnn_requests_total", path="full", outcome="too-large") == 1
    assert (sample(found, "aecnn_in_flight"), sample(found, "aecnn_streams"), sample(found, "aecnn_ready")) == (7, 2, 0)
    assert (sample(found, "aecnn_loaded_variants"), sample(found, "aecnn_queued", variant="a")) == (1, 4)
    variants.pop(0)  # another bundle was taken on: nothing of the old one's gauges is left
    found = {metric.name: metric for metric in text_string_to_metric_families(metrics.page()[0].decode())}
    assert sample(found, "aecnn_queued", variant="a") is None
    assert sample(found, "aecnn_queued", variant="b") == 0
