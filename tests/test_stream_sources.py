"""Streams as sources: real HTTP and RTSP exchanges over loopback, with cameras that stop, vanish and come back."""

import base64
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from aecnn_deploy.errors import SourceError, SourceLostError
from aecnn_deploy.runtimes.source import Source, SourceImage, SourceSettings
from aecnn_deploy.runtimes.sources import open_source
from tests.bundles import command, make_bundle, serving
from tests.clips import make_clip, number_of
from tests.stream_servers import (
    Request,
    http_server,
    jpeg,
    number_of_jpeg,
    rtsp_server,
    unused_port,
    wait_for,
)


def opened(source: str, **settings: object) -> Source:
    return open_source(source, io.BytesIO(), SourceSettings(**settings))  # type: ignore[arg-type]


def taken(images: Iterator[SourceImage], count: int) -> list[int]:
    """The numbers of the next ``count`` pictures."""
    return [
        number_of_jpeg(image.content) if isinstance(image.content, bytes) else number_of(image.content)  # type: ignore[arg-type]
        for image in islice(images, count)
    ]


def failure(source: str, **settings: object) -> SourceError:
    """How reading ``source`` to its end fails."""
    with pytest.raises(SourceError) as caught, opened(source, **settings) as images:
        list(images)
    assert "\n" not in str(caught.value)
    return caught.value


def sends(*parts: bytes, then: str = "close") -> Callable[[Request], None]:
    """A script of an MJPEG server."""

    def script(request: Request) -> None:
        request.begin_mjpeg()
        for part in parts:
            request.part(part)
        if then == "silence":
            request.wait_until_gone()

    return script


class TestMotionJpegOverHttp:
    def test_each_part_is_a_frame_as_it_comes(self) -> None:
        more = threading.Event()

        def script(request: Request) -> None:
            request.begin_mjpeg()
            request.part(jpeg(1))
            assert more.wait(20)
            request.part(jpeg(2))
            request.wait_until_gone()

        with http_server(script) as url, opened(f"{url}/video?token=secret") as source:
            assert source.live
            images = iter(source)
            first = next(images)
            more.set()
            second = next(images)
        assert [number_of_jpeg(first.content), number_of_jpeg(second.content)] == [1, 2]
        assert first.captured_s < second.captured_s <= time.perf_counter()
        assert first.name.startswith(f"{url}/video?…#1,t=0.0")

    def test_a_stream_that_ends_is_named(self) -> None:
        with http_server(sends(jpeg(1), jpeg(2))) as url:
            error = failure(url)
        assert isinstance(error, SourceLostError)
        assert str(error) == f"{url}: the stream ended after 2 frames"

    def test_a_stream_that_stalls_is_named_after_its_limit(self) -> None:
        with http_server(sends(jpeg(1), then="silence")) as url, opened(url, stall_s=0.5) as source:
            images = iter(source)
            next(images)
            started_s = time.monotonic()
            with pytest.raises(SourceLostError, match=r"no frame for 0\.5 s|no answer for 0\.5 s"):
                next(images)
            assert 0.3 < time.monotonic() - started_s < 5

    def test_a_drip_of_bytes_is_a_stall(self) -> None:
        def script(request: Request) -> None:
            request.begin_mjpeg()
            while True:
                request.wfile.write(b"\xff\xd8\xff\xe0")
                time.sleep(0.05)

        with http_server(script) as url:
            assert "no frame for 0.5 s" in str(failure(url, stall_s=0.5))

    def test_an_endless_header_is_refused(self) -> None:
        def script(request: Request) -> None:
            request.wfile.write(b"HTTP/1.0 200 OK\r\n")
            while True:
                request.wfile.write(b"X-More: " + b"x" * 1000 + b"\r\n")

        with http_server(script) as url:
            assert "does not speak HTTP as it should" in str(failure(url))

    def test_a_header_that_drips_is_given_up(self) -> None:
        def script(request: Request) -> None:
            while True:
                request.wfile.write(b"H")
                time.sleep(0.05)

        with http_server(script) as url:
            assert isinstance(failure(url, stall_s=0.5), SourceLostError)

    def test_a_multipart_answer_without_jpegs_is_refused(self) -> None:
        with http_server(sends(*[b"no picture" * 10_000] * 20)) as url:
            assert "no JPEG begins" in str(failure(url))

    def test_fps_thins_it(self) -> None:
        with http_server(sends(*map(jpeg, range(20)))) as url, opened(url, fps=0.1) as source:
            assert taken(iter(source), 1) == [0]
        with http_server(sends(*map(jpeg, range(20)))) as url, opened(url, fps=0.1) as source:
            images = iter(source)
            next(images)
            with pytest.raises(SourceLostError, match="after 20 frames"):
                next(images)

    def test_close_from_another_thread_ends_a_wait(self) -> None:
        with http_server(sends(jpeg(1), then="silence")) as url, opened(url) as source:
            threading.Timer(0.2, source.close).start()
            started_s = time.monotonic()
            assert len(list(source)) == 1
            assert time.monotonic() - started_s < 5


class TestOverHttp:
    @pytest.mark.parametrize(
        ("status", "words", "may_pass"),
        [(401, "401 Unauthorized; give a user", False), (404, "404 Not Found", False), (503, "503 Service", True)],
    )
    def test_a_refusal_is_named(self, status: int, words: str, may_pass: bool) -> None:
        with http_server(lambda request: request.answer(b"no", "text/plain", status)) as url:
            error = failure(f"{url}/video")
        assert words in str(error)
        assert isinstance(error, SourceLostError) == may_pass

    def test_nobody_there_is_named(self) -> None:
        error = failure(f"http://127.0.0.1:{unused_port()}/")
        assert isinstance(error, SourceLostError)
        assert "Connection refused" in str(error)

    def test_a_web_page_is_no_stream(self) -> None:
        with http_server(lambda request: request.answer(b"<html>", "text/html; charset=utf-8")) as url:
            assert "is a web page" in str(failure(url))

    def test_a_password_is_sent_and_never_shown(self) -> None:
        asked = []

        def script(request: Request) -> None:
            asked.append(request.headers.get("Authorization"))
            if asked[-1] is None:
                request.answer(b"", "text/plain", 401, WWW_Authenticate='Basic realm="camera"')
            else:
                request.answer(jpeg(3), "image/jpeg")

        with http_server(script) as url, opened(url.replace("//", "//me:s%2Fcret@") + "/still") as source:
            images = list(source)
            assert not source.live
        assert asked == [None, "Basic " + base64.b64encode(b"me:s/cret").decode()]
        assert [(image.name, number_of_jpeg(image.content)) for image in images] == [(f"{url}/still", 3)]

    def test_a_redirect_to_a_file_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(jpeg(1))
        place = f"file://{tmp_path}/a.jpg"
        with http_server(lambda request: request.answer(b"", "text/plain", 302, Location=place)) as url:
            assert "302" in str(failure(url))

    def test_a_still_picture_is_asked_for_again_with_fps(self) -> None:
        asked: list[float] = []

        def script(request: Request) -> None:
            asked.append(time.monotonic())
            request.answer(jpeg(len(asked)), "image/jpeg")

        with http_server(script) as url, opened(url, fps=20) as source:
            assert source.live
            assert taken(iter(source), 4) == [1, 2, 3, 4]
        assert asked[3] - asked[0] > 0.1

    def test_a_video_file_ends_as_a_file_does(self, tmp_path: Path) -> None:
        content = make_clip(tmp_path / "a.mp4").read_bytes()
        with http_server(lambda request: request.answer(content, "video/mp4")) as url, opened(url) as source:
            assert not source.live
            assert taken(iter(source), 99) == list(range(10))

    def test_a_video_stream_that_ends_is_lost(self, tmp_path: Path) -> None:
        content = make_clip(tmp_path / "a.ts", frames=40).read_bytes()
        with http_server(lambda request: request.answer(content, "video/mp2t")) as url, opened(url) as source:
            images = iter(source)
            assert source.live
            assert taken(images, 40) == list(range(40))
            with pytest.raises(SourceLostError, match="the stream ended"):
                next(images)


class TestRtsp:
    def test_frames_come_in_order(self) -> None:
        with rtsp_server(ending="silence") as url, opened(f"{url}/live") as source:
            assert source.live
            images = iter(source)
            assert taken(images, 15) == list(range(15))
            assert next(images).name.startswith(f"{url}/live#16,t=")

    def test_the_end_is_named(self) -> None:
        with rtsp_server() as url:
            error = failure(f"{url}/live")
        assert isinstance(error, SourceLostError)
        assert str(error) == f"{url}/live: the stream ended"

    def test_a_camera_that_stops_is_named_after_the_limit(self) -> None:
        with rtsp_server(ending="silence") as url:
            assert str(failure(f"{url}/live", stall_s=1.0)) == f"{url}/live: no frame for 1 s"

    def test_a_camera_that_does_not_answer_is_named(self) -> None:
        with http_server(lambda request: request.wait_until_gone()) as url:
            started_s = time.monotonic()
            error = failure(url.replace("http", "rtsp"), stall_s=0.5)
        assert isinstance(error, SourceError)
        assert time.monotonic() - started_s < 5

    def test_a_password_is_sent_and_never_shown(self, caplog: pytest.LogCaptureFixture) -> None:
        played: list[str] = []
        with rtsp_server(login="me:se/cret@", connections=played, ending="silence") as url:
            right = f"{url.replace('//', '//me:se%2Fcret%40@')}/live"
            with opened(right) as source:
                image = next(iter(source))
            wrong = str(failure(f"{url.replace('//', '//me:hunter2@')}/live"))
        assert played == [f"{url}/live"]
        assert image.name.startswith(f"{url}/live#1")
        assert "401 Unauthorized" in wrong
        assert "hunter2" not in wrong + caplog.text

    def test_an_absent_path_and_an_absent_camera_are_named(self) -> None:
        with rtsp_server() as url:
            error = failure(f"{url}/absent")
        assert "404" in str(error)
        assert not isinstance(error, SourceLostError)
        assert "Connection refused" in str(failure(f"{url}/live"))


class TestRetry:
    def test_a_stream_that_vanishes_is_opened_again(self, caplog: pytest.LogCaptureFixture) -> None:
        visits: list[int] = []

        def script(request: Request) -> None:
            visits.append(len(visits))
            if len(visits) == 2:
                request.answer(b"", "text/plain", 503)
            else:
                sends(jpeg(len(visits)))(request)

        with (
            http_server(script) as url,
            caplog.at_level(logging.WARNING, "aecnn_deploy.device.source"),
            opened(url.replace("//", "//me:secret@"), retry=True, retry_first_s=0.05, retry_max_s=0.2) as source,
        ):
            assert taken(iter(source), 3) == [1, 3, 4]
        said = [record.getMessage() for record in caplog.records]
        assert said[0].startswith(f"{url}: the stream ended after 1 frames; trying again in 0.0")
        assert "503 Service Unavailable" in said[1]
        assert "secret" not in caplog.text

    def test_an_rtsp_camera_that_restarts_comes_back(self) -> None:
        with rtsp_server(frames=8) as url, opened(f"{url}/live", retry=True, retry_first_s=0.05) as source:
            assert taken(iter(source), 20) == [*range(8), *range(8), *range(4)]

    def test_one_that_is_not_there_yet_is_waited_for(self) -> None:
        port = unused_port()
        with opened(f"http://127.0.0.1:{port}/", retry=True, retry_first_s=0.05, retry_max_s=0.1) as source:
            images: list[SourceImage] = []
            reader = threading.Thread(target=lambda: images.extend(islice(source, 1)))
            reader.start()
            time.sleep(0.2)
            with http_server(sends(jpeg(5)), port=port):
                wait_for(lambda: bool(images))
            reader.join()
        assert number_of_jpeg(images[0].content) == 5

    def test_what_time_does_not_heal_ends_it(self) -> None:
        with http_server(lambda request: request.answer(b"", "text/plain", 404)) as url:
            assert "404" in str(failure(url, retry=True))

    def test_close_ends_the_wait_for_the_next_try(self) -> None:
        with opened(f"rtsp://127.0.0.1:{unused_port()}/", retry=True, retry_first_s=30) as source:
            threading.Timer(0.2, source.close).start()
            started_s = time.monotonic()
            assert list(source) == []
            assert time.monotonic() - started_s < 5


def test_run_device_reads_a_stream_and_says_how_it_ended(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    with serving(tmp_path / "bundle") as edge, rtsp_server(login="me:secret") as url:
        run = ("run-device", str(tmp_path / "bundle"), "--edge", edge.url, "--policy", "all")
        done = command(*run, "--source", url.replace("//", "//me:secret@") + "/live", "--limit", "5")
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"5 ok, 0 failed" in done.stdout
        done = command(*run, "--source", url.replace("//", "//me:secret@") + "/live", "--source-retry", "--limit", "25")
        assert done.returncode == 0
        assert b"trying again" in done.stderr
        assert b"25 ok, 0 failed" in done.stdout
        assert b"secret" not in done.stdout + done.stderr
        jpegs = b"".join(map(jpeg, range(4)))
        done = command(*run, "--source", "-", stdin=jpegs)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"4 ok, 0 failed" in done.stdout
