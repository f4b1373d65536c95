"""The inputs of a plan, measured on this machine in one run: fronts, tails, connections, bytes."""

import os
import resource
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import PlaneDecoder
from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from benchmarks.processes import working
from benchmarks.scaling_connections import measure_connections, page, resident_bytes
from benchmarks.scaling_front import document_of, front_only, measure_front
from benchmarks.scaling_settings import Inputs
from benchmarks.traffic import Bytes, make_traffic
from tests.bundles import serving
from tests.certificates import Authority

BATCHES = (1, 2, 4, 8, 16, 32)
_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
_UVICORN_BACKLOG = 2048  # which uvicorn asks for
_QUANTILES = 101  # that are kept of how runs vary
_DECODINGS = 500


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """How long each arm runs. Raises SettingsError: a number is out of its range."""

    seconds: float = 4.0  # of each load on a front
    tail_seconds: float = 1.0  # of each size of batch
    connections: int = 600
    threads: int = 0  # of the tail; 0: every core

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.tail_seconds <= 0:
            raise SettingsError(
                f"seconds is {self.seconds}, tail_seconds {self.tail_seconds}; expected positive numbers"
            )
        if self.connections < 1:
            raise SettingsError(f"connections is {self.connections}, expected at least 1")

    @property
    def tail_cores(self) -> int:
        """Cores that the tail takes."""
        return self.threads or len(os.sched_getaffinity(0))


def measure_inputs(
    bundle: Bundle, variant: str, planes: Bytes, settings: MeasureSettings
) -> tuple[Inputs, dict[str, Any]]:
    """The inputs, and every arm as it was measured. ``planes`` (N, C, H, W) of photographs are what devices send."""
    with tempfile.TemporaryDirectory() as folder:
        small = front_only(Path(folder) / "bundle", planes, bundle.variant(variant).bits)
        authority = Authority(Path(folder) / "ca")
        traffic = make_traffic(small, "front", planes)
        seconds = settings.seconds
        one_core = measure_front(small, traffic, seconds, pinned=True)
        half = measure_front(small, traffic, seconds, rate_hz=one_core.images_per_s / 2)
        by_one = measure_front(small, traffic, seconds, window=1)
        by_tls = measure_front(small, traffic, seconds, window=1, authority=authority)
        plain = measure_connections(small, settings.connections, None)
        tls = measure_connections(small, settings.connections, authority)
    runs = tail_runs(bundle.file(bundle.variant(variant).tails["onnxruntime"]), planes, settings)
    process = _measure_process(bundle, settings)
    inputs = Inputs(
        receive_answer_s=half.loop_s,
        beside_s=half.others_s,
        tls_receive_answer_s=half.loop_s + max(0.0, by_tls.loop_s - by_one.loop_s),
        messages_per_s_one_core=one_core.images_per_s,
        decode_s=measure_decode(bundle, variant, planes),
        batch_s=[(size, median(seconds_of)) for size, seconds_of in runs.items()],
        noise=noise_of(runs),
        tail_cores=settings.tail_cores,
        connect_s=plain.edge_cpu_s,
        tls_connect_s=tls.edge_cpu_s,
        memory_bytes_per_connection=plain.memory_bytes,
        tls_memory_bytes_per_connection=tls.memory_bytes,
        kept_planes_bytes=_kept_planes_bytes(bundle, variant),
        process_bytes=process["process_bytes"],
        sockets_per_connection=tls.sockets,
        received_bytes_per_image=half.received_bytes,
        sent_bytes_per_image=half.sent_bytes,
        start_s=process["start_s"],
        load_s=process["load_s"],
        series=process["series"],
        scrape_ms=process["scrape_ms"],
        ports=_ports(),
        backlog=min(_UVICORN_BACKLOG, int(_SOMAXCONN.read_text())),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )
    arms = {
        "front": {
            "one core, closed loop, window 4": document_of(one_core),
            "half of that, open loop": document_of(half),
            "closed loop, window 1": document_of(by_one),
            "closed loop, window 1, TLS": document_of(by_tls),
        },
        "connections": {"plain": plain.document(), "TLS": tls.document()},
        "tail_images_per_s": {size: round(size / median(found), 1) for size, found in runs.items()},
        "process": process,
    }
    return inputs, arms


def tail_runs(tail: Path, planes: Bytes, settings: MeasureSettings) -> dict[int, list[float]]:
    """Seconds of each run of the bare tail, by size of batch, in a process of its own; sizes in turns."""
    with working(_time_tail, tail, planes, settings.threads) as worker:
        worker.receive()
        runs: dict[int, list[float]] = {size: [] for size in BATCHES}
        for _ in range(4):  # a slow spell of the machine is not one size's alone
            for size in BATCHES:
                runs[size] += worker.ask((size, settings.tail_seconds / 4))
    return runs


def noise_of(runs: Mapping[int, list[float]]) -> list[float]:
    """How runs vary: quantiles of all, each as a share of the median of its size."""
    shares = np.concatenate([np.array(found) / np.median(found) for found in runs.values()])
    return [round(float(each), 4) for each in np.quantile(shares, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)]


def measure_decode(bundle: Bundle, variant: str, planes: Bytes) -> float:
    """Median seconds to decode one payload."""
    spec = bundle.variant(variant)
    requests = make_traffic(bundle, variant, planes).requests
    decoder = PlaneDecoder(spec.planes, spec.bits)
    found = []
    for number in range(_DECODINGS):
        request = requests[number % len(requests)]
        began_s = time.perf_counter()
        decoder.decode(request.coder_id, request.payload, lambda _: None)
        found.append(time.perf_counter() - began_s)
    return median(found)


def _time_tail(connection: Connection, tail: Path, planes: Bytes, threads: int) -> None:
    """A process: answer each (size, seconds) with the seconds of every run."""
    with OnnxRuntimeRunner(tail, threads=threads) as runner:
        for size in BATCHES:
            runner.infer(planes[np.arange(size) % len(planes)])
        connection.send("ready")
        while True:
            size, seconds = connection.recv()
            batch = np.ascontiguousarray(planes[np.arange(size) % len(planes)])
            found: list[float] = []
            end_s = time.perf_counter() + seconds
            while not found or time.perf_counter() < end_s:
                began_s = time.perf_counter()
                runner.infer(batch)
                found.append(time.perf_counter() - began_s)
            connection.send(found)


def _measure_process(bundle: Bundle, settings: MeasureSettings) -> dict[str, Any]:
    """A real edge of the real bundle: how long until it is ready, its memory, its page of metrics."""
    began_s = time.perf_counter()
    with serving(bundle.path, "--threads", str(settings.threads)) as edge:
        start_s = time.perf_counter() - began_s
        told = page(edge)
        began_s = time.perf_counter()
        page(edge)
        return {
            "start_s": round(start_s, 3),
            "load_s": round(sum(value for name, value in told.items() if "load_seconds_sum" in name), 3),
            "process_bytes": resident_bytes(edge.process.pid),
            "series": len(told),
            "scrape_ms": round((time.perf_counter() - began_s) * 1e3, 2),
        }


def _kept_planes_bytes(bundle: Bundle, variant: str) -> int:
    """Of a device that sends differences: the planes of as many requests as may be in flight, and one."""
    from aecnn_deploy.runtimes.edge_settings import EdgeSettings

    settings = EdgeSettings()
    count = settings.max_in_flight_per_stream + 1
    return min(count * bundle.variant(variant).plane_bytes, settings.max_reference_bytes)


def _ports() -> int:
    first, last = (int(word) for word in _PORTS.read_text().split())
    return last - first + 1
