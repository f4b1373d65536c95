"""Int8 heads: what torch makes ready for integers, and the Q/DQ files that ONNX Runtime runs whole in integers."""

import collections
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from aecnn_deploy.calibration.ranges import METHODS, gather_activations
from aecnn_deploy.errors import ExportError, ModelError, SettingsError
from aecnn_deploy.exporters.int8_calibration import SteppedFile
from aecnn_deploy.exporters.int8_head import int8_head
from aecnn_deploy.exporters.verify import reference
from aecnn_deploy.models.split import SplitDesign
from aecnn_deploy.models.stepped import FusedHead, SteppedHead, frames_to_pixels
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from tests.int8_runs import STRIDED, int8_head_of, network, variant_of
from tests.small_models import photographs

LITE0, RESNET18, RESNET50 = "efficientnet_lite0", "resnet18", "resnet50"
# Stems, projections, identity and downsampling skips, whole heads, purpose-made ones, and planes of few bits.
HEADS = (
    (LITE0, SplitDesign(split=1, planes=8, bits=8)),
    (LITE0, SplitDesign(split=2, planes=4, bits=6)),
    (LITE0, SplitDesign(split=4, planes=6, bits=8)),
    (LITE0, SplitDesign(kind="late", split=4, planes=24, bits=4)),
    (LITE0, STRIDED),
    (RESNET18, SplitDesign(split=1, planes=16, bits=8)),
    (RESNET18, SplitDesign(split=2, planes=16, bits=8)),
    (RESNET18, SplitDesign(split=4, planes=32, bits=8)),
    (RESNET50, SplitDesign(split=1, planes=4, bits=8)),
    (RESNET50, SplitDesign(split=2, planes=16, bits=8)),
    (RESNET50, SplitDesign(split=3, planes=16, bits=4)),
)
SUMS = SplitDesign(split=5, planes=10, bits=8)  # the first of Lite0's with a skip
NAMES = [f"{name}-l{design.split}-{design.kind}-u{design.bits}" for name, design in HEADS]


@pytest.fixture(scope="module")
def stepped_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, SplitDesign], SteppedFile]:
    """The float graph of a network's head, exported once. Not to be changed."""

    @cache
    def make(name: str, design: SplitDesign) -> SteppedFile:
        return SteppedFile(variant_of(name, network(name, design)), tmp_path_factory.mktemp("stepped"))

    return make


@pytest.fixture(scope="module")
def head_file(
    tmp_path_factory: pytest.TempPathFactory, stepped_file: Callable[[str, SplitDesign], SteppedFile]
) -> Callable[[str, SplitDesign], Path]:
    """The int8 head of a network, made once. Not to be changed."""

    @cache
    def make(name: str, design: SplitDesign) -> Path:
        variant = variant_of(name, network(name, design))
        return int8_head_of(variant, tmp_path_factory.mktemp("head"), stepped_file(name, design))

    return make


@pytest.mark.parametrize("low", [0.0, -0.05])
@pytest.mark.parametrize(("name", "design"), HEADS, ids=NAMES)
def test_stepped_and_fused_heads_are_the_head(name: str, design: SplitDesign, low: float) -> None:
    model = network(name, design, low=low)
    variant = variant_of(name, model)
    expected = reference(variant.head(fold=False), photographs(224)).astype(int)
    fused = reference(FusedHead(model, variant.input), photographs(224)).astype(int)
    assert (fused != expected).mean() <= 1e-3
    assert np.abs(fused - expected).max() <= 1
    stepped = SteppedHead(model, variant.input, whole=True)
    with torch.no_grad():
        steps = stepped(frames_to_pixels(torch.from_numpy(photographs(224)), stepped))
    lower, upper = stepped.lower[:, None, None], stepped.upper[:, None, None]
    got = torch.minimum(torch.maximum(torch.round(steps), lower), upper).numpy().astype(int)
    # ResNets' mean pixel is no whole number, and the border of the frame has to be one.
    share, most = (1e-3, 1) if stepped.border is None else (0.02, 12)
    assert (got != expected).mean() <= share
    assert np.abs(got - expected).max() <= most
    if stepped.border is not None:
        middle = np.s_[..., 12:-12, 12:-12] if expected.shape[-1] > 28 else np.s_[..., 9:-9, 9:-9]
        assert (got[middle] != expected[middle]).mean() <= 1e-3


@pytest.mark.parametrize(("name", "design"), HEADS, ids=NAMES)
def test_onnx_runtime_computes_all_of_it_in_integers(
    name: str, design: SplitDesign, head_file: Callable[[str, SplitDesign], Path], tmp_path: Path
) -> None:
    variant = variant_of(name, network(name, design))
    out = head_file(name, design)
    stored = onnx.load(str(out))
    convolutions = sum(node.op_type == "Conv" for node in stored.graph.node)
    fused = operators(out, tmp_path / "fused.onnx")
    assert fused["QLinearConv"] == convolutions > 0
    assert not fused.keys() & {"Conv", "FusedConv", "QuantizeLinear", "DequantizeLinear", "Cast", "Relu", "Add"}
    assert not fused.keys() & {"ConstantOfShape", "Min"}  # the border is folded when the file is loaded
    frames = photographs(224)
    with OnnxRuntimeRunner(out) as head:
        assert (head.input_shape, head.output_shape) == ((224, 224, 3), variant.planes)
        single = np.concatenate([head.infer(frame[None]) for frame in frames])
        np.testing.assert_array_equal(head.infer(frames), single)
    levels = 2**design.bits - 1
    assert single.max() <= levels
    difference = np.abs(single.astype(int) - reference(variant.head(fold=False), frames))
    assert difference.mean() <= (0.05 if design is STRIDED else 0.012) * levels  # nothing in it was trained


@pytest.mark.parametrize(("name", "design"), HEADS[2:6], ids=NAMES[2:6])
def test_its_weights_fit_every_processors_sums(
    name: str, design: SplitDesign, head_file: Callable[[str, SplitDesign], Path]
) -> None:
    model = onnx.load(str(head_file(name, design)))
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    made_by = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        if node.op_type == "Conv":
            weight = values[made_by[node.input[1]].input[0]].astype(int)
            groups = next((item.i for item in node.attribute if item.name == "group"), 1)
            assert values[made_by[node.input[1]].input[0]].dtype == np.int8
            assert weight.min() >= -127
            pairs = np.sort(np.abs(weight.reshape(len(weight), -1)))[:, -2:].sum(axis=1)
            assert groups > 1 or pairs.max() <= 128
            assert pairs.max() > 64  # they use the bits that they have


def test_tensors_of_a_sum_are_apart_by_powers_of_two(head_file: Callable[[str, SplitDesign], Path]) -> None:
    model = onnx.load(str(head_file(LITE0, SUMS)))
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    made_by = {node.output[0]: node for node in model.graph.node}
    (total,) = (node for node in model.graph.node if node.op_type == "Add")
    reader = next(node for node in model.graph.node if total.output[0] in node.input)
    scales = [float(values[made_by[name].input[1]]) for name in total.input]
    for scale in scales:
        exponent = float(np.log2(scale / values[reader.input[1]]))
        assert exponent == round(exponent)


def test_planes_keep_above_what_an_activation_lets_through(tmp_path: Path) -> None:
    """A range that begins below zero, after a ReLU: levels that no frame may reach, in integers as in float."""
    variant = variant_of(RESNET18, network(RESNET18, SplitDesign(split=1, planes=16, bits=8), low=-0.2))
    assert int(SteppedHead(variant.model, variant.input, whole=True).lower.min()) > 0
    out = int8_head_of(variant, tmp_path)
    with OnnxRuntimeRunner(out) as head:
        got = head.infer(photographs(224))
    expected = reference(variant.head(fold=False), photographs(224))
    np.testing.assert_array_equal(got.min(axis=(0, 2, 3)), expected.min(axis=(0, 2, 3)))


def test_corrected_biases_bring_the_planes_nearer(
    stepped_file: Callable[[str, SplitDesign], SteppedFile], tmp_path: Path
) -> None:
    variant, stepped = variant_of(LITE0, network(LITE0, SUMS)), stepped_file(LITE0, SUMS)
    found = gather_activations(stepped.path, partial(stepped.batches, photographs(224)))
    silent = type(found)(found.ranges, {name: (0.0,) * len(means) for name, means in found.means.items()})
    expected = reference(variant.head(fold=False), photographs(224)).astype(int)
    errors = []
    for number, activations in enumerate((found, silent)):
        out = tmp_path / f"{number}.onnx"
        int8_head(stepped.path, out, stepped.ends, activations)
        with OnnxRuntimeRunner(out) as head:
            shift = (head.infer(photographs(224)) - expected).mean(axis=(0, 2, 3))
        errors.append(np.abs(shift).mean())
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_ranges_around_what_it_saw(
    method: str, stepped_file: Callable[[str, SplitDesign], SteppedFile]
) -> None:
    stepped = stepped_file(*HEADS[1])
    batches = partial(stepped.batches, photographs(224))
    found, widest = (gather_activations(stepped.path, batches, name) for name in (method, "minmax"))
    assert found.ranges.keys() == widest.ranges.keys()
    for name, (low, high) in found.ranges.items():
        assert widest.ranges[name][0] - 1e-3 <= low <= high <= widest.ranges[name][1] + 1e-3
    pixels = np.concatenate(list(batches()))
    np.testing.assert_allclose(found.means["pixels"], pixels.mean(axis=(0, 2, 3)), rtol=1e-5)
    assert all(len(means) > 1 for means in found.means.values())


def test_what_cannot_be_calibrated_is_refused_by_name(stepped_file: Callable[[str, SplitDesign], SteppedFile]) -> None:
    stepped = stepped_file(*HEADS[0])
    with pytest.raises(SettingsError, match="no calibration method 'best'; choose one of minmax, percentile, entropy"):
        gather_activations(stepped.path, partial(stepped.batches, photographs(224)), "best")
    with pytest.raises(SettingsError, match="no photograph to calibrate on"):
        gather_activations(stepped.path, list, "minmax")
    with pytest.raises(ExportError, match=r"cannot calibrate .*steps.onnx"):
        gather_activations(stepped.path, lambda: [np.zeros((1, 3, 9, 9), np.float32)], "minmax")


def test_a_sigmoid_has_no_int8_head(tmp_path: Path) -> None:
    variant = variant_of(LITE0, network(LITE0, SplitDesign(kind="bottlenetpp", split=2, planes=4, bits=8)))
    with pytest.raises(ModelError, match="Sigmoid cannot come out of an integer kernel"):
        SteppedFile(variant, tmp_path)


def test_ranges_of_another_network_are_refused(
    stepped_file: Callable[[str, SplitDesign], SteppedFile], tmp_path: Path
) -> None:
    stepped, other = stepped_file(*HEADS[1]), stepped_file(*HEADS[2])
    found = gather_activations(stepped.path, partial(stepped.batches, photographs(224)), "minmax")
    with pytest.raises(ExportError, match="calibrate ranges"):
        int8_head(other.path, tmp_path / "int8.onnx", other.ends, found)
    assert not (tmp_path / "int8.onnx").exists()


def test_an_operator_without_an_int8_form_is_named(
    stepped_file: Callable[[str, SplitDesign], SteppedFile], tmp_path: Path
) -> None:
    stepped = stepped_file(*HEADS[1])
    found = gather_activations(stepped.path, partial(stepped.batches, photographs(224)), "minmax")
    model = onnx.load(str(stepped.path))
    last = model.graph.node[-1]
    last.output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Softsign", ["before"], ["steps"], "squash"))
    onnx.save(model, str(tmp_path / "softsign.onnx"))
    with pytest.raises(ExportError, match=r"a head with Softsign \(squash\) has no int8 form"):
        int8_head(tmp_path / "softsign.onnx", tmp_path / "int8.onnx", stepped.ends, found)


def operators(path: Path, fused: Path) -> "collections.Counter[str]":
    """What ONNX Runtime makes of the file on this machine."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(fused)
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(str(fused)).graph.node)
