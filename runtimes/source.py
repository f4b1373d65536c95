"""What every source of images is: read once, closable from another thread, and told from others by ``live``."""

import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.frames import Frame


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image: its name for a person, and where its pixels are.

    ``content``: an image file, the bytes of one (any that Pillow reads), or pixels (H, W, 3), uint8 RGB, upright.
    ``captured_s``: by ``time.perf_counter``, when it was captured; of a file, when it was taken up.
    """

    name: str
    content: Path | bytes | Frame
    captured_s: float = field(default_factory=time.perf_counter, compare=False)


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """How a source is read. Raises SettingsError: a number is out of its range."""

    fps: float | None = None  # at most this many frames a second of a video or camera; None: all
    realtime: bool = False  # a video file is paced by its timestamps, as if it were a camera
    stall_s: float = 10.0  # longest wait for a live source: to open it, and for each of its frames
    retry: bool = False  # open a live source again that is gone
    retry_first_s: float = 0.5  # wait before the first try; doubled each time, less up to half by chance
    retry_max_s: float = 30.0
    decode_threads: int = 1  # of the video decoder; 0 lets FFmpeg choose

    def __post_init__(self) -> None:
        if self.fps is not None and not 0.001 <= self.fps <= 1000:
            raise SettingsError(f"fps is {self.fps}, expected 0.001 to 1000 frames a second")
        if not 0 < self.stall_s <= 3600:
            raise SettingsError(f"stall_s is {self.stall_s}, expected a positive number of seconds up to 3600")
        if not 0 < self.retry_first_s <= self.retry_max_s <= 3600:
            raise SettingsError(
                f"retry_first_s is {self.retry_first_s} and retry_max_s {self.retry_max_s}, "
                "expected 0 < retry_first_s <= retry_max_s <= 3600"
            )
        if not 0 <= self.decode_threads <= 64:
            raise SettingsError(f"decode_threads is {self.decode_threads}, expected 0 (FFmpeg's choice) to 64")


class Source(ABC):
    """Images, one after the other: iterate over it once. A context manager; leaving it closes it."""

    def __init__(self, name: str) -> None:
        self.name = name  # for a person, without credentials
        self._closed = threading.Event()
        self._begun = False

    @property
    def live(self) -> bool:
        """Whether images are lost when nobody takes them in time: a camera's, a stream's. Not of files."""
        return False

    def __iter__(self) -> Iterator[SourceImage]:
        """The images, until the end or ``close``. Raises SourceError: no more can be had, though it is not the end."""
        if self._begun:
            raise RuntimeError(f"{self.name} was read before; open it again")
        self._begun = True
        return self._images()

    @abstractmethod
    def _images(self) -> Iterator[SourceImage]: ...

    def close(self) -> None:
        """End it, from any thread: a waiting reader gets no more images. Again does nothing."""
        self._closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Thinner:
    """Chooses at most ``fps`` images a second by their times; None: all."""

    _EARLY_S = 0.002  # a frame that is due a moment later counts as due: times are rounded, and cameras jitter

    def __init__(self, fps: float | None) -> None:
        self._interval_s = 1 / fps if fps else 0.0
        self._due_s: float | None = None

    def takes(self, at_s: float) -> bool:
        """Whether the image of time ``at_s`` is one of them. Times that jump back begin anew."""
        interval_s = self._interval_s
        if not interval_s:
            return True
        if self._due_s is None or at_s < self._due_s - 2 * interval_s or at_s >= self._due_s + interval_s:
            self._due_s = at_s + interval_s  # the first one, or times that jumped
            return True
        if at_s < self._due_s - self._EARLY_S:
            return False
        self._due_s += interval_s  # and not from at_s, or the rate would be the next one that divides the camera's
        return True


def shown(path: Path | str) -> str:
    """``path`` as text that can be printed: a file name may hold bytes that are no UTF-8."""
    return printable(os.fsencode(path).decode(errors="replace"))


def printable(text: str) -> str:
    """``text`` on one line, without what a terminal obeys: a file name may hold line breaks and escape sequences."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], text)
