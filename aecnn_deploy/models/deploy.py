"""The three modules that are exported: uint8 in, batch norm folded, nothing left that training needs."""

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.models.backbones import Backbone
from aecnn_deploy.models.reorder import absorb_order
from aecnn_deploy.models.split import SplitModel


class Normalise(nn.Module):
    """uint8 (N, H, W, 3) frames → float (N, 3, H, W), normalised."""

    mean: Tensor
    scale: Tensor

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None, None])
        self.register_buffer("scale", 1.0 / torch.tensor(spec.std)[:, None, None])

    def forward(self, frames: Tensor) -> Tensor:
        return (frames.permute(0, 3, 1, 2).float() - self.mean) * self.scale


class DeviceHead(nn.Module):
    """uint8 (N, H, W, 3) RGB frames → uint8 planes (N, C', h, w). ``fold`` false keeps batch norm as it was trained."""

    def __init__(self, model: SplitModel, spec: InputSpec, *, fold: bool = True) -> None:
        super().__init__()
        self.normalise = Normalise(spec)
        self.head = _copy(model.head, fold)
        self.quantiser = copy.deepcopy(model.quantiser)
        _freeze(self)

    def forward(self, frames: Tensor) -> Tensor:
        return self.quantiser.quantise(self.head(self.normalise(frames)))


class EdgeTail(nn.Module):
    """uint8 planes (N, C', h, w) → float32 logits (N, classes); ``half`` computes in float16 inside."""

    def __init__(self, model: SplitModel, *, half: bool = False, fold: bool = True) -> None:
        super().__init__()
        self.quantiser = copy.deepcopy(model.quantiser)
        self.recovery = _copy(model.recovery, fold)
        self.tail = _copy(model.tail, fold)
        if fold:
            absorb_order(self.recovery, self.tail)
        _freeze(self)
        if half:
            self.half()

    def forward(self, planes: Tensor) -> Tensor:
        logits: Tensor = self.tail(self.recovery(self.quantiser.dequantise(planes)))
        return logits.float()


class FullModel(nn.Module):
    """uint8 (N, H, W, 3) RGB frames → float32 logits (N, classes): the unsplit model."""

    def __init__(self, backbone: Backbone, *, fold: bool = True) -> None:
        super().__init__()
        self.normalise = Normalise(backbone.input)
        self.stages = _copy(backbone.stages, fold)
        self.classifier = _copy(backbone.classifier, fold)
        _freeze(self)

    def forward(self, frames: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.stages(self.normalise(frames)))
        return logits


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """A copy of ``module`` in eval mode with every batch norm folded into the convolution that stands before it.

    "Before" is the order of registration inside one parent, as in all blocks of the registry; the exported files are
    verified against the unfolded model.
    """
    folded = copy.deepcopy(module).eval()
    for parent in list(folded.modules()):
        children: list[tuple[str, Any]] = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, _what_remains(norm))
    return folded


def _copy(module: nn.Module, fold: bool) -> nn.Module:
    return fold_batch_norm(module) if fold else copy.deepcopy(module)


def _what_remains(norm: Any) -> nn.Module:
    """timm's batch norms carry their activation."""
    activation: nn.Module = getattr(norm, "act", nn.Identity())
    return activation


def _freeze(module: nn.Module) -> None:
    module.eval().requires_grad_(False)
