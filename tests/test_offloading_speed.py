"""The simulator's speed, and the benchmark that measures it."""

import statistics
import time
from typing import Any

import pytest

from aecnn_deploy.offloading.baselines.simple import AllLocal, RandomPolicy
from aecnn_deploy.offloading.mec.world import World
from aecnn_deploy.offloading.scenario_file import load_scenario

UNCERTAIN = "paper-2x14"


@pytest.mark.parametrize("policy", [AllLocal(), RandomPolicy()], ids=lambda policy: policy.name)
def test_twenty_thousand_device_decisions_a_second_on_one_core(policy: Any) -> None:
    """By CPU time, which other processes do not change much; the median of short runs."""
    chosen = load_scenario(UNCERTAIN)
    world, slots, rates = World(chosen, seed=0), 100, []
    for _ in range(9):
        start = time.process_time()
        for _ in range(slots):
            world.step(policy.decide(world.observe()))
        rates.append(slots * chosen.devices.count / (time.process_time() - start))
    assert statistics.median(rates) >= 20_000


@pytest.mark.bench
def test_the_benchmark_has_a_row_for_each_scenario_policy_and_number_of_worlds() -> None:
    pytest.importorskip("gymnasium")
    from benchmarks.offloading_speed import BATCHES, SCENARIOS, measure

    document = measure(runs=2, decisions=50)
    assert len(document["rows"]) == len(SCENARIOS) * (len(BATCHES) * 2 + 1)
    assert all(row["per_s_least"] <= row["per_s_median"] <= row["per_s_most"] for row in document["rows"])
    assert document["machine"]["cores"] >= 1
