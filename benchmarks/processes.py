"""Processes of a benchmark: functions that run in one of their own, and the CPU time that a process has taken."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ProcessFailedError(RuntimeError):
    """A benchmark's process ended with an error, which it said before."""


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, that all threads of the process ``pid`` have taken; in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def sleep_until(moment_s: float) -> None:
    """Sleep until ``time.perf_counter()``, a clock that all processes share, is ``moment_s``."""
    while (left_s := moment_s - time.perf_counter()) > 0:
        time.sleep(left_s)


class Worker:
    """A function in a process of its own; it is given a Connection first, and answers what it is asked."""

    def __init__(self, connection: Connection, process: "multiprocessing.process.BaseProcess") -> None:
        self._connection, self.process = connection, process

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def send(self, order: object) -> None:
        self._connection.send(order)

    def receive(self, timeout_s: float = 120.0) -> Any:
        """Its next answer. Raises ProcessFailedError: it ended, or says nothing."""
        try:
            if self._connection.poll(timeout_s):
                return self._connection.recv()
        except EOFError:
            self.process.join(timeout_s)
            raise ProcessFailedError(f"{self.process.name} ended with exit status {self.process.exitcode}") from None
        raise ProcessFailedError(f"{self.process.name} said nothing for {timeout_s:g} s")

    def ask(self, order: object, timeout_s: float = 120.0) -> Any:
        self.send(order)
        return self.receive(timeout_s)


@contextmanager
def working(function: Callable[..., None], *arguments: object) -> Iterator[Worker]:
    """``function(connection, *arguments)`` in a fresh process, which is ended at the end."""
    context = multiprocessing.get_context("spawn")  # nothing of this process's threads and locks
    here, there = context.Pipe()
    process = context.Process(target=function, args=(there, *arguments), name=function.__name__, daemon=True)
    process.start()
    there.close()
    try:
        yield Worker(here, process)
    finally:
        process.terminate()
        process.join()
        here.close()
