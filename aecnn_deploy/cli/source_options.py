"""What ``run-device`` asks about where its images come from."""

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from aecnn_deploy.cli.console import say

if TYPE_CHECKING:
    from aecnn_deploy.runtimes.source import SourceSettings

SourceOption = Annotated[
    str,
    typer.Option(
        help="A folder, an image or video file, /dev/video0, picamera:, an rtsp:// or http:// URL, "
        "or - for stdin (images, or one path a line)."
    ),
]
FpsOption = Annotated[float | None, typer.Option(help="Take at most this many frames a second of a video or camera.")]
RealtimeOption = Annotated[bool, typer.Option("--realtime", help="Play a video file as if it were a camera.")]
StallOption = Annotated[float, typer.Option(help="Longest wait for a camera's or stream's next frame, seconds.")]
RetryOption = Annotated[
    bool, typer.Option("--source-retry", help="Open a camera or stream again that is gone, until Ctrl-C.")
]
DecodeThreadsOption = Annotated[int, typer.Option(help="Threads of the video decoder; 0 lets FFmpeg choose.")]


def source_settings(
    fps: float | None, realtime: bool, stall_s: float, retry: bool, decode_threads: int
) -> "SourceSettings":
    """The settings that the options ask for. Raises SettingsError: a number is out of its range."""
    from aecnn_deploy.runtimes.source import SourceSettings

    if retry:  # what a run without it would end with is said, while the run goes on
        logging.getLogger("aecnn_deploy.device.source").addHandler(_Said())
    return SourceSettings(fps=fps, realtime=realtime, stall_s=stall_s, retry=retry, decode_threads=decode_threads)


class _Said(logging.Handler):
    """Log records as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())
