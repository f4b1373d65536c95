"""Which tasks settings make, which settings are refused, and a training split that is made smaller."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aecnn_deploy.errors import ModelError, SettingsError
from aecnn_deploy.models.backbones import backbone_spec
from aecnn_deploy.training.dataset import DataSplit, limit_training, stratified_split
from aecnn_deploy.training.frame_codecs import GRID
from aecnn_deploy.training.tasks import Task, tasks_of
from tests.labelled_runs import resnet18, settings_of


class TestTasks:
    """ResNet-18: split point 1 has 64 channels, 6 has 256, 9 has 512."""

    @pytest.fixture
    def tasks(self, tmp_path: Path) -> Callable[[str], tuple[Task, ...]]:
        return lambda text: tasks_of(settings_of(tmp_path, text), resnet18())

    ALL = """
        local_int8 = true
        late_splits = [8, 9]
        [[sweep]]
        arms = ["aecnn", "aecnn-fast", "bottlenetpp", "random", "l1", "se", "cbam", "jpeg-features"]
        splits = [1, 6]
        ratios = [4, 64]
        bits = [8, 4]
        seeds = [0, 1]
        [[sweep]]
        splits = [6]
        ratios = [4]
        bits = [4, 6]
        [[strided]]
        name = "s"
        seeds = [0, 2]
        [[codecs]]
        sides = [224, 80]
    """

    def test_ids_are_unique_and_every_need_stands_before_its_task(self, tasks: Any) -> None:
        listed = tasks(self.ALL)
        ids = [task.id for task in listed]
        assert len(set(ids)) == len(ids)
        for place, task in enumerate(listed):
            assert set(task.needs) <= set(ids[:place]), task.id
            assert bool(task.needs) is (task.kind != "unsplit")
        kinds = {kind: sum(task.kind == kind for task in listed) for kind in {task.kind for task in listed}}
        combinations = 2 * 2 * 2 * 2  # splits, ratios, bits, seeds
        assert kinds == {
            "unsplit": 3,
            "local-int8": 1,
            "late-split": 2 * 2,
            "strided": 2,
            "codec": 3 * 2,
            "rank": 2 * 2 * 5,
            "pruned": 2 * 2 * 2 * 5 + 1,  # and of the second sweep, at its own most bits
            "aecnn": combinations + 1,
            "fast": combinations,
            "bottlenetpp": combinations,
            "jpeg-features": combinations,
        }

    def test_a_combination_that_two_sweeps_name_is_trained_once(self, tasks: Any) -> None:
        one = "[[sweep]]\narms = ['aecnn', 'l1']\nratios = [4, 8]\n"
        assert tasks(one + "[[sweep]]\narms = ['l1']\nratios = [8]\n" + one) == tasks(one)

    def test_ca_pruned_is_fine_tuned_once_at_the_most_bits_and_all_recoveries_begin_with_it(self, tasks: Any) -> None:
        listed = tasks("[[sweep]]\nsplits = [6]\nratios = [4]\nbits = [4, 8, 6]\n")
        assert [task.id for task in listed if task.kind == "pruned"] == ["pruned-ca-l6-v4-u8-s0"]
        recovered = [task for task in listed if task.kind == "aecnn"]
        assert [task.bits for task in recovered] == [4, 8, 6]
        assert {task.base_bits for task in recovered} == {8}
        assert {task.needs for task in recovered} == {("pruned-ca-l6-v4-u8-s0",)}

    def test_jpeg_features_need_the_network_whose_planes_they_code(self, tasks: Any) -> None:
        listed = tasks("[[sweep]]\narms = ['jpeg-features']\nsplits = [6]\nratios = [4]\n")
        assert [task.id for task in listed] == [
            "unsplit-s0",
            "rank-ca-l6-s0",
            "pruned-ca-l6-v4-u8-s0",
            "aecnn-l6-v4-u8-s0",
            "jpeg-features-l6-v4-u8-s0",
        ]
        assert listed[-1].needs == ("aecnn-l6-v4-u8-s0",)

    @pytest.mark.parametrize(("shared", "seeds"), [("true", [3]), ("false", [3, 5, 7])])
    def test_seeds_have_networks_of_their_own_or_share_the_firsts(
        self, tasks: Any, shared: str, seeds: list[int]
    ) -> None:
        listed = tasks(
            f"shared_unsplit = {shared}\nlate_splits = [9]\n"
            "[[sweep]]\narms = ['bottlenetpp']\nseeds = [7, 5]\n[[strided]]\nname = 's'\nseeds = [3]\n"
        )
        assert [task.seed for task in listed if task.kind == "unsplit"] == seeds
        for task in listed:
            if task.kind in ("bottlenetpp", "strided"):
                assert task.needs == (f"unsplit-s{3 if shared == 'true' else task.seed}",)
        assert {task.seed for task in listed if task.kind == "late-split"} == {3}

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("[[sweep]]\nsplits = [1]\nratios = [65]\n", "ratio 65 leaves no channel of the 64 at split point 1"),
            ("[[sweep]]\nsplits = [10]\n", "resnet18 has no split point 10; choose 1 to 9"),
            ("late_splits = [12]\n", "resnet18 has no split point 12; choose 1 to 9"),
            ("[[strided]]\nname = 's'\nsplit = 17\n", "resnet18 has no split point 17; choose 1 to 9"),
            ("[[strided]]\nname = 's'\nreuse = 11\n", "resnet18 has no split point 11; choose 1 to 9"),
            ("[[strided]]\nname = 's'\nreuse = 5\ndrop = [6]\n", "stage 6 cannot be dropped from 5 reused stages"),
            ("[[strided]]\nname = 's'\nreuse = 5\ndrop = [1]\n", "cannot be dropped from 5 .*; name one of 2 to 5"),
            ("[[strided]]\nname = 's'\ndrop = [2]\n", "stage 2 cannot be dropped from 0 reused stages"),
            ("[[strided]]\nname = 's'\nreuse = 5\ndrop = [4]\n", "turns 64×56×56 into 128×28×28; only a stage that"),
        ],
    )
    def test_what_the_backbone_lacks_is_refused_with_the_numbers(self, tasks: Any, text: str, why: str) -> None:
        with pytest.raises(ModelError, match=why):
            tasks(text)

    @pytest.mark.parametrize("text", ["", "shared_unsplit = true", "late_bits = [8]"])
    def test_settings_without_a_task_are_refused(self, tasks: Any, text: str) -> None:
        with pytest.raises(SettingsError, match=r"name nothing to train: add a \[\[sweep\]\]"):
            tasks(text)

    def test_a_side_that_no_codec_is_measured_at_is_refused_before_the_work(self, tasks: Any) -> None:
        assert not [side for side, _ in GRID["jpeg"] if side == 96]
        with pytest.raises(SettingsError, match="96"):
            tasks("[[codecs]]\ncodecs = ['jpeg']\nsides = [96]\n")


class TestSettings:
    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("augment = 'none'\nviews = 2", "one view of each image; set views to 0 or 1"),
            ("[[strided]]\nname = 'a'\n[[strided]]\nname = 'a'", "two strided heads are named 'a'"),
            ("[match]\npatience = 2", "match runs no tail, there is no accuracy to stop by: set its patience to 0"),
            ("[[strided]]\nname = 'A b'", "name"),
            ("[[sweep]]\narms = ['aecn']", "aecn"),
            ("[[sweep]]\nbits = [9]", "bits"),
            ("[[sweep]]\nratios = []", "ratios"),
            ("[[sweep]]\nseeds = [-1]", "seeds"),
            ("[[codecs]]\ncodecs = ['gif']", "gif"),
            ("[data]\ntest = 1.0", "test"),
            ("label_smoothing = 1.0", "label_smoothing"),
            ("[prune]\nlearning_rate = 0.0", "learning_rate"),
        ],
    )
    def test_a_bad_value_is_refused_by_its_name(self, tmp_path: Path, text: str, why: str) -> None:
        with pytest.raises(SettingsError, match=why) as caught:
            settings_of(tmp_path, text)
        assert "config.toml" in str(caught.value)

    def test_one_view_without_augmentation_is_fine(self, tmp_path: Path) -> None:
        assert settings_of(tmp_path, "augment = 'none'\nviews = 1").views == 1

    def test_the_shorter_side_cannot_be_below_the_crop(self, tmp_path: Path) -> None:
        spec = backbone_spec("resnet18").input
        assert settings_of(tmp_path, "resize_short = 240").input_spec(spec).resize_short == 240
        assert settings_of(tmp_path, "").input_spec(spec) == spec
        with pytest.raises(SettingsError, match="resize_short 200 is below the 224 pixels"):
            settings_of(tmp_path, "resize_short = 200").input_spec(spec)


class TestLimitedTraining:
    LABELS = np.repeat(np.arange(4), [200, 100, 40, 4])

    def split(self) -> DataSplit:
        return stratified_split(self.LABELS, validation=0.1, test=0.2, seed=0)

    @pytest.mark.parametrize("limit", [1, 24, 60, 200])
    def test_every_category_keeps_its_share_and_one_at_the_least(self, limit: int) -> None:
        whole = self.split()
        limited = limit_training(whole, self.LABELS, limit, 0)
        before = np.bincount(self.LABELS[whole.train], minlength=4)
        after = np.bincount(self.LABELS[limited.train], minlength=4)
        assert after.tolist() == [max(1, round(count * limit / len(whole.train))) for count in before]
        assert abs(len(limited.train) - limit) <= 4
        assert set(limited.train) <= set(whole.train)
        assert np.array_equal(limited.train, np.unique(limited.train)), "sorted, none twice"

    def test_validation_and_test_stay_whole(self) -> None:
        whole = self.split()
        limited = limit_training(whole, self.LABELS, 10, 0)
        assert np.array_equal(limited.validation, whole.validation)
        assert np.array_equal(limited.test, whole.test)

    def test_the_seed_decides_which(self) -> None:
        whole = self.split()
        first, again, other = (limit_training(whole, self.LABELS, 60, seed).train for seed in (0, 0, 1))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    @pytest.mark.parametrize("limit", [0, 240, 10_000])
    def test_no_limit_or_one_that_is_not_reached_changes_nothing(self, limit: int) -> None:
        whole = self.split()
        assert len(whole.train) == 240
        assert limit_training(whole, self.LABELS, limit, 0) is whole
