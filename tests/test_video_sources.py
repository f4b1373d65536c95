"""Video files and cameras as sources: clips made by PyAV; a real camera where there is one."""

import errno
import io
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import av.error
import numpy as np
import pytest
from PIL import Image

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import ImageError, SourceError, SourceLostError
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.source import Source, SourceImage, SourceSettings, Thinner
from aecnn_deploy.runtimes.sources import open_source
from aecnn_deploy.runtimes.video_source import VideoAddress, camera_failure
from tests.bundles import command, make_bundle, one_line, serving
from tests.clips import SIZE, make_clip, number_of, picture
from tests.stream_servers import number_of_jpeg

SPEC = InputSpec(height=40, width=32, resize_short=48, interpolation="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3)


def opened(source: object, **settings: object) -> Source:
    return open_source(str(source), io.BytesIO(), SourceSettings(**settings))  # type: ignore[arg-type]


def pixels(image: SourceImage) -> np.ndarray:
    assert isinstance(image.content, np.ndarray)
    return image.content


def taken_until_error(source: Source) -> tuple[list[int], str]:
    """The numbers of the frames before the error, and its text."""
    numbers: list[int] = []
    with pytest.raises(SourceError) as caught:
        numbers.extend(number_of(pixels(image)) for image in source)  # keeps those before the error
    assert "\n" not in str(caught.value)
    return numbers, str(caught.value)


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.mkv", "mpeg4"), ("a.ts", "libx264")]
    )
    def test_every_frame_comes_in_order_with_its_time(self, tmp_path: Path, name: str, codec: str) -> None:
        with opened(make_clip(tmp_path / name, codec=codec)) as source:
            assert not source.live
            images = list(source)
        assert [number_of(pixels(image)) for image in images] == list(range(10))
        assert [image.name for image in images[:2]] == [f"{tmp_path / name}#t=0.000", f"{tmp_path / name}#t=0.100"]
        assert pixels(images[0]).shape == (SIZE[1], SIZE[0], 3)
        assert pixels(images[0]).dtype == np.uint8

    def test_a_bare_stream_has_times_by_its_frame_rate(self, tmp_path: Path) -> None:
        names = [image.name.partition("#")[2] for image in opened(make_clip(tmp_path / "a.h264"))]
        assert (len(names), names[0], names[5]) == (10, "t=0.000", "t=0.200")

    def test_a_container_is_known_by_its_first_bytes_or_by_the_word_before_it(self, tmp_path: Path) -> None:
        clip = make_clip(tmp_path / "a.mkv", frames=2)
        assert len(list(opened(clip.rename(tmp_path / "clip")))) == 2
        stream = make_clip(tmp_path / "b.ts", frames=20)
        assert len(list(opened(f"video:{stream.rename(tmp_path / 'stream')}"))) == 20

    def test_motion_jpeg_is_passed_on_undecoded(self, tmp_path: Path) -> None:
        contents = [image.content for image in opened(make_clip(tmp_path / "a.avi", codec="mjpeg"))]
        assert [number_of_jpeg(content) for content in contents] == list(range(10))
        assert [read_frame(content, SPEC).shape for content in contents] == [(40, 32, 3)] * 10

    @pytest.mark.parametrize("codec", ["libx264", "mjpeg"])
    def test_a_turned_video_comes_upright(self, tmp_path: Path, codec: str) -> None:
        for turn in (90, 180, 270):
            clip = make_clip(tmp_path / f"{codec}{turn}.mov", frames=2, codec=codec, rotation=turn)
            expected = np.rot90(picture(0), turn // 90).astype(int)
            for image in list(opened(clip))[:1]:
                assert pixels(image).shape == expected.shape
                assert np.abs(pixels(image) - expected).mean() < 5, turn

    def test_fps_thins_by_the_files_own_times(self, tmp_path: Path) -> None:
        clip = make_clip(tmp_path / "a.mp4", frames=20)
        numbers = {fps: [number_of(pixels(image)) for image in opened(clip, fps=fps)] for fps in (1, 4, 5, 100)}
        assert numbers[1] == [0, 10]
        assert len(numbers[4]) == 8
        assert numbers[5] == list(range(0, 20, 2))
        assert numbers[100] == list(range(20))

    def test_realtime_is_a_camera(self, tmp_path: Path) -> None:
        with opened(make_clip(tmp_path / "a.mp4", fps=20), realtime=True) as source:
            assert source.live
            time.sleep(0.2)  # it begins with its reader
            started_s = time.perf_counter()
            images = list(source)
        assert [number_of(pixels(image)) for image in images] == list(range(10))
        assert time.perf_counter() - started_s >= 0.44
        gaps = np.diff([image.captured_s for image in images])
        np.testing.assert_allclose(gaps, 0.05, atol=1e-6)
        assert images[0].captured_s >= started_s

    def test_close_from_another_thread_wakes_a_realtime_reader(self, tmp_path: Path) -> None:
        source = opened(make_clip(tmp_path / "a.mp4", fps=1), realtime=True)
        images = iter(source)
        next(images)
        source.close()
        started_s = time.monotonic()
        assert list(images) == []
        assert time.monotonic() - started_s < 0.9

    def test_the_pixels_of_a_frame_give_what_its_png_gives(self, tmp_path: Path) -> None:
        image = next(iter(opened(make_clip(tmp_path / "a.mp4", size=(322, 242), rotation=90))))
        png = io.BytesIO()
        Image.fromarray(pixels(image)).save(png, "PNG")
        np.testing.assert_array_equal(read_frame(image.content, SPEC), read_frame(png.getvalue(), SPEC))

    @pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3), (9000, 9000, 3)])
    def test_pixels_of_another_shape_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ImageError, match="pixels"):
            read_frame(np.broadcast_to(np.uint8(0), shape), SPEC)


class TestFaultsOfFiles:
    @pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.avi"])
    def test_a_cut_file_gives_its_frames_and_is_named(self, tmp_path: Path, name: str) -> None:
        clip = make_clip(tmp_path / name, frames=60, options={"movflags": "faststart"} if "mp4" in name else None)
        content = clip.read_bytes()
        clip.write_bytes(content[: len(content) * 3 // 4])
        numbers, text = taken_until_error(opened(clip))
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > 5
        assert name in text

    def test_damage_in_the_middle_is_named_with_its_time(self, tmp_path: Path) -> None:
        clip = make_clip(tmp_path / "a.mkv", frames=60)
        content = bytearray(clip.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 300] = bytes(300)
        clip.write_bytes(content)
        numbers, text = taken_until_error(opened(clip))
        assert numbers == list(range(len(numbers)))
        assert f"damaged at {len(numbers) / 10:.3f} s" in text

    @pytest.mark.parametrize("content", [b"", b"no video" * 500], ids=["empty", "text"])
    def test_what_is_no_video_is_refused_at_once(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.mp4").write_bytes(content)
        with pytest.raises(SourceError, match=r"a\.mp4 is of no kind of video"):
            opened(tmp_path / "a.mp4")

    def test_sound_alone_is_no_video(self, tmp_path: Path) -> None:
        with av.open(str(tmp_path / "a.mkv"), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            frame.rate = 8000
            container.mux(stream.encode(frame))
        with pytest.raises(SourceError, match="holds no video stream"):
            opened(tmp_path / "a.mkv")

    @pytest.mark.parametrize("side", [9_500, 60_000])
    def test_huge_frames_are_refused_before_they_are_decoded(self, tmp_path: Path, side: int) -> None:
        header = f"YUV4MPEG2 W{side} H{side} F25:1 Ip A1:1 C420jpeg\nFRAME\n"
        (tmp_path / "a.y4m").write_bytes(header.encode() + bytes(1000))
        started_s = time.monotonic()
        with pytest.raises(SourceError, match=r"a\.y4m"):
            opened(tmp_path / "a.y4m")
        assert time.monotonic() - started_s < 5

    def test_a_frame_that_declares_more_than_its_container_is_not_decoded(self, tmp_path: Path) -> None:
        clip = make_clip(tmp_path / "a.webm", frames=2, codec="libvpx")
        content = clip.read_bytes()
        at = content.index(b"\x9d\x01\x2a") + 3  # VP8's start code; its size follows
        clip.write_bytes(content[:at] + (16_383).to_bytes(2, "little") * 2 + content[at + 4 :])
        numbers, text = taken_until_error(opened(clip))
        assert numbers == []
        assert "damaged at 0.000 s" in text

    def test_a_playlist_opens_nothing_on_the_network(self, tmp_path: Path) -> None:
        (tmp_path / "a.ts").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n")
        with pytest.raises(SourceError):
            list(opened(tmp_path / "a.ts"))

    def test_without_its_library_the_extra_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        clip = make_clip(tmp_path / "a.mp4", frames=1)
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(ImportError, match=r"aecnn-deploy\[video\]"):
            opened(clip)


def test_a_thinned_camera_keeps_its_rate_though_its_frames_jitter() -> None:
    thinner, noise = Thinner(10.0), np.random.default_rng(0).normal(0, 0.003, 300)
    taken = [at for at in np.arange(300) / 30 + noise if thinner.takes(float(at))]
    assert 98 <= len(taken) <= 101
    assert max(np.diff(taken)) < 0.16


class TestCameras:
    def test_one_that_is_not_there_is_named(self) -> None:
        with pytest.raises(SourceLostError, match="there is no camera /dev/video97"):
            opened("/dev/video97")

    @pytest.mark.parametrize("source", ["/dev/null", "v4l2:/dev/null?width=640&height=480&fps=15&format=mjpeg"])
    def test_a_device_that_captures_nothing_is_named(self, source: str) -> None:
        with pytest.raises(SourceError, match="/dev/null is no device that captures video"):
            opened(source)

    @pytest.mark.parametrize(
        ("number", "remedy", "may_pass"),
        [(errno.EACCES, "group video", False), (errno.EBUSY, "fuser -v /dev/video0", True)],
    )
    def test_what_a_driver_answers_has_its_remedy(self, number: int, remedy: str, may_pass: bool) -> None:
        with pytest.raises(av.error.FFmpegError) as caught:
            av.error.err_check(-number)
        failure = camera_failure("/dev/video0", caught.value)
        assert remedy in str(failure)
        assert isinstance(failure, SourceLostError) == may_pass

    @pytest.mark.camera
    def test_a_camera_gives_fresh_frames(self) -> None:
        camera = os.environ.get("AECNN_CAMERA", "/dev/video0")
        if not Path(camera).exists():
            pytest.skip(f"there is no camera {camera}; name one in AECNN_CAMERA")
        with opened(camera) as source:
            assert source.live
            images = [image for image, _ in zip(source, range(5), strict=False)]
            assert time.perf_counter() - images[-1].captured_s < 2
        assert [read_frame(image.content, SPEC).shape for image in images] == [(40, 32, 3)] * 5

    def test_without_picamera2_its_package_is_named(self) -> None:
        with pytest.raises(SourceError, match=r"apt install python3-picamera2.*--system-site-packages"):
            opened("picamera:")

    def test_a_raspberry_pi_camera_by_a_stand_in_for_its_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """picamera2 runs on a Raspberry Pi alone: this shows what we ask it for, not that the camera does it."""
        library = ModuleType("picamera2")
        library.Picamera2 = StandIn  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "picamera2", library)
        with opened("picamera:0?width=96&height=64&fps=15") as source:
            images = [image for image, _ in zip(source, range(3), strict=False)]
        assert [number_of(pixels(image)) for image in images] == [0, 1, 2]
        assert [image.name.partition(",")[0] for image in images] == ["picamera:0#1", "picamera:0#2", "picamera:0#3"]
        assert 0.4 < time.perf_counter() - images[0].captured_s < 60
        assert StandIn.asked == {"main": {"size": (96, 64), "format": "BGR888"}, "controls": {"FrameRate": 15.0}}
        with pytest.raises(SourceError, match="no camera picamera:1"):
            opened("picamera:1")


class StandIn:
    """What we use of picamera2.Picamera2."""

    asked: dict[str, object]

    def __init__(self, number: int) -> None:
        self.count = -1

    @staticmethod
    def global_camera_info() -> list[dict[str, object]]:
        return [{"Num": 0}]

    def create_video_configuration(self, **asked: object) -> dict[str, object]:
        StandIn.asked = asked
        return asked

    def configure(self, configuration: object) -> None: ...

    def start(self) -> None: ...

    def close(self) -> None: ...

    def capture_request(self) -> "StandIn":
        self.count += 1
        time.sleep(0.01)
        return self

    def get_metadata(self) -> dict[str, int]:
        return {"SensorTimestamp": time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 400_000_000}

    def make_array(self, stream: str) -> np.ndarray:
        assert stream == "main"
        return picture(self.count)

    def release(self) -> None: ...


class TestRunDevice:
    def test_a_clip_is_classified_by_a_real_process_and_its_damage_named(self, tmp_path: Path) -> None:
        make_bundle(tmp_path / "bundle")
        clip = make_clip(tmp_path / "a.mkv", frames=60)
        with serving(tmp_path / "bundle") as edge:
            run = ("run-device", str(tmp_path / "bundle"), "--edge", edge.url, "--source", str(clip))
            done = command(*run, "--fps", "2", "--json")
            assert (done.returncode, done.stderr) == (0, b"")
            images = json.loads(done.stdout)["images"]
            assert [image["source"].partition("#")[2] for image in images[:2]] == ["t=0.000", "t=0.500"]
            assert [image["status"] for image in images] == ["ok"] * 12
            content = clip.read_bytes()
            clip.write_bytes(content[: len(content) // 2])
            done = command(*run)
            assert done.returncode == 1
            assert "the frames before" in one_line(done.stderr)
            assert b"#t=0.500" in done.stdout


def test_an_address_does_not_show_its_password() -> None:
    assert "secret" not in repr(VideoAddress("rtsp", "rtsp://me:secret@camera/", "rtsp://camera/"))
