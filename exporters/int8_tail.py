"""A fp32 tail -> the same in int8: explicit, symmetric Q/DQ, which TensorRT 10, 11 and RTX all read from the file.

Convolutions get int8 inputs and int8 weights; what they give stays float until the next one, so that an activation's
bounds are applied before it is rounded: on a tail of the zoo a third of the error of quantised outputs. Matrix
products, of which a tail has one at its end, become half: TensorRT-RTX has no fp32 product for Turing and makes none of
an int8 one there.
"""

from pathlib import Path
from typing import Any

import numpy as np

from aecnn_deploy.calibration.ranges import CalibrationFeed
from aecnn_deploy.errors import ExportError
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.base import Array

# Of the calibration's photographs, evenly chosen: 5 and 32 name the same classes on the zoo's tails but for 1 in 100.
MOST_IMAGES = 32
_QUANTISED, _HALVED = ["Conv"], ("Gemm", "MatMul")
_PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")  # else ONNX Runtime asks for what export has done
_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,  # TensorRT adds a float bias
    "OpTypesToExcludeOutputQuantization": _QUANTISED,
}


def int8_tail(source: Path, planes: Array, out: Path) -> None:
    """Write the fp32 tail ``source`` in int8 to ``out``, with the smallest and largest values that ``planes`` give.

    ``planes``: uint8 (N, C', h, w) of photographs; at most MOST_IMAGES of them are run. Input, output, metadata and
    opset are the source's. Raises ExportError: it has no convolution, ONNX Runtime cannot quantise it, or a weight has
    no half. MissingExtraError: onnx is not installed.
    """
    onnx = require("onnx", why="making a tail int8", extra="train")
    quantization = require("onnxruntime.quantization", why="making a tail int8", extra="train")
    model = onnx.load(str(source))
    if not any(node.op_type in _QUANTISED for node in model.graph.node):
        raise ExportError(f"{source.name} has no convolution to make int8; choose --precision fp16")
    properties = {item.key: item.value for item in model.metadata_props}
    onnx.helper.set_model_props(model, properties | dict([_PREPARED]))
    chosen = planes[np.linspace(0, len(planes) - 1, min(len(planes), MOST_IMAGES)).round().astype(int)]
    try:
        quantization.quantize_static(
            model,
            str(out),
            CalibrationFeed(model.graph.input[0].name, chosen),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_QUANTISED,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options=_OPTIONS,
        )
    except Exception as exc:  # onnx and ONNX Runtime raise their own classes, which share no base
        raise ExportError(f"ONNX Runtime cannot make {source.name} int8: {_one_line(exc)}") from exc
    quantised = onnx.load(str(out))
    onnx.helper.set_model_props(quantised, properties)
    _halve_products(onnx, quantised.graph, source.name)
    _check(onnx, quantised.graph, source.name)
    onnx.save_model(quantised, str(out))


def _halve_products(onnx: Any, graph: Any, name: str) -> None:
    """Each matrix product in float16, between casts. Raises ExportError: a weight is beyond its range."""
    weights, halves, nodes = {item.name: item for item in graph.initializer}, {}, []
    for node in graph.node:
        if node.op_type not in _HALVED:
            nodes.append(node)
            continue
        for index, value in enumerate(node.input):
            half = node.input[index] = f"{value}_half"
            if value in weights:
                halves[half] = _half_weight(onnx, weights[value], half, name)
            else:
                nodes.append(onnx.helper.make_node("Cast", [value], [half], to=onnx.TensorProto.FLOAT16))
        result, half = node.output[0], f"{node.output[0]}_half"
        node.output[0] = half
        nodes += [node, onnx.helper.make_node("Cast", [half], [result], to=onnx.TensorProto.FLOAT)]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {value for node in graph.node for value in node.input}
    kept = [item for item in weights.values() if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *halves.values()])
    del graph.value_info[:]  # of float32 where it is half now


def _half_weight(onnx: Any, tensor: Any, name: str, file: str) -> Any:
    with np.errstate(over="ignore"):
        half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
    if not np.isfinite(half).all():
        raise ExportError(f"{file} has a weight in {tensor.name} that float16 cannot hold; choose --precision fp32")
    return onnx.numpy_helper.from_array(half, name)


def _check(onnx: Any, graph: Any, name: str) -> None:
    """Raises ExportError: a weight is -128, which no symmetric quantiser makes, or a zero point is not 0."""
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            weight = constants.get(node.input[0], zero)
            if zero.dtype != np.int8 or zero.any() or (weight == -128).any():
                raise ExportError(
                    f"{name} came out with {zero.dtype} zero points or a weight of -128 at {node.name}, which TensorRT "
                    "refuses; use another onnxruntime release"
                )


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:300] or type(exc).__name__
