"""The Raspberry Pi's camera by picamera2, Raspberry Pi OS's own library."""

import threading
import time
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from aecnn_deploy.errors import SourceError, SourceLostError
from aecnn_deploy.runtimes.frames import MAX_PIXELS
from aecnn_deploy.runtimes.source import SourceImage, SourceSettings, Thinner
from aecnn_deploy.runtimes.video_source import frame_name


class PicameraFeed:
    """A Raspberry Pi camera's frames, of ``width`` x ``height`` pixels; a ``Feed``."""

    live, paced = True, True

    def __init__(
        self, name: str, settings: SourceSettings, *, camera: int, width: int, height: int, fps: float | None
    ) -> None:
        """Open it. Raises SourceError: no picamera2, no such camera; SourceLostError: it is busy."""
        if width * height > MAX_PIXELS:
            raise SourceError(f"{name}: {width}x{height} is over the limit of {MAX_PIXELS} pixels; ask for fewer")
        library = _library()
        if not 0 <= camera < len(library.Picamera2.global_camera_info()):
            raise SourceError(f"there is no camera {name}; list cameras: rpicam-hello --list-cameras")
        self._name, self._settings = name, settings
        try:
            self._camera = library.Picamera2(camera)
        except (RuntimeError, IndexError) as exc:
            raise SourceLostError(
                f"the camera {name} does not open: {_line(exc)}; does another program use it?"
            ) from None
        try:
            # libcamera names formats by their bits in a word: this one's bytes are red, green, blue.
            configuration = self._camera.create_video_configuration(
                main={"size": (width, height), "format": "BGR888"}, controls={"FrameRate": fps} if fps else {}
            )
            self._camera.configure(configuration)
            self._camera.start()
        except (RuntimeError, ValueError) as exc:
            self._camera.close()
            raise SourceError(f"{name} does not start at {width}x{height}: {_line(exc)}") from None

    def close(self) -> None:
        self._camera.close()

    def images(self, stop: threading.Event) -> Iterator[SourceImage]:
        thinner = Thinner(self._settings.fps)
        first_s: float | None = None
        count = 0
        while not stop.is_set():
            request = self._camera.capture_request()
            try:
                captured_s = _captured_s(request.get_metadata().get("SensorTimestamp"))
                count += 1
                first_s = captured_s if first_s is None else first_s
                if not thinner.takes(captured_s):
                    continue
                pixels = request.make_array("main")  # a copy: the buffer goes back to the camera
            finally:
                request.release()
            yield SourceImage(frame_name(self._name, count, captured_s - first_s), pixels, captured_s)


def _library() -> Any:
    try:
        return import_module("picamera2")
    except ImportError:
        raise SourceError(
            "the source picamera: needs Raspberry Pi OS's picamera2: sudo apt install python3-picamera2, and an "
            "environment that sees it: python3 -m venv --system-site-packages"
        ) from None


def _captured_s(sensor_ns: int | None) -> float:
    """The sensor's time by ``time.perf_counter``: it counts the time asleep too, perf_counter does not."""
    now_s = time.perf_counter()
    if sensor_ns is None:
        return now_s
    age_s = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - sensor_ns) / 1e9
    return now_s - age_s if 0 <= age_s < 60 else now_s


def _line(exc: Exception) -> str:
    return str(exc).partition("\n")[0] or type(exc).__name__
