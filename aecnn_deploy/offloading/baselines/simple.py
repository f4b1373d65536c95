"""The two policies that look at nothing: any decision at random, and everything on the devices."""

import numpy as np

from aecnn_deploy.offloading.mec.observation import LOCAL, Actions, Observation


class RandomPolicy:
    """Each device with a task takes any decision with the same chance. ``seed``: of the draws, anew each episode."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._rng = np.random.default_rng(seed)

    def reset(self, batch: int) -> None:
        """Episodes are alike: the draws begin anew."""
        self._rng = np.random.default_rng(self._seed)

    def decide(self, seen: Observation) -> Actions:
        """[B, N] of 0 to S·V; 0 for devices without a task."""
        drawn = self._rng.integers(seen.choices, size=seen.active.shape)
        return np.where(seen.active, drawn, LOCAL)


class AllLocal:
    """Every task is computed on its device, as far as that is in time."""

    name = "local"

    def reset(self, batch: int) -> None:
        """Nothing is remembered."""

    def decide(self, seen: Observation) -> Actions:
        """[B, N] of 0."""
        return np.full(seen.active.shape, LOCAL, np.int64)
