"""The pipeline's decisions without threads and sockets: in any order of events no frame is lost and none ends twice."""

import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import EdgeUnreachableError, ImageError, LinkLostError, SessionRefusedError, TimedOutError
from aecnn_deploy.runtimes.device_settings import DeviceSettings
from aecnn_deploy.runtimes.edge_sessions import Route, Way
from aecnn_deploy.runtimes.frame_desk import FrameDesk
from aecnn_deploy.runtimes.frame_failure import Failure
from aecnn_deploy.runtimes.local_model import LocalModel
from aecnn_deploy.runtimes.moving_frame import FrameVariant, MovingFrame, Sent
from aecnn_deploy.wire import Failed, FailureCode
from tests.bundles import LABELS, make_bundle
from tests.device_runs import result

URL = "ws://edge"
ERRORS = (
    EdgeUnreachableError(URL, "away"),
    LinkLostError(URL, "cut"),
    TimedOutError(URL, "late"),
    SessionRefusedError("bundle-mismatch", "another one"),
)
PIXELS = np.zeros((8, 8, 3), np.uint8)
PLANES = np.zeros((1, 2, 2), np.uint8)


@cache
def tiny() -> Bundle:
    folder = Path(tempfile.mkdtemp()) / "bundle"
    make_bundle(folder)
    return open_bundle(folder)


class DeskMachine(RuleBasedStateMachine):
    """Plays the stages, the edge and the clock; one frame at a time is in the hands of each stage."""

    @initialize(fallback=st.booleans(), deadline_ms=st.sampled_from([None, 50.0, 1e6]), latest=st.booleans())
    def begin(self, fallback: bool, deadline_ms: float | None, latest: bool) -> None:
        settings = DeviceSettings(URL, deadline_ms=deadline_ms, fallback="local" if fallback else "none")
        self.desk = FrameDesk(
            settings,
            url=URL,
            variant=FrameVariant("v", 0, "fp32"),
            labels=LABELS,
            local=LocalModel(tiny(), settings) if fallback else None,
            latest=latest,
        )
        self.hands: dict[str, MovingFrame] = {}  # of a stage
        self.late: list[Sent] = []  # whose session is over, or that were answered: what comes now is too late
        self.sents: list[Sent] = []  # in flight, as a session knows it
        self.told: list[tuple[int, str]] = []
        self.steps = 0

    def has(self, stage: str) -> bool:
        return stage in self.hands

    @precondition(lambda self: not self.has("capture") and not self.desk.captured_all)
    @rule()
    def capture(self) -> None:
        with self.desk.lock:
            self.hands["capture"] = self.desk.capture_locked("frame", time.perf_counter())

    @precondition(lambda self: self.has("capture"))
    @rule(good=st.booleans())
    def decode(self, good: bool) -> None:
        frame = self.hands.pop("capture")
        with self.desk.lock:
            if good:
                frame.pixels = PIXELS
                self.desk.decoded_locked(frame, time.perf_counter())
            else:
                self.desk.fail_locked(frame, ImageError("frame", "no image"))

    @precondition(lambda self: self.desk.to_head and not self.has("head"))
    @rule()
    def take_for_head(self) -> None:
        self.hands["head"] = self.desk.to_head.popleft()

    @precondition(lambda self: self.has("head"))
    @rule()
    def head(self) -> None:
        frame = self.hands.pop("head")
        frame.planes = PLANES
        with self.desk.lock:
            self.desk.headed_locked(frame, time.perf_counter())

    @precondition(lambda self: (self.desk.again or self.desk.to_link) and not self.has("link"))
    @rule()
    def take_for_link(self) -> None:
        self.hands["link"] = (self.desk.again or self.desk.to_link).popleft()

    @precondition(lambda self: self.has("link"))
    @rule(goes=st.booleans())
    def send(self, goes: bool) -> None:
        frame = self.hands.pop("link")
        with self.desk.lock:
            if not self.desk.ledger.is_open(frame.number):
                return
            if self.desk.stopping or not goes:
                self.desk.put_back_locked(frame)
                return
            sent = Sent(frame, PLANES, "raw", "raw", 100, time.perf_counter())
            self.desk.send_locked(frame, sent)
            self.sents.append(sent)

    @precondition(lambda self: not self.hands and not self.desk.captured_all)
    @rule(count=st.integers(1, 3))
    def frames_fly(self, count: int) -> None:
        """What happens most of the time."""
        for _ in range(count):
            if self.desk.again or self.desk.to_link:
                self.take_for_link()
            else:
                if not self.desk.to_head:
                    self.capture()
                    self.decode(True)
                self.take_for_head()
                self.head()
                self.take_for_link()
            self.send(True)

    @precondition(lambda self: (self.desk.again or self.desk.to_link) and not self.has("link"))
    @rule()
    def sent_again(self) -> None:
        self.take_for_link()
        self.send(True)

    @precondition(lambda self: self.desk.to_head or self.desk.to_link or self.desk.again)
    @rule(error=st.sampled_from(ERRORS))
    def the_edge_is_away(self, error: EdgeUnreachableError) -> None:
        for queue in (self.desk.to_head, self.desk.to_link, self.desk.again):
            if queue:
                with self.desk.lock:
                    self.desk.no_way_locked(queue.popleft(), Route(Way.AWAY, error))
                return

    @precondition(lambda self: self.sents)
    @rule(data=st.data())
    def a_result_comes(self, data: st.DataObject) -> None:
        sent = self.sents.pop(data.draw(st.integers(0, len(self.sents) - 1)))
        self.late.append(sent)
        with self.desk.lock:
            self.desk.on_result(sent, result(data.draw(st.integers(1, 9))), time.perf_counter())

    @precondition(lambda self: self.sents)
    @rule(data=st.data(), code=st.sampled_from([*FailureCode, "new"]))
    def a_failure_comes(self, data: st.DataObject, code: str) -> None:
        sent = self.sents.pop(data.draw(st.integers(0, len(self.sents) - 1)))
        self.late.append(sent)
        with self.desk.lock:
            self.desk.on_failure(sent, Failed(code, "no"), time.perf_counter())

    @precondition(lambda self: self.late)
    @rule(data=st.data(), good=st.booleans())
    def what_is_too_late_changes_nothing(self, data: st.DataObject, good: bool) -> None:
        sent = data.draw(st.sampled_from(self.late))
        with self.desk.lock:
            if good:
                self.desk.on_result(sent, result(1), time.perf_counter())
            else:
                self.desk.on_failure(sent, Failed("internal", "no"), time.perf_counter())

    @rule(error=st.sampled_from(ERRORS[:3]))
    def the_connection_is_lost(self, error: EdgeUnreachableError) -> None:
        sents, self.sents = self.sents, []
        self.late += sents
        with self.desk.lock:
            self.desk.on_lost(sents, error)

    @precondition(lambda self: self.sents)
    @rule(error=st.sampled_from(ERRORS[:3]))
    def the_connection_is_lost_with_requests_that_timed_out(self, error: EdgeUnreachableError) -> None:
        self.time_passes(20.0)
        self.the_connection_is_lost(error)

    @precondition(lambda self: self.sents and not self.has("link"))
    @rule()
    def an_old_answer_comes_after_a_frame_was_sent_again(self) -> None:
        self.the_connection_is_lost(ERRORS[1])
        old = list(self.late)
        while self.desk.again:
            self.sent_again()
        for sent in old:
            with self.desk.lock:
                self.desk.on_result(sent, result(1), time.perf_counter())

    @rule(after_s=st.sampled_from([0.0, 0.06, 20.0]))
    def time_passes(self, after_s: float) -> None:
        with self.desk.lock:
            now_s = time.perf_counter() + after_s
            self.desk.overdue_locked(now_s)
            due_s = self.desk.watch_until_locked(None)
            assert due_s is None or due_s > now_s  # else the watch would spin

    @precondition(lambda self: self.desk.to_local and not self.has("local"))
    @rule()
    def take_for_local(self) -> None:
        self.hands["local"] = self.desk.to_local.popleft()

    @precondition(lambda self: self.has("local"))
    @rule(good=st.booleans())
    def local(self, good: bool) -> None:
        frame = self.hands.pop("local")
        with self.desk.lock:
            if good:
                self.desk.local_done_locked(frame, (1, 0.5), 0.01, time.perf_counter())
            else:
                self.desk.local_failed_locked(frame, ImageError("frame", "the model is broken"))

    @rule()
    def tell(self) -> None:
        following = self.desk.ledger.next_told()
        if following is not None:
            self.desk.ledger.tell(following[0])
            self.told.append((following[0], following[1].status))

    @precondition(lambda self: self.steps > 35)  # what is to be seen is what comes before
    @rule(hard=st.booleans())
    def the_run_is_ended(self, hard: bool) -> None:
        with self.desk.lock:
            if hard:
                self.desk.abandon_locked(Failure.INTERRUPTED, "broken off")
                assert self.desk.ledger.all_settled  # at once
            else:
                self.desk.stop_locked()

    @invariant()
    def every_frame_without_an_outcome_is_in_one_place(self) -> None:
        if not hasattr(self, "desk"):
            return
        self.steps += 1
        desk = self.desk
        places = [
            *(frame.number for queue in (desk.to_head, desk.to_link, desk.again, desk.to_local) for frame in queue),
            *desk._flying,
            *(frame.number for frame in self.hands.values() if desk.ledger.is_open(frame.number)),
        ]
        assert sorted(places) == list(desk.ledger.open)
        assert sorted(desk._open) == list(desk.ledger.open)
        known = {sent.frame.number for sent in self.sents if sent.frame.sent is sent}
        assert set(desk._flying) <= known  # what is in flight, a session will tell of
        assert [number for number, _ in self.told] == list(range(1, len(self.told) + 1))

    def teardown(self) -> None:
        """Whatever was going on: the stages end what they have, and everything has its outcome."""
        if not hasattr(self, "desk"):
            return
        with self.desk.lock:
            self.desk.stop_locked()
            for stage, frame in self.hands.items():
                if not self.desk.ledger.is_open(frame.number):
                    continue
                if stage == "capture":
                    frame.pixels = PIXELS
                    self.desk.decoded_locked(frame, time.perf_counter())
                elif stage == "head":
                    self.desk.headed_locked(frame, time.perf_counter())
                elif stage == "link":
                    self.desk.put_back_locked(frame)
                else:
                    self.desk.local_done_locked(frame, (1, 0.5), 0.01, time.perf_counter())
            self.desk.on_lost(self.sents, LinkLostError(URL, "cut"))
            assert self.desk.finished_locked()


DeskMachine.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=50)
TestDesk = DeskMachine.TestCase
