"""Gradients of depthwise convolutions in bfloat16 on a CPU, by the kernels that are fast there.

oneDNN, which torch calls, has no fast bfloat16 kernel for two of these gradients: that of the weights where the kernel
is larger than 3×3, and that of the input where the stride is greater than 1. Either takes about ten times as long as it
need, and together they were nearly half of a training step of EfficientNet-Lite0 (benchmarks/training_speed.py). Both
have an equal in what is fast: the weights' gradient of a k×k kernel is put together from 3×3 ones on shifted inputs,
and the strided input's is computed in float32.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_TILE = 3  # the side for which the weights' gradient is fast


class QuickDepthwise(TorchFunctionMode):
    """Inside, bfloat16 depthwise convolutions of CPU tensors get gradients by fast kernels; all others are torch's.

    The values are those of torch's own gradients but for the order of the sums. Only the forward pass need be inside.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and not kwargs and _concerned(*args):
            x, weight, bias, stride, padding = args[:5]
            y = _Depthwise.apply(x.bfloat16(), weight.bfloat16(), _side(stride), _side(padding))
            return y if bias is None else y + bias.bfloat16()[:, None, None]
        return func(*args, **(kwargs or {}))


def _concerned(
    x: Tensor,
    weight: Tensor,
    _bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Whether a call of conv2d is one whose gradient has a faster equal."""
    if x.device.type != "cpu" or not torch.is_grad_enabled() or not (x.requires_grad or weight.requires_grad):
        return False
    low = x.dtype is torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    )
    depthwise = 1 < groups == weight.shape[0] == x.shape[1]
    height, width = weight.shape[2:]
    square = height == width and width % 2 == 1 and width >= _TILE
    even = _is_side(stride) and _is_side(padding) and _is_side(dilation) and _side(dilation) == 1
    return low and depthwise and square and even and (width > _TILE or _side(stride) > 1)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, tuple) and len(set(value)) == 1)


def _side(value: Any) -> int:
    return int(value if isinstance(value, int) else value[0])


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution: x bfloat16 (N, C, H, W), weight bfloat16 (C, 1, k, k)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        state: Any = ctx
        x, weight = state.saved_tensors
        (gradient,) = gradients
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        wants_x, wants_weight = state.needs_input_grad[:2]
        to_x = _input_gradient(gradient, x, weight, state.stride, state.padding) if wants_x else None
        to_weight = _weight_gradient(gradient, x, weight, state.stride, state.padding) if wants_weight else None
        return to_x, to_weight, None, None


def _input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    if stride == 1:
        return _native(gradient, x, weight, stride, padding, "x")
    return _native(gradient.float(), x.float(), weight.float(), stride, padding, "x").bfloat16()


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Tap (i, j) correlates the gradient with the input shifted by (i, j): nine neighbours are a 3×3 kernel's."""
    side = weight.shape[-1]
    if side == _TILE:
        return _native(gradient, x, weight, stride, padding, "weight")
    height, width = ((size - 1) * stride + _TILE for size in gradient.shape[2:])
    padded = functional.pad(x, (padding,) * 4) if padding else x
    tile = weight[:, :, :_TILE, :_TILE]
    result = torch.empty_like(weight, memory_format=torch.contiguous_format)
    starts = (*range(0, side - _TILE, _TILE), side - _TILE)
    for top in starts:
        for left in starts:
            part = padded[:, :, top : top + height, left : left + width]
            part = part.contiguous(memory_format=torch.channels_last)
            taps = _native(gradient, part, tile, stride, 0, "weight")
            result[:, :, top : top + _TILE, left : left + _TILE] = taps
    return result


def _native(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, of: Literal["x", "weight"]
) -> Tensor:
    """torch's own gradient of one input."""
    results: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        [stride] * 2,
        [padding] * 2,
        [1, 1],
        False,
        [0, 0],
        len(weight),
        [of == "x", of == "weight", False],
    )
    return results[0 if of == "x" else 1]
