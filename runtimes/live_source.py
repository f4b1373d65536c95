"""Live sources: a thread of its own reads a camera or a stream, so that a read that hangs can be given up."""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from aecnn_deploy.errors import SourceError, SourceLostError
from aecnn_deploy.runtimes.source import Source, SourceImage, SourceSettings

logger = logging.getLogger("aecnn_deploy.device.source")

# Frames that wait to be taken. While they wait the camera's own buffers fill up, and it drops.
_DEPTH = 2


class Feed(Protocol):
    """An open camera or stream; only its reader's thread calls it."""

    @property
    def live(self) -> bool:
        """Whether it goes on without us; False: it can be read at any speed, and ends."""

    @property
    def paced(self) -> bool:
        """Whether frames must come within ``stall_s``."""

    def images(self, stop: threading.Event) -> Iterator[SourceImage]:
        """Its images until its end, or soon after ``stop``. Raises SourceError, SourceLostError."""

    def close(self) -> None: ...


Opener = Callable[[], Feed]
"""Opens a camera or stream, and may take long. Raises SourceError; SourceLostError where trying again may help."""


class LiveSource(Source):
    """A camera or stream that ``opener`` opens, read by a thread of its own.

    ``open`` waits until it is open. A frame that does not come within ``stall_s`` ends the source with
    SourceLostError, as does its vanishing; with ``retry`` it is opened again instead, after a wait that doubles.
    """

    def __init__(self, name: str, opener: Opener, settings: SourceSettings) -> None:
        super().__init__(name)
        self._opener, self._settings = opener, settings
        self._reader: _Reader | None = None
        self._first_failure: SourceLostError | None = None  # of ``open``, for the first round of ``_images``

    @property
    def live(self) -> bool:
        return self._reader is None or self._reader.live

    def open(self) -> None:
        """Open it. Raises SourceError; with ``retry`` not for what may go away by itself."""
        try:
            self._reader = self._opened()
        except SourceLostError as exc:
            if not self._settings.retry:
                raise
            self._first_failure = exc

    def close(self) -> None:
        super().close()
        reader = self._reader
        if reader is not None:
            reader.stop()

    def _opened(self) -> "_Reader":
        reader = _Reader(self.name, self._opener)
        self._reader = reader  # so that ``close`` finds it
        reader.wait_open(self._settings.stall_s)
        return reader

    def _images(self) -> Iterator[SourceImage]:
        wait_s = self._settings.retry_first_s
        failure = self._first_failure
        while not self._closed.is_set():
            try:
                if failure is not None:
                    raise failure
                assert self._reader is not None, "open it first"
                for image in self._reader.images(self._settings.stall_s):
                    wait_s = self._settings.retry_first_s
                    yield image
                return
            except SourceLostError as exc:
                if self._closed.is_set():
                    return
                if not self._settings.retry:
                    raise
                self._pause(wait_s, exc)
            wait_s = min(2 * wait_s, self._settings.retry_max_s)
            failure = self._reopen()

    def _pause(self, wait_s: float, why: SourceLostError) -> None:
        pause_s = wait_s * random.uniform(0.5, 1.0)  # many devices lose one camera at the same moment
        logger.warning("%s; trying again in %.1f s", why, pause_s)
        self._closed.wait(pause_s)

    def _reopen(self) -> SourceLostError | None:
        """Open it again; why that did not work, if trying once more may help."""
        if self._reader is not None and not self._reader.wait_ended(self._settings.retry_max_s):
            raise SourceError(f"{self.name}: a read of it hangs and cannot be ended; start the command again")
        if self._closed.is_set():
            return None
        try:
            self._opened()
        except SourceLostError as exc:
            return exc
        return None


class _Reader:
    """One opening of a feed: its thread, and the few frames that wait to be taken."""

    def __init__(self, name: str, opener: Opener) -> None:
        self._name, self._opener = name, opener
        self._changed = threading.Condition()
        self._waiting: deque[SourceImage] = deque()
        self._open = self._ended = False
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._go = threading.Event()
        self.live = self._paced = True
        # A daemon: what hangs in a driver must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=f"source {name}", daemon=True)
        self._thread.start()

    def wait_open(self, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._ended or self._stop.is_set(), timeout_s)
            if self._failure is not None:
                raise self._failure
            opened = self._open or self._stop.is_set()
        if not opened:
            self.stop()
            raise SourceLostError(f"{self._name}: it does not open within {timeout_s:g} s")

    def images(self, stall_s: float) -> Iterator[SourceImage]:
        """The frames as they come. Raises SourceLostError: none comes for ``stall_s``; and what the feed raises."""
        self._go.set()
        while (image := self._next(stall_s if self._paced else None)) is not None:
            yield image

    def stop(self) -> None:
        """Wake whoever waits for a frame, and end the thread as soon as its read returns."""
        self._stop.set()
        self._go.set()
        with self._changed:
            self._changed.notify_all()

    def wait_ended(self, timeout_s: float) -> bool:
        """Whether the thread is done, after at most ``timeout_s``."""
        self.stop()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _next(self, stall_s: float | None) -> SourceImage | None:
        with self._changed:
            came = self._changed.wait_for(lambda: self._waiting or self._ended or self._stop.is_set(), stall_s)
            if self._stop.is_set():
                return None
            if self._waiting:
                image = self._waiting.popleft()
                self._changed.notify_all()
                return image
            if self._failure is not None:
                raise self._failure
        if not came:
            self.stop()
            raise SourceLostError(f"{self._name}: no frame for {stall_s:g} s")
        return None

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            self._read()
        except BaseException as exc:  # the consumer's to raise: nobody sees what a thread raises
            failure = exc
        with self._changed:
            self._failure, self._ended = failure, True
            self._changed.notify_all()

    def _read(self) -> None:
        feed = self._opener()
        try:
            with self._changed:
                self.live, self._paced = feed.live, feed.paced
                self._open = True
                self._changed.notify_all()
            self._go.wait()  # a file that plays in real time begins with its first reader
            for image in feed.images(self._stop):
                with self._changed:
                    self._changed.wait_for(lambda: len(self._waiting) < _DEPTH or self._stop.is_set())
                    if self._stop.is_set():
                        return
                    self._waiting.append(image)
                    self._changed.notify_all()
        finally:
            feed.close()


def sleep_until(at_s: float, stop: threading.Event) -> None:
    """Sleep until ``at_s`` of ``time.perf_counter``, or until ``stop``."""
    while (left_s := at_s - time.perf_counter()) > 0 and not stop.wait(min(left_s, 1.0)):
        pass
