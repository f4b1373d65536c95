"""The plan: layouts for a fleet, each simulated; more and fewer boxes; storms; what breaks first."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from typing import Any

from benchmarks.scaling_cell import Fate
from benchmarks.scaling_fleet import (
    FleetShape,
    fleet_shape,
    front_s,
    make_frames,
    place,
    process_images_per_s,
    run_fleet,
)
from benchmarks.scaling_limits import limits, network
from benchmarks.scaling_settings import FleetSettings, Inputs
from benchmarks.scaling_storm import StormSettings, run_storm

GPU_RATES = (1_000.0, 5_000.0, 20_000.0)  # images/s of a GPU: assumptions, a plan for each
_SWEEP = (0.5, 0.6, 0.7, 0.85, 1.0, 1.3)  # of the boxes that the arithmetic wants
_SWEEP_S = 4.0
_PROXY_CONNECTIONS = 64  # --peer-connections, for all behind one address

Say = Callable[[str], None]


def make_plan(settings: FleetSettings, inputs: Inputs, say: Say, *, workers: int) -> dict[str, Any]:
    """Everything that a plan says of ``settings``' devices, over all layouts, as a document; ``workers`` processes."""
    chosen, layouts = replace(settings, layout="gpu"), _layouts(settings)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        rows = [pool.submit(plan_row, name, each, inputs) for name, each in layouts]
        sweeps = [pool.submit(sweep, each, inputs) for _, each in layouts]
        storms = [pool.submit(run_storm, chosen, inputs, storm) for storm in storms_of(fleet_shape(chosen, inputs))]
        for row in rows:
            found = row.result()
            p99 = found["simulated"]["edge_ms"].get("p99")
            say(f"{found['name']}: {found['boxes']} boxes, {found['processes']} processes, edge p99 {p99} ms")
        for storm in storms:
            told = storm.result()
            say(f"{told['what']}: {told['devices_hit']} devices hit, connected by {told['connected_s'].get('p100')} s")
        names = [name for name, _ in layouts]
        document = {
            "settings": asdict(settings),
            "images_per_s": settings.images_per_s,
            "front_us": round(front_s(inputs) * 1e6, 1),
            "process_images_per_s": round(process_images_per_s(inputs), 1),
            "network": network(settings, inputs),
            "layouts": [row.result() for row in rows],
            "sweeps": [{"name": name, "points": each.result()} for name, each in zip(names, sweeps, strict=True)],
            "storms": [storm.result() for storm in storms],
        }
    of_gpu = next(
        row
        for row in document["layouts"]
        if row["layout"] == "gpu" and row["gpu_images_per_s"] == settings.gpu_images_per_s
    )
    in_flight_s = max(1e-3, of_gpu["simulated"]["edge_ms"].get("p99", 0.0) / 1e3)
    document["limits"] = [limit.document() for limit in limits(settings, inputs, in_flight_s)]
    return document


def plan_row(name: str, settings: FleetSettings, inputs: Inputs) -> dict[str, Any]:
    """One layout: what it takes, and what the simulation says of it."""
    shape = fleet_shape(settings, inputs)
    frames = make_frames(settings, inputs)
    found = run_fleet(settings, shape, frames, place(settings, shape.fronts))
    each = settings.devices / shape.fronts
    memory = shape.fronts * inputs.process_bytes + settings.devices * (
        inputs.tls_memory_bytes_per_connection + inputs.kept_planes_bytes
    )
    return {
        "name": name,
        "layout": settings.layout,
        "gpu_images_per_s": None if settings.layout == "cpu" else settings.gpu_images_per_s,
        "boxes": shape.boxes,
        "processes": shape.fronts,
        "devices_per_process": round(each, 1),
        "front_cores": round(settings.images_per_s * front_s(inputs), 1),
        "tail_cores": shape.fronts * inputs.tail_cores if settings.layout == "cpu" else 0,
        "gpus": shape.cells * shape.cell.tails if settings.layout != "cpu" else 0,
        "memory_gb": round(memory / 1e9, 1),
        "mbit_per_s_a_box": round(network(settings, inputs)["up_mbit_per_s"] / shape.boxes, 1),
        "simulated_s": settings.seconds,
        "simulated": found.document(),
    }


def sweep(settings: FleetSettings, inputs: Inputs) -> list[dict[str, Any]]:
    """Fewer boxes than the plan has, and more: where a fleet begins to fail."""
    short = replace(settings, seconds=_SWEEP_S)
    wanted = fleet_shape(settings, inputs)
    frames = make_frames(short, inputs)
    # Of the split layout the tails are what is scarce; of the others the boxes are.
    unit = wanted.cell.tails if settings.layout == "split" else wanted.boxes
    points = []
    for count in sorted({max(1, round(unit * share)) for share in _SWEEP}):
        shape = _with(settings, inputs, wanted, count)
        found = run_fleet(short, shape, frames, place(short, shape.fronts))
        told = found.document()
        points.append({"count": count, "answered": round(found.share(Fate.OK), 4), "edge_ms": told["edge_ms"]})
    return points


def storms_of(shape: FleetShape) -> tuple[StormSettings, ...]:
    """What is simulated to go wrong; a box dies where it is not the only one."""
    return (
        *([StormSettings("box dies")] if shape.boxes > 1 else []),
        StormSettings("all cut"),
        StormSettings("all cut", waiting_connections=_PROXY_CONNECTIONS),
        StormSettings("all restart", seconds=30.0),
        StormSettings("reload", seconds=8.0),
    )


def _with(settings: FleetSettings, inputs: Inputs, wanted: FleetShape, count: int) -> FleetShape:
    if settings.layout == "split":
        return replace(wanted, cell=replace(wanted.cell, tails=count))
    return fleet_shape(replace(settings, boxes=count), inputs)


def _layouts(settings: FleetSettings) -> list[tuple[str, FleetSettings]]:
    rates = GPU_RATES if settings.gpu_images_per_s in GPU_RATES else (*GPU_RATES, settings.gpu_images_per_s)
    found = [(f"CPU, {settings.cores} cores a box", replace(settings, layout="cpu"))]
    found += [
        (f"GPU of {rate:,.0f} images/s a box", replace(settings, layout="gpu", gpu_images_per_s=rate)) for rate in rates
    ]
    found.append(
        (f"fronts apart, GPUs of {settings.gpu_images_per_s:,.0f}", replace(settings, layout="split")),
    )
    return found
