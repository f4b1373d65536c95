"""Weights of int8 heads: a scale for each filter, and what rounding takes from the biases."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from aecnn_deploy.errors import ExportError
from aecnn_deploy.optional import require

# How weights become integers. "reduced" and "unsigned" are as exact on every processor; they are here to be compared:
# -64 to 64 costs accuracy, 0 to 255 around 128 the fast kernels.
Weights = Literal["pairs", "reduced", "unsigned"]
_MOST = 127  # of a weight
_PAIR = 128  # of two weights of a filter
_SMALLEST_SCALE = 1e-9


def not_calibrated(name: str) -> ExportError:
    return ExportError(f"the calibrated ranges have no tensor {name!r}; run: aecnn-deploy calibrate ranges")


def weight_scales(graph: Any, weights: Weights) -> dict[str, npt.NDArray[np.float32]]:
    """The scale of each filter, by the weight's name."""
    onnx = require("onnx", why="int8 heads")
    values = {item.name: item for item in graph.initializer}
    scales = {}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        weight = onnx.numpy_helper.to_array(values[node.input[1]])
        sizes = np.sort(np.abs(weight.reshape(len(weight), -1)), axis=1)
        scale = sizes[:, -1] / (_PAIR // 2 if weights == "reduced" else _MOST)
        if weights == "pairs" and _groups(node) == 1 and sizes.shape[1] > 1:
            # One less than the limit: both may be rounded up by half.
            scale = np.maximum(scale, (sizes[:, -1] + sizes[:, -2]) / (_PAIR - 1))
        scales[node.input[1]] = np.maximum(scale, _SMALLEST_SCALE).astype(np.float32)
    return scales


def _groups(node: Any) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "group"), 1)


def weight_override(scales: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    """For ONNX Runtime's quantiser: one entry a filter, whose limits give the scale."""
    entries: list[dict[str, Any]] = [
        {"rmin": -_MOST * scale, "rmax": _MOST * scale, "symmetric": True, "reduce_range": False} for scale in scales
    ]
    entries[0]["axis"] = 0
    return entries


def correct_biases(graph: Any, scales: dict[str, npt.NDArray[np.float32]], means: dict[str, tuple[float, ...]]) -> None:
    """Take from each bias by how much the rounded weights are off for the mean of what they read."""
    onnx = require("onnx", why="int8 heads")
    values = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        if node.input[0] not in means:
            raise not_calibrated(node.input[0])
        weight = onnx.numpy_helper.to_array(values[node.input[1]]).astype(np.float64)
        scale = scales[node.input[1]].astype(np.float64)[:, np.newaxis, np.newaxis, np.newaxis]
        error = (np.round(weight / scale).clip(-_MOST, _MOST) * scale - weight).sum(axis=(2, 3))  # filters × inputs
        inputs = np.asarray(means[node.input[0]]).reshape(_groups(node), -1)
        shift = (error.reshape(len(inputs), -1, error.shape[1]) @ inputs[:, :, np.newaxis]).reshape(-1)
        if len(node.input) == 2:
            node.input.append(f"{node.input[1]}.shift")
            bias = np.zeros(len(weight))
        else:
            bias = onnx.numpy_helper.to_array(values[node.input[2]])
            graph.initializer.remove(values[node.input[2]])
        graph.initializer.append(onnx.numpy_helper.from_array((bias - shift).astype(np.float32), node.input[2]))


def check_weights(model: Any, name: str) -> None:
    """Raises ExportError: weights whose products do not fit into every processor's sums."""
    onnx = require("onnx", why="int8 heads")
    values = {item.name: item for item in model.graph.initializer}
    made_by = {node.output[0]: node for node in model.graph.node}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        weight = onnx.numpy_helper.to_array(values[made_by[node.input[1]].input[0]]).astype(np.int32)
        sizes = np.sort(np.abs(weight.reshape(len(weight), -1)), axis=1)
        pair = 0 if _groups(node) > 1 else int(sizes[:, -2:].sum(axis=1).max())
        if weight.min() < -_MOST or pair > _PAIR:
            raise ExportError(
                f"{name}: the weights of {node.name} reach {weight.min()}, two of a filter {pair} together; "
                f"only {-_MOST} and {_PAIR} are exact on every processor; report the onnxruntime release"
            )
