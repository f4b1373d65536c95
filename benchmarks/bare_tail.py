"""The bare tail: what the same runner does on the same planes and cores with no edge around it."""

import resource
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class TailOrder:
    """Run batches of this size for so long."""

    batch: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TailRate:
    """What came of it."""

    images_per_s: float
    cpu_s: float
    seconds: float


def run_tail(connection: Connection, tail: Path, planes: "np.ndarray[Any, Any]", threads: int) -> None:
    """A process: answer each TailOrder with a TailRate, from ``planes`` (N, C, H, W) in turn.

    Batches are cut beforehand: no copy is in the time, and no softmax, no decoding.
    """
    with OnnxRuntimeRunner(tail, threads=threads) as runner:
        for size in BATCHES:
            runner.infer(_batches(planes, size)[0])  # memory for this size is taken now
        connection.send("ready")
        while True:
            order: TailOrder = connection.recv()
            batches = _batches(planes, order.batch)
            images, turn = 0, 0
            before_cpu_s, start_s = _cpu_s(), time.perf_counter()
            while (now_s := time.perf_counter()) < start_s + order.seconds:
                runner.infer(batches[turn % len(batches)])
                turn += 1
                images += order.batch
            took_s = now_s - start_s
            connection.send(TailRate(images / took_s, _cpu_s() - before_cpu_s, took_s))


@dataclass(frozen=True, slots=True)
class BurnOrder:
    """Take ``share`` of one core for so long, in as many pieces a second as the load generator has messages."""

    share: float
    pieces_per_s: float
    seconds: float


def burn(connection: Connection) -> None:
    """A process: do each BurnOrder, then answer with the CPU seconds that were taken.

    It takes the CPU time that was asked for, however long another process keeps it waiting for a core: where it is
    behind it does not sleep.
    """
    connection.send("ready")
    while True:
        order: BurnOrder = connection.recv()
        before_s, start_s, pieces = _cpu_s(), time.perf_counter(), 0
        piece_s = order.share / order.pieces_per_s
        while time.perf_counter() < start_s + order.seconds:
            pieces += 1
            end_s = before_s + pieces * piece_s
            while time.process_time() < end_s and time.perf_counter() < start_s + order.seconds:
                pass
            time.sleep(max(0.0, start_s + pieces / order.pieces_per_s - time.perf_counter()))
        connection.send(_cpu_s() - before_s)


def _batches(planes: "np.ndarray[Any, Any]", size: int) -> list["np.ndarray[Any, Any]"]:
    enough = planes[np.arange(max(len(planes), size)) % len(planes)]
    return [np.ascontiguousarray(enough[at : at + size]) for at in range(0, len(enough) - size + 1, size)]


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
