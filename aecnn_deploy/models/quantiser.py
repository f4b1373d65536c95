"""Planes of the wire: float channels to uint8 values of a few bits and back, the same in torch and in ONNX."""

import torch
from torch import Tensor, nn

from aecnn_deploy.errors import ModelError


class PlaneQuantiser(nn.Module):
    """Per-channel affine quantisation: q = clip(round((x - low) / step), 0, 2^bits - 1); x' = q·step + low.

    x: (N, C', H, W); q: uint8. ``forward`` is x' with the gradient of the identity through the rounding
    (straight-through), so that ``low`` and ``step`` can be trained too. Rounding is half to even, as ONNX's Round.
    """

    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise ModelError(f"planes of {bits} bits cannot be sent; choose 1 to 8")
        self.bits, self.levels = bits, 2**bits - 1
        self.low = nn.Parameter(torch.zeros(channels))
        self.log_step = nn.Parameter(torch.full((channels,), -float(bits)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()  # bfloat16 has too few bits for 255 levels
        step, low = torch.exp(self.log_step)[:, None, None], self.low[:, None, None]
        scaled = ((x - low) / step).clamp(0, self.levels)
        return (scaled + (scaled.round() - scaled).detach()) * step + low

    def entropy_bits(self, x: Tensor) -> Tensor:
        """Order-0 entropy of what x is quantised to, in bits a value, all channels in one histogram; differentiable.

        Each value counts for the two levels around it, by its nearness to them. A byte-wise lossless coder that keeps
        one table for a message comes near this.
        """
        step, low = torch.exp(self.log_step)[:, None, None], self.low[:, None, None]
        scaled = ((x.float() - low) / step).clamp(0, self.levels).flatten()
        below = scaled.detach().floor().clamp_max(self.levels - 1)
        share = scaled - below
        index = below.long()
        histogram = scaled.new_zeros(self.levels + 1).index_add(0, index, 1 - share).index_add(0, index + 1, share)
        probability = histogram / scaled.numel()
        return -(probability * torch.log2(probability.clamp_min(1e-9))).sum()

    def quantise(self, x: Tensor) -> Tensor:
        """uint8 planes (N, C', H, W)."""
        scaled = (x - self.low[:, None, None]) * torch.exp(-self.log_step)[:, None, None]
        return torch.clamp(torch.round(scaled), 0, self.levels).to(torch.uint8)

    def dequantise(self, planes: Tensor) -> Tensor:
        """The tensor that the edge works on, in the parameters' precision."""
        return planes.to(self.low.dtype) * torch.exp(self.log_step)[:, None, None] + self.low[:, None, None]

    @torch.no_grad()
    def calibrate(self, x: Tensor, *, tail_share: float = 1e-4) -> None:
        """Set each channel's range to all but ``tail_share`` of its values at either end; x: (N, C', H, W)."""
        values = x.detach().float().transpose(0, 1).flatten(1).sort(dim=1).values
        cut = int(values.shape[1] * tail_share)
        low, high = values[:, cut], values[:, values.shape[1] - 1 - cut]
        step = ((high - low) / self.levels).clamp_min(1e-6)
        self.low.copy_(low)
        self.log_step.copy_(step.log())
