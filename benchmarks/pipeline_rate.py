"""A pipelined device beside the slowest of its three parts: head, link and edge.

    .venv/bin/python -m benchmarks.pipeline_rate [--data FOLDER]

Three set-ups, each of which makes another part the slowest: ``head`` (a head of 1.4 billion multiply-adds before a tail
of almost none), ``link`` (a small head and tail over 1 Mbit/s, by a proxy of ours in a thread of its own), ``edge``
(the zoo's smallest head, whose tail takes most of the network). The head and the tail have one thread each, so that
the two can run at the same time on two cores. Images a second, in turns, medians over the rounds:

* ``head``: the device's own work in a process of its own, as the pipeline divides it: one thread decodes JPEG files
  and resizes, one runs the head, one encodes the planes. Nothing is sent.
* ``link``: a load generator (``benchmarks.edge_load``) with the same coded planes over the same link to a server that
  answers at once, as many requests in flight as the device has.
* ``edge``: the same generator at the set-up's edge itself, without the link.
* ``pipeline``: a device process (``runtimes.device_client.run_frames``) over all three; every answer's class is
  compared with head and tail run directly, and every frame must have one.

``pipeline`` must reach 95 % of min(head, link, edge): the median of the rounds' ratios. Coder zstd throughout, so that
a frame is as many bytes everywhere. The exit status is 1 when a set-up misses it, or its slowest part is another one
than its name says.
"""

import argparse
import io
import queue
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.codec import PlaneEncoder
from aecnn_deploy.runtimes import device_client
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.sources import SourceImage
from benchmarks.edge_load import LoadSettings, run_load
from benchmarks.machine import describe_machine, write_result
from benchmarks.null_edge import serve_nothing
from benchmarks.processes import Worker, working
from benchmarks.traffic import ZOO, Bytes, Traffic, default_data, make_traffic, named_bundle, photograph_frames
from tests.bundles import Edge, TinyVariant, make_bundle, serving
from tests.link_proxy import LinkProxy, LinkSettings

BOUND = 0.95
PARTS = ("head", "link", "edge")
BIG_HEAD = TinyVariant("big-head", channels=64, stride=16, bits=4, head_loops=10)
BIG_SIZE = 512
SMALL = TinyVariant("small", channels=8, stride=16, bits=4)
SMALL_SIZE = 224
ZOO_VARIANT = "efficientnet_lite0-l7-strided-tiny20-u4"
CODER = "zstd"
SLOW_LINK_BPS = 1e6
WARM_UP_S = 0.7
_STAGE_FRAMES = 2  # that wait between two stages of the device
RESULTS = Path(__file__).parent / "results" / "pipeline_rate.json"


@dataclass(frozen=True, slots=True)
class SetUp:
    """One set-up, named after its slowest part."""

    name: str
    bundle: Path
    variant: str
    link: LinkSettings | None  # None: loopback as it is
    jpegs: list[bytes]
    traffic: Traffic


@dataclass(frozen=True, slots=True)
class DeviceOrder:
    """What a device process runs: the frames in turn, for ``WARM_UP_S`` and then for ``seconds``."""

    url: str
    bundle: Path
    variant: str
    jpegs: list[bytes]
    classes: list[list[int]]
    in_flight: int
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as folder:
        set_ups = _set_ups(Path(folder), options.data, options.photographs)
        extra = shlex.split(options.edge_arguments)
        rows = [
            _measure(each, options.in_flight, options.seconds, options.rounds, extra)
            for each in set_ups
            if each.name in options.set_up
        ]
    met = all(row["met"] for row in rows)
    document = {
        "benchmark": "pipeline_rate",
        "command": ".venv/bin/python -m benchmarks.pipeline_rate",
        "in_flight": options.in_flight,
        "bound": BOUND,
        "met": met,
        "rows": rows,
        **describe_machine(),
    }
    write_result(options.out, document)
    print(f"bound: {BOUND:.0%} of the slowest part: {'met' if met else 'MISSED'}; {options.out}")
    return 0 if met else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_data(), help="photographs; default: patches of samples")
    parser.add_argument("--photographs", type=int, default=32, help="how many different frames there are")
    parser.add_argument("--in-flight", type=int, default=4, help="requests in flight, of device and generator")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each part and the pipeline, each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set-up", nargs="+", choices=PARTS, default=PARTS, help="only these")
    parser.add_argument("--edge-arguments", default="", help="more options of serve-edge, as one text")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    return parser.parse_args(arguments)


def _set_ups(folder: Path, data: Path | None, count: int) -> list[SetUp]:
    make_bundle(folder / "big-head", variants=(BIG_HEAD,), size=BIG_SIZE)
    make_bundle(folder / "small", variants=(SMALL,), size=SMALL_SIZE)
    big, small, zoo = open_bundle(folder / "big-head"), open_bundle(folder / "small"), named_bundle(ZOO)
    return [
        _set_up("head", big, BIG_HEAD.id, None, data, count),
        _set_up("link", small, SMALL.id, LinkSettings(rate_bps=SLOW_LINK_BPS), data, count),
        _set_up("edge", zoo, ZOO_VARIANT, None, data, count),
    ]


def _set_up(name: str, bundle: Bundle, variant: str, link: LinkSettings | None, data: Path | None, count: int) -> SetUp:
    spec = bundle.manifest.input
    jpegs = [_jpeg(frame, spec.resize_short) for frame in photograph_frames(spec, data, count)]
    with OnnxRuntimeRunner(bundle.file(bundle.variant(variant).head)) as head:
        planes = np.concatenate([head.infer(read_frame(jpeg, spec)[np.newaxis]) for jpeg in jpegs])
    return SetUp(name, bundle.path, variant, link, jpegs, make_traffic(bundle, variant, planes, coder=CODER))


def _jpeg(frame: Bytes, side: int) -> bytes:
    """A camera's picture of a size that need not be resized much."""
    out = io.BytesIO()
    Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def _measure(set_up: SetUp, in_flight: int, seconds: float, rounds: int, extra: list[str]) -> dict[str, Any]:
    first = [msgspec.structs.replace(each, classes=[0]) for each in set_up.traffic.requests]
    nothing = msgspec.structs.replace(set_up.traffic, requests=first)
    measured: list[dict[str, float]] = []
    with ExitStack() as stack:
        edge = stack.enter_context(serving(set_up.bundle, "--threads", "1", *extra))
        null = stack.enter_context(working(serve_nothing, 0, set_up.variant))
        null_url = stack.enter_context(_linked(null.receive(), set_up.link))
        edge_url = stack.enter_context(_linked(edge.port, set_up.link))
        head = stack.enter_context(working(head_alone, set_up.bundle, set_up.variant, set_up.jpegs))
        device = stack.enter_context(working(device_process))
        head.receive()
        device.receive()
        for _ in range(rounds):
            measured.append(
                {
                    "head": head.ask(seconds),
                    "link": _generated(null_url, nothing, in_flight, seconds),
                    "edge": _generated(edge.url, set_up.traffic, in_flight, seconds),
                    "pipeline": _pipelined(device, set_up, edge_url, in_flight, seconds),
                }
            )
    return _row(set_up, measured, edge)


@contextmanager
def _linked(port: int, link: LinkSettings | None) -> Iterator[str]:
    """The address of ``port`` over the link."""
    if link is None:
        yield f"ws://127.0.0.1:{port}"
        return
    with LinkProxy(port, link) as proxy:
        yield proxy.url


def _generated(url: str, traffic: Traffic, in_flight: int, seconds: float) -> float:
    report = run_load(LoadSettings(url, devices=1, window=in_flight, seconds=seconds, warm_up_s=WARM_UP_S), traffic)
    report.check()
    return report.images_per_s


def _pipelined(device: Worker, set_up: SetUp, url: str, in_flight: int, seconds: float) -> float:
    classes = [each.classes for each in set_up.traffic.requests]
    order = DeviceOrder(url, set_up.bundle, set_up.variant, set_up.jpegs, classes, in_flight, seconds)
    rate, wrong = device.ask(order)
    if wrong:
        raise SystemExit(f"{set_up.name}: {wrong}")
    return float(rate)


def _row(set_up: SetUp, measured: list[dict[str, float]], edge: Edge) -> dict[str, Any]:
    rates = {part: round(median(each[part] for each in measured), 2) for part in (*PARTS, "pipeline")}
    ratio = median(each["pipeline"] / min(each[part] for part in PARTS) for each in measured)
    slowest = min(PARTS, key=lambda part: rates[part])
    met = ratio >= BOUND and slowest == set_up.name
    print(
        f"{set_up.name:>5}: "
        + ", ".join(f"{part} {rate:.1f}" for part, rate in rates.items())
        + f" images/s; slowest: {slowest}; pipeline / slowest {ratio:.3f}{'' if met else ' MISSED'}",
        flush=True,
    )
    return {
        "set_up": set_up.name,
        "variant": set_up.variant,
        "link_bps": set_up.link.rate_bps if set_up.link is not None else None,
        "payload_bytes_mean": round(set_up.traffic.payload_bytes_mean, 1),
        "images_per_s": rates,
        "slowest": slowest,
        "ratio": round(ratio, 4),
        "met": met,
        "rounds": measured,
        "edge_runner": edge.ready["runner"],
    }


def head_alone(connection: Connection, path: Path, variant: str, jpegs: list[bytes]) -> None:
    """A process: for each number of seconds, the images a second of decoding beside head and encoding."""
    bundle = open_bundle(path)
    spec = bundle.variant(variant)
    encoder = PlaneEncoder(spec.planes, spec.bits, coder=CODER)
    with OnnxRuntimeRunner(bundle.file(spec.head), threads=1) as head:
        connection.send("ready")
        while True:
            seconds: float = connection.recv()
            frames: queue.Queue[Bytes | None] = queue.Queue(_STAGE_FRAMES)
            planes: queue.Queue[Bytes | None] = queue.Queue(_STAGE_FRAMES)
            end_s = time.perf_counter() + WARM_UP_S + seconds
            decoding = (read_frame(jpegs[turn % len(jpegs)], bundle.manifest.input) for turn in _turns(end_s))
            running = (head.infer(frame[np.newaxis])[0] for frame in _taken(frames))
            threads = [
                threading.Thread(target=_fill, args=(frames, decoding)),
                threading.Thread(target=_fill, args=(planes, running)),
            ]
            for thread in threads:
                thread.start()
            done = 0
            for each in _taken(planes):
                encoder.encode(each)
                done += end_s - seconds <= time.perf_counter() < end_s
            for thread in threads:
                thread.join()
            connection.send(done / seconds)


def _fill(stage: "queue.Queue[Bytes | None]", made: Iterable[Bytes]) -> None:
    """A thread of ``head_alone``: put what is made into the next stage, then None."""
    for each in made:
        stage.put(each)
    stage.put(None)


def _taken(stage: "queue.Queue[Bytes | None]") -> Iterator[Bytes]:
    while (each := stage.get()) is not None:
        yield each


def device_process(connection: Connection) -> None:
    """A process: for each DeviceOrder, (images a second, what was wrong or None)."""
    connection.send("ready")
    while True:
        connection.send(run_device(connection.recv()))


def run_device(order: DeviceOrder) -> tuple[float, str | None]:
    """Images a second of a pipelined device, and what was wrong with an answer, if anything was."""
    settings = device_client.DeviceSettings(
        order.url, variant=order.variant, head="fp32", threads=1, coder=CODER, in_flight=order.in_flight
    )
    end_s = time.perf_counter() + WARM_UP_S + order.seconds
    done, told, wrong = 0, 0, None

    def frames() -> Iterator[SourceImage]:
        nonlocal end_s
        end_s = time.perf_counter() + WARM_UP_S + order.seconds  # the head is loaded and the edge was greeted
        for turn in _turns(end_s):
            yield SourceImage(str(turn), order.jpegs[turn % len(order.jpegs)])

    def on_image(report: device_client.ImageReport) -> None:
        nonlocal done, told, wrong
        if report.status != "ok" or report.index not in order.classes[int(report.source) % len(order.classes)]:
            wrong = wrong or f"frame {report.source}: {report}"
        if int(report.source) != told:
            wrong = wrong or f"frame {report.source} was told of as the {told}th"
        told += 1
        done += end_s - order.seconds <= time.perf_counter() < end_s

    device_client.run_frames(open_bundle(order.bundle), settings, frames(), live=False, on_image=on_image, keep=False)
    return done / order.seconds, wrong


def _turns(end_s: float) -> Iterator[int]:
    """0, 1, 2, … until ``end_s`` of ``time.perf_counter``."""
    turn = 0
    while time.perf_counter() < end_s:
        yield turn
        turn += 1


if __name__ == "__main__":
    sys.exit(main())
