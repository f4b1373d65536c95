"""The benchmarks of the edge from end to end, with settings that are too small to measure anything."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import edge_load, edge_overhead_p99, edge_throughput, pipeline_rate
from tests.bundles import make_bundle, make_photos, serving

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    make_bundle(folder / "bundle")
    make_photos(folder / "photos", 4)
    return folder / "bundle"


def common(bundle: Path, out: Path) -> list[str]:
    return ["--bundle", str(bundle), "--data", str(bundle.parent / "photos"), "--photographs", "4", "--out", str(out)]


def document_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    assert found["commit"]
    return found


def test_throughput_states_all_arms_and_the_verdict_is_the_exit_status(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "throughput.json"
    status = edge_throughput.main([*common(bundle, out), "--seconds", "0.3", "--rounds", "2", "--threads", "1"])
    found = document_of(out)
    assert status == (0 if found["met"] else 1)
    assert found["met"] == (found["ratio"]["beside"] >= 0.9)
    assert all(rate > 0 for rate in found["images_per_s"].values())
    assert found["generator_share_of_cores"] > 0
    assert len(found["rounds"]) == 2
    assert found["rounds"][0]["edge"]["wrong"] == 0


def test_overhead_is_stated_from_inside_and_outside(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "overhead.json"
    status = edge_overhead_p99.main([*common(bundle, out), "--saturate-seconds", "0.3", "--seconds", "0.8"])
    found = document_of(out)
    assert status == (0 if found["met"] else 1)
    assert found["rate_hz"] == pytest.approx(found["saturated_images_per_s"] / 2, abs=0.02)
    assert 0 < found["stated_ms"]["p50"] < found["seen_ms"]["p50"]
    assert found["bare_ms"]["p99"] > 0


def test_the_load_generator_is_a_command(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(bundle) as edge:
        words = ["--edge", edge.url, *common(bundle, Path())[:6], "--devices", "2", "--seconds", "0.2", "--token", "x"]
        assert edge_load.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] > 0
    assert found["settings"]["token"] is None


def test_a_pipeline_stands_beside_its_parts(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "pipeline.json"
    words = [*common(bundle, out)[2:], "--seconds", "0.4", "--rounds", "1", "--set-up", "link"]
    status = pipeline_rate.main(words)
    found = document_of(out)
    assert status == (0 if found["met"] else 1)
    (row,) = found["rows"]
    assert row["slowest"] == "link"
    assert set(row["images_per_s"]) == {"head", "link", "edge", "pipeline"}
    assert all(rate > 0 for rate in row["images_per_s"].values())
