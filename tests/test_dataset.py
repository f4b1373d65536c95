"""Labelled photographs: what is decoded, and what is refused."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import SourceError
from aecnn_deploy.models.results import write_json
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.training.dataset import (
    load_labelled,
    read_split,
    resolve_data,
    split_record,
    stratified_split,
)
from tests.labelled_folders import SPEC, Told, load, same, three_categories, write_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return three_categories(tmp_path / "photos")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_every_image_of_every_category_is_decoded_as_the_device_decodes_it(root: Path) -> None:
    told = Told()
    photographs = load(root, told=told)
    assert photographs.categories == ("Ant", "cat", "dog")
    assert photographs.files[:4] == (
        "Ant/image_0001.jpg",
        "Ant/image_0002.jpg",
        "Ant/image_0003.jpg",
        "cat/image_0001.jpg",
    )
    assert photographs.labels.dtype == np.int64
    assert photographs.labels.tolist() == [0] * 3 + [1] * 5 + [2] * 4
    assert photographs.frames.shape == (12, 32, 32, 3)
    for index, name in enumerate(photographs.files):
        assert np.array_equal(photographs.frames[index], read_frame(root / name, SPEC))
    assert [steps for _, steps in told.stages] == told.steps == [12]


def test_images_in_folders_of_a_category_belong_to_it(root: Path) -> None:
    write_images(root / "cat/kittens", 2)
    photographs = load(root)
    assert [photographs.labels[photographs.files.index(f"cat/kittens/image_000{n}.jpg")] for n in (1, 2)] == [1, 1]


def test_a_corrupt_image_is_skipped_named_and_leaves_no_gap(root: Path, cache: Path) -> None:
    (root / "cat/image_0002.jpg").write_bytes(b"no image at all")
    clean = [name for name in load(root).files if name.startswith("cat/")]
    assert clean == [f"cat/image_000{n}.jpg" for n in (1, 3, 4, 5)]
    for kept in (None, cache, cache):  # in memory, written, mapped
        told = Told()
        photographs = load(root, kept, told)
        assert len(photographs.skipped) == 1
        assert photographs.skipped[0].startswith("cat/image_0002.jpg does not decode")
        assert len(photographs.frames) == len(photographs.labels) == len(photographs.files) == 11
        for index, name in enumerate(photographs.files):
            assert np.array_equal(photographs.frames[index], read_frame(root / name, SPEC))
        assert [steps for _, steps in told.stages] == told.steps


@pytest.mark.parametrize("content", [None, "notes.txt", "broken.jpg", ".hidden.jpg"])
def test_a_category_without_an_image_is_refused_by_name(root: Path, content: str | None) -> None:
    (root / "bee").mkdir()
    if content is not None:
        (root / "bee" / content).write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"category bee of .*remove the folder or add images"):
        load(root)


def test_the_reason_why_no_image_of_a_category_decodes_is_told(root: Path) -> None:
    (root / "bee").mkdir()
    (root / "bee/broken.jpg").write_bytes(b"")
    with pytest.raises(SourceError, match=r"bee/broken\.jpg does not decode as an image: it is of no known"):
        load(root)


@pytest.mark.parametrize("names", [(), ("cat",)])
def test_fewer_than_two_categories_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    tmp_path.joinpath("photos").mkdir()
    for name in names:
        write_images(tmp_path / "photos" / name, 2)
    write_images(tmp_path / "photos", 2)  # images beside the categories are in none
    with pytest.raises(SourceError, match=f"{len(names)} categories, two are the least"):
        load(tmp_path / "photos")


def test_a_folder_that_cannot_be_read_is_an_error_of_the_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="absent cannot be read"):
        load(tmp_path / "absent")


@pytest.mark.skipif(sys.platform == "darwin", reason="Apple's file system takes no name that is no UTF-8")
def test_a_name_cannot_break_a_line_or_command_a_terminal(root: Path) -> None:
    (root / "cat" / "a\nb\x1b[31m.jpg").write_bytes(b"no picture")
    (reason,) = (text for text in load(root).skipped if "31m" in text)
    assert reason.startswith(r"cat/a\nb\x1b[31m.jpg does not decode")


def test_a_folder_inside_a_category_that_cannot_be_listed_is_not_left_out_silently(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = root / "cat" / "inner"
    write_images(inner, 1)
    scan = os.scandir

    def refuse(path: str) -> object:  # who runs as root may read everything
        if Path(path) == inner:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match="inner cannot be read: Permission denied"):
        load(root)


def test_a_name_that_is_no_text_can_be_recorded_and_read_back(root: Path, tmp_path: Path) -> None:
    os.rename(os.fsencode(root / "cat/image_0001.jpg"), os.fsencode(root) + b"/cat/caf\xe9.jpg")  # noqa: PTH104
    photographs = load(root)
    assert "cat/caf\\xe9.jpg" in photographs.files
    split = stratified_split(photographs.labels, validation=0.2, test=0.2, seed=1)
    write_json(tmp_path / "data.json", split_record(photographs, split))
    assert np.array_equal(read_split(tmp_path / "data.json", photographs).train, split.train)


@pytest.mark.data
def test_caltech101_has_its_101_categories(caltech101: Path) -> None:
    root = resolve_data("caltech101", caltech101.parent, download=False)
    assert root == caltech101
    folders = [path.name for path in root.iterdir() if path.is_dir()]
    assert len({*folders} - {"BACKGROUND_Google"}) == 101


@pytest.mark.data
def test_photographs_of_linked_categories_are_loaded_and_split(caltech101: Path, tmp_path: Path) -> None:
    names = ("wild_cat", "ant", "gerenuk")
    for name in names:
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).symlink_to(caltech101 / name, target_is_directory=True)
    spec = InputSpec(224, 224, 256, "bicubic", SPEC.mean, SPEC.std)
    photographs = load_labelled(tmp_path / "photos", spec, cache=tmp_path / "cache")
    assert photographs.categories == tuple(sorted(names))
    assert photographs.skipped == ()
    counts = [len(list((caltech101 / name).glob("*.jpg"))) for name in sorted(names)]
    assert np.bincount(photographs.labels).tolist() == counts
    split = stratified_split(photographs.labels, validation=0.1, test=0.2, seed=0, categories=photographs.categories)
    assert {*photographs.labels[split.test]} == {*photographs.labels[split.train]} == {0, 1, 2}
    assert same(photographs, load_labelled(tmp_path / "photos", spec, cache=tmp_path / "cache"))
