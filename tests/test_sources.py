"""Where images come from."""

import io
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aecnn_deploy.errors import SettingsError, SourceError
from aecnn_deploy.runtimes.jpeg_stream import JpegSplitter
from aecnn_deploy.runtimes.sources import SourceImage, SourceSettings, open_source
from tests.stream_servers import jpeg, number_of_jpeg

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
        images = iter(open_source("-", stdin))
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


class TestJpegsOnStandardInput:
    def test_each_is_a_frame_before_the_next_one_comes(self) -> None:
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as stdin, os.fdopen(writing, "wb", buffering=0) as camera:
            source = open_source("-", stdin)
            camera.write(jpeg(1))
            assert source.live
            images = iter(source)
            assert number_of_jpeg(next(images).content) == 1
            camera.write(jpeg(2) + jpeg(3)[:100])
            second = next(images)
            assert (second.name, number_of_jpeg(second.content)) == ("-#2", 2)
            camera.write(jpeg(3)[100:])
            assert number_of_jpeg(next(images).content) == 3

    def test_a_camera_program_that_stops_writing_is_named(self) -> None:
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as stdin, os.fdopen(writing, "wb", buffering=0) as camera:
            camera.write(jpeg(1) + jpeg(2)[:50])
            images = iter(open_source("-", stdin, SourceSettings(stall_s=0.2)))
            next(images)
            with pytest.raises(SourceError, match=r"no frame for 0\.2 s"):
                next(images)

    @pytest.mark.parametrize("begins", [b"", b"a.jpg\n", jpeg(1)], ids=["nothing", "paths", "jpegs"])
    def test_close_from_another_thread_ends_a_wait(self, begins: bytes) -> None:
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as stdin, os.fdopen(writing, "wb", buffering=0) as script:
            script.write(begins)
            source = open_source("-", stdin)
            threading.Timer(0.2, source.close).start()
            started_s = time.monotonic()
            assert len(list(source)) == bool(begins)
            assert time.monotonic() - started_s < 5

    def test_an_end_within_a_frame_is_named_after_the_whole_ones(self) -> None:
        images = iter(open_source("-", io.BytesIO(jpeg(1) + jpeg(2) + jpeg(3)[:-10])))
        assert [number_of_jpeg(next(images).content) for _ in range(2)] == [1, 2]
        with pytest.raises(SourceError, match="after 2 whole ones"):
            next(images)

    def test_paths_are_not_live_and_cannot_be_thinned(self) -> None:
        assert not open_source("-", io.BytesIO(b"a.jpg\n")).live
        with pytest.raises(SettingsError, match="--fps"):
            list(open_source("-", io.BytesIO(b"a.jpg\n"), SourceSettings(fps=1)))


class TestJpegSplitter:
    @given(st.lists(st.integers(1, 3000), max_size=30))
    def test_any_chunking_gives_the_same_jpegs(self, sizes: list[int]) -> None:
        stream = b"--x\r\nContent-Length: 9\r\n\r\n".join([b"", jpeg(1), jpeg(2), thumbnailed(3), b""])
        splitter, found = JpegSplitter(), []
        for size in [*sizes, len(stream)]:
            found += splitter.feed(stream[:size])
            stream = stream[size:]
        assert found == [jpeg(1), jpeg(2), thumbnailed(3)]
        assert splitter.rest() == b""

    def test_one_that_breaks_off_does_not_take_the_next_one_with_it(self) -> None:
        whole = jpeg(1)
        found = JpegSplitter().feed(whole[: len(whole) // 2] + jpeg(2) + b"\xff\xd8\xff\xe0\0\0" + jpeg(3))
        assert found[1] == jpeg(2)
        assert found[-1] == jpeg(3)

    def test_an_endless_one_is_refused_at_the_limit(self) -> None:
        splitter = JpegSplitter(limit_bytes=10_000)
        splitter.feed(jpeg(1)[:-2])
        with pytest.raises(SourceError, match="over the limit of 10000 bytes"):
            splitter.feed(b"\x55" * 10_000)

    def test_headers_without_an_end_are_refused(self) -> None:
        splitter = JpegSplitter()
        for _ in range(10):
            assert splitter.feed(b"X-Header: 1\r\n" * 5000) == []
        with pytest.raises(SourceError, match="no JPEG begins"):
            splitter.feed(b"X-Header: 1\r\n" * 50_000)


def thumbnailed(number: int) -> bytes:
    """A JPEG with a whole JPEG in its header, as a camera's preview is."""
    preview = jpeg(0)
    with Image.open(io.BytesIO(jpeg(number))) as image:
        out = io.BytesIO()
        image.save(out, "JPEG", progressive=True, comment=preview[:60_000])
    return out.getvalue()


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        ("{folder}", SourceSettings(fps=1)),
        ("{folder}", SourceSettings(realtime=True)),
        ("{folder}", SourceSettings(retry=True)),
        ("-", SourceSettings(retry=True)),
        ("/dev/video99", SourceSettings(realtime=True)),
        ("v4l2:/dev/video99?width=640", SourceSettings()),
        ("v4l2:/dev/video99?colour=1", SourceSettings()),
        ("v4l2:/dev/video99?width=-1&height=2", SourceSettings()),
        ("picamera:front", SourceSettings()),
        ("http://user:pass/word@host/", SourceSettings()),
        ("rtsp://host:123456/", SourceSettings()),
        ("rtsp://", SourceSettings()),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, source: str, settings: SourceSettings) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(SettingsError) as caught:
        open_source(source.format(folder=tmp_path), NO_STDIN, settings)
    assert "word" not in str(caught.value).partition(" is no URL")[0].replace("password", "")


@pytest.mark.parametrize(
    "given", [{"fps": 0}, {"fps": float("nan")}, {"stall_s": 0}, {"retry_first_s": 60}, {"decode_threads": -1}]
)
def test_settings_out_of_their_range_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(given))):
        SourceSettings(**given)  # type: ignore[arg-type]


def test_a_source_is_read_once_and_close_ends_it(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"x")
    with open_source(str(tmp_path), NO_STDIN) as source:
        images = iter(source)
        before_s = time.perf_counter()
        assert before_s <= next(images).captured_s <= time.perf_counter()
        source.close()
        assert list(images) == []
        with pytest.raises(RuntimeError):
            iter(source)
