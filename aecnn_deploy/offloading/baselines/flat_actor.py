"""DROO's actor over AECNN's options: a plain network over all devices at once, for one number of each.

Huang, Bi, Zhang (IEEE TMC 2019): two hidden layers of 120 and 80. What it reads and what it scores is what the graph
actor reads and scores, one after another: it has to learn for each device and each server anew what the graph actor
learns once, and fits no other number of them.
"""

import torch
from torch import Tensor, nn

from aecnn_deploy.offloading.agent.features import LOCAL_FEATURES, PATH_FEATURES, SERVER_FEATURES


class FlatActor(nn.Module):
    """Scores [B, N, 1 + S·V] from the graph actor's inputs, for fixed N, S and V."""

    def __init__(self, devices: int, servers: int, options: int) -> None:
        super().__init__()
        self.devices = devices
        paths = servers * options
        inputs = devices * (paths * PATH_FEATURES + LOCAL_FEATURES + 1) + servers * SERVER_FEATURES
        self.layers = nn.Sequential(
            nn.Linear(inputs, 120), nn.ReLU(), nn.Linear(120, 80), nn.ReLU(), nn.Linear(80, devices * (1 + paths))
        )

    def forward(self, path: Tensor, local: Tensor, server: Tensor, active: Tensor) -> Tensor:
        flat = torch.cat([path.flatten(1), local.flatten(1), server.flatten(1), active], dim=1)
        scores: Tensor = self.layers(flat)
        return scores.reshape(-1, self.devices, scores.shape[1] // self.devices)

    def all_scores(self, path: Tensor, local: Tensor, server: Tensor, active: Tensor) -> list[Tensor]:
        """Of its one round."""
        return [self(path, local, server, active)]
