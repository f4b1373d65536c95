"""A head as integer kernels want it: whole pixels in, steps of the wire out, so that nothing is rounded twice."""

from typing import Any

import torch
from torch import Tensor, nn

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import ModelError
from aecnn_deploy.models.deploy import fold_batch_norm
from aecnn_deploy.models.pruning import ChannelSelect
from aecnn_deploy.models.split import SplitModel


class SteppedHead(nn.Module):
    """float (N, 3, H', W') pixels less ``zero`` → the planes before they are rounded, in steps of the wire.

    Planes of a head are clip(round(x), ``lower``, ``upper``) of what this gives. Normalisation is folded into the first
    convolution, the planes' ``low`` and ``step`` into the last, batch norms into theirs. What a convolution is padded
    with is a black pixel's, not a mean one's, where the channels' means differ: then the frame has to come with a
    ``border`` (uint8 (H', W', 3): the mean pixel around zeros), and the first convolution pads nothing. Raises
    ModelError: a design whose planes are no linear function of its last convolution (BottleNet++'s sigmoid).
    """

    def __init__(self, model: SplitModel, spec: InputSpec) -> None:
        super().__init__()
        stages: Any = fold_batch_norm(model.head)
        self.zero, self.border = _fold_input(stages, spec)
        low, step = model.quantiser.low.detach(), torch.exp(model.quantiser.log_step.detach())
        name, last = list(stages.named_children())[-1]
        stage, least, most = _in_steps(last, low, step)
        setattr(stages, name, stage)
        self.stages = stages
        levels = torch.full_like(low, model.quantiser.levels)
        self.lower = torch.clamp(torch.round((least - low) / step), min=torch.zeros_like(low), max=levels)
        self.upper = torch.clamp(torch.round((most - low) / step), min=torch.zeros_like(low), max=levels)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        steps: Tensor = self.stages(pixels)
        return steps


class _Merged(nn.Module):
    """The last convolution of a residual block and its shortcut as one, over both inputs side by side.

    Their sum so is added up in the kernel's 32 bits; two tensors in steps of the wire, which differ between channels
    by orders of magnitude, could not each be cut into 256 levels.
    """

    def __init__(self, branch: nn.Module, last: Any, shortcut: nn.Conv2d, step: Tensor, low: Tensor) -> None:
        super().__init__()
        rows, columns = last.kernel_size
        if last.groups != 1 or max(last.stride) != 1 or tuple(last.padding) != (rows // 2, columns // 2):
            raise ModelError("a block whose last convolution is strided or grouped has no int8 head; keep it fp32")
        self.branch = branch
        stride = shortcut.stride[0]
        self.skip = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()  # leaves pixels out, in integers too
        self.last = nn.Conv2d(last.in_channels + shortcut.in_channels, len(step), last.kernel_size, padding="same")
        with torch.no_grad():
            padding = (columns // 2, columns // 2, rows // 2, rows // 2)
            self.last.weight.copy_(torch.cat([last.weight, nn.functional.pad(shortcut.weight, padding)], dim=1))
            bias = torch.zeros(len(step))
            for conv in (last, shortcut):
                bias += 0.0 if conv.bias is None else conv.bias
            assert self.last.bias is not None
            self.last.bias.copy_(bias)
        self.last.padding = (rows // 2, columns // 2)
        _rescale(self.last, low, step)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.cat([self.branch(x), self.skip(x)], dim=1))
        return out


def _fold_input(stages: nn.Module, spec: InputSpec) -> tuple[int, Tensor | None]:
    """Fold (pixel - mean) / std into the first convolution; the value that pixels are taken less of, and the border."""
    conv: Any = next(module for module in stages.modules() if isinstance(module, nn.Conv2d))
    mean, scale = torch.tensor(spec.mean), 1.0 / torch.tensor(spec.std)
    zero = round(float(mean.mean()))
    exact = bool((mean == zero).all())
    with torch.no_grad():
        conv.weight.mul_(scale[:, None, None])
        offset = (conv.weight * (mean - zero)[:, None, None]).sum(dim=(1, 2, 3))
        if conv.bias is None:
            conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
        conv.bias.sub_(offset)
    rows, columns = conv.padding if isinstance(conv.padding, tuple) else (0, 0)
    if exact or (rows, columns) == (0, 0):
        return zero, None
    conv.padding = (0, 0)
    border = torch.round(mean).to(torch.uint8).expand(spec.height + 2 * rows, spec.width + 2 * columns, 3).clone()
    border[rows : rows + spec.height, columns : columns + spec.width] = 0
    return zero, border


def _in_steps(stage: Any, low: Tensor, step: Tensor) -> tuple[nn.Module, float, float]:
    """The head's last stage, its output in steps; and the range of the activation that it no longer has."""
    infinite = float("inf")
    kind = type(stage).__name__
    match kind:
        case "Conv2d":
            _rescale(stage, low, step)
            return stage, -infinite, infinite
        case "Sequential":
            return _stem_in_steps(stage, low, step)
        case "SelectedSkip":
            return _mobile_in_steps(stage.block, stage.select.kept, low, step), -infinite, infinite
        case "DepthwiseSeparableConv" | "InvertedResidual" if hasattr(stage, "has_skip"):
            kept = torch.arange(len(low)) if stage.has_skip else None
            return _mobile_in_steps(stage, kept, low, step), -infinite, infinite
        case "Bottleneck" | "BasicBlock":
            return _residual_in_steps(stage, low, step), 0.0, infinite
        case _:
            raise ModelError(f"planes of a head that ends in {kind} cannot come out of an integer kernel; keep fp32")


def _stem_in_steps(stage: nn.Sequential, low: Tensor, step: Tensor) -> tuple[nn.Module, float, float]:
    """Convolution, then activations and pooling: both let a growing function of each channel through."""
    least, most, kept = -float("inf"), float("inf"), []
    for layer in (leaf for child in stage for leaf in _leaves(child)):
        match layer:
            case nn.ReLU6():
                least, most = max(least, 0.0), min(most, 6.0)
            case nn.ReLU():
                least = max(least, 0.0)
            case nn.Identity():
                pass
            case nn.Conv2d() | nn.MaxPool2d():
                kept.append(layer)
            case _:
                raise ModelError(
                    f"planes of a head that ends in {type(layer).__name__} cannot come out of an integer kernel; "
                    "keep its precision fp32"
                )
    _rescale(kept[0], low, step)
    if any(isinstance(layer, nn.Conv2d) for layer in kept[1:]):
        raise ModelError("a head's last stage has several convolutions in a row; keep its precision fp32")
    return nn.Sequential(*kept), least, most


def _leaves(module: nn.Module) -> list[nn.Module]:
    children = list(module.children())
    return [leaf for child in children for leaf in _leaves(child)] if children else [module]


def _mobile_in_steps(block: Any, kept: Tensor | None, low: Tensor, step: Tensor) -> nn.Module:
    """timm's blocks, whose projection is linear; ``kept``: the input's channels that are added, None: none are."""
    name = "conv_pw" if type(block).__name__ == "DepthwiseSeparableConv" else "conv_pwl"
    last = getattr(block, name)
    if kept is None:
        _rescale(last, low, step)
        result: nn.Module = block
        return result
    shortcut = _selection(kept, _inputs(block))
    block.has_skip = False
    setattr(block, name, nn.Identity())
    return _Merged(block, last, shortcut, step, low)


def _residual_in_steps(block: Any, low: Tensor, step: Tensor) -> nn.Module:
    """torchvision's blocks, without the ReLU after the sum."""
    *names, last = ("conv1", "conv2", "conv3") if hasattr(block, "conv3") else ("conv1", "conv2")
    branch = nn.Sequential(*(layer for name in names for layer in (getattr(block, name), nn.ReLU())))
    match block.downsample:
        case nn.Sequential() as pair:
            shortcut: Any = pair[0]
        case ChannelSelect() as select:
            shortcut = _selection(select.kept, _inputs(block))
        case _:
            shortcut = _selection(torch.arange(len(low)), _inputs(block))
    return _Merged(branch, getattr(block, last), shortcut, step, low)


def _inputs(block: nn.Module) -> int:
    conv = next(module for module in block.modules() if isinstance(module, nn.Conv2d))
    return conv.in_channels


def _selection(kept: Tensor, inputs: int) -> nn.Conv2d:
    """The channels ``kept`` of ``inputs`` as a 1×1 convolution."""
    conv = nn.Conv2d(inputs, len(kept), 1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[torch.arange(len(kept)), kept, 0, 0] = 1.0
    return conv


def _rescale(conv: Any, low: Tensor, step: Tensor) -> None:
    """Make (y - low) / step of the convolution's y."""
    with torch.no_grad():
        conv.weight.div_(step[:, None, None, None])
        bias = -low if conv.bias is None else conv.bias - low
        conv.bias = nn.Parameter(bias / step)


def frames_to_pixels(frames: Tensor, head: SteppedHead) -> Tensor:
    """uint8 (N, H, W, 3) frames → what ``head`` takes."""
    if head.border is not None:
        rows, columns = (
            (large - small) // 2 for large, small in zip(head.border.shape, frames.shape[1:3], strict=False)
        )
        padded = nn.functional.pad(frames, (0, 0, columns, columns, rows, rows))
        frames = torch.bitwise_or(padded, head.border)
    return frames.permute(0, 3, 1, 2).float() - head.zero
