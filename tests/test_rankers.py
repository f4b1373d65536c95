"""Rankings of channels other than the paper's attention."""

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import ModelError
from aecnn_deploy.models.attention import channel_importance, kept_channels
from aecnn_deploy.models.backbones import Backbone
from aecnn_deploy.models.rankers import (
    ATTENTIONS,
    RANKINGS,
    CbamChannel,
    SqueezeExcitation,
    l1_importance,
    random_importance,
)
from tests.test_models import backbone

SPEC = InputSpec(8, 8, 8, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def chain(stage: nn.Module, channels: int = 3) -> Backbone:
    """A network of one stage."""
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, 2))
    return Backbone("hand-made", [("stage", stage)], classifier, SPEC)


@torch.no_grad()
def fill(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, weights: list[float], gamma: list[float], variance: list[float]
) -> None:
    """Each filter of one value, half of it negative."""
    signs = torch.ones_like(conv.weight[0]).flatten()
    signs[::2] = -1
    conv.weight.copy_(torch.tensor(weights)[:, None, None, None] * signs.reshape(conv.weight[0].shape))
    norm.weight.copy_(torch.tensor(gamma))
    assert norm.running_var is not None
    norm.running_var.copy_(torch.tensor(variance))


WEIGHTS, GAMMA, VARIANCE = [0.5, 0.1, 0.2], [1.0, -4.0, 3.0], [4.0, 0.25, 9.0]
FOLDED = [0.5 * 1 / 2, 0.1 * 4 / 0.5, 0.2 * 3 / 3]


class TestL1:
    def test_batch_norm_is_folded_into_the_filters(self) -> None:
        conv, norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, eps=0.0)
        fill(conv, norm, WEIGHTS, GAMMA, VARIANCE)
        importance = l1_importance(chain(nn.Sequential(conv, norm, nn.ReLU())), 1)
        assert importance.dtype == torch.float64
        assert importance.tolist() == pytest.approx(FOLDED, rel=1e-6)
        assert kept_channels(importance, 2).tolist() == [0, 1], "of the bare filters it would be 0 and 2"

    def test_epsilon_counts_as_it_does_in_batch_norm(self) -> None:
        conv, norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, eps=0.75)
        fill(conv, norm, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.25, 3.25, 8.25])
        assert l1_importance(chain(nn.Sequential(conv, norm)), 1).tolist() == pytest.approx([1, 1 / 2, 1 / 3])

    def test_of_a_residual_block_the_convolution_before_the_sum_counts(self) -> None:
        block = BasicBlock(3, 3)
        fill(block.conv1, block.bn1, [9.0, 9.0, 9.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
        fill(block.conv2, block.bn2, WEIGHTS, GAMMA, VARIANCE)
        assert l1_importance(chain(block), 1).tolist() == pytest.approx(FOLDED, rel=1e-4)

    def test_of_a_residual_block_with_a_shortcut_the_shortcut_counts_as_in_the_paper(self) -> None:
        block = BasicBlock(3, 3, 2, nn.Sequential(nn.Conv2d(3, 3, 1, 2, bias=False), nn.BatchNorm2d(3)))
        fill(block.conv2, block.bn2, [9.0, 9.0, 9.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
        assert block.downsample is not None
        fill(block.downsample[0], block.downsample[1], WEIGHTS, GAMMA, VARIANCE)
        assert l1_importance(chain(block), 1).tolist() == pytest.approx(FOLDED, rel=1e-4)

    @pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
    def test_every_split_point_has_one_importance_for_each_channel(self, name: str) -> None:
        net = backbone(name)
        for point in net.split_points:
            importance = l1_importance(net, point.index)
            assert importance.shape == (point.channels,)
            assert bool((importance > 0).all())
            assert bool(importance.isfinite().all())
            assert len(importance.unique()) > 1

    @pytest.mark.parametrize(
        "stage",
        [nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.PixelShuffle(2))],
        ids=["no batch norm", "no such filters"],
    )
    def test_a_stage_without_such_a_convolution_is_refused_by_its_split_point(self, stage: nn.Module) -> None:
        net = chain(stage, 3 if isinstance(stage, nn.Conv2d) else 1)
        with pytest.raises(ModelError, match="hand-made has no convolution that makes the channels of split point 1"):
            l1_importance(net, 1)


class TestAttentions:
    @staticmethod
    def tensor(channels: int = 40) -> Tensor:
        return torch.randn(3, channels, 5, 4, generator=torch.Generator().manual_seed(channels))

    @pytest.mark.parametrize("name", ATTENTIONS)
    @pytest.mark.parametrize("channels", [1, 24, 256])
    def test_a_tensor_keeps_its_shape_and_every_channel_gets_a_share(self, name: str, channels: int) -> None:
        x = self.tensor(channels)
        attention = ATTENTIONS[name](channels)
        shares = attention.attention(x)
        assert shares.shape == (3, channels)
        assert bool(((shares > 0) & (shares < 1)).all())
        torch.testing.assert_close(attention(x), x * shares[:, :, None, None])

    def test_squeeze_and_excitation_is_the_published_formula(self) -> None:
        x, attention = self.tensor(), SqueezeExcitation(40)
        first, second = attention.fully[0], attention.fully[2]
        squeezed = x.mean(dim=(2, 3))
        hidden = (squeezed @ first.weight.T + first.bias).clamp_min(0)
        expected = 1 / (1 + torch.exp(-(hidden @ second.weight.T + second.bias)))
        torch.testing.assert_close(attention.attention(x), expected)

    def test_cbam_adds_the_same_perceptron_of_the_maxima(self) -> None:
        x, attention = self.tensor(), CbamChannel(40)
        mean, peak = (attention.fully(pooled) for pooled in (x.mean(dim=(2, 3)), x.amax(dim=(2, 3))))
        torch.testing.assert_close(attention.attention(x), 1 / (1 + torch.exp(-mean - peak)))

    @pytest.mark.parametrize(("channels", "inner"), [(256, 16), (40, 4), (24, 4)])
    def test_the_reduction_is_16_and_leaves_four_at_the_least(self, channels: int, inner: int) -> None:
        for kind in (SqueezeExcitation, CbamChannel):
            assert kind(channels).fully[0].out_features == inner

    @pytest.mark.parametrize("name", ["se", "cbam"])
    def test_importance_is_the_mean_share_over_all_images(self, name: str) -> None:
        attention = ATTENTIONS[name](40)
        x = self.tensor()
        importance = channel_importance(iter(x.split(2)), attention)
        torch.testing.assert_close(importance.float(), attention.attention(x).mean(0))

    def test_what_is_trained_of_them_is_trained(self) -> None:
        for name, trained in (("ca", False), ("se", True), ("cbam", True)):
            attention = ATTENTIONS[name](16)
            assert bool(list(attention.parameters())) is trained
            if trained:
                attention(self.tensor(16)).square().sum().backward()
                assert all(p.grad is not None and bool(p.grad.any()) for p in attention.parameters())


class TestRandom:
    def test_the_same_seed_gives_the_same_order_and_another_another(self) -> None:
        first = random_importance(64, 3)
        assert first.shape == (64,)
        assert first.dtype == torch.float64
        assert torch.equal(random_importance(64, 3), first)
        assert kept_channels(random_importance(64, 4), 8).tolist() != kept_channels(first, 8).tolist()

    def test_it_neither_reads_nor_moves_torchs_own_generator(self) -> None:
        torch.manual_seed(1)
        first, expected = random_importance(8, 0), torch.rand(1)
        torch.manual_seed(1)
        assert torch.equal(torch.rand(1), expected)
        torch.manual_seed(2)
        assert torch.equal(random_importance(8, 0), first)

    def test_its_orders_are_spread_over_all_channels(self) -> None:
        kept = torch.stack([kept_channels(random_importance(16, seed), 4) for seed in range(400)])
        counts = torch.bincount(kept.flatten(), minlength=16)
        expected = 400 * 4 / 16
        assert float((counts - expected).abs().max()) < 5 * math.sqrt(expected)


def test_the_rankings_are_those_of_the_comparison() -> None:
    assert RANKINGS == ("ca", "se", "cbam", "l1", "random")
