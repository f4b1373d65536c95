"""The learned critic: the chance of each task to be in time, from what the model says of it at face value.

One forecast, as if everything came as it is seen, gives each task a time to spare, a wait, its own times. A small
network turns these into a chance; it has been taught by what became of tasks that were played. It asks for one future
where the critic by model asks for many, and so judges several times as many candidates in the same time.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from aecnn_deploy.errors import PolicyError
from aecnn_deploy.offloading.agent.critic import Forecast, Prices, forecast
from aecnn_deploy.offloading.agent.residuals import Futures, Residuals
from aecnn_deploy.offloading.mec.observation import Actions, Floats, Observation

TASK_FEATURES = 9
_WIDTHS = 256  # at most, of the hidden layer


class ChanceNetwork(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two layers, TASK_FEATURES to H to 1, ReLU between: the logit of the chance to be in time."""

    hidden: list[list[float]]  # [H][TASK_FEATURES]
    hidden_bias: list[float]  # [H]
    out: list[float]  # [H]
    out_bias: float

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], np.float32]:
        """For numpy. Raises PolicyError: shapes that do not fit."""
        width = len(self.hidden_bias)
        rows = {len(row) for row in self.hidden}
        if not (1 <= width <= _WIDTHS and len(self.hidden) == len(self.out) == width and rows == {TASK_FEATURES}):
            raise PolicyError(
                f"the learned critic has {len(self.hidden)} rows of {sorted(rows)} numbers, {width} and "
                f"{len(self.out)}; expected as many of each, at most {_WIDTHS}, and rows of {TASK_FEATURES}; "
                "export the policy again"
            )
        return (
            np.array(self.hidden, np.float32),
            np.array(self.hidden_bias, np.float32),
            np.array(self.out, np.float32),
            np.float32(self.out_bias),
        )


def at_face_value(devices: int, servers: int) -> Futures:
    """One future: as it is seen."""
    return Residuals.none().futures(1, devices, servers, 0)


def task_features(seen: Observation, made: Forecast) -> NDArray[np.float32]:
    """[B, K, N, TASK_FEATURES] of a forecast of one future."""
    slot = seen.slot_s
    deadline = np.broadcast_to(seen.deadline_s[:, None], made.offloaded.shape)
    finish, ready = made.finish_s[:, :, 0], made.ready_s[:, :, 0]
    air = np.where(made.offloaded, made.airtime_s[:, :, 0], 0.0)
    service = np.where(made.offloaded, made.service_s[:, :, 0], 0.0)
    spare = np.clip((deadline - finish) / slot, -1.0, 2.0)
    wait = np.where(np.isfinite(finish), finish - ready - air - service, deadline)
    parts = (
        spare,
        np.clip(spare * slot / deadline, -1.0, 1.0),
        np.clip(air / slot, 0, 2),
        np.clip(service / slot, 0, 2),
        np.clip(wait / slot, 0, 2) * made.offloaded,
        np.clip(ready / slot, 0, 3),
        deadline / slot,
        made.offloaded,
        np.isfinite(finish),
    )
    made_of = np.empty((*made.offloaded.shape, TASK_FEATURES), np.float32)
    for index, part in enumerate(parts):
        made_of[..., index] = part
    return made_of


class LearnedCritic:
    """Scores candidates by ``network``'s chances."""

    def __init__(self, network: ChanceNetwork, prices: Prices) -> None:
        self.prices = prices
        self._arrays = network.arrays()

    def score(self, seen: Observation, candidates: Actions) -> Floats:
        """[B, K] of candidates [B, K, N]."""
        made = forecast(seen, candidates, at_face_value(seen.devices, seen.servers))
        hidden, hidden_bias, out, out_bias = self._arrays
        inner = task_features(seen, made).reshape(-1, TASK_FEATURES) @ hidden.T
        inner += hidden_bias
        np.maximum(inner, 0.0, out=inner)
        logit = (inner @ out + out_bias).reshape(candidates.shape)
        tried = made.offloaded | made.local
        chance = np.where(tried, 1.0 / (1.0 + np.exp(-logit)), 0.0)
        value: Floats = (chance * made.worth(seen)).sum(axis=2) - made.left(self.prices)
        return value
