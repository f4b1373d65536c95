"""How long the exact optimum of a slot takes, how often it is proven, and how far the bounds are from it.

    OMP_NUM_THREADS=1 python -m benchmarks.offloading_bounds

For each scenario and seed an episode is played by the exact optimum of each slot; each slot is timed, its value checked
by the simulator (``exact_slot`` does that), and its linear relaxation solved beside it. The first slots of each
scenario are given to HiGHS as an integer programme, too: the optima must agree. Then short runs: the score of playing
each slot exactly, and the bounds that no policy exceeds, on the same worlds.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from aecnn_deploy.offloading.bounds import bound_document, exact_slot, lp_bound
from aecnn_deploy.offloading.mec.profile import Option, Profile
from aecnn_deploy.offloading.mec.scenario import Devices, Scenario, Servers, Uncertainty
from aecnn_deploy.offloading.mec.world import World
from aecnn_deploy.planning.paper import paper_table
from benchmarks.machine import describe_machine, package_versions, write_result
from benchmarks.offloading_milp import solve_slot

RESULTS = Path(__file__).parent / "results" / "offloading_bounds.json"
KINDS = ("exact per slot", "clairvoyant", "per-slot, empty queues", "lp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=200, help="of each episode")
    parser.add_argument("--highs-slots", type=int, default=20, help="of each scenario, solved by HiGHS, too")
    parser.add_argument("--run-slots", type=int, default=15, help="of the short runs")
    parser.add_argument("--run-limit", type=float, default=60.0, help="seconds for the clairvoyant bound of a run")
    parser.add_argument("--time-limit", type=float, default=20.0, help="seconds for a slot")
    parser.add_argument("--scenarios", nargs="+", default=list(scenarios(1)), help="some of these")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    options = parser.parse_args()
    slots, runs = [], []
    for name in options.scenarios:
        row = slot_row(scenarios(options.slots)[name], options.seeds, options.time_limit, options.highs_slots)
        print(row, flush=True)
        slots.append(row)
        if name.endswith("2x14"):
            runs += run_rows(scenarios(options.run_slots)[name], options.seeds, options.run_limit)
    write_result(
        options.out,
        {
            "benchmark": "offloading_bounds",
            "command": "OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.offloading_bounds",
            "scipy": package_versions(["scipy"]).get("scipy"),
            "time_limit_s": options.time_limit,
            "slots": slots,
            "runs": runs,
            **describe_machine(),
        },
    )
    print(f"written to {options.out}")


def scenarios(slots: int) -> dict[str, Scenario]:
    """Devices of several speeds with the paper's options at its first split, on servers that are certain or not."""

    def scenario(name: str, devices: int, servers: Servers, uncertainty: Uncertainty) -> Scenario:
        each = Devices(count=devices, speed=(0.8, 3.0), arrival=(0.4, 0.8), deadline_ms=(60, 150))
        return Scenario(
            name=name, profile=_profile(), devices=each, servers=servers, uncertainty=uncertainty, slots=slots
        )

    unsure = Uncertainty(estimate_error=0.1, device_jitter=0.1, edge_jitter=0.2, known_load=False)
    loaded = {"capacity": (1.0, 0.75, 0.5), "foreign": (0.0, 0.5)}
    found = [
        scenario("certain-2x14", 14, Servers(count=2), Uncertainty()),
        scenario("uncertain-2x14", 14, Servers(count=2, **loaded), unsure),
        scenario("uncertain-2x7", 7, Servers(count=2, **loaded), unsure),
        scenario("uncertain-3x20", 20, Servers(count=3, **loaded), unsure),
    ]
    return {each.name: each for each in found}


def _profile() -> Profile:
    table = paper_table()
    options = tuple(
        Option(
            name=f"v{row.ratio}",
            accuracy=row.aecnn[0] / 100,
            payload_bytes=row.estimated_bytes,
            device_ms=6.8 / row.ratio + row.encode_ms,
            edge_ms=8 + row.decode_ms,
        )
        for row in table.rows
        if row.split == 1
    )
    accuracy = table.unsplit[0] / 100
    return Profile(name="paper", source=table.source, local_accuracy=accuracy, local_ms=236, options=options)


def slot_row(scenario: Scenario, seeds: int, time_limit_s: float, highs_slots: int) -> dict[str, Any]:
    """Times and gaps over all slots of all seeds."""
    exact_ms, lp_ms, lp_gap, gaps = [], [], [], []
    highs: list[tuple[float, bool]] = []
    for seed in range(seeds):
        world = World(scenario, seed=seed)
        for slot in range(scenario.slots):
            seen = world.observe()
            start = time.perf_counter()
            found = exact_slot(seen, time_limit_s=time_limit_s, bound_by_lp=False)
            middle = time.perf_counter()
            bound = lp_bound(seen)
            exact_ms.append((middle - start) * 1e3)
            lp_ms.append((time.perf_counter() - middle) * 1e3)
            lp_gap.append(bound - found.value)
            gaps.append(0.0 if found.proven else min(bound, found.bound) - found.value)
            assert bound >= found.value - 1e-9
            if seed == 0 and slot < highs_slots:
                other = solve_slot(seen, time_limit_s=time_limit_s)
                solved = other.bound - other.value < 1e-6
                assert not (solved and found.proven) or abs(other.value - found.value) < 1e-6
                assert other.bound > found.value - 1e-6
                highs.append((other.seconds * 1e3, solved))
            world.step(found.actions[None])
    row: dict[str, Any] = {
        "scenario": scenario.name,
        "seeds": seeds,
        "slots": len(exact_ms),
        **_spread("exact_ms", exact_ms),
        "proven_share": float(np.mean([gap == 0 for gap in gaps])),
        "gap_max": max(gaps),
        **_spread("lp_ms", lp_ms),
        "lp_gap_mean": float(np.mean(lp_gap)),
        "lp_gap_max": max(lp_gap),
    }
    if highs:
        row |= {"highs_slots": len(highs), "highs_proven_share": float(np.mean([solved for _, solved in highs]))}
        row |= _spread("highs_ms", [milliseconds for milliseconds, _ in highs])
    return row


def run_rows(scenario: Scenario, seeds: int, limit_s: float) -> list[dict[str, Any]]:
    """The bounds of a short run, and what playing each slot exactly scores in the same worlds."""
    rows = []
    for kind in KINDS:
        start = time.perf_counter()
        limit = limit_s if kind == "clairvoyant" else None
        document = bound_document(scenario, range(seeds), kind=kind, time_limit_s=limit)
        rows.append({"scenario": scenario.name, **document, "seconds_each": (time.perf_counter() - start) / seeds})
        print(rows[-1], flush=True)
    return rows


def _spread(name: str, values: list[float]) -> dict[str, float]:
    points = np.percentile(values, [50, 90, 99, 100])
    return {f"{name}_{label}": float(point) for label, point in zip(("p50", "p90", "p99", "max"), points, strict=True)}


if __name__ == "__main__":
    main()
