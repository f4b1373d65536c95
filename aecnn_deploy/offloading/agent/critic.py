"""Critics: what candidate decisions of a slot are worth, less what they leave behind.

A candidate is worth the accuracies of its tasks, each times its chance to be in time, less a price for each second of
work that it leaves to later slots, at access points, at servers and on devices. The prices are learned. The critic by
model takes the chances from drawn futures; the learned one from a small network that has seen what became of tasks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aecnn_deploy.errors import PolicyError
from aecnn_deploy.offloading.agent.residuals import Futures, Residuals
from aecnn_deploy.offloading.mec.line import serve
from aecnn_deploy.offloading.mec.observation import Actions, Flags, Observation, option_of, server_of

Floats = NDArray[np.float64]

SOFTNESS = 0.2  # of a deadline


@dataclass(frozen=True)
class Prices:
    """Of a second of work that is left to later slots, in tasks in time."""

    radio: float = 0.0
    edge: float = 0.0
    device: float = 0.0

    def __post_init__(self) -> None:
        if not all(np.isfinite(price) and price >= 0 for price in (self.radio, self.edge, self.device)):
            raise PolicyError(f"{self}: a price is no number of at least 0; export the policy again")


@dataclass(frozen=True)
class Forecast:
    """What the simulator's own rules make of candidates, R = B·K·M rows as [B, K, M, N]. Seconds."""

    offloaded: Flags  # [B, K, N]
    local: Flags  # [B, K, N] computed on the device
    option: Actions  # [B, K, N]
    airtime_s: Floats  # [B, K, M, N]
    service_s: Floats  # [B, K, M, N]
    ready_s: Floats  # [B, K, M, N]
    finish_s: Floats  # [B, K, M, N] with the answer's way back; inf: never
    radio_left_s: Floats  # [B, K] work left to later slots, all servers together, mean over the futures
    edge_left_s: Floats  # [B, K]
    device_left_s: Floats  # [B, K]

    def left(self, prices: Prices) -> Floats:
        """[B, K]: what the work left costs."""
        cost: Floats = (
            prices.radio * self.radio_left_s + prices.edge * self.edge_left_s + prices.device * self.device_left_s
        )
        return cost

    def worth(self, seen: Observation) -> Floats:
        """[B, K, N]: the accuracy of each task as it is decided."""
        return np.where(self.offloaded, seen.accuracy[self.option], seen.local_accuracy) * seen.active[:, None]


def forecast(seen: Observation, candidates: Actions, futures: Futures) -> Forecast:
    """What becomes of ``candidates`` [B, K, N] in each of M futures."""
    batch, count, devices = candidates.shape
    samples = len(futures.server)
    server = np.where(seen.active[:, None], server_of(candidates, seen.options), -1)
    option = option_of(candidates, seen.options)
    offloaded = server >= 0
    at = np.maximum(server, 0)
    world, device = np.arange(batch)[:, None, None], np.arange(devices)
    local = seen.local_fits()[:, None] & ~offloaded
    head = seen.device_s[world, device, option]
    work = np.where(offloaded, head, np.where(local, seen.local_s[:, None], 0.0))
    airtime = seen.airtime_s[world, device, at, option]
    service = seen.edge_s[world, at, option]
    ready = seen.device_backlog_s[:, None, None] + work[:, :, None] * futures.device
    lane, sample = at[:, :, None], np.arange(samples)[:, None]
    airtime = airtime[:, :, None] * futures.air[sample, device, lane]
    service = service[:, :, None] * (futures.server[sample, lane] * futures.task)
    rows = batch * count * samples
    served = serve(
        _rows(server[:, :, None], ready.shape, rows),
        ready.reshape(rows, devices),
        airtime.reshape(rows, devices),
        service.reshape(rows, devices),
        _rows((seen.deadline_s - seen.hop_s)[:, None, None], ready.shape, rows),
        np.repeat(seen.radio_backlog_s, count * samples, axis=0),
        np.repeat(seen.edge_backlog_s, count * samples, axis=0),
        shared_radio=seen.shared_radio,
    )
    finish = np.where(local[:, :, None], ready, served.finish_s.reshape(ready.shape) + seen.hop_s)
    radio, edge, left = (
        np.maximum(free - seen.slot_s, 0.0).reshape(batch, count, -1).sum(axis=2) / samples
        for free in (served.radio_free_s, served.edge_free_s, ready)
    )
    return Forecast(offloaded, local, option, airtime, service, ready, finish, radio, edge, left)


class ModelCritic:
    """Scores candidates over ``samples`` futures of ``residuals``; the same futures for all candidates of a slot.

    A few futures say little of a task that just makes it: unless all is certain, a task counts as a share between 0 and
    1 by how much of its deadline is left, SOFTNESS wide about none.
    """

    def __init__(self, residuals: Residuals, prices: Prices, *, samples: int = 8, seed: int = 0) -> None:
        self.residuals, self.prices, self.samples, self._seed = residuals, prices, samples, seed
        self._futures: dict[tuple[int, int], Futures] = {}

    def score(self, seen: Observation, candidates: Actions) -> Floats:
        """[B, K] of candidates [B, K, N]."""
        made = forecast(seen, candidates, self._drawn(seen.devices, seen.servers))
        deadline = seen.deadline_s[:, None, None]
        if self.residuals.certain:
            chance = (made.finish_s <= deadline).mean(axis=2)
        else:
            chance = np.clip((deadline - made.finish_s) / (SOFTNESS * deadline) + 0.5, 0.0, 1.0).mean(axis=2)
        value: Floats = (chance * made.worth(seen)).sum(axis=2) - made.left(self.prices)
        return value

    def _drawn(self, devices: int, servers: int) -> Futures:
        key = (devices, servers)
        if key not in self._futures:
            self._futures[key] = self.residuals.futures(self.samples, devices, servers, self._seed)
        return self._futures[key]


def _rows(values: NDArray[Any], shape: tuple[int, ...], rows: int) -> NDArray[Any]:
    return np.broadcast_to(values, shape).reshape(rows, -1)
