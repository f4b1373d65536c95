"""Training, validation and test: stratified, seeded, recorded and read back."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aecnn_deploy.errors import RunFormatError, SettingsError, TrainingError
from aecnn_deploy.models.results import write_json
from aecnn_deploy.training.dataset import (
    DataSplit,
    read_split,
    split_record,
    stratified_split,
)
from tests.labelled_folders import empty, load, three_categories, truncate, write_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return three_categories(tmp_path / "photos")


def labels_of(*counts: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.repeat(np.arange(len(counts)), counts)


def test_the_parts_are_disjoint_whole_and_stratified() -> None:
    labels = np.random.default_rng(3).permutation(labels_of(100, 40, 10, 3))
    split = stratified_split(labels, validation=0.1, test=0.2, seed=5)
    everything = np.concatenate([split.train, split.validation, split.test])
    assert np.array_equal(np.sort(everything), np.arange(len(labels)))
    for part, counts in ((split.train, [70, 28, 7, 1]), (split.validation, [10, 4, 1, 1]), (split.test, [20, 8, 2, 1])):
        assert part.dtype == np.int64
        assert np.array_equal(part, np.sort(part))
        assert np.bincount(labels[part]).tolist() == counts


def test_the_same_seed_gives_the_same_split_and_another_another() -> None:
    labels = labels_of(30, 30)
    first, again, other = (stratified_split(labels, validation=0.2, test=0.2, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.test, again.test)
    assert np.array_equal(first.train, again.train)
    assert not np.array_equal(first.test, other.test)


def test_categories_of_one_size_are_shuffled_differently() -> None:
    labels = labels_of(50, 50)
    test = stratified_split(labels, validation=0.2, test=0.2, seed=1).test
    assert not np.array_equal(test[labels[test] == 0], test[labels[test] == 1] - 50)


def test_a_category_keeps_its_parts_when_another_gains_an_image() -> None:
    before = stratified_split(labels_of(20, 30), validation=0.2, test=0.3, seed=9)
    after = stratified_split(labels_of(21, 30), validation=0.2, test=0.3, seed=9)
    for name in ("train", "validation", "test"):
        earlier, later = getattr(before, name), getattr(after, name)
        assert np.array_equal(earlier[earlier >= 20] - 20, later[later >= 21] - 21)


@pytest.mark.parametrize("shares", [(0.0, 0.2), (0.2, 0.0), (0.5, 0.5), (-0.1, 0.2), (float("nan"), 0.2)])
def test_shares_that_leave_a_part_empty_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(SettingsError, match="leave a part empty"):
        stratified_split(labels_of(10, 10), validation=shares[0], test=shares[1], seed=0)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(SettingsError, match="seed -1"):
        stratified_split(labels_of(10, 10), validation=0.1, test=0.2, seed=-1)


@pytest.mark.parametrize(
    ("counts", "shares"), [((9, 2), (0.1, 0.2)), ((9, 0), (0.1, 0.2)), ((90, 4), (0.4, 0.5))], ids=str
)
def test_a_category_with_too_few_images_is_refused_by_name(
    counts: tuple[int, int], shares: tuple[float, float]
) -> None:
    with pytest.raises(TrainingError, match=f"category crab has {counts[1]} images"):
        stratified_split(labels_of(*counts), validation=shares[0], test=shares[1], seed=0, categories=("ant", "crab"))


@pytest.fixture
def recorded(root: Path, tmp_path: Path) -> tuple[Path, DataSplit]:
    photographs = load(root)
    split = stratified_split(photographs.labels, validation=0.2, test=0.2, seed=4, categories=photographs.categories)
    path = tmp_path / "data.json"
    write_json(path, split_record(photographs, split))
    return path, split


def parts(split: DataSplit) -> list[list[int]]:
    return [split.train.tolist(), split.validation.tolist(), split.test.tolist()]


def test_a_recorded_split_is_read_back(root: Path, recorded: tuple[Path, DataSplit]) -> None:
    path, split = recorded
    assert parts(read_split(path, load(root))) == parts(split)
    record = json.loads(path.read_text())
    assert record["categories"] == ["Ant", "cat", "dog"]
    assert record["counts"] == {"train": 6, "validation": 3, "test": 3, "skipped": 0}
    assert sorted(record["train"] + record["validation"] + record["test"]) == list(load(root).files)


def test_a_split_read_back_names_the_same_files_when_images_were_added(
    root: Path, recorded: tuple[Path, DataSplit]
) -> None:
    path, _ = recorded
    shutil.copy(root / "cat/image_0001.jpg", root / "Ant/image_0000.jpg")
    photographs = load(root)
    again = split_record(photographs, read_split(path, photographs))
    assert again == json.loads(path.read_text())


@pytest.mark.parametrize("damage", [Path.unlink, empty])
def test_a_split_is_refused_when_a_photograph_is_missing(
    root: Path, recorded: tuple[Path, DataSplit], damage: Any
) -> None:
    damage(root / "cat/image_0003.jpg")
    with pytest.raises(TrainingError, match=r"the first: cat/image_0003\.jpg"):
        read_split(recorded[0], load(root))


def test_a_split_is_refused_when_the_categories_differ(root: Path, recorded: tuple[Path, DataSplit]) -> None:
    path, _ = recorded
    write_images(root / "bee", 1)
    with pytest.raises(TrainingError, match="the data has besides bee"):
        read_split(path, load(root))
    shutil.rmtree(root / "bee")
    shutil.rmtree(root / "cat")
    with pytest.raises(TrainingError, match="the data lacks cat"):
        read_split(path, load(root))


def test_a_damaged_record_of_a_split_is_refused(root: Path, recorded: tuple[Path, DataSplit]) -> None:
    path, _ = recorded
    photographs = load(root)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"test": record["train"]}))
    with pytest.raises(RunFormatError, match=f"names {record['train'][0]} twice"):
        read_split(path, photographs)
    for damage in (truncate, empty, Path.unlink):
        damage(path)
        with pytest.raises(RunFormatError, match="not the record of a split"):
            read_split(path, photographs)
