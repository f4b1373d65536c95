"""The simulation beside a real edge: the same arrivals, moment for moment, and what became of them in both."""

import random
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import SettingsError
from benchmarks.edge_load import LoadReport, LoadSettings, run_load
from benchmarks.scaling_cell import Arrivals, CellShape, Fate, simulate
from benchmarks.scaling_measure import MeasureSettings, noise_of, tail_runs
from benchmarks.scaling_settings import Inputs
from benchmarks.traffic import Bytes, make_traffic
from tests.bundles import serving

LOADS = (0.5, 0.8, 0.95)  # of what the edge does at most
_LANE = re.compile(r"batches of (\d+), or (\d+) where much waits")
_ANY = 10**9


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """How the simulation is held against a real edge. Raises SettingsError: a number is out of its range."""

    devices: int = 24
    seconds: float = 10.0  # of each load
    saturate_seconds: float = 4.0
    tail_seconds: float = 0.7  # of each size of batch, before each load
    threads: int = 1  # the front and the devices have the other core: on the tail's, they would make its runs longer
    loads: tuple[float, ...] = LOADS

    def __post_init__(self) -> None:
        if self.devices < 1 or self.seconds <= 0 or self.saturate_seconds <= 0 or self.tail_seconds <= 0:
            raise SettingsError(
                f"devices is {self.devices}, seconds {self.seconds}, saturate_seconds {self.saturate_seconds}, "
                f"tail_seconds {self.tail_seconds}; expected at least 1 and positive numbers"
            )
        if not self.loads or not all(0 < load < 1 for load in self.loads):
            raise SettingsError(f"loads is {self.loads}, expected shares between 0 and 1")


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the comparison: images a second, milliseconds as the edge states them."""

    images_per_s: float
    queue_p50: float
    queue_p99: float
    total_p50: float
    total_p99: float

    def document(self) -> dict[str, float]:
        return {
            "images_per_s": round(self.images_per_s, 1),
            "queue_ms_p50": round(self.queue_p50, 2),
            "queue_ms_p99": round(self.queue_p99, 2),
            "total_ms_p50": round(self.total_p50, 2),
            "total_ms_p99": round(self.total_p99, 2),
        }


def check(bundle: Bundle, variant: str, planes: Bytes, inputs: Inputs, settings: CheckSettings) -> dict[str, Any]:
    """Load a real edge at each of ``settings.loads``, and simulate the same. Every answer's class is checked.

    The tail is timed before each load, since a shared machine is not equally fast all the time; the front's costs are
    those of ``inputs``.
    """
    traffic = make_traffic(bundle, variant, planes)
    tail = bundle.file(bundle.variant(variant).tails["onnxruntime"])
    timing = MeasureSettings(tail_seconds=settings.tail_seconds, threads=settings.threads)
    measured: list[tuple[float, LoadReport, CellShape]] = []
    with serving(bundle.path, "--threads", str(settings.threads)) as edge:
        full = LoadSettings(edge.url, devices=settings.devices, seconds=settings.saturate_seconds)
        most = run_load(full, traffic)
        most.check()
        for load in settings.loads:
            runs = tail_runs(tail, planes, timing)
            batch_s = tuple((size, median(seconds)) for size, seconds in runs.items())
            report = run_load(replace(full, seconds=settings.seconds, rate_hz=load * most.images_per_s), traffic)
            report.check()
            measured.append((load, report, edge_shape(inputs, batch_s, tuple(noise_of(runs)))))
        _, log = edge.stop(signal.SIGINT)
    chosen = _LANE.search(log)
    sizes = (int(chosen.group(1)), int(chosen.group(2))) if chosen else None
    rows = []
    for load, report, shape in measured:
        rate_hz = load * most.images_per_s
        real = measured_side(report)
        ours = simulated_side(replace(shape, sizes=sizes), rate_hz, settings.devices, settings.seconds)
        rows.append(
            {
                "load": load,
                "rate_hz": round(rate_hz, 1),
                "measured": real.document(),
                "simulated": ours.document(),
                "error": errors(real, ours),
                "wrong": report.wrong,
                "unanswered": report.unanswered,
                "failures": report.failures,
            }
        )
    return {
        "devices": settings.devices,
        "seconds": settings.seconds,
        "arrivals": "poisson",
        "saturated_images_per_s": round(most.images_per_s, 1),
        "batches": sizes,
        "loads": rows,
    }


def edge_shape(inputs: Inputs, batch_s: tuple[tuple[int, float], ...], noise: tuple[float, ...]) -> CellShape:
    """One process without TLS on the cores of its tail, for devices that are allowed to wait."""
    return CellShape(
        batch_s=batch_s,
        receive_s=inputs.receive_answer_s / 2,
        answer_s=inputs.receive_answer_s / 2,
        decode_s=inputs.decode_s,
        beside_s=inputs.beside_s,
        contention=1.0,
        noise=noise,
        window=_ANY,
        tokens=False,
    )


def simulated_side(shape: CellShape, rate_hz: float, devices: int, seconds: float) -> Side:
    """The arrivals that ``benchmarks.edge_load`` makes with these settings and one generator, simulated."""
    warm_up_s = LoadSettings("").warm_up_s
    begun = list(poisson_of_generator(rate_hz, devices, warm_up_s, seconds, LoadSettings("").seed))
    at_s = np.array([at for at, _ in begun])
    device = np.array([who for _, who in begun])
    found = simulate(shape, Arrivals(at_s, device, np.zeros(devices, np.int64)))
    counts = (at_s >= warm_up_s) & (found.fate == Fate.OK)
    total_s = (found.answered_s - at_s)[counts]
    return _side(counts.sum() / seconds, found.queue_s[counts] * 1e3, total_s * 1e3)


def measured_side(report: LoadReport) -> Side:
    """What a real edge stated."""
    _, queue, _, total = report.of_edge.T
    return _side(report.images_per_s, queue, total)


def errors(real: Side, ours: Side) -> dict[str, float]:
    """Of the simulation, as shares of what was measured."""
    of_real, of_ours = real.document(), ours.document()
    return {name: round(of_ours[name] / value - 1, 3) if value else 0.0 for name, value in of_real.items()}


def poisson_of_generator(
    rate_hz: float, devices: int, warm_up_s: float, seconds: float, seed: int
) -> Iterator[tuple[float, int]]:
    """(seconds, device) of every request that one ``edge_load.Generator`` begins: the same draws in the same order."""
    rng = random.Random(seed)
    for begin_s, end_s in ((0.0, warm_up_s), (warm_up_s, warm_up_s + seconds)):
        due_s = begin_s + rng.expovariate(rate_hz)
        while due_s < end_s:
            yield due_s, rng.randrange(devices)
            due_s += rng.expovariate(rate_hz)


def _side(images_per_s: float, queue_ms: Sequence[float], total_ms: Sequence[float]) -> Side:
    queue, total = (np.percentile(values, (50, 99)) for values in (queue_ms, total_ms))
    return Side(float(images_per_s), *(float(value) for value in (*queue, *total)))
