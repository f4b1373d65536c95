"""Feature recovery: the pruned channels, generated on the edge from the received ones (AECNN eq. 9)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aecnn_deploy.errors import ModelError
from aecnn_deploy.models.strided import ResidualBlock


class FeatureRecovery(nn.Module):
    """(N, C', H, W) received → (N, C, H, W) with every channel in its place.

    A light CNN (3×3 convolution, batch norm, ReLU, convolution of ``kernel``) makes each pruned channel from *all*
    received ones. Where many are generated, the last convolution is nearly all of its work, and 1×1 a ninth of that.
    With ``repack`` false the received channels pass unchanged (the paper's FR). With ``repack`` true the network
    corrects them too, so that a trained head may put into its planes whatever serves the tail best. ``depth``: residual
    blocks between the two convolutions. ``silent``: the generated channels begin as zeros, so that the network begins
    as the pruned one without recovery (Algorithm 1's last step).
    """

    order: Tensor

    def __init__(
        self,
        channels: int,
        kept: Tensor,
        *,
        hidden: int = 64,
        kernel: int = 3,
        repack: bool = False,
        depth: int = 0,
        silent: bool = False,
    ) -> None:
        super().__init__()
        received = len(kept)
        if not 1 <= received <= channels or int(kept[-1]) >= channels:
            raise ModelError(f"cannot recover {channels} channels from {received}")
        keeps = set(kept.tolist())
        pruned = torch.tensor([c for c in range(channels) if c not in keeps], dtype=torch.int64)
        # Position in [received, pruned] of every original channel.
        self.register_buffer("order", torch.argsort(torch.cat([kept, pruned])))
        self.in_order = False  # whoever reads the channels knows that they come as [received, generated]
        self.repack = repack
        generated = channels if repack else channels - received
        self.generate: nn.Sequential | None = None
        if len(pruned):
            last = nn.Conv2d(hidden, generated, kernel, padding=kernel // 2)
            self.generate = nn.Sequential(
                nn.Conv2d(received, hidden, 3, padding=1, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU(inplace=True),
                *(ResidualBlock(hidden) for _ in range(depth)),
                last,
            )
            if silent:
                nn.init.zeros_(last.weight)
                torch.nn.init.zeros_(last.get_parameter("bias"))
        if repack and len(pruned):
            self.place = nn.Conv2d(received, channels, 1, bias=False)
            with torch.no_grad():
                self.place.weight.zero_()
                self.place.weight[kept, torch.arange(received)] = 1.0

    def forward(self, received: Tensor) -> Tensor:
        if self.generate is None:
            return self._placed(received)
        generated: Tensor = self.generate(received)
        if self.repack:
            placed: Tensor = self.place(received)
            return placed + generated
        return self._placed(torch.cat([received, generated], dim=1))

    def _placed(self, channels: Tensor) -> Tensor:
        return channels if self.in_order else torch.index_select(channels, 1, self.order)


class ZeroFill(nn.Module):
    """(N, C', H, W) received → (N, C, H, W) with zeros for the pruned channels: no recovery at all (CA_Pruned).

    What follows adds nothing for them, as if the filters that read them had been removed.
    """

    order: Tensor

    def __init__(self, channels: int, kept: Tensor) -> None:
        super().__init__()
        keeps = set(kept.tolist())
        pruned = torch.tensor([c for c in range(channels) if c not in keeps], dtype=torch.int64)
        self.register_buffer("order", torch.argsort(torch.cat([kept, pruned])))
        self.missing = len(pruned)
        self.received_alone = False  # whoever reads the channels knows that the pruned ones are left out

    def forward(self, received: Tensor) -> Tensor:
        if self.received_alone:
            return received
        return torch.index_select(F.pad(received, (0, 0, 0, 0, 0, self.missing)), 1, self.order)
