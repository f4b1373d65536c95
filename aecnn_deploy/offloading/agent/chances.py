"""Teaching the learned critic: each task that was played, what the model said of it, and whether it was in time."""

import json
from typing import Any

import numpy as np
import torch
from torch import nn

from aecnn_deploy.offloading.agent.critic import forecast
from aecnn_deploy.offloading.agent.learned import TASK_FEATURES, ChanceNetwork, at_face_value, task_features
from aecnn_deploy.offloading.mec.observation import Actions, Flags, Observation

_KEEP = 65536  # tasks
_WIDTH = 32
_UPDATES = 8  # after each slot
_BATCH = 256


class ChanceTrainer:
    """Logistic regression by two layers over the last tasks; ``seed`` begins its weights and draws."""

    def __init__(self, seed: int) -> None:
        maker = torch.Generator().manual_seed(seed)
        self._net = nn.Sequential(nn.Linear(TASK_FEATURES, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, 1))
        for weights in self._net.parameters():
            bound = float(weights.shape[-1]) ** -0.5
            nn.init.uniform_(weights, -bound, bound, generator=maker)
        self._optimiser = torch.optim.Adam(self._net.parameters(), 3e-3)
        self._rng = np.random.default_rng([seed, 1])
        self._tasks = np.zeros((_KEEP, TASK_FEATURES), np.float32)
        self._in_time = np.zeros(_KEEP, np.float32)
        self._seen = 0

    def learn(self, seen: Observation, actions: Actions, in_time: Flags) -> None:
        """One slot that was played: [B, N] decisions, and which tasks were in time."""
        made = forecast(seen, actions[:, None], at_face_value(seen.devices, seen.servers))
        tried = (made.offloaded | made.local)[:, 0] & seen.active
        rows = task_features(seen, made)[:, 0][tried]
        places = (self._seen + np.arange(len(rows))) % _KEEP
        self._tasks[places], self._in_time[places] = rows, in_time[tried]
        self._seen += len(rows)
        filled = min(self._seen, _KEEP)
        for _ in range(_UPDATES if filled else 0):
            drawn = self._rng.integers(filled, size=_BATCH)
            logits = self._net(torch.from_numpy(self._tasks[drawn]))[:, 0]
            loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(self._in_time[drawn]))
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()

    def network(self) -> ChanceNetwork:
        """What has been learned."""
        first, last = self._net[0], self._net[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)

        def numbers(values: torch.Tensor) -> Any:
            return np.round(values.detach().double().numpy(), 6).tolist()

        return ChanceNetwork(
            numbers(first.weight), numbers(first.bias), numbers(last.weight[0]), float(last.bias.detach())
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        filled = min(self._seen, _KEEP)
        return {
            "net": self._net.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "rng": json.dumps(self._rng.bit_generator.state),
            "tasks": torch.from_numpy(self._tasks[:filled].copy()),
            "in_time": torch.from_numpy(self._in_time[:filled].copy()),
            "seen": self._seen,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self._net.load_state_dict(state["net"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._rng.bit_generator.state = json.loads(state["rng"])
        filled = len(state["tasks"])
        self._tasks[:filled], self._in_time[:filled] = state["tasks"].numpy(), state["in_time"].numpy()
        self._seen = state["seen"]
