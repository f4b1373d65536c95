"""A run with frozen stages, kept views and early stopping, whose two seeds share one unsplit network."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aecnn_deploy.models.backbones import build_backbone
from aecnn_deploy.models.results import read_results
from aecnn_deploy.models.run import load_run
from aecnn_deploy.models.weights import library_keys
from aecnn_deploy.training.evaluation import run_split
from aecnn_deploy.training.progress import SILENT
from aecnn_deploy.training.supervised import train_supervised
from tests.labelled_runs import Trained, frames_and_labels, settings_of, write_pictures

# Frozen stages, kept views, early stopping, one unsplit network for two seeds, more than one depth of planes.
KEPT = """
augment = "crop"
freeze = 3
views = 2
shared_unsplit = true
hidden = 8
data = { validation = 0.2, test = 0.3, train_limit = 6 }
unsplit = { epochs = 1, batch = 4 }
attention = { epochs = 0 }
prune = { epochs = 1, batch = 4 }
recover = { epochs = 2, batch = 4, patience = 1 }
match = { epochs = 1, batch = 4 }
distil = { epochs = 2, batch = 4, patience = 1 }

[[sweep]]
splits = [7]
ratios = [64]
bits = [8, 4]
seeds = [1]

[[strided]]
name = "reused"
split = 7
planes = 2
reuse = 4
hidden = 8
depth = 0
layers = [[8, 3, 1]]
seeds = [1, 2]

[[strided]]
name = "dropped"
split = 7
planes = 2
reuse = 5
drop = [3, 5]
hidden = 8
depth = 0
seeds = [1]
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("kept")
    torch.manual_seed(1)
    torch.save(library_keys(build_backbone("resnet18")), folder / "weights.pth")
    settings = settings_of(folder, f'weights = "{folder / "weights.pth"}"\n' + KEPT)
    data = write_pictures(folder / "data")
    result = train_supervised(settings, data, folder / "run", resume=False, replace=False, progress=SILENT)
    assert result.failed == {}
    return Trained(data, folder / "run", settings, result)


@pytest.mark.slow
class TestFrozenStages:
    def test_frozen_stages_keep_the_weights_of_the_library_in_every_network(self, kept: Trained) -> None:
        state = torch.load(kept.out.parent / "weights.pth", weights_only=True)
        first = state["layer1.1.conv2.weight"]  # of stage 3
        trained = state["layer2.0.conv1.weight"]  # of stage 4
        for task in ("pruned-ca-l7-v64-u8-s1", "aecnn-l7-v64-u4-s1", "strided-reused-s1", "strided-reused-s2"):
            own = load_file(kept.out / "tasks" / task / "model.safetensors")
            assert torch.equal(own["head.2.conv2.weight"], first), task
            assert not torch.equal(own["head.3.conv1.weight"], trained), task

    def test_an_unsplit_network_from_a_run_that_froze_less_is_refused(self, kept: Trained, tmp_path: Path) -> None:
        out = tmp_path / "run"
        (out / "tasks").mkdir(parents=True)
        shutil.copy(kept.out / "data.json", out)
        shutil.copytree(kept.out / "tasks" / "unsplit-s1", out / "tasks" / "unsplit-s1")
        deeper = KEPT.replace("freeze = 3", "freeze = 5")
        settings = settings_of(tmp_path, f'weights = "{kept.out.parent / "weights.pth"}"\n' + deeper)
        result = train_supervised(settings, kept.data, out, resume=True, replace=False, progress=SILENT)
        why = "unsplit-s1 has trained its stage 4, the settings freeze 5; set freeze to 3 at most, or train the unsplit"
        assert {text for text in result.failed.values() if not text.startswith("needs ")} == {f"{why} network anew"}

    def test_an_unsplit_network_that_comes_without_its_row_is_measured(self, kept: Trained, tmp_path: Path) -> None:
        out = tmp_path / "run"
        (out / "tasks").mkdir(parents=True)
        shutil.copy(kept.out / "data.json", out)
        shutil.copytree(kept.out / "tasks" / "unsplit-s1", out / "tasks" / "unsplit-s1")
        alone = KEPT[: KEPT.index("[[sweep]]")] + KEPT[KEPT.rindex("[[strided]]") :]
        settings = settings_of(tmp_path, f'weights = "{kept.out.parent / "weights.pth"}"\n' + alone)
        result = train_supervised(settings, kept.data, out, resume=True, replace=False, progress=SILENT)
        assert result.failed == {}
        (here,) = (row for row in result.rows if row.arm == "unsplit")
        (there,) = (row for row in read_results(kept.out) if row.arm == "unsplit")
        assert here == there

    def test_a_dropped_stage_is_gone_and_those_after_it_begin_with_their_own_weights(self, kept: Trained) -> None:
        state = torch.load(kept.out.parent / "weights.pth", weights_only=True)
        own = load_file(kept.out / "tasks" / "strided-dropped-s1" / "model.safetensors")
        assert torch.equal(own["head.1.conv2.weight"], state["layer1.0.conv2.weight"])  # frozen, before the first
        after, began = own["head.2.conv1.weight"], state["layer2.0.conv1.weight"]  # stage 4: 3 is left out
        assert after.shape == began.shape
        assert not torch.equal(after, began)
        assert float((after - began).abs().max()) < float(began.abs().max()) / 2
        assert "head.3.conv1.weight" not in own

    def test_there_is_one_unsplit_network_and_the_first_seed_is_exported(self, kept: Trained) -> None:
        tasks = {row.task for row in kept.result.rows}
        assert {task for task in tasks if task.startswith("unsplit")} == {"unsplit-s1"}
        assert {"strided-reused-s1", "strided-reused-s2"} < tasks
        run = load_run(kept.out)
        frames, labels = frames_and_labels(kept)
        assert {variant.id for variant in run.variants} == {
            "resnet18-l7-v64-u8",
            "resnet18-l7-v64-u4",
            "resnet18-l7-strided-reused-u4",
            "resnet18-l7-strided-dropped-u4",
        }
        for variant in run.variants:
            again = run_split(variant.head(), variant.tail(), variant.bits, frames)
            assert float((again.top1 == labels).mean()) == variant.accuracy

    def test_the_limit_holds_for_training_only(self, kept: Trained) -> None:
        counts = json.loads((kept.out / "data.json").read_bytes())["counts"]
        assert counts == {"train": 6, "validation": 4, "test": 4, "skipped": 0}

    def test_fewer_bits_begin_with_the_network_of_the_most(self, kept: Trained) -> None:
        rows = {row.task: row for row in kept.result.rows}
        assert "pruned-ca-l7-v64-u4-s1" not in rows
        base = rows["pruned-ca-l7-v64-u8-s1"].epochs
        for bits in (8, 4):
            row = rows[f"aecnn-l7-v64-u{bits}-s1"]
            assert row.bits == bits
            assert base < row.epochs <= base + 2
        assert rows["aecnn-l7-v64-u4-s1"].payload_bytes < rows["aecnn-l7-v64-u8-s1"].payload_bytes
