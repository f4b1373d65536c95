"""A plan for many devices: measured on this machine, simulated, and held against a real edge.

    .venv/bin/python -m benchmarks.scaling [--data FOLDER]                       # measure, check, plan: under 4 minutes
    .venv/bin/python -m benchmarks.scaling --plan --devices 2000 --fps 10 --layout cpu --boxes 8 --cores 16
    .venv/bin/python -m benchmarks.scaling --table [--into docs/scaling.md]      # markdown from the results

The first form writes ``results/scaling_inputs.json`` (what one message, one connection, one batch takes here),
``results/scaling.json`` (the simulation beside a real edge at 50, 80 and 95 % of what it does; layouts for the devices;
storms; what breaks first) and a figure. ``--inputs FILE`` takes inputs that were measured before. ``--plan`` prints one
layout for your own numbers from stored inputs, and writes nothing.

No GPU is measured: ``--gpu-images-per-s`` and ``--gpu-launch-ms`` are assumptions, and every table says so. The exit
status is 1 when an answer of the real edge was wrong, or the simulation is off by more than ``BOUNDS`` at a load.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec

from aecnn_deploy.errors import AecnnError, PlanError
from benchmarks.machine import describe_machine, write_result
from benchmarks.scaling_check import CheckSettings, check
from benchmarks.scaling_measure import MeasureSettings, measure_inputs
from benchmarks.scaling_plan import make_plan, plan_row
from benchmarks.scaling_report import draw, fill, tables
from benchmarks.scaling_settings import CAPTURES, LAYOUTS, PLACEMENTS, FleetSettings, Inputs, parse_links, read_inputs
from benchmarks.traffic import ZOO, default_data, named_bundle, photograph_frames, planes_of

RESULTS = Path(__file__).parent / "results"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "scaling.png"
COMMAND = ".venv/bin/python -m benchmarks.scaling"

# How far the simulation may be off, as shares of what was measured: the rate, and the median of the edge's total.
# A 99th percentile of some seconds is mostly the machine's, and is stated without a bound. So is the median where
# nearly all of the edge is taken: a queue there is as 1 / (1 - load), and a machine that is 2 % slower doubles it.
RATE = "images_per_s"
BOUNDS = {RATE: 0.05, "total_ms_p50": 0.35}
_BOUND_UP_TO = 0.9
_QUICK = 0.25  # of every measurement's and simulation's time


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        settings = _fleet(options)
        if options.table:
            return _print_tables(options)
        if options.plan:
            return _print_plan(settings, read_inputs(options.inputs or options.out_inputs))
        return _run(options, settings)
    except AecnnError as exc:
        print(exc, file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, settings: FleetSettings) -> int:
    share = _QUICK if options.quick else 1.0
    measuring = MeasureSettings(4.0 * share, 1.0 * share, int(600 * share), options.threads)
    checking = CheckSettings(
        seconds=10.0 * share, saturate_seconds=4.0 * share, tail_seconds=0.7 * share, threads=options.threads or 1
    )
    bundle = named_bundle(options.bundle)
    variant = bundle.variant(options.variant).id
    planes = planes_of(bundle, variant, photograph_frames(bundle.manifest.input, options.data, options.photographs))
    about = {
        "command": COMMAND,
        "reduced": options.quick,
        "bundle": options.bundle,
        "bundle_id": bundle.id,
        "variant": variant,
        "photographs": len(planes),
    }
    if options.inputs is not None:
        inputs = read_inputs(options.inputs)
    else:
        inputs, arms = measure_inputs(bundle, variant, planes, measuring)
        document = {"benchmark": "scaling_inputs", **about, "inputs": msgspec.to_builtins(inputs), "arms": arms}
        write_result(options.out_inputs, document | describe_machine())
        print(f"measured: {options.out_inputs}", flush=True)
    checked = None if options.no_check else check(bundle, variant, planes, inputs, checking)
    problems = problems_of(checked) if checked is not None else []
    for row in checked["loads"] if checked is not None else ():
        print(f"{row['load']:.0%}: measured {row['measured']}, simulated {row['simulated']}", flush=True)
    plan = make_plan(settings, inputs, lambda line: print(line, flush=True), workers=len(os.sched_getaffinity(0)))
    document = {
        "benchmark": "scaling",
        **about,
        "bounds": BOUNDS,
        "met": not problems,
        "problems": problems,
        "check": checked,
        "hop_measured": options.hop_ms is None and options.hop_from.is_file(),
        "plan": plan,
    }
    write_result(options.out, document | describe_machine())
    draw(plan, options.figure)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"simulation beside a real edge: {'met' if not problems else 'MISSED'}; {options.out}, {options.figure}")
    return 1 if problems else 0


def problems_of(checked: dict[str, Any]) -> list[str]:
    """Where the simulation is off by more than ``BOUNDS``, or the real edge failed; a line each."""
    found = []
    for row in checked["loads"]:
        load = f"at {row['load']:.0%}"
        if row["wrong"] or row["unanswered"] or row["failures"]:
            found.append(f"{load}: {row['wrong']} wrong, {row['unanswered']} unanswered, {row['failures']}")
        for name, bound in BOUNDS.items():
            if name != RATE and row["load"] > _BOUND_UP_TO:
                continue
            if abs(row["error"][name]) > bound:
                found.append(f"{load}: {name} is off by {row['error'][name]:+.0%}, the bound is {bound:.0%}")
    return found


def measured_hop_ms(path: Path) -> float | None:
    """The median hop to a tail by Ray, of the slowest size of batch, from ``benchmarks.ray_tails``; None: not run.

    Raises PlanError: the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        hops = msgspec.json.decode(path.read_bytes(), type=_Hops).hop
    except msgspec.DecodeError as exc:
        raise PlanError(
            f"{path} states no hop: {exc}; run python -m benchmarks.ray_tails again, or give --hop-ms"
        ) from None
    return max((hop.socket_hop_ms["p50"] for hop in hops.values()), default=None)


class _Hop(msgspec.Struct):
    socket_hop_ms: dict[str, float]


class _Hops(msgspec.Struct):
    hop: dict[str, _Hop]


def _print_plan(settings: FleetSettings, inputs: Inputs) -> int:
    row = plan_row(settings.layout, settings, inputs)
    print(msgspec.json.format(msgspec.json.encode(row)).decode())
    return 0


def _print_tables(options: argparse.Namespace) -> int:
    document = msgspec.json.decode(options.out.read_bytes())
    made = tables(read_inputs(options.out_inputs), document, "figures/scaling.png")
    if options.into is not None:
        fill(options.into, made)
    else:
        print("\n\n".join(f"{name}:\n\n{table}" for name, table in made.items()))
    return 0


def _fleet(options: argparse.Namespace) -> FleetSettings:
    given = {each.name: getattr(options, each.name, None) for each in fields(FleetSettings)}
    if given["hop_ms"] is None:
        given["hop_ms"] = measured_hop_ms(options.hop_from)
    settings = replace(FleetSettings(), **{name: value for name, value in given.items() if value is not None})
    if options.quick:
        settings = replace(settings, seconds=settings.seconds * _QUICK)
    return replace(settings, streams_limited=not options.any_streams)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--plan", action="store_true", help="one layout from stored inputs, on stdout")
    mode.add_argument("--table", action="store_true", help="markdown from the stored results")
    parser.add_argument("--into", type=Path, help="with --table: fill the places of this page")
    for name, kind, text in (
        ("devices", int, "default 10,000"),
        ("fps", float, "frames a second of each; default 5"),
        ("boxes", int, "default: as many as it takes at --utilisation"),
        ("cores", int, "of a box; default 16"),
        ("gpus", int, "of a box; default 1"),
        ("gpu-images-per-s", float, "of one GPU, whole batches: an ASSUMPTION; default 5,000"),
        ("gpu-launch-ms", float, "of a GPU's batch, whatever its size: an ASSUMPTION; default 2"),
        ("hop-ms", float, "layout split: to a tail elsewhere and back; default: as --hop-from says, else 3"),
        ("utilisation", float, "of the scarcest part; default 0.7"),
        ("seconds", float, "simulated; default 30"),
        ("window", int, "requests of a device in flight; default 4"),
        ("deadline-ms", float, "of each image from its coming to the edge; default none"),
        ("max-streams", int, "of one process; default 256, as shipped"),
        ("seed", int, "of all that is drawn"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument("--hop-from", type=Path, default=RESULTS / "ray_tails.json", help="results with a measured hop")
    parser.add_argument("--layout", choices=LAYOUTS, help="with --plan; default gpu")
    parser.add_argument("--placement", choices=PLACEMENTS, help="of connections; default least-connections")
    parser.add_argument("--capture", choices=CAPTURES, help="when devices take their frames; default paced")
    parser.add_argument("--links", type=parse_links, help="share:Mbit/s:ms of each kind, by commas: an ASSUMPTION")
    parser.add_argument("--any-streams", action="store_true", help="as if a process took any number of streams")
    parser.add_argument("--bundle", default=ZOO, help="a path, or zoo:NAME")
    parser.add_argument("--variant", help="the bundle's first if not given")
    parser.add_argument("--data", type=Path, default=default_data(), help="photographs; default: patches of samples")
    parser.add_argument("--photographs", type=int, default=64, help="how many different requests there are")
    parser.add_argument("--threads", type=int, default=0, help="of the tail; 0: every core")
    parser.add_argument("--inputs", type=Path, help="inputs that were measured before; default: measure")
    parser.add_argument("--no-check", action="store_true", help="do not hold the simulation against a real edge")
    parser.add_argument("--quick", action="store_true", help="a quarter of the time everywhere; the results say so")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json", help="where to write the JSON")
    parser.add_argument("--out-inputs", type=Path, default=RESULTS / "scaling_inputs.json", help="and the inputs")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="where to write the figure")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
