"""How far what was seen has been from what came: learned from the tasks that were carried out, nothing else.

A policy sees estimates. Of every task it has sent it learns afterwards what the air, the server and the device really
took. The logarithms of these ratios are kept as quantiles, and the critic draws its futures from them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecnn_deploy.errors import PolicyError
from aecnn_deploy.offloading.mec.observation import Actions, Observation, option_of, server_of
from aecnn_deploy.offloading.mec.world import Truth

Floats = NDArray[np.float64]

QUANTILES = 64
KINDS = ("air", "server", "task", "device")
_SMALL = 1e-6  # logarithms below which nothing is uncertain
_LIMIT = 4.0  # of a logarithm: a server that failed is no estimate of its speed


@dataclass(frozen=True)
class Residuals:
    """Quantiles [QUANTILES] of log(what came / what was seen): of the air, of servers, of tasks there, of devices."""

    air: Floats
    server: Floats
    task: Floats
    device: Floats

    def __post_init__(self) -> None:
        for name in KINDS:
            values = getattr(self, name)
            if values.shape != (QUANTILES,) or not np.isfinite(values).all():
                raise PolicyError(
                    f"the residuals of {name} have shape {values.shape}, expected {QUANTILES} finite numbers; "
                    "export the policy again"
                )

    @classmethod
    def none(cls) -> "Residuals":
        """Everything comes as it is seen."""
        zero = np.zeros(QUANTILES)
        return cls(zero, zero, zero, zero)

    @property
    def certain(self) -> bool:
        """Whether nothing was ever off."""
        return all(np.abs(getattr(self, name)).max() < _SMALL for name in KINDS)

    def futures(self, samples: int, devices: int, servers: int, seed: int) -> "Futures":
        """``samples`` drawn futures, evenly over the quantiles; one, as it is seen, where all is certain."""
        if self.certain:
            samples = 1
        rng = np.random.default_rng([seed, samples, devices, servers])

        def drawn(values: Floats, *shape: int) -> Floats:
            if samples == 1:
                return np.ones((1, *shape))
            strata = (
                rng.permuted(np.broadcast_to(np.arange(samples)[:, None], (samples, int(np.prod(shape)))), axis=0)
                + rng.random((samples, int(np.prod(shape))))
            ) / samples
            made: Floats = np.exp(np.interp(strata, (np.arange(QUANTILES) + 0.5) / QUANTILES, values))
            return made.reshape(samples, *shape)

        return Futures(
            drawn(self.air, devices, servers),
            drawn(self.server, servers),
            drawn(self.task, devices),
            drawn(self.device, devices),
        )


@dataclass(frozen=True)
class Futures:
    """M drawn futures as factors of what is seen."""

    air: Floats  # [M, N, S]
    server: Floats  # [M, S]
    task: Floats  # [M, N]
    device: Floats  # [M, N]


class Experience:
    """Collects what tasks took. ``learn`` after each slot that was played, ``residuals`` at any time."""

    def __init__(self, keep: int = 20000) -> None:
        self._keep = keep
        self._logs: dict[str, list[Floats]] = {name: [] for name in KINDS}

    def learn(self, seen: Observation, truth: Truth, actions: Actions, sent: NDArray[np.bool_]) -> None:
        """One slot of B worlds: the tasks of ``sent`` [B, N] went over the air, and so did what is learned of them."""
        server, option = server_of(actions, seen.options), option_of(actions, seen.options)
        sent = sent & (server >= 0) & seen.active
        world, device = np.nonzero(sent)
        if not len(world):
            return
        at, by = server[world, device], option[world, device]
        air = np.log(truth.airtime_s[world, device, at, by] / seen.airtime_s[world, device, at, by])
        with np.errstate(invalid="ignore"):
            ratio = truth.edge_s[world, at, by] * truth.edge_noise[world, device] / seen.edge_s[world, at, by]
        alive = np.isfinite(ratio) & (ratio > 0)
        self._put("air", air)
        self._put("device", np.log(truth.device_noise[world, device]))
        logs = np.clip(np.log(ratio[alive]), -_LIMIT, _LIMIT)
        lane = (world * seen.servers + at)[alive]
        count = np.bincount(lane, minlength=seen.batch * seen.servers)
        mean = np.bincount(lane, logs, minlength=len(count)) / np.maximum(count, 1)
        self._put("server", mean[count > 1])
        crowd = count[lane] > 1
        share = np.sqrt(count[lane] / np.maximum(count[lane] - 1, 1))  # a mean of few hides some of their spread
        self._put("task", ((logs - mean[lane]) * share)[crowd])

    def residuals(self) -> Residuals:
        """What has been learned; certain where nothing has."""
        grid = (np.arange(QUANTILES) + 0.5) / QUANTILES

        def quantiles(name: str) -> Floats:
            kept = np.concatenate(self._logs[name]) if self._logs[name] else np.zeros(1)
            return np.quantile(kept[-self._keep :], grid)

        return Residuals(*(quantiles(name) for name in KINDS))

    def logs(self) -> dict[str, Floats]:
        """What has been collected of each kind."""
        return {name: np.concatenate(logs) if logs else np.zeros(0) for name, logs in self._logs.items()}

    def put(self, logs: dict[str, Floats]) -> None:
        """Begin with what ``logs`` said."""
        self._logs = {name: [logs[name]] if len(logs[name]) else [] for name in KINDS}

    def _put(self, name: str, values: Floats) -> None:
        logs = self._logs[name]
        logs.append(values)
        if sum(map(len, logs)) > 2 * self._keep:
            self._logs[name] = [np.concatenate(logs)[-self._keep :]]
