"""How long the shipped policy takes for a slot of 14 devices, 2 servers and 7 options, all devices with a task.

    OMP_NUM_THREADS=1 python -m benchmarks.offloading_decision

Wall time of one decision after another on one core, after a check that each is one of those that there are. The policy
must take 2 ms or less at the median, which is asserted.
"""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from aecnn_deploy.offloading.mec.world import World
from aecnn_deploy.offloading.registry import make_policy
from aecnn_deploy.offloading.scenario_file import load_scenario, with_changes
from benchmarks.machine import describe_machine, write_result

RESULT = Path(__file__).parent / "results" / "offloading_decision.json"
SLOTS = 400


def main() -> None:
    """Measure, assert, write."""
    scenario = with_changes(load_scenario("paper-2x14"), {"profile.method": "aecnn+picture"})
    policy, world = make_policy("grl", scenario), World(scenario, seed=1000)
    times = []
    for _ in range(SLOTS):
        seen = world.observe()
        full = replace(seen, active=np.ones_like(seen.active))
        start = time.perf_counter()
        actions = policy.decide(full)
        times.append((time.perf_counter() - start) * 1e3)
        assert actions.shape == (1, 14)
        assert 0 <= actions.min() <= actions.max() < seen.choices == 15
        world.step(actions)
    p10, p50, p90 = (round(float(one), 4) for one in np.percentile(times, (10, 50, 90)))
    row = {"devices": 14, "servers": 2, "options": 7, "slots": SLOTS, "ms_p10": p10, "ms_p50": p50, "ms_p90": p90}
    print(row)
    assert p50 <= 2
    write_result(RESULT, {"rows": [row]} | describe_machine())


if __name__ == "__main__":
    main()
