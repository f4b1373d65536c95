"""Every design of a split network: built, built again from its record, what it computes, and what it exports."""

import copy
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import ModelError
from aecnn_deploy.exporters.onnx_export import export_onnx
from aecnn_deploy.exporters.verify import reference
from aecnn_deploy.models.backbones import Backbone
from aecnn_deploy.models.deploy import DeviceHead, EdgeTail, Normalise
from aecnn_deploy.models.macs import count_macs
from aecnn_deploy.models.quantiser import PlaneQuantiser
from aecnn_deploy.models.recovery import FeatureRecovery, ZeroFill
from aecnn_deploy.models.run import VariantRecord, describe_variant
from aecnn_deploy.models.split import SplitDesign, SplitModel, design_id
from aecnn_deploy.models.strided import InvertedResidual, PlaneRecovery, ResidualBlock, strided_head
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.verification import verify_logits, verify_planes
from aecnn_deploy.training.measure import entropy_bits
from tests.test_export import photographs
from tests.test_models import backbone, some_channels

SIDE = 32
KEPT = torch.tensor([1, 4, 5, 11])

# The tensor after stage 2 of the small network is 16×16×16.
DESIGNS = {
    "aecnn": SplitDesign(split=2, planes=4, bits=8, hidden=8),
    "aecnn-deep": SplitDesign(split=2, planes=4, bits=6, hidden=8, depth=2, repack=True),
    "ca-pruned": SplitDesign(kind="ca-pruned", split=2, planes=4, bits=8),
    "bottlenetpp": SplitDesign(kind="bottlenetpp", split=2, planes=4, bits=8),
    "bottlenetpp-linear": SplitDesign(kind="bottlenetpp", split=2, planes=4, bits=6, linear=True),
    "late": SplitDesign(kind="late", split=2, planes=16, bits=4),
    "strided": SplitDesign(
        kind="strided", split=2, planes=3, bits=4, hidden=8, depth=1, layers=((8, 4, 4), (8, 3, 1, 2))
    ),
    "strided-reuse": SplitDesign(
        kind="strided", split=2, planes=3, bits=8, hidden=8, reuse=1, layers=((8, 3, 1), (8, 3, 2))
    ),
    "strided-drop": SplitDesign(kind="strided", split=4, planes=5, bits=4, hidden=8, reuse=4, drop=(4,)),
}
BY_NAME = pytest.mark.parametrize("name", DESIGNS)


@torch.no_grad()
def shake(net: nn.Module) -> None:
    """Batch norms that do something, and filters strong enough for photographs to differ in their logits."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.7, 1.4)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")


@cache
def small() -> Backbone:
    """torchvision's own blocks, few and narrow, for frames of 32 pixels; 5 classes."""
    torch.manual_seed(4)
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))

    def shortcut(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))

    stages = [
        ("stem", stem),
        ("narrow", BasicBlock(8, 16, 2, shortcut(8, 16))),
        ("wide", BasicBlock(16, 24, 2, shortcut(16, 24))),
        ("last", BasicBlock(24, 24)),
    ]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(24, 5))
    spec = InputSpec(SIDE, SIDE, SIDE, "bicubic", (127.0, 127.0, 127.0), (64.0, 64.0, 64.0))
    net = Backbone("small", stages, classifier, spec).eval()
    shake(net)
    return net


def inputs() -> Tensor:
    """Five photographs as the network takes them."""
    return Normalise(small().input)(torch.from_numpy(photographs(SIDE)))


@torch.no_grad()
def built(name: str) -> SplitModel:
    """The design ``name`` as a trained network would be: no parameter as it was made, quantiser calibrated."""
    torch.manual_seed(7)
    design = DESIGNS[name]
    model = SplitModel(small(), design, KEPT if design.kind in ("aecnn", "ca-pruned") else None)
    shake(model)
    model.quantiser.calibrate(model.head(inputs()))
    return model.eval()


class TestEveryDesign:
    @BY_NAME
    @torch.no_grad()
    def test_it_is_built_again_from_its_record(self, name: str) -> None:
        model = built(name)
        text = msgspec.json.encode(describe_variant(small(), model, 4))
        record = msgspec.json.decode(text, type=VariantRecord)
        assert record.design == DESIGNS[name]
        assert record.planes == model.planes_shape
        again = SplitModel(small(), record.design, model.kept)
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(inputs()), model(inputs()))

    @BY_NAME
    @torch.no_grad()
    def test_its_shapes_are_those_that_it_says(self, name: str) -> None:
        model = built(name)
        point = small().split_point(model.split)
        assert model.head(inputs()).shape == (5, *model.planes_shape)
        assert model.recover(inputs()).shape == (5, point.channels, point.height, point.width)
        assert model(inputs()).shape == (5, 5)

    @pytest.mark.parametrize(
        ("name", "blocks", "hidden"),
        [("aecnn", 0, 8), ("aecnn-deep", 2, 8), ("strided", 1, 8), ("bottlenetpp", 0, 16)],
    )
    def test_its_recovery_is_as_deep_and_as_wide_as_it_says(self, name: str, blocks: int, hidden: int) -> None:
        recovery = built(name).recovery
        assert sum(isinstance(module, ResidualBlock) for module in recovery.modules()) == blocks
        first = next(module for module in recovery.modules() if isinstance(module, nn.Conv2d))
        assert (first.in_channels, first.out_channels) == (built(name).planes_shape[0], hidden)

    @BY_NAME
    def test_training_it_leaves_the_backbone_as_it_was(self, name: str) -> None:
        before = copy.deepcopy(small().state_dict())
        model = SplitModel(small(), DESIGNS[name])
        model.train()
        model(inputs()).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1)
        after = small().state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)

    @pytest.mark.parametrize("name", sorted(DESIGNS.keys() - {"bottlenetpp-linear", "strided-reuse"}))
    def test_its_files_compute_what_torch_computes(self, name: str, tmp_path: Path) -> None:
        model, frames = built(name), photographs(SIDE)
        head, tail = tmp_path / "head.onnx", tmp_path / "tail.onnx"
        spec, planes_shape = small().input, model.planes_shape
        export_onnx(
            DeviceHead(model, spec),
            "head",
            head,
            input_shape=(SIDE, SIDE, 3),
            output_shape=planes_shape,
            properties={},
        )
        planes = reference(DeviceHead(model, spec, fold=False), frames)
        assert len(np.unique(planes)) > 2, "planes of one value would agree with anything"
        verify_planes(head, "head", frames, planes)
        export_onnx(EdgeTail(model), "tail", tail, input_shape=planes_shape, output_shape=(5,), properties={})
        logits = reference(EdgeTail(model, fold=False), planes)
        assert np.abs(logits - logits[0]).max() > 1e-2 * np.abs(logits).max()
        verify_logits(OnnxRuntimeRunner(tail), "tail", planes, logits, "fp32")

    def test_each_has_a_name_of_its_own(self) -> None:
        names = {design_id("small", design, 4) for design in DESIGNS.values()}
        assert {design_id("small", DESIGNS["aecnn"], 4), "small-l2-pruned4-u8", "small-l2-bnpp4-u8"} <= names
        assert len(names) == len(DESIGNS)


class TestMultiplyAdds:
    SHAPE = (1, 3, SIDE, SIDE)

    def macs(self, name: str) -> int:
        return count_macs(built(name).head, self.SHAPE)

    def test_a_pruned_head_costs_the_same_with_and_without_recovery(self) -> None:
        assert self.macs("ca-pruned") == self.macs("aecnn") == self.macs("aecnn-deep")
        # The stem, the block's first convolution, and of the second and of the shortcut a quarter.
        assert self.macs("aecnn") == 8 * 27 * 32 * 32 + (16 * 8 * 9 + 4 * 16 * 9 + 4 * 8) * 16 * 16

    def test_bottlenetpp_pays_for_the_whole_head_and_its_encoder(self) -> None:
        whole = count_macs(small().head(2), self.SHAPE)
        assert self.macs("late") == whole
        assert self.macs("bottlenetpp") == whole + 4 * 16 * 9 * 16 * 16

    def test_a_strided_head_pays_for_its_own_layers_only(self) -> None:
        patches, residual = 8 * 3 * 16, 16 * 8 + 16 * 9 + 8 * 16
        assert self.macs("strided") == (patches + residual + 3 * 8) * 8 * 8
        assert self.macs("strided-drop") == count_macs(small().head(3), self.SHAPE) + 5 * 24 * 8 * 8
        assert self.macs("strided-reuse") == (8 * 27 + 8 * 72) * 32 * 32 + (8 * 72 + 3 * 8) * 16 * 16


class TestPrunedWithoutRecovery:
    @pytest.mark.parametrize(
        ("name", "split", "reading"),
        [
            ("resnet18", 3, ("conv1", "downsample.0")),
            ("resnet50", 4, ("conv1", "downsample.0")),
            ("efficientnet_lite0", 2, ("conv_pw",)),
        ],
    )
    @torch.no_grad()
    def test_it_computes_what_the_network_without_the_filters_that_read_them_computes(
        self, name: str, split: int, reading: tuple[str, ...]
    ) -> None:
        net = backbone(name)
        channels = net.split_point(split).channels
        kept = some_channels(channels, channels // 4)
        model = SplitModel(net, SplitDesign(kind="ca-pruned", split=split, planes=len(kept), bits=8), kept)
        pruned = [channel for channel in range(channels) if channel not in kept.tolist()]
        tail = copy.deepcopy(net.tail(split))
        for layer in reading:
            weight = tail[0].get_submodule(layer).get_parameter("weight")
            assert weight.shape[1] == channels
            weight[:, pruned] = 0
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        expected = tail(net.head(split)(x))
        torch.testing.assert_close(model(x, quantised=False), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(expected, net(x), rtol=1e-2), "the pruned channels matter"

    def test_zeros_stand_in_the_places_of_the_pruned_channels(self) -> None:
        received = torch.randn(2, 3, 4, 4)
        filled = ZeroFill(6, torch.tensor([0, 2, 5]))(received)
        assert torch.equal(filled[:, [0, 2, 5]], received)
        assert not filled[:, [1, 3, 4]].any()


class TestRecovery:
    @torch.no_grad()
    def test_recovery_inserted_in_silence_changes_no_logit(self) -> None:
        """Algorithm 1's last step begins where CA_Pruned ended."""
        pruned = built("ca-pruned")
        recovered = SplitModel(small(), DESIGNS["aecnn"], KEPT)
        taken = {key: value for key, value in pruned.state_dict().items() if not key.startswith("recovery.")}
        recovered.load_state_dict(recovered.state_dict() | taken)
        for quantised in (True, False):
            assert torch.equal(recovered(inputs(), quantised=quantised), pruned(inputs(), quantised=quantised))
        assert isinstance(recovered.recovery, FeatureRecovery)
        assert recovered.recovery.generate is not None
        recovered.recovery.generate[-1].get_parameter("bias").add_(0.5)
        assert not torch.equal(recovered(inputs()), pruned(inputs()))

    @pytest.mark.parametrize("silent", [False, True])
    def test_depth_adds_residual_blocks_and_keeps_the_received_channels(self, silent: bool) -> None:
        kept = torch.tensor([1, 4])
        received = torch.randn(1, 2, 6, 6)
        for depth in (0, 1, 3):
            recovery = FeatureRecovery(5, kept, hidden=4, depth=depth, silent=silent).eval()
            assert sum(isinstance(module, ResidualBlock) for module in recovery.modules()) == depth
            recovered = recovery(received)
            assert torch.equal(recovered[:, kept], received)
            assert bool(recovered[:, [0, 2, 3]].any()) is not silent

    def test_a_residual_block_adds_to_what_it_is_given(self) -> None:
        block = ResidualBlock(3).eval()
        x = torch.randn(1, 3, 5, 5)
        nn.init.zeros_(block.body[-1].get_parameter("weight"))
        assert torch.equal(block(x), x.relu())

    @pytest.mark.parametrize("count", [3, 5])
    def test_kept_channels_that_are_not_the_design_s_number_are_refused(self, count: int) -> None:
        with pytest.raises(ModelError, match=f"{count} kept channels, the design sends 4 planes"):
            SplitModel(small(), DESIGNS["aecnn"], torch.arange(count))


class TestBottleNet:
    @torch.no_grad()
    def test_its_planes_lie_between_0_and_1_and_its_decoder_is_linear_on_demand(self) -> None:
        sent = built("bottlenetpp").head(inputs())
        assert 0 < float(sent.min()) < float(sent.max()) < 1
        assert float(built("bottlenetpp").recover(inputs()).min()) == 0
        assert float(built("bottlenetpp-linear").recover(inputs()).min()) < 0


class TestStridedHead:
    @pytest.mark.parametrize(
        ("layers", "side"),
        [
            (((4, 7, 4), (4, 3, 2)), 28),
            (((4, 4, 4), (4, 3, 2), (4, 3, 2)), 14),
            (((4, 8, 8),), 28),
            (((4, 3, 2), (6, 5, 2, 3), (6, 3, 1, 2)), 56),
            ((), 224),
        ],
    )
    def test_strides_multiply(self, layers: tuple[tuple[int, ...], ...], side: int) -> None:
        head = strided_head(nn.Sequential(), 3, layers, 2).eval()
        assert head(torch.zeros(1, 3, 224, 224)).shape == (1, 2, side, side)

    @pytest.mark.parametrize("layer", [(8,), (8, 3), (8, 3, 2, 1, 1), (8, 0, 2), (0, 3, 2)])
    def test_a_layer_that_is_none_is_refused_with_how_to_write_one(self, layer: tuple[int, ...]) -> None:
        with pytest.raises(ModelError, match=r"write \[channels, kernel, stride\] or") as caught:
            strided_head(nn.Sequential(), 3, [layer], 2)
        assert str(list(layer)) in str(caught.value)

    @pytest.mark.parametrize(("outputs", "stride", "skips"), [(4, 1, True), (4, 2, False), (6, 1, False)])
    def test_an_inverted_residual_skips_where_shapes_allow_it(self, outputs: int, stride: int, skips: bool) -> None:
        block = InvertedResidual(4, outputs, 3, stride, 2).eval()
        nn.init.zeros_(block.project[-1].get_parameter("weight"))
        x = torch.randn(1, 4, 6, 6)
        out = block(x)
        assert out.shape == (1, outputs, 6 // stride, 6 // stride)
        assert torch.equal(out, x) if skips else not out.any()


class TestPlaneRecovery:
    @pytest.mark.parametrize(
        ("side", "target"), [(14, 14), (14, 28), (7, 28), (7, 21), (28, 14), (56, 14), (56, 7), (21, 7), (35, 7)]
    )
    def test_planes_of_any_whole_factor_become_the_tensor_of_the_tail(self, side: int, target: int) -> None:
        recovery = PlaneRecovery((3, side, side), (10, target, target), hidden=6, depth=1)
        assert recovery(torch.randn(2, 3, side, side)).shape == (2, 10, target, target)

    @pytest.mark.parametrize("hidden", [1, 5])
    def test_an_odd_number_of_hidden_channels_can_be_shuffled(self, hidden: int) -> None:
        recovery = PlaneRecovery((3, 7, 7), (10, 14, 14), hidden=hidden, depth=1)
        assert recovery(torch.randn(2, 3, 7, 7)).shape == (2, 10, 14, 14)

    def test_a_downsampling_recovery_reads_every_value(self) -> None:
        recovery = PlaneRecovery((1, 16, 16), (4, 8, 8), hidden=32, depth=0).eval()
        nn.init.uniform_(recovery.enter[0].get_parameter("weight"), 0.5, 1.0)  # nothing that ReLU stops
        x = torch.rand(1, 1, 16, 16, requires_grad=True)
        (gradient,) = torch.autograd.grad(recovery(x).sum(), x)
        assert bool((gradient != 0).all())

    @pytest.mark.parametrize(("side", "target"), [(28, 12), (12, 28), (113, 28)])
    def test_sides_that_do_not_divide_are_refused(self, side: int, target: int) -> None:
        with pytest.raises(ModelError, match=f"planes of {side}×{side} cannot feed a tensor of {target}×{target}"):
            PlaneRecovery((3, side, side), (10, target, target))

    def test_a_head_whose_side_does_not_divide_is_refused_when_it_is_built(self) -> None:
        design = SplitDesign(kind="strided", split=2, planes=3, bits=4, layers=((8, 4, 2),))
        with pytest.raises(ModelError, match="planes of 17×17 cannot feed a tensor of 16×16"):
            SplitModel(small(), design)


def skewed(bits: int, channels: int = 3) -> Tensor:
    """uint8 levels (4, channels, 6, 6), low ones more often than high ones."""
    rng = np.random.default_rng(bits)
    levels = 2**bits * rng.beta(1.0, 3.0, (4, channels, 6, 6))
    return torch.from_numpy(levels.astype(np.uint8))


class TestEntropy:
    """The rate term of training, against the measurement."""

    @staticmethod
    def quantiser(bits: int, channels: int = 3) -> PlaneQuantiser:
        quantiser = PlaneQuantiser(channels, bits)
        with torch.no_grad():
            quantiser.low.copy_(torch.linspace(-2.0, 1.0, channels))
            quantiser.log_step.copy_(torch.linspace(-1.0, 0.5, channels))
        return quantiser

    @pytest.mark.parametrize("bits", range(1, 9))
    @torch.no_grad()
    def test_of_values_on_the_levels_it_is_that_of_the_planes(self, bits: int) -> None:
        quantiser, levels = self.quantiser(bits), skewed(bits)
        values = quantiser.dequantise(levels)
        assert torch.equal(quantiser.quantise(values), levels)
        expected = entropy_bits(levels.numpy())
        assert 0.5 < expected < bits
        assert quantiser.entropy_bits(values).item() == pytest.approx(expected, abs=2e-3)

    @pytest.mark.parametrize("level", [0.0, 5.0, 15.0])
    @torch.no_grad()
    def test_of_one_level_it_is_nothing(self, level: float) -> None:
        quantiser = self.quantiser(4)
        values = quantiser.dequantise(torch.full((2, 3, 4, 4), level))
        assert quantiser.entropy_bits(values).item() == pytest.approx(0, abs=1e-3)
        far = values + (100.0 if level == 15 else -100.0) * (level != 5)
        assert quantiser.entropy_bits(far).item() == pytest.approx(0, abs=1e-3)

    def test_its_gradient_moves_values_to_the_level_that_is_more_frequent(self) -> None:
        quantiser = PlaneQuantiser(1, 3)
        with torch.no_grad():
            quantiser.log_step.fill_(0.0)
        # Level 3 is frequent; 2 and 4 are rare.
        values = torch.cat([torch.full((60,), 3.0), torch.tensor([2.4, 2.7, 3.3, 3.8])])
        x = values.reshape(1, 1, 8, 8).clone().requires_grad_()
        quantiser.entropy_bits(x).backward()
        assert x.grad is not None
        below, above = x.grad.flatten()[60:62], x.grad.flatten()[62:]
        assert bool((below < 0).all()), "down the slope is up"
        assert bool((above > 0).all())

    def test_descending_it_costs_bits_and_fewer_levels(self) -> None:
        quantiser = self.quantiser(4, channels=1)
        generator = torch.Generator().manual_seed(5)
        scaled = (7 + 1.5 * torch.randn(4, 1, 16, 16, generator=generator)).clamp(0, 15)
        with torch.no_grad():
            step = quantiser.log_step.exp()
            x = scaled * step + quantiser.low
        before, spread = entropy_bits(quantiser.quantise(x).numpy()), float(x.std())
        x.requires_grad_()
        for _ in range(200):
            (gradient,) = torch.autograd.grad(quantiser.entropy_bits(x), x)
            with torch.no_grad():
                x -= 20 * gradient
        with torch.no_grad():
            assert entropy_bits(quantiser.quantise(x).numpy()) < 0.8 * before
            assert float(x.std()) < spread
