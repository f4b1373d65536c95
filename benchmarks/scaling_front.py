"""What a front takes for a message: a real edge whose tail takes no time, its threads' CPU time read apart."""

import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import SettingsError
from benchmarks.edge_load import LoadSettings, run_load
from benchmarks.scaling_connections import page, roomy_edge
from benchmarks.traffic import Bytes, Traffic
from tests.bundles import Edge, TinyVariant, make_bundle
from tests.certificates import Authority

_DEVICES = 32
_STRIDE = 4  # of the tiny head: planes of H×W need frames of 4·H×4·W
_WARM_UP_S = 0.7
_FIRST_ANSWER_S = 60.0
# RFC 6455: a client's frame of 126 to 65,535 bytes has 4 and a mask of 4; a server's has 4.
_WS_REQUEST_BYTES, _WS_ANSWER_BYTES = 8, 4
_RECEIVED, _SENT, _ANSWERED = (
    'aecnn_received_bytes_total{path="split"}',
    'aecnn_sent_bytes_total{path="split"}',
    'aecnn_requests_total{outcome="ok",path="split"}',
)


@dataclass(frozen=True, slots=True)
class FrontCosts:
    """Of an image: CPU seconds of the event loop's thread and of all others, bytes of messages with their frames."""

    loop_s: float
    others_s: float
    images_per_s: float
    received_bytes: float
    sent_bytes: float


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    threads_s: dict[int, float]
    told: dict[str, float]


def front_only(folder: Path, planes: Bytes, bits: int) -> Bundle:
    """A bundle whose tail is one small product, for planes (N, C, S, S) like ``planes``.

    Raises SettingsError: the planes are not square, and no head of tests makes them.
    """
    _, channels, height, width = planes.shape
    if height != width:
        raise SettingsError(f"planes of {height}x{width} are not square; take a variant with square ones")
    variant = TinyVariant("front", channels, _STRIDE, bits)
    make_bundle(folder, variants=(variant,), size=height * _STRIDE)
    return open_bundle(folder)


def measure_front(
    bundle: Bundle,
    traffic: Traffic,
    seconds: float,
    *,
    pinned: bool = False,
    rate_hz: float | None = None,
    window: int = 4,
    authority: Authority | None = None,
) -> FrontCosts:
    """Load an edge of ``bundle`` for ``seconds``; ``pinned``: the whole process on one core.

    An open loop at ``rate_hz``, or a closed one with ``window`` requests of each of 32 devices in flight.
    """
    load = LoadSettings(
        "", devices=_DEVICES, window=window, seconds=seconds, warm_up_s=_WARM_UP_S, rate_hz=rate_hz
    )  # fmt: skip
    with roomy_edge(bundle.path, authority=authority) as edge:
        if pinned:
            pin(edge.process.pid, min(os.sched_getaffinity(0)))
        ca = str(authority.ca) if authority is not None else None
        samples: list[_Sample] = []
        watcher = threading.Thread(target=_watch, args=(edge, seconds, ca, samples))
        watcher.start()
        report = run_load(replace(load, url=edge.url, ca=ca), traffic)
        watcher.join()
        report.check()
    if len(samples) != 2:
        raise SettingsError(f"no answer came within {_FIRST_ANSWER_S:g} s of the load; run it on an idle machine")
    before, after = samples
    images = after.told[_ANSWERED] - before.told[_ANSWERED]
    spent = {tid: now_s - before.threads_s.get(tid, 0.0) for tid, now_s in after.threads_s.items()}
    loop_s = spent.pop(edge.process.pid)

    def mean(series: str) -> float:
        return (after.told[series] - before.told[series]) / images

    return FrontCosts(
        loop_s=loop_s / images,
        others_s=sum(spent.values()) / images,
        images_per_s=images / (after.at_s - before.at_s),
        received_bytes=mean(_RECEIVED) + _WS_REQUEST_BYTES,
        sent_bytes=mean(_SENT) + _WS_ANSWER_BYTES,
    )


def pin(pid: int, core: int) -> None:
    """Keep all threads of a process on one core; those to come as well."""
    for tid in _threads_s(pid):
        os.sched_setaffinity(tid, {core})


def _watch(edge: Edge, seconds: float, ca: str | None, samples: list[_Sample]) -> None:
    """Two looks at the edge, well within the measured time."""
    end_s = time.monotonic() + _FIRST_ANSWER_S
    while not page(edge, ca).get(_ANSWERED):
        if time.monotonic() > end_s:
            return
        time.sleep(0.05)
    time.sleep(_WARM_UP_S)
    told = page(edge, ca)
    samples.append(_Sample(time.perf_counter(), _threads_s(edge.process.pid), told))
    time.sleep(0.8 * seconds)
    now_s, threads_s = time.perf_counter(), _threads_s(edge.process.pid)
    samples.append(_Sample(now_s, threads_s, page(edge, ca)))


def _threads_s(pid: int) -> dict[int, float]:
    """CPU seconds of each thread, by its id; the process's first one is the event loop's."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def document_of(costs: FrontCosts) -> dict[str, Any]:
    """For a result file."""
    return {
        "loop_us": round(costs.loop_s * 1e6, 1),
        "others_us": round(costs.others_s * 1e6, 1),
        "images_per_s": round(costs.images_per_s, 1),
        "received_bytes": round(costs.received_bytes, 1),
        "sent_bytes": round(costs.sent_bytes, 1),
    }
