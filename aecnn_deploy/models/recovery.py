"""Feature recovery: the pruned channels, generated on the edge from the received ones (AECNN eq. 9)."""

import torch
from torch import Tensor, nn

from aecnn_deploy.errors import ModelError


class FeatureRecovery(nn.Module):
    """(N, C', H, W) received → (N, C, H, W) with every channel in its place.

    A light CNN (3×3 convolution, batch norm, ReLU, 3×3 convolution) makes each pruned channel from *all* received
    ones. With ``repack`` false the received channels pass unchanged (the paper's FR). With ``repack`` true the network
    corrects them too, so that a trained head may put into its planes whatever serves the tail best.
    """

    order: Tensor

    def __init__(self, channels: int, kept: Tensor, *, hidden: int = 64, repack: bool = False) -> None:
        super().__init__()
        received = len(kept)
        if not 1 <= received <= channels or int(kept[-1]) >= channels:
            raise ModelError(f"cannot recover {channels} channels from {received}")
        keeps = set(kept.tolist())
        pruned = torch.tensor([c for c in range(channels) if c not in keeps], dtype=torch.int64)
        # Position in [received, pruned] of every original channel.
        self.register_buffer("order", torch.argsort(torch.cat([kept, pruned])))
        self.repack = repack
        generated = channels if repack else channels - received
        self.generate: nn.Module | None = None
        if len(pruned):
            self.generate = nn.Sequential(
                nn.Conv2d(received, hidden, 3, padding=1, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, generated, 3, padding=1),
            )
        if repack and len(pruned):
            self.place = nn.Conv2d(received, channels, 1, bias=False)
            with torch.no_grad():
                self.place.weight.zero_()
                self.place.weight[kept, torch.arange(received)] = 1.0

    def forward(self, received: Tensor) -> Tensor:
        if self.generate is None:
            return torch.index_select(received, 1, self.order)
        generated: Tensor = self.generate(received)
        if self.repack:
            placed: Tensor = self.place(received)
            return placed + generated
        return torch.index_select(torch.cat([received, generated], dim=1), 1, self.order)
