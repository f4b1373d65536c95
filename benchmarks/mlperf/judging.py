"""One process for a scenario and a system: it warms up, is asked for tests, and says how each went.

LoadGen cannot be stopped from Python, and its C++ threads call back into Python: in a process of its own a test that
fails is ended with that process, whose last words say why.
"""

import os
import queue
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Semaphore, Thread
from threading import enumerate as all_threads
from typing import NoReturn

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.errors import AecnnError
from benchmarks.mlperf.loadgen import Library, LoadGen, Query, Responder, Setting
from benchmarks.mlperf.settings import ArmName, JudgeError, Mode, Scenario, SystemSettings
from benchmarks.mlperf.systems import SYSTEMS, System

_SAMPLE_S = 0.25  # between two looks at LoadGen's own threads
_SILENCE_S = 20.0  # beyond the system's own timeout
_SWITCH_INTERVAL_S = 0.0005  # what ``run_frames`` sets for the split system; so all systems have it
_FITTING = 1024  # samples in memory at a time, as of MLPerf's own image classification
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class SetUp:
    """What the process judges. ``files``: image files, whose places are LoadGen's sample indices."""

    scenario: Scenario
    arm: ArmName
    bundle: Path
    system: SystemSettings
    edge_url: str
    files: tuple[Path, ...]
    conf: Path
    probe_s: float = 1.0  # how long the system is kept busy to see how fast it is, after half as long of warming up


@dataclass(frozen=True, slots=True)
class Order:
    """One test: LoadGen's mode, attributes of its settings that are not as its files have them, where its logs go."""

    mode: Mode
    folder: Path
    changes: dict[str, Setting]


@dataclass(frozen=True, slots=True)
class Ready:
    """The process is ready for orders; the system answered ``rate_hz`` samples a second when it was kept busy."""

    rate_hz: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A test ran to its end. CPU seconds are of all threads of this process, LoadGen's included."""

    seconds: float
    samples: int
    sent_bytes: int
    cpu_s: float
    loadgen_cpu_s: float  # of it: the thread that issues queries, and those that LoadGen made
    settings: dict[str, Setting]


@dataclass(frozen=True, slots=True)
class Failed:
    """The process ends: nothing more can be asked of it."""

    why: str


def judge(connection: Connection, set_up: SetUp) -> None:
    """The process: says ``Ready``, then ``Outcome`` for each ``Order``; ``Failed`` if it cannot go on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        bundle = open_bundle(set_up.bundle)
        loadgen = LoadGen(set_up.scenario, set_up.conf)
        with SYSTEMS[set_up.arm](bundle, set_up.system, set_up.edge_url, set_up.files) as system:
            connection.send(Ready(probe(system, len(set_up.files), set_up.probe_s)))
            while True:
                connection.send(_test(loadgen, system, len(set_up.files), connection.recv()))
    except AecnnError as exc:
        _leave(connection, str(exc))
    except EOFError:
        _leave(connection, "nobody asks any more")
    except BaseException as exc:
        _leave(connection, f"{type(exc).__name__}: {exc}")


def probe(system: System, samples: int, seconds: float) -> float:
    """Samples a second of a system that is kept busy. Raises JudgeError: it does not answer."""
    fitting = range(min(samples, 64))
    places = Semaphore(2 * system.settings.in_flight)
    failures: queue.SimpleQueue[str] = queue.SimpleQueue()
    system.on_answer = lambda response_id, index: places.release()
    system.on_failure = failures.put
    system.load(fitting)
    turn, before, from_s = 0, 0, time.perf_counter() + seconds / 2
    while (now_s := time.perf_counter()) < from_s + seconds:
        if now_s < from_s:
            before = system.answered
        _wait_for_place(system, places, failures)
        system.issue([(turn, fitting[turn % len(fitting)])])
        turn += 1
    rate_hz = (system.answered - before) / (time.perf_counter() - from_s)
    for _ in range(2 * system.settings.in_flight):  # the rest is answered
        _wait_for_place(system, places, failures)
    system.unload(fitting)
    return max(rate_hz, 1 / seconds)  # a system that slow is one all the same


def _wait_for_place(system: System, places: Semaphore, failures: "queue.SimpleQueue[str]") -> None:
    end_s = time.perf_counter() + system.settings.timeout_s + _SILENCE_S
    while not places.acquire(timeout=_SAMPLE_S):
        if not failures.empty():
            raise JudgeError(failures.get())
        if time.perf_counter() > end_s:
            raise JudgeError("the system answers nothing while it is warmed up")


def _test(loadgen: LoadGen, system: System, count: int, order: Order) -> Outcome:
    """Run one test. Raises JudgeError: a sample failed, or the system is silent."""
    loadgen.change(order.changes)
    responder = Responder()
    ended: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # why it cannot go on; None: the test's end
    issued = [0]  # by LoadGen's one thread

    def issue(queries: list[Query]) -> None:
        try:
            issued[0] += len(queries)
            system.issue(queries)
        except BaseException as exc:  # it would go through LoadGen's C++
            ended.put(f"issuing a query: {type(exc).__name__}: {exc}")

    def load(indices: Sequence[int]) -> None:
        try:
            system.load(indices)
        except BaseException as exc:
            ended.put(f"loading samples: {type(exc).__name__}: {exc}")

    cpu_of_issuer = [0.0]

    def run() -> None:
        try:
            before_s = time.thread_time()
            library = Library(count, min(count, _FITTING), load, system.unload)
            loadgen.run(order.mode, order.folder, library, issue)
            cpu_of_issuer[0] = time.thread_time() - before_s
        except BaseException as exc:
            ended.put(f"LoadGen: {type(exc).__name__}: {exc}")
        else:
            ended.put(None)

    system.on_answer, system.on_failure = responder.answer, ended.put
    samples, sent_bytes = system.answered, system.sent_bytes
    known = _native_threads()
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    Thread(target=run, name="mlperf-loadgen", daemon=True).start()
    own_cpu_s = _wait(system, ended, known, issued, samples)
    seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return Outcome(
        seconds=seconds,
        samples=system.answered - samples,
        sent_bytes=system.sent_bytes - sent_bytes,
        cpu_s=cpu_s,
        loadgen_cpu_s=cpu_of_issuer[0] + own_cpu_s,
        settings=loadgen.settings(),
    )


def _wait(
    system: System, ended: "queue.SimpleQueue[str | None]", known: set[int], issued: list[int], answered: int
) -> float:
    """Wait for the test's end; the CPU seconds of threads that LoadGen made. Raises JudgeError, as ``_test``."""
    seen, at_s, cpu_s = -1, time.perf_counter(), 0.0
    while True:
        try:
            why = ended.get(timeout=_SAMPLE_S)
        except queue.Empty:
            cpu_s = max(cpu_s, sum(map(_thread_cpu_s, _native_threads() - known)))
            now_s, silence_s = time.perf_counter(), system.settings.timeout_s + _SILENCE_S
            outstanding = issued[0] - (system.answered - answered)
            if system.answered != seen or not outstanding:
                seen, at_s = system.answered, now_s
            elif now_s - at_s > silence_s:
                raise JudgeError(f"{outstanding} samples wait, and none was answered for {silence_s:g} s") from None
        else:
            if why is not None:
                raise JudgeError(why)
            return cpu_s


def _native_threads() -> set[int]:
    """This process's threads that Python did not start."""
    ours = {thread.native_id for thread in all_threads()}
    return {int(path.name) for path in Path("/proc/self/task").iterdir()} - ours


def _thread_cpu_s(thread: int) -> float:
    try:
        fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _leave(connection: Connection, why: str) -> NoReturn:
    """Say why, and end the process with all its threads: LoadGen's would wait for answers for ever."""
    try:
        connection.send(Failed(why))
        connection.close()
    except OSError:
        pass
    os._exit(1)
