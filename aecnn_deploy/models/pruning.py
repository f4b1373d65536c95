"""Structured pruning of a head's output: the filters of pruned channels are removed, not masked."""

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from aecnn_deploy.errors import ModelError


class ChannelSelect(nn.Module):
    """The channels ``kept`` of (N, C, H, W): an identity shortcut into a pruned block."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept.clone())

    def forward(self, x: Tensor) -> Tensor:
        return torch.index_select(x, 1, self.kept)


class SelectedSkip(nn.Module):
    """A residual block without its own shortcut, plus the kept channels of its input."""

    def __init__(self, block: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.block, self.select = block, ChannelSelect(kept)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x) + self.select(x)
        return out


def prune_head(head: nn.Sequential, kept: Tensor) -> nn.Sequential:
    """A copy of ``head`` that computes only the output channels ``kept`` (int64, ascending).

    Only the last stage changes: the channels inside the head all feed the ones that stay. Raises ModelError: the last
    stage is of a kind that cannot be pruned, or ``kept`` is empty, unordered or out of range.
    """
    pruned = copy.deepcopy(head)
    name, stage = list(pruned.named_children())[-1]
    setattr(pruned, name, prune_stage(stage, kept))
    return pruned


def prune_stage(stage: nn.Module, kept: Tensor) -> nn.Module:
    """``stage`` changed (in place where it can be) so that it computes only the output channels ``kept``."""
    kind = _kind(stage)
    if kind not in PRUNERS:
        raise ModelError(f"cannot prune a {kind}; known: {', '.join(PRUNERS)}")
    if kept.numel() < 1 or bool((kept[1:] <= kept[:-1]).any()):
        raise ModelError("the kept channels must be at least one, and in ascending order")
    return PRUNERS[kind](stage, kept)


def _kind(stage: nn.Module) -> str:
    return "stem" if isinstance(stage, nn.Sequential) else type(stage).__name__


def _prune_conv(conv: Any, kept: Tensor) -> Any:
    """The same convolution (its padding rule included) with the filters ``kept`` only."""
    if conv.groups != 1:
        raise ModelError("the last convolution of a stage must not be grouped")
    if int(kept[-1]) >= conv.out_channels or int(kept[0]) < 0:
        raise ModelError(f"kept channels reach {int(kept[-1])}, the stage has {conv.out_channels}")
    pruned = copy.deepcopy(conv)
    pruned.out_channels = len(kept)
    pruned.weight = nn.Parameter(conv.weight.detach()[kept].clone())
    if conv.bias is not None:
        pruned.bias = nn.Parameter(conv.bias.detach()[kept].clone())
    return pruned


def _prune_norm(norm: Any, kept: Tensor) -> Any:
    """The same batch normalisation (and the activation inside it, for timm's) of the channels ``kept``."""
    pruned = copy.deepcopy(norm)
    pruned.num_features = len(kept)
    pruned.weight = nn.Parameter(norm.weight.detach()[kept].clone())
    pruned.bias = nn.Parameter(norm.bias.detach()[kept].clone())
    pruned.running_mean = norm.running_mean[kept].clone()
    pruned.running_var = norm.running_var[kept].clone()
    return pruned


def _prune_pair(block: Any, conv: str, norm: str, kept: Tensor) -> None:
    setattr(block, conv, _prune_conv(getattr(block, conv), kept))
    setattr(block, norm, _prune_norm(getattr(block, norm), kept))


def _prune_stem(stem: Any, kept: Tensor) -> nn.Module:
    """Convolution, batch normalisation, then layers without channels of their own."""
    return nn.Sequential(_prune_conv(stem[0], kept), _prune_norm(stem[1], kept), *list(stem)[2:])


def _prune_residual(conv: str, norm: str) -> Callable[[Any, Tensor], nn.Module]:
    """torchvision's residual blocks: the branch's last convolution and the shortcut."""

    def prune(block: Any, kept: Tensor) -> nn.Module:
        _prune_pair(block, conv, norm, kept)
        if block.downsample is None:
            block.downsample = ChannelSelect(kept)
        else:
            block.downsample = nn.Sequential(
                _prune_conv(block.downsample[0], kept), _prune_norm(block.downsample[1], kept)
            )
        result: nn.Module = block
        return result

    return prune


def _prune_mobile(conv: str, norm: str) -> Callable[[Any, Tensor], nn.Module]:
    """timm's depthwise blocks: the projection, and the skip where there is one."""

    def prune(block: Any, kept: Tensor) -> nn.Module:
        _prune_pair(block, conv, norm, kept)
        if block.has_skip:
            block.has_skip = False
            return SelectedSkip(block, kept)
        result: nn.Module = block
        return result

    return prune


PRUNERS: Mapping[str, Callable[[Any, Tensor], nn.Module]] = MappingProxyType(
    {
        "stem": _prune_stem,
        "BasicBlock": _prune_residual("conv2", "bn2"),
        "Bottleneck": _prune_residual("conv3", "bn3"),
        "DepthwiseSeparableConv": _prune_mobile("conv_pw", "bn2"),
        "InvertedResidual": _prune_mobile("conv_pwl", "bn3"),
    }
)
