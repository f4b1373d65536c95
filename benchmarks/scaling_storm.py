"""When processes end: the devices of a box look for another one, or those of all boxes come back at once.

What a device does is the product's: the first attempt at once, then pauses drawn by ``Backoff``. A front that makes
connections answers nobody meanwhile; that is where a storm hurts those who were not hit.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from aecnn_deploy.errors import SettingsError
from benchmarks.scaling_cell import Fate, Ints
from benchmarks.scaling_fleet import FleetResult, FleetShape, fleet_shape, make_frames, place, run_fleet, spread_ms
from benchmarks.scaling_settings import FleetSettings, Inputs

What = Literal["box dies", "all cut", "all restart", "reload"]


@dataclass(frozen=True, slots=True)
class StormSettings:
    """What happens at second 0. Raises SettingsError: a number is out of its range."""

    what: What
    seconds: float = 20.0  # simulated after it
    balancer_s: float = 2.0  # "box dies": until attempts go to others; until then they are refused
    waiting_connections: int | None = None  # one address for all, a proxy's: --peer-connections of it at most
    slower: float = 2.0  # "reload": runs while the next bundle is loaded on the same cores

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.balancer_s < 0 or self.slower < 1:
            raise SettingsError(
                f"seconds is {self.seconds}, balancer_s {self.balancer_s}, slower {self.slower}; "
                "expected a positive number, 0 or more, and at least 1"
            )
        if self.waiting_connections is not None and self.waiting_connections < 1:
            raise SettingsError(f"waiting_connections is {self.waiting_connections}, expected at least 1")


def run_storm(settings: FleetSettings, inputs: Inputs, storm: StormSettings) -> dict[str, Any]:
    """Simulate it. Raises SettingsError: the only box dies."""
    settings = replace(settings, seconds=storm.seconds)
    shape = fleet_shape(settings, inputs)
    shape = replace(shape, cell=replace(shape.cell, waiting_connections=storm.waiting_connections))
    front_of = place(settings, shape.fronts)
    frames = make_frames(settings, inputs)
    if storm.what == "reload":
        shape = replace(shape, cell=replace(shape.cell, slow=(0.0, inputs.load_s, storm.slower)))
        return _told(settings, storm, shape, run_fleet(settings, shape, frames, front_of), np.array([], np.int64))
    if storm.what == "all restart":
        hit, reachable_s = np.arange(settings.devices), inputs.start_s
    elif storm.what == "all cut":  # a switch, a balancer: every process lives, and is asked by all at once
        hit, reachable_s = np.arange(settings.devices), 0.0
    else:
        hit, reachable_s = _of_one_box(settings, shape, front_of), storm.balancer_s
        front_of = moved(settings, shape, front_of, hit)
    rng = np.random.default_rng([settings.seed, 3])
    heard_s = np.sort(rng.uniform(0, 0.05, len(hit)))  # over how long they hear that the connection is gone
    connects = [(float(when_s), int(who)) for when_s, who in zip(heard_s, rng.permutation(hit), strict=True)]
    found = run_fleet(settings, shape, frames, front_of, connects=connects, reachable_s=reachable_s)
    return _told(settings, storm, shape, found, hit)


def moved(settings: FleetSettings, shape: FleetShape, front_of: Ints, hit: Ints) -> Ints:
    """Where devices go when the fronts of ``hit`` are no more: to the least busy that are left, or to any of them."""
    after = front_of.copy()
    dead = np.unique(front_of[hit])
    left = np.setdiff1d(np.arange(shape.fronts), dead)
    if not len(left):
        raise SettingsError(f"the only box of {shape.fronts} processes dies; give --boxes 2 or more")
    rng = np.random.default_rng([settings.seed, 4])
    if settings.placement == "hash":
        after[hit] = rng.choice(left, len(hit))
        return after
    # As many as there are, one after the other to whoever has fewest: the same as filling up from below.
    counts = np.bincount(front_of, minlength=shape.fronts)[left]
    for who in hit:
        fewest = int(counts.argmin())
        after[who] = left[fewest]
        counts[fewest] += 1
    return after


def _of_one_box(settings: FleetSettings, shape: FleetShape, front_of: Ints) -> Ints:
    each = max(1, shape.fronts // shape.boxes)
    return np.flatnonzero(front_of < each)


def _told(
    settings: FleetSettings, storm: StormSettings, shape: FleetShape, found: FleetResult, hit: Ints
) -> dict[str, Any]:
    connected_s = np.array([when_s for cell in found.cells for when_s in cell.connected_s.values()])
    others = ~np.isin(found.frames.device, hit)
    by_second = []
    for second in range(int(storm.seconds)):
        within = (found.frames.at_s >= second) & (found.frames.at_s < second + 1)
        by_second.append(spread_ms(found.edge_s[within & (others if 0 < len(hit) < settings.devices else True)]))
    away = np.isin(found.fate, (Fate.AWAY, Fate.DROPPED, Fate.OVERLOADED, Fate.DEADLINE))
    return {
        "what": storm.what,
        "placement": settings.placement,
        "layout": settings.layout,
        "boxes": shape.boxes,
        "processes": shape.fronts,
        "devices_hit": len(hit),
        "connections_waiting_at_most": storm.waiting_connections,
        "attempts": sum(cell.attempts for cell in found.cells),
        "refused_attempts": sum(cell.refused_attempts for cell in found.cells),
        "late_attempts": sum(cell.late_attempts for cell in found.cells),
        "connected": len(connected_s),
        "connected_s": {
            f"p{share}": round(float(np.percentile(connected_s, share)), 2) for share in (50, 99, 100)
        } if len(connected_s) else {},
        "frames_without_an_edge": int(away.sum()),
        "share_of_frames": round(float(away.mean()), 4),
        "edge_ms_by_second": by_second,
    }  # fmt: skip
