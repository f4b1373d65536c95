"""Operators that torch, onnx, onnxslim or ONNX Runtime cannot handle: one line that names node and operator."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxslim
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from aecnn_deploy.errors import ExportError, UnsupportedOpError
from aecnn_deploy.exporters import onnx_file
from aecnn_deploy.exporters.onnx_export import export_onnx
from aecnn_deploy.exporters.onnx_file import Signature, check_loads, write_onnx
from aecnn_deploy.exporters.onnx_options import DEFAULTS, OnnxOptions
from tests.small_models import Head, SmallRun, SmallVariant, Tail, export_small

SIGNATURE = Signature(("planes", "logits"), ((4, 8, 8), (4, 8, 8)))


@torch.library.custom_op("aecnn_test::swirl", mutates_args=())
def swirl(x: Tensor) -> Tensor:
    return x.flip(0)


@swirl.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("aecnn_test::shapeless", mutates_args=())
def shapeless(x: Tensor) -> Tensor:
    return x.flip(0)


class Swirling(Tail):
    def forward(self, planes: Tensor) -> Tensor:
        return swirl(super().forward(planes))


class Shapeless(Tail):
    def forward(self, planes: Tensor) -> Tensor:
        return shapeless(super().forward(planes))


class Gamma(Tail):
    def forward(self, planes: Tensor) -> Tensor:
        return super().forward(planes) + torch.lgamma(planes.float() + 1).mean((1, 2, 3))[:, None]


class Branching(Tail):
    def forward(self, planes: Tensor) -> Tensor:
        logits = super().forward(planes)
        return logits if logits.sum() > 0 else -logits


class Reading(Tail):
    def forward(self, planes: Tensor) -> Tensor:
        logits = super().forward(planes)
        return logits * float(logits.sum().item())


class Foreign(Tail):
    def forward(self, planes: Tensor) -> Tensor:
        logits = super().forward(planes)
        foreign: Tensor = torch.onnx.ops.symbolic(
            "vendor::Swirl", [logits], dtype=logits.dtype, shape=logits.shape, version=1
        )
        return foreign


class Doubles(Tail):
    """ONNX Runtime has an Atanh for float32 only."""

    def forward(self, planes: Tensor) -> Tensor:
        return super().forward(planes) + torch.atanh(planes.double() / 300).float().mean((1, 2, 3))[:, None]


CASES = [
    (Swirling, "cannot translate", "aecnn_test.swirl.default", "swirl"),
    (Gamma, "cannot translate", "prims.lgamma.default", "lgamma"),
    (Shapeless, "cannot capture", "aecnn_test::shapeless", "Shapeless.forward, line "),
    (Branching, "cannot capture", "aten.item.default", "Branching.forward, line "),
    (Reading, "cannot capture", "aten.item.default", "Reading.forward, line "),
    (Foreign, "no runtime can run", "vendor::Swirl", "node__symbolic"),
    (Doubles, "ONNX Runtime", "Atanh", "node_atanh"),
]


@pytest.mark.parametrize(("module", "who", "op", "node"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_module_is_refused_by_operator_and_node_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], module: type[Tail], who: str, op: str, node: str
) -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        export_onnx(
            module().eval(), "tail", tmp_path / "t.onnx", input_shape=(4, 8, 8), output_shape=(3,), properties={}
        )
    error, message = caught.value, str(caught.value)
    assert (error.file, error.op) == ("t.onnx", op)
    assert error.node.startswith(node)
    assert who in message
    assert f"t.onnx: the operator {op} at node {error.node}: " in message
    assert "\n" not in message
    assert len(message) < 700
    assert capfd.readouterr() == ("", "")  # torch prints its half graph, with this machine's paths


def test_an_export_that_meets_one_leaves_no_bundle(tmp_path: Path) -> None:
    class Swirled(Head):
        def forward(self, frames: Tensor) -> Tensor:
            return swirl(super().forward(frames))

    class Variant(SmallVariant):
        def head(self, *, fold: bool = True) -> nn.Module:
            return Swirled()

    with pytest.raises(UnsupportedOpError, match=r"small-l1-v1-u8\.onnx: the operator aecnn_test\.swirl"):
        export_small(SmallRun((Variant(),)), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_module_itself_is_named_by_its_line(tmp_path: Path) -> None:
    class Broken(Tail):
        def forward(self, planes: Tensor) -> Tensor:
            raise ValueError("these planes are no good")

    with pytest.raises(ExportError, match=r"at Broken\.forward, line \d+ of .*: these planes are no good") as caught:
        export_onnx(Broken(), "tail", tmp_path / "t", input_shape=(4, 8, 8), output_shape=(3,), properties={})
    assert not isinstance(caught.value, UnsupportedOpError)


def graph_of(op: str, *, domain: str = "", kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """planes (uint8) -> Cast -> ``op`` -> Cast -> logits."""
    nodes = [
        helper.make_node("Cast", ["planes"], ["values"], name="enter", to=kind),
        helper.make_node(op, ["values"], ["results"], name="the_node", domain=domain),
        helper.make_node("Cast", ["results"], ["logits"], name="leave", to=TensorProto.FLOAT),
    ]
    shape = ["batch", 4, 8, 8]
    ends = [("planes", TensorProto.UINT8), ("logits", TensorProto.FLOAT)]
    inputs, outputs = ([helper.make_tensor_value_info(name, type_, shape)] for name, type_ in ends)
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=opsets, ir_version=DEFAULTS.ir_version
    )


@pytest.mark.parametrize(
    ("op", "domain", "kind", "named"),
    [
        ("Swirl", "vendor", TensorProto.FLOAT, "vendor::Swirl"),
        ("Swirl", "", TensorProto.FLOAT, "Swirl"),
        ("Atanh", "", TensorProto.DOUBLE, "Atanh"),
    ],
)
def test_onnx_runtime_has_no_such_operator(tmp_path: Path, op: str, domain: str, kind: int, named: str) -> None:
    path = tmp_path / "t.onnx"
    onnx.save(graph_of(op, domain=domain, kind=kind), str(path))
    with pytest.raises(UnsupportedOpError, match=r"ONNX Runtime \S+ cannot run") as caught:
        check_loads(path)
    assert (caught.value.file, caught.value.op, caught.value.node) == ("t.onnx", named, "the_node")
    assert "ONNXRuntimeError" not in str(caught.value)


def test_onnxs_converter_names_what_it_cannot_lower(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOpError, match="choose another --opset; 18 needs no conversion") as caught:
        write_onnx(graph_of("Mish"), tmp_path / "t.onnx", SIGNATURE, OnnxOptions(opset=17), {})
    assert (caught.value.op, caught.value.node) == ("Mish", "the_node")


def test_what_stops_onnxslim_is_named_and_remedied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(model: onnx.ModelProto) -> onnx.ModelProto:
        raise ValueError("no shape function for Relu (the_node)\nTraceback")

    monkeypatch.setattr(onnx_file, "require", lambda name, **_: SimpleNamespace(slim=stop, __version__="0"))
    with pytest.raises(UnsupportedOpError, match=r"Traceback; leave out --simplify") as caught:
        onnx_file._slim(graph_of("Relu"), "t.onnx")
    assert (caught.value.op, caught.value.node) == ("Relu", "the_node")
    assert "\n" not in str(caught.value)


def test_onnxslim_keeps_the_graph_that_it_is_given(tmp_path: Path) -> None:
    model = graph_of("Relu")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "nobody_reads_this"))
    before = model.SerializeToString(deterministic=True)
    slim = onnx_file._slim(model, "t.onnx")
    assert model.SerializeToString(deterministic=True) == before
    assert not slim.graph.initializer
    assert onnxslim.__version__
