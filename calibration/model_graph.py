"""The graph of an unsplit model: multiply-adds of its nodes, and the places where one tensor alone crosses."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aecnn_deploy.errors import PlanError
from aecnn_deploy.optional import require
from aecnn_deploy.planning.profiles import CutFeatures, GraphNode

_WHY = "reading a model's graph"
_ITEM_BYTES: Mapping[int, int] = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8}  # ONNX's element types
_FLOAT = 1


@dataclass(frozen=True, slots=True)
class ModelGraph:
    """One image's way through a model. ``proto``: an ``onnx.ModelProto`` with all shapes, for a batch of one."""

    proto: Any
    nodes: dict[str, GraphNode]
    macs: dict[str, int]
    cuts: list[CutFeatures]

    @property
    def total_macs(self) -> int:
        return sum(self.macs.values())


def read_graph(path: Path) -> ModelGraph:
    """The graph of the ONNX file ``path``, which has one input and one output, both with a batch axis first.

    Multiply-adds are counted of Conv, Gemm and MatMul. Nodes that do not depend on the image are left out. Nodes
    without a name get ONNX Runtime's: the operator and the index. Raises MissingExtraError: there is no ``onnx``.
    PlanError: the file is no such model, or has a shape that cannot be told.
    """
    onnx = require("onnx", why=_WHY, extra="plan")
    try:
        proto = onnx.load(str(path))
        if len(proto.graph.input) != 1 or len(proto.graph.output) != 1:
            raise PlanError(
                f"{path} has {len(proto.graph.input)} inputs and {len(proto.graph.output)} outputs, not 1, 1"
            )
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except PlanError:
        raise
    except Exception as exc:  # protobuf's and onnx's errors share no base
        raise PlanError(f"{path} cannot be read as an ONNX model: {str(exc)[:200]}; export the bundle again") from exc
    return _Walk(path, proto).result()


class _Walk:
    """Goes through the nodes once, in their topological order."""

    def __init__(self, path: Path, proto: Any) -> None:
        graph = proto.graph
        self._path, self._proto, self._graph = path, proto, graph
        self._input, self._output = graph.input[0].name, graph.output[0].name
        self._constants = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        self._types: dict[str, tuple[int, list[int]]] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type
            self._types[value.name] = (kind.elem_type, [dim.dim_value for dim in kind.shape.dim])

    def result(self) -> ModelGraph:
        nodes: dict[str, GraphNode] = {}
        macs: dict[str, int] = {}
        dynamic = [
            (node.name or f"{node.op_type}_{index}", node)
            for index, node in enumerate(self._graph.node)
            if self._depends_on_the_image(node)
        ]
        uses = {self._output: 1}
        for _, node in dynamic:
            for tensor in set(_read_by(node)):
                uses[tensor] = uses.get(tensor, 0) + 1
        live = {self._input}
        groups: dict[tuple[int, int], list[CutFeatures]] = {}
        for name, node in dynamic:
            written = [tensor for tensor in node.output if tensor]
            nodes[name] = GraphNode(_kind(node, self._constants), written[0], sum(map(self._bytes, written)))
            macs[name] = self._macs(node)
            live.update(tensor for tensor in written if uses.get(tensor))
            for tensor in set(_read_by(node)) & uses.keys():
                uses[tensor] -= 1
            live = {tensor for tensor in live if uses.get(tensor)}
            if live == {written[0]} and (cut := self._cut(name, written[0], sum(macs.values()))) is not None:
                groups.setdefault((math.prod(cut.shape), cut.macs), []).append(cut)
        return ModelGraph(self._proto, nodes, macs, [_best_of(group) for group in groups.values()])

    def _depends_on_the_image(self, node: Any) -> bool:
        if any(tensor and tensor not in self._constants for tensor in _read_by(node)):
            return True
        self._constants.update((tensor, self._types.get(tensor, (0, []))[1]) for tensor in node.output)
        return False

    def _cut(self, name: str, tensor: str, macs: int) -> CutFeatures | None:
        """The cut after ``tensor``; None where it is the output, no float32 batch, or no less than the image itself."""
        kind, shape = self._types[tensor]
        if tensor == self._output or kind != _FLOAT or len(shape) < 2 or shape[0] != 1:
            return None
        if macs == 0 and math.prod(shape) >= math.prod(self._shape(self._input)):
            return None
        return CutFeatures(after=name, tensor=tensor, shape=shape[1:], macs=macs)

    def _shape(self, tensor: str) -> list[int]:
        shape = self._constants.get(tensor) or self._types.get(tensor, (0, []))[1]
        if not shape or 0 in shape:
            raise PlanError(f"{self._path}: the shape of {tensor!r} cannot be told; export the bundle again")
        return shape

    def _bytes(self, tensor: str) -> int:
        kind, shape = self._types.get(tensor, (0, []))
        return _ITEM_BYTES.get(kind, 4) * math.prod(shape)

    def _macs(self, node: Any) -> int:
        if node.op_type == "Conv":
            return math.prod(self._shape(node.output[0])) * math.prod(self._shape(node.input[1])[1:])
        if node.op_type in ("Gemm", "MatMul"):
            transposed = any(item.name == "transA" and item.i for item in node.attribute)
            return math.prod(self._shape(node.output[0])) * self._shape(node.input[0])[0 if transposed else -1]
        return 0


def _best_of(group: list[CutFeatures]) -> CutFeatures:
    """Of cuts between which nothing is multiplied and nothing shrinks, the last one that still has planes."""
    planes = [cut for cut in group if len(cut.shape) == 3]
    return (planes or group)[-1]


def _kind(node: Any, constants: Mapping[str, list[int]]) -> str:
    """The operator; a convolution with a filter of its own for every channel is of another kind than the others."""
    weight = constants.get(node.input[1], []) if node.op_type == "Conv" else []
    return "depthwise Conv" if len(weight) > 2 and weight[1] == 1 and weight[0] > 1 else str(node.op_type)


def _read_by(node: Any) -> Iterator[str]:
    """The tensors that ``node`` reads, those of its bodies included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            inner = {tensor for each in graph.node for tensor in each.output} | {value.name for value in graph.input}
            inner |= {tensor.name for tensor in graph.initializer}
            for each in graph.node:
                yield from (tensor for tensor in _read_by(each) if tensor not in inner)
