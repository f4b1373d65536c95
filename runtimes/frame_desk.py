"""Where every frame of a run is, and what becomes of it: the pipeline's queues and its decisions, under one lock.

No thread runs here. Methods that end in ``_locked`` and those that ``EdgeSessions`` calls want the lock held.
"""

import time
from collections import deque
from collections.abc import Sequence
from itertools import chain
from threading import Condition, Lock

from aecnn_deploy.errors import (
    AecnnError,
    EdgeUnreachableError,
    RequestFailedError,
    SessionRefusedError,
    TimedOutError,
)
from aecnn_deploy.runtimes.device_settings import DeviceSettings
from aecnn_deploy.runtimes.edge_sessions import Route
from aecnn_deploy.runtimes.fallback_log import FallbackLog
from aecnn_deploy.runtimes.frame_failure import LOCAL_CAN_HELP, Failure, failure_of, lost_by
from aecnn_deploy.runtimes.frame_ledger import FrameLedger, Stage
from aecnn_deploy.runtimes.live_variants import LiveVariants
from aecnn_deploy.runtimes.local_model import LocalModel
from aecnn_deploy.runtimes.moving_frame import FrameVariant, MovingFrame, Sent
from aecnn_deploy.runtimes.run_report import ImageReport
from aecnn_deploy.runtimes.tracing import DeviceTracer
from aecnn_deploy.wire import Failed, FailureCode, Result

INTERRUPTED = "the run was ended before this frame was done"

_MOST_UNTOLD = 256  # frames that are done and wait for an older one; capture waits then
_LOCAL_QUEUE = 2
_LOCAL_MARGIN = 1.25  # of the unsplit model's usual time, to be done in time
_LOCAL_SHARE = 0.05  # of the deadline, for waking up and for a processor that is busy with the head


class FrameDesk:
    """Queues, ledger and decisions of one run.

    ``url``: the edge's, for messages. ``variant``: of frames that no other one is chosen for. ``local``: None is no
    fallback. ``latest``: a newer frame takes the place of one that waits for the head. ``lives``: choose variants, by
    the index of the edge; none: there is one variant for all.
    """

    def __init__(
        self,
        settings: DeviceSettings,
        *,
        url: str,
        variant: FrameVariant,
        labels: tuple[str, ...],
        local: LocalModel | None,
        latest: bool,
        tracer: DeviceTracer | None = None,
        lives: Sequence[LiveVariants] = (),
    ) -> None:
        self.lock = Lock()
        self.ledger: FrameLedger[ImageReport] = FrameLedger()
        self.to_head: deque[MovingFrame] = deque()
        self.to_link: deque[MovingFrame] = deque()
        self.again: deque[MovingFrame] = deque()  # were in flight; before all others
        self.to_local: deque[MovingFrame] = deque()
        self._turns = turns = [Condition(self.lock) for _ in range(6)]
        self.capture_turn, self.head_turn, self.link_turn, self.local_turn, self.told_turn, self.watch_turn = turns
        self.captured_all = False  # no frame will be captured any more
        self.stopping = False
        self.closing = False  # threads end
        self.defect: BaseException | None = None
        self.settings = settings
        self._url, self._variant, self._labels = url, variant, labels
        self._local, self._latest, self._tracer, self._lives = local, latest, tracer, lives
        self._one_by_one = settings.in_flight == 1 and not latest
        self._open: dict[int, MovingFrame] = {}
        self._flying: dict[int, MovingFrame] = {}
        self._armed_s = float("-inf")  # when the watch wakes by itself
        self._fallback = FallbackLog()

    # Capture

    def take_latest_locked(self) -> None:
        """From now on a newer frame takes the place of one that waits for the head. Before the first is captured."""
        self._latest, self._one_by_one = True, False

    def wait_to_capture_locked(self) -> bool:
        """Wait until there is room for another frame; False: none is to be captured any more."""
        while not self.stopping:
            room = self._latest or (not self.to_head and not (self._one_by_one and self.ledger.untold))
            if room and self.ledger.untold < _MOST_UNTOLD:
                return True
            self.capture_turn.wait()
        return False

    def capture_locked(self, source: str, captured_s: float) -> MovingFrame:
        """A new frame, which has an outcome sooner or later from now on."""
        deadline_ms = self.settings.deadline_ms
        deadline_s = None if deadline_ms is None else captured_s + deadline_ms / 1e3
        number, alone = self.ledger.capture(), self._one_by_one
        frame = MovingFrame(number, source, captured_s, deadline_s, self._variant, alone=alone)
        self._open[frame.number] = frame
        return frame

    def decoded_locked(self, frame: MovingFrame, now_s: float) -> None:
        """The frame waits for the head; with ``latest`` instead of an older one."""
        if self._ended_locked(frame):
            return
        if self._latest:
            while self.to_head:
                self.settle_locked(
                    old := self.to_head.popleft(),
                    old.failed_report(Failure.DROPPED, "a newer frame came before the head took this one"),
                )
        frame.waits(now_s)
        self.to_head.append(frame)
        self.arm_locked(self._late_s(frame))
        self.head_turn.notify()

    # The ways on

    def headed_locked(self, frame: MovingFrame, now_s: float) -> None:
        """The frame has its planes and waits for the link."""
        if self._ended_locked(frame):
            return
        frame.waits(now_s)
        self.to_link.append(frame)
        self.arm_locked(self._late_s(frame))
        self.link_turn.notify_all()

    def put_back_locked(self, frame: MovingFrame) -> None:
        """What was taken for the link and not sent after all is first in its queue again."""
        if not self._ended_locked(frame):
            frame.waits(time.perf_counter())
            self.again.appendleft(frame)

    def send_locked(self, frame: MovingFrame, sent: Sent) -> None:
        """The frame's request is about to be sent."""
        self.ledger.send(frame.number)
        frame.sent = sent
        if frame.first_sent_s is None:
            frame.first_sent_s = sent.began_s
            frame.give_up_s = sent.began_s + self.settings.timeout_s
            late_s = self._late_s(frame)
            if late_s is not None:
                frame.give_up_s = min(frame.give_up_s, late_s if late_s > sent.began_s else frame.deadline_s or late_s)
        self._flying[frame.number] = frame
        self.arm_locked(frame.give_up_s)

    def room_for_local_locked(self) -> bool:
        """Whether a frame that has no way to the edge may be taken: for the unsplit model there is room."""
        return self._local is None or len(self.to_local) < _LOCAL_QUEUE

    def local_work_s_locked(self) -> float:
        """Seconds of the unsplit model that are waiting for it."""
        return len(self.to_local) * self._local.cost_s if self._local is not None else 0.0

    def no_way_locked(self, frame: MovingFrame, route: Route) -> None:
        """The edge is away: the frame fails at once, or the unsplit model has it."""
        error = route.error
        if isinstance(error, EdgeUnreachableError):
            failure = Failure.UNREACHABLE
            if frame.lost is not None:
                failure, error = lost_by(frame.lost, f"{frame.lost.why}; again: {error.why}")
        elif isinstance(error, SessionRefusedError | RequestFailedError):
            failure = failure_of(error)
        else:
            failure = Failure.REFUSED
        self.fail_locked(frame, error or EdgeUnreachableError(frame.edge_told or self._url, "not connected"), failure)

    def unsent_locked(self, edge: int = 0) -> list[MovingFrame]:
        """Frames whose variant was chosen, and whose message is still to be sent to this edge."""
        open_ = self._open.values()
        return [each for each in open_ if each.to_be_sent and each.edge == edge and each.number not in self._flying]

    def next_for_link_locked(self, edge: int) -> MovingFrame | None:
        """The first of the frames that wait for the link to this edge."""
        return next((frame for frame in chain(self.again, self.to_link) if frame.edge == edge), None)

    def take_for_link_locked(self, frame: MovingFrame) -> None:
        """The frame is taken from the queue where it is; the head may have the next one."""
        (self.again if frame in self.again else self.to_link).remove(frame)
        self.head_turn.notify()

    def advised_local_locked(self, frame: MovingFrame, now_s: float) -> None:
        """The unsplit model has the frame, as a controller advised."""
        frame.local = True
        frame.waits(now_s)
        self.to_local.append(frame)
        self.local_turn.notify()

    def fail_locked(self, frame: MovingFrame, error: AecnnError, failure: Failure | None = None) -> None:
        """The frame has no result of the edge: the unsplit model has it, or that is its outcome."""
        if not self.ledger.is_open(frame.number):
            return
        failure = failure_of(error) if failure is None else failure
        now_s = time.perf_counter()
        if failure not in LOCAL_CAN_HELP or self.stopping or not self.local_in_time_locked(frame, now_s):
            self.settle_locked(frame, frame.failed_report(failure, str(error)))
            return
        if self.ledger.stage(frame.number) is Stage.IN_FLIGHT:
            self._land_locked(frame)
        if frame.first_sent_s is not None:
            frame.away_s = now_s - frame.first_sent_s
        frame.tried = failure, error
        frame.waits(now_s)
        self.to_local.append(frame)
        self.local_turn.notify()

    def local_done_locked(self, frame: MovingFrame, best: tuple[int, float], ran_s: float, now_s: float) -> None:
        """The unsplit model classified the frame: class index and score."""
        if not self.ledger.is_open(frame.number):
            return
        try:
            report = frame.local_report(*best, self._labels, now_s, ran_s=ran_s)
        except RequestFailedError as exc:
            report = frame.failed_report(failure_of(exc), str(exc))
        self.settle_locked(frame, report)

    def local_failed_locked(self, frame: MovingFrame, error: AecnnError) -> None:
        """The unsplit model cannot run the frame either."""
        if self.ledger.is_open(frame.number):
            failure, before = frame.tried or (failure_of(error), "as a controller advised")
            self.settle_locked(frame, frame.failed_report(failure, f"{before}; and the unsplit model here: {error}"))

    def settle_locked(self, frame: MovingFrame, report: ImageReport) -> None:
        """The frame's one outcome. Raises LedgerError: it has one."""
        self.ledger.settle(frame.number, report)
        del self._open[frame.number]
        self._flying.pop(frame.number, None)
        frame.pixels = frame.planes = None
        if self._tracer is not None and self._tracer.active:
            frame.trace(self._tracer, report, time.perf_counter())
        self._fallback.settled(frame, report)
        if self.ledger.next_told() is not None or self.finished_locked():
            self.told_turn.notify()

    # The end

    def stop_locked(self) -> None:
        """Nothing new is begun: what waits has no result, what the edge or a model has may end."""
        if self.stopping:
            return
        self.stopping = self.captured_all = True
        for queue in (self.to_head, self.to_link, self.again, self.to_local):
            while queue:
                self._interrupt_locked(queue.popleft())
        self.notify_all_locked()

    def abandon_locked(self, failure: Failure, why: str) -> None:
        """Every frame without an outcome gets this one, now."""
        self.stop_locked()
        for frame in list(self._open.values()):
            self.settle_locked(frame, frame.failed_report(failure, why))

    def finished_locked(self) -> bool:
        """Whether every frame that will ever be captured has its outcome."""
        return self.captured_all and self.ledger.all_settled

    def notify_all_locked(self) -> None:
        for turn in self._turns:
            turn.notify_all()

    # Time

    def arm_locked(self, due_s: float | None) -> None:
        """Something is to be looked after at ``due_s``."""
        if due_s is not None and due_s < self._armed_s:
            self.watch_turn.notify()

    def watch_until_locked(self, due_s: float | None) -> float | None:
        """When the watch has to look again, ``due_s`` included; None: when it is told."""
        dues = [frame.give_up_s for frame in chain(self._flying.values(), self.again) if frame.give_up_s]
        dues += [late_s for frame in self._waiting() if (late_s := self._late_s(frame)) is not None]
        if due_s is not None:
            dues.append(due_s)
        self._armed_s = min(dues, default=float("inf"))
        return self._armed_s if dues else None

    def overdue_locked(self, now_s: float) -> None:
        """Frames whose time is over have that as their outcome, or the unsplit model has them."""
        for frame in list(self._flying.values()):
            if now_s >= frame.give_up_s:
                self.fail_locked(frame, self._too_late(frame, now_s))
        for queue in (self.to_head, self.to_link, self.again):
            for frame in [frame for frame in queue if self._is_late(frame, now_s)]:
                queue.remove(frame)
                self.fail_locked(frame, self._too_late(frame, now_s))
                self.capture_turn.notify()
                self.head_turn.notify()

    # What EdgeSessions tells

    def on_result(self, sent: Sent, result: Result, now_s: float) -> None:
        frame = sent.frame
        if self._lives:
            self._lives[sent.edge].answered_locked(sent, result, now_s)  # also what comes too late tells of the link
        if not self._is_awaited(sent):
            return  # too late
        try:
            report = frame.split_report(sent, result, self._labels, now_s)
        except RequestFailedError as exc:
            self.fail_locked(frame, exc)
        else:
            self.settle_locked(frame, report)

    def on_failure(self, sent: Sent, failed: Failed, now_s: float) -> None:
        frame = sent.frame
        if not self._is_awaited(sent):
            return
        if failed.code == FailureCode.NO_REFERENCE and not frame.key_frame and not self.stopping:
            frame.key_frame = True
            self._land_locked(frame)
            self.again.append(frame)
            self.link_turn.notify_all()
        else:
            self.fail_locked(frame, RequestFailedError(failed.code, failed.reason, failed.retry_after_s))

    def on_lost(self, sents: list[Sent], error: EdgeUnreachableError) -> None:
        for sent in sents:
            if not self._is_awaited(sent):
                continue
            frame, before = sent.frame, sent.frame.lost
            frame.lost, frame.key_frame = error, True  # differences refer to nothing in a new session
            if before is not None or self.stopping:
                failure, why = lost_by(error, error.why)
                self.fail_locked(frame, why, failure)
            else:
                self._land_locked(frame)
                self.again.append(frame)
        self.link_turn.notify_all()
        self.watch_turn.notify()

    def on_room(self) -> None:
        self.link_turn.notify_all()
        self.head_turn.notify()

    def on_route(self) -> None:
        self.link_turn.notify_all()
        self.head_turn.notify()
        self.watch_turn.notify()

    def on_defect(self, defect: BaseException) -> None:
        """A thread died of a defect of ours: no frame may wait for it."""
        if self.defect is None:
            self.defect = defect
        self.abandon_locked(Failure.INTERNAL, f"a defect of this program: {type(defect).__name__}: {defect}")
        self.notify_all_locked()

    def _is_awaited(self, sent: Sent) -> bool:
        """Whether an answer to ``sent`` is news: the frame has no outcome, and is nowhere else by now."""
        frame = sent.frame
        return frame.sent is sent and frame.number in self._flying

    def _land_locked(self, frame: MovingFrame) -> None:
        self.ledger.return_(frame.number)
        del self._flying[frame.number]

    def _ended_locked(self, frame: MovingFrame) -> bool:
        """Whether the frame goes no further: it has its outcome, or gets it as the run was ended."""
        if self.stopping:
            self._interrupt_locked(frame)
        return self.stopping or not self.ledger.is_open(frame.number)

    def _interrupt_locked(self, frame: MovingFrame) -> None:
        if self.ledger.is_open(frame.number):
            self.settle_locked(frame, frame.failed_report(Failure.INTERRUPTED, INTERRUPTED))

    def _waiting(self) -> "chain[MovingFrame]":
        return chain(self.to_head, self.to_link, self.again)

    def _is_late(self, frame: MovingFrame, now_s: float) -> bool:
        late_s = self._late_s(frame)
        return (late_s is not None and now_s >= late_s) or (frame.first_sent_s is not None and now_s >= frame.give_up_s)

    def _too_late(self, frame: MovingFrame, now_s: float) -> AecnnError:
        timeout_s = self.settings.timeout_s
        if frame.first_sent_s is not None and now_s >= frame.first_sent_s + timeout_s:
            return TimedOutError(frame.edge_told or self._url, f"no answer within {timeout_s:g} s")
        used_ms = (now_s - frame.captured_s) * 1e3
        what = "not sent" if frame.first_sent_s is None else "no answer yet"
        return RequestFailedError(Failure.DEADLINE, f"{what} after {used_ms:.1f} of {self.settings.deadline_ms:g} ms")

    def _late_s(self, frame: MovingFrame) -> float | None:
        """When it is too late for the edge: at the deadline, or as long before as the unsplit model takes."""
        if frame.deadline_s is None or self._local is None:
            return frame.deadline_s
        margin_s = _LOCAL_SHARE * (frame.deadline_s - frame.captured_s)
        late_s = frame.deadline_s - self._local.cost_s * _LOCAL_MARGIN - margin_s
        if frame.choice is not None and not frame.choice.trial and frame.captured_s + frame.choice.promised_s > late_s:
            return frame.deadline_s  # it was chosen as the edge is in time, after the unsplit model would be
        return late_s if late_s > frame.captured_s else frame.deadline_s

    def local_in_time_locked(self, frame: MovingFrame, now_s: float) -> bool:
        """Whether the unsplit model would be done with the frame in time; False: there is none."""
        if self._local is None or frame.pixels is None:
            return False
        return frame.deadline_s is None or now_s + self._local.cost_s <= frame.deadline_s
