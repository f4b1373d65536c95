"""Gradients of bfloat16 depthwise convolutions on a CPU against torch's own in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aecnn_deploy.models.backbones import build_backbone
from aecnn_deploy.training import depthwise
from aecnn_deploy.training.depthwise import QuickDepthwise

_BFLOAT16 = 2**-8  # half a step of its mantissa, with room for the sums' order


def _gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, *, quick: bool
) -> list[Tensor]:
    inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    if bias is not None:
        inputs.append(bias.clone().requires_grad_())
    if quick:
        with torch.autocast("cpu", torch.bfloat16), QuickDepthwise():
            y = torch.conv2d(*inputs[:2], inputs[2] if bias is not None else None, stride, padding, 1, len(weight))
        assert y.dtype is torch.bfloat16
    else:
        y = torch.conv2d(*inputs[:2], inputs[2] if bias is not None else None, stride, padding, 1, len(weight))
    upstream = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape).bfloat16().to(y.dtype)
    return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y, inputs, upstream))]


@given(
    side=st.sampled_from([3, 5, 7, 9]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 4),
    images=st.integers(1, 3),
    channels=st.integers(2, 19),
    height=st.integers(9, 20),
    width=st.integers(9, 20),
    with_bias=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_values_and_gradients_are_those_of_float64(
    side: int,
    stride: int,
    padding: int,
    images: int,
    channels: int,
    height: int,
    width: int,
    with_bias: bool,
    last: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().float()

    x, weight = draw(images, channels, height, width), draw(channels, 1, side, side)
    bias = draw(channels) if with_bias else None
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    exact = _gradients(
        x.double(), weight.double(), None if bias is None else bias.double(), stride, padding, quick=False
    )
    got = _gradients(x, weight, bias, stride, padding, quick=True)
    for theirs, ours in zip(exact, got, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() <= _BFLOAT16 * theirs.norm() * (2 if with_bias else 1) + 1e-6


@pytest.mark.parametrize(
    ("groups", "channels_out", "side", "dilation"),
    [(1, 8, 5, 1), (4, 8, 5, 1), (8, 16, 5, 1), (8, 8, 1, 1), (8, 8, 4, 1), (8, 8, 3, 1), (8, 8, 5, 2)],
)
def test_other_convolutions_stay_as_they_are(
    groups: int, channels_out: int, side: int, dilation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not depthwise, or a kernel that torch is fast for, or one that is not handled: to the bit."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 16, 16)
    layer = nn.Conv2d(8, channels_out, side, groups=groups, dilation=dilation)
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.autograd.grad(layer(x).float().square().sum(), list(layer.parameters()))
        monkeypatch.delattr(depthwise, "_Depthwise")  # would raise if it were used
        with QuickDepthwise():
            got = torch.autograd.grad(layer(x).float().square().sum(), list(layer.parameters()))
    assert all(torch.equal(*pair) for pair in zip(expected, got, strict=True))


def test_float32_and_evaluation_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(depthwise, "_Depthwise")
    layer, x = nn.Conv2d(8, 8, 5, groups=8), torch.randn(2, 8, 16, 16)
    with QuickDepthwise():
        layer(x).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            layer(x)


def test_a_network_learns_from_the_same_gradients() -> None:
    """EfficientNet-Lite0 in training mode: as near to torch's own as two orders of bfloat16 sums are."""
    torch.manual_seed(0)
    backbone = build_backbone("efficientnet_lite0", 5).train()
    stages = backbone.stages[6:13].to(memory_format=torch.channels_last)
    x = torch.randn(4, 40, 28, 28).contiguous(memory_format=torch.channels_last)

    def gradients(*, low: bool, quick: bool) -> Tensor:
        stages.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            if quick:
                with QuickDepthwise():
                    y = stages(x)
            else:
                y = stages(x)
        y.float().square().mean().backward()
        return torch.cat([p.grad.flatten() for p in stages.parameters() if p.grad is not None])

    exact = gradients(low=False, quick=False)
    theirs = (gradients(low=True, quick=False) - exact).norm() / exact.norm()
    ours = (gradients(low=True, quick=True) - exact).norm() / exact.norm()
    assert 0 < ours < 1.2 * theirs
