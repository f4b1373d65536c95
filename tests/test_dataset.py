"""Labelled photographs: where they are found, how they are decoded and kept, and how they are split."""

import functools
import hashlib
import http.server
import json
import os
import shutil
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import RunFormatError, SettingsError, SourceError, TrainingError
from aecnn_deploy.models.results import write_json
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.training.dataset import (
    DataSplit,
    LabelledPhotographs,
    default_cache,
    default_data,
    load_labelled,
    read_split,
    resolve_data,
    split_record,
    stratified_split,
)
from aecnn_deploy.training.progress import SilentProgress
from tests.small_files import files_of_at_most

SPEC = InputSpec(32, 32, 36, "bicubic", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))


class Told(SilentProgress):
    """What a caller is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.notes: list[str] = []
        self.steps: list[int] = []

    def stage(self, title: str, steps: int) -> None:
        self.stages.append((title, steps))
        self.steps.append(0)

    def step(self, note: str = "") -> None:
        self.steps[-1] += 1
        self.notes.append(note)

    def has(self, *words: str) -> bool:
        return any(all(word in note for word in words) for note in self.notes)


def write_images(folder: Path, count: int, seed: int = 0, side: int = 40) -> list[Path]:
    """``count`` JPEG files of noise on one colour each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *folder.name.encode()])
    files = [folder / f"image_{index:04}.jpg" for index in range(1, count + 1)]
    for file in files:
        pixels = rng.integers(0, 200, 3) + rng.integers(0, 56, (side, side, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    return files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three categories of 5, 4 and 3 images, with what else lies in such folders."""
    folder = tmp_path / "photos"
    for name, count in (("dog", 4), ("cat", 5), ("Ant", 3)):
        write_images(folder / name, count)
    (folder / "README.txt").write_text("no category")
    (folder / "cat/notes.txt").write_text("no image")
    (folder / "cat/._image_0001.jpg").write_bytes(b"what a Mac leaves")
    write_images(folder / ".thumbnails", 2)
    write_images(folder / "dog/.hidden", 1)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(root: Path, cache: Path | None = None, told: Told | None = None) -> LabelledPhotographs:
    return load_labelled(root, SPEC, cache=cache, progress=told or Told())


def entries(cache: Path, suffix: str) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.name.endswith(suffix))


def same(left: LabelledPhotographs, right: LabelledPhotographs) -> bool:
    return (
        np.array_equal(left.frames, right.frames)
        and np.array_equal(left.labels, right.labels)
        and (left.categories, left.files, left.skipped) == (right.categories, right.files, right.skipped)
    )


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
def test_a_name_that_is_no_text_can_be_recorded_and_read_back(root: Path, tmp_path: Path) -> None:
    os.rename(os.fsencode(root / "cat/image_0001.jpg"), os.fsencode(root) + b"/cat/caf\xe9.jpg")  # noqa: PTH104
    photographs = load(root)
    assert "cat/caf\\xe9.jpg" in photographs.files
    split = stratified_split(photographs.labels, validation=0.2, test=0.2, seed=1)
    write_json(tmp_path / "data.json", split_record(photographs, split))
    assert np.array_equal(read_split(tmp_path / "data.json", photographs).train, split.train)


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


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _garble(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _reverse_names(path: Path) -> None:
    entry = json.loads(path.read_text())
    path.write_text(json.dumps(entry | {"names": entry["names"][::-1]}))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".npy", _truncate),
        (".npy", _lengthen),
        (".npy", _garble),
        (".npy", _empty),
        (".npy", Path.unlink),
        (".json", _truncate),
        (".json", _garble),
        (".json", _empty),
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


@pytest.mark.parametrize(
    "layout", ["caltech101", "caltech101/101_ObjectCategories", "caltech-101/101_ObjectCategories"]
)
def test_caltech101_is_found_by_name_in_every_layout(tmp_path: Path, layout: str) -> None:
    for name in ("ant", "crab"):
        write_images(tmp_path / layout / name, 1)
    (tmp_path / layout / "../Annotations").mkdir()
    assert resolve_data("caltech101", tmp_path, download=False) == tmp_path / layout


@pytest.mark.parametrize("name", ["caltech101", "101_ObjectCategories"])
def test_a_data_folder_may_be_caltech101_itself(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for category in ("ant", "crab"):
        write_images(tmp_path / name / category, 1)
    assert resolve_data("caltech101", tmp_path / name, download=False) == tmp_path / name
    monkeypatch.chdir(tmp_path / name)
    assert resolve_data("caltech101", Path(), download=False).samefile(tmp_path / name)


def test_the_environment_says_where_data_sets_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for category in ("ant", "crab"):
        write_images(tmp_path / "caltech101" / category, 1)
    monkeypatch.setenv("AECNN_DATA", str(tmp_path))
    assert resolve_data("caltech101", None, download=False) == tmp_path / "caltech101"
    monkeypatch.setenv("AECNN_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert default_data() == Path("/there/aecnn-deploy/data")
    assert default_cache() == Path("/there/aecnn-deploy/frames")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path("~/.cache/aecnn-deploy/frames").expanduser()


def test_a_path_is_a_path_even_when_it_ends_in_the_name_of_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for category in ("ant", "crab"):
        write_images(tmp_path / "here/caltech101" / category, 1)
        write_images(tmp_path / "there/caltech101" / category, 1)
    monkeypatch.chdir(tmp_path / "here")
    assert resolve_data("./caltech101", tmp_path / "there").samefile(tmp_path / "here/caltech101")
    assert resolve_data("caltech101", tmp_path / "there", download=False) == tmp_path / "there/caltech101"
    assert resolve_data(str(tmp_path / "here/caltech101"), None) == tmp_path / "here/caltech101"


def test_a_path_to_torchvision_s_folder_leads_to_its_categories(tmp_path: Path) -> None:
    write_images(tmp_path / "101_ObjectCategories/ant", 1)
    (tmp_path / "Annotations").mkdir()
    assert resolve_data(str(tmp_path), None) == tmp_path / "101_ObjectCategories"


@pytest.mark.parametrize("data", ["absent", "cifar10"])
def test_an_unknown_data_set_is_refused_with_what_can_be_given(tmp_path: Path, data: str) -> None:
    with pytest.raises(SourceError, match=f"no folder .*{data}; .*caltech101"):
        resolve_data(str(tmp_path / data), None)


def test_clutter_is_no_category_of_caltech101_but_may_be_one_of_other_data(tmp_path: Path) -> None:
    for name in ("BACKGROUND_Google", "background", "clutter", "ant", "crab"):
        write_images(tmp_path / "caltech101" / name, 1)
    assert load(tmp_path / "caltech101").categories == ("ant", "crab")
    (tmp_path / "caltech101").rename(tmp_path / "mine")
    assert load(tmp_path / "mine").categories == ("ant", "background", "clutter", "crab")


def test_a_download_that_fails_says_how_to_get_the_data_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SourceError, match=r"cannot be downloaded .*mzrjq-6wc02.*101_ObjectCategories") as caught:
        resolve_data("caltech101", tmp_path / "data")
    assert str(tmp_path / "data/caltech101") in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_without_a_download_a_missing_data_set_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"is not under .*caltech-101\.zip"):
        resolve_data("caltech101", tmp_path, download=False)


def test_a_folder_in_the_place_of_the_data_set_is_refused_before_a_download(tmp_path: Path) -> None:
    (tmp_path / "caltech101/ant").mkdir(parents=True)
    with pytest.raises(SourceError, match="exists but holds no categories"):
        resolve_data("caltech101", tmp_path)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: the tests' output is for failures."""


def _archive(folder: Path) -> Path:
    """A small archive, packed as the real one: a zip that holds a tar of the categories."""
    for name in ("BACKGROUND_Google", "ant", "crab"):
        write_images(folder / "101_ObjectCategories" / name, 2)
    (folder / "caltech-101").mkdir()
    with tarfile.open(folder / "caltech-101/101_ObjectCategories.tar.gz", "w:gz") as tar:
        tar.add(folder / "101_ObjectCategories", "101_ObjectCategories")
    with zipfile.ZipFile(folder / "caltech-101.zip", "w") as packed:
        packed.write(folder / "caltech-101/101_ObjectCategories.tar.gz", "caltech-101/101_ObjectCategories.tar.gz")
    return folder / "caltech-101.zip"


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut short"])
def test_the_library_s_download_is_moved_into_place_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    from torchvision.datasets import caltech
    from torchvision.datasets.utils import download_and_extract_archive

    archive = _archive(tmp_path / "made")
    expected = hashlib.md5(archive.read_bytes()).hexdigest()
    if not whole:
        _truncate(archive)

    def from_here(url: str, download_root: str, filename: str, md5: str) -> None:
        """The library's own function with another address and checksum."""
        here = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        download_and_extract_archive(here, download_root=download_root, filename=filename, md5=expected)

    monkeypatch.setattr(caltech, "download_and_extract_archive", from_here)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    data = tmp_path / "data"
    handler = functools.partial(Quiet, directory=archive.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            if whole:
                assert resolve_data("caltech101", data) == data / "caltech101/101_ObjectCategories"
            else:
                with pytest.raises(SourceError, match=r"cannot be downloaded \(File not found or corrupted"):
                    resolve_data("caltech101", data)
        finally:
            server.shutdown()
            thread.join()
    if whole:
        assert [path.name for path in data.iterdir()] == ["caltech101"]
        assert load(resolve_data("caltech101", data, download=False)).categories == ("ant", "crab")
    else:
        assert list(data.iterdir()) == []


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


@pytest.mark.parametrize("damage", [Path.unlink, _empty])
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
    for damage in (_truncate, _empty, Path.unlink):
        damage(path)
        with pytest.raises(RunFormatError, match="not the record of a split"):
            read_split(path, photographs)


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
