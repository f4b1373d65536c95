"""The critic by model: what candidate decisions of a slot are worth, over drawn futures, less what they leave behind.

A candidate is worth the accuracies of the tasks that are in time, mean over the futures, less a price for each second
of work that it leaves to later slots, at access points, at servers and on devices. The prices are learned.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aecnn_deploy.errors import PolicyError
from aecnn_deploy.offloading.agent.residuals import Futures, Residuals
from aecnn_deploy.offloading.mec.line import serve
from aecnn_deploy.offloading.mec.observation import Actions, Observation, option_of, server_of

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
        futures = self._drawn(seen.devices, seen.servers)
        batch, count, devices = candidates.shape
        samples = len(futures.server)
        server = np.where(seen.active[:, None], server_of(candidates, seen.options), -1)
        option = option_of(candidates, seen.options)
        offloaded = server >= 0
        at = np.maximum(server, 0)
        world, device = np.arange(batch)[:, None, None], np.arange(devices)
        local = seen.local_fits()[:, None] & ~offloaded
        head = np.take_along_axis(seen.device_s[:, None], option[..., None], axis=3)[..., 0]
        work = np.where(offloaded, head, np.where(local, seen.local_s[:, None], 0.0))
        airtime = seen.airtime_s[world, device, at, option]
        service = seen.edge_s[world, at, option]
        # [B, K, M, N]
        ready = seen.device_backlog_s[:, None, None] + work[:, :, None] * futures.device
        lane = at[:, :, None]
        sample = np.arange(samples)[:, None]
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
        deadline = seen.deadline_s[:, None, None]
        in_time = (finish <= deadline).astype(np.float64)
        if not self.residuals.certain:
            in_time = np.clip((deadline - finish) / (SOFTNESS * deadline) + 0.5, 0.0, 1.0)
        in_time *= seen.active[:, None, None]
        worth = np.where(offloaded, seen.accuracy[option], seen.local_accuracy)
        value: Floats = (in_time.sum(axis=2) * worth).sum(axis=2) / samples
        if self.prices != Prices():
            left = [
                price * np.maximum(free - seen.slot_s, 0.0).reshape(batch, count, -1).sum(axis=2)
                for price, free in (
                    (self.prices.radio, served.radio_free_s),
                    (self.prices.edge, served.edge_free_s),
                    (self.prices.device, ready),
                )
            ]
            value = value - sum(left) / samples
        return value

    def _drawn(self, devices: int, servers: int) -> Futures:
        key = (devices, servers)
        if key not in self._futures:
            self._futures[key] = self.residuals.futures(self.samples, devices, servers, self._seed)
        return self._futures[key]


def _rows(values: NDArray[Any], shape: tuple[int, ...], rows: int) -> NDArray[Any]:
    return np.broadcast_to(values, shape).reshape(rows, -1)
