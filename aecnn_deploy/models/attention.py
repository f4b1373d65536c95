"""Channel attention and what it is for: the importance of every channel at a split point (AECNN section IV-B)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from aecnn_deploy.errors import ModelError


class ChannelAttention(nn.Module):
    """Q = sigmoid(norm(avgpool X) + norm(maxpool X)), eq. 5 to 7; the tensor that flows on is X·Q.

    X: (N, C, H, W). ``attention(X)``: Q as (N, C). The norm runs over the channels of one image:
    (A - mean) / sqrt(variance + epsilon). It has no parameters: training with it inserted shapes the backbone.
    """

    def __init__(self, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)[:, :, None, None]

    def attention(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self._norm(x.mean(dim=(2, 3))) + self._norm(x.amax(dim=(2, 3))))

    def _norm(self, pooled: Tensor) -> Tensor:
        variance, mean = torch.var_mean(pooled, dim=1, correction=0, keepdim=True)
        return (pooled - mean) / torch.sqrt(variance + self.epsilon)


@torch.no_grad()
def channel_importance(tensors: Iterable[Tensor], attention: ChannelAttention | None = None) -> Tensor:
    """Mean of Q over a data set (eq. 8): float64 (C,).

    ``tensors``: batches (N, C, H, W) of the split tensor; any batching of the same images gives the same result up to
    rounding. Raises ModelError: no image at all.
    """
    attention = attention or ChannelAttention()
    total: Tensor | None = None
    images = 0
    for x in tensors:
        batch = attention.attention(x.float()).double().sum(dim=0)
        total = batch if total is None else total + batch
        images += len(x)
    if total is None or not images:
        raise ModelError("channel importance needs at least one image")
    return total / images


def kept_channels(importance: Tensor, count: int) -> Tensor:
    """The ``count`` most important channels in ascending order: int64 (count,). Ties go to the lower index."""
    order = torch.argsort(importance, descending=True, stable=True)
    return torch.sort(order[:count]).values
