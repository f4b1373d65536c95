"""The exact optimum of each slot as a policy. It trusts what it sees, and of later slots it knows nothing."""

import numpy as np

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.bounds.slot import exact_slot, one_world
from aecnn_deploy.offloading.mec.observation import Actions, Observation


class ExactPolicy:
    """Plays ``exact_slot`` in each world. ``slots``, ``proven`` and ``gap`` count over all episodes.

    A slot that is not solved within ``time_limit_s`` is played as well as was found, and ``gap`` grows by the value
    that may be missing there. Raises SettingsError: a limit that is not positive.
    """

    name = "exact"

    def __init__(self, *, time_limit_s: float = 20.0) -> None:
        if not time_limit_s > 0:
            raise SettingsError(f"a time limit of {time_limit_s} s for a slot; give a time above 0, as 20")
        self._time_limit_s = time_limit_s
        self.slots = 0
        self.proven = 0
        self.gap = 0.0

    @property
    def proven_share(self) -> float:
        """Of the slots played so far; 1 of none."""
        return self.proven / self.slots if self.slots else 1.0

    def reset(self, batch: int) -> None:
        """Nothing is remembered between slots."""

    def decide(self, seen: Observation) -> Actions:
        """[B, N]. Raises MissingExtraError: a slot is not solved in time, and scipy is not installed to bound it."""
        best = [exact_slot(one_world(seen, world), time_limit_s=self._time_limit_s) for world in range(seen.batch)]
        self.slots += len(best)
        self.proven += sum(found.proven for found in best)
        self.gap += sum(found.gap for found in best)
        return np.stack([found.actions for found in best])
