"""Training with labels: one real small run of every arm, read back and measured again."""

import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from aecnn_deploy.errors import SourceError, TrainingError
from aecnn_deploy.models.backbones import backbone_spec, build_backbone
from aecnn_deploy.models.results import read_ranking, read_rankings, read_results, unpack_correct
from aecnn_deploy.models.run import Run, load_run
from aecnn_deploy.training import codec_arms
from aecnn_deploy.training.algorithm1 import validation_accuracy
from aecnn_deploy.training.dataset import load_labelled, read_split
from aecnn_deploy.training.evaluation import full_top1, run_split
from aecnn_deploy.training.frame_codecs import FrameCodec, coded
from aecnn_deploy.training.images import Images
from aecnn_deploy.training.progress import SILENT
from aecnn_deploy.training.settings import Algorithm1Settings
from aecnn_deploy.training.supervised import _open, execute, train_supervised
from aecnn_deploy.training.tasks import tasks_of
from aecnn_deploy.training.workshop import Workshop
from tests.labelled_runs import Trained, copy_run, done_at, frames_and_labels, settings_of, tree, write_pictures

# Every arm at one split point: 256 channels of 14×14, a thirty-second of them sent.
EVERY_ARM = """
weights = "random"
augment = "flip"
hidden = 8
recovery_depth = 1
late_splits = [9]
late_bits = [4]
data = { validation = 0.2, test = 0.3 }
unsplit = { epochs = 1, batch = 4 }
attention = { epochs = 1, batch = 4 }
prune = { epochs = 1, batch = 4 }
recover = { epochs = 1, batch = 4 }
match = { epochs = 1, batch = 4 }
distil = { epochs = 1, batch = 4 }
codec = { epochs = 1, batch = 4 }

[[sweep]]
arms = ["aecnn", "aecnn-fast", "bottlenetpp", "l1", "se", "jpeg-features"]
splits = [6]
ratios = [32]

[[strided]]
name = "s"
split = 6
planes = 4
hidden = 8
depth = 0
layers = [[8, 4, 4], [16, 3, 2]]
target_bytes = 200

[[codecs]]
codecs = ["jpeg"]
sides = [112]
"""


VARIANTS = {
    "resnet18-l9-all512-u4": "late-split-l9-u4-s0",
    "resnet18-l6-strided-s-u4": "strided-s-s0",
    "resnet18-l6-v32-u8": "aecnn-l6-v32-u8-s0",
    "resnet18-l6-v32-u8-fast": "fast-l6-v32-u8-s0",
    "resnet18-l6-bnpp8-u8": "bottlenetpp-l6-v32-u8-s0",
}


ROWS = {
    "unsplit-s0": "unsplit",
    "late-split-l9-u4-s0": "late-split",
    "strided-s-s0": "strided",
    "pruned-ca-l6-v32-u8-s0": "ca-pruned",
    "pruned-l1-l6-v32-u8-s0": "l1",
    "pruned-se-l6-v32-u8-s0": "se",
    "aecnn-l6-v32-u8-s0": "aecnn",
    "fast-l6-v32-u8-s0": "aecnn-fast",
    "bottlenetpp-l6-v32-u8-s0": "bottlenetpp",
    **{f"jpeg-features-l6-v32-u8-s0-q{quality}": "jpeg-features" for quality in (5, 10, 20, 40, 60, 80)},
    **{f"codec-jpeg-112-s0-q{quality}": "jpeg" for quality in (8, 10, 15)},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("supervised")
    data, settings = write_pictures(folder / "data"), settings_of(folder, EVERY_ARM)
    result = train_supervised(settings, data, folder / "run", resume=False, replace=False, progress=SILENT)
    assert result.failed == {}
    return Trained(data, folder / "run", settings, result)


@pytest.fixture(scope="module")
def loaded(trained: Trained) -> Run:
    return load_run(trained.out)


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> Path:
    """The run in a place of its own, to be changed."""
    return copy_run(trained.out, tmp_path / "copied")


class TestEveryArm:
    def test_every_arm_has_its_rows(self, trained: Trained) -> None:
        assert {row.task: row.arm for row in trained.result.rows} == ROWS
        assert trained.result.rows == read_results(trained.out)
        assert all(row.test_images == 4 and 0 <= row.accuracy <= 1 for row in trained.result.rows)

    def test_every_row_keeps_which_test_images_were_classified_correctly(self, trained: Trained) -> None:
        assert len({row.test_set for row in trained.result.rows}) == 1
        for row in trained.result.rows:
            assert row.correct is not None
            assert unpack_correct(row.correct, 4).mean() == row.accuracy

    def test_wire_bytes_are_the_payload_and_44_of_framing(self, trained: Trained) -> None:
        for row in trained.result.rows:
            if row.arm == "unsplit":
                assert row.wire_bytes is row.payload_bytes is None
            else:
                assert row.payload_bytes is not None
                assert row.wire_bytes == row.payload_bytes + 44
                assert row.payload_bytes > 10

    def test_planes_bits_and_multiply_adds_are_those_of_the_design(self, trained: Trained) -> None:
        pruned, recovered = trained.row("pruned-ca-l6-v32-u8-s0"), trained.row("aecnn-l6-v32-u8-s0")
        for row in (pruned, recovered, trained.row("fast-l6-v32-u8-s0"), trained.row("bottlenetpp-l6-v32-u8-s0")):
            assert (row.split_shape, row.planes, row.bits) == ((256, 14, 14), (8, 14, 14), 8)
        assert pruned.head_macs == recovered.head_macs
        bottlenet = trained.row("bottlenetpp-l6-v32-u8-s0")
        assert bottlenet.head_macs - 256 * 8 * 9 * 14 * 14 > recovered.head_macs
        strided = trained.row("strided-s-s0")
        assert (strided.planes, strided.bits, strided.label) == ((4, 28, 28), 4, "s")
        assert strided.head_macs == (8 * 3 * 16) * 56 * 56 + (16 * 8 * 9 + 4 * 16) * 28 * 28
        jpeg = trained.row("codec-jpeg-112-s0-q8")
        assert (jpeg.head_macs, jpeg.side, jpeg.quality) == (0, 112, 8)
        assert trained.row("codec-jpeg-112-s0-q15").payload_bytes > jpeg.payload_bytes

    def test_epochs_and_time_count_from_the_unsplit_network_on(self, trained: Trained) -> None:
        epochs = {task: trained.row(task).epochs for task in ROWS}
        assert epochs["unsplit-s0"] == epochs["codec-jpeg-112-s0-q8"] == 1
        assert epochs["late-split-l9-u4-s0"] == 0
        assert epochs["pruned-l1-l6-v32-u8-s0"] == 1, "no training for this ranking"
        assert epochs["pruned-ca-l6-v32-u8-s0"] == epochs["pruned-se-l6-v32-u8-s0"] == 2
        assert epochs["aecnn-l6-v32-u8-s0"] == epochs["jpeg-features-l6-v32-u8-s0-q5"] == 3
        assert epochs["fast-l6-v32-u8-s0"] == epochs["strided-s-s0"] == epochs["bottlenetpp-l6-v32-u8-s0"] == 2
        before, after = trained.row("pruned-ca-l6-v32-u8-s0"), trained.row("aecnn-l6-v32-u8-s0")
        assert 0 < before.train_s < after.train_s

    def test_rankings_are_kept_with_three_random_batches(self, trained: Trained) -> None:
        rankings = {ranking.method: ranking for ranking in read_rankings(trained.out)}
        assert rankings.keys() == {"ca", "se", "l1"}
        assert all(len(ranking.importance) == 256 for ranking in rankings.values())
        assert rankings["l1"].batches == ()
        for method in ("ca", "se"):
            # Eight training images are one batch of 128: the mean over it is the mean over all.
            (batch,) = rankings[method].batches
            np.testing.assert_allclose(batch, rankings[method].importance, atol=5e-3)

    def test_the_ranking_decides_what_is_kept_and_recovery_keeps_it(self, trained: Trained) -> None:
        for method in ("ca", "se", "l1"):
            importance = np.array(read_ranking(trained.out, f"rank-{method}-l6-s0").importance)
            kept = load_file(trained.out / f"tasks/pruned-{method}-l6-v32-u8-s0/model.safetensors")["kept"]
            assert len(kept) == 8
            assert importance[kept].min() >= np.delete(importance, kept).max()
        pruned = load_file(trained.out / "tasks/pruned-ca-l6-v32-u8-s0/model.safetensors")["kept"]
        recovered = load_file(trained.out / "tasks/aecnn-l6-v32-u8-s0/model.safetensors")["kept"]
        assert torch.equal(pruned, recovered)

    def test_recovery_begins_as_the_pruned_network_ended(self, trained: Trained, copied: Path) -> None:
        untrained = msgspec.structs.replace(trained.settings.recover, epochs=0)
        settings = msgspec.structs.replace(trained.settings, recover=untrained)
        (copied / "settings.json").write_bytes(msgspec.json.encode(settings))
        shutil.rmtree(copied / "tasks/aecnn-l6-v32-u8-s0")
        execute(str(copied.resolve()), "aecnn-l6-v32-u8-s0")
        pruned = load_file(copied / "tasks/pruned-ca-l6-v32-u8-s0/model.safetensors")
        recovered = load_file(copied / "tasks/aecnn-l6-v32-u8-s0/model.safetensors")
        kept = {key for key in pruned if not key.startswith("recovery.")}
        assert all(torch.equal(recovered[key], pruned[key]) for key in kept)
        rows = {row.task: row for row in read_results(copied)}
        before, after = rows["pruned-ca-l6-v32-u8-s0"], rows["aecnn-l6-v32-u8-s0"]
        assert (after.payload_bytes, after.accuracy) == (before.payload_bytes, before.accuracy)

    def test_done_tasks_leave_no_checkpoint(self, trained: Trained) -> None:
        assert done_at(trained.out).keys() == {
            task.id for task in tasks_of(trained.settings, build_backbone("resnet18"))
        }
        assert not list(trained.out.rglob("state*"))

    def test_the_run_holds_the_variants_that_the_rows_name(self, trained: Trained, loaded: Run) -> None:
        named = {row.variant: row.task for row in trained.result.rows if row.variant is not None}
        exported = {variant.id for variant in loaded.variants}
        assert exported == set(VARIANTS)
        assert {variant: named[variant] for variant in exported} == VARIANTS
        assert loaded.labels == ("blue", "red")
        for variant in loaded.variants:
            row = trained.row(VARIANTS[variant.id])
            assert (variant.planes, variant.bits, variant.head_macs) == (row.planes, row.bits, row.head_macs)
            assert (variant.accuracy, variant.record.wire_bytes) == (row.accuracy, row.wire_bytes)

    def test_the_variants_are_the_networks_of_their_tasks(self, trained: Trained, loaded: Run) -> None:
        for variant in loaded.variants:
            state = load_file(trained.out / "tasks" / VARIANTS[variant.id] / "model.safetensors")
            own = variant.model.state_dict()
            assert own.keys() == state.keys()
            assert all(torch.equal(own[key], state[key]) for key in own), variant.id

    def test_measuring_them_again_gives_the_rows_numbers(self, trained: Trained, loaded: Run) -> None:
        frames, labels = frames_and_labels(trained)
        for variant in loaded.variants:
            row = trained.row(VARIANTS[variant.id])
            again = run_split(variant.head(), variant.tail(), variant.bits, frames)
            assert float((again.top1 == labels).mean()) == row.accuracy, variant.id
            assert float(again.payload_bytes.mean()) == pytest.approx(row.payload_bytes, rel=0.01)
        unsplit = trained.row("unsplit-s0")
        assert float((full_top1(loaded.full(), frames) == labels).mean()) == unsplit.accuracy
        assert loaded.measurements["unsplit_accuracy"] == unsplit.accuracy

    def test_a_process_of_its_own_ranks_the_same_with_the_same_seed(self, trained: Trained, copied: Path) -> None:
        for task in ("unsplit-s0", "rank-ca-l6-s0", "rank-se-l6-s0"):
            shutil.rmtree(copied / "tasks" / task)
        shutil.rmtree(copied / "rankings")
        for task in ("unsplit-s0", "rank-ca-l6-s0", "rank-se-l6-s0"):
            execute(str(copied.resolve()), task)  # as a worker does: from the run's own files
        for method in ("ca", "se"):
            again = read_ranking(copied, f"rank-{method}-l6-s0")
            assert again.importance == read_ranking(trained.out, again.task).importance

    @pytest.mark.parametrize(
        "task", ["unsplit-s0", "bottlenetpp-l6-v32-u8-s0", "aecnn-l6-v32-u8-s0", "fast-l6-v32-u8-s0", "strided-s-s0"]
    )
    def test_the_same_seed_trains_the_same_network_whatever_its_process_drew_before(
        self, trained: Trained, copied: Path, task: str
    ) -> None:
        shutil.rmtree(copied / "tasks" / task)
        _open.cache_clear()  # a worker that is given this task first, not after all that it needs
        torch.manual_seed(99)
        execute(str(copied.resolve()), task)
        expected, again = (load_file(run / "tasks" / task / "model.safetensors") for run in (trained.out, copied))
        assert all(torch.equal(again[key], expected[key]) for key in expected)

    def test_a_ranking_with_weights_of_its_own_does_not_depend_on_the_tasks_before_it(
        self, trained: Trained, copied: Path
    ) -> None:
        shutil.rmtree(copied / "tasks" / "rank-se-l6-s0")
        _open.cache_clear()
        execute(str(copied.resolve()), "rank-se-l6-s0")
        again = read_ranking(copied, "rank-se-l6-s0")
        assert again.importance == read_ranking(trained.out, again.task).importance

    def test_a_codec_s_classifier_is_validated_on_coded_frames(
        self, trained: Trained, copied: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        patient = msgspec.structs.replace(trained.settings.codec, patience=1)
        settings = msgspec.structs.replace(trained.settings, codec=patient)
        (copied / "settings.json").write_bytes(msgspec.json.encode(settings))
        shutil.rmtree(copied / "tasks" / "codec-jpeg-112-s0")
        seen = []

        def watched(shop: Workshop, model: nn.Module, images: Images | None = None) -> float:
            seen.append(shop.images("validation") if images is None else images)
            return validation_accuracy(shop, model, images)

        monkeypatch.setattr(codec_arms, "validation_accuracy", watched)
        _open.cache_clear()
        execute(str(copied.resolve()), "codec-jpeg-112-s0")
        photographs = load_labelled(trained.data, backbone_spec("resnet18").input, cache=None)
        frames = photographs.frames[read_split(trained.out / "data.json", photographs).validation]
        for images, quality in zip(seen, (8, 10, 15), strict=True):
            np.testing.assert_array_equal(images.frames.numpy(), coded(frames, FrameCodec("jpeg", quality, 112))[0])
        rows = [row for row in read_results(copied) if row.arm == "jpeg"]
        assert all(row.validation_accuracy is not None for row in rows)


class TestALaterCall:
    GROWN = EVERY_ARM + EVERY_ARM[EVERY_ARM.index("[[strided]]") : EVERY_ARM.index("[[codecs]]")].replace('"s"', '"t"')

    def test_a_run_grows_by_a_table_and_what_is_done_is_not_trained_again(
        self, trained: Trained, copied: Path, tmp_path: Path
    ) -> None:
        before = done_at(copied)
        record = (copied / "data.json").read_bytes()
        result = trained.go_on(copied, settings_of(tmp_path, self.GROWN))
        assert result.failed == {}
        after = done_at(copied)
        assert after.keys() - before.keys() == {"strided-t-s0"}
        assert {task: after[task] for task in before} == before
        assert (copied / "data.json").read_bytes() == record
        assert {row.task for row in result.rows} == {*ROWS, "strided-t-s0"}
        assert {variant.id for variant in load_run(copied).variants} == {*VARIANTS, "resnet18-l6-strided-t-u4"}

    @pytest.mark.parametrize(
        ("old", "new", "why"),
        [
            ("hidden = 8\nrecovery", "hidden = 16\nrecovery", "begun with hidden = 8, the settings say 16"),
            ('augment = "flip"', 'augment = "crop"', 'begun with augment = "flip", the settings say "crop"'),
            ("test = 0.3", "test = 0.25", "begun with data = "),
            ("match = { epochs = 1", "match = { epochs = 2", "begun with match = "),
            (
                "planes = 4",
                "planes = 5\nseeds = [0, 1]",
                "has another strided head 's'; give the changed one another name",
            ),
        ],
    )
    def test_other_settings_do_not_continue_it(
        self, trained: Trained, copied: Path, tmp_path: Path, old: str, new: str, why: str
    ) -> None:
        before = tree(copied)
        assert EVERY_ARM.count(old) == 1
        with pytest.raises(TrainingError, match=why):
            trained.go_on(copied, settings_of(tmp_path, EVERY_ARM.replace(old, new)))
        assert tree(copied) == before

    def test_a_strided_head_gets_more_seeds(self, trained: Trained, copied: Path, tmp_path: Path) -> None:
        before = done_at(copied)
        grown = settings_of(tmp_path, EVERY_ARM.replace("planes = 4", "planes = 4\nseeds = [0, 1]"))
        assert trained.go_on(copied, grown).failed == {}
        assert done_at(copied).keys() - before.keys() == {"unsplit-s1", "strided-s-s1"}

    def test_bad_data_leave_the_run_that_force_would_replace(
        self, trained: Trained, copied: Path, tmp_path: Path
    ) -> None:
        before = tree(copied)
        empty = write_pictures(tmp_path / "empty")
        (empty / "void").mkdir()
        few = write_pictures(tmp_path / "few", count=1)
        for root, error, why in (
            (empty, SourceError, "category void"),
            (few, TrainingError, "leave none for training"),
            (tmp_path / "nowhere", SourceError, "cannot be read"),
        ):
            with pytest.raises(error, match=why):
                train_supervised(trained.settings, root, copied, resume=False, replace=True, progress=SILENT)
            assert tree(copied) == before

    def test_a_damaged_record_of_the_settings_is_named(self, trained: Trained, copied: Path) -> None:
        (copied / "settings.json").write_bytes(b"{")
        with pytest.raises(TrainingError, match=r"settings\.json cannot be read.*begin the run anew with --force"):
            trained.go_on(copied, trained.settings)

    def test_a_network_that_is_missing_is_named_when_the_run_is_put_together(
        self, trained: Trained, copied: Path
    ) -> None:
        (copied / "tasks/strided-s-s0/model.safetensors").unlink()
        with pytest.raises(TrainingError, match=r"strided-s-s0/model\.safetensors cannot be read"):
            trained.go_on(copied, trained.settings)
        assert not (copied / "run.json").exists(), "an export would take it for whole"

    def test_a_row_that_is_missing_is_named_and_its_task_can_be_done_again(
        self, trained: Trained, copied: Path
    ) -> None:
        (copied / "results/late-split-l9-u4-s0.json").unlink()
        with pytest.raises(TrainingError, match=r"late-split-l9-u4-s0\.json is missing; remove .*tasks/late-split-l9"):
            trained.go_on(copied, trained.settings)
        shutil.rmtree(copied / "tasks/late-split-l9-u4-s0")
        assert {row.task for row in trained.go_on(copied, trained.settings).rows} == ROWS.keys()

    def test_without_the_record_of_its_photographs_a_run_does_not_draw_others(
        self, trained: Trained, copied: Path
    ) -> None:
        (copied / "data.json").unlink()
        before = tree(copied)
        with pytest.raises(TrainingError, match=r"data\.json is missing.*put it back"):
            trained.go_on(copied, trained.settings)
        assert tree(copied) == before

    def test_what_a_killed_process_was_writing_is_removed(self, trained: Trained, copied: Path) -> None:
        begun = [
            copied / "tasks/strided-s-s0/.state-match-0-3.safetensors.j3p_cp2a",
            copied / "results/.strided-s-s0.json.301eba7r",
            copied / ".frames.npy.abcdefgh",
        ]
        for path in (*begun, copied / ".notes.json"):
            path.write_text("x")
        trained.go_on(copied, trained.settings)
        assert not [path for path in begun if path.exists()]
        assert (copied / ".notes.json").exists(), "somebody's own"


class TestThePlaceOfARun:
    def test_it_is_not_among_its_own_categories(self, trained: Trained, tmp_path: Path) -> None:
        data = write_pictures(tmp_path / "data", count=4)
        for out in (data / "run", data / "red" / "run", data):
            with pytest.raises(TrainingError, match="choose an --out outside of the data"):
                train_supervised(trained.settings, data, out, resume=False, replace=True, progress=SILENT)
        assert sorted(path.name for path in data.iterdir()) == ["blue", "red"]

    @pytest.mark.parametrize("name", ["thesis.tex", ".gitignore"])
    def test_settings_of_something_else_do_not_make_a_folder_a_run(
        self, trained: Trained, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / "settings.json").write_text('{"editor": 1}')
        (tmp_path / ".DS_Store").write_bytes(b"a Mac's")
        (tmp_path / name).write_text("mine")
        with pytest.raises(TrainingError, match=f"holds {re.escape(name)} besides a run: not replaced"):
            train_supervised(trained.settings, trained.data, tmp_path, resume=False, replace=True, progress=SILENT)
        assert (tmp_path / name).read_text() == "mine"

    def test_a_link_to_a_run_stays_when_the_run_is_replaced(self, trained: Trained, tmp_path: Path) -> None:
        (tmp_path / "real" / "tasks").mkdir(parents=True)
        (tmp_path / "real" / "settings.json").write_text("{}")
        (tmp_path / "link").symlink_to("real")
        late = msgspec.structs.replace(trained.settings, sweep=(), strided=(), codecs=())
        train_supervised(late, trained.data, tmp_path / "link", resume=False, replace=True, progress=SILENT)
        assert (tmp_path / "link").is_symlink()
        assert load_run(tmp_path / "real").labels == ("blue", "red")


def test_settings_read_back_from_a_run_are_the_ones_that_it_was_begun_with(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, EVERY_ARM)
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Algorithm1Settings) == settings
