"""Device-decisions a second of the simulator on one core: one world at a time, and many in one array step.

    python -m benchmarks.offloading_speed

A device-decision is one device of one world in one slot, whether it has a task or not, with observing, a trivial policy
(decisions drawn beforehand) and stepping. CPU time, the median of runs. Before anything is timed, a batch's slots are
checked against the same slots world by world.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # one core, before numpy is loaded

import numpy as np  # noqa: E402

from aecnn_deploy.offloading.mec.env import OffloadingEnv  # noqa: E402
from aecnn_deploy.offloading.mec.line import serve  # noqa: E402
from aecnn_deploy.offloading.mec.observation import LOCAL  # noqa: E402
from aecnn_deploy.offloading.mec.scenario import Scenario  # noqa: E402
from aecnn_deploy.offloading.mec.world import World  # noqa: E402
from aecnn_deploy.offloading.scenario_file import load_scenario  # noqa: E402
from benchmarks.machine import describe_machine, write_result  # noqa: E402

OUT = Path(__file__).parent / "results" / "offloading_speed.json"
SCENARIOS = ("paper-2x14", "4x30", "16x512")
BATCHES = (1, 8, 64)
GOAL = 20_000  # device-decisions a second, one world of paper-2x14


def measure(*, runs: int, decisions: int) -> dict[str, Any]:
    """The document: rows by scenario, batch and policy; ``decisions`` of devices in each of ``runs`` runs."""
    check_rows()
    rows = []
    for name in SCENARIOS:
        scenario = load_scenario(name)
        for batch in BATCHES:
            for policy in ("local", "random"):
                rates = world_rates(scenario, batch, policy, runs, decisions)
                rows.append(_row(name, batch, policy, rates))
        rows.append(_row(name, 1, "random, as OffloadingEnv", env_rates(scenario, runs, decisions)))
    return {**describe_machine(), "goal_per_s": GOAL, "rows": rows}


def world_rates(scenario: Scenario, batch: int, policy: str, runs: int, decisions: int) -> list[float]:
    """Device-decisions a CPU second of each run."""
    world, rng, devices = World(scenario, batch=batch, seed=0), np.random.default_rng(0), scenario.devices.count
    slots = max(decisions // (batch * devices), 3)
    shape = (slots, batch, devices)
    drawn = rng.integers(0, world.choices, shape) if policy == "random" else np.full(shape, LOCAL)
    rates = []
    for _ in range(runs):
        start_s = time.process_time()
        for actions in drawn:
            world.observe()
            world.step(actions)
        rates.append(drawn.size / (time.process_time() - start_s))
    return rates


def env_rates(scenario: Scenario, runs: int, decisions: int) -> list[float]:
    """The same of the gymnasium environment: features and accounting as well."""
    env, rng, devices = OffloadingEnv(scenario, seed=0), np.random.default_rng(0), scenario.devices.count
    env.reset()
    drawn = rng.integers(0, World(scenario).choices, (max(decisions // devices, 3), devices))
    rates = []
    for _ in range(runs):
        start_s = time.process_time()
        for action in drawn:
            env.step(action)
        rates.append(drawn.size / (time.process_time() - start_s))
    return rates


def check_rows() -> None:
    """Many rows in arrays and each row alone, task by task, must give the same to the bit."""
    rng, rows, devices, servers = np.random.default_rng(0), 200, 14, 2
    server = rng.integers(-1, servers, (rows, devices))
    times = [rng.exponential(0.03, (rows, devices)) for _ in range(4)]
    free = [rng.exponential(0.03, (rows, servers)) for _ in range(2)]
    for shared in (True, False):
        together = serve(server, *times, *free, shared_radio=shared)
        for row in range(rows):
            at = slice(row, row + 1)
            alone = serve(server[at], *(x[at] for x in times), *(x[at] for x in free), shared_radio=shared)
            for field in together.__dataclass_fields__:
                assert np.array_equal(getattr(together, field)[at], getattr(alone, field)), field


def _row(scenario: str, batch: int, policy: str, rates: list[float]) -> dict[str, Any]:
    return {
        "scenario": scenario,
        "worlds": batch,
        "policy": policy,
        "per_s_median": round(statistics.median(rates)),
        "per_s_least": round(min(rates)),
        "per_s_most": round(max(rates)),
        "runs": len(rates),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--decisions", type=int, default=20_000, help="of devices, in each run")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    document = measure(runs=options.runs, decisions=options.decisions)
    for row in document["rows"]:
        print(f"{row['scenario']:<12}{row['worlds']:>4} worlds  {row['policy']:<26}{row['per_s_median']:>10,} /s")
    write_result(options.out, document)
    slowest = min(row["per_s_median"] for row in document["rows"] if row["scenario"] == SCENARIOS[0])
    assert slowest >= GOAL, f"{slowest} device-decisions a second, the goal is {GOAL}"


if __name__ == "__main__":
    main()
