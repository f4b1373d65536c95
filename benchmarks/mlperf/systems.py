"""The systems that LoadGen judges: split by the product's device client, full offloading, and the model on the device.

Each takes samples from a queue and answers on threads of its own, so that LoadGen's thread is never held up.
"""

import http.client
import queue
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event, Lock, Semaphore, Thread
from types import MappingProxyType, TracebackType
from typing import Self

import msgspec
import numpy as np

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import AecnnError, SettingsError
from aecnn_deploy.runtimes.device_client import DeviceSettings, ImageReport, run_frames
from aecnn_deploy.runtimes.frames import Frame, read_frame
from aecnn_deploy.runtimes.local_model import LocalModel
from aecnn_deploy.runtimes.source import SourceImage
from benchmarks.link_arms import ImageClient
from benchmarks.mlperf.loadgen import Query
from benchmarks.mlperf.settings import ArmName, JudgeError, SystemSettings

Content = Frame | bytes
OnAnswer = Callable[[int, int], None]  # LoadGen's id, the class's index
OnFailure = Callable[[str], None]  # why, in one line; no more answers come

_START_S = 60.0
_END_S = 10.0
_POLL_S = 0.1


class System(ABC):
    """A system under test: a context manager; entering it starts it. Raises JudgeError: it does not start.

    ``on_answer`` is called for each sample from any thread, ``on_failure`` once if one cannot be answered.
    """

    takes_files = False  # samples are files whatever the settings say

    def __init__(self, bundle: Bundle, settings: SystemSettings, edge_url: str, files: Sequence[Path]) -> None:
        self.bundle, self.settings, self.edge_url = bundle, settings, edge_url
        self.on_answer: OnAnswer = lambda response_id, index: None
        self.on_failure: OnFailure = lambda why: None
        self.answered = self.sent_bytes = 0
        self._files = files
        self._loaded: dict[int, Content] = {}
        self._waiting: queue.SimpleQueue[tuple[int, Content] | None] = queue.SimpleQueue()
        self._lock = Lock()
        self._failure: str | None = None
        self._ready = Semaphore(0)
        self._leaving = Event()
        self._threads = [
            Thread(target=self._guarded, name=f"mlperf-{number}", daemon=True) for number in range(self.workers)
        ]

    @property
    def workers(self) -> int:
        """How many threads answer."""
        return 1

    @abstractmethod
    def answer_all(self) -> None:
        """One thread's work: ``self.ready()`` when it can answer, then ``self.answered_one`` for all of ``taken``.

        Raises an AecnnError, OSError or whatever else: the system fails by it.
        """

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            for _ in range(int(_START_S / _POLL_S)):
                if self._ready.acquire(timeout=_POLL_S) or self._failure:
                    break
            else:
                raise JudgeError(f"the system was not ready within {_START_S:g} s")
            if self._failure:
                raise JudgeError(self._failure)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join(_END_S)

    def load(self, indices: Sequence[int]) -> None:
        """Have these samples in memory, as the settings say. Raises OSError, ImageError, SettingsError."""
        as_file = self.takes_files or self.settings.sample == "file"
        for index in indices:
            content = self._files[index].read_bytes()
            self._loaded[index] = content if as_file else self.decoded(content, self._files[index].name)

    def decoded(self, content: bytes, name: str) -> Frame:
        """What is in memory of an image file, decoded and resized: the model's frame."""
        return read_frame(content, self.bundle.manifest.input, name=name)

    def unload(self, indices: Sequence[int]) -> None:
        for index in indices:  # MultiStream's repeat some, so that queries come out even
            self._loaded.pop(index, None)

    def issue(self, queries: Sequence[Query]) -> None:
        """Begin with these samples, which are loaded."""
        for response_id, index in queries:
            self._waiting.put((response_id, self._loaded[index]))

    def ready(self) -> None:
        self._ready.release()

    def taken(self) -> Iterator[tuple[int, Content]]:
        """Samples for the calling thread, until the end."""
        while (sample := self._waiting.get()) is not None:
            yield sample

    def answered_one(self, response_id: int, index: int, sent_bytes: int) -> None:
        with self._lock:
            self.answered += 1
            self.sent_bytes += sent_bytes
        self.on_answer(response_id, index)

    def _guarded(self) -> None:
        try:
            self.answer_all()
        except AecnnError as exc:
            self._fail(str(exc))
        except BaseException as exc:
            self._fail(f"{type(exc).__name__}: {exc}")
        else:
            if not self._leaving.is_set():
                self._fail("the system ended before the test did")

    def _fail(self, why: str) -> None:
        with self._lock:
            first, self._failure = self._failure is None, self._failure or why
        if first:
            self.on_failure(why)


class SplitSystem(System):
    """Head here, tail on the edge: a device's whole pipeline (``run_frames``), whose source of images is LoadGen."""

    def decoded(self, content: bytes, name: str) -> Frame:
        """A picture for the pipeline, which resizes and crops what it is given: of a size that is only cropped.

        Raises SettingsError: the frame that the pipeline cuts of it would be another one than the file's.
        """
        spec = self.bundle.manifest.input
        square = msgspec.structs.replace(spec, height=spec.resize_short, width=spec.resize_short)
        pixels = read_frame(content, square, name=name)
        if not np.array_equal(read_frame(pixels, spec), read_frame(content, spec)):
            raise SettingsError(f"{name} cannot be resized for this bundle beforehand; take --sample file")
        return pixels

    def answer_all(self) -> None:
        settings = DeviceSettings(
            self.edge_url,
            variant=self.settings.variant,
            head="fp32",
            threads=self.settings.device_threads,
            coder=self.settings.coder,
            in_flight=self.settings.in_flight,
            timeout_s=self.settings.timeout_s,
        )
        run_frames(self.bundle, settings, self._images(), live=False, on_image=self._told, keep=False)

    def _images(self) -> Iterator[SourceImage]:
        self.ready()  # the edge has greeted, and the head is loaded
        for response_id, content in self.taken():
            yield SourceImage(str(response_id), content)

    def _told(self, report: ImageReport) -> None:
        if report.status != "ok" or report.index is None or report.wire_bytes is None:
            raise JudgeError(f"a sample failed: {report.failure}: {report.error}")
        self.answered_one(int(report.source), report.index, report.wire_bytes)


class FullSystem(System):
    """Full offloading: the photograph's file to POST /v1/classify, over a kept connection for each in flight."""

    takes_files = True

    @property
    def workers(self) -> int:
        return self.settings.in_flight

    def answer_all(self) -> None:
        with ImageClient(self.edge_url, timeout_s=self.settings.timeout_s) as client:
            try:
                client.open()
                self.ready()
                for response_id, content in self.taken():
                    assert isinstance(content, bytes)
                    self.answered_one(response_id, client.classify(content), len(content))
            except (OSError, ValueError, http.client.HTTPException) as exc:
                why = f"POST {self.edge_url}/v1/classify: {type(exc).__name__}: {exc}"
                raise JudgeError(f"a sample failed: {why}") from None


class LocalSystem(System):
    """The unsplit model on the device, one frame after the other; nothing is sent."""

    def answer_all(self) -> None:
        threads, spec = self.settings.device_threads, self.bundle.manifest.input
        with LocalModel(self.bundle, DeviceSettings(self.edge_url, threads=threads)) as model:
            self.ready()
            for response_id, content in self.taken():
                frame = read_frame(content, spec) if isinstance(content, bytes) else content
                self.answered_one(response_id, model.best(frame)[0], 0)


SYSTEMS: Mapping[ArmName, type[System]] = MappingProxyType(
    {"split": SplitSystem, "full": FullSystem, "local": LocalSystem}
)
