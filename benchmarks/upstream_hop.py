"""What a tail that runs on a Triton server costs an image more than one that runs in the edge.

    .venv/bin/python -m benchmarks.upstream_hop [--triton-python PATH] [--table]

Two edges serve the same bundle: one runs the tail in ONNX Runtime, the other has it on a Triton server on the same
machine, which runs the same file in ONNX Runtime with as many threads. One device asks for one image after the other,
at the one edge and at the other in turns, so that what else the machine does meets both. Milliseconds of one image:

* ``local`` and ``upstream``: from sending a request to its answer, at the device; of it the tail, as RESULT states it.
* ``hop`` = median ``upstream`` - median ``local``: gRPC on both sides, loopback, and all that the server does beside
  the tail itself. **The server is nvidia-pytriton's, whose Python backend takes each batch through two more
  processes**: a Triton with a backend of its own (ONNX Runtime, TensorRT) does not.
* ``server``, of one call: what Triton says that it took, by its own statistics: queue, Python backend, and the tail.
  ``way`` = the edge's call - that: the hop without the server.

Every answer's class is compared with the bare tail's; the exit status is 1 when one is wrong or missing. ``--table``
prints the table of docs/upstream.md from the results and measures nothing.
"""

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from aecnn_deploy.bundle.reader import Bundle
from benchmarks.machine import describe_machine, write_result
from benchmarks.stream_client import StreamClient
from benchmarks.traffic import ZOO, Traffic, default_data, make_traffic, named_bundle, photograph_frames, planes_of
from tests.bundles import Edge, serving
from tests.edge_client import metric
from tests.inference_server import free_port

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "upstream_hop.json"

_ANSWER_S = 30.0


@dataclass
class Arm:
    """One edge, and what its images took, in milliseconds."""

    edge: Edge
    client: StreamClient
    image_ms: list[float] = field(default_factory=list)
    tail_ms: list[float] = field(default_factory=list)
    wrong: int = 0

    def ask(self, traffic: Traffic, count: int) -> None:
        """Have ``count`` images classified, one after the other."""
        for number in range(count):
            planned = traffic.requests[number % len(traffic.requests)]
            began_s = time.perf_counter()
            self.client.ask(planned)
            while not (answers := self._answers()):
                pass
            self.image_ms.append((time.perf_counter() - began_s) * 1e3)
            ((_, outcome),) = answers
            self.tail_ms.append(outcome.tail_ms)
            self.wrong += bool(outcome.code) or outcome.top[0][0] not in planned.classes

    def forget(self) -> None:
        """What was measured was warming up."""
        self.image_ms, self.tail_ms = [], []

    def document(self) -> dict[str, Any]:
        return {"image_ms": _percentiles(self.image_ms), "tail_ms": _percentiles(self.tail_ms), "wrong": self.wrong}

    def _answers(self) -> Any:
        if not select.select([self.client], [], [], _ANSWER_S)[0]:
            raise TimeoutError(f"{self.client.url} gave no answer within {_ANSWER_S:g} s")
        return self.client.answers()


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.table:
        print(table(json.loads(options.out.read_text())))
        return 0
    os.environ["AECNN_TRITON_PYTHON"] = options.triton_python or _triton_python()
    bundle = named_bundle(options.bundle)
    variant = bundle.variant(options.variant).id
    frames = photograph_frames(bundle.manifest.input, options.data, options.photographs)
    traffic = make_traffic(bundle, variant, planes_of(bundle, variant, frames))
    found = _measure(bundle, variant, traffic, options)
    document = {
        "benchmark": "upstream_hop",
        "command": ".venv/bin/python -m benchmarks.upstream_hop",
        "server": f"nvidia-pytriton {_pytriton_version()}, its Python backend, ONNX Runtime on the CPU",
        "bundle": options.bundle,
        "bundle_id": bundle.id,
        "variant": variant,
        "images": options.images * options.rounds,
        "threads": 1,
        **found,
        **describe_machine(),
    }
    write_result(options.out, document)
    print(table(document))
    wrong = found["local"]["wrong"] + found["upstream"]["wrong"]
    print(f"{wrong} answers are wrong; {options.out}")
    return 1 if wrong else 0


def table(document: dict[str, Any]) -> str:
    """The rows of docs/upstream.md."""
    rows = ["| one image, ms | p50 | p90 | p99 |", "|---|---|---|---|"]
    for name, words in (
        ("local", "tail in the edge: the image"),
        ("upstream", "tail on Triton: the image"),
    ):
        figures = document[name]["image_ms"]
        rows.append(f"| {words} | " + " | ".join(f"{figures[which]:.2f}" for which in ("p50", "p90", "p99")) + " |")
    figures = document["hop_ms"]
    rows.append(f"| **the hop**, of the medians | {figures['hop']:.2f} | | |")
    rows.append(f"| … gRPC and loopback, mean | {figures['way_mean']:.2f} | | |")
    rows.append(f"| … Triton's queue and Python backend, the tail in it, mean | {figures['server_mean']:.2f} | | |")
    return "\n".join(rows)


def _measure(bundle: Bundle, variant: str, traffic: Traffic, options: argparse.Namespace) -> dict[str, Any]:
    from tests.triton_server.process import TritonProcess, served

    with tempfile.TemporaryDirectory() as folder:
        models = {variant: served(bundle)[variant]}
        server = TritonProcess(Path(folder), free_port(), free_port(), models, max_batch=16)
        try:
            server.start()
            common = ("--threads", "1", "--preload", variant)
            with (
                serving(bundle.path, *common) as near,
                serving(bundle.path, *common, "--upstream", server.url) as far,
            ):
                arms = [Arm(edge, StreamClient(edge.url, traffic)) for edge in (near, far)]
                try:
                    for arm in arms:
                        arm.ask(traffic, options.images // 4 + 1)
                        arm.forget()
                    before = _spent(server.url, variant, far)
                    for _ in range(options.rounds):
                        for arm in arms:
                            arm.ask(traffic, options.images)
                    after = _spent(server.url, variant, far)
                finally:
                    for arm in arms:
                        arm.client.close()
        finally:
            server.kill()
    local, upstream = arms
    calls, call_s, server_s = (now - then for now, then in zip(after, before, strict=True))
    hop_ms = {
        "hop": round(statistics.median(upstream.image_ms) - statistics.median(local.image_ms), 4),
        "way_mean": round((call_s - server_s) / calls * 1e3, 4),
        "server_mean": round(server_s / calls * 1e3, 4),
    }
    return {"local": local.document(), "upstream": upstream.document(), "hop_ms": hop_ms}


def _spent(url: str, variant: str, edge: Edge) -> tuple[float, float, float]:
    """So far: the edge's calls upstream, their seconds, and the seconds that Triton says it took for all of them."""
    with grpc.insecure_channel(url.removeprefix("triton://"), options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        (found,) = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name=variant), timeout=10).model_stats
    labels = f'{{variant="{variant}"}}'
    calls = metric(edge, f"aecnn_upstream_seconds_count{labels}")
    return calls, metric(edge, f"aecnn_upstream_seconds_sum{labels}"), found.inference_stats.success.ns / 1e9


def _percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{percent}": round(cuts[percent - 1], 4) for percent in (50, 90, 99)}


def _triton_python() -> str:
    named = os.environ.get("AECNN_TRITON_PYTHON")
    if named:
        return named
    made = [str(ROOT / "tools" / "triton_python.sh"), str(ROOT / "build" / "triton")]
    return subprocess.run(made, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def _pytriton_version() -> str:
    asked = [
        os.environ["AECNN_TRITON_PYTHON"],
        "-c",
        "import importlib.metadata as m; print(m.version('nvidia-pytriton'))",
    ]
    return subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default=ZOO, help="a path, or zoo:NAME")
    parser.add_argument("--variant", help="the bundle's first if not given")
    parser.add_argument("--data", type=Path, default=default_data(), help="photographs; default: patches of samples")
    parser.add_argument("--photographs", type=int, default=32, help="how many different requests there are")
    parser.add_argument("--images", type=int, default=200, help="of each edge in a round")
    parser.add_argument("--rounds", type=int, default=10, help="turns of both edges")
    parser.add_argument("--triton-python", help="a Python with nvidia-pytriton; default: AECNN_TRITON_PYTHON, or made")
    parser.add_argument("--table", action="store_true", help="print the table of the results, and measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
