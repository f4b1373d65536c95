"""The device's side of a run: ``run_device`` for a source, ``Device`` for one image after the other."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from threading import Event
from types import TracebackType
from typing import Any, BinaryIO, Self

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import AecnnError, RequestFailedError, SettingsError
from aecnn_deploy.runtimes.device_head import DeviceHead, hello_of
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.runtimes.device_pipeline import run_frames
from aecnn_deploy.runtimes.device_settings import DeviceSettings
from aecnn_deploy.runtimes.frame_failure import Failure, failure_of
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.plane_coder import SMALLEST
from aecnn_deploy.runtimes.plane_stream import PlaneStream
from aecnn_deploy.runtimes.run_report import SPLIT, ImageReport, RunReport
from aecnn_deploy.runtimes.source import SourceImage, SourceSettings
from aecnn_deploy.runtimes.sources import open_source
from aecnn_deploy.runtimes.tracing import DeviceTracer, Stage

__all__ = ["SPLIT", "Device", "DeviceSettings", "ImageReport", "RunReport", "run_device", "run_frames"]


class Device:
    """One variant's head and encoder with the link to the edge: a context manager, used from one thread.

    One image at a time, with nothing overlapped and no fallback: what one image costs. Entering it connects, then loads
    the head. Raises EdgeUnreachableError, SessionRefusedError, RunnerError, BundleError: no such variant.
    SettingsError: no head of that precision. CodecError: the coder cannot take these planes, or the edge does not
    decode it. MissingExtraError: the coder's library is not installed.
    """

    def __init__(self, bundle: Bundle, settings: DeviceSettings) -> None:
        self._bundle, self._settings = bundle, settings
        self._head = DeviceHead(bundle, settings)
        self.variant = self._head.variant
        self._tracer = DeviceTracer()
        self._link = EdgeLink(
            settings.edge,
            hello_of(bundle, settings),
            timeout_s=settings.timeout_s,
            limits=settings.limits,
            session_trace=self._tracer.session,
            credentials=settings.credentials,
        )
        self._stream = PlaneStream(
            bundle, self.variant, self._link, coder=settings.coder or SMALLEST, level=settings.zstd_level
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stream.open()
        self._stack.callback(self._link.close)
        try:
            self._stack.enter_context(self._head)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._tracer.close()

    def run(self, image: SourceImage) -> ImageReport:
        """Classify one image; what goes wrong with it stands in the report."""
        started_s, before = time.perf_counter(), self._sent()
        try:
            return self._run(image)
        except AecnnError as exc:
            sent = self._sent() if self._sent() != before else None
            self._tracer.finished(image.name, started_s, time.perf_counter(), (), sent=sent, error=str(exc))
            return ImageReport(image.name, "failed", self.variant.id, error=str(exc), failure=failure_of(exc))

    def _run(self, image: SourceImage) -> ImageReport:
        started_s = time.perf_counter()
        had_to_open = not self._link.is_open
        if had_to_open:  # before the head's work, which would be for nothing
            self._stream.open()
        opened_s = time.perf_counter()
        frame = read_frame(image.content, self._bundle.manifest.input, name=image.name)
        read_s = time.perf_counter()
        planes = self._head.planes(frame)
        head_s = time.perf_counter()
        asked = self._stream.ask(planes, lambda: self._time_left_ms(started_s), may_reconnect=not had_to_open)
        answered_s = time.perf_counter()
        result = asked.reply.result
        if not result.top or result.top[0][0] >= len(self._bundle.manifest.labels):
            raise RequestFailedError(
                Failure.BAD_RESULT, f"the edge names the class {result.top[:1]}, which has no label"
            )
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
            sent=self._sent(),
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
            head=self._head.precision,
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
                "queue": 0.0,
                "round_trip": round(asked.reply.round_trip_ms, 3),
                "wait": round(asked.reply.waited_ms, 3),
                "edge_queue": round(result.queue_ms, 3),
                "edge_decode": round(result.decode_ms, 3),
                "edge_tail": round(result.tail_ms, 3),
            },
        )

    def _sent(self) -> tuple[str, int] | None:
        """The session's trace and the id of its last request; None where it is not traced or nothing was sent."""
        trace, last = self._link.trace, self._link.next_request_id - 1
        return (trace, last) if trace is not None and last else None

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
            raise RequestFailedError(
                Failure.DEADLINE, f"the device alone took {used_ms:.1f} of {deadline_ms:g} ms; not sent"
            )
        return max(1, int(deadline_ms - used_ms))

    def _check_deadline(self, total_ms: float) -> None:
        deadline_ms = self._settings.deadline_ms
        if deadline_ms is not None and total_ms > deadline_ms:
            raise RequestFailedError(Failure.DEADLINE, f"the answer came after {total_ms:.1f} of {deadline_ms:g} ms")


def run_device(
    bundle: Bundle,
    settings: DeviceSettings,
    source: str,
    *,
    stdin: BinaryIO,
    source_settings: SourceSettings | None = None,
    limit: int | None = None,
    on_image: Callable[[ImageReport], None] = lambda _: None,
    stop: Event | None = None,
    keep: bool = True,
) -> RunReport:
    """Run the images of ``source`` (at most ``limit``) through the pipeline; ``on_image`` hears of each, in order.

    ``stop`` and ``keep``, what Ctrl-C does and what is raised: as ``run_frames``. Raises SourceError, too, before the
    edge is asked: there is no such source.
    """
    if limit is not None and limit < 1:
        raise SettingsError(f"limit is {limit}, expected at least 1")
    return run_frames(
        bundle,
        settings,
        open_source(source, stdin, source_settings or SourceSettings()),
        live=None,
        limit=limit,
        on_image=on_image,
        stop=stop,
        keep=keep,
    )
