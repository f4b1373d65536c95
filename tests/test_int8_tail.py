"""int8 tails: what stands in the file, what they cost in accuracy, and engines from them, really built for Turing."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from aecnn_deploy.bundle.manifest import ENGINE_SOURCES, ONNX_INT8
from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.errors import ExportError, SettingsError, VerificationError
from aecnn_deploy.exporters.engines import Target, build_engine
from aecnn_deploy.exporters.int8_tail import MOST_IMAGES, int8_tail
from aecnn_deploy.exporters.onnx_export import export_onnx
from aecnn_deploy.exporters.onnx_options import MAX_IR_VERSION, OPSET
from aecnn_deploy.models.backbones import BACKBONES, build_backbone
from aecnn_deploy.models.deploy import DeviceHead, EdgeTail
from aecnn_deploy.models.split import pruned_split
from aecnn_deploy.runtimes.engine_header import read_engine_header
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.samples import verify_bundle
from aecnn_deploy.runtimes.verification import LOGIT_TOLERANCE
from aecnn_deploy.zoo import zoo_bundle
from tests.small_models import SmallRun, SmallVariant, Tail, export_small, photographs, usual_small

CLASSES = 101
SPLITS = {"resnet50": 1, "resnet18": 3, "efficientnet_lite0": 5}
BATCH = (1, 3, 11)


def planes_of(bundle: Any, variant: Any, size: int = 224) -> np.ndarray[Any, Any]:
    with OnnxRuntimeRunner(bundle.file(variant.head)) as head:
        return head.infer(photographs(size))


def infer(path: Path, planes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with OnnxRuntimeRunner(path) as runner:
        return runner.infer(planes)


@pytest.fixture(scope="module", params=sorted(BACKBONES))
def tails(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tails of an untrained backbone in all three precisions, and planes of its head: {"planes", "fp32", ...}."""
    torch.manual_seed(0)
    backbone = build_backbone(request.param, CLASSES)
    split = SPLITS[request.param]
    channels = backbone.split_point(split).channels
    model = pruned_split(backbone, split, torch.arange(0, channels, 16), 8)
    frames, head = torch.from_numpy(photographs(224)), DeviceHead(model, backbone.input)
    model.quantiser.calibrate(head.head(head.normalise(frames)))
    planes = DeviceHead(model, backbone.input)(frames).numpy()
    folder = tmp_path_factory.mktemp(request.param)
    for name, half in (("fp32", False), ("fp16", True)):
        export_onnx(
            EdgeTail(model, half=half),
            "tail",
            folder / name,
            input_shape=planes.shape[1:],
            output_shape=(CLASSES,),
            properties={"aecnn.variant": "v"},
        )
    int8_tail(folder / "fp32", planes, folder / "int8")
    return {"planes": planes, "backbone": request.param} | {name: folder / name for name in ENGINE_SOURCES}


def test_every_backbone_builds_for_turing_in_fp16_and_int8(tails: dict[str, Any], tmp_path: Path) -> None:
    """ResNet-50 is split at its first point. Header and profile are read from the engine, the rest from its source."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    planes = tails["planes"].shape[1:]
    for precision in ("fp16", "int8"):
        out = tmp_path / f"{precision}.engine"
        target = Target("tensorrt-rtx", "sm75", precision=precision)
        spec = build_engine(tails[precision], out, target, name=out.name, precision=precision, batch=BATCH)
        header, content = read_engine_header(out), out.read_bytes()
        assert (header.architectures, header.version) == (("sm75",), trt.__version__)
        assert (spec.architectures, spec.precision, spec.batch) == (("sm75",), precision, BATCH)
        assert b"planes" in content
        assert b"logits" in content
        shapes = [content.index(struct.pack("<4q", size, *planes)) for size in BATCH]  # the profile, as int64 shapes
        assert shapes == sorted(shapes)
        log = trt.Logger(trt.Logger.ERROR)
        network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        assert trt.OnnxParser(network, log).parse(tails[precision].read_bytes())
        source, result = network.get_input(0), network.get_output(0)
        assert (network.num_inputs, network.num_outputs) == (1, 1)
        assert (source.name, source.dtype, tuple(source.shape)) == ("planes", trt.uint8, (-1, *planes))
        assert (result.name, result.dtype, tuple(result.shape)) == ("logits", trt.float32, (-1, CLASSES))


def test_an_int8_tail_is_explicit_symmetric_and_reads_everywhere(tails: dict[str, Any]) -> None:
    model = onnx.load(str(tails["int8"]))
    onnx.checker.check_model(model, full_check=True)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
    assert model.ir_version <= MAX_IR_VERSION
    assert {item.key: item.value for item in model.metadata_props} == {"aecnn.variant": "v"}
    made_by = {value: node for node in model.graph.node for value in node.output}
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv":
            inputs = [made_by[value] for value in node.input[:2]]
            assert {item.op_type for item in inputs} == {"DequantizeLinear"}
            for value in inputs[1].input:
                assert value in constants
            weight, scale, zero = (constants[value] for value in inputs[1].input)
            assert (weight.dtype, scale.shape, zero.any()) == (np.int8, (weight.shape[0],), False)
            assert weight.min() >= -127
            assert {constants[value].dtype for value in node.input[2:]} <= {np.dtype(np.float32)}  # the bias
        if node.op_type == "QuantizeLinear":
            zero = constants[node.input[2]]
            assert (zero.dtype, zero.shape, int(zero)) == (np.int8, (), 0)
        if node.op_type == "Gemm":
            assert {constants[value].dtype for value in node.input[1:]} == {np.dtype(np.float16)}
    first = next(node for node in model.graph.node if "planes" in node.input)
    assert first.op_type == "Cast"


def test_an_int8_tail_gives_nearly_what_fp32_gives_at_any_batch(tails: dict[str, Any]) -> None:
    planes, expected = tails["planes"], infer(tails["fp32"], tails["planes"])
    got = infer(tails["int8"], planes)
    scale = np.abs(expected).max()
    assert 0 < np.abs(got - expected).max() / scale < LOGIT_TOLERANCE["int8"]
    single = np.concatenate([infer(tails["int8"], planes[index : index + 1]) for index in range(len(planes))])
    assert np.abs(got - single).max() < 1e-2 * scale


def test_a_trained_tail_in_int8_names_the_same_classes(tmp_path: Path) -> None:
    bundle = open_bundle(zoo_bundle("caltech101-lite0"))
    variant = bundle.manifest.variants[0]
    planes = planes_of(bundle, variant)
    source = bundle.file(variant.tails["onnxruntime"])
    int8_tail(source, planes[:3], tmp_path / "int8.onnx")
    expected, got = infer(source, planes), infer(tmp_path / "int8.onnx", planes)
    assert (expected.argmax(axis=1) == got.argmax(axis=1)).all()
    assert np.abs(got - expected).max() / np.abs(expected).max() < LOGIT_TOLERANCE["int8"]
    assert (tmp_path / "int8.onnx").stat().st_size < 0.4 * source.stat().st_size


def test_export_writes_and_verifies_an_int8_tail_and_the_same_run_gives_the_same_one(tmp_path: Path) -> None:
    bundle = open_bundle(usual_small(tails=("int8",)))
    first = bundle.manifest
    (spec,) = first.variants
    assert spec.tails[ONNX_INT8] == "tails/small-l1-v1-u8.int8.onnx"
    assert spec.tails.keys() == {"onnxruntime", ONNX_INT8}
    measured = first.measurements["verification"][spec.tails[ONNX_INT8]]
    assert (measured["precision"], measured["tolerance"]) == ("int8", LOGIT_TOLERANCE["int8"])
    assert measured["largest_difference"] > 0
    checks = {check.file: check for check in verify_bundle(bundle)}
    verified = checks[spec.tails[ONNX_INT8]].verified
    assert verified is not None
    assert verified.precision == "int8"
    assert export_small(SmallRun(), tmp_path / "again", tails=("int8",)).bundle_id == first.bundle_id


def test_an_int8_tail_that_is_far_off_says_what_to_do_and_leaves_no_bundle(tmp_path: Path) -> None:
    """One channel is 10,000 times as large as the one that decides, and 127 steps hold both."""

    class Uneven(Tail):
        def forward(self, planes: Tensor) -> Tensor:
            scale = torch.tensor([1e-3, 0.0, 0.0, 10.0])[:, None, None]
            logits: Tensor = self.net(planes.float() * scale)
            return logits

    class Variant(SmallVariant):
        def tail(self, *, half: bool = False, fold: bool = True) -> nn.Module:
            tail = Uneven()
            tail.net[0].weight *= torch.tensor([1e3, 0.0, 0.0, 0.0])[:, None, None]
            return tail

    with pytest.raises(VerificationError, match=r"tolerance 0\.2; .*--images.*or choose --precision fp16") as caught:
        export_small(SmallRun((Variant(),)), tmp_path / "bundle", tails=("int8",))
    assert caught.value.file == "tails/small-l1-v1-u8.int8.onnx"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_names_the_known_ones_before_anything_is_exported(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'fp8'; choose one of fp16, int8, fp32"):
        export_small(SmallRun(), tmp_path / "bundle", tails=("fp8",))


def test_a_weight_that_float16_cannot_hold_is_named(tmp_path: Path) -> None:
    class Huge(SmallVariant):
        def tail(self, *, half: bool = False, fold: bool = True) -> nn.Module:
            tail = Tail()
            tail.net[4].weight.fill_(1e6)
            return tail

    with pytest.raises(ExportError, match="float16 cannot hold; choose --precision fp32"):
        export_small(SmallRun((Huge(),)), tmp_path / "bundle", tails=("int8",))


def test_a_tail_without_a_convolution_is_refused_by_that_name(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["planes"], ["logits"], to=TensorProto.FLOAT)],
        "tail",
        [helper.make_tensor_value_info("planes", TensorProto.UINT8, ["batch", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
    )
    onnx.save(helper.make_model(graph), str(tmp_path / "t.onnx"))
    with pytest.raises(ExportError, match=r"t\.onnx has no convolution .* --precision fp16"):
        int8_tail(tmp_path / "t.onnx", np.zeros((1, 3), np.uint8), tmp_path / "out")


def test_no_more_photographs_are_run_than_ranges_need(tmp_path: Path) -> None:
    """Evenly chosen: the first and the last are among them, so their extremes count."""
    export_onnx(Tail(), "tail", tmp_path / "t", input_shape=(4, 8, 8), output_shape=(3,), properties={})
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 64, (3 * MOST_IMAGES, 4, 8, 8), np.uint8)
    ends = planes.copy()
    ends[-1] = 255
    int8_tail(tmp_path / "t", planes, tmp_path / "dim")
    int8_tail(tmp_path / "t", ends, tmp_path / "bright")
    assert (tmp_path / "dim").read_bytes() != (tmp_path / "bright").read_bytes()
