"""The load generator against a real edge, and what the benchmarks of the edge conclude from made-up rounds."""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import EdgeUnreachableError, SessionRefusedError, SettingsError
from aecnn_deploy.runtimes.frames import read_frame
from benchmarks.bare_tail import BATCHES, BurnOrder, TailOrder, TailRate, burn, run_tail
from benchmarks.edge_load import LoadReport, LoadSettings, run_load
from benchmarks.edge_throughput import Round, summary
from benchmarks.null_edge import serve_nothing
from benchmarks.processes import ProcessFailedError, cpu_s, working
from benchmarks.stream_client import StreamClient
from benchmarks.traffic import Bytes, Traffic, make_traffic, planes_of
from tests.bundles import Edge, make_bundle, make_photos, serving
from tests.edge_client import metric


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("load")
    make_bundle(folder / "bundle")
    return open_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def planes(bundle: Bundle) -> Bytes:
    photos = make_photos(bundle.path.parent / "photos", 6)
    frames = np.stack([read_frame(photo, bundle.manifest.input) for photo in photos])
    return planes_of(bundle, bundle.manifest.variants[0].id, frames, threads=1)


@pytest.fixture(scope="module")
def traffic(bundle: Bundle, planes: Bytes) -> Traffic:
    return make_traffic(bundle, bundle.manifest.variants[0].id, planes)


@pytest.fixture(scope="module")
def edge(bundle: Bundle) -> Iterator[Edge]:
    with serving(bundle.path) as running:
        yield running


def test_every_answer_is_counted_compared_and_timed(edge: Edge, traffic: Traffic) -> None:
    answered = 'aecnn_requests_total{outcome="ok",path="split"}'
    settings = LoadSettings(edge.url, devices=4, window=2, seconds=0.5, warm_up_s=0.1, generators=2)
    before = metric(edge, answered)
    report = run_load(settings, traffic, edge_pid=edge.process.pid)
    assert 0 < report.images <= metric(edge, answered) - before
    assert (report.wrong, report.failures) == (0, {})
    assert len(report.by_device) == 4
    assert sum(report.by_device) == report.images
    assert min(report.by_device) > 0
    assert len(report.latency_ms) == len(report.of_edge) == report.images
    assert (report.latency_ms > report.of_edge[:, 3]).mean() > 0.99  # the edge's total is a part of it
    assert (report.edge_overhead_ms > 0).all()
    assert 0 < report.generator_cpu_s < 1.1
    assert report.edge_cpu_s is not None
    assert report.edge_cpu_s > 0
    report.check()


def test_a_wrong_answer_is_seen(edge: Edge, traffic: Traffic) -> None:
    wrong = [msgspec.structs.replace(each, classes=[6 - each.classes[0], 7]) for each in traffic.requests]
    assert all(each.classes != old.classes for each, old in zip(wrong, traffic.requests, strict=True))
    settings = LoadSettings(edge.url, devices=1, window=1, seconds=0.2, warm_up_s=0.0)
    report = run_load(settings, msgspec.structs.replace(traffic, requests=wrong))
    assert report.wrong > 0
    with pytest.raises(SystemExit, match="name another class"):
        report.check()


@pytest.mark.parametrize("arrivals", ["poisson", "paced"])
def test_an_open_loop_keeps_its_rate(edge: Edge, traffic: Traffic, arrivals: str) -> None:
    settings = LoadSettings(edge.url, devices=4, seconds=1.0, warm_up_s=0.1, rate_hz=60.0, arrivals=arrivals)  # type: ignore[arg-type]
    assert 30 <= run_load(settings, traffic).images <= 95


def test_what_waits_for_its_turn_counts_from_when_it_was_due(bundle: Bundle, traffic: Traffic) -> None:
    """One device may have few requests in flight: at a rate that it cannot reach its latency grows without end."""
    with working(serve_nothing, 0, bundle.manifest.variants[0].id, 1) as slow:
        url = f"ws://127.0.0.1:{slow.receive()}"
        settings = LoadSettings(url, devices=1, seconds=0.1, warm_up_s=0.0, rate_hz=100_000.0)
        report = run_load(settings, traffic)
    assert report.latency_ms.max() > 50
    assert report.images > 1000
    assert report.unanswered == 0


def test_an_edge_of_another_bundle_or_none_is_told_by_name(edge: Edge, traffic: Traffic) -> None:
    other = msgspec.structs.replace(traffic, bundle_id="another")
    with pytest.raises(SessionRefusedError, match="bundle-mismatch"):
        StreamClient(edge.url, other)
    with pytest.raises(EdgeUnreachableError, match=r"HTTP 40\d"):
        StreamClient(edge.url + "/nowhere", traffic)
    with pytest.raises(EdgeUnreachableError, match="refused"):
        StreamClient("ws://127.0.0.1:1", traffic)


def test_a_generator_that_is_refused_ends_the_measurement(
    edge: Edge, traffic: Traffic, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ProcessFailedError):
        run_load(LoadSettings(edge.url, devices=1), msgspec.structs.replace(traffic, bundle_id="another"))
    assert "bundle-mismatch" in capfd.readouterr().err


@pytest.mark.parametrize("wrong", [{"generators": 17}, {"window": 0}, {"seconds": 0.0}, {"rate_hz": -1.0}])
def test_a_load_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        LoadSettings("ws://127.0.0.1:1", **wrong)  # type: ignore[arg-type]


def test_the_bare_tail_is_run_at_every_batch_size(bundle: Bundle, planes: Bytes) -> None:
    tail = bundle.file(bundle.manifest.variants[0].tails["onnxruntime"])
    with working(run_tail, tail, planes, 1) as bare:
        assert bare.receive() == "ready"
        for size in (1, BATCHES[-1]):  # more than there are planes
            rate = bare.ask(TailOrder(size, 0.05))
            assert rate.images_per_s > 0
            assert 0 < rate.cpu_s <= rate.seconds * 2


def test_a_burner_takes_the_share_that_it_is_told() -> None:
    with working(burn) as burner:
        assert burner.receive() == "ready"
        before_s, start_s = cpu_s(burner.pid), time.perf_counter()
        burnt_s = burner.ask(BurnOrder(share=0.2, pieces_per_s=100.0, seconds=1.0))
        took_s = time.perf_counter() - start_s
        assert burnt_s == pytest.approx(cpu_s(burner.pid) - before_s, abs=0.03)
    assert 0.15 <= burnt_s <= 0.2 * took_s + 0.05


def made_up(bare: float, edge: float, beside: float, generator_cpu_s: float) -> Round:
    def rates(best: float) -> dict[int, TailRate]:
        return {size: TailRate(best if size == 8 else best / 2, 0.1, 0.1) for size in BATCHES}

    none = np.zeros(0)
    report = LoadReport(2.0, int(edge * 2), 0, 0, {}, [1], none, none.reshape(0, 4), 0, generator_cpu_s, 3.0)
    return Round(rates(bare), report, rates(beside), 0.4, 2.0)


def test_the_ratios_are_those_of_the_rounds() -> None:
    rounds = [made_up(100, 80, 90, 0.4), made_up(200, 150, 170, 0.4), made_up(100, 10, 90, 0.4)]
    figures = summary(rounds, cores=2)
    assert figures["best_batch"] == {"bare": 8, "beside": 8}
    assert figures["images_per_s"] == {"bare": 100, "edge": 80, "bare_beside": 90}
    assert figures["generator_share_of_cores"] == 0.1
    assert figures["ratio"] == {
        "raw": 0.75,
        "by_formula": pytest.approx(150 / (200 * 0.9), abs=1e-4),
        "beside": pytest.approx(150 / 170, abs=1e-4),
    }


def test_a_result_file_can_be_made_of_a_report_without_images() -> None:
    document = made_up(100, 0, 90, 0.4).edge.document()
    assert document["images"] == 0
    assert document["latency_ms"] == document["edge"] == {}


def test_traffic_names_both_classes_of_a_tie(bundle: Bundle, tmp_path: Path) -> None:
    nothing = np.zeros((1, *bundle.manifest.variants[0].planes), np.uint8)  # all logits are 0
    (planned,) = make_traffic(bundle, bundle.manifest.variants[0].id, nothing).requests
    assert planned.classes == list(range(len(bundle.manifest.labels)))
