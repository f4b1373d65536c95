"""Where a data set is found by its name or path, and how it is downloaded."""

import functools
import hashlib
import http.server
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from aecnn_deploy.errors import SourceError
from aecnn_deploy.training.dataset import (
    default_cache,
    default_data,
    resolve_data,
)
from tests.labelled_folders import load, truncate, write_images


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


@pytest.mark.parametrize("data", ["absent", "cifar10", "x" * 300])
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
        truncate(archive)

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
