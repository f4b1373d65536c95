"""Where images come from: one word says it, its scheme or what lies at its path decides."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import parse_qsl, urlsplit

from aecnn_deploy.errors import SettingsError, SourceError
from aecnn_deploy.runtimes.source import Source, SourceImage, SourceSettings, shown
from aecnn_deploy.runtimes.stdin_source import STDIN, StdinSource

if TYPE_CHECKING:
    from aecnn_deploy.runtimes.live_source import LiveSource

__all__ = ["STDIN", "SUFFIXES", "Source", "SourceImage", "SourceSettings", "image_files", "open_source"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_VIDEO_SUFFIXES = frozenset(
    (
        *(".264", ".265", ".3gp", ".asf", ".avi", ".flv", ".h264", ".h265", ".hevc", ".ivf", ".m2ts", ".m4v", ".mjpeg"),
        *(".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm"),
        *(".wmv", ".y4m"),
    )
)
_DEFAULTS = SourceSettings()
_STREAMS = ("rtsp", "rtsps", "http", "https")
_V4L2_OPTIONS = {"width", "height", "fps", "format"}
_PICAMERA_OPTIONS = {"width", "height", "fps"}


def open_source(source: str, stdin: BinaryIO, settings: SourceSettings = _DEFAULTS) -> Source:
    """The images of ``source``, opened: its faults show here, as far as they can.

    ``source`` is a folder (recursive, sorted), an image file, a video file (``video:PATH`` whatever its name),
    ``/dev/videoN`` or ``v4l2:PATH?width=W&height=H&fps=N&format=F``, ``picamera:NUMBER?width=W&height=H&fps=N``,
    an ``rtsp://``, ``rtsps://``, ``http://`` or ``https://`` URL, or ``-`` for ``stdin``. Raises SourceError: it does
    not exist, holds no image, or does not open; SettingsError: it is not understood, or ``settings`` do not go with
    it; MissingExtraError: it is a video, and PyAV is not installed.
    """
    scheme, colon, rest = source.partition(":")
    if source == STDIN:
        _refuse(settings, "standard input", realtime=True, retry=True)
        return StdinSource(stdin, settings)
    if colon and scheme.lower() in _STREAMS:
        return _stream(scheme.lower(), source, settings)
    if colon and scheme in ("v4l2", "picamera"):
        return _camera(scheme, rest, settings)
    path = Path(rest if colon and scheme == "video" else source)
    try:
        mode = path.stat().st_mode
    except OSError as exc:
        if path.is_relative_to("/dev"):
            return _camera("v4l2", source, settings)  # a camera that is not there is named as one
        why = "" if isinstance(exc, FileNotFoundError) else f" ({exc.strerror})"
        raise SourceError(
            f"there is no file or folder {shown(path)}{why}; give a folder, an image or video file, a camera such as "
            "/dev/video0, an rtsp:// or http:// address, or - for stdin"
        ) from None
    except ValueError:  # a NUL in it
        raise SourceError(f"{source!r} is no path") from None
    if stat.S_ISCHR(mode):
        return _camera("v4l2", source, settings)
    if path.suffix.lower() in _VIDEO_SUFFIXES or scheme == "video" or (not stat.S_ISDIR(mode) and _is_video(path)):
        return _video(path, settings)
    _refuse(settings, f"{shown(path)}, which holds images", fps=True, realtime=True, retry=True)
    return ListedSource(shown(path), image_files(path))


def image_files(path: Path) -> list[Path]:
    """``path`` itself, or the images of a folder (recursive, sorted). Raises SourceError: there are none."""
    if not path.is_dir():
        if not path.exists():
            raise SourceError(f"there is no file or folder {shown(path)}; give a folder of images or an image file")
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise SourceError(f"the folder {shown(path)} holds no image; known suffixes are {', '.join(sorted(SUFFIXES))}")
    return files


class ListedSource(Source):
    """Image files, whose pixels are read one by one."""

    def __init__(self, name: str, files: list[Path]) -> None:
        super().__init__(name)
        self._files = files

    def _images(self) -> Iterator[SourceImage]:
        for file in self._files:
            if self._closed.is_set():
                return
            yield SourceImage(shown(file), file)


def _video(path: Path, settings: SourceSettings) -> Source:
    from aecnn_deploy.runtimes.live_source import LiveSource
    from aecnn_deploy.runtimes.video_source import VideoAddress, VideoFeed, VideoFileSource

    _refuse(settings, "a video file", retry=True)
    # With the protocol's name: without it, a file called like a URL would be one to FFmpeg.
    address = VideoAddress("file", f"file:{path}", shown(path))
    if not settings.realtime:
        return VideoFileSource(address, settings)
    return _opened(LiveSource(address.name, lambda: VideoFeed(address, settings), settings))


def _stream(scheme: str, url: str, settings: SourceSettings) -> Source:
    from aecnn_deploy.runtimes.live_source import Feed, LiveSource

    _refuse(settings, "a stream", realtime=True)
    name = _without_secrets(url)
    _check_url(url, name)

    def opener() -> Feed:
        if scheme.startswith("http"):
            from aecnn_deploy.runtimes.http_source import open_http

            return open_http(url, name, settings)
        from aecnn_deploy.runtimes.video_source import VideoAddress, VideoFeed

        # Over TCP: a lost UDP packet is a grey frame. And no 5 s of looking how the stream might be made.
        options = (("rtsp_transport", "tcp"), ("analyzeduration", "1000000"))
        return VideoFeed(VideoAddress("rtsp", url, name, options), settings)

    return _opened(LiveSource(name, opener, settings))


def _camera(scheme: str, rest: str, settings: SourceSettings) -> Source:
    from aecnn_deploy.runtimes.live_source import Feed, LiveSource

    _refuse(settings, "a camera", realtime=True)
    place, _, query = rest.partition("?")
    if scheme == "picamera":
        asked = _camera_options(scheme, query, _PICAMERA_OPTIONS)
        if not (place or "0").isdecimal():
            raise SettingsError(f"picamera:{shown(place)} names no camera; give its number, e.g. picamera:0")
        name = f"picamera:{place or '0'}"

        def opener() -> Feed:
            from aecnn_deploy.runtimes.picamera_source import PicameraFeed

            width, height = int(asked.get("width", "640")), int(asked.get("height", "480"))
            fps = float(asked["fps"]) if "fps" in asked else None
            return PicameraFeed(name, settings, camera=int(place or 0), width=width, height=height, fps=fps)
    else:
        asked = _camera_options(scheme, query, _V4L2_OPTIONS)
        if ("width" in asked) != ("height" in asked):
            raise SettingsError("a camera's width and height are given together, or neither")
        name = shown(place)
        options = {"framerate": asked.get("fps"), "input_format": asked.get("format")}
        if "width" in asked:
            options["video_size"] = f"{asked['width']}x{asked['height']}"

        def opener() -> Feed:
            from aecnn_deploy.runtimes.video_source import VideoAddress, VideoFeed

            given = tuple((key, value) for key, value in options.items() if value is not None)
            return VideoFeed(VideoAddress("v4l2", place, name, given), settings)

    return _opened(LiveSource(name, opener, settings))


def _opened(source: "LiveSource") -> "LiveSource":
    try:
        source.open()
    except BaseException:
        source.close()
        raise
    return source


def _camera_options(scheme: str, query: str, known: set[str]) -> dict[str, str]:
    """What stands behind a camera's question mark. Raises SettingsError: it is not understood."""
    asked = dict(parse_qsl(query, keep_blank_values=True))
    if (query and not asked) or asked.keys() - known:
        raise SettingsError(f"a {scheme} camera has no option {query!r}; known are {', '.join(sorted(known))}")
    for key, value in asked.items():
        fits = value.isalnum() if key == "format" else value.isdecimal() and 0 < int(value) <= 65_535
        if not fits:
            raise SettingsError(f"a camera's {key} is {value!r}; expected e.g. width=640&height=480&fps=15")
    return asked


def _refuse(
    settings: SourceSettings, what: str, *, fps: bool = False, realtime: bool = False, retry: bool = False
) -> None:
    """Raise SettingsError: a setting is given that does not go with ``what``."""
    if fps and settings.fps is not None:
        raise SettingsError(f"--fps goes with videos, cameras and streams, not with {what}")
    if realtime and settings.realtime:
        raise SettingsError(f"--realtime goes with a video file, not with {what}")
    if retry and settings.retry:
        raise SettingsError(f"--source-retry goes with cameras and streams, not with {what}")


def _without_secrets(url: str) -> str:
    """``url`` for a person: no user, no password (even one with a slash in it), no query, which may hold a token."""
    scheme, _, rest = url.partition("://")
    place = rest.rpartition("@")[2]
    bare, question, _ = place.partition("?")
    return shown(f"{scheme}://{bare}{question and '?…'}")


def _check_url(url: str, name: str) -> None:
    """Raise SettingsError: no client could ask for ``url``."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port == 0 or not url.isascii() or not url.isprintable() or " " in url or "@" in parts.path:
        raise SettingsError(
            f"{name} is no URL that can be asked for; expected e.g. rtsp://HOST:554/PATH, with what is neither letter "
            "nor digit in user and password percent-encoded (/ is %2F)"
        )


def _is_video(path: Path) -> bool:
    """Whether a file of another suffix begins as a usual container does."""
    if path.suffix.lower() in SUFFIXES or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return False  # named when it is read
    if head[4:8] == b"ftyp":
        return head[8:12] not in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")  # pictures are made so too
    return head.startswith((b"\x1aE\xdf\xa3", b"OggS", b"FLV\x01", b"YUV4MPEG2", b"DKIF", b"\0\0\x01\xba")) or (
        head.startswith(b"RIFF") and head[8:12] == b"AVI "
    )
