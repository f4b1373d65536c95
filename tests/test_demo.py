"""The whole chain in small: photographs, training, export, an edge process, a device process, labels."""

import json
from pathlib import Path

import numpy as np
import pytest

from aecnn_deploy.cli.demo_chain import DemoResult, clear, run_demo
from aecnn_deploy.cli.stages import StageBars
from aecnn_deploy.errors import SourceError
from aecnn_deploy.models.run import load_run
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.training.evaluation import full_top1, run_split
from aecnn_deploy.training.samples import write_sample_photographs
from aecnn_deploy.training.settings import LabelFreeSettings, MatchSettings
from tests.bundles import command, one_line


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    folder = tmp_path_factory.mktemp("demo")
    source = folder / "pictures"
    write_sample_photographs(source)
    (source / "broken.png").write_bytes(b"not a picture")
    settings = LabelFreeSettings(split=6, ratios=(2, 8), bits=5, hidden=32, match=MatchSettings(epochs=2))
    with StageBars() as bars:
        return run_demo(source, folder / "out", bars=bars, settings=settings, patch_count=96)


def test_every_photograph_that_decodes_gets_a_label_from_every_variant(result: DemoResult) -> None:
    assert len(result.photographs) == 10
    assert "broken.png" not in {photo.name for photo in result.photographs}
    ids = ["efficientnet_lite0-l6-v2-u5", "efficientnet_lite0-l6-v8-u5"]
    for photo in result.photographs:
        assert list(photo.split) == ids
        few, fewer = (photo.split[name]["wire_bytes"] for name in reversed(ids))
        assert few < fewer < result.tensor_bytes / 8
        assert all(report["status"] == "ok" and report["path"] == "split" for report in photo.split.values())
    assert result.tensor_bytes == 4 * 40 * 28 * 28


def test_classes_through_the_link_are_those_of_torch_image_for_image(result: DemoResult) -> None:
    run = load_run(result.bundle.parent / "run")
    frames = np.stack([read_frame(result.source / photo.name, run.input) for photo in result.photographs])
    full = full_top1(run.full(), frames)
    assert [photo.full_label for photo in result.photographs] == [run.labels[index] for index in full]
    for variant in run.variants:
        in_torch = run_split(variant.head(), variant.tail(), variant.bits, frames)
        linked = [photo.split[variant.id] for photo in result.photographs]
        assert [report["index"] for report in linked] == in_torch.top1.tolist()
        header_bytes = {
            report["wire_bytes"] - size for report, size in zip(linked, in_torch.payload_bytes.tolist(), strict=True)
        }
        assert header_bytes == {36}


def test_stage_times_add_up(result: DemoResult) -> None:
    for photo in result.photographs:
        for report in photo.split.values():
            parts = report["device_ms"] + report["link_ms"] + report["edge_ms"]
            assert report["total_ms"] == pytest.approx(parts, abs=0.01)


def test_the_bundle_of_the_demo_passes_bundle_verify_and_show(result: DemoResult) -> None:
    assert command("bundle", "verify", str(result.bundle)).returncode == 0
    shown = json.loads(command("bundle", "show", str(result.bundle), "--json").stdout)
    assert [variant["planes"] for variant in shown["variants"]] == [[20, 28, 28], [5, 28, 28]]
    assert shown["backbone"] == "efficientnet_lite0"
    assert all(0 < variant["head_macs"] < variant["full_macs"] for variant in shown["variants"])


def test_a_folder_that_is_no_demo_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SourceError, match="not an earlier demo's folder"):
        clear(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    done = command("demo", "--out", str(tmp_path))
    assert done.returncode == 1
    assert "choose another --out" in one_line(done.stderr)


def test_an_empty_folder_of_images_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = command("demo", "--images", str(tmp_path / "empty"), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "holds no image" in one_line(done.stderr)
