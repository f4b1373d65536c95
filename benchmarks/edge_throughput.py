"""Images a second of an edge with 16 streaming devices, beside the bare tail on the same cores.

    .venv/bin/python -m benchmarks.edge_throughput [--data FOLDER] [--edge-arguments="--max-batch 32"]

All in one run on one machine, in turns, medians over the rounds:

* ``bare``: ``OnnxRuntimeRunner`` with the tail in a process of its own, as many threads as the edge has, batches of
  1, 2, 4, 8, 16 and 32 of the same planes in turn; the batch with the best median counts. Nothing is decoded.
* ``edge``: a real ``serve-edge`` process, 16 devices in a closed loop (``benchmarks.edge_load``); every answer's class
  is compared with the bare tail's.
* ``bare_beside``: the bare tail once more while another process burns the CPU time that the generators took in this
  round, in as many pieces a second as they had messages. On a machine of its own the edge would not pay for its
  devices: this is what the bare tail does with what they left of the cores.
* ``one_device``: one device with one request in flight, for reference.

Stated: ``raw`` = edge / bare. ``by_formula`` = edge / (bare * (1 - g)), with g = generators' CPU seconds / (cores *
seconds), the share of the machine that they took; it is fair where the bare tail fills every core, and flatters the
edge where it does not, because then the generators' time was free. ``beside`` = edge / bare_beside needs no such
assumption, and is what must be 0.9 or more; each is the median of the rounds' ratios. The exit status is 1 when it is
missed or an answer is wrong.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from aecnn_deploy.bundle.reader import Bundle
from benchmarks.bare_tail import BATCHES, BurnOrder, TailOrder, TailRate, burn, run_tail
from benchmarks.edge_load import LoadReport, LoadSettings, run_load
from benchmarks.machine import describe_machine, write_result
from benchmarks.processes import Worker, working
from benchmarks.traffic import (
    ZOO,
    Bytes,
    Traffic,
    default_data,
    make_traffic,
    named_bundle,
    photograph_frames,
    planes_of,
)
from tests.bundles import serving

BOUND = 0.9
DEVICES = 16
RESULTS = Path(__file__).parent / "results" / "edge_throughput.json"


@dataclass(frozen=True, slots=True)
class Arms:
    """How each arm is measured."""

    cores: int
    threads: int  # of the tail, bare and on the edge; 0: every core
    window: int  # requests in flight of each device
    seconds: float  # of the edge, and of all batch sizes of the bare tail together
    rounds: int


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of all arms: images a second by batch size, and the edge's report."""

    bare: dict[int, TailRate]
    edge: LoadReport
    beside: dict[int, TailRate]
    burnt_cpu_s: float  # beside, in as long as all batch sizes took together
    beside_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    arms = Arms(len(os.sched_getaffinity(0)), options.threads, options.window, options.seconds, options.rounds)
    bundle = named_bundle(options.bundle)
    variant = bundle.variant(options.variant).id
    frames = photograph_frames(bundle.manifest.input, options.data, options.photographs)
    planes = planes_of(bundle, variant, frames)
    traffic = make_traffic(bundle, variant, planes)
    extra = shlex.split(options.edge_arguments)
    rounds, one_device = _measure(bundle, variant, planes, traffic, arms, extra)
    figures = summary(rounds, arms.cores)
    met = figures["ratio"]["beside"] >= BOUND
    document = {
        "benchmark": "edge_throughput",
        "command": ".venv/bin/python -m benchmarks.edge_throughput",
        "bundle": options.bundle,
        "bundle_id": bundle.id,
        "variant": variant,
        "devices": DEVICES,
        "window": arms.window,
        "threads": arms.threads,
        "edge_arguments": extra,
        "photographs": len(traffic.requests),
        "payload_bytes_mean": round(traffic.payload_bytes_mean, 1),
        "bound": BOUND,
        "met": met,
        **figures,
        "one_device": one_device.document(),
        "rounds": [_round_document(each) for each in rounds],
        **describe_machine(),
    }
    write_result(options.out, document)
    _print(figures, one_device)
    print(f"bound: {BOUND:.0%} of the bare tail: {'met' if met else 'MISSED'}; {options.out}")
    return 0 if met else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default=ZOO, help="a path, or zoo:NAME")
    parser.add_argument("--variant", help="the bundle's first if not given")
    parser.add_argument("--data", type=Path, default=default_data(), help="photographs; default: patches of samples")
    parser.add_argument("--photographs", type=int, default=64, help="how many different requests there are")
    parser.add_argument("--threads", type=int, default=0, help="of the tail, bare and on the edge; 0: every core")
    parser.add_argument("--window", type=int, default=4, help="requests in flight of each device")
    parser.add_argument("--seconds", type=float, default=3.6, help="for each arm of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--edge-arguments", default="", help="more options of serve-edge, as one text")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    return parser.parse_args(arguments)


def _measure(
    bundle: Bundle, variant: str, planes: Bytes, traffic: Traffic, arms: Arms, extra: list[str]
) -> tuple[list[Round], LoadReport]:
    tail = bundle.file(bundle.variant(variant).tails["onnxruntime"])
    with ExitStack() as stack:
        edge = stack.enter_context(serving(bundle.path, "--threads", str(arms.threads), *extra))
        bare = stack.enter_context(working(run_tail, tail, planes, arms.threads))
        burner = stack.enter_context(working(burn))
        bare.receive()
        burner.receive()
        pid = edge.process.pid
        settings = LoadSettings(edge.url, devices=DEVICES, window=arms.window, seconds=arms.seconds)
        one = LoadSettings(edge.url, devices=1, window=1, seconds=arms.seconds)
        one_device = run_load(one, traffic, edge_pid=pid)
        one_device.check()
        rounds = []
        for number in range(arms.rounds):
            alone = _all_batches(bare, arms.seconds)
            loaded = run_load(settings, traffic, edge_pid=pid)
            loaded.check()
            rounds.append(Round(alone, loaded, *_beside(bare, burner, loaded, arms.seconds)))
            print(_line(number, rounds[-1]), flush=True)
    return rounds, one_device


def _all_batches(bare: Worker, seconds: float) -> dict[int, TailRate]:
    return {size: bare.ask(TailOrder(size, seconds / len(BATCHES))) for size in BATCHES}


def _beside(bare: Worker, burner: Worker, edge: LoadReport, seconds: float) -> tuple[dict[int, TailRate], float, float]:
    """The bare tail beside the generators' CPU time; with what was burnt of it, in how many seconds."""
    order = BurnOrder(edge.generator_cpu_s / edge.seconds, max(1.0, edge.images_per_s), seconds)
    burner.send(order)
    rates = _all_batches(bare, seconds)
    return rates, burner.receive(), seconds


def summary(rounds: Sequence[Round], cores: int) -> dict[str, Any]:
    """Medians over the rounds, and the three ratios."""
    best = {arm: _best_batch([getattr(each, arm) for each in rounds]) for arm in ("bare", "beside")}
    bare = [each.bare[best["bare"]].images_per_s for each in rounds]
    beside = [each.beside[best["beside"]].images_per_s for each in rounds]
    edge = [each.edge.images_per_s for each in rounds]
    taken = [each.edge.generator_cpu_s / (cores * each.edge.seconds) for each in rounds]
    ratios = {
        "raw": [ours / theirs for ours, theirs in zip(edge, bare, strict=True)],
        "by_formula": [ours / (theirs * (1 - g)) for ours, theirs, g in zip(edge, bare, taken, strict=True)],
        "beside": [ours / theirs for ours, theirs in zip(edge, beside, strict=True)],
    }
    return {
        "cores": cores,
        "images_per_s": {
            "bare": round(median(bare), 2),
            "edge": round(median(edge), 2),
            "bare_beside": round(median(beside), 2),
        },
        "best_batch": best,
        "bare_by_batch": {size: round(median(each.bare[size].images_per_s for each in rounds), 2) for size in BATCHES},
        "generator_share_of_cores": round(median(taken), 4),
        "burner_share_of_cores": round(median(each.burnt_cpu_s / (cores * each.beside_s) for each in rounds), 4),
        "edge_share_of_cores": round(
            median((each.edge.edge_cpu_s or 0.0) / (cores * each.edge.seconds) for each in rounds), 4
        ),
        "ratio": {name: round(median(values), 4) for name, values in ratios.items()},
    }


def _best_batch(rounds: Sequence[dict[int, TailRate]]) -> int:
    """The size with the highest median rate."""
    medians = {size: median(rates[size].images_per_s for rates in rounds) for size in BATCHES}
    return max(medians, key=lambda size: medians[size])


def _round_document(each: Round) -> dict[str, Any]:
    return {
        "bare_images_per_s": {size: round(rate.images_per_s, 2) for size, rate in each.bare.items()},
        "bare_cpu_s_per_s": round(
            sum(r.cpu_s for r in each.bare.values()) / sum(r.seconds for r in each.bare.values()), 3
        ),
        "edge": each.edge.document(),
        "beside_images_per_s": {size: round(rate.images_per_s, 2) for size, rate in each.beside.items()},
        "burnt_cpu_s": round(each.burnt_cpu_s, 3),
    }


def _line(number: int, each: Round) -> str:
    best, beside = (max(rate.images_per_s for rate in rates.values()) for rates in (each.bare, each.beside))
    return (
        f"round {number + 1}: bare {best:.1f}, edge {each.edge.images_per_s:.1f}, bare beside {beside:.1f} images/s; "
        f"generators {each.edge.generator_cpu_s:.2f} CPU s, edge {each.edge.edge_cpu_s:.2f} in {each.edge.seconds:g} s"
    )


def _print(figures: dict[str, Any], one_device: LoadReport) -> None:
    rates, ratio, best = figures["images_per_s"], figures["ratio"], figures["best_batch"]
    print(
        f"images/s: bare {rates['bare']} (batches of {best['bare']}), edge {rates['edge']}, bare beside the "
        f"generators' load {rates['bare_beside']} (batches of {best['beside']}); "
        f"one device {one_device.images_per_s:.1f}"
    )
    print(
        f"share of {figures['cores']} cores: generators {figures['generator_share_of_cores']:.1%}, "
        f"burnt beside {figures['burner_share_of_cores']:.1%}, edge {figures['edge_share_of_cores']:.1%}"
    )
    print(f"ratio: raw {ratio['raw']:.3f}, by formula {ratio['by_formula']:.3f}, beside {ratio['beside']:.3f}")


if __name__ == "__main__":
    sys.exit(main())
