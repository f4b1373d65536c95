"""Where images come from."""

import io
import os
from pathlib import Path

import pytest

from aecnn_deploy.errors import SourceError
from aecnn_deploy.runtimes.sources import SourceImage, open_source

NO_STDIN = io.BytesIO()


def test_a_folder_gives_its_images_sorted_and_recursively(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "a/a.webp", "notes.txt", "c.jpeg/inner.bmp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = [image.content for image in open_source(str(tmp_path), NO_STDIN)]
    assert found == [tmp_path / name for name in ("a/a.webp", "a/z.png", "b.JPG", "c.jpeg/inner.bmp")]


def test_a_file_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "photo"
    path.write_bytes(b"x")
    assert list(open_source(str(path), NO_STDIN)) == [SourceImage(str(path), path)]


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_source_without_images_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=name):
        open_source(str(tmp_path / name), NO_STDIN)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8\xff\xe0rest",
        b"\x89PNG\r\n\x1a\nrest",
        b"GIF89a\x01\x00\x01\x00",
        b"RIFF\x24\x00\x00\x00WEBP",
        b"P6\n1 1\n255\nabc",
    ],
    ids=["jpeg", "png", "gif", "webp", "ppm"],
)
def test_standard_input_with_an_image_is_one_image(content: bytes) -> None:
    assert list(open_source("-", io.BytesIO(content))) == [SourceImage("-", content)]


def test_standard_input_with_text_is_one_path_a_line() -> None:
    text = "a.jpg\n\n  päth with space.png \r\nlast".encode()
    names = [image.name for image in open_source("-", io.BytesIO(text))]
    assert names == ["a.jpg", "päth with space.png", "last"]


def test_paths_are_taken_as_they_come() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin, os.fdopen(writing, "wb", buffering=0) as script:
        images = open_source("-", stdin)
        script.write(b"first.jpg\n")
        assert next(images).name == "first.jpg"  # the script has not closed its end
        script.write(b"second.jpg\n")
        assert next(images).name == "second.jpg"


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_empty_standard_input_is_refused(content: bytes) -> None:
    with pytest.raises(SourceError, match="standard input"):
        list(open_source("-", io.BytesIO(content)))


def test_a_file_name_that_is_no_utf8_can_be_printed_and_opened(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    (image,) = open_source(str(tmp_path), NO_STDIN)
    image.name.encode()
    assert isinstance(image.content, Path)
    assert image.content.read_bytes() == b"x"
