"""Other ways to rank the channels at a split point, to say what the choice of attention is worth."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from aecnn_deploy.errors import ModelError
from aecnn_deploy.models.attention import ChannelAttention
from aecnn_deploy.models.backbones import Backbone

_REDUCTION = 16


class SqueezeExcitation(nn.Module):
    """Q = sigmoid(W2 relu(W1 avgpool X)) (Hu et al., CVPR 2018), with the interface of ``ChannelAttention``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(4, channels // _REDUCTION)
        self.fully = nn.Sequential(nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)[:, :, None, None]

    def attention(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fully(x.mean(dim=(2, 3))))


class CbamChannel(SqueezeExcitation):
    """Q = sigmoid(MLP(avgpool X) + MLP(maxpool X)): the channel part of CBAM (Woo et al., ECCV 2018)."""

    def attention(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fully(x.mean(dim=(2, 3))) + self.fully(x.amax(dim=(2, 3))))


ATTENTIONS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {"ca": lambda _channels: ChannelAttention(), "se": SqueezeExcitation, "cbam": CbamChannel}
)
RANKINGS = (*ATTENTIONS, "l1", "random")


def random_importance(channels: int, seed: int) -> Tensor:
    """A random order: float64 (C,)."""
    return torch.rand(channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def l1_importance(backbone: Backbone, split: int) -> Tensor:
    """Mean absolute weight of the filters that make each channel at ``split`` (Li et al., ICLR 2017): float64 (C,).

    The weights are taken with batch norm folded in: a filter that batch norm scales down is a small one.
    """
    channels = backbone.split_point(split).channels
    stage = backbone.stages[split - 1]
    convolutions: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    previous: nn.Module | None = None
    for module in stage.modules():
        if isinstance(module, nn.BatchNorm2d) and isinstance(previous, nn.Conv2d):
            convolutions.append((previous, module))
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            previous = module
    making = [pair for pair in convolutions if pair[0].out_channels == channels]
    if not making:
        raise ModelError(f"{backbone.name} has no convolution that makes the channels of split point {split}")
    conv, norm = making[-1]
    assert norm.running_var is not None
    scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return conv.weight.detach().double().abs().mean(dim=(1, 2, 3)) * scale.abs()
