"""Decoded frames that are kept: the same ones, made anew where they are damaged, and never fatal."""

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.training.dataset import (
    LabelledPhotographs,
    load_labelled,
)
from tests.labelled_folders import SPEC, Told, empty, entries, load, same, three_categories, truncate, write_images
from tests.small_files import files_of_at_most


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return three_categories(tmp_path / "photos")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_cached_frames_are_mapped_and_equal_to_decoded_ones(root: Path, cache: Path) -> None:
    told = Told()
    plain, written, mapped = load(root), load(root, cache), load(root, cache, told)
    assert same(plain, written)
    assert same(plain, mapped)
    assert isinstance(written.frames, np.memmap)
    assert isinstance(mapped.frames, np.memmap)
    assert told.has("12 decoded earlier")
    assert [steps for _, steps in told.stages] == told.steps


def test_the_kept_array_is_one_that_numpy_reads(root: Path, cache: Path) -> None:
    (root / "dog/image_0001.jpg").write_bytes(b"")  # so that the count of rows changed after the first header
    photographs = load(root, cache)
    (array,) = entries(cache, ".npy")
    assert np.array_equal(np.load(array), photographs.frames)
    assert photographs.frames.shape == (11, 32, 32, 3)


def test_changing_mapped_frames_leaves_the_cache_as_it_was(root: Path, cache: Path) -> None:
    photographs = load(root, cache)
    before = photographs.frames.copy()
    photographs.frames[:] = 7
    assert np.array_equal(load(root, cache).frames, before)


@pytest.mark.parametrize("change", ["touched", "content", "added", "removed", "renamed", "spec"])
def test_a_changed_data_set_is_decoded_anew(root: Path, cache: Path, change: str) -> None:
    load(root, cache)
    spec = SPEC
    image = root / "cat/image_0001.jpg"
    stat = image.stat()
    if change == "touched":  # of the same size, written a nanosecond later
        os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == "content":  # of the same time
        write_images(root / "cat", 1, seed=1, side=50)
        os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "added":
        shutil.copy2(image, root / "cat/image_0009.jpg")
    elif change == "removed":
        image.unlink()
    elif change == "renamed":
        image.rename(root / "dog/image_0009.jpg")
    else:
        spec = InputSpec(32, 32, 32, "bicubic", SPEC.mean, SPEC.std)
    told = Told()
    again = load_labelled(root, spec, cache=cache, progress=told)
    assert not told.has("decoded earlier")
    assert same(again, load_labelled(root, spec, cache=None))
    assert len(entries(cache, ".npy")) == len(entries(cache, ".json")) == 2


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _garble(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def _reverse_names(path: Path) -> None:
    entry = json.loads(path.read_text())
    path.write_text(json.dumps(entry | {"names": entry["names"][::-1]}))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".npy", truncate),
        (".npy", _lengthen),
        (".npy", _garble),
        (".npy", empty),
        (".npy", Path.unlink),
        (".json", truncate),
        (".json", _garble),
        (".json", empty),
        (".json", _reverse_names),
    ],
)
def test_a_damaged_cache_is_made_anew_with_a_note(root: Path, cache: Path, suffix: str, damage: Any) -> None:
    expected = load(root, cache)
    frames = expected.frames.copy()
    (path,) = entries(cache, suffix)
    damage(path)
    told = Told()
    again = load(root, cache, told)
    if suffix == ".npy" and damage is Path.unlink:
        assert told.has("decoded earlier") is False
    else:
        assert told.has("damaged and made anew")
    assert np.array_equal(again.frames, frames)
    assert again.files == expected.files
    mended = Told()
    assert np.array_equal(load(root, cache, mended).frames, frames)
    assert mended.has("decoded earlier")


@pytest.mark.parametrize("size_bytes", [20_000, 128 + 12 * 32 * 32 * 3 - 1], ids=["half-way", "in the last frame"])
def test_a_disk_that_refuses_half_way_costs_the_cache_and_not_the_work(
    root: Path, cache: Path, size_bytes: int
) -> None:
    told = Told()
    with files_of_at_most(size_bytes):
        photographs = load(root, cache, told)
    assert told.has(str(cache), "cannot be used", "stay in memory")
    assert same(photographs, load(root))
    assert entries(cache, ".npy") == entries(cache, ".json") == []


def test_frames_that_do_not_fit_the_free_space_are_not_begun(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(root)._replace(free=12 * 32 * 32 * 3 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    told = Told()
    photographs = load(root, cache, told)
    assert told.has("36864 bytes are needed and 36863 are free")
    assert [stage for stage in told.stages if stage[0] == "read photographs"] == [("read photographs", 12)]
    assert same(photographs, load(root))


def test_a_cache_that_cannot_be_a_folder_is_not_fatal(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = Told()
    assert same(load(root, tmp_path / "file/cache", told), load(root))
    assert told.has("cannot be used")


def test_an_interrupted_decoding_leaves_no_entry(root: Path, cache: Path) -> None:
    class Interrupting(Told):
        def step(self, note: str = "") -> None:
            super().step(note)
            if self.steps[-1] == 6:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(root, cache, Interrupting())
    assert entries(cache, ".npy") == entries(cache, ".json") == []
    assert same(load(root, cache), load(root))


def test_what_a_killed_process_left_is_overwritten(root: Path, cache: Path) -> None:
    load(root, cache)
    (array,) = entries(cache, ".npy")
    (entry,) = entries(cache, ".json")
    array.rename(array.with_name(f".{array.name}"))
    entry.unlink()
    assert same(load(root, cache), load(root))
    assert [path.name for path in entries(cache, ".npy")] == [array.name]


def test_tasks_that_start_together_decode_once(root: Path, cache: Path) -> None:
    waiting = threading.Event()
    results: list[LabelledPhotographs] = []
    second = Told()

    class First(Told):
        def step(self, note: str = "") -> None:
            super().step(note)
            if self.steps[-1] == 1:
                other.start()
                assert waiting.wait(20)

    class Second(Told):
        def step(self, note: str = "") -> None:
            super().step(note)
            second.notes.append(note)
            waiting.set()

    other = threading.Thread(target=lambda: results.append(load(root, cache, Second())))
    first = load(root, cache, First())
    other.join(20)
    assert second.has("another process decodes")
    assert second.has("12 decoded earlier")
    assert same(results[0], first)
