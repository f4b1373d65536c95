"""The 99th percentile of what an edge adds to a request at half load, the wait for its turn apart.

    .venv/bin/python -m benchmarks.edge_overhead_p99 [--data FOLDER] [--edge-arguments="--max-batch 32"]

First 16 devices in a closed loop say what the edge does at most; then the same 16 send at half of that rate in an open
loop with Poisson arrivals, which come in bursts as strangers do. Milliseconds of one request:

* ``stated`` = the edge's total - queue - tail, as each RESULT says: reading our message, decoding, gathering the batch
  and giving its rows back, the top classes. Its 99th percentile must be 5 ms or less.
* ``seen`` = latency at the generator - queue - tail: ``stated``, and beside it the WebSocket libraries on both sides,
  the kernel's loopback, packing and sending the answer, and waiting for a core that a tail is running on.
* ``bare`` = latency of the same arrivals at a server of the same libraries that answers at once
  (``benchmarks.null_edge``). No tail runs beside it, so that ``seen`` - ``bare``, as a difference of percentiles, is
  what the edge adds at most: contention with the tails is in it.

Every answer's class is compared with the bare tail's. Failed requests are counted; the exit status is 1 when the
bound is missed, an answer is wrong, or a request failed or has no answer.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.edge_load import LoadReport, LoadSettings, percentiles, run_load
from benchmarks.machine import describe_machine, write_result
from benchmarks.null_edge import serve_nothing
from benchmarks.processes import working
from benchmarks.traffic import ZOO, Traffic, default_data, make_traffic, named_bundle, photograph_frames, planes_of
from tests.bundles import serving

BOUND_MS = 5.0
DEVICES = 16
LOAD = 0.5  # of what the edge does at most
RESULTS = Path(__file__).parent / "results" / "edge_overhead_p99.json"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    bundle = named_bundle(options.bundle)
    variant = bundle.variant(options.variant).id
    frames = photograph_frames(bundle.manifest.input, options.data, options.photographs)
    traffic = make_traffic(bundle, variant, planes_of(bundle, variant, frames))
    extra = shlex.split(options.edge_arguments)
    with serving(bundle.path, "--threads", str(options.threads), *extra) as edge:
        full = LoadSettings(edge.url, devices=DEVICES, window=options.window, seconds=options.saturate_seconds)
        saturated = run_load(full, traffic, edge_pid=edge.process.pid)
        saturated.check()
        rate_hz = saturated.images_per_s * LOAD
        half = replace(full, rate_hz=rate_hz, seconds=options.seconds)
        loaded = run_load(half, traffic, edge_pid=edge.process.pid)
        loaded.check()
    bare = _bare_link(half, traffic)
    figures = _figures(loaded, bare)
    met = figures["stated_ms"]["p99"] <= BOUND_MS and not loaded.failures and not loaded.unanswered
    document = {
        "benchmark": "edge_overhead_p99",
        "command": ".venv/bin/python -m benchmarks.edge_overhead_p99",
        "bundle": options.bundle,
        "bundle_id": bundle.id,
        "variant": variant,
        "devices": DEVICES,
        "threads": options.threads,
        "edge_arguments": extra,
        "saturated_images_per_s": round(saturated.images_per_s, 2),
        "rate_hz": round(rate_hz, 2),
        "bound_ms": BOUND_MS,
        "met": met,
        **figures,
        "loaded": loaded.document(),
        "saturated": saturated.document(),
        **describe_machine(),
    }
    write_result(options.out, document)
    print(f"{loaded.images} requests at {rate_hz:.1f}/s, half of {saturated.images_per_s:.1f}; milliseconds")
    for name in ("stated_ms", "seen_ms", "bare_ms", "seen_less_bare_ms"):
        print(f"{name:>18} " + "  ".join(f"{which} {value:.3f}" for which, value in figures[name].items()))
    print(f"bound: p99 of stated_ms at most {BOUND_MS} ms: {'met' if met else 'MISSED'}; {options.out}")
    return 0 if met else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default=ZOO, help="a path, or zoo:NAME")
    parser.add_argument("--variant", help="the bundle's first if not given")
    parser.add_argument("--data", type=Path, default=default_data(), help="photographs; default: patches of samples")
    parser.add_argument("--photographs", type=int, default=64, help="how many different requests there are")
    parser.add_argument("--threads", type=int, default=0, help="of the edge's tails; 0: every core")
    parser.add_argument("--window", type=int, default=4, help="requests in flight of each device, to find the most")
    parser.add_argument("--saturate-seconds", type=float, default=8.0, help="to find what the edge does at most")
    parser.add_argument("--seconds", type=float, default=60.0, help="at half load")
    parser.add_argument("--edge-arguments", default="", help="more options of serve-edge, as one text")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    return parser.parse_args(arguments)


def _bare_link(settings: LoadSettings, traffic: Traffic) -> LoadReport:
    """The same arrivals at a server that answers at once, for a quarter of the time."""
    first = [msgspec.structs.replace(each, classes=[0]) for each in traffic.requests]
    with working(serve_nothing, 0, traffic.variants[traffic.variant]) as server:
        url = f"ws://127.0.0.1:{server.receive()}"
        seconds = settings.seconds / 4
        report = run_load(replace(settings, url=url, seconds=seconds), msgspec.structs.replace(traffic, requests=first))
    report.check()
    return report


def _figures(loaded: LoadReport, bare: LoadReport) -> dict[str, Any]:
    _, queue, tail, _ = loaded.of_edge.T
    seen, link = percentiles(loaded.latency_ms - queue - tail), percentiles(bare.latency_ms)
    return {
        "stated_ms": percentiles(loaded.edge_overhead_ms),
        "seen_ms": seen,
        "bare_ms": link,
        "seen_less_bare_ms": {which: round(seen[which] - link[which], 4) for which in ("p50", "p90", "p99")},
    }


if __name__ == "__main__":
    sys.exit(main())
