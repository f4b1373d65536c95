"""Scales of int8 heads that calibration does not choose: of both ends, of sums, and of tensors joined by channels."""

from typing import Any

import numpy as np

from aecnn_deploy.calibration.ranges import Activations
from aecnn_deploy.errors import ExportError
from aecnn_deploy.exporters.int8_weights import not_calibrated
from aecnn_deploy.optional import require

LEVELS = 255  # of an activation
_SMALLEST_RANGE = 1e-6


def fixed_scales(graph: Any, ranges: dict[str, tuple[float, float]], zero: int) -> dict[str, tuple[float, int]]:
    """Scale and zero point of the tensors that calibration does not choose: both ends, and the tensors of sums."""
    made_by = {node.output[0]: node for node in graph.node}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    last = graph.output[0].name
    while made_by[last].op_type == "MaxPool":  # takes the scale of its input
        last = made_by[last].input[0]
    fixed = {graph.input[0].name: (1.0, zero), last: (1.0, 0)}

    def quantised(name: str) -> str:
        """The tensor that is quantised in the place of ``name``: an activation is part of its operator."""
        while len(readers.get(name, [])) == 1 and readers[name][0].op_type in ("Relu", "Clip"):
            name = readers[name][0].output[0]
        return name

    for group in _sums(graph, quantised):
        natural = {name: _natural_scale(ranges, name) for name in group}
        base = 1.0 if last in group else max(natural.values())
        for name in group - {last}:
            scale = base * 2.0 ** float(np.ceil(np.log2(natural[name] / base) - 1e-6))
            fixed[name] = (scale, int(np.clip(round(-min(ranges[name][0], 0.0) / scale), 0, LEVELS)))
    return fixed


def _sums(graph: Any, quantised: Any) -> list[set[str]]:
    """The tensors that are added to each other, directly or through other sums."""
    groups: list[set[str]] = []
    for node in graph.node:
        if node.op_type == "Add":
            own = {quantised(name) for name in (*node.input, node.output[0])}
            touching = [group for group in groups if group & own]
            groups = [group for group in groups if not group & own] + [own.union(*touching)]
    return groups


def _natural_scale(ranges: dict[str, tuple[float, float]], name: str) -> float:
    if name not in ranges:
        raise not_calibrated(name)
    low, high = ranges[name]
    return max(max(high, 0.0) - min(low, 0.0), _SMALLEST_RANGE) / LEVELS


def balance_joins(
    graph: Any, fixed: dict[str, tuple[float, int]], activations: Activations
) -> dict[str, tuple[float, ...]]:
    """Give the two tensors of each Concat (a block's branch and its input) one scale; the means that then hold.

    The branch ends in ReLU or ReLU6, so its convolution's weights can be scaled until it fills the 255 levels of the
    input's scale, and the weights that read it scaled back: nothing is rounded for the join. Where the input has
    another zero point than 0, the branch keeps 0 and is read as if it had that one (``read_as_joined`` sees to it),
    which the reader's bias makes good. Changes ``graph``, and adds to ``fixed``. Raises ExportError: a branch of
    another kind, or a tensor that was not calibrated.
    """
    means = dict(activations.means)
    made_by = {node.output[0]: node for node in graph.node}
    for join in [node for node in graph.node if node.op_type == "Concat"]:
        branch, skip = join.input
        activation = made_by.get(branch)
        reader = next(node for node in graph.node if join.output[0] in node.input)
        if activation is None or activation.op_type not in ("Relu", "Clip") or reader.op_type != "Conv":
            raise ExportError(f"a join of {branch!r} without an activation has no int8 form; export the head in fp32")
        source = skip
        while source in made_by and made_by[source].op_type == "MaxPool":  # takes the scale of its input
            source = made_by[source].input[0]
        if source not in fixed:
            scale = _natural_scale(activations.ranges, source)
            fixed[source] = (scale, round(-min(activations.ranges[source][0], 0.0) / scale))
        scale, zero = fixed[source]
        fixed[branch], fixed[join.output[0]] = (scale, 0), (scale, zero)
        if branch not in activations.ranges:
            raise not_calibrated(branch)
        factor = LEVELS * scale / max(activations.ranges[branch][1], _SMALLEST_RANGE)
        _scale_branch(graph, made_by[activation.input[0]], activation, factor)
        channels = _scale_reader(graph, made_by[activation.input[0]], reader, factor, zero * scale)
        if join.output[0] in means:
            own = means[join.output[0]]
            means[join.output[0]] = (*(value * factor - zero * scale for value in own[:channels]), *own[channels:])
    return means


def _scale_branch(graph: Any, conv: Any, activation: Any, factor: float) -> None:
    """Multiply what ``conv`` gives, and the bounds of its activation."""
    onnx = require("onnx", why="int8 heads")
    values = {item.name: item for item in graph.initializer}
    for name in conv.input[1:]:
        scaled = onnx.numpy_helper.to_array(values[name]) * np.float32(factor)
        values[name].CopyFrom(onnx.numpy_helper.from_array(scaled, name))
    if activation.op_type == "Clip" and len(activation.input) == 3:  # other activations may share the bound
        bound = onnx.numpy_helper.to_array(values[activation.input[2]]) * np.float32(factor)
        activation.input[2] = f"{activation.output[0]}.most"
        graph.initializer.append(onnx.numpy_helper.from_array(bound, activation.input[2]))


def _scale_reader(graph: Any, conv: Any, reader: Any, factor: float, shift: float) -> int:
    """Divide the weights with which ``reader`` reads what ``conv`` gives, its first inputs; how many these are.

    ``shift``: by how much less these inputs are read.
    """
    onnx = require("onnx", why="int8 heads")
    values = {item.name: item for item in graph.initializer}
    channels = int(values[conv.input[1]].dims[0])
    weight = onnx.numpy_helper.to_array(values[reader.input[1]]).copy()
    weight[:, :channels] /= np.float32(factor)
    values[reader.input[1]].CopyFrom(onnx.numpy_helper.from_array(weight, reader.input[1]))
    if shift:
        if weight.shape[2:] != (1, 1):
            raise ExportError(
                "a join of a linear tensor that is read by more than 1×1 has no int8 form; export in fp32"
            )
        added = np.float32(shift) * weight[:, :channels].sum(axis=(1, 2, 3))
        if len(reader.input) == 2:
            reader.input.append(f"{reader.input[1]}.joined")
            graph.initializer.append(onnx.numpy_helper.from_array(added, reader.input[2]))
        else:
            bias = onnx.numpy_helper.to_array(values[reader.input[2]]) + added
            values[reader.input[2]].CopyFrom(onnx.numpy_helper.from_array(bias, reader.input[2]))
    return channels


def read_as_joined(graph: Any) -> None:
    """Let the branch of each Concat of a graph with Q/DQ be read with the zero point of what it is joined to."""
    made_by = {node.output[0]: node for node in graph.node}
    for join in [node for node in graph.node if node.op_type == "Concat"]:
        branch, skip = (made_by[name] for name in join.input)
        branch.input[2] = skip.input[2]
