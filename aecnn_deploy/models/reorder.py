"""Take the reordering of recovered channels into the weights of what reads them, so that no tensor is copied for it."""

from typing import Any

import torch
from torch import Tensor, nn

from aecnn_deploy.models.recovery import FeatureRecovery, ZeroFill


def absorb_order(recovery: nn.Module, tail: nn.Module) -> None:
    """Let ``recovery`` give its channels as they come, [received, generated], and ``tail`` read them so.

    Both are changed in place; batch norms must be folded already. Without recovery (ZeroFill) the pruned channels are
    not made at all, where nothing but convolutions reads them. A tail of an unknown kind stays as it is.
    """
    if isinstance(recovery, FeatureRecovery) and not recovery.repack:
        read = torch.argsort(recovery.order)
        recovery.in_order = _read(tail, read)
    elif isinstance(recovery, ZeroFill):
        kept = torch.argsort(recovery.order)[: len(recovery.order) - recovery.missing]
        recovery.received_alone = _read(tail, kept)


def _read(tail: nn.Module, read: Tensor) -> bool:
    """Change ``tail`` so that its input's channel j is what was channel ``read[j]``; whether it can be."""
    stages = list(tail.children())
    touched = []
    for stage in stages:
        kind = _kind(stage)
        if kind is None:
            return False
        touched.append(stage)
        if not _passes_on(stage, kind):
            break
    else:
        return False
    # A sum needs every channel that the branch makes, and a depthwise convolution makes something of a silent one.
    if not _is_permutation(read) and (len(touched) > 1 or type(touched[0]).__name__ == "DepthwiseSeparableConv"):
        return False
    for stage in touched:
        _change(stage, read)
    return True


def _kind(stage: Any) -> str | None:
    name = type(stage).__name__
    if name in ("Bottleneck", "BasicBlock"):
        return "residual"
    if name in ("DepthwiseSeparableConv", "InvertedResidual") and hasattr(stage, "has_skip"):
        return "mobile"
    if name == "Sequential" and any(isinstance(layer, nn.Conv2d | nn.Linear) for layer in stage):
        return "classifier"
    return None


def _passes_on(stage: Any, kind: str) -> bool:
    """Whether the stage adds its input to its output, which so come in the same order."""
    if kind == "residual":
        return stage.downsample is None
    return kind == "mobile" and bool(stage.has_skip)


def _is_permutation(read: Tensor) -> bool:
    return bool((read.sort().values == torch.arange(len(read), device=read.device)).all())


def _change(stage: Any, read: Tensor) -> None:
    match _kind(stage):
        case "residual":
            _inputs(stage.conv1, read)
            if stage.downsample is None:
                _outputs(stage.conv3 if hasattr(stage, "conv3") else stage.conv2, read)
            else:
                _inputs(stage.downsample[0], read)
        case "mobile":
            if type(stage).__name__ == "InvertedResidual":
                _inputs(stage.conv_pw, read)
                last = stage.conv_pwl
            else:  # depthwise first: each channel by itself
                _outputs(stage.conv_dw, read)
                stage.conv_dw.groups = stage.conv_dw.in_channels = len(read)
                last = stage.conv_pw
                _inputs(last, read)
            if stage.has_skip:
                _outputs(last, read)
        case _:
            _inputs(next(layer for layer in stage if isinstance(layer, nn.Conv2d | nn.Linear)), read)


def _inputs(layer: Any, read: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[:, read].contiguous(), requires_grad=False)
    if isinstance(layer, nn.Linear):
        layer.in_features = len(read)
    else:
        layer.in_channels = len(read)


def _outputs(layer: Any, read: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[read].contiguous(), requires_grad=False)
    layer.out_channels = len(read)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[read].contiguous(), requires_grad=False)
