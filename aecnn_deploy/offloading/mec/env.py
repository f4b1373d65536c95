"""The simulator as gymnasium environments: one world, or many in one array step. Needs the extra ``offloading``.

Importing this module registers ``aecnn/Offloading-v0``:
``gymnasium.make("aecnn_deploy.offloading.mec.env:aecnn/Offloading-v0", scenario="paper-2x14")``.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from aecnn_deploy.offloading.mec.flat import CLIP, FlatFeatures, Vectors
from aecnn_deploy.offloading.mec.observation import Actions, Flags, Floats
from aecnn_deploy.offloading.mec.scenario import Scenario
from aecnn_deploy.offloading.mec.world import Outcome, World
from aecnn_deploy.offloading.scenario_file import load_scenario

ENV_ID = "aecnn/Offloading-v0"

Info = dict[str, Any]


class OffloadingEnv(gymnasium.Env[Vectors, Actions]):
    """One world, slot by slot.

    Observation: ``FlatFeatures`` as a Box. Action: MultiDiscrete, for each device 0 local or 1 + s·V + v. Reward: the
    accuracies of the slot's tasks in time, added, over the tasks that a slot brings on average. An episode is
    truncated after ``scenario.slots``; it never terminates. Info: the slot's accounting, as ``slot_info`` says.

    ``scenario``: itself, a name or a path. ``seed``: of ``reset`` where that gets none at first; the worlds of a seed
    are those of ``World(scenario, seed=seed)``. Raises ScenarioError: it cannot be read; PolicyError: wrong actions.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - as gymnasium declares it

    def __init__(self, scenario: Scenario | str = "paper-2x14", seed: int | None = None) -> None:
        self.scenario = load_scenario(scenario) if isinstance(scenario, str) else scenario
        self._features = FlatFeatures(self.scenario)
        self.observation_space = _observations(self._features)
        self.action_space = _actions(self._features)
        self._first_seed = seed
        self._world: World | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Vectors, Info]:
        """A new episode; with ``seed`` its draws begin anew, without it they go on. ``options``: there are none."""
        if seed is None and self._world is None:
            seed = self._first_seed
        super().reset(seed=seed)
        self._world = _reset(self._world, self.scenario, 1, seed, self.np_random)
        return self._vector(), {"slot": 0}

    def step(self, action: Actions) -> tuple[Vectors, float, bool, bool, Info]:
        """Decide the slot. Raises PolicyError: another shape or a number out of range; ResetNeeded: no ``reset``."""
        world = self._running()
        outcome = world.step(np.asarray(action)[None])
        info = {name: values[0] for name, values in slot_info(outcome).items()}
        reward = float(outcome.reward[0] / expected_arrivals(self.scenario))
        return self._vector(), reward, False, world.slot >= self.scenario.slots, {**info, "slot": world.slot}

    def action_masks(self) -> NDArray[np.bool_]:
        """[N·(1 + S·V)]: which choices of each device would be in time alone, as MaskablePPO of sb3-contrib asks."""
        masks: NDArray[np.bool_] = self._features.masks(self._running().observe())[0]
        return masks

    def _running(self) -> World:
        if self._world is None:
            raise gymnasium.error.ResetNeeded("no episode has begun; call reset() first")
        return self._world

    def _vector(self) -> Vectors:
        vector: Vectors = self._features.of(self._running().observe())[0]
        return vector


class OffloadingVectorEnv(VectorEnv[Vectors, Actions, Any]):
    """``num_envs`` worlds of one scenario in one array step; spaces, rewards and infos as ``OffloadingEnv``'s.

    All worlds end together. The step after the last one resets them whatever is decided (gymnasium's NEXT_STEP), with
    rewards of 0. Infos hold an array for each key.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - as gymnasium declares it
        "render_modes": [],
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(self, scenario: Scenario | str = "paper-2x14", num_envs: int = 1, seed: int | None = None) -> None:
        self.scenario = load_scenario(scenario) if isinstance(scenario, str) else scenario
        self.num_envs = num_envs
        self._features = FlatFeatures(self.scenario)
        self.single_observation_space = _observations(self._features)
        self.single_action_space = _actions(self._features)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._first_seed = seed
        self._world: World | None = None

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Vectors, Info]:
        """As ``OffloadingEnv.reset``; the worlds are drawn together, so that a list of seeds counts as one."""
        if isinstance(seed, Sequence):
            named = [each for each in seed if each is not None]
            seed = int(np.random.SeedSequence(named).generate_state(1)[0]) if named else None
        if seed is None and self._world is None:
            seed = self._first_seed
        super().reset(seed=seed)
        self._world = _reset(self._world, self.scenario, self.num_envs, seed, self.np_random)
        return self._vectors(), {"slot": np.zeros(self.num_envs, np.int64)}

    def step(self, actions: Actions) -> tuple[Vectors, Floats, Flags, Flags, Info]:
        """Decide the slot of each world: [num_envs, N]. Raises as ``OffloadingEnv.step``."""
        world = self._running()
        ended = np.zeros(self.num_envs, bool)
        if world.slot >= self.scenario.slots:
            world.reset()
            return self._vectors(), np.zeros(self.num_envs), ended, ended, {"slot": np.zeros(self.num_envs, np.int64)}
        outcome = world.step(np.asarray(actions))
        truncated = np.full(self.num_envs, world.slot >= self.scenario.slots)
        info = {**slot_info(outcome), "slot": np.full(self.num_envs, world.slot)}
        rewards: Floats = outcome.reward / expected_arrivals(self.scenario)
        return self._vectors(), rewards, ended, truncated, info

    def action_masks(self) -> Flags:
        """[num_envs, N·(1 + S·V)]: as ``OffloadingEnv.action_masks``."""
        return self._features.masks(self._running().observe())

    def _running(self) -> World:
        if self._world is None:
            raise gymnasium.error.ResetNeeded("no episode has begun; call reset() first")
        return self._world

    def _vectors(self) -> Vectors:
        return self._features.of(self._running().observe())


def expected_arrivals(scenario: Scenario) -> float:
    """Tasks that a slot of one world brings on average."""
    return scenario.devices.count * float(np.mean(scenario.devices.arrival))


def slot_info(outcome: Outcome) -> Info:
    """[B] each: ``arrived`` and ``in_time`` tasks, their accuracies added in ``worth``, ``energy_j`` if it is given."""
    info = {
        "arrived": outcome.active.sum(axis=1),
        "in_time": outcome.in_time.sum(axis=1),
        "worth": outcome.reward,
    }
    return info if outcome.energy_j is None else {**info, "energy_j": outcome.energy_j.sum(axis=1)}


def _observations(features: FlatFeatures) -> spaces.Space[Vectors]:
    box: spaces.Box[Any] = spaces.Box(0.0, CLIP, (features.size,), np.float32)
    return box


def _actions(features: FlatFeatures) -> spaces.MultiDiscrete:
    return spaces.MultiDiscrete(np.full(features.devices, features.choices, np.int64))


def _reset(world: World | None, scenario: Scenario, batch: int, seed: int | None, fresh: np.random.Generator) -> World:
    """``world`` at its first slot. One that is not there yet and gets no seed is drawn from ``fresh``."""
    if world is None:
        return World(scenario, batch=batch, seed=int(fresh.integers(2**63)) if seed is None else seed)
    world.reset(seed)
    return world


gymnasium.register(
    ENV_ID,
    entry_point="aecnn_deploy.offloading.mec.env:OffloadingEnv",
    vector_entry_point="aecnn_deploy.offloading.mec.env:OffloadingVectorEnv",
)
