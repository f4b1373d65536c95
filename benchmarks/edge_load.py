"""A load generator for edges: streaming devices, every answer checked.

    .venv/bin/python -m benchmarks.edge_load --edge ws://127.0.0.1:8765 [--devices N] [--window N] [--rate-hz R]

``--devices`` streams send coded planes of real photographs, made before by the head of ``--bundle``, from one or more
generator processes. *Closed loop* (the default): each device keeps ``--window`` requests in flight. *Open loop*
(``--rate-hz``): requests begin at this rate of all devices together, ``--arrivals poisson`` or ``paced``, whatever the
edge does; one whose device has all in flight that the WELCOME allows waits for its turn, and its latency counts from
when it should have begun. The class of each answer is compared with that of the bare tail on the same planes.

Reported: images a second, latency as the generator sees it, the edge's own times, CPU seconds of the generators
(getrusage) and of the edge (``--edge-pid``), all within the measured seconds after a warm-up.
"""

import argparse
import heapq
import random
import resource
import selectors
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.tls import device_context
from benchmarks.processes import Worker, cpu_s, sleep_until, working
from benchmarks.stream_client import Outcome, StreamClient
from benchmarks.traffic import ZOO, Traffic, default_data, make_traffic, named_bundle, photograph_frames, planes_of

_START_S = 0.2  # from the order to the first request, so that all generators begin together
_DRAIN_S = 5.0
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5  # of a device whose request failed, whatever the edge says
_PERCENTILES = (50, 90, 99)
_TIMES = ("decode_ms", "queue_ms", "tail_ms", "total_ms")


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What the devices do. Raises SettingsError: a number is out of its range."""

    url: str  # ws://HOST:PORT
    devices: int = 16
    window: int = 4  # closed loop: requests in flight of each device
    seconds: float = 3.0  # measured, after warm_up_s
    warm_up_s: float = 0.7
    rate_hz: float | None = None  # open loop: requests a second of all devices together
    arrivals: Literal["poisson", "paced"] = "poisson"
    generators: int = 1  # processes
    token: str | None = None
    ca: str | None = None  # PEM file, for a wss:// edge; window 1 only
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.generators <= self.devices:
            raise SettingsError(f"generators is {self.generators}, expected 1 to the {self.devices} devices")
        if self.window < 1 or self.seconds <= 0 or self.warm_up_s < 0:
            raise SettingsError(
                f"window is {self.window}, seconds {self.seconds}, warm_up_s {self.warm_up_s}; "
                "expected at least 1, a positive number and 0 or more"
            )
        if self.rate_hz is not None and self.rate_hz <= 0:
            raise SettingsError(f"rate_hz is {self.rate_hz}, expected a positive number of requests a second")
        if self.ca is not None and (self.window > 1 or self.rate_hz is not None):
            raise SettingsError(f"window is {self.window}; with TLS give window 1, and no rate_hz")


@dataclass(slots=True)
class Samples:
    """What one generator measured; milliseconds, one entry an image."""

    latency_ms: list[float] = field(default_factory=list)
    edge_ms: list[tuple[float, float, float, float]] = field(default_factory=list)  # in the order of _TIMES
    by_device: list[int] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    unanswered: int = 0  # open loop: some seconds after the measured time still without an answer
    sent_bytes: int = 0
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One measurement. ``of_edge`` is (N, 4) milliseconds: decode, queue, tail and total as the edge states them."""

    seconds: float
    images: int
    wrong: int
    unanswered: int
    failures: dict[str, int]
    by_device: list[int]
    latency_ms: "np.ndarray[Any, Any]"
    of_edge: "np.ndarray[Any, Any]"
    sent_bytes: int
    generator_cpu_s: float
    edge_cpu_s: float | None

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds

    @property
    def edge_overhead_ms(self) -> "np.ndarray[Any, Any]":
        """The edge's own: its total less the wait for a turn and the tail's run."""
        _, queue, tail, total = self.of_edge.T
        own: np.ndarray[Any, Any] = total - queue - tail
        return own

    def check(self) -> None:
        """Raises SystemExit: an answer was wrong or there is none."""
        if self.wrong or not self.images:
            raise SystemExit(f"{self.wrong} of {self.images} answers name another class than the bare tail")

    def document(self) -> dict[str, Any]:
        """For a result file."""
        stated = dict(zip(_TIMES, self.of_edge.T, strict=True)) if self.images else {}
        return {
            "images": self.images,
            "images_per_s": round(self.images_per_s, 2),
            "seconds": self.seconds,
            "wrong": self.wrong,
            "unanswered": self.unanswered,
            "failures": self.failures,
            "images_by_device": {"fewest": min(self.by_device), "most": max(self.by_device)},
            "latency_ms": percentiles(self.latency_ms),
            "edge": {name: percentiles(values) for name, values in stated.items()},
            "edge_overhead_ms": percentiles(self.edge_overhead_ms) if self.images else {},
            "sent_bytes": self.sent_bytes,
            "generator_cpu_s": round(self.generator_cpu_s, 3),
            "edge_cpu_s": self.edge_cpu_s,
        }


def percentiles(values: "np.ndarray[Any, Any]") -> dict[str, float]:
    """The 50th, 90th and 99th percentile and the largest; empty for no values."""
    if not len(values):
        return {}
    found = {f"p{each}": round(float(np.percentile(values, each)), 4) for each in _PERCENTILES}
    return found | {"max": round(float(values.max()), 4)}


class Generator:
    """Some devices of one process, on one thread and one selector."""

    def __init__(self, settings: LoadSettings, traffic: Traffic) -> None:
        self._settings, self._traffic = settings, traffic
        tls = device_context(Path(settings.ca), None, None) if settings.ca is not None else None
        self._clients = [
            StreamClient(settings.url, traffic, token=settings.token, tls=tls) for _ in range(settings.devices)
        ]
        self._window = [
            client.max_in_flight if settings.rate_hz is not None else min(settings.window, client.max_in_flight)
            for client in self._clients
        ]
        self._selector = selectors.EpollSelector()
        for number, client in enumerate(self._clients):
            self._selector.register(client, selectors.EVENT_READ, number)
        # Of each device: request id -> (when it should have begun, index into the traffic).
        self._asked: list[dict[int, tuple[float, int]]] = [{} for _ in self._clients]
        self._waiting: list[deque[float]] = [deque() for _ in self._clients]
        self._later: list[tuple[float, int]] = []  # closed loop: (when, device), after a FAILED; a heap
        self._turn = settings.seed
        self._random = random.Random(settings.seed)
        self._samples = Samples(by_device=[0] * len(self._clients))

    def run(self, start_s: float) -> Samples:
        """Warm up from ``start_s`` on, measure, read what is still in flight. Raises WireError: the edge left."""
        settings = self._settings
        self._from_s = start_s + settings.warm_up_s
        self._until_s = self._from_s + settings.seconds
        sleep_until(start_s)
        if settings.rate_hz is None:
            for number, window in enumerate(self._window):
                for _ in range(window):
                    self._ask(number, time.perf_counter())
        self._turn_over(start_s, self._from_s)
        before_s = _own_cpu_s()
        self._turn_over(self._from_s, self._until_s)
        self._samples.cpu_s = _own_cpu_s() - before_s
        end_s = time.perf_counter() + _DRAIN_S
        while (any(self._asked) or any(self._waiting)) and time.perf_counter() < end_s:
            self._read(0.1)
        if self._settings.rate_hz is not None:
            self._samples.unanswered = sum(map(len, self._asked)) + sum(map(len, self._waiting))
        for client in self._clients:
            client.close()
        return self._samples

    def _turn_over(self, begin_s: float, end_s: float) -> None:
        """Read answers, and begin what is due, until ``end_s``."""
        due_s = begin_s + self._gap_s()
        while (now_s := time.perf_counter()) < end_s:
            while due_s <= now_s:
                self._begin(due_s)
                due_s += self._gap_s()
            while self._later and self._later[0][0] <= now_s:
                self._ask(heapq.heappop(self._later)[1], now_s)
            self._read(min([due_s, end_s, *(when_s for when_s, _ in self._later[:1])]) - now_s)

    def _gap_s(self) -> float:
        rate_hz = self._settings.rate_hz
        if rate_hz is None:
            return 3600.0
        return self._random.expovariate(rate_hz) if self._settings.arrivals == "poisson" else 1.0 / rate_hz

    def _begin(self, due_s: float) -> None:
        """Open loop: the next arrival, at a random device, or at each in turn."""
        count = len(self._clients)
        number = self._random.randrange(count) if self._settings.arrivals == "poisson" else self._turn % count
        if len(self._asked[number]) < self._window[number]:
            self._ask(number, due_s)
        else:
            self._waiting[number].append(due_s)
            self._turn += 1

    def _ask(self, number: int, begun_s: float) -> None:
        index = self._turn % len(self._traffic.requests)
        self._turn += 1
        request_id, size = self._clients[number].ask(self._traffic.requests[index])
        self._asked[number][request_id] = (begun_s, index)
        if self._from_s <= begun_s < self._until_s:
            self._samples.sent_bytes += size

    def _read(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            number: int = key.data
            for request_id, outcome in self._clients[number].answers():
                now_s = time.perf_counter()
                begun_s, index = self._asked[number].pop(request_id)
                self._note(number, outcome, begun_s, now_s, index)
                self._go_on(number, outcome, now_s)

    def _go_on(self, number: int, outcome: Outcome, now_s: float) -> None:
        """What a device does with its free place: in an open loop what waits for it, after the measured time too."""
        if self._settings.rate_hz is not None:
            if self._waiting[number]:
                self._ask(number, self._waiting[number].popleft())
        elif now_s < self._until_s and outcome.code:
            heapq.heappush(self._later, (now_s + _pause_s(outcome), number))
        elif now_s < self._until_s:
            self._ask(number, now_s)

    def _note(self, number: int, outcome: Outcome, begun_s: float, now_s: float, index: int) -> None:
        """Closed loop: what comes within the measured time; open loop: what begins within it."""
        if not self._from_s <= (now_s if self._settings.rate_hz is None else begun_s) < self._until_s:
            return
        samples = self._samples
        if outcome.code:
            samples.failures[outcome.code] += 1
            return
        samples.wrong += not outcome.top or outcome.top[0][0] not in self._traffic.requests[index].classes
        samples.by_device[number] += 1
        samples.latency_ms.append((now_s - begun_s) * 1e3)
        samples.edge_ms.append((outcome.decode_ms, outcome.queue_ms, outcome.tail_ms, outcome.total_ms))


def run_load(settings: LoadSettings, traffic: Traffic, *, edge_pid: int | None = None) -> LoadReport:
    """Load an edge from ``settings.generators`` processes; ``edge_pid`` is the process whose CPU time is told.

    Raises ProcessFailedError: a generator ended: it was refused, or the edge left.
    """
    packed = msgspec.msgpack.encode(traffic)
    with ExitStack() as stack:
        workers: list[Worker] = [stack.enter_context(working(generate, each, packed)) for each in _shared_out(settings)]
        for worker in workers:
            worker.receive()  # connected
        start_s = time.perf_counter() + _START_S
        for worker in workers:
            worker.send(start_s)
        sleep_until(start_s + settings.warm_up_s)
        before_s = cpu_s(edge_pid) if edge_pid is not None else None
        sleep_until(start_s + settings.warm_up_s + settings.seconds)
        edge_cpu_s = round(cpu_s(edge_pid) - before_s, 2) if edge_pid is not None and before_s is not None else None
        samples: list[Samples] = [worker.receive() for worker in workers]
    return LoadReport(
        seconds=settings.seconds,
        images=sum(len(each.latency_ms) for each in samples),
        wrong=sum(each.wrong for each in samples),
        unanswered=sum(each.unanswered for each in samples),
        failures=dict(sum((each.failures for each in samples), Counter())),
        by_device=[count for each in samples for count in each.by_device],
        latency_ms=np.array([value for each in samples for value in each.latency_ms]),
        of_edge=np.array([row for each in samples for row in each.edge_ms]).reshape(-1, len(_TIMES)),
        sent_bytes=sum(each.sent_bytes for each in samples),
        generator_cpu_s=sum(each.cpu_s for each in samples),
        edge_cpu_s=edge_cpu_s,
    )


def generate(connection: Connection, settings: LoadSettings, packed: bytes) -> None:
    """One generator process: connect, say so, wait for the moment to start, answer with the Samples."""
    generator = Generator(settings, msgspec.msgpack.decode(packed, type=Traffic))
    connection.send("connected")
    connection.send(generator.run(connection.recv()))


def _shared_out(settings: LoadSettings) -> list[LoadSettings]:
    """The part of each generator process: its devices, and its share of the rate."""
    parts = []
    for number in range(settings.generators):
        devices = len(range(number, settings.devices, settings.generators))
        rate_hz = settings.rate_hz * devices / settings.devices if settings.rate_hz is not None else None
        parts.append(replace(settings, devices=devices, rate_hz=rate_hz, generators=1, seed=settings.seed + number))
    return parts


def _pause_s(failed: Outcome) -> float:
    return min(failed.retry_after_s or _SHORTEST_PAUSE_S, _LONGEST_PAUSE_S)


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", required=True, help="the edge: ws://HOST:PORT")
    parser.add_argument("--bundle", default=ZOO, help="the edge's bundle: a path, or zoo:NAME")
    parser.add_argument("--variant", help="the bundle's first if not given")
    parser.add_argument("--data", type=Path, default=default_data(), help="photographs; default: patches of samples")
    parser.add_argument("--photographs", type=int, default=64, help="how many different requests there are")
    parser.add_argument("--edge-pid", type=int, help="the edge's process, for its CPU time")
    for name, default, text in (
        ("devices", 16, "streams"),
        ("window", 4, "requests in flight of each device"),
        ("generators", 1, "processes"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--seconds", type=float, default=3.0, help="to measure")
    parser.add_argument("--rate-hz", type=float, help="open loop: requests a second of all devices together")
    parser.add_argument("--arrivals", choices=("poisson", "paced"), default="poisson", help="of an open loop")
    parser.add_argument("--token", help="bearer token")
    options = parser.parse_args(arguments)
    bundle = named_bundle(options.bundle)
    spec = bundle.variant(options.variant)
    frames = photograph_frames(bundle.manifest.input, options.data, options.photographs)
    traffic = make_traffic(bundle, spec.id, planes_of(bundle, spec.id, frames))
    settings = LoadSettings(
        options.edge,
        devices=options.devices,
        window=options.window,
        seconds=options.seconds,
        rate_hz=options.rate_hz,
        arrivals=options.arrivals,
        generators=options.generators,
        token=options.token,
    )
    report = run_load(settings, traffic, edge_pid=options.edge_pid)
    document = {"settings": asdict(settings) | {"token": None}, **report.document()}
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
