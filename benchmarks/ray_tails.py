"""Tails on a Ray cluster: what a second replica adds, and what the way to a replica and back costs.

    .venv/bin/python -m benchmarks.ray_tails [--quick] [--data FOLDER]
    .venv/bin/python -m benchmarks.ray_tails --table

**Throughput.** Two real ``serve-edge --ray local`` processes, with one and with two replicas of one core and one thread
each, loaded in turn by 8 devices in a closed loop; every answer's class is compared with the bare tail's. Beside them
the bare tail, in one and in two processes of one thread: what the second core can add at all. Stated:

* ``raw``: images a second with two replicas / with one.
* ``less_front``: as if the front had had cores of its own. With two replicas all processes share the machine's cores,
  so the replicas had ``cores - front`` of them, front being the CPU seconds a second of the edge process: raw * cores
  / (cores - front).
* ``less_front_and_devices``: the same with the load generators' CPU time taken off, too, who on no real system share
  the edge's cores. This is what must be 1.7 or more. Ray's own processes are left in: they are the price of Ray.

**The hop.** The same batch with the same runner and one thread in turn: here, on a replica by its socket, by a Serve
handle, by one with gRPC and by a call of an actor (``benchmarks.ray_hop``); the logits must be the same. A hop is what
a run takes longer than the run here that stands beside it; median and p99 are those of these differences. The socket's
must be 3 ms or less at the median.
"""

import argparse
import json
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from aecnn_deploy.bundle.reader import Bundle
from benchmarks.bare_tail import TailOrder, run_tail
from benchmarks.edge_load import LoadSettings, run_load
from benchmarks.machine import describe_machine, write_result
from benchmarks.processes import Worker, cpu_s, working
from benchmarks.ray_hop import hop
from benchmarks.traffic import ZOO, Bytes, default_data, make_traffic, named_bundle, photograph_frames, planes_of
from tests.bundles import Edge, serving

RESULTS = Path(__file__).parent / "results" / "ray_tails.json"
LEAST_RATIO, MOST_HOP_MS = 1.7, 3.0
DEVICES, WINDOW, BATCH = 8, 4, 4
_END_S = 30.0
_LIMIT_S = 150.0  # of the part that asks Ray itself


class Loaded:
    """An edge with ``replicas``, and the processes that take its CPU time."""

    def __init__(self, stack: ExitStack, bundle: Bundle, replicas: int) -> None:
        options = ("--ray", "local", "--ray-replicas", str(replicas), "--max-batch", str(BATCH), "--preload", "first")
        self.edge: Edge = stack.enter_context(serving(bundle.path, *options))
        self.replicas: list[int] = []
        threading.Thread(target=self._read, daemon=True).start()
        end_s = time.monotonic() + 60
        while len(self.replicas) < replicas:
            if time.monotonic() > end_s:
                raise SystemExit(f"{len(self.replicas)} of {replicas} replicas came within 60 s")
            time.sleep(0.1)
        time.sleep(3.0)  # until the last one has loaded the tail, too

    def _read(self) -> None:
        assert self.edge.process.stderr is not None
        for line in self.edge.process.stderr:
            if found := re.search(r"is connected, process (\d+)", line):
                self.replicas.append(int(found[1]))

    def measure(self, traffic: Any, seconds: float) -> dict[str, float]:
        """Images a second, and CPU seconds a second of everybody."""
        settings = LoadSettings(self.edge.url, devices=DEVICES, window=WINDOW, seconds=seconds)
        before, began_s, all_before = sum(map(cpu_s, self.replicas)), time.perf_counter(), _busy_s()
        report = run_load(settings, traffic, edge_pid=self.edge.process.pid)
        took_s = time.perf_counter() - began_s
        report.check()
        if report.failures:
            raise SystemExit(f"requests failed: {report.failures}")
        assert report.edge_cpu_s is not None
        return {
            "images_per_s": report.images_per_s,
            "front": report.edge_cpu_s / seconds,
            "devices": report.generator_cpu_s / seconds,
            "replicas": (sum(map(cpu_s, self.replicas)) - before) / took_s,  # with the time before and after the load
            "machine": (_busy_s() - all_before) / took_s,
            "p50_ms": report.document()["latency_ms"]["p50"],
        }


def _busy_s() -> float:
    """CPU seconds that all processes of the machine have taken."""
    fields = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def throughput(bundle: Bundle, variant: str, planes: Bytes, seconds: float, rounds: int) -> dict[str, Any]:
    """Both edges and the bare tail in turns: medians, and the ratios of the module's docstring."""
    traffic = make_traffic(bundle, variant, planes)
    tail = bundle.file(bundle.variant(variant).tails["onnxruntime"])
    found: dict[str, list[dict[str, float]]] = {"one": [], "two": []}
    bare: dict[str, list[float]] = {"one": [], "two": []}
    with ExitStack() as stack:
        edges = {"one": Loaded(stack, bundle, 1), "two": Loaded(stack, bundle, 2)}
        tails = [stack.enter_context(working(run_tail, tail, planes, 1)) for _ in range(2)]
        for worker in tails:
            worker.receive()
        for number in range(rounds):
            for name, loaded in edges.items():
                found[name].append(loaded.measure(traffic, seconds))
            bare["one"].append(_rate(tails[:1], seconds / 2))
            bare["two"].append(_rate(tails, seconds / 2))
            one, two = found["one"][-1], found["two"][-1]
            print(
                f"round {number + 1}: one {one['images_per_s']:.1f}, two {two['images_per_s']:.1f} images/s, front "
                f"{two['front']:.2f}, devices {two['devices']:.2f} cores; bare {bare['one'][-1]:.1f}, "
                f"{bare['two'][-1]:.1f}",
                flush=True,
            )
    return summary(found, bare, len(os.sched_getaffinity(0)))


def _rate(tails: list[Worker], seconds: float) -> float:
    for worker in tails:
        worker.send(TailOrder(BATCH, seconds))
    return float(sum(worker.receive().images_per_s for worker in tails))


def summary(found: dict[str, list[dict[str, float]]], bare: dict[str, list[float]], cores: int) -> dict[str, Any]:
    """Medians of rounds, each ratio being the median of the rounds' ratios."""
    ratios: dict[str, list[float]] = {"raw": [], "less_front": [], "less_front_and_devices": [], "bare": []}
    for one, two, alone, both in zip(found["one"], found["two"], bare["one"], bare["two"], strict=True):
        raw = two["images_per_s"] / one["images_per_s"]
        ratios["raw"].append(raw)
        ratios["less_front"].append(raw * cores / (cores - two["front"]))
        ratios["less_front_and_devices"].append(raw * cores / (cores - two["front"] - two["devices"]))
        ratios["bare"].append(both / alone)
    return {
        "cores": cores,
        "devices": DEVICES,
        "window": WINDOW,
        "batch": BATCH,
        **{
            f"{name}_replica{'s' * (name == 'two')}": {
                key: round(median(each[key] for each in rounds), 4) for key in rounds[0]
            }
            for name, rounds in found.items()
        },
        "bare_images_per_s": {name: round(median(rates), 2) for name, rates in bare.items()},
        "ratio": {name: round(median(values), 3) for name, values in ratios.items()},
        "rounds": [
            {name: {key: round(value, 4) for key, value in found[name][number].items()} for name in found}
            for number in range(len(bare["one"]))
        ],
    }


def table(document: dict[str, Any]) -> str:
    """The tables of docs/ray.md."""
    rate, ratio = document["throughput"], document["throughput"]["ratio"]
    one, two = rate["one_replica"], rate["two_replicas"]
    lines = [
        "| | 1 replica | 2 replicas |",
        "|---|---|---|",
        f"| images a second | {one['images_per_s']:.1f} | {two['images_per_s']:.1f} |",
        *(
            f"| cores that {words} took | {one[key]:.2f} | {two[key]:.2f} |"
            for key, words in (("front", "the front"), ("devices", "the load generators"), ("machine", "everybody"))
        ),
        f"| the bare tail, 1 and 2 processes | {rate['bare_images_per_s']['one']:.1f} | "
        f"{rate['bare_images_per_s']['two']:.1f} |",
        "",
        f"{ratio['raw']:.2f} times as much; {ratio['less_front']:.2f} without the front's share of the cores, "
        f"{ratio['less_front_and_devices']:.2f} without the load generators' as well; two bare tails: "
        f"{ratio['bare']:.2f}.",
        "",
        "| batch | bytes | here, ms | the hop by socket, p50 / p99 ms | Serve handle | handle by gRPC | actor call |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, each in document["hop"].items():
        hops = [each.get(f"{way}_hop_ms") for way in ("socket", "handle", "handle_grpc", "actor")]
        pairs = ["–" if hop is None else f"{hop['p50']:.2f} / {hop['p99']:.2f}" for hop in hops]
        lines.append(f"| {size} | {each['bytes']} | {each['local_ms']['p50']:.1f} | {' | '.join(pairs)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default=ZOO, help="a path, or zoo:NAME")
    parser.add_argument("--data", type=Path, default=default_data(), help="photographs; default: patches of samples")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each edge in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short round, for a look")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the tables of docs/ray.md from the last results")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.out.read_text())))
        return 0
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    bundle = named_bundle(options.bundle)
    bundle = replace(bundle, path=bundle.root)  # what other processes can open
    variant = bundle.manifest.variants[0].id
    planes = planes_of(bundle, variant, photograph_frames(bundle.manifest.input, options.data, 32))
    seconds, rounds, divide = (1.0, 1, 20) if options.quick else (options.seconds, options.rounds, 1)
    with working(hop, bundle.path, variant, planes, divide) as worker:
        hops = worker.receive(_LIMIT_S)
        worker.process.join(_END_S)  # it ends its cluster
    rate = throughput(bundle, variant, planes, seconds, rounds)
    met = {
        "ratio": rate["ratio"]["less_front_and_devices"] >= LEAST_RATIO,
        "hop": all(each["socket_hop_ms"]["p50"] <= MOST_HOP_MS for each in hops.values()),
    }
    document = {
        "benchmark": "ray_tails",
        "command": ".venv/bin/python -m benchmarks.ray_tails",
        "quick": options.quick,
        "bundle": options.bundle,
        "variant": variant,
        "bounds": {"ratio": LEAST_RATIO, "hop_ms": MOST_HOP_MS},
        "met": met,
        "throughput": rate,
        "hop": {str(size): each for size, each in hops.items()},
        **describe_machine(),
    }
    write_result(options.out, document)
    print(table(document))
    print(f"bounds: {met}; {options.out}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
