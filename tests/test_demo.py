"""The demo: from the zoo's bundle as its user starts it; from a training in small, part by part."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.cli.demo_chain import DemoResult, check_folder
from aecnn_deploy.cli.demo_train import clear, train_demo
from aecnn_deploy.cli.stages import StageBars
from aecnn_deploy.codec import CODERS, PlaneEncoder
from aecnn_deploy.errors import SourceError
from aecnn_deploy.models.run import load_run
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.training.evaluation import full_top1, run_split
from aecnn_deploy.training.samples import write_sample_photographs
from aecnn_deploy.training.settings import LabelFreeSettings, MatchSettings
from aecnn_deploy.zoo import zoo_bundle
from tests.bundles import command, environment, one_line, run_directly, run_full
from tests.in_process import command_here


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    folder = tmp_path_factory.mktemp("demo")
    source = folder / "pictures"
    write_sample_photographs(source)
    (source / "broken.png").write_bytes(b"not a picture")
    settings = LabelFreeSettings(split=6, ratios=(2, 8), bits=5, hidden=32, match=MatchSettings(epochs=1))
    with StageBars() as bars:
        return train_demo(source, folder / "out", bars=bars, settings=settings, patch_count=32)


def test_every_photograph_that_decodes_gets_a_label_from_every_variant(result: DemoResult) -> None:
    assert len(result.photographs) == 10
    assert "broken.png" not in {photo.name for photo in result.photographs}
    ids = ["efficientnet_lite0-l6-v2-u5", "efficientnet_lite0-l6-v8-u5"]
    for photo in result.photographs:
        assert list(photo.split) == ids
        few, fewer = (photo.split[name]["wire_bytes"] for name in reversed(ids))
        assert few < fewer < 4 * 40 * 28 * 28 / 8
        assert all(report["status"] == "ok" and report["path"] == "split" for report in photo.split.values())
    assert result.tensor_bytes == 4 * 40 * 28 * 28
    assert result.zoo is None


def test_classes_through_the_link_are_those_of_torch_image_for_image(result: DemoResult) -> None:
    run, bundle = load_run(result.bundle.parent / "run"), open_bundle(result.bundle)
    frames = np.stack([read_frame(result.source / photo.name, run.input) for photo in result.photographs])
    full = full_top1(run.full(), frames)
    assert [photo.full_label for photo in result.photographs] == [run.labels[index] for index in full]
    for variant in run.variants:
        in_torch = run_split(variant.head(), variant.tail(), variant.bits, frames)
        linked = [photo.split[variant.id] for photo in result.photographs]
        assert [report["index"] for report in linked] == in_torch.top1.tolist()
        # A value at the border between two levels may fall on either side of it, and that costs bytes.
        with OnnxRuntimeRunner(bundle.file(bundle.manifest.variant(variant.id).head)) as head:
            planes = np.concatenate([head.infer(frame[None]) for frame in frames])
        steps = np.abs(planes.astype(int) - variant.head()(torch.from_numpy(frames)).numpy())
        assert steps.max() <= 1
        assert (steps > 0).mean() <= 1e-3
        alone = [(image, report) for image, report in zip(planes, linked, strict=True) if report["coder"] in CODERS]
        assert alone
        for image, report in alone:
            encoded = PlaneEncoder(variant.planes, variant.bits, coder=report["coder"]).encode(image)
            assert report["wire_bytes"] - len(encoded.payload) == 36
        assert np.mean([report["wire_bytes"] - 36 for report in linked]) <= in_torch.payload_bytes.mean()


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


class Shown:
    """What ``demo`` printed as JSON, and where it worked."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "out" / "photographs"
        self.mine = folder / "out" / "run" / "mine.txt"
        self.mine.parent.mkdir(parents=True)
        self.mine.write_text("mine")
        # Stands before the real one, for this process and those that it starts: only an import in vain is survived.
        for name in ("timm", "torch", "torchvision"):
            (folder / "blocked").mkdir(exist_ok=True)
            (folder / "blocked" / f"{name}.py").write_text(f"raise SystemError('{name} is imported')")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            patch.setenv("PYTHONPATH", str(folder / "blocked"))
            blocked = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, env=environment())
            assert b"torch is imported" in blocked.stderr
            done = command("demo", "--json", "--out", str(folder / "out"))
            assert done.returncode == 0, done.stderr.decode()
            self.document = json.loads(done.stdout)
            self.bundle = open_bundle(self.document["bundle"])


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return Shown(tmp_path_factory.mktemp("zoo-demo"))


def test_the_demo_from_the_zoo_needs_no_torch_in_any_of_its_processes(shown: Shown) -> None:
    assert shown.document["zoo"] == "caltech101-lite0"
    assert Path(shown.document["bundle"]) == zoo_bundle("caltech101-lite0")
    assert shown.document["bundle_id"] == shown.bundle.id
    assert {photo["name"] for photo in shown.document["photographs"]} == {file.name for file in shown.source.iterdir()}


def test_labels_of_the_demo_are_those_of_the_models_run_directly(shown: Shown) -> None:
    manifest = shown.bundle.manifest
    agreeing = dict.fromkeys((spec.id for spec in manifest.variants), 0)
    for photo in shown.document["photographs"]:
        frame = read_frame(shown.source / photo["name"], manifest.input)
        full = int(run_full(shown.bundle, frame).argmax())
        assert photo["full_label"] == manifest.labels[full]
        assert list(photo["split"]) == list(agreeing)
        for name, report in photo["split"].items():
            assert report["index"] == int(run_directly(shown.bundle, frame, name).argmax())
            assert report["label"] == manifest.labels[report["index"]]
            agreeing[name] += report["index"] == full
    assert shown.document["agreement_count"] == agreeing


def test_bytes_and_times_of_the_demo_stand_for_each_variant(shown: Shown) -> None:
    ids = [spec.id for spec in shown.bundle.manifest.variants]
    means = shown.document["bytes_mean"]
    assert list(means) == ["float32_tensor", "jpeg_q75", *ids]
    assert means["float32_tensor"] is None
    photos = shown.document["photographs"]
    for name in ids:
        assert means[name] == pytest.approx(np.mean([photo["split"][name]["wire_bytes"] for photo in photos]))
        assert 0 < means[name] < means["jpeg_q75"]
        assert all(ms > 0 for ms in shown.document["stage_ms_p50"][name].values())


def test_the_demo_from_the_zoo_removes_nothing(shown: Shown) -> None:
    assert shown.mine.read_text() == "mine"


def test_own_photographs_are_shown_as_tables_and_nothing_is_written(
    shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for name in ("coffee.png", "motorcycle.png"):
        (tmp_path / "photos" / name).symlink_to(shown.source / name)
    done = command("demo", "--images", str(tmp_path / "photos"), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    labels = len(shown.bundle.manifest.labels)
    (said,) = (line for line in lines if line.startswith(f"A label is the nearest of {labels} categories"))
    assert "agreement with the unsplit model" in lines[lines.index(said) + 1]
    photos = {photo["name"]: photo for photo in shown.document["photographs"]}
    for name in ("coffee.png", "motorcycle.png"):
        (row,) = (line for line in lines if line.startswith(Path(name).stem + " "))
        found = re.findall(r"([\w…]+) \d+%", row)
        reports = photos[name]["split"].values()
        whole = [photos[name]["full_label"], *(report["label"] for report in reports)]
        assert len(found) == len(whole)
        assert all(label.startswith(cut.rstrip("…")) for label, cut in zip(whole, found, strict=True))
        assert len(row) <= 80
    for spec in shown.bundle.manifest.variants:
        title = spec.id.removeprefix(f"{shown.bundle.manifest.backbone}-").replace("-strided", "")
        same = sum(
            photos[name]["full_label"] == photos[name]["split"][spec.id]["label"]
            for name in ("coffee.png", "motorcycle.png")
        )
        assert any(line.startswith(f"{title}: {same} of 2 labels are the unsplit model's") for line in lines)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [(), ("--train",)])
def test_a_folder_that_is_no_demo_is_never_removed(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for refuse in (check_folder, clear):
        with pytest.raises(SourceError, match="not an earlier demo's folder"):
            refuse(tmp_path)
    done = command_here("demo", *options, "--out", str(tmp_path))
    assert done.returncode == 1
    assert "choose another --out" in one_line(done.stderr)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


def test_an_earlier_demo_is_removed_before_a_training(tmp_path: Path) -> None:
    (tmp_path / "out" / "run").mkdir(parents=True)
    clear(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    clear(tmp_path / "out")


@pytest.mark.parametrize("options", [(), ("--train",)])
def test_an_empty_folder_of_images_is_refused_in_one_line(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "empty").mkdir()
    done = command_here("demo", *options, "--images", str(tmp_path / "empty"), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "holds no image" in one_line(done.stderr)
