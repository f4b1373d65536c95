"""A head for integer kernels: Q/DQ in ONNX, frames in and planes out as they are, nothing rounded twice.

The graph is made of a SteppedHead (aecnn_deploy/models/stepped.py), whose output is in steps of the wire: quantised
with scale 1 and zero point 0 that output *is* the planes. Results are the same to the bit on every processor:

- x86 without VNNI adds pairs of products (uint8 times int8) in 16 bits, which saturate. So any two weights of a filter
  are at most 128 apart from zero together; a filter keeps 8 bits where one weight stands out, 7 where all are alike.
  Depthwise convolutions have kernels of their own, which add in 32 bits, and keep 8 bits. No weight is -128: two
  products of -128 and -128 overflow 16 bits on ARM cores without dot products.
- ONNX Runtime adds two tensors in float32, some kernels with fused multiply-adds. The scales of the tensors of a sum
  are apart by powers of two, which makes each of these operations exact.

What rounding the weights shifts a channel by, on average over photographs, is taken off its bias (Nagel et al. 2019,
"Data-free quantization through weight equalization and bias correction", with measured means).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aecnn_deploy.calibration.ranges import OPERATORS, Activations
from aecnn_deploy.errors import ExportError
from aecnn_deploy.exporters.int8_scales import LEVELS, balance_joins, fixed_scales, read_as_joined
from aecnn_deploy.exporters.int8_weights import (
    Weights,
    check_weights,
    correct_biases,
    weight_override,
    weight_scales,
)
from aecnn_deploy.exporters.onnx_export import IO_NAMES
from aecnn_deploy.exporters.onnx_file import BATCH, Signature, write_onnx
from aecnn_deploy.exporters.onnx_options import DEFAULTS, OnnxOptions
from aecnn_deploy.optional import require

_FRAME, _PLANES = IO_NAMES["head"]
_PIXELS, _STEPS = IO_NAMES["steps"]


@dataclass(frozen=True, slots=True)
class HeadEnds:
    """What stands before and after a SteppedHead's graph.

    ``zero``: what its pixels are taken less of; ``border``: uint8 (H', W', 3) or None, the frame's surroundings;
    ``lower`` and ``upper``: uint8 (C',), between which the planes lie.
    """

    frame: tuple[int, int, int]
    planes: tuple[int, int, int]
    zero: int
    border: npt.NDArray[np.uint8] | None
    lower: npt.NDArray[np.uint8]
    upper: npt.NDArray[np.uint8]


def int8_head(
    stepped: Path,
    out: Path,
    ends: HeadEnds,
    activations: Activations,
    weights: Weights = "pairs",
    options: OnnxOptions = DEFAULTS,
) -> None:
    """Write the int8 head of ``stepped`` (export_onnx's part "steps", of opset 18) to ``out``.

    ``activations``: gather_activations of ``stepped``. ``options.simplify`` changes nothing: onnxslim would fold
    quantised weights back to float. Raises ExportError: a tensor has no range, an operator no int8 form, or weights
    came out that are not exact on every processor.
    """
    onnx = require("onnx", why="int8 heads")
    model = onnx.load(str(stepped))
    properties = {item.key: item.value for item in model.metadata_props}
    _quantise(model, activations, ends.zero, weights)
    _open_input(model.graph, ends, options.batch or BATCH)
    _close_output(model.graph, ends, options.batch or BATCH)
    require("onnxruntime.quantization.onnx_model", why="int8 heads", extra="train").ONNXModel(model).topological_sort()
    for item in [item for item in model.opset_import if item.domain]:
        model.opset_import.remove(item)
    if weights != "unsigned":
        check_weights(model, out.name)
    signature = Signature((_FRAME, _PLANES), (ends.frame, ends.planes))
    write_onnx(model, out, signature, replace(options, simplify=False), properties)


def _quantise(model: Any, activations: Activations, zero: int, weights: Weights) -> None:
    """Q/DQ around every operator, in place."""
    quantization = require("onnxruntime.quantization", why="int8 heads", extra="train")
    calibrate = require("onnxruntime.quantization.calibrate", why="int8 heads", extra="train")
    quantizer = require("onnxruntime.quantization.qdq_quantizer", why="int8 heads", extra="train")
    _check_operators(model.graph)
    method, ranges = quantization.CalibrationMethod.MinMax, activations.ranges
    fixed = fixed_scales(model.graph, ranges, zero)
    means = balance_joins(model.graph, fixed, activations)
    scales = weight_scales(model.graph, weights)
    correct_biases(model.graph, scales, means)
    overrides: dict[str, list[dict[str, Any]]] = {
        name: [{"scale": np.array(scale, np.float32), "zero_point": np.array(point, np.uint8)}]
        for name, (scale, point) in fixed.items()
    }
    overrides |= {name: weight_override(scale) for name, scale in scales.items()}
    data = {name: (np.float32(min(low, 0.0)), np.float32(max(high, 0.0))) for name, (low, high) in ranges.items()}
    try:
        job = quantizer.QDQQuantizer(
            model,
            True,  # weights: one scale a channel
            False,  # their ranges stand in the overrides
            quantization.QuantType.QUInt8 if weights == "unsigned" else quantization.QuantType.QInt8,
            quantization.QuantType.QUInt8,
            calibrate.TensorsData(method, data),
            [],
            [],
            list(OPERATORS),
            {"TensorQuantOverrides": overrides, "WeightSymmetric": True, "ActivationSymmetric": False},
        )
        job.quantize_model()
    except Exception as exc:  # ONNX Runtime's quantiser raises ValueError, KeyError, RuntimeError, its own
        words = " ".join(str(exc).split())[:300]
        raise ExportError(f"ONNX Runtime cannot quantise this head: {words}; calibrate ranges again") from exc
    if job.model.model is not model:
        model.CopyFrom(job.model.model)
    read_as_joined(model.graph)


def _check_operators(graph: Any) -> None:
    for node in graph.node:
        if node.op_type not in OPERATORS:
            raise ExportError(
                f"a head with {node.op_type} ({node.name or node.output[0]}) has no int8 form; known are "
                f"{', '.join(OPERATORS)}; export it with --head-precision fp32"
            )


def _open_input(graph: Any, ends: HeadEnds, batch: int | str) -> None:
    """Frames instead of pixels: they are quantised as they come."""
    onnx = require("onnx", why="int8 heads")
    make = onnx.helper.make_node
    quantize = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == _PIXELS)
    whole = quantize.output[0]
    graph.node.remove(quantize)
    frame, opening = _FRAME, []
    if ends.border is not None:
        opening = _bordered(graph, ends, ends.border)
        frame = opening[-1].output[0]
    opening.append(make("Transpose", [frame], [whole], "channels_first", perm=[0, 3, 1, 2]))
    for node in reversed(opening):
        graph.node.insert(0, node)
    del graph.input[:]
    graph.input.append(onnx.helper.make_tensor_value_info(_FRAME, onnx.TensorProto.UINT8, [batch, *ends.frame]))


def _bordered(graph: Any, ends: HeadEnds, border: npt.NDArray[np.uint8]) -> list[Any]:
    """The frame within the mean pixel: nodes, the last of which gives it.

    The border is written as three constant nodes, which a runtime folds when it loads them: as a tensor it would be the
    largest part of a small head's file.
    """
    onnx = require("onnx", why="int8 heads")
    make, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    rows, columns = ((large - small) // 2 for large, small in zip(border.shape[:2], ends.frame[:2], strict=True))
    graph.initializer.extend(
        [
            tensor(np.array([1, *ends.frame], np.int64), "frame_shape"),
            tensor(np.array([0, rows, columns, 0, 0, rows, columns, 0], np.int64), "border_pads"),
            tensor(np.array(LEVELS, np.uint8), "outside"),
            tensor(border[np.newaxis, :1, :1], "mean_pixel"),
        ]
    )
    zero = tensor(np.zeros(1, np.uint8))
    return [
        make("ConstantOfShape", ["frame_shape"], ["inside"], "inside_frame", value=zero),
        make("Pad", ["inside", "border_pads", "outside"], ["around"], "around_frame"),
        make("Min", ["around", "mean_pixel"], ["border"], "mean_border"),
        make("Pad", [_FRAME, "border_pads"], ["padded"], "pad_frame"),
        make("Max", ["padded", "border"], ["bordered"], "bordered_frame"),
    ]


def _close_output(graph: Any, ends: HeadEnds, batch: int | str) -> None:
    """Planes instead of steps: what the last kernel quantised, within its bounds."""
    onnx = require("onnx", why="int8 heads")
    make, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    dequantize = next(node for node in graph.node if node.output[0] == _STEPS)
    whole = dequantize.input[0]
    graph.node.remove(dequantize)
    bounds: list[tuple[str, npt.NDArray[np.uint8]]] = []
    if ends.lower.any():
        bounds.append(("Max", ends.lower))
    if (ends.upper < LEVELS).any():
        bounds.append(("Min", ends.upper))
    if not bounds:
        for node in graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == whole:
                        names[index] = _PLANES
    elif all((values == values[0]).all() for _, values in bounds):
        low, high = np.uint8(ends.lower[0]), np.uint8(ends.upper[0])
        graph.initializer.extend([tensor(np.array(low), "lowest"), tensor(np.array(high), "highest")])
        graph.node.append(make("Clip", [whole, "lowest", "highest"], [_PLANES], "levels"))
    else:
        for number, (operator, values) in enumerate(bounds):
            name = f"bound_{operator.lower()}"
            graph.initializer.append(tensor(values[:, np.newaxis, np.newaxis], name))
            target = _PLANES if number == len(bounds) - 1 else f"{name}_done"
            graph.node.append(make(operator, [whole, name], [target], f"levels_{operator.lower()}"))
            whole = target
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info(_PLANES, onnx.TensorProto.UINT8, [batch, *ends.planes]))
