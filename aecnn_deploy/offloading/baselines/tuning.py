"""What rules can be fitted to a scenario, fitted on training seeds: no table's seed may be among them."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.agent.critic import ModelCritic, Prices
from aecnn_deploy.offloading.agent.residuals import Experience
from aecnn_deploy.offloading.baselines.greedy import ORDERS, CriticGreedy, Greedy, GreedySettings
from aecnn_deploy.offloading.baselines.rules import AllOffloaded
from aecnn_deploy.offloading.mec.scenario import Scenario
from aecnn_deploy.offloading.mec.world import World
from aecnn_deploy.offloading.policy import Policy

MARGINS = (0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5)
DOUBTS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
PRICES = (0.0, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Tuning:
    """How long each setting is tried: ``worlds`` worlds of each seed for ``slots`` slots, all settings on the same."""

    worlds: int = 8
    slots: int = 60

    def __post_init__(self) -> None:
        if self.worlds < 1 or self.slots < 1:
            raise SettingsError(f"{self}: expected at least one world and one slot")


def mean_reward(policy: Policy, scenario: Scenario, seeds: Sequence[int], tuning: Tuning) -> float:
    """Accuracies of tasks in time, added, mean over slots and worlds. Raises SettingsError: no seed."""
    if not seeds:
        raise SettingsError("no training seed; give at least one, apart from those of tables")
    total = 0.0
    for seed in seeds:
        world = World(scenario, batch=tuning.worlds, seed=seed)
        policy.reset(tuning.worlds)
        for _ in range(min(tuning.slots, scenario.slots)):
            total += float(world.step(policy.decide(world.observe())).reward.sum())
    return total / (len(seeds) * tuning.worlds * min(tuning.slots, scenario.slots))


def best_fixed(scenario: Scenario, seeds: Sequence[int], *, tuning: Tuning | None = None) -> AllOffloaded:
    """All offloaded by the option that is best on training seeds; named "offload". Raises SettingsError: no seed."""
    tuning = tuning or Tuning()
    tried = [AllOffloaded(option, name="offload") for option in range(len(scenario.profile.options))]
    rewards = [mean_reward(policy, scenario, seeds, tuning) for policy in tried]
    return tried[int(np.argmax(rewards))]


def tuned_greedy(scenario: Scenario, seeds: Sequence[int], *, tuning: Tuning | None = None) -> Greedy:
    """Greedy with the order, margin, doubt and price that are best on training seeds; its ``settings`` say which.

    One after another, margin and doubt twice: what is best of each, given the others. Raises SettingsError: no seed.
    """
    tuning = tuning or Tuning()
    settings = GreedySettings(order="slack")
    best = mean_reward(Greedy(settings), scenario, seeds, tuning)
    grids: tuple[tuple[str, tuple[object, ...]], ...] = (
        ("doubt", DOUBTS),
        ("margin", MARGINS),
        ("doubt", DOUBTS),
        ("price", PRICES),
        ("margin", MARGINS),
        ("order", tuple(ORDERS)),
    )
    for name, values in grids:
        for value in values:
            trial = msgspec.structs.replace(settings, **{name: value})
            if getattr(settings, name) == value:
                continue
            reward = mean_reward(Greedy(trial), scenario, seeds, tuning)
            if reward > best:
                best, settings = reward, trial
    return Greedy(settings, name="greedy-tuned")


def futures_greedy(
    scenario: Scenario, seeds: Sequence[int], *, prices: Prices | None = None, samples: int = 8, slots: int = 60
) -> CriticGreedy:
    """Greedy whose upgrades go by the graph policy's own critic, over futures drawn from what estimates were off by.

    That is learned on training seeds by playing plain greedy; ``prices`` are none unless given. Raises SettingsError.
    """
    if not seeds:
        raise SettingsError("no training seed; give at least one, apart from those of tables")
    experience, player = Experience(), Greedy()
    for seed in seeds:
        world = World(scenario, batch=8, seed=seed)
        for _ in range(min(slots, scenario.slots)):
            seen, truth = world.observe(), world.truth()
            actions = player.decide(seen)
            experience.learn(seen, truth, actions, world.step(actions).sent)
    return CriticGreedy(ModelCritic(experience.residuals(), prices or Prices(), samples=samples))
