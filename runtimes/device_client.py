"""The device's side of a run: decode, head, encode, ask the edge, report; one image after the other."""

import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import islice
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import numpy as np

from aecnn_deploy import __version__
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import DEFAULT_LEVEL, coder_names, delta_names
from aecnn_deploy.errors import AecnnError, BundleError, RequestFailedError, SettingsError
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.head_choice import AUTO, check_precision, choose_head
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.plane_stream import SMALLEST, PlaneStream, check_coder
from aecnn_deploy.runtimes.sources import SourceImage, SourceSettings, open_source
from aecnn_deploy.runtimes.tracing import DeviceTracer, Stage
from aecnn_deploy.wire import WIRE_VERSION, Hello, WireLimits

SPLIT = "split"


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """How a device runs. Raises SettingsError: a number is out of its range."""

    edge: str  # ws://HOST:PORT, wss://, http:// or https://
    variant: str | None = None  # None: the bundle's first
    head: str = AUTO  # its precision; or "auto": the faster, as far as it is known
    threads: int = 0  # of the head; 0 takes every core
    spinning: bool = False
    coder: str = SMALLEST  # of the planes; or "auto": the fastest for each frame, or a coder's name
    zstd_level: int = DEFAULT_LEVEL
    deadline_ms: float | None = None  # for each image, from its file to its label
    timeout_s: float = 10.0  # for each wait for the edge
    name: str | None = None  # what the edge's status page calls this device; None: the host's name
    credentials: Credentials = field(default_factory=Credentials)
    limits: WireLimits = field(default_factory=WireLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= 1024:
            raise SettingsError(f"threads is {self.threads}, expected 0 (every core) to 1024")
        check_coder(self.coder)
        check_precision(self.head)
        if self.name is not None and not (self.name.isprintable() and 1 <= len(self.name) <= 64):
            raise SettingsError(f"the name {self.name!r} is not 1 to 64 printable characters; choose another --name")
        if self.deadline_ms is not None and not 0 < self.deadline_ms < 1e9:
            raise SettingsError(f"deadline_ms is {self.deadline_ms}, expected a positive number of milliseconds")


@dataclass(frozen=True, slots=True)
class ImageReport:
    """What became of one image. Milliseconds: ``total`` = ``device`` + ``link`` + ``edge``."""

    source: str
    status: Literal["ok", "failed"]
    variant: str
    error: str | None = None
    path: str = SPLIT
    head: str | None = None  # precision of the head that ran
    coder: str | None = None
    index: int | None = None  # of the best class
    label: str | None = None
    score: float | None = None  # its softmax score
    wire_bytes: int | None = None  # the whole INFER message
    device_ms: float | None = None
    link_ms: float | None = None
    edge_ms: float | None = None
    total_ms: float | None = None
    stages_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunReport:
    """A whole run; ``document()`` is what ``run-device --json`` prints."""

    bundle_id: str
    images: list[ImageReport]
    interrupted: bool
    coders: dict[str, Any] | None = None  # with a coder that was chosen for each frame: how, at the end of the run

    def summary(self) -> dict[str, float | int | None]:
        """Counts, the mean of the bytes and the 50th and 99th percentile of the total, of the images that are ok."""
        ok = [image for image in self.images if image.status == "ok"]
        totals = [image.total_ms for image in ok if image.total_ms is not None]
        sizes = [image.wire_bytes for image in ok if image.wire_bytes is not None]
        return {
            "ok": len(ok),
            "failed": len(self.images) - len(ok),
            "wire_bytes_mean": round(float(np.mean(sizes)), 1) if sizes else None,
            "total_ms_p50": round(float(np.percentile(totals, 50)), 3) if totals else None,
            "total_ms_p99": round(float(np.percentile(totals, 99)), 3) if totals else None,
        }

    def document(self) -> dict[str, Any]:
        return {
            "bundle_id": self.bundle_id,
            "images": [asdict(image) for image in self.images],
            "summary": self.summary(),
            "interrupted": self.interrupted,
            "coder_choice": self.coders,
        }


class Device:
    """One variant's head and encoder with the link to the edge: a context manager, used from one thread.

    Entering it connects, then loads the head. Raises EdgeUnreachableError, SessionRefusedError, RunnerError,
    BundleError: no such variant. SettingsError: no head of that precision. CodecError: the coder cannot take these
    planes, or the edge does not decode it. MissingExtraError: the coder's library is not installed.
    """

    def __init__(self, bundle: Bundle, settings: DeviceSettings) -> None:
        self._bundle, self._settings = bundle, settings
        self.variant = bundle.variant(settings.variant)
        self._precision, file = choose_head(bundle, self.variant, settings.head, threads=settings.threads)
        self._head = OnnxRuntimeRunner(
            bundle.file(file),
            threads=settings.threads,
            spinning=settings.spinning,
            variant=self.variant.id,
        )
        hello = Hello(
            bundle_id=bundle.id,
            wire_versions=[WIRE_VERSION],
            variants=[spec.id for spec in bundle.manifest.variants],
            coders=[*coder_names(), *delta_names()],
            software=f"aecnn-deploy {__version__}",
            device=settings.name or socket.gethostname() or None,
        )
        self._tracer = DeviceTracer()
        self._link = EdgeLink(
            settings.edge,
            hello,
            timeout_s=settings.timeout_s,
            limits=settings.limits,
            session_trace=self._tracer.session,
            credentials=settings.credentials,
        )
        self._stream = PlaneStream(bundle, self.variant, self._link, coder=settings.coder, level=settings.zstd_level)

    def __enter__(self) -> Self:
        self._stream.open()
        try:
            self._head.activate()
            spec = self._bundle.manifest.input
            frame, planes = (spec.height, spec.width, 3), tuple(self.variant.planes)
            if self._head.input_shape != frame or self._head.output_shape != planes:
                raise BundleError(
                    f"{self._bundle.path}: the head of {self.variant.id} takes {self._head.input_shape} and gives "
                    f"{self._head.output_shape}, the manifest says {frame} and {planes}; export the bundle again"
                )
            self._head.infer(np.zeros((1, *frame), self._head.input_dtype))  # its first run is slow: not an image's
        except BaseException:
            self._link.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close()
        self._head.deactivate()
        self._tracer.close()

    def run(self, image: SourceImage) -> ImageReport:
        """Classify one image; what goes wrong with it stands in the report."""
        started_s, before = time.perf_counter(), self._link.last_sent
        try:
            return self._run(image)
        except AecnnError as exc:
            sent = self._link.last_sent if self._link.last_sent != before else None
            self._tracer.finished(image.name, started_s, time.perf_counter(), (), sent=sent, error=str(exc))
            return ImageReport(image.name, "failed", self.variant.id, error=str(exc))

    def _run(self, image: SourceImage) -> ImageReport:
        started_s = time.perf_counter()
        had_to_open = not self._link.is_open
        if had_to_open:  # before the head's work, which would be for nothing
            self._stream.open()
        opened_s = time.perf_counter()
        frame = read_frame(image.content, self._bundle.manifest.input, name=image.name)
        read_s = time.perf_counter()
        planes = self._head.infer(frame[np.newaxis])[0]
        head_s = time.perf_counter()
        asked = self._stream.ask(planes, lambda: self._time_left_ms(started_s), may_reconnect=not had_to_open)
        answered_s = time.perf_counter()
        result = asked.reply.result
        if not result.top or result.top[0][0] >= len(self._bundle.manifest.labels):
            raise RequestFailedError("bad-result", f"the edge names the class {result.top[:1]}, which has no label")
        index, score = result.top[0]
        ended_s = time.perf_counter()
        total_ms = (ended_s - started_s) * 1e3
        self._check_deadline(total_ms)
        self._tracer.finished(
            image.name,
            started_s,
            ended_s,
            (
                Stage("read", opened_s, read_s),
                Stage("head", read_s, head_s),
                Stage("encode", head_s, head_s + asked.encode_ms / 1e3),
                Stage("link", answered_s - asked.reply.round_trip_ms / 1e3, answered_s),
            ),
            sent=self._link.last_sent,
            attributes={
                "aecnn.variant": self.variant.id,
                "aecnn.coder": asked.encoded.coder,
                "aecnn.sent_bytes": asked.reply.wire_bytes,
            },
        )
        edge_ms = min(result.total_ms, asked.reply.round_trip_ms)
        away_ms = asked.away_ms + (opened_s - started_s) * 1e3  # not the device's work
        return ImageReport(
            source=image.name,
            status="ok",
            variant=self.variant.id,
            head=self._precision,
            coder=asked.encoded.coder,
            index=index,
            label=self._bundle.manifest.labels[index],
            score=score,
            wire_bytes=asked.reply.wire_bytes,
            device_ms=round(total_ms - away_ms, 3),
            link_ms=round(away_ms - edge_ms, 3),
            edge_ms=round(edge_ms, 3),
            total_ms=round(total_ms, 3),
            stages_ms={
                "read": round((read_s - opened_s) * 1e3, 3),
                "head": round((head_s - read_s) * 1e3, 3),
                "encode": round(asked.encode_ms, 3),
                "round_trip": round(asked.reply.round_trip_ms, 3),
                "wait": round(asked.reply.waited_ms, 3),
                "edge_queue": round(result.queue_ms, 3),
                "edge_decode": round(result.decode_ms, 3),
                "edge_tail": round(result.tail_ms, 3),
            },
        )

    def coder_costs(self) -> dict[str, Any] | None:
        """What ``--explain`` shows: the link's rate and every coder's expected cost; None where the coder is fixed."""
        return self._stream.explain()

    def _time_left_ms(self, started_s: float) -> int:
        """For the INFER's header: 0 means any time. Raises RequestFailedError: nothing is left."""
        deadline_ms = self._settings.deadline_ms
        if deadline_ms is None:
            return 0
        used_ms = (time.perf_counter() - started_s) * 1e3
        if used_ms >= deadline_ms:
            raise RequestFailedError("deadline", f"the device alone took {used_ms:.1f} of {deadline_ms:g} ms; not sent")
        return max(1, int(deadline_ms - used_ms))

    def _check_deadline(self, total_ms: float) -> None:
        deadline_ms = self._settings.deadline_ms
        if deadline_ms is not None and total_ms > deadline_ms:
            raise RequestFailedError("deadline", f"the answer came after {total_ms:.1f} of {deadline_ms:g} ms")


def run_device(
    bundle: Bundle,
    settings: DeviceSettings,
    source: str,
    *,
    stdin: BinaryIO,
    source_settings: SourceSettings | None = None,
    limit: int | None = None,
    on_image: Callable[[ImageReport], None] = lambda _: None,
) -> RunReport:
    """Run the images of ``source`` (at most ``limit``); ``on_image`` hears of each as it is done.

    Ctrl-C ends the run, and the report holds what was done. Raises, before any image is read: what ``open_source`` and
    ``Device`` raise; later SourceError: the source is damaged or gone.
    """
    if limit is not None and limit < 1:
        raise SettingsError(f"limit is {limit}, expected at least 1")
    done: list[ImageReport] = []
    with (
        open_source(source, stdin, source_settings or SourceSettings()) as images,
        Device(bundle, settings) as device,
    ):
        interrupted = not _run_all(device, islice(images, limit), done, on_image)
        costs = device.coder_costs()
    return RunReport(bundle.id, done, interrupted, costs)


def _run_all(
    device: Device, images: Iterable[SourceImage], done: list[ImageReport], on_image: Callable[[ImageReport], None]
) -> bool:
    """Whether all was done; false after Ctrl-C."""
    try:
        for image in images:
            report = device.run(image)
            done.append(report)
            on_image(report)
    except KeyboardInterrupt:
        return False
    return True
