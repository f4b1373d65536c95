"""The rounds of the comparison: which server has its turn when, what is measured of it, and what that comes to."""

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import psutil

from aecnn_deploy.errors import AecnnError, SettingsError
from benchmarks.peer_clients import Work
from benchmarks.peer_load import Load, Order, generate
from benchmarks.peer_model import PeerSettings
from benchmarks.peer_servers import (
    IMAGE,
    PEERS,
    SPLIT,
    Front,
    PeerFailedError,
    PeerMissingError,
    RunningPeer,
    find_triton_python,
    free_port,
    running,
)
from benchmarks.processes import ProcessFailedError, Worker, sleep_until, working

OWN, COMMON = "own", "common"  # whose maximum an open loop's rate is a share of
_START_S = 0.1
_BUSY_CLIENT, _OTHERS = 0.9, 0.1  # shares of a core above which a figure is marked


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, on which cores. Raises SettingsError: a number is out of its range, or cores are shared."""

    server_cores: frozenset[int]
    client_cores: frozenset[int]
    servers: tuple[str, ...] = tuple(PEERS)
    clients: tuple[int, ...] = (16, 8)  # of the closed loops; the first gives the maximum
    connections: int = 32  # of the open loops
    rounds: int = 3
    closed_s: float = 0.8
    open_s: float = 1.5
    shares: tuple[float, ...] = (0.5, 0.9)
    max_batch: int = 8
    batch_wait_ms: float = 1.0

    def __post_init__(self) -> None:
        if not self.server_cores or not self.client_cores or self.server_cores & self.client_cores:
            raise SettingsError(
                f"servers have cores {sorted(self.server_cores)} and clients {sorted(self.client_cores)}; "
                "give each at least one of its own, on a machine with two or more"
            )
        if unknown := set(self.servers) - set(PEERS):
            raise SettingsError(f"no server {unknown.pop()!r}; known are {', '.join(PEERS)}")
        if self.rounds < 1 or not self.clients or min(*self.clients, self.connections) < 1:
            raise SettingsError(f"rounds is {self.rounds}, clients {self.clients}; expected 1 or more of each")
        if min(self.closed_s, self.open_s) <= 0 or not all(0 < share < 1 for share in self.shares):
            raise SettingsError(f"seconds {self.closed_s} and {self.open_s}, shares {self.shares}: out of range")


@dataclass(frozen=True, slots=True)
class Figures:
    """One phase of one server in one round."""

    server: str
    sent: str
    phase: str
    way: str
    rate_hz: float | None  # of an open loop
    load: Load
    server_cpu_s: float
    others_share: float  # of the servers' cores: neither idle nor the server's

    @property
    def marks(self) -> list[str]:
        """Why the figures are to be doubted."""
        found = []
        if self.load.client_share > _BUSY_CLIENT:
            found.append(f"the clients' core was over {_BUSY_CLIENT:.0%} busy")
        if self.others_share > _OTHERS:
            found.append(f"others took over {_OTHERS:.0%} of the servers' cores")
        return found

    def document(self) -> dict[str, Any]:
        load, images = self.load, max(1, self.load.completed)
        late = sorted(load.late_ms)
        return {
            "images_per_s": round(load.images_per_s, 2),
            "p50_ms": _rounded(load.percentile_ms(50)),
            "p99_ms": _rounded(load.percentile_ms(99)),
            "server_cpu_ms_per_image": round(self.server_cpu_s / images * 1e3, 3),
            "client_cpu_ms_per_image": round(load.client_cpu_s / images * 1e3, 3),
            "client_share": round(load.client_share, 3),
            "others_share": round(self.others_share, 3),
            "sent_bytes_per_image": round(load.sent_bytes / images, 1),
            "received_bytes_per_image": round(load.received_bytes / images, 1),
            "late_p99_ms": _rounded(late[int(len(late) * 0.99)]) if late else None,
            "rate_hz": _rounded(self.rate_hz),
        }


@dataclass(slots=True)
class Outcome:
    """All that was measured."""

    figures: list[Figures] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # server -> why
    fronts: dict[str, dict[str, str]] = field(default_factory=dict)  # server -> what is sent -> the way that was taken
    tried: list[dict[str, Any]] = field(default_factory=list)  # of the first round: what each way of asking took
    start_s: dict[str, list[float]] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """Whether every answer was right and no request failed."""
        return all(not each.load.wrong and not each.load.failures for each in self.figures)

    def rows(self) -> list[dict[str, Any]]:
        """One a server, what is sent, and phase: medians over the rounds, and the rounds."""
        order: dict[tuple[str, str, str], list[Figures]] = {}
        for each in self.figures:
            order.setdefault((each.server, each.sent, each.phase), []).append(each)
        return [self._row(key, each) for key, each in order.items()]

    def _row(self, key: tuple[str, str, str], figures: list[Figures]) -> dict[str, Any]:
        rounds = [each.document() for each in figures]
        medians = {name: _median([each[name] for each in rounds]) for name in rounds[0]}
        failures: dict[str, int] = {}
        for each in figures:
            for kind, count in each.load.failures.items():
                failures[kind] = failures.get(kind, 0) + count
        return {
            "server": key[0],
            "sent": key[1],
            "phase": key[2],
            "way": figures[0].way,
            **medians,
            "wrong": sum(each.load.wrong for each in figures),
            "failures": failures,
            "marks": sorted({mark for each in figures for mark in each.marks}),
            "rounds": rounds,
        }


class Rounds:
    """Runs a plan; says on stderr how far it is."""

    def __init__(
        self, plan: Plan, works: Mapping[str, Work], bundle: Path, variant: str, triton_python: Path | None
    ) -> None:
        self._plan, self._works, self._bundle, self._variant = plan, works, bundle, variant
        self._triton_named, self._triton_python = triton_python, None
        self._outcome = Outcome()
        self._chosen: dict[tuple[str, str], Front] = {}
        self._most: dict[tuple[str, str], float] = {}  # (server, what is sent) -> images a second, in the first round

    def run(self) -> Outcome:
        """A first round that finds the maxima and the best front of each server, then the plan's rounds.

        Raises ProcessFailedError: the load generator ended.
        """
        plan = self._plan
        if "triton" in plan.servers:
            try:
                self._triton_python = find_triton_python(self._triton_named)
            except PeerMissingError as exc:
                self._lose("triton", exc)
        with ExitStack() as stack:
            packed = msgspec.msgpack.encode(dict(self._works))
            self._clients = stack.enter_context(working(generate, packed, set(plan.client_cores)))
            self._clients.receive()
            for number in range(plan.rounds + 1):
                for server in _rotated(plan.servers, number):
                    if server not in self._outcome.missing:
                        self._turn(server, number)
        return self._outcome

    def _turn(self, server: str, number: int) -> None:
        """One turn of ``server``; tried once more where its processes fail."""
        measured = len(self._outcome.figures)
        for attempt in (1, 2):
            try:
                self._serve(server, number)
            except (PeerMissingError, PeerFailedError) as exc:
                if attempt == 2 or isinstance(exc, PeerMissingError):
                    self._lose(server, exc)
                    return
                _say(f"{server}: once more: {exc}")
                del self._outcome.figures[measured:]
            else:
                return

    def _serve(self, server: str, number: int) -> None:
        plan = self._plan
        settings = PeerSettings(
            self._bundle, self._variant, free_port(), len(plan.server_cores), plan.max_batch, plan.batch_wait_ms
        )
        with running(PEERS[server], settings, set(plan.server_cores), self._triton_python) as peer:
            self._outcome.start_s.setdefault(server, []).append(round(peer.started_s, 2))
            self._verify(server, peer)
            if number == 0:
                self._choose(server, peer)
                self._outcome.memory_bytes[server] = peer.memory_bytes()
            else:
                self._measure_all(server, peer, number)

    def _lose(self, server: str, exc: AecnnError) -> None:
        self._outcome.missing[server] = str(exc)
        _say(f"{server}: not measured: {exc}")

    def _verify(self, server: str, peer: RunningPeer) -> None:
        for sent, fronts in PEERS[server].fronts.items():
            for front in fronts:
                self._clients.send((front.target(peer.port), f"{sent}/{front.body}"))
                said = self._clients.receive()
                if said != "right":
                    raise PeerFailedError(said)

    def _choose(self, server: str, peer: RunningPeer) -> None:
        """Of each kind the front that takes the server least CPU an image, and what it does a second."""
        for sent, fronts in PEERS[server].fronts.items():
            tried = [(self._closed(server, peer, sent, front, self._plan.clients[0], 0), front) for front in fronts]
            best, self._chosen[server, sent] = min(tried, key=lambda each: _cpu_s_per_image(each[0]))
            self._most[server, sent] = best.load.images_per_s
            self._outcome.fronts.setdefault(server, {})[sent] = best.way
            self._outcome.tried += [
                {"server": server, "sent": sent, "way": each.way, **each.document()} for each, _ in tried
            ]

    def _measure_all(self, server: str, peer: RunningPeer, number: int) -> None:
        for sent in PEERS[server].fronts:
            front = self._chosen[server, sent]
            counts = self._plan.clients if sent == SPLIT else self._plan.clients[:1]
            closed = [self._closed(server, peer, sent, front, count, number) for count in counts]
            self._outcome.figures += closed
            if sent in (SPLIT, IMAGE):
                self._open_loops(server, peer, sent, front, closed[0].load.images_per_s, number)
        _say(f"round {number}: {server} measured")

    def _open_loops(self, server: str, peer: RunningPeer, sent: str, front: Front, most_hz: float, number: int) -> None:
        slowest_hz = min(rate for (_, each), rate in self._most.items() if each == sent)
        rates = [(OWN, share, share * most_hz) for share in self._plan.shares]
        rates.append((COMMON, self._plan.shares[-1], self._plan.shares[-1] * slowest_hz))
        for whose, share, rate_hz in rates:
            if rate_hz <= 0:
                continue
            order = Order(
                front.target(peer.port),
                f"{sent}/{front.body}",
                self._plan.connections,
                self._plan.open_s,
                rate_hz=rate_hz,
                seed=1000 * number + round(100 * share),
            )
            self._outcome.figures.append(self._measured(server, peer, sent, f"{whose}-{share:.0%}", order))

    def _closed(self, server: str, peer: RunningPeer, sent: str, front: Front, clients: int, number: int) -> Figures:
        target, work = front.target(peer.port), f"{sent}/{front.body}"
        order = Order(target, work, clients, self._plan.closed_s, seed=number)
        return self._measured(server, peer, sent, f"max-{clients}", order)

    def _measured(self, server: str, peer: RunningPeer, sent: str, phase: str, order: Order) -> Figures:
        cores = self._plan.server_cores
        _ask(self._clients, order)
        start_s = time.perf_counter() + _START_S
        self._clients.send(start_s)
        sleep_until(start_s + order.warm_up_s)
        before_s, busy_s = peer.cpu_s(), _busy_s(cores)
        sleep_until(start_s + order.warm_up_s + order.seconds)
        cpu_s, busy_s = peer.cpu_s() - before_s, _busy_s(cores) - busy_s
        load = self._clients.receive()
        others = max(0.0, busy_s - cpu_s) / (order.seconds * len(cores))
        return Figures(server, sent, phase, order.target.way, order.rate_hz, load, cpu_s, others)


def _ask(clients: Worker, order: Order) -> None:
    clients.send(order)
    if (said := clients.receive()) != "connected":
        raise ProcessFailedError(f"the load generator said {said!r}")


def _cpu_s_per_image(figures: Figures) -> float:
    return figures.server_cpu_s / max(1, figures.load.completed)


def _busy_s(cores: frozenset[int]) -> float:
    """Seconds that ``cores`` were not idle, those that a hypervisor took included."""
    times = psutil.cpu_times(percpu=True)
    return sum(sum(times[core]) - times[core].idle - times[core].iowait for core in cores)


def _rotated(servers: tuple[str, ...], by: int) -> tuple[str, ...]:
    """Another begins in each round."""
    by %= len(servers)
    return servers[by:] + servers[:by]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(median(known), 3) if known else None


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
