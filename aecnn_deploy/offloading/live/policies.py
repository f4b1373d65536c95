"""Policies that need no training: what a controller takes by name, and what a learned one is compared with."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from aecnn_deploy.errors import PolicyError
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


class Greedy:
    """One device after the other, the most urgent first: the most accurate way that is in time behind those before."""

    name = "greedy"

    def reset(self, batch: int) -> None:
        """Nothing is remembered."""

    def decide(self, seen: Observation) -> Actions:
        """[B, N]."""
        actions = np.zeros(seen.active.shape, np.int64)
        for world in range(seen.batch):
            busy_s = seen.edge_backlog_s[world].copy()  # [S]
            local = np.where(seen.local_fits()[world], seen.local_accuracy, -1.0)
            for device in np.argsort(seen.deadline_s[world], kind="stable"):
                if not seen.active[world, device]:
                    continue
                ready = seen.device_backlog_s[world, device] + seen.device_s[world, device]  # [V]
                arrive = ready + seen.airtime_s[world, device]  # [S, V]
                done = np.maximum(arrive, busy_s[:, None]) + seen.edge_s[world]
                fits = done + seen.hop_s <= seen.deadline_s[world, device]
                value = np.where(fits, seen.accuracy - 1e-6 * np.minimum(done, 1e3), -1.0)
                best = int(value.argmax())
                if value.flat[best] <= max(local[device], -0.5):
                    continue
                server = best // seen.options
                actions[world, device] = 1 + best
                busy_s[server] = done.flat[best]
        return actions


BUILT_IN: Mapping[str, Callable[[], Policy]] = MappingProxyType({"static": StaticBest, "greedy": Greedy})


def named_policy(name: str) -> Policy:
    """A policy by its name. Raises PolicyError: there is none."""
    if name not in BUILT_IN:
        raise PolicyError(f"no policy {name!r}; give a policy file, or one of {', '.join(BUILT_IN)}")
    return BUILT_IN[name]()
