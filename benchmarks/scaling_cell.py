"""One cell of a fleet of edges in discrete events: event loops, the queues behind them, and the tails that they share.

A *cell* is what shares tails: one ``serve-edge`` process with a model of its own, or many of them (*fronts*) in front
of many tails (``--ray``, ``--upstream``). Cells do not meet, so a fleet is simulated one after the other. What the
product does is done by the product's code: ``FairQueue`` takes turns, ``BatchTimes`` chooses sizes of batches and says
whether a deadline can be met, ``retry_s`` how long a refused device waits, ``Backoff`` when a device connects again.

What is modelled here, and how:

* **A front** is one thread that does one thing after the other, in order of arrival: a message in costs ``receive_s``,
  an answer ``answer_s``, a new connection ``connect_s`` of it.
* **A lane** takes what waits when a slot is free, like ``Lane._take``. What comes to an idle lane is decoded in the
  run's own time, what waits is decoded meanwhile.
* **A tail** runs one batch at a time; its time is measured, times a draw of ``noise``. Where front and tail share
  cores, whatever the front works during a run makes the run longer by ``contention`` times as much.
* **A device** has at most ``window`` requests without an answer and drops frames beyond (``--policy latest``); one that
  is refused sends nothing for as long as the answer says.
"""

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.backoff import Backoff
from aecnn_deploy.runtimes.batch_times import BatchTimes, retry_s
from aecnn_deploy.runtimes.fair_queue import FairQueue

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_WAKE, _DONE, _CONNECT = 0, 1, 2
_BUSY_S = 1.0  # a device's pause after REFUSED overloaded is at least so long
_SMALLEST_S = 1e-6  # a run that was held up by less is not looked at again


class Fate(IntEnum):
    """What became of a frame."""

    LOST = 0  # still under way when its edge died, or when the simulation ended
    OK = 1
    DROPPED = 2  # its device had all in flight that it may have, or was told to wait
    OVERLOADED = 3
    DEADLINE = 4
    AWAY = 5  # its device had no connection


@dataclass(frozen=True, slots=True)
class CellShape:
    """What a cell is made of, and what everything in it takes. Raises SettingsError: a number is out of its range."""

    batch_s: tuple[tuple[int, float], ...]  # (size, seconds) of a tail's runs, as measured
    fronts: int = 1
    tails: int = 1
    slots: int = 1  # batches of one front that run at once: Runner.concurrency
    max_batch: int = 16
    sizes: tuple[int, int] | None = None  # of batches, and of those where much waits; None: as BatchTimes chooses
    receive_s: float = 0.0
    answer_s: float = 0.0
    decode_s: float = 0.0  # of an image in an idle lane; of those that wait it is in beside_s
    beside_s: float = 0.0  # CPU time of the other threads an image: decoding, gathering, the best classes
    hop_s: float = 0.0  # to a tail elsewhere and back
    contention: float = 0.0  # 1: a run waits for all that others do on its cores; 0: it has cores of its own
    noise: tuple[float, ...] = (1.0,)  # how much longer than measured runs take: drawn from these
    connect_s: float = 0.0
    connect_timeout_s: float = 10.0  # of the edge (--handshake-s) and of the device (--timeout-s)
    waiting_connections: int | None = None  # that may have said nothing yet; None: any number
    max_streams: int = 256  # of a front; who comes to a full one is refused
    max_queue: int = 256
    max_in_flight: int = 512
    window: int = 4
    deadline_s: float | None = None
    tokens: bool = True  # each device is a peer of its own; else all share the place of one
    slow: tuple[float, float, float] = (0.0, 0.0, 1.0)  # from, until, times as long: another model is being loaded

    def __post_init__(self) -> None:
        for name in ("fronts", "tails", "slots", "max_batch", "max_streams", "max_queue", "max_in_flight", "window"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} of a cell is {getattr(self, name)}, expected at least 1")
        for name in ("receive_s", "answer_s", "decode_s", "beside_s", "hop_s", "contention", "connect_s"):
            if not 0 <= getattr(self, name) < 1e6:
                raise SettingsError(f"{name} of a cell is {getattr(self, name)}, expected 0 or more")
        if not self.batch_s or min(seconds for _, seconds in self.batch_s) <= 0:
            raise SettingsError(
                "batch_s of a cell needs at least one size with a positive time; measure the tail first"
            )
        if self.contention and (self.fronts > 1 or self.tails > 1):
            raise SettingsError(
                f"contention is {self.contention} in a cell of {self.fronts} fronts and {self.tails} tails; "
                "only one front and one tail share cores, give 0"
            )

    def times(self) -> BatchTimes:
        """What a lane knows of its tail once it is loaded."""
        found = BatchTimes()
        for size, seconds in self.batch_s:
            found.ran(size, seconds)
        return found


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Frames as they reach the cell, in order of time. ``at_s`` and ``device`` (N); ``front_of`` by device."""

    at_s: Floats
    device: Ints
    front_of: Ints


@dataclass(slots=True)
class CellResult:
    """What became of each frame of ``Arrivals``. Seconds; NaN where there was no answer."""

    fate: npt.NDArray[np.int8]
    answered_s: Floats  # when the answer left
    queue_s: Floats  # as RESULT states it: from reception to the run
    run_s: Floats  # of its batch
    batch: Ints
    front_busy_s: Floats  # by front
    tail_busy_s: Floats  # by tail
    connected_s: dict[int, float] = field(default_factory=dict)  # device -> when, of those that had to connect
    attempts: int = 0
    refused_attempts: int = 0
    late_attempts: int = 0


def simulate(
    shape: CellShape,
    arrivals: Arrivals,
    *,
    seed: int = 0,
    connects: tuple[tuple[float, int], ...] = (),
    reachable_s: float = 0.0,
    until_s: float = math.inf,
) -> CellResult:
    """Run ``arrivals`` through the cell until all is answered, or the cell dies at ``until_s``.

    ``connects``: (first attempt, device) of devices that are not connected at the start. No attempt before
    ``reachable_s`` comes to anything.
    """
    return _Cell(shape, arrivals, seed, connects, reachable_s, until_s).run()


class _Cell:
    """The state of one simulation. Lists in place of arrays: single elements of a list are several times faster."""

    def __init__(
        self,
        shape: CellShape,
        arrivals: Arrivals,
        seed: int,
        connects: tuple[tuple[float, int], ...],
        reachable_s: float,
        until_s: float,
    ) -> None:
        self.shape, self.until_s, self.reachable_s, self.seed = shape, until_s, reachable_s, seed
        self.at_s: list[float] = arrivals.at_s.tolist()
        self.device: list[int] = arrivals.device.tolist()
        self.front_of: list[int] = arrivals.front_of.tolist()
        count, devices = len(self.at_s), len(self.front_of)
        self.times = shape.times()
        self.batch_size, self.busy_size = shape.sizes or (
            self.times.best_size(shape.max_batch),
            self.times.busy_size(shape.max_batch),
        )
        self.seconds = [self.times.seconds(size) for size in range(shape.max_batch + 1)]
        self.random = random.Random(seed)
        self.fate = [int(Fate.LOST)] * count
        self.entered_s = [math.nan] * count
        self.answered_s = [math.nan] * count
        self.queue_s = [math.nan] * count
        self.run_s = [math.nan] * count
        self.batch = [0] * count
        self.in_flight = [0] * devices
        self.not_before_s = [0.0] * devices
        self.connected = [True] * devices
        self.backoffs: dict[int, Backoff] = {}
        self.front_free_s = [0.0] * shape.fronts
        self.front_busy_s = [0.0] * shape.fronts
        self.stolen_s = [0.0] * shape.fronts  # what was done on the cores of this front's tail beside it
        self.pending: list[deque[int]] = [deque() for _ in range(shape.fronts)]  # received, not looked at yet
        self.queues: list[FairQueue[int]] = [FairQueue() for _ in range(shape.fronts)]
        self.inside = [0] * shape.fronts  # requests without an answer
        self.idle = [shape.slots] * shape.fronts
        self.awake = [False] * shape.fronts  # whether a look at ``pending`` is due
        self.running: list[dict[int, tuple[float, int]]] = [{} for _ in range(shape.fronts)]  # batch -> (began, size)
        self.tail_free_s = [0.0] * shape.tails
        self.tail_busy_s = [0.0] * shape.tails
        self.open_connects: list[deque[float]] = [deque() for _ in range(shape.fronts)]  # when each will be done
        self.batches: dict[int, tuple[int, list[int], float, float, float]] = {}
        self.heap: list[tuple[float, int, int]] = []
        self.number = 0
        self.result: CellResult
        self.connected_s: dict[int, float] = {}
        self.streams = np.bincount(arrivals.front_of, minlength=shape.fronts).tolist()
        self.attempts = self.refused = self.late = 0
        for when_s, device in connects:
            self.connected[device], self.not_before_s[device] = False, math.inf
            self.streams[self.front_of[device]] -= 1
            self.heap.append((when_s, _CONNECT, device))
        heapq.heapify(self.heap)

    def run(self) -> CellResult:
        heap, at_s, device, front_of = self.heap, self.at_s, self.device, self.front_of
        not_before_s, in_flight, pending, entered_s = self.not_before_s, self.in_flight, self.pending, self.entered_s
        front_free_s, front_busy_s, stolen_s = self.front_free_s, self.front_busy_s, self.stolen_s
        idle, awake, inside = self.idle, self.awake, self.inside
        receive_s, window = self.shape.receive_s, self.shape.window
        work_s = receive_s + self.shape.beside_s
        count, until_s, at = len(at_s), self.until_s, 0
        while at < count or heap:
            next_s = heap[0][0] if heap else math.inf
            while at < count and (now_s := at_s[at]) <= next_s and now_s <= until_s:
                number, at = at, at + 1
                who = device[number]
                if not_before_s[who] > now_s or in_flight[who] >= window:
                    self.fate[number] = Fate.DROPPED if self.connected[who] else Fate.AWAY
                    continue
                front = front_of[who]
                free_s = front_free_s[front]
                entered_s[number] = front_free_s[front] = free_s = (now_s if now_s > free_s else free_s) + receive_s
                front_busy_s[front] += receive_s
                stolen_s[front] += work_s
                in_flight[who] += 1
                inside[front] += 1
                pending[front].append(number)
                if idle[front] and not awake[front]:
                    awake[front] = True
                    heapq.heappush(heap, (free_s, _WAKE, front))
                    next_s = heap[0][0]
            if not heap or (at < count and at_s[at] <= next_s) or next_s > until_s:
                break  # all is done, or the cell is dead
            now_s, kind, what = heapq.heappop(heap)
            if kind == _WAKE:
                awake[what] = False
                self._look(what, now_s)
                self._take(what, now_s, idle_before=True)
            elif kind == _DONE:
                self._done(what, now_s)
            elif at < count:  # after the last frame nobody need connect
                self._connect(what, now_s)
        return CellResult(
            fate=np.array(self.fate, np.int8),
            answered_s=np.array(self.answered_s),
            queue_s=np.array(self.queue_s),
            run_s=np.array(self.run_s),
            batch=np.array(self.batch, np.int64),
            front_busy_s=np.array(self.front_busy_s),
            tail_busy_s=np.array(self.tail_busy_s),
            connected_s=self.connected_s,
            attempts=self.attempts,
            refused_attempts=self.refused,
            late_attempts=self.late,
        )

    def _look(self, front: int, now_s: float) -> None:
        """Queue what the front has by now, or refuse it: ``EdgeService.check_open`` and ``Lane.submit``."""
        pending, entered_s, queue, shape = self.pending[front], self.entered_s, self.queues[front], self.shape
        while pending and entered_s[pending[0]] <= now_s:
            number = pending.popleft()
            who = self.device[number]
            peer = who if shape.tokens else -1
            full = self.inside[front] > shape.max_in_flight or len(queue) >= shape.max_queue
            if full:
                crowded = queue.crowded(peer, who)
                if crowded is None:
                    self._refuse(front, number, Fate.OVERLOADED, self._wait_s(front, len(queue), now_s))
                    continue
                self._refuse(front, crowded, Fate.OVERLOADED, self._wait_s(front, len(queue), now_s))
            if shape.deadline_s is not None and (late_s := self._late_s(front, peer, number)) > 0:
                self._refuse(front, number, Fate.DEADLINE, late_s)
                continue
            queue.push(peer, who, number)

    def _late_s(self, front: int, peer: int, number: int) -> float:
        """By how much its deadline cannot be met, as ``Lane`` foresees it."""
        assert self.shape.deadline_s is not None
        ahead = self.queues[front].ahead(peer, self.device[number])
        if not ahead and not self.running[front]:
            needed_s = self.times.fastest_s
        else:
            size = min(self.batch_size, ahead + 1)
            needed_s = self._wait_s(front, ahead, self.entered_s[number]) + self.seconds[size]
        return self.entered_s[number] + needed_s - self.at_s[number] - self.shape.deadline_s

    def _wait_s(self, front: int, ahead: int, now_s: float) -> float:
        running = self.running[front]
        rest_s = max((began_s + self.seconds[size] - now_s for began_s, size in running.values()), default=0.0)
        return self.times.wait_s(ahead, self.batch_size, max(0.0, rest_s))

    def _refuse(self, front: int, number: int, fate: Fate, wait_s: float) -> None:
        """Answer FAILED: the device sends nothing for ``retry_after_s``."""
        self.fate[number] = fate
        who, entered_s = self.device[number], self.entered_s[number]
        self._work(front, entered_s, self.shape.answer_s)
        self.not_before_s[who] = max(self.not_before_s[who], entered_s + retry_s(wait_s))
        self.in_flight[who] -= 1
        self.inside[front] -= 1

    def _work(self, front: int, now_s: float, seconds: float) -> float:
        """The front works for ``seconds`` as soon as it can; when that is done."""
        done_s = max(self.front_free_s[front], now_s) + seconds
        self.front_free_s[front] = done_s
        self.front_busy_s[front] += seconds
        self.stolen_s[front] += seconds
        return done_s

    def _take(self, front: int, now_s: float, *, idle_before: bool) -> None:
        """Begin batches while there are slots and requests; see to it that somebody looks again."""
        queue, shape = self.queues[front], self.shape
        while self.idle[front] and queue:
            size = self.busy_size if len(queue) >= 2 * self.busy_size else self.batch_size
            jobs: list[int] = []
            while queue and len(jobs) < size:
                number = queue.pop()
                if shape.deadline_s is not None and now_s > self.at_s[number] + shape.deadline_s:
                    self._refuse(front, number, Fate.DEADLINE, now_s - self.at_s[number] - shape.deadline_s)
                else:
                    jobs.append(number)
            if jobs:
                self._begin(front, jobs, now_s + (shape.decode_s * len(jobs) if idle_before else 0.0))
        if self.idle[front] and self.pending[front] and not self.awake[front]:
            self.awake[front] = True
            heapq.heappush(self.heap, (self.entered_s[self.pending[front][0]], _WAKE, front))

    def _begin(self, front: int, jobs: list[int], now_s: float) -> None:
        shape, tails = self.shape, self.tail_free_s
        tail = min(range(len(tails)), key=tails.__getitem__) if len(tails) > 1 else 0
        began_s = max(now_s + shape.hop_s / 2, tails[tail])
        run_s = self.seconds[len(jobs)]
        if len(shape.noise) > 1:
            run_s *= self.random.choice(shape.noise)
        slow_from_s, slow_until_s, slower = shape.slow
        if slow_from_s <= began_s < slow_until_s:
            run_s *= slower
        tails[tail] = began_s + run_s
        self.tail_busy_s[tail] += run_s
        self.idle[front] -= 1
        number, self.number = self.number, self.number + 1
        self.running[front][number] = (began_s, len(jobs))
        self.batches[number] = (front, jobs, began_s, run_s, self.stolen_s[front])
        heapq.heappush(self.heap, (began_s + run_s + shape.hop_s / 2, _DONE, number))

    def _done(self, batch: int, now_s: float) -> None:
        front, jobs, began_s, run_s, stolen_s = self.batches[batch]
        shape = self.shape
        if shape.contention and (longer_s := (self.stolen_s[front] - stolen_s) * shape.contention) > _SMALLEST_S:
            self.batches[batch] = (front, jobs, began_s, run_s + longer_s, self.stolen_s[front])
            heapq.heappush(self.heap, (now_s + longer_s, _DONE, batch))
            self.tail_free_s[0] = max(self.tail_free_s[0], now_s + longer_s)
            return
        del self.batches[batch], self.running[front][batch]
        self.idle[front] += 1
        self._look(front, now_s)
        # Before the answers: where much waits the helper makes them, else they are few.
        self._take(front, now_s, idle_before=False)
        for number in jobs:
            self.fate[number] = Fate.OK
            self.queue_s[number] = max(0.0, began_s - self.entered_s[number])
            self.run_s[number], self.batch[number] = run_s, len(jobs)
            self.answered_s[number] = self._work(front, now_s, shape.answer_s)
            self.in_flight[self.device[number]] -= 1
        self.inside[front] -= len(jobs)

    def _connect(self, who: int, now_s: float) -> None:
        """One attempt of a device without a connection."""
        shape, front = self.shape, self.front_of[who]
        backoff = self.backoffs.get(who)
        if backoff is None:
            backoff = self.backoffs[who] = Backoff(random.Random(self.seed * 1_000_003 + who))
        self.attempts += 1
        waiting = self.open_connects[front]
        while waiting and waiting[0] <= now_s:
            waiting.popleft()
        crowded = shape.waiting_connections is not None and len(waiting) >= shape.waiting_connections
        if now_s < self.reachable_s or crowded:
            self.refused += crowded
            heapq.heappush(self.heap, (now_s + backoff.pause_s(), _CONNECT, who))
        elif self.front_free_s[front] + shape.connect_s - now_s > shape.connect_timeout_s:
            self.late += 1
            heapq.heappush(self.heap, (now_s + shape.connect_timeout_s + backoff.pause_s(), _CONNECT, who))
        elif self.streams[front] >= shape.max_streams:
            self.refused += 1
            heard_s = self._work(front, now_s, shape.connect_s)
            waiting.append(heard_s)
            pause_s = backoff.pause_s(at_least_s=_BUSY_S)
            heapq.heappush(self.heap, (heard_s + pause_s, _CONNECT, who))
        else:
            done_s = self._work(front, now_s, shape.connect_s)
            waiting.append(done_s)
            self.streams[front] += 1
            self.connected[who], self.not_before_s[who] = True, done_s
            self.connected_s[who] = done_s
