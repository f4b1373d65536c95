"""The threads of a pipelined run, one for each stage, and the telling of what became of each frame."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from threading import Event, Thread

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import Planes
from aecnn_deploy.errors import AecnnError, LinkLostError, SourceError
from aecnn_deploy.runtimes.device_heads import DeviceHeads
from aecnn_deploy.runtimes.device_settings import DeviceSettings
from aecnn_deploy.runtimes.edge_sessions import Session, Way
from aecnn_deploy.runtimes.frame_failure import Failure
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.interrupts import Interrupts
from aecnn_deploy.runtimes.live_variants import nothing_fits
from aecnn_deploy.runtimes.local_model import LocalModel
from aecnn_deploy.runtimes.moving_frame import MovingFrame, Sent
from aecnn_deploy.runtimes.plane_coder import Answered
from aecnn_deploy.runtimes.run_report import ImageReport
from aecnn_deploy.runtimes.source import Source, SourceImage
from aecnn_deploy.runtimes.way_choice import EdgeSide, Turn, WayChoice

BROKEN_OFF = "the run was broken off"

_POLL_S = 0.1  # how often ``stop`` and Ctrl-C are looked at: they wake nobody who waits for something else
_LEAVE_S = 1.0  # for a source that is being read when the run ends
_STAGE_S = 30.0  # for a model that runs when the run ends


class PipelineStages:
    """The threads of one run, one for each stage."""

    def __init__(
        self,
        bundle: Bundle,
        settings: DeviceSettings,
        ways: WayChoice,
        heads: DeviceHeads,
        local: LocalModel | None,
    ) -> None:
        self._input, self._settings = bundle.manifest.input, settings
        self._desk, self._ways, self._sides, self._heads = ways.desk, ways, ways.sides, heads
        self._local = local
        self._source_error: BaseException | None = None
        self._threads: list[Thread] = []
        self._frames: Iterable[SourceImage] = ()

    def start(self, frames: Iterable[SourceImage], limit: int | None, live: bool | None) -> None:
        """Begin to capture. ``live``: whether frames are of now; None: the source says so."""
        self._frames = frames
        stages = {"watch": self._watch, "head": self._run_head}
        for side in self._sides:
            side.sessions.start()
            stages["link" if side.index == 0 else f"link{side.index}"] = partial(self._run_link, side)
        if self._local is not None:
            stages["local"] = self._run_local
        stages["capture"] = lambda: self._capture(frames, limit, live)  # the last one, for ``close``
        for name, stage in stages.items():
            thread = Thread(target=self._guarded, args=(stage,), name=f"aecnn-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def tell_all(self, tell: Callable[[ImageReport], None], stop: Event | None) -> bool:
        """Tell of every frame in order, until the last has its outcome; whether the run was ended before its source."""
        desk = self._desk
        with Interrupts() as interrupts:
            while (following := self._next(interrupts, stop)) is not None:
                number, report = following
                tell(report)
                with desk.lock:
                    desk.ledger.tell(number)
                    desk.capture_turn.notify()
        if desk.defect is not None:
            raise desk.defect
        return desk.stopping

    def source_error(self) -> str | None:
        """Why the source ended before its end. Raises it where no frame came of it, and what is no SourceError."""
        error = self._source_error
        if error is not None and (not isinstance(error, SourceError) or not self._desk.ledger.captured):
            raise error
        return None if error is None else str(error)

    def close(self) -> None:
        """End the threads; a source that is being read is told to end, or left to itself."""
        if isinstance(self._frames, Source):
            self._frames.close()
        with self._desk.lock:
            self._desk.abandon_locked(Failure.INTERRUPTED, BROKEN_OFF)
            self._desk.closing = True
            self._desk.notify_all_locked()
        for side in self._sides:
            side.sessions.close()
        *stages, capture = self._threads
        for thread in stages:
            thread.join(_STAGE_S)
        capture.join(_LEAVE_S)

    def _next(self, interrupts: Interrupts, stop: Event | None) -> tuple[int, ImageReport] | None:
        """The next frame to tell of; None at the end."""
        desk = self._desk
        with desk.lock:
            while True:
                if interrupts.count or (stop is not None and stop.is_set()):
                    desk.stop_locked()
                if interrupts.count > 1:
                    desk.abandon_locked(Failure.INTERRUPTED, BROKEN_OFF)
                following = desk.ledger.next_told()
                if following is not None or desk.finished_locked():
                    return following
                desk.told_turn.wait(_POLL_S)

    def _guarded(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except BaseException as exc:
            with self._desk.lock:
                self._desk.on_defect(exc)

    def _capture(self, frames: Iterable[SourceImage], limit: int | None, live: bool | None) -> None:
        desk = self._desk
        try:
            if live is None and (live := self._is_live(frames)) and self._settings.policy is None:
                with desk.lock:
                    desk.take_latest_locked()
            with desk.lock:
                # Nobody waits for the next file: better late than failed.
                for side in self._sides:
                    side.sessions.patient = not (live or self._local or self._settings.deadline_ms)
            images = islice(frames, limit)
            while (image := self._next_image(images)) is not None:
                now_s = time.perf_counter()
                captured_s = image.captured_s if live else now_s  # what waits for us is captured when it is taken up
                with desk.lock:
                    if desk.stopping:
                        return
                    frame = desk.capture_locked(image.name, captured_s)
                    self._ways.rhythm.captured(captured_s)
                frame.queue_s = max(0.0, now_s - captured_s)
                self._decode(frame, image, now_s)
                with desk.lock:
                    if not desk.wait_to_capture_locked():
                        return
        finally:
            close_source(frames)
            with desk.lock:
                desk.captured_all = True
                desk.told_turn.notify()

    def _is_live(self, frames: Iterable[SourceImage]) -> bool:
        try:
            return isinstance(frames, Source) and frames.live
        except Exception as exc:  # as in ``_next_image``: reading it meets the same
            self._source_error = exc
            return False

    def _next_image(self, images: Iterator[SourceImage]) -> SourceImage | None:
        """None at the end of the source, whichever it is."""
        try:
            return next(images, None)
        except Exception as exc:  # the source's, not ours: what was captured goes its way
            self._source_error = exc
            return None

    def _decode(self, frame: MovingFrame, image: SourceImage, began_s: float) -> None:
        desk = self._desk
        try:
            frame.pixels = read_frame(image.content, self._input, name=image.name)
        except AecnnError as exc:
            with desk.lock:
                desk.fail_locked(frame, exc)
            return
        done_s = time.perf_counter()
        frame.read_s, frame.decoded_s = done_s - began_s, done_s
        with desk.lock:
            self._ways.rhythm.read(frame.read_s)
            desk.decoded_locked(frame, done_s)

    def _run_head(self) -> None:
        desk = self._desk
        while True:
            with desk.lock:
                frame = self._next_for_head()
                if frame is None:
                    return
                pixels = frame.pixels
                if self._local is None:
                    frame.pixels = None
            assert pixels is not None
            began_s = time.perf_counter()
            try:
                frame.planes = self._heads[frame.variant.index].planes(pixels)
            except AecnnError as exc:
                with desk.lock:
                    desk.fail_locked(frame, exc)
                continue
            done_s = time.perf_counter()
            frame.head_s, frame.headed_s = done_s - began_s, done_s
            with desk.lock:
                for side in self._sides:
                    if side.live is not None:
                        side.live.ran_head_locked(frame)
                desk.headed_locked(frame, done_s)

    def _next_for_head(self) -> MovingFrame | None:
        """The next frame that has a way to an edge, None at the end. Frames without one are seen off."""
        desk = self._desk
        while not desk.closing:
            if desk.to_head:
                now_s = time.perf_counter()
                turn = self._ways.decide_locked(desk.to_head[0], now_s)
                if turn is not Turn.WAIT:
                    frame = self._pop_for_head(now_s)
                    if turn is Turn.HEAD:
                        return frame
                    if turn is Turn.NOTHING:
                        desk.fail_locked(frame, nothing_fits(frame))
                    elif turn is Turn.LOCAL:
                        desk.advised_local_locked(frame, now_s)
                    else:  # before the head's work, which would be for nothing
                        desk.no_way_locked(frame, self._ways.away_locked(now_s))
                    continue
            desk.head_turn.wait()
        return None

    def _pop_for_head(self, now_s: float) -> MovingFrame:
        frame = self._desk.to_head.popleft()
        frame.taken(now_s)
        self._desk.capture_turn.notify()
        return frame

    def _run_link(self, side: EdgeSide) -> None:
        desk, used = self._desk, None
        while True:
            with desk.lock:
                frame, session = self._next_to_send(side)
                if frame is None or session is None:
                    return
                side.sessions.heard_locked()
                last = self._reference(frame, session)
                planes = frame.planes
            if planes is None:  # its time was over while it was taken
                continue
            if used is not session:
                side.coders.use(session.terms)
                used = session
            self._send(side, frame, session, planes, last)

    def _next_to_send(self, side: EdgeSide) -> tuple[MovingFrame | None, Session | None]:
        """The next frame, and the session that takes it; none at the end. Frames without a way are seen off."""
        desk = self._desk
        while not desk.closing:
            frame = desk.next_for_link_locked(side.index)
            if frame is not None:
                now_s = time.perf_counter()
                route = side.sessions.route_locked(now_s)
                if route.way is not Way.OPEN and self._ways.elsewhere_locked(frame, now_s):
                    continue
                if route.way is Way.AWAY:
                    desk.take_for_link_locked(frame)
                    desk.no_way_locked(frame, route)
                    continue
                if route.way is Way.OPEN and (session := side.sessions.room_locked()) is not None:
                    desk.take_for_link_locked(frame)
                    if frame.first_sent_s is None:
                        frame.taken(now_s)
                    return frame, session
            desk.link_turn.wait()
        return None, None

    def _send(
        self, side: EdgeSide, frame: MovingFrame, session: Session, planes: Planes, last: Answered | None
    ) -> None:
        desk, link, index = self._desk, session.link, frame.variant.index
        coder = side.coders.take(index)
        began_s = time.perf_counter()
        try:
            chosen, encoded = coder.encode(planes, request_id=link.next_request_id, last=last)
            now_s = time.perf_counter()
            frame.encode_s += now_s - began_s
            frame.encoded_s = now_s
            left_ms = frame.time_left_ms(self._settings.deadline_ms, now_s)
            with desk.lock:
                if side.live is not None:
                    side.live.coded(index, coder.estimates())
                if not desk.ledger.is_open(frame.number):
                    return
                if session.ended or session.leaving or desk.stopping:
                    desk.put_back_locked(frame)
                    return
                request_id, message = link.prepare(index, encoded, deadline_ms=left_ms)
                ids = (link.trace, request_id) if link.trace is not None else None
                sent = Sent(
                    frame, planes, chosen, encoded.coder, len(message), time.perf_counter(), index, side.index, ids
                )
                desk.send_locked(frame, sent)
                side.sessions.register_locked(session, request_id, sent)
        except LinkLostError as exc:  # the edge is leaving, and the receiver has not told yet
            with desk.lock:
                side.sessions.leave_locked(session, exc)
                desk.put_back_locked(frame)
            return
        except AecnnError as exc:
            with desk.lock:
                desk.fail_locked(frame, exc)
            return
        try:
            link.send(message)
        except LinkLostError as exc:
            with desk.lock:
                side.sessions.lost_locked(session, exc)

    def _reference(self, frame: MovingFrame, session: Session) -> Answered | None:
        """What the frame may be a difference to."""
        index = frame.variant.index
        if frame.key_frame or len(session.in_flight) >= session.terms[index].references:
            return None
        return session.last.get(index)

    def _run_local(self) -> None:
        desk, local = self._desk, self._local
        assert local is not None
        while True:
            with desk.lock:
                while not desk.to_local and not desk.closing:
                    desk.local_turn.wait()
                if desk.closing:
                    return
                frame = desk.to_local.popleft()
                began_s = time.perf_counter()
                frame.taken(began_s)
                pixels = frame.pixels
                desk.head_turn.notify()
            assert pixels is not None
            try:
                best = local.best(pixels)
            except AecnnError as exc:
                with desk.lock:
                    desk.local_failed_locked(frame, exc)
                continue
            done_s = time.perf_counter()
            with desk.lock:
                desk.local_done_locked(frame, best, done_s - began_s, done_s)

    def _watch(self) -> None:
        """Look after what must not take longer."""
        desk = self._desk
        with desk.lock:
            while not desk.closing:
                now_s = time.perf_counter()
                desk.overdue_locked(now_s)
                dues: list[float] = []
                for side in self._sides:
                    side.sessions.overdue_locked(now_s)
                    route = side.sessions.route_locked(now_s)
                    if route.until_s is None and (desk.to_head or desk.to_link or desk.again):
                        desk.head_turn.notify()
                        desk.link_turn.notify_all()
                    dues += [due for due in (side.sessions.due_s_locked(), route.until_s) if due is not None]
                due_s = desk.watch_until_locked(min(dues, default=None))
                desk.watch_turn.wait(None if due_s is None else max(0.0, due_s - time.perf_counter()))


def close_source(frames: Iterable[SourceImage]) -> None:
    """Close what has a ``close``: a camera, a generator; nobody may be reading it."""
    close = getattr(frames, "close", None)
    if close is not None:
        close()
