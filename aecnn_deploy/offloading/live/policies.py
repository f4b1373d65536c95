"""Policies that need no training: what a controller takes by name, and what a learned one is compared with."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from aecnn_deploy.errors import PolicyError
from aecnn_deploy.offloading.agent.policy import shipped_policy
from aecnn_deploy.offloading.baselines.greedy import Greedy
from aecnn_deploy.offloading.mec.observation import Actions, Observation
from aecnn_deploy.offloading.policy import Policy


class StaticBest:
    """One fixed decision for each device: edges in turns, and the one option that is best when all is well.

    It is chosen by the first slots in which anything is known (``settle_slots``), and then held, whatever happens.
    """

    name = "static"

    def __init__(self, settle_slots: int = 10) -> None:
        self._settle_slots, self._seen_slots = settle_slots, 0
        self._option: int | None = None

    def reset(self, batch: int) -> None:
        """The choice is held: a device more or less changes nothing."""

    def decide(self, seen: Observation) -> Actions:
        """[B, N]."""
        server = np.arange(seen.devices)[None] % seen.servers
        option = self._option
        if option is None:
            in_time = seen.alone_s() <= seen.deadline_s[..., None, None]  # [B, N, S, V]
            worth = (in_time * seen.accuracy).mean(axis=(0, 1, 2))
            option = int(worth.argmax())
            self._seen_slots += bool(worth[option] > 0)
            if self._seen_slots >= self._settle_slots:
                self._option = option
        return np.broadcast_to(1 + server * seen.options + option, seen.active.shape).copy()


BUILT_IN: Mapping[str, Callable[[], Policy]] = MappingProxyType(
    {"grl": shipped_policy, "greedy": Greedy, "static": StaticBest}
)


def named_policy(name: str) -> Policy:
    """A policy by its name. Raises PolicyError: there is none."""
    if name not in BUILT_IN:
        raise PolicyError(f"no policy {name!r}; give a policy file, or one of {', '.join(BUILT_IN)}")
    return BUILT_IN[name]()
