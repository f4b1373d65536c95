"""Multiply-adds, counted by torch's own counter on the meta device."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-adds of the convolutions and matrix products of ``module`` for one input of ``input_shape``.

    The module must be in eval mode. torch counts a multiply-add as two operations, hence the half.
    """
    with FlopCounterMode(display=False) as counter:
        on_meta(module, torch.empty(input_shape, device="meta"))
    operations: int = counter.get_total_flops()
    return operations // 2


def on_meta(module: nn.Module, x: Tensor) -> Tensor:
    """``module`` on the meta device: shapes without arithmetic, and without copying a weight."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    result: Tensor = functional_call(module, {name: value.to("meta") for name, value in state.items()}, (x,))
    return result
