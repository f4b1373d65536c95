"""A split network: head, quantiser, recovery, tail, as a design says."""

import copy
from collections import OrderedDict
from typing import Literal

import msgspec
import torch
from torch import Tensor, nn

from aecnn_deploy.errors import ModelError
from aecnn_deploy.models.backbones import Backbone
from aecnn_deploy.models.bottlenet import bottlenet_decoder, bottlenet_encoder
from aecnn_deploy.models.pruning import prune_head
from aecnn_deploy.models.quantiser import PlaneQuantiser
from aecnn_deploy.models.recovery import FeatureRecovery, ZeroFill
from aecnn_deploy.models.strided import PlaneRecovery, output_shape, strided_head

Kernel = Literal[1, 3]
Kind = Literal["aecnn", "ca-pruned", "bottlenetpp", "strided", "late"]


class SplitDesign(msgspec.Struct, frozen=True, kw_only=True):
    """How a split network is built; with the backbone and the kept channels it gives the same modules again.

    ``aecnn``: pruned head, feature recovery. ``ca-pruned``: pruned head, zeros for what was pruned. ``bottlenetpp``:
    whole head, learned encoder and decoder. ``strided``: the first ``reuse`` stages of the backbone but those in
    ``drop``, then ``layers``, feeding a recovery. ``late``: the whole head, every channel is sent.
    """

    kind: Kind = "aecnn"
    split: int
    planes: int  # C', the channels that are sent
    bits: int
    hidden: int = 64  # channels inside recovery
    kernel: Kernel = 3  # of the last convolution of AECNN's recovery
    depth: int = 0  # residual blocks inside recovery
    repack: bool = False  # recovery corrects the received channels too
    reuse: int = 0
    drop: tuple[int, ...] = ()
    layers: tuple[tuple[int, ...], ...] = ()
    linear: bool = False  # BottleNet++'s decoder without its ReLU


class SplitModel(nn.Module):
    """One variant: ``head`` → ``quantiser`` → ``recovery`` → ``tail``.

    Input: float (N, 3, H, W), normalised. Output: logits (N, classes). ``kept``: the channels that are sent, int64,
    ascending (for a design that ranks none: 0, 1, … C' - 1). The head and the tail are copies: training them leaves the
    backbone as it was. Raises ModelError: no such split point, or a design that does not fit the backbone.
    """

    kept: Tensor

    def __init__(self, backbone: Backbone, design: SplitDesign, kept: Tensor | None = None) -> None:
        super().__init__()
        point = backbone.split_point(design.split)
        self.design, self.split, self.bits = design, design.split, design.bits
        if kept is None:
            kept = torch.arange(design.planes)
        if len(kept) != design.planes:
            raise ModelError(f"{len(kept)} kept channels, the design sends {design.planes} planes")
        self.register_buffer("kept", kept.clone())
        self.head = _head(backbone, design, kept)
        self.quantiser = PlaneQuantiser(design.planes, design.bits)
        self.planes_shape = output_shape(self.head, backbone.input.height, backbone.input.width)
        shape = (point.channels, point.height, point.width)
        self.recovery = _recovery(design, kept, self.planes_shape, shape)
        self.tail = copy.deepcopy(backbone.tail(design.split))
        self.eval()

    def forward(self, x: Tensor, *, quantised: bool = True) -> Tensor:
        logits: Tensor = self.tail(self.recover(x, quantised=quantised))
        return logits

    def recover(self, x: Tensor, *, quantised: bool = True) -> Tensor:
        """The tensor (N, C, H, W) that the tail works on; ``quantised`` false leaves the rounding out."""
        sent: Tensor = self.head(x)
        recovered: Tensor = self.recovery(self.quantiser(sent) if quantised else sent)
        return recovered


def _head(backbone: Backbone, design: SplitDesign, kept: Tensor) -> nn.Sequential:
    head = backbone.head(design.split)
    match design.kind:
        case "aecnn" | "ca-pruned":
            return prune_head(head, kept)
        case "late":
            return copy.deepcopy(head)
        case "bottlenetpp":
            channels = backbone.split_point(design.split).channels
            return nn.Sequential(*copy.deepcopy(head), *bottlenet_encoder(channels, design.planes))
        case "strided":
            reused = copy.deepcopy(reused_stages(backbone, design.reuse, design.drop))
            inputs = backbone.split_point(design.reuse).channels if design.reuse else 3
            return strided_head(reused, inputs, design.layers, design.planes)


def reused_stages(backbone: Backbone, reuse: int, drop: tuple[int, ...] = ()) -> nn.Sequential:
    """The first ``reuse`` stages but those numbered in ``drop``, the backbone's own modules.

    Raises ModelError: no such split point, or a dropped stage that changes its tensor's shape (none but a residual
    stage can be left out).
    """
    if not reuse and not drop:
        return nn.Sequential()
    stages = list(backbone.head(max(reuse, 1)).named_children())
    for number in drop:
        if not 1 < number <= reuse:
            raise ModelError(f"stage {number} cannot be dropped from {reuse} reused stages; name one of 2 to {reuse}")
        before, after = backbone.split_point(number - 1), backbone.split_point(number)
        if (before.channels, before.height, before.width) != (after.channels, after.height, after.width):
            raise ModelError(
                f"stage {number} of {backbone.name} turns {before.channels}×{before.height}×{before.width} into "
                f"{after.channels}×{after.height}×{after.width}; only a stage that keeps the shape can be dropped"
            )
    return nn.Sequential(OrderedDict(stage for number, stage in enumerate(stages, 1) if number not in drop))


def _recovery(
    design: SplitDesign, kept: Tensor, planes: tuple[int, int, int], shape: tuple[int, int, int]
) -> nn.Module:
    match design.kind:
        case "aecnn":
            return FeatureRecovery(
                shape[0],
                kept,
                hidden=design.hidden,
                kernel=design.kernel,
                repack=design.repack,
                depth=design.depth,
                silent=not design.repack,
            )
        case "ca-pruned" | "late":
            return ZeroFill(shape[0], kept)
        case "bottlenetpp":
            return bottlenet_decoder(shape[0], design.planes, linear=design.linear)
        case "strided":
            return PlaneRecovery(planes, shape, hidden=design.hidden, depth=design.depth)


def variant_id(backbone: str, split: int, ratio: int, bits: int) -> str:
    """The name of a variant in bundles and on the wire, e.g. ``resnet50-l1-v16-u8``."""
    return f"{backbone}-l{split}-v{ratio}-u{bits}"


def pruned_split(
    backbone: Backbone,
    split: int,
    kept: Tensor,
    bits: int,
    *,
    hidden: int = 64,
    kernel: Kernel = 3,
    repack: bool = False,
    depth: int = 0,
) -> SplitModel:
    """AECNN's own design: the head pruned to ``kept``, and feature recovery."""
    design = SplitDesign(
        split=split, planes=len(kept), bits=bits, hidden=hidden, kernel=kernel, repack=repack, depth=depth
    )
    return SplitModel(backbone, design, kept)


def design_id(backbone: str, design: SplitDesign, ratio: int) -> str:
    """The name of a variant: ``variant_id`` for AECNN's, with a word for the kind of the others."""
    if design.kind == "aecnn":
        return variant_id(backbone, design.split, ratio, design.bits)
    word = {"ca-pruned": "pruned", "bottlenetpp": "bnpp", "late": "all", "strided": "strided"}[design.kind]
    return f"{backbone}-l{design.split}-{word}{design.planes}-u{design.bits}"
