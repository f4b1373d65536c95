"""Sessions with an edge, one after the other: several requests in flight in each, connecting again in the background.

The pipeline's lock guards everything here; what waits for sockets does so without it. One thread connects, one for each
session receives, and the pipeline's own thread sends. Of time the pipeline tells: ``overdue``.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from threading import Condition, Lock, Thread, current_thread
from typing import Protocol

from aecnn_deploy.errors import (
    AecnnError,
    EdgeUnreachableError,
    LinkLostError,
    RequestFailedError,
    SessionRefusedError,
    TimedOutError,
)
from aecnn_deploy.runtimes.backoff import Backoff
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.runtimes.edge_load_told import EdgeLoad, load_told
from aecnn_deploy.runtimes.link_timing import LinkSample, SendTimes
from aecnn_deploy.runtimes.moving_frame import Sent
from aecnn_deploy.runtimes.plane_coder import Answered, Terms
from aecnn_deploy.runtimes.plane_coders import PlaneCoders
from aecnn_deploy.wire import (
    DeviceEvent,
    Failed,
    FailureCode,
    FailureReceived,
    GoodbyeReceived,
    RefusalCode,
    Result,
    ResultReceived,
    Welcome,
)

logger = logging.getLogger("aecnn_deploy.device")

_GRACE_S = 2.0  # frames wait so long for a lost connection to be made again, before they go their other way
_LONGEST_HOLD_S = 60.0  # of what an edge may ask for
_IDLE_S = 10.0  # a session that ends unused after so long ended because it was idle
_BUSY_S = 1.0  # for an edge that is overloaded or draining and does not say how long
_BUSY = frozenset({RefusalCode.OVERLOADED, RefusalCode.DRAINING})
_JOIN_S = 2.0


class Way(Enum):
    """What a frame can do now."""

    OPEN = "open"
    WAIT = "wait"  # a connection was lost just now, and is being made again; or the edge wants a pause
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class Route:
    """The way of a frame now. ``error``: why there is none. ``until_s``: when it is another one at the latest."""

    way: Way
    error: AecnnError | None = None
    until_s: float | None = None


@dataclass(slots=True, eq=False)
class Session:
    """One connection whose HELLO was answered by WELCOME."""

    link: EdgeLink
    terms: dict[int, Terms]  # by variant
    limit: int  # requests in flight
    in_flight: dict[int, Sent] = field(default_factory=dict)  # by request id, in the order of sending
    last: dict[int, Answered] = field(default_factory=dict)  # by variant, the newest frame that was answered by RESULT
    times: SendTimes = field(default_factory=SendTimes)
    load: EdgeLoad | None = None  # what the edge last told
    answers: int = 0
    leaving: bool = False  # the edge said GOODBYE
    ended: bool = False
    opened_s: float = field(default_factory=time.perf_counter)

    def was_sound(self, now_s: float) -> bool:
        """Whether it did what a session is for, or had nothing to do for a while: no reason to wait before the next."""
        return self.answers > 0 or (not self.in_flight and now_s - self.opened_s > _IDLE_S)


class Listener(Protocol):
    """Who hears of answers and losses; always called with the lock held."""

    def on_result(self, sent: Sent, result: Result, now_s: float) -> None: ...

    def on_failure(self, sent: Sent, failed: Failed, now_s: float) -> None: ...

    def on_lost(self, sents: list[Sent], error: EdgeUnreachableError) -> None: ...

    def on_room(self) -> None:
        """A session takes another request now."""

    def on_route(self) -> None:
        """A frame's way may be another one now."""

    def on_defect(self, defect: BaseException) -> None: ...


class EdgeSessions:
    """Keeps one session open, as far as the edge lets it.

    ``make_link``: a new link for each attempt. Methods that end in ``_locked`` want the lock held.
    """

    def __init__(
        self,
        lock: Lock,
        make_link: Callable[[], EdgeLink],
        coder: PlaneCoders,
        listener: Listener,
        *,
        in_flight: int,
        timeout_s: float,
        backoff: Backoff,
    ) -> None:
        self._lock, self._make_link, self._coder, self._listener = lock, make_link, coder, listener
        self._in_flight, self._timeout_s = in_flight, timeout_s
        self._backoff = backoff
        self._wake = Condition(lock)
        self._current: Session | None = None
        self._alive: set[Session] = set()  # with those that are leaving
        self._receivers: set[Thread] = set()
        self._connector = Thread(target=self._connect_always, name="aecnn-connect", daemon=True)
        self._attempt: EdgeLink | None = None
        self._closing = False
        self._away: AecnnError | None = None
        self._next_attempt_s, self._grace_until_s = 0.0, 0.0
        self.patient = False  # whether frames wait while the edge wants a pause of at most ``timeout_s``
        self._held_until_s, self._held_by = 0.0, RequestFailedError(FailureCode.OVERLOADED, "the edge is busy")
        self._fruitless = 0  # sessions one after the other that came to nothing
        self._heard: deque[tuple[tuple[int, str] | None, float, float, list[LinkSample]]] = deque(maxlen=64)

    def open_first(self) -> None:
        """Connect, from the caller's thread. Raises EdgeUnreachableError, SessionRefusedError; CodecError: the edge
        does not decode the coder. An error here is one failed attempt: ``start`` goes on from it."""
        self._try()

    def start(self) -> None:
        """Connect again from now on whenever there is no session."""
        self._connector.start()

    def close(self) -> None:
        """Say GOODBYE where nothing is in flight, end the rest, and wait for the threads, some seconds at most."""
        with self._lock:
            self._closing = True
            self._wake.notify_all()
            sessions, attempt = list(self._alive), self._attempt
            idle = [session for session in sessions if not session.in_flight]
            for session in sessions:
                self._end_locked(session)
            receivers = list(self._receivers)
        if attempt is not None:
            attempt.abort()
        for session in sessions:
            if session in idle:
                session.link.part()
            else:
                session.link.abort()
        for thread in (*receivers, self._connector):
            if thread.is_alive():
                thread.join(_JOIN_S)

    def route_locked(self, now_s: float) -> Route:
        """What a frame can do now."""
        if now_s < self._held_until_s:
            waits = self.patient and self._held_until_s - now_s <= self._timeout_s
            return Route(Way.WAIT if waits else Way.AWAY, self._held_by, self._held_until_s)
        if self._current is not None:
            return Route(Way.OPEN)
        if now_s < self._grace_until_s:
            return Route(Way.WAIT, until_s=self._grace_until_s)
        return Route(Way.AWAY, self._away)

    def room_locked(self) -> Session | None:
        """The session that takes another request now."""
        session = self._current
        return session if session is not None and len(session.in_flight) < session.limit else None

    def under_way_locked(self) -> tuple[list[Sent], int]:
        """What the open session waits for, in the order of sending, and how many that may be; none where none is."""
        session = self._current
        return ([], 0) if session is None else (list(session.in_flight.values()), session.limit)

    def load_locked(self) -> EdgeLoad | None:
        """How busy the edge of the session is, as it last said; None: there is no session, or it says nothing."""
        return self._current.load if self._current is not None else None

    def heard_locked(self) -> None:
        """Tell the coder what the answers said of link and decoders, and the link's rate how long the oldest request
        has been without one."""
        rate, session = self._coder.rate, self._current
        while self._heard:
            coder, decode_ms, heard_s, samples = self._heard.popleft()
            if coder:
                self._coder.decoded(*coder, decode_ms)
            for sample in samples:
                rate.heard(sample.wire_bytes, sample.link_ms, heard_s, queued=sample.queued)
        now_s = time.perf_counter()
        waiting = session.times.waiting(now_s, (rate.fixed_ms or 0.0) / 1e3) if session is not None else None
        rate.waiting(*(waiting or (0, 0.0)), now_s)
        if session is not None and (idle_ms := session.link.idle_ping_ms()) is not None:
            rate.pinged(idle_ms, now_s)

    def register_locked(self, session: Session, request_id: int, sent: Sent) -> None:
        """The request is about to be sent."""
        session.in_flight[request_id] = sent
        session.times.sent(request_id, sent.wire_bytes, sent.began_s)

    def lost_locked(self, session: Session, error: EdgeUnreachableError) -> None:
        """The connection has ended: what was in flight goes back, and a new one is made. Twice does no harm."""
        if session.ended:
            return
        self._end_locked(session)
        sents = list(session.in_flight.values())
        now_s = time.perf_counter()
        was_current = self._current is session
        if was_current:
            self._current = None
            self._again_locked(now_s, error, sound=session.was_sound(now_s))
        logger.info("%s", error)
        self._listener.on_lost(sents, error)
        self._listener.on_route()

    def leave_locked(self, session: Session, error: AecnnError) -> None:
        """The edge takes nothing more in this session; what is in flight it still answers."""
        session.leaving = True
        if self._current is session:
            self._current = None
            now_s = time.perf_counter()
            self._again_locked(now_s, error, sound=session.was_sound(now_s))
            self._listener.on_route()

    def due_s_locked(self) -> float | None:
        """When ``overdue_locked`` has something to do at the earliest."""
        oldest = [next(iter(session.in_flight.values())).began_s for session in self._alive if session.in_flight]
        return min(oldest) + self._timeout_s if oldest else None

    def overdue_locked(self, now_s: float) -> None:
        """End the sessions whose oldest request has been waiting for ``timeout_s``."""
        for session in list(self._alive):
            if session.in_flight and now_s >= next(iter(session.in_flight.values())).began_s + self._timeout_s:
                session.link.abort()
                self.lost_locked(session, TimedOutError(session.link.url, f"no answer within {self._timeout_s:g} s"))

    def _again_locked(self, now_s: float, error: AecnnError, *, sound: bool) -> None:
        """No session is left to send on: when is the next attempt, and do frames wait for it?"""
        self._away = error
        if sound:
            self._fruitless = 0
            self._backoff.reset()
        else:
            self._fruitless += 1
        # An edge that takes connections and never answers must not hold up frames again and again.
        if self._fruitless > 1 or (self._fruitless and isinstance(error, TimedOutError)):
            self._next_attempt_s, self._grace_until_s = now_s + self._backoff.pause_s(), now_s
        else:
            self._next_attempt_s, self._grace_until_s = now_s, now_s + min(_GRACE_S, self._timeout_s)
        self._wake.notify_all()

    def _end_locked(self, session: Session) -> None:
        session.ended = True
        self._alive.discard(session)

    def _connect_always(self) -> None:
        try:
            while True:
                with self._lock:
                    while not self._closing:
                        left_s = self._next_attempt_s - time.perf_counter()
                        if self._current is None and left_s <= 0:
                            break
                        self._wake.wait(left_s if self._current is None else None)
                    if self._closing:
                        return
                try:
                    self._try()
                except AecnnError as exc:
                    logger.info("%s", exc)
        except BaseException as exc:
            with self._lock:
                self._listener.on_defect(exc)

    def _try(self) -> None:
        """One attempt. Raises what ``open_first`` does."""
        link: EdgeLink | None = None
        try:
            link = self._make_link()
            with self._lock:
                self._attempt = link
            welcome = link.open()
            terms = self._coder.terms(welcome)
            if self._coder.wants_rate:
                link.measure()
        except BaseException as exc:
            if link is not None:
                link.close()
            if isinstance(exc, AecnnError):
                with self._lock:
                    self._failed_locked(exc)
            raise
        finally:
            with self._lock:
                self._attempt = None
        with self._lock:
            wanted = not self._closing
            if wanted:
                self._opened_locked(link, welcome, terms)
        if not wanted:
            link.close()

    def _opened_locked(self, link: EdgeLink, welcome: Welcome, terms: dict[int, Terms]) -> None:
        session = Session(link, terms, min(self._in_flight, welcome.max_in_flight))
        session.load = load_told(welcome.load, session.opened_s)
        self._current, self._away = session, None
        self._alive.add(session)
        receiver = Thread(target=self._receive_always, args=(session,), name="aecnn-receive", daemon=True)
        self._receivers.add(receiver)
        receiver.start()
        logger.info("connected to %s", link.url)
        self._listener.on_route()

    def _failed_locked(self, error: AecnnError) -> None:
        self._away = error
        asked_s, final = 0.0, not isinstance(error, EdgeUnreachableError)
        if isinstance(error, SessionRefusedError):
            final = error.code not in _BUSY
            asked_s = _BUSY_S if error.retry_after_s is None and not final else error.retry_after_s or 0.0
        pause_s = self._backoff.pause_s(at_least_s=min(asked_s, _LONGEST_HOLD_S), final=final)
        self._next_attempt_s, self._grace_until_s = time.perf_counter() + pause_s, 0.0
        self._listener.on_route()

    def _receive_always(self, session: Session) -> None:
        try:
            while True:
                event = session.link.next_event()
                now_s = time.perf_counter()
                with self._lock:
                    if session.ended:
                        break
                    self._take_locked(session, event, now_s)
                    if session.leaving and not session.in_flight:
                        self._end_locked(session)
                        break
        except LinkLostError as exc:
            with self._lock:
                self.lost_locked(session, exc)
        except BaseException as exc:
            with self._lock:
                self._listener.on_defect(exc)
        finally:
            session.link.close()
            with self._lock:
                self._receivers.discard(current_thread())

    def _take_locked(self, session: Session, event: DeviceEvent, now_s: float) -> None:
        fixed_s = (self._coder.rate.fixed_ms or 0.0) / 1e3
        match event:
            case ResultReceived(request_id, result):
                sent = self._answered_locked(session, request_id)
                samples = session.times.answered(request_id, now_s, result.total_ms / 1e3, fixed_s)
                self._heard.append(((sent.variant, sent.coder), result.decode_ms, now_s, samples))
                session.load = load_told(result.load, now_s) or session.load
                last = session.last.get(sent.variant)
                if last is None or last.request_id < request_id:
                    session.last[sent.variant] = Answered(request_id, sent.planes)
                self._listener.on_result(sent, result, now_s)
                self._listener.on_room()
            case FailureReceived(request_id, failed):
                sent = self._answered_locked(session, request_id)
                self._heard.append((None, 0.0, now_s, session.times.answered(request_id, now_s, None, fixed_s)))
                if failed.retry_after_s and failed.code in (FailureCode.OVERLOADED, FailureCode.DEADLINE):
                    hold_s = min(failed.retry_after_s, _LONGEST_HOLD_S)
                    self._held_until_s = max(self._held_until_s, now_s + hold_s)
                    self._held_by = RequestFailedError(
                        FailureCode.OVERLOADED, f"the edge asked for a pause of {hold_s:g} s: {failed.reason}"
                    )
                    self._listener.on_route()
                self._listener.on_failure(sent, failed, now_s)
                self._listener.on_room()
            case GoodbyeReceived(goodbye):
                self.leave_locked(
                    session, SessionRefusedError(RefusalCode.DRAINING, goodbye.reason or "the edge is leaving")
                )

    def _answered_locked(self, session: Session, request_id: int) -> Sent:
        session.answers += 1
        self._fruitless = 0
        self._backoff.reset()
        return session.in_flight.pop(request_id)
