"""One model's queue and threads: requests of all devices wait here, are decoded ahead, and run in batches."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from enum import Enum
from typing import Protocol

from aecnn_deploy.errors import AecnnError, RequestFailedError, RunnerError
from aecnn_deploy.runtimes.batch_times import BatchTimes, retry_s
from aecnn_deploy.runtimes.edge_jobs import (
    Job,
    Outcomes,
    Ran,
    Running,
    Stage,
    answer_to,
    fail,
    fail_rest,
    internal_failure,
    settle,
)
from aecnn_deploy.runtimes.edge_models import TOP_K, EdgeModel, top_classes
from aecnn_deploy.runtimes.edge_refusals import cannot_be_met, in_time, overloaded
from aecnn_deploy.runtimes.fair_queue import FairQueue
from aecnn_deploy.runtimes.thread_priority import let_others_first
from aecnn_deploy.wire import FailureCode


class LaneState(Enum):
    """Whether a model is in memory."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"


class LaneEvents(Protocol):
    """Whom a lane tells of its batches; called on the event loop."""

    def batch_ran(self, variant: str, size: int, seconds: float) -> None:
        """A batch was run."""


class Lane:
    """One model with its queue. All public methods belong to the event loop's thread.

    Requests that wait are taken in turns (``FairQueue``), at most ``batch_size`` at once. The model's thread has a
    helper: while the model runs, it decodes what waits and makes answers of the batch before, so that the model goes
    from batch to batch without a break. Where nothing waits, the model's own thread does both, which spares a change
    of threads. A model that runs several batches at once (``EdgeModel.slots``) has a thread for each of them. Threads
    exist while the model is loaded; the queue outlives them.
    """

    def __init__(
        self, model: EdgeModel, *, max_batch: int, batch_wait_ms: float, max_queue: int, events: LaneEvents
    ) -> None:
        self.model, self.state, self.times = model, LaneState.UNLOADED, BatchTimes()
        self.batch_size = self.busy_size = self._max_batch = max_batch
        self.last_used_s = 0.0
        self._batch_wait_s, self._max_queue, self._events = batch_wait_ms / 1e3, max_queue, events
        self._queue: FairQueue[Job] = FairQueue()
        self._coded: deque[Job] = deque()  # what the helper may decode, in order of arrival
        self._ran: deque[Ran] = deque()  # what the helper makes answers of
        lock = threading.Lock()  # guards all of the above and below
        self._changed, self._help_wanted = threading.Condition(lock), threading.Condition(lock)
        self._was_decoded = threading.Condition(lock)
        self._running: list[Running] = []  # in the order in which they began
        self._idle, self._stop = 0, False  # threads that wait for work; whether all are to end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: list[threading.Thread] = []

    @property
    def queued(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._queue or self._running or self._ran)

    def submit(self, job: Job) -> None:
        """Queue ``job``; its future will be settled.

        Raises RequestFailedError: the queue is full of requests of peers that have no more than this one, or the
        deadline cannot be met; with the seconds after which to try again.
        """
        now_s = time.perf_counter()
        with self._changed:
            self._check_deadline(job, now_s)
            crowded = None
            if len(self._queue) >= self._max_queue:
                crowded = self._queue.crowded(job.peer, job.stream)
                if crowded is None:
                    raise self._overloaded(now_s)
                crowded.stage = Stage.OVER
            self._queue.push(job.peer, job.stream, job)
            if self._idle and not self._batch_wait_s:
                self._changed.notify()
            else:
                if job.stage is Stage.CODED:
                    self._coded.append(job)
                self._changed.notify()
                if len(self._coded) == self.batch_size:  # to wake it for each would cost more than it does
                    self._help_wanted.notify()
            self.last_used_s = now_s
        if crowded is not None and not crowded.future.done():
            crowded.future.set_exception(self._overloaded(now_s))

    def make_room(self, peer: Hashable, stream: Hashable) -> bool:
        """Refuse the newest waiting request of whoever has most, if that is over one more than this one; whether."""
        with self._changed:
            crowded = self._queue.crowded(peer, stream)
            if crowded is None:
                return False
            crowded.stage = Stage.OVER
        if not crowded.future.done():
            crowded.future.set_exception(self._overloaded(time.perf_counter()))
        return True

    def retry_after_s(self) -> float:
        """How long the requests that wait now will take."""
        return retry_s(self._wait_s(len(self._queue), time.perf_counter()))

    def expected_s(self, peer: Hashable, stream: Hashable, now_s: float) -> tuple[float, float]:
        """For a request that comes now: seconds until its turn, and the run of the batch that it would be in.

        The wait is that of this lane's own queue, as ``FairQueue`` would serve it, and of the batch that runs.
        """
        with self._changed:
            ahead = self._queue.ahead(peer, stream) if self._queue else 0
            wait_s = self._wait_s(ahead, now_s)
        together = ahead % self.batch_size + 1
        if together < self.batch_size:
            wait_s += self._batch_wait_s
        return wait_s, self.times.seconds(together)

    def rest_s(self, now_s: float) -> float:
        """Seconds until the model can take the next batch, which those that run will still take."""
        running = self._running[:]
        if len(running) < self.model.slots:
            return 0.0
        return max(0.0, min(batch.began_s + self.times.seconds(len(batch.jobs)) for batch in running) - now_s)

    def start(self) -> "asyncio.Future[None]":
        """Load the model on a thread of its own; raises what loading raises. Call it in state UNLOADED."""
        assert self.state is LaneState.UNLOADED
        self.state, self._stop = LaneState.LOADING, False
        self._loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = self._loop.create_future()
        self._threads = [
            threading.Thread(target=self._work, args=(started,), name=f"run {self.model.name}", daemon=True),
            threading.Thread(target=self._help, name=f"help {self.model.name}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        return started

    def stop(self) -> None:
        """End the threads after the batch that runs; what waits stays in the queue. Returns at once."""
        with self._changed:
            if self.state in (LaneState.LOADED, LaneState.LOADING):
                self.state = LaneState.UNLOADING
            self._stop = True
            self._changed.notify_all()
            self._help_wanted.notify_all()

    def join(self, timeout_s: float) -> bool:
        """Wait for the threads to end; whether they did."""
        end_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        ended = not any(thread.is_alive() for thread in self._threads)
        if ended and self.state is not LaneState.UNLOADED:
            self.state = LaneState.UNLOADED
        return ended

    def fail_waiting(self, error: AecnnError) -> None:
        """Fail every request that waits."""
        with self._changed:
            waiting = list(self._queue)
            self._queue = FairQueue()
            self._coded.clear()
            for job in waiting:
                job.stage = Stage.OVER
        for job in waiting:
            if not job.future.done():
                job.future.set_exception(error)

    # Below: called with the lock held, or on the threads.

    def _check_deadline(self, job: Job, now_s: float) -> None:
        if job.deadline_s is None or not self.times:
            return
        ahead = self._queue.ahead(job.peer, job.stream)
        left_s = job.deadline_s - now_s
        if not ahead and len(self._running) < self.model.slots:
            needed_s = self.times.fastest_s  # not the mean: a slow spell must not shut the door for good
        else:
            size = min(self.batch_size, ahead + 1)
            needed_s = self._wait_s(ahead, now_s) + self.times.seconds(size)
        if needed_s <= left_s:
            return
        allowed_s = job.deadline_s - job.received_s
        raise cannot_be_met(self.model.name, allowed_s, left_s, ahead, needed_s, self.times.fastest_s)

    def _wait_s(self, ahead: int, now_s: float) -> float:
        return self.times.wait_s(ahead, self.batch_size, self.rest_s(now_s), self.model.slots)

    def _overloaded(self, now_s: float) -> RequestFailedError:
        waiting = len(self._queue)
        return overloaded(self.model.name, waiting, self._max_queue, self._wait_s(waiting, now_s))

    def _work(self, started: "asyncio.Future[None]") -> None:
        error: AecnnError | None = None
        let_others_first()
        try:
            self.model.load(self.times, self._max_batch)
        except AecnnError as exc:
            error = exc
        except Exception as exc:  # whatever a runtime throws: the edge goes on with its other models
            error = RunnerError(f"{self.model.name} cannot be loaded: {type(exc).__name__}: {exc}")
        if error is None:
            self.batch_size = self.times.best_size(self._max_batch)
            self.busy_size = self.times.busy_size(self._max_batch)
            others = [
                threading.Thread(target=self._take_turns, name=f"run {self.model.name} {slot}", daemon=True)
                for slot in range(1, self.model.slots)
            ]
            for thread in others:
                thread.start()
            self._tell(self._loaded, started)
            self._take_turns()
            for thread in others:
                thread.join()
        self.model.unload()
        with self._changed:
            self._stop = True  # the helper, too
            self._help_wanted.notify_all()
        if error is not None:
            self._tell(fail, started, error)

    def _take_turns(self) -> None:
        while batch := self._next_batch():
            self._run_batch(batch)
            del batch  # else the last payloads live until the next batch

    def _loaded(self, started: "asyncio.Future[None]") -> None:
        if self.state is LaneState.LOADING:
            self.state = LaneState.LOADED
        if not started.done():
            started.set_result(None)

    def _next_batch(self) -> Running | None:
        """Wait for work and take it; nothing when the lane stops."""
        with self._changed:
            while not self._stop:
                if not self._queue:
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                elif (left_s := self._time_to_fill()) > 0:
                    self._changed.wait(left_s)
                elif jobs := self._take():
                    batch = Running(jobs, time.perf_counter())
                    self._running.append(batch)
                    return batch
        return None

    def _time_to_fill(self) -> float:
        """Seconds that the batch may still wait for more."""
        if not self._batch_wait_s or len(self._queue) >= self.batch_size:
            return 0.0
        return min(job.received_s for job in self._queue) + self._batch_wait_s - time.perf_counter()

    def _take(self) -> list[Job]:
        batch: list[Job] = []
        # Where much waits, a larger batch makes nobody wait longer, and costs less around it.
        size = self.busy_size if len(self._queue) >= 2 * self.busy_size else self.batch_size
        while self._queue and len(batch) < size:
            job = self._queue.pop()
            if job.stage is not Stage.OVER and not job.future.cancelled():
                batch.append(job)
        return batch

    def _run_batch(self, batch: Running) -> None:
        outcomes = Outcomes()
        try:
            jobs = self._decoded(in_time(batch.jobs, outcomes, self.model.name))
            if jobs:
                self._infer(jobs, outcomes)
        except Exception as exc:  # a defect of ours: these requests fail, the lane goes on
            fail_rest(batch.jobs, outcomes, exc, self.model.name)
        with self._changed:
            self._running.remove(batch)
        self._tell(self._settle, outcomes)

    def _decoded(self, batch: list[Job]) -> list[Job]:
        """Those of ``batch`` that decode: here, unless the other thread has done it or is at it."""
        mine = []
        with self._changed:
            for job in batch:
                if job.stage is Stage.CODED:
                    job.stage = Stage.DECODING
                    mine.append(job)
        for job in mine:
            self._decode(job)
        with self._changed:
            while any(job.stage is Stage.DECODING for job in batch):
                self._was_decoded.wait()
        return [job for job in batch if job.stage is Stage.DECODED]

    def _infer(self, jobs: list[Job], outcomes: Outcomes) -> None:
        began_s = time.perf_counter()
        try:
            logits = self.model.run([job.item for job in jobs if job.item is not None])
        except RunnerError as exc:
            outcomes.failures += [(job.future, internal_failure(exc)) for job in jobs]
            return
        run_s = time.perf_counter() - began_s
        ran = Ran(jobs, logits, began_s, run_s)
        with self._changed:
            self.times.ran(len(jobs), run_s)
            if len(self._queue) >= self.batch_size and not self._stop:  # else an answer is sooner made here
                self._ran.append(ran)
                self._help_wanted.notify()
                return
        self._answer(ran, outcomes)

    def _answer(self, ran: Ran, outcomes: Outcomes) -> None:
        for job, top, logits in zip(ran.jobs, top_classes(ran.logits, TOP_K), ran.logits, strict=True):
            if isinstance(top, RunnerError):
                outcomes.failures.append((job.future, internal_failure(top)))
                continue
            assert job.item is not None
            self.model.answered(job.asked, job.item)
            outcomes.answers.append((job.future, answer_to(job, ran, top, logits)))
        outcomes.ran = ran

    def _help(self) -> None:
        while True:
            with self._changed:
                while not (self._stop or self._coded or self._ran):
                    self._help_wanted.wait()
                ran = self._ran.popleft() if self._ran else None
                if ran is None:
                    if self._stop:
                        return
                    job = self._coded.popleft()
                    if job.stage is not Stage.CODED or job.future.cancelled():
                        continue
                    job.stage = Stage.DECODING
            if ran is not None:
                self._answer_all(ran)
            else:
                self._decode(job)
                with self._changed:
                    self._was_decoded.notify_all()
                del job
            del ran

    def _answer_all(self, ran: Ran) -> None:
        outcomes = Outcomes()
        try:
            self._answer(ran, outcomes)
        except Exception as exc:  # a defect of ours: these requests fail, the lane goes on
            fail_rest(ran.jobs, outcomes, exc, self.model.name)
        self._tell(self._settle, outcomes)

    def _settle(self, outcomes: Outcomes) -> None:
        settle(outcomes)
        if outcomes.ran is not None:
            self._events.batch_ran(self.model.name, len(outcomes.ran.jobs), outcomes.ran.run_s)

    def _decode(self, job: Job) -> None:
        began_s = time.perf_counter()
        error: AecnnError | None = None
        try:
            job.item = self.model.decode(job.asked)
        except AecnnError as exc:
            error = exc
        except Exception as exc:  # hostile bytes that a library of ours does not expect
            error = RequestFailedError(FailureCode.INTERNAL, f"{type(exc).__name__} while decoding")
        job.decode_s = time.perf_counter() - began_s
        job.stage = Stage.DECODED if error is None else Stage.OVER
        if error is not None:
            self._tell(fail, job.future, error)

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
            self._stop = True
