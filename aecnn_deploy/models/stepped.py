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
    """float pixels (N, 3, H', W') → the planes before they are rounded, in steps of the wire (N, C', h, w).

    Planes of a head are clip(round(x), ``lower``, ``upper``) of what this gives, bounds float (C',). Batch norms are
    folded into their convolutions, the planes' ``low`` and ``step`` into the last, the normalisation's scale into the
    first. Pixels come less ``mean``, float (3,).

    With ``whole`` they are whole numbers, as integer kernels take them: less one number, the rest of the means stands
    in the first convolution's bias. Where the channels' means differ, what it is padded with would then no longer be
    the mean pixel. The frame has to come with a ``border`` (uint8 (H', W', 3): the mean pixel, rounded, around zeros),
    and the first convolution pads nothing. And a block's shortcut is part of its last convolution.
    Raises ModelError: a design whose planes are no linear function of its last convolution (BottleNet++'s sigmoid).
    """

    def __init__(self, model: SplitModel, spec: InputSpec, *, whole: bool = False) -> None:
        super().__init__()
        stages: Any = fold_batch_norm(model.head)
        self.mean = torch.tensor(spec.mean)
        self.border: Tensor | None = None
        _fold_scale(stages, spec)
        if whole:
            self.mean, self.border = _fold_means(stages, spec)
        low, step = model.quantiser.low.detach(), torch.exp(model.quantiser.log_step.detach())
        name, last = list(stages.named_children())[-1]
        stage, least, most = _in_steps(last, low, step, merge=whole)
        setattr(stages, name, stage)
        self.stages = stages
        levels = torch.full_like(low, model.quantiser.levels)
        self.lower = torch.clamp(torch.round((least - low) / step), min=torch.zeros_like(low), max=levels)
        self.upper = torch.clamp(torch.round((most - low) / step), min=torch.zeros_like(low), max=levels)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        steps: Tensor = self.stages(pixels)
        return steps


class FusedHead(nn.Module):
    """uint8 (N, H, W, 3) RGB frames → uint8 planes (N, C', h, w), by as few operations as there are.

    Raises ModelError: as SteppedHead.
    """

    mean: Tensor
    lower: Tensor
    upper: Tensor

    def __init__(self, model: SplitModel, spec: InputSpec) -> None:
        super().__init__()
        stepped = SteppedHead(model, spec)
        self.stages = stepped.stages
        same = bool((stepped.mean == stepped.mean[0]).all())
        self.register_buffer("mean", stepped.mean[0] if same else stepped.mean[:, None, None])
        self.register_buffer("lower", stepped.lower[:, None, None])
        self.register_buffer("upper", stepped.upper[:, None, None])
        self._bounds = [float(bound[0]) for bound in (stepped.lower, stepped.upper) if bool((bound == bound[0]).all())]
        self.eval().requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        steps = torch.round(self.stages(frames.permute(0, 3, 1, 2).float() - self.mean))
        if len(self._bounds) == 2:
            return torch.clamp(steps, *self._bounds).to(torch.uint8)
        return torch.minimum(torch.maximum(steps, self.lower), self.upper).to(torch.uint8)


class _Sum(nn.Module):
    """A block's branch and its shortcut over one input."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x) + self.shortcut(x)
        return out


class _Scaled(nn.Module):
    """The channels ``kept`` of (N, C, H, W), each times its ``scale``."""

    scale: Tensor

    def __init__(self, kept: Tensor, scale: Tensor, channels: int) -> None:
        super().__init__()
        self.select: nn.Module = nn.Identity() if len(kept) == channels else ChannelSelect(kept)
        self.register_buffer("scale", scale[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.select(x) * self.scale
        return out


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


def _first(stages: nn.Module) -> Any:
    return next(module for module in stages.modules() if isinstance(module, nn.Conv2d))


def _fold_scale(stages: nn.Module, spec: InputSpec) -> None:
    """Fold the division by the standard deviations into the first convolution."""
    with torch.no_grad():
        _first(stages).weight.mul_((1.0 / torch.tensor(spec.std))[:, None, None])


def _fold_means(stages: nn.Module, spec: InputSpec) -> tuple[Tensor, Tensor | None]:
    """Fold the means into the first convolution; the whole number that pixels still are taken less of, the border."""
    conv, mean = _first(stages), torch.tensor(spec.mean)
    zero = torch.round(mean.mean())
    with torch.no_grad():
        offset = (conv.weight * (mean - zero)[:, None, None]).sum(dim=(1, 2, 3))
        if conv.bias is None:
            conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
        conv.bias.sub_(offset)
    rows, columns = conv.padding if isinstance(conv.padding, tuple) else (0, 0)
    if bool((mean == zero).all()) or (rows, columns) == (0, 0):
        return zero.expand(3), None
    conv.padding = (0, 0)
    border = torch.round(mean).to(torch.uint8).expand(spec.height + 2 * rows, spec.width + 2 * columns, 3).clone()
    border[rows : rows + spec.height, columns : columns + spec.width] = 0
    return zero.expand(3), border


def _in_steps(stage: Any, low: Tensor, step: Tensor, *, merge: bool) -> tuple[nn.Module, float, float]:
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
            return _mobile_in_steps(stage.block, stage.select.kept, low, step, merge=merge), -infinite, infinite
        case "DepthwiseSeparableConv" | "InvertedResidual" if hasattr(stage, "has_skip"):
            kept = torch.arange(len(low)) if stage.has_skip else None
            return _mobile_in_steps(stage, kept, low, step, merge=merge), -infinite, infinite
        case "Bottleneck" | "BasicBlock":
            return _residual_in_steps(stage, low, step, merge=merge), 0.0, infinite
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


def _mobile_in_steps(block: Any, kept: Tensor | None, low: Tensor, step: Tensor, *, merge: bool) -> nn.Module:
    """timm's blocks, whose projection is linear; ``kept``: the input's channels that are added, None: none are."""
    name = "conv_pw" if type(block).__name__ == "DepthwiseSeparableConv" else "conv_pwl"
    last = getattr(block, name)
    if kept is None:
        _rescale(last, low, step)
        result: nn.Module = block
        return result
    block.has_skip = False
    if not merge:
        _rescale(last, low, step)
        return _Sum(block, _Scaled(kept, 1.0 / step, _inputs(block)))
    setattr(block, name, nn.Identity())
    return _Merged(block, last, _selection(kept, _inputs(block)), step, low)


def _residual_in_steps(block: Any, low: Tensor, step: Tensor, *, merge: bool) -> nn.Module:
    """torchvision's blocks, without the ReLU after the sum."""
    *names, name = ("conv1", "conv2", "conv3") if hasattr(block, "conv3") else ("conv1", "conv2")
    branch = [layer for other in names for layer in (getattr(block, other), nn.ReLU())]
    last, down = getattr(block, name), block.downsample
    convolution: Any = down[0] if isinstance(down, nn.Sequential) else None
    kept = down.kept if isinstance(down, ChannelSelect) else torch.arange(len(low))
    if merge:
        shortcut = convolution or _selection(kept, _inputs(block))
        return _Merged(nn.Sequential(*branch), last, shortcut, step, low)
    _rescale(last, low, step)
    if convolution is None:
        return _Sum(nn.Sequential(*branch, last), _Scaled(kept, 1.0 / step, _inputs(block)))
    _rescale(convolution, torch.zeros_like(low), step)
    return _Sum(nn.Sequential(*branch, last), convolution)


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
        frames = torch.maximum(padded, head.border)
    return frames.permute(0, 3, 1, 2).float() - head.mean[:, None, None]
