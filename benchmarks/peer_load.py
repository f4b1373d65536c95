"""The load: N clients in a closed loop, or arrivals that keep their schedule whatever the peer does.

*Closed loop*: each client asks again when it has its answer; that is a peer's throughput. *Open loop*: arrivals of a
Poisson process, drawn from a seed, so that the same rate means the same moments for every peer. An arrival takes the
client that has idled longest; when all are busy it waits for one. Its latency counts from the moment on its schedule
and not from when it was sent, so that a peer that stalls is not asked less for it.

Every answer's class is compared. What fails is counted by kind and is no image.
"""

import os
import random
import selectors
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import numpy as np

from aecnn_deploy.errors import AecnnError, EdgeUnreachableError, SessionRefusedError, SettingsError, WireError
from benchmarks.peer_clients import Client, ClientError, Target, Work, connect, wire_bytes
from benchmarks.processes import sleep_until

_DRAIN_S = 3.0
_PAUSE_S = 0.02  # of a client whose request failed
_SLOWEST_START_S = 60.0  # of a model that is loaded when it is first asked for


@dataclass(frozen=True, slots=True)
class Order:
    """One phase of load. Raises SettingsError: a number is out of its range."""

    target: Target
    work: str  # its name
    clients: int
    seconds: float  # measured, after warm_up_s
    warm_up_s: float = 0.2
    rate_hz: float | None = None  # of all clients together; None: a closed loop
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clients < 1 or self.seconds <= 0 or self.warm_up_s < 0:
            raise SettingsError(
                f"clients is {self.clients}, seconds {self.seconds}, warm_up_s {self.warm_up_s}; expected at least 1, "
                "a positive number and 0 or more"
            )
        if self.rate_hz is not None and self.rate_hz <= 0:
            raise SettingsError(f"rate_hz is {self.rate_hz}, expected a positive number of requests a second")


@dataclass(slots=True)
class Load:
    """What came of an order. Latencies in ms, of what was asked (open loop: due) within the measured seconds."""

    seconds: float
    completed: int = 0  # right answers that came within the measured seconds, whenever they were asked for
    latency_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)  # open loop, where a client was idle: sent after it was due
    wrong: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    client_cpu_s: float = 0.0
    sent_bytes: int = 0  # within the measured seconds, see wire_bytes
    received_bytes: int = 0

    @property
    def images_per_s(self) -> float:
        return self.completed / self.seconds

    @property
    def client_share(self) -> float:
        """Of one core that the client process took."""
        return self.client_cpu_s / self.seconds

    def percentile_ms(self, percent: float) -> float | None:
        return float(np.percentile(self.latency_ms, percent)) if self.latency_ms else None


class Generator:
    """The clients of one order, on one thread and one selector."""

    def __init__(self, order: Order, work: Work) -> None:
        self._order, self._work = order, work
        self._clients: list[Client] = [connect(order.target, work) for _ in range(order.clients)]
        self._selector = selectors.SelectSelector()  # epoll's timeouts are whole milliseconds
        for number, client in enumerate(self._clients):
            self._selector.register(client, selectors.EVENT_READ, number)
        self._idle = deque(range(order.clients))
        self._asked: dict[int, tuple[float, int]] = {}  # client -> (when it was due, which body)
        self._waiting: deque[float] = deque()  # open loop: due, and no client was idle
        self._resting: deque[tuple[float, int]] = deque()  # after a failure: (until when, client)
        self._turn = order.seed
        self._random = random.Random(order.seed)
        self._load = Load(order.seconds)

    def run(self, start_s: float) -> Load:
        """Warm up from ``start_s`` on (``time.perf_counter``), measure, wait for what is still in flight."""
        order, load = self._order, self._load
        self._from_s = start_s + order.warm_up_s
        self._until_s = self._from_s + order.seconds
        self._due_s = start_s + self._gap_s() if order.rate_hz is not None else float("inf")
        sleep_until(start_s)
        self._turn_over(self._from_s)
        before_s, before = time.process_time(), wire_bytes(order.target.port)
        self._turn_over(self._until_s)
        load.client_cpu_s = time.process_time() - before_s
        after = wire_bytes(order.target.port)
        load.sent_bytes, load.received_bytes = after[0] - before[0], after[1] - before[1]
        end_s = time.perf_counter() + _DRAIN_S
        while (self._asked or self._waiting) and (left_s := end_s - time.perf_counter()) > 0:
            self._wake()
            self._read(min(left_s, _PAUSE_S))
        unanswered = [due_s for due_s, _ in self._asked.values()] + list(self._waiting)
        load.failures["unanswered"] += sum(self._counts(due_s) for due_s in unanswered)
        load.failures = +load.failures
        self.close()
        return load

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._selector.close()

    def _turn_over(self, end_s: float) -> None:
        """Ask what is due and read answers until ``end_s``."""
        closed = self._order.rate_hz is None
        while (now_s := time.perf_counter()) < end_s:
            self._wake()
            while self._due_s <= now_s:
                self._begin(self._due_s)
                self._due_s += self._gap_s()
            while closed and self._idle:
                self._ask(self._idle.popleft(), time.perf_counter())
            nearest_s = min(self._due_s, end_s, *(until_s for until_s, _ in list(self._resting)[:1]))
            self._read(nearest_s - time.perf_counter())

    def _gap_s(self) -> float:
        assert self._order.rate_hz is not None
        return self._random.expovariate(self._order.rate_hz)

    def _begin(self, due_s: float) -> None:
        if not self._idle:
            self._waiting.append(due_s)
            return
        self._ask(self._idle.popleft(), due_s)
        if self._counts(due_s):
            self._load.late_ms.append((time.perf_counter() - due_s) * 1e3)

    def _ask(self, number: int, due_s: float) -> None:
        body = self._turn % len(self._work.classes)
        self._turn += 1
        self._asked[number] = (due_s, body)
        try:
            self._clients[number].ask(body)
        except OSError:
            self._lost(number)

    def _read(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            number: int = key.data
            if number not in self._asked:  # only the end of a connection comes unasked
                self._lost(number)
                continue
            try:
                found = self._clients[number].answer()
            except ClientError as exc:
                self._failed(number, exc.kind)
            except (OSError, WireError):
                self._lost(number)
            else:
                if found is not None:
                    self._answered(number, found)

    def _answered(self, number: int, found: int) -> None:
        now_s = time.perf_counter()
        due_s, body = self._asked.pop(number)
        right = found in self._work.classes[body]
        if self._counts(due_s):
            self._load.wrong += not right
            self._load.latency_ms.append((now_s - due_s) * 1e3)
        if self._from_s <= now_s < self._until_s:
            self._load.completed += right
        self._free(number)

    def _free(self, number: int) -> None:
        if self._waiting:
            self._ask(number, self._waiting.popleft())
        else:
            self._idle.append(number)

    def _failed(self, number: int, kind: str) -> None:
        if number in self._asked and self._counts(self._asked.pop(number)[0]):
            self._load.failures[kind] += 1
        self._resting.append((time.perf_counter() + _PAUSE_S, number))

    def _lost(self, number: int) -> None:
        """Its connection is gone: what it had asked has failed, and it connects again after a pause."""
        self._selector.unregister(self._clients[number])
        self._clients[number].close()
        self._failed(number, "connection")

    def _wake(self) -> None:
        now_s = time.perf_counter()
        while self._resting and self._resting[0][0] <= now_s:
            _, number = self._resting.popleft()
            if self._gone(number) and not self._connect_again(number):
                self._resting.append((now_s + _PAUSE_S, number))
                return
            self._free(number)

    def _gone(self, number: int) -> bool:
        return number not in {key.data for key in self._selector.get_map().values()}

    def _connect_again(self, number: int) -> bool:
        try:
            self._clients[number] = connect(self._order.target, self._work)
        except (OSError, EdgeUnreachableError, SessionRefusedError):
            return False
        self._selector.register(self._clients[number], selectors.EVENT_READ, number)
        return True

    def _counts(self, due_s: float) -> bool:
        return self._from_s <= due_s < self._until_s


def verify(target: Target, work: Work) -> None:
    """Ask for every body once, one after the other; the first answer may take as long as loading a model.

    Raises SystemExit: a class is wrong, or a request fails: nothing that such a peer does is worth timing.
    """
    client = connect(target, work)
    try:
        for number, classes in enumerate(work.classes):
            try:
                found = _asked(client, number)
            except OSError:  # a front that has just started may start again: Ray's HAProxy, with the replicas in it
                client.close()
                client = connect(target, work)
                found = _asked(client, number)
            if found not in classes:
                raise SystemExit(
                    f"{target.way} on port {target.port} names class {found} for request {number}, the model run "
                    f"directly names {' or '.join(map(str, classes))}: not measured"
                )
    except (AecnnError, OSError) as exc:
        raise SystemExit(f"{target.way} on port {target.port} failed request {number}: {exc}") from None
    finally:
        client.close()


def _asked(client: Client, number: int) -> int:
    client.ask(number)
    end_s = time.perf_counter() + _SLOWEST_START_S
    with selectors.SelectSelector() as selector:
        selector.register(client, selectors.EVENT_READ)
        while selector.select(max(0.0, end_s - time.perf_counter())):
            if (found := client.answer()) is not None:
                return found
    raise ClientError("slow", f"no answer came within {_SLOWEST_START_S:g} s")


def generate(connection: Connection, packed: bytes, cores: set[int]) -> None:
    """A process on ``cores`` that has the works, by name: a Target and a name is verified, answered by "right" or what
    is wrong; an Order is answered by "connected", then a start time is awaited, then the Load is sent."""
    os.sched_setaffinity(0, cores)
    works: dict[str, Work] = msgspec.msgpack.decode(packed, type=dict[str, Work])
    connection.send("ready")
    while True:
        order: Any = connection.recv()
        if not isinstance(order, Order):
            target, name = order
            try:
                verify(target, works[name])
            except SystemExit as exc:
                connection.send(str(exc))
            else:
                connection.send("right")
            continue
        generator = Generator(order, works[order.work])
        connection.send("connected")
        connection.send(generator.run(connection.recv()))
