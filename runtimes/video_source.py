"""Video by PyAV (FFmpeg's libraries): files, and the feeds of V4L2 cameras, RTSP and video over HTTP."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from aecnn_deploy.errors import SourceError, SourceLostError
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.frames import MAX_PIXELS, Frame
from aecnn_deploy.runtimes.live_source import sleep_until
from aecnn_deploy.runtimes.source import Source, SourceImage, SourceSettings, Thinner

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.error import FFmpegError
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# A playlist in a file or an answer may name other places: only those of its own kind are opened.
_PROTOCOLS = {"file": "file", "http": "http,https,tcp,tls,crypto", "rtsp": "rtsp,rtsps,rtp,tcp,udp,tls,srtp"}
_WHOLE = 0.95  # of a file's stated duration: one that ends before that was cut
_LAST_FRAME_S = 1.0  # and by more than this: the last frame's own time is not known
_MJPEG = "mjpeg"
_MAX_DAMAGED = 1000  # packets of a stream that do not decode, one after the other

Kind = Literal["file", "v4l2", "rtsp", "http"]


@dataclass(frozen=True, slots=True)
class VideoAddress:
    """Where a video is: what FFmpeg opens, and what people are shown of it."""

    kind: Kind
    url: str = field(repr=False)  # may hold a password
    name: str
    options: tuple[tuple[str, str], ...] = ()  # of FFmpeg's demuxer


@dataclass(frozen=True, slots=True)
class VideoImage:
    """A frame: ``time_s`` in the video's own time, and its JPEG or its pixels (H, W, 3), uint8 RGB, upright."""

    time_s: float
    content: bytes | Frame


class Video:
    """An open container's first video stream, read once and from one thread."""

    def __init__(self, address: VideoAddress, settings: SourceSettings) -> None:
        """Open it. Raises SourceError (SourceLostError where trying again may help), MissingExtraError."""
        self._av = require("av", why=f"the source {address.name}")
        self._av.logging.set_level(None)  # errors come as exceptions; FFmpeg's own words may show a password
        self._address, self._settings = address, settings
        self._rate = 25.0  # frames a second, where a file does not say when each is due
        self._damages = 0  # packets running that did not decode
        self._container: InputContainer = self._opened()
        try:
            self._stream = self._video_stream()
            self._rate = float(self._stream.average_rate or self._rate)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @property
    def duration_s(self) -> float | None:
        """What the container says; None: it does not, as of a live stream."""
        duration = self._container.duration
        return duration / self._av.time_base if duration and duration > 0 else None

    def images(self, wanted: Callable[[float], bool]) -> Iterator[VideoImage]:
        """The frames of whose times ``wanted`` says yes; only those are converted.

        MJPEG comes as it is: its reader decodes it at the size that it needs, or drops it undecoded.
        Raises SourceError: a file is damaged; SourceLostError: a live one is gone or silent.
        """
        first_s: float | None = None
        end_s = 0.0
        for number, (time_s, content) in enumerate(self._contents()):
            at_s = time_s if time_s is not None else number / self._rate  # a bare H.264 file has no times
            first_s = at_s if first_s is None else first_s
            end_s = max(end_s, at_s)
            if wanted(at_s):
                yield VideoImage(at_s, content())
        self._check_end(first_s, end_s)

    def _opened(self) -> "InputContainer":
        address, stall_s = self._address, self._settings.stall_s
        options = dict(address.options) | {"max_pixels": str(MAX_PIXELS)}  # also of what is decoded to find out more
        if address.kind != "v4l2":
            options["protocol_whitelist"] = _PROTOCOLS[address.kind]
        try:
            opened: InputContainer = self._av.open(
                address.url,
                format="v4l2" if address.kind == "v4l2" else None,
                options=options,
                metadata_errors="replace",
                timeout=None if address.kind == "file" else (stall_s, stall_s),
            )
        except self._av.error.FFmpegError as exc:
            raise self._open_failure(exc) from None
        return opened

    def _video_stream(self) -> "VideoStream":
        if not self._container.streams.video:
            raise SourceError(f"{self._address.name} holds no video stream")
        stream = self._container.streams.video[0]
        context = stream.codec_context
        if context is None:
            raise SourceError(f"{self._address.name}: this FFmpeg has no decoder for its video; convert it to H.264")
        self._check_size(context.width, context.height)
        context.options = {"max_pixels": str(MAX_PIXELS)}  # a later frame may declare another size
        context.thread_type = "AUTO"
        context.thread_count = 1 if context.name == _MJPEG else self._settings.decode_threads
        return stream

    def _contents(self) -> "Iterator[tuple[float | None, Callable[[], bytes | Frame]]]":
        """Each frame's time, and how to get its content."""
        mjpeg = self._stream.codec_context.name == _MJPEG
        as_it_is = False  # once its first frame has shown that the container turns no frame
        for packet in self._packets():
            if as_it_is:
                if packet.size:  # the last one is empty: it would flush a decoder
                    yield _time_s(packet), partial(bytes, packet)
                continue
            for frame in self._decoded(packet):
                as_it_is = mjpeg and frame.rotation == 0
                yield frame.time, partial(bytes, packet) if as_it_is else partial(_pixels, frame)

    def _packets(self) -> "Iterator[Packet[VideoStream]]":
        try:
            yield from self._container.demux(self._stream)
        except self._av.error.FFmpegError as exc:
            raise self._read_failure(exc) from None

    def _decoded(self, packet: "Packet[VideoStream]") -> "list[VideoFrame]":
        """The packet's frames. What a live stream lost on its way is left out; a file's damage is an error."""
        try:
            frames = packet.decode()
        except self._av.error.FFmpegError as exc:
            self._damaged(packet, _words(exc))
            return []
        whole = [frame for frame in frames if not frame.is_corrupt]
        for frame in whole:
            self._check_size(frame.width, frame.height)
        if len(whole) < len(frames):
            self._damaged(packet, "a frame is corrupt")
        elif whole:
            self._rate = 25.0  # frames a second, where a file does not say when each is due
        self._damages = 0
        return whole

    def _damaged(self, packet: "Packet[VideoStream]", why: str) -> None:
        self._damages += 1
        time_s = _time_s(packet)
        at = f" at {time_s:.3f} s" if time_s is not None else " near its end"
        if self._address.kind == "file":
            raise SourceError(f"{self._address.name} is damaged{at}: {why}; the frames before it were taken")
        if self._damages > _MAX_DAMAGED:
            raise SourceError(f"{self._address.name}: {_MAX_DAMAGED} packets running do not decode: {why}")

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise SourceError(
                f"{self._address.name} has frames of {width}x{height} pixels, over the limit of {MAX_PIXELS} pixels; "
                "make them smaller"
            )

    def _check_end(self, first_s: float | None, end_s: float) -> None:
        """After the last frame. Raises SourceError: a file ends too early; SourceLostError: a live stream ended."""
        name = self._address.name
        if self._address.kind != "file":
            if self.duration_s is None:
                raise SourceLostError(f"{name}: the stream ended")
            return
        if first_s is None:
            raise SourceError(f"{name} holds no frame that decodes")
        duration_s = self._video_duration_s()
        if duration_s is not None and end_s - first_s < min(_WHOLE * duration_s, duration_s - _LAST_FRAME_S):
            raise SourceError(
                f"{name} ends at {end_s - first_s:.3f} s of {duration_s:.3f} s: the file was cut; "
                "the frames before that were taken"
            )

    def _video_duration_s(self) -> float | None:
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        return self.duration_s if len(self._container.streams) == 1 else None  # else it may be the sound's

    def _open_failure(self, exc: "FFmpegError") -> SourceError:
        name, kind = self._address.name, self._address.kind
        if isinstance(exc, self._av.error.ExitError):
            return SourceLostError(f"{name}: no answer for {self._settings.stall_s:g} s")
        if kind == "v4l2":
            return camera_failure(name, exc)
        if kind == "file":
            if isinstance(exc, self._av.error.InvalidDataError | self._av.error.EOFError):
                return SourceError(f"{name} is of no kind of video that FFmpeg knows, or its beginning is damaged")
            return SourceError(f"{name} cannot be read as a video: {_words(exc)}")
        if isinstance(exc, self._av.error.HTTPUnauthorizedError):
            return SourceError(f"{name}: 401 Unauthorized; give a user and password as {kind}://USER:PASSWORD@HOST/…")
        if isinstance(exc, self._av.error.HTTPClientError | self._av.error.ProtocolNotFoundError):
            return SourceError(f"{name}: {_words(exc)}")  # trying again would not help
        if isinstance(exc, self._av.error.InvalidDataError):
            return SourceError(f"{name}: what it sends is no video that FFmpeg knows")
        return SourceLostError(f"{name}: {_words(exc)}")

    def _read_failure(self, exc: "FFmpegError") -> SourceError:
        name = self._address.name
        if isinstance(exc, self._av.error.ExitError):
            return SourceLostError(f"{name}: no frame for {self._settings.stall_s:g} s")
        if self._address.kind == "v4l2":
            return SourceLostError(f"{name}: the camera is gone: {_words(exc)}")
        if self._address.kind == "file":
            return SourceError(f"{name} is damaged: {_words(exc)}; the frames before that were taken")
        return SourceLostError(f"{name}: {_words(exc)}")


class VideoFileSource(Source):
    """A video file's frames, as fast as they are taken. Raises SourceError, MissingExtraError: it does not open."""

    def __init__(self, address: VideoAddress, settings: SourceSettings) -> None:
        super().__init__(address.name)
        self._settings = settings
        self._video = Video(address, settings)

    def close(self) -> None:
        super().close()
        if not self._begun:  # else the reader's to close, when it has stopped
            self._video.close()

    def _images(self) -> Iterator[SourceImage]:
        with self._video as video:
            for image in video.images(Thinner(self._settings.fps).takes):
                if self._closed.is_set():
                    return
                yield SourceImage(_file_name(self.name, image.time_s), image.content)


class VideoFeed:
    """A live video: a camera, a stream, or a file that is played in real time; a ``Feed``."""

    def __init__(self, address: VideoAddress, settings: SourceSettings) -> None:
        """Open it; raises what ``Video`` raises."""
        self._address, self._settings = address, settings
        self._video = Video(address, settings)

    @property
    def live(self) -> bool:
        return self._address.kind == "file" or self._video.duration_s is None

    @property
    def paced(self) -> bool:
        return self._address.kind != "file"

    def close(self) -> None:
        self._video.close()

    def images(self, stop: threading.Event) -> Iterator[SourceImage]:
        thinner = Thinner(self._settings.fps)

        def wanted(time_s: float) -> bool:
            return not stop.is_set() and thinner.takes(time_s)

        images = self._video.images(wanted)
        yield from self._played(images, stop) if self._address.kind == "file" else self._captured(images, stop)

    def _played(self, images: Iterator[VideoImage], stop: threading.Event) -> Iterator[SourceImage]:
        """Each frame at its time after the first one, which counts as its capture, taken up in time or not."""
        origin_s: float | None = None
        for image in images:
            origin_s = time.perf_counter() - image.time_s if origin_s is None else origin_s
            due_s = origin_s + image.time_s
            sleep_until(due_s, stop)
            if stop.is_set():
                return
            yield SourceImage(_file_name(self._address.name, image.time_s), image.content, due_s)

    def _captured(self, images: Iterator[VideoImage], stop: threading.Event) -> Iterator[SourceImage]:
        first_s: float | None = None
        for count, image in enumerate(images, start=1):
            if stop.is_set():
                return
            now_s = time.perf_counter()
            # A V4L2 driver stamps frames with the monotonic clock, which is what perf_counter reads on Linux.
            stamped = self._address.kind == "v4l2" and 0 <= now_s - image.time_s < 60
            captured_s = image.time_s if stamped else now_s
            first_s = captured_s if first_s is None else first_s
            name = frame_name(self._address.name, count, captured_s - first_s)
            yield SourceImage(name, image.content, captured_s)


def frame_name(source: str, count: int, elapsed_s: float) -> str:
    """A live source's frame for a person: its number, from 1, and the seconds since the first one."""
    return f"{source}#{count},t={elapsed_s:.3f}"


def _file_name(source: str, time_s: float) -> str:
    return f"{source}#t={time_s:.3f}"


def _time_s(packet: "Packet[VideoStream]") -> float | None:
    return float(packet.pts * packet.time_base) if packet.pts is not None else None


def _pixels(frame: "VideoFrame") -> Frame:
    """The frame's pixels (H, W, 3), uint8 RGB, upright."""
    pixels = frame.to_ndarray(format="rgb24")
    quarters = round(frame.rotation / 90) % 4  # counterclockwise, as rot90 counts
    return np.ascontiguousarray(np.rot90(pixels, quarters), np.uint8)


def camera_failure(name: str, exc: "FFmpegError") -> SourceError:
    match exc.errno:
        case errno.ENOENT | errno.ENXIO:
            return SourceLostError(f"there is no camera {name}; plug it in, or list cameras: v4l2-ctl --list-devices")
        case errno.EACCES | errno.EPERM:
            return SourceError(
                f"no permission to read the camera {name}; add its user to the group video: "
                "sudo usermod -aG video USER, then log in again"
            )
        case errno.EBUSY:
            return SourceLostError(f"the camera {name} is busy; end the program that reads it: fuser -v {name}")
        case errno.ENOTTY | errno.ENODEV | errno.EINVAL:
            return SourceError(
                f"{name} is no device that captures video, or not in this size, rate or format; "
                f"list what it does: v4l2-ctl -d {name} --list-formats-ext"
            )
        case _:
            return SourceLostError(f"the camera {name} does not open: {_words(exc)}")


def _words(exc: "FFmpegError") -> str:
    """FFmpeg's reason alone: the whole text would repeat the URL, password included."""
    return (exc.strerror or type(exc).__name__).strip()
