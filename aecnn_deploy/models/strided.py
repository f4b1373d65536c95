"""A purpose-made strided head and the recovery that goes with it: not AECNN's pruned head, but the same link and tail.

Trained with the edge's half, a few strided convolutions can put into a handful of small planes what the tail needs, at
a fraction of the multiply-adds of the backbone's own first layers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aecnn_deploy.errors import ModelError

Layer = tuple[int, ...]  # (channels, kernel, stride) of a convolution, or with a fourth number: the expansion


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise k×k, 1×1 projection (MobileNetV2), with a skip where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = conv_norm_relu(inputs, inner, 1, 1)
        self.depthwise = conv_norm_relu(inner, inner, kernel, stride, groups=inner)
        self.project = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.skip else out


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions around a skip: x + f(x), ReLU after."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm_relu(channels, channels, 3, 1),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(x + self.body(x))
        return out


def conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int, *, groups: int = 1) -> nn.Sequential:
    """Convolution (padding kernel // 2), batch norm, ReLU."""
    padding = kernel // 2 if kernel != stride else 0  # patches that do not overlap need none
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def strided_head(reused: nn.Sequential, inputs: int, layers: Sequence[Layer], planes: int) -> nn.Sequential:
    """``reused`` stages of the backbone (they put out ``inputs`` channels), then ``layers``, then 1×1 to ``planes``.

    (N, 3, H, W) → (N, planes, H / strides, W / strides). Raises ModelError: a layer is not of three or four numbers.
    """
    stages: list[nn.Module] = list(reused)
    for layer in layers:
        if len(layer) not in (3, 4) or min(layer) < 1:
            raise ModelError(
                f"layer {list(layer)} of a strided head: write [channels, kernel, stride] or "
                "[channels, kernel, stride, expansion], each at least 1"
            )
        channels, kernel, stride = layer[:3]
        if len(layer) == 4:
            stages.append(InvertedResidual(inputs, channels, kernel, stride, layer[3]))
        else:
            stages.append(conv_norm_relu(inputs, channels, kernel, stride))
        inputs = channels
    stages.append(nn.Conv2d(inputs, planes, 1))
    return nn.Sequential(*stages)


class PlaneRecovery(nn.Module):
    """(N, C', h, w) received planes → (N, C, H, W), the tensor that the tail works on.

    3×3 convolution to ``hidden`` channels, ``depth`` residual blocks, 3×3 convolution to C. H = h, or H is h times a
    whole number (pixel shuffle before the last convolution), or h is H times one (the first convolution is strided).
    Raises ModelError: the sides do not divide.
    """

    def __init__(
        self, planes: tuple[int, int, int], shape: tuple[int, int, int], *, hidden: int = 128, depth: int = 2
    ) -> None:
        super().__init__()
        (received, side, across), (channels, target, target_across) = planes, shape
        divides = not (side % target and target % side)
        if not divides or side * target_across != across * target:
            raise ModelError(
                f"planes of {side}×{across} cannot feed a tensor of {target}×{target_across}; "
                "one must divide the other, by the same number on both axes"
            )
        stride, up = max(1, side // target), max(1, target // side)
        self.enter = conv_norm_relu(received, hidden, 3 if stride < 3 else stride | 1, stride)
        self.blocks = nn.Sequential(*(ResidualBlock(hidden) for _ in range(depth)))
        self.shuffle: nn.Module = nn.Identity()
        if up > 1:
            inner = max(1, hidden // 2)
            self.shuffle = nn.Sequential(nn.Conv2d(hidden, inner * up * up, 1), nn.PixelShuffle(up), nn.ReLU())
            hidden = inner
        self.leave = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, received: Tensor) -> Tensor:
        recovered: Tensor = self.leave(self.shuffle(self.blocks(self.enter(received))))
        return recovered


def output_shape(head: nn.Module, height: int, width: int) -> tuple[int, int, int]:
    """C', h, w of ``head`` for inputs of ``height`` × ``width``, on the meta device."""
    from aecnn_deploy.models.macs import on_meta

    shape: Any = on_meta(head.eval(), torch.empty(1, 3, height, width, device="meta")).shape
    return int(shape[1]), int(shape[2]), int(shape[3])
