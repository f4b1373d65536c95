"""Rules that decide without learning. Greedy, the strongest of them, has its own module; tuning.py fits what can be.

Each is the rule as it is known, read for the choices there are here: local, or a server by an option.
"""

import numpy as np

from aecnn_deploy.errors import PolicyError, SettingsError
from aecnn_deploy.offloading.baselines.greedy import CriticGreedy, Greedy, GreedySettings
from aecnn_deploy.offloading.mec.observation import Actions, Floats, Observation

__all__ = [
    "AllLocal",
    "AllOffloaded",
    "CriticGreedy",
    "Greedy",
    "GreedySettings",
    "Neurosurgeon",
    "RandomPolicy",
    "Selfish",
]


class _Rule:
    """What rules have in common: a name, and no memory."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def reset(self, batch: int) -> None:
        """Nothing is remembered from slot to slot."""


class RandomPolicy(_Rule):
    """One of the decisions that would be in time alone, or local, evenly; the same draws after each reset."""

    def __init__(self, seed: int = 0, *, name: str = "random") -> None:
        super().__init__(name)
        if seed < 0:
            raise SettingsError(f"the random policy's seed is {seed}, expected at least 0")
        self._seed = seed
        self._rng = np.random.default_rng(seed)

    def reset(self, batch: int) -> None:
        """Draw from the start again."""
        self._rng = np.random.default_rng(self._seed)

    def decide(self, seen: Observation) -> Actions:
        """[B, N]."""
        feasible = seen.feasible()
        drawn: Actions = np.where(feasible, self._rng.random(feasible.shape), -1.0).argmax(axis=2)
        return drawn


class AllLocal(_Rule):
    """Every device computes for itself."""

    def __init__(self, *, name: str = "local") -> None:
        super().__init__(name)

    def decide(self, seen: Observation) -> Actions:
        """[B, N] zeros."""
        return np.zeros(seen.active.shape, np.int64)


class AllOffloaded(_Rule):
    """Every device offloads by one option, to the server where it would be done first if it were alone."""

    def __init__(self, option: int, *, name: str | None = None) -> None:
        super().__init__(name or f"offload-{option}")
        if option < 0:
            raise SettingsError(f"option {option} is none; options count from 0")
        self.option = option

    def decide(self, seen: Observation) -> Actions:
        """[B, N]. Raises PolicyError: the scenario has no such option."""
        if self.option >= seen.options:
            raise PolicyError(
                f"{self.name} offloads by option {self.option}; there are {seen.options}, counted from 0: "
                f"give one from 0 to {seen.options - 1}"
            )
        server = seen.alone_s()[..., self.option].argmin(axis=2)
        offload: Actions = 1 + server * seen.options + self.option
        return np.where(seen.active, offload, 0)


class Neurosurgeon(_Rule):
    """Every device for itself: the least predicted latency of all cuts, by estimates, as if it were alone.

    Kang et al., ASPLOS 2017, cut the network where latency is least, both ends included; here the cuts are the
    profile's options at each server, and the device. Accuracy and deadlines are nothing that it knows of.
    """

    def __init__(self, *, name: str = "neurosurgeon") -> None:
        super().__init__(name)

    def decide(self, seen: Observation) -> Actions:
        """[B, N]."""
        return np.where(seen.active, _finish_s(seen).argmin(axis=2), 0)


class Selfish(_Rule):
    """Every device for itself: the most accurate decision that would be in time alone, the soonest of equal ones."""

    def __init__(self, *, name: str = "selfish") -> None:
        super().__init__(name)

    def decide(self, seen: Observation) -> Actions:
        """[B, N]."""
        value = np.where(seen.feasible(), seen.values(), -1.0)
        best = value >= value.max(axis=2, keepdims=True)
        soonest = np.where(best, _finish_s(seen), np.inf).argmin(axis=2)
        return np.where(seen.active & (value.max(axis=2) > 0), soonest, 0)


def _finish_s(seen: Observation) -> Floats:
    """[B, N, 1 + S·V]: when each decision would be done if it were the slot's only one."""
    local = (seen.device_backlog_s + seen.local_s)[..., None]
    return np.concatenate([local, seen.alone_s().reshape(seen.batch, seen.devices, -1)], axis=2)
