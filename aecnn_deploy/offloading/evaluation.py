"""Running a policy through a scenario: scores slot by slot, over seeds, and how long a decision takes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.mec.observation import Floats
from aecnn_deploy.offloading.mec.scenario import Scenario
from aecnn_deploy.offloading.mec.world import World
from aecnn_deploy.offloading.policy import Policy

TIMED_SLOTS = 100  # decisions of one world that are timed


@dataclass(frozen=True)
class Episode:
    """One seed: ``batch`` worlds of one episode, as means over all of their slots."""

    seed: int
    score: float  # accuracy-weighted tasks in time, a second and world: expected right answers in time
    accuracy: float  # mean, of the tasks in time
    success: float  # tasks in time over tasks arrived
    throughput: float  # tasks in time, a second and world
    arrived: float  # tasks, a second and world
    energy_j: float | None  # of one task arrived
    scores: Floats  # [slots] score of each slot, for curves


@dataclass(frozen=True)
class Evaluation:
    """One policy in one scenario over seeds."""

    policy: str
    episodes: tuple[Episode, ...]
    decision_ms: tuple[float, ...]  # of one world; empty: not timed

    def row(self) -> dict[str, object]:
        """The row of ``simulate --json``. Standard deviations are over seeds."""
        scores = [episode.score for episode in self.episodes]
        energies = [episode.energy_j for episode in self.episodes if episode.energy_j is not None]
        spread: dict[str, object] = {}
        for name in ("score", "accuracy", "success", "throughput"):
            values = [getattr(episode, name) for episode in self.episodes]
            spread[f"{name}_mean"] = float(np.mean(values))
            spread[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return {
            "policy": self.policy,
            **spread,
            "arrived_mean": float(np.mean([episode.arrived for episode in self.episodes])),
            "energy_j_mean": float(np.mean(energies)) if energies else None,
            "decision_ms_p50": float(np.median(self.decision_ms)) if self.decision_ms else None,
            "scores": scores,
        }


def evaluate(
    policy: Policy,
    scenario: Scenario,
    seeds: Sequence[int],
    *,
    batch: int = 8,
    timed_slots: int = TIMED_SLOTS,
    on_slot: Callable[[], None] | None = None,
) -> Evaluation:
    """``policy`` in ``scenario``, one episode of ``batch`` worlds for each seed; every policy meets the same worlds.

    Decisions are timed apart, one world at a time, for ``timed_slots`` slots. Raises SettingsError: no seed.
    """
    if not seeds or batch < 1:
        raise SettingsError(f"{len(seeds)} seeds and a batch of {batch} worlds; expected at least one of each")
    episodes = tuple(_episode(policy, scenario, seed, batch, on_slot) for seed in seeds)
    return Evaluation(policy.name, episodes, _decision_times(policy, scenario, seeds[0], timed_slots))


def _episode(policy: Policy, scenario: Scenario, seed: int, batch: int, on_slot: Callable[[], None] | None) -> Episode:
    world = World(scenario, batch=batch, seed=seed)
    policy.reset(batch)
    arrived = in_time = worth = energy = 0.0
    scores = np.zeros(scenario.slots)
    for slot in range(scenario.slots):
        outcome = world.step(policy.decide(world.observe()))
        scores[slot] = outcome.reward.sum()
        worth += scores[slot]
        arrived += outcome.active.sum()
        in_time += outcome.in_time.sum()
        energy += 0.0 if outcome.energy_j is None else outcome.energy_j.sum()
        if on_slot is not None:
            on_slot()
    world_s = batch * scenario.slot_ms / 1e3
    seconds = world_s * scenario.slots
    return Episode(
        seed=seed,
        score=worth / seconds,
        accuracy=worth / in_time if in_time else 0.0,
        success=in_time / arrived if arrived else 0.0,
        throughput=in_time / seconds,
        arrived=arrived / seconds,
        energy_j=energy / arrived if scenario.energy is not None and arrived else None,
        scores=scores / world_s,
    )


def _decision_times(policy: Policy, scenario: Scenario, seed: int, slots: int) -> tuple[float, ...]:
    world = World(scenario, batch=1, seed=seed)
    policy.reset(1)
    times = []
    for _ in range(slots):
        seen = world.observe()
        start = time.perf_counter()
        actions = policy.decide(seen)
        times.append((time.perf_counter() - start) * 1e3)
        world.step(actions)
    return tuple(times)
