"""One frame on its way through the pipeline: its data, its times, and the report that becomes of them."""

from dataclasses import dataclass
from typing import Any

from aecnn_deploy.codec import Planes
from aecnn_deploy.errors import AecnnError, EdgeUnreachableError, RequestFailedError
from aecnn_deploy.planning.live_choice import Choice
from aecnn_deploy.runtimes.frame_failure import Failure
from aecnn_deploy.runtimes.frames import Frame
from aecnn_deploy.runtimes.run_report import LOCAL, SPLIT, ImageReport
from aecnn_deploy.runtimes.tracing import DeviceTracer, Stage
from aecnn_deploy.wire import Result


@dataclass(frozen=True, slots=True)
class FrameVariant:
    """What a frame's head is of. ``index``: of the variant in the manifest, and so in HELLO.variants."""

    id: str
    index: int
    precision: str


@dataclass(slots=True, eq=False)
class Sent:
    """A request of one session: which frame, and what is known of the message."""

    frame: "MovingFrame"
    planes: Planes
    coder: str  # that was chosen
    sent_coder: str  # that the payload has: raw where coding does not make it smaller
    wire_bytes: int
    began_s: float
    variant: int = 0  # index in the manifest
    edge: int = 0  # whose session it is of
    ids: tuple[str, int] | None = None  # the trace of its session and its request id, where it is traced


@dataclass(slots=True, eq=False)
class MovingFrame:
    """A captured frame. Times are of ``time.perf_counter``; only the stage that has it touches it without the lock."""

    number: int
    source: str
    captured_s: float
    deadline_s: float | None
    variant: FrameVariant
    edge: int = 0  # that it goes to: the index among the run's edges
    edge_told: str | None = None  # its address for the report, where there are several
    advised: bool | None = None  # a controller said where it goes; None: there is none, or its turn never came
    unadvised: str | None = None  # why its advice was not followed: a word of ``controller_advice``
    choice: Choice | None = None  # how the variant was chosen, where it is for each frame
    told_choice: dict[str, Any] | None = None  # the same for the report
    alone: bool = False  # no other frame is under way: a hand-over to another thread is no waiting
    pixels: Frame | None = None  # (height, width, 3); kept as long as the unsplit model may need it
    planes: Planes | None = None
    read_s: float = 0.0
    head_s: float = 0.0
    encode_s: float = 0.0
    decoded_s: float = 0.0  # when reading, head and encoding were done
    headed_s: float = 0.0
    encoded_s: float = 0.0
    queue_s: float = 0.0  # waited for a stage that was busy with another frame
    waits_since_s: float = 0.0
    key_frame: bool = False  # must be coded as a frame of its own
    sent: Sent | None = None  # the request that is in flight, or was
    first_sent_s: float | None = None
    give_up_s: float = 0.0  # when an answer comes too late
    lost: EdgeUnreachableError | None = None  # what its connection ended by
    tried: tuple[Failure, AecnnError] | None = None  # why the unsplit model has it
    local: bool = False  # the unsplit model has it as a controller advised
    away_s: float = 0.0  # spent on an edge that gave no answer, before the unsplit model had it

    def chosen(self, variant: FrameVariant, choice: Choice) -> None:
        """Which variant it goes by from now on."""
        self.variant, self.choice = variant, choice

    @property
    def to_be_sent(self) -> bool:
        """Whether a variant was chosen for it, and the unsplit model does not have it."""
        return self.choice is not None and self.choice.forecast is not None and self.tried is None and not self.local

    def waits(self, now_s: float) -> None:
        """It is put into a queue."""
        self.waits_since_s = now_s

    def taken(self, now_s: float) -> None:
        """Its turn has come."""
        if not self.alone:
            self.queue_s += max(0.0, now_s - self.waits_since_s)

    def trace(self, tracer: DeviceTracer, report: ImageReport, now_s: float) -> None:
        """It has its outcome: its spans, as far as it came."""
        times = (
            ("read", self.decoded_s - self.read_s, self.decoded_s),
            ("head", self.headed_s - self.head_s, self.headed_s),
            ("encode", self.encoded_s - self.encode_s, self.encoded_s),
            ("link", self.sent.began_s if self.sent else 0.0, now_s if self.sent and report.path == SPLIT else 0.0),
        )
        attributes: dict[str, str | int] = {"aecnn.variant": report.variant, "aecnn.path": report.path}
        if report.coder is not None and report.wire_bytes is not None:
            attributes |= {"aecnn.coder": report.coder, "aecnn.sent_bytes": report.wire_bytes}
        tracer.finished(
            self.source,
            self.captured_s,
            now_s,
            [Stage(name, began_s, ended_s) for name, began_s, ended_s in times if ended_s],
            sent=self.sent.ids if self.sent else None,
            attributes=attributes,
            error=report.error,
        )

    def time_left_ms(self, deadline_ms: float | None, now_s: float) -> int:
        """For the INFER's header: 0 means any time. Raises RequestFailedError: nothing is left."""
        if self.deadline_s is None or deadline_ms is None:
            return 0
        if now_s >= self.deadline_s:
            used_ms = (now_s - self.captured_s) * 1e3
            raise RequestFailedError(
                Failure.DEADLINE, f"the device alone took {used_ms:.1f} of {deadline_ms:g} ms; not sent"
            )
        return max(1, int((self.deadline_s - now_s) * 1e3))

    def failed_report(self, failure: Failure, why: str) -> ImageReport:
        """It has no result."""
        return ImageReport(
            self.source,
            "failed",
            self.variant.id,
            why,
            failure,
            choice=self.told_choice,
            edge=self.edge_told,
            advised=self.advised,
            unadvised=self.unadvised,
        )

    def split_report(self, sent: Sent, result: Result, labels: tuple[str, ...], now_s: float) -> ImageReport:
        """The edge answered at ``now_s``. Raises RequestFailedError: with no class of ours, or after the deadline."""
        if not result.top or result.top[0][0] >= len(labels):
            raise RequestFailedError(
                Failure.BAD_RESULT, f"the edge names the class {result.top[:1]}, which has no label"
            )
        total_ms = (now_s - self.captured_s) * 1e3
        if self.deadline_s is not None and now_s > self.deadline_s:
            deadline_ms = (self.deadline_s - self.captured_s) * 1e3
            raise RequestFailedError(Failure.DEADLINE, f"the answer came after {total_ms:.1f} of {deadline_ms:g} ms")
        assert self.first_sent_s is not None
        index, score = result.top[0]
        round_trip_ms = (now_s - sent.began_s) * 1e3
        away_ms = (now_s - self.first_sent_s) * 1e3  # connecting again included
        edge_ms = min(result.total_ms, round_trip_ms)
        queue_ms = self.queue_s * 1e3
        return ImageReport(
            source=self.source,
            status="ok",
            variant=self.variant.id,
            choice=self.told_choice,
            edge=self.edge_told,
            advised=self.advised,
            unadvised=self.unadvised,
            head=self.variant.precision,
            coder=sent.sent_coder,
            index=index,
            label=labels[index],
            score=score,
            wire_bytes=sent.wire_bytes,
            device_ms=round(total_ms - away_ms - queue_ms, 3),
            link_ms=round(away_ms - edge_ms, 3),
            edge_ms=round(edge_ms, 3),
            total_ms=round(total_ms, 3),
            stages_ms={
                "read": round(self.read_s * 1e3, 3),
                "head": round(self.head_s * 1e3, 3),
                "encode": round(self.encode_s * 1e3, 3),
                "queue": round(queue_ms, 3),
                "round_trip": round(round_trip_ms, 3),
                "wait": round(round_trip_ms, 3),
                "edge_queue": round(result.queue_ms, 3),
                "edge_decode": round(result.decode_ms, 3),
                "edge_tail": round(result.tail_ms, 3),
            },
        )

    def local_report(
        self, index: int, score: float, labels: tuple[str, ...], now_s: float, *, ran_s: float
    ) -> ImageReport:
        """The unsplit model is done at ``now_s``, after ``ran_s``. Raises RequestFailedError: after the deadline."""
        total_ms = (now_s - self.captured_s) * 1e3
        if self.deadline_s is not None and now_s > self.deadline_s:
            deadline_ms = (self.deadline_s - self.captured_s) * 1e3
            raise RequestFailedError(
                Failure.DEADLINE, f"the unsplit model here was done after {total_ms:.1f} of {deadline_ms:g} ms"
            )
        queue_ms, link_ms = self.queue_s * 1e3, self.away_s * 1e3
        return ImageReport(
            source=self.source,
            status="ok",
            variant=self.variant.id,
            choice=self.told_choice,
            advised=self.advised,
            unadvised=self.unadvised,
            path=LOCAL,
            fallback=self.tried[0] if self.tried is not None else None,
            index=index,
            label=labels[index],
            score=score,
            device_ms=round(total_ms - queue_ms - link_ms, 3),
            link_ms=round(link_ms, 3),
            edge_ms=0.0,
            total_ms=round(total_ms, 3),
            stages_ms={
                "read": round(self.read_s * 1e3, 3),
                "head": round(self.head_s * 1e3, 3),
                "encode": round(self.encode_s * 1e3, 3),
                "queue": round(queue_ms, 3),
                "local": round(ran_s * 1e3, 3),
            },
        )
