"""Local computing, the third rival of a split: the whole network in int8 on the device, nothing sent.

Static post-training quantisation by ONNX Runtime, one scale a tensor for activations (uint8) and a channel for weights
(int8, never -128), which is what both x86 with VNNI and a Raspberry Pi compute without saturation. Ranges are the
smallest and largest value seen: with every clamp quantised together with its convolution, entropy and percentile
ranges agree with float32 on as many photographs (92 % of 200 for 91 %, of ImageNet's 1,000 classes by
EfficientNet-Lite0) and need three times the memory. Clamps left in float32 would cost 22 points.
"""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aecnn_deploy.calibration.ranges import CalibrationFeed
from aecnn_deploy.errors import ExportError
from aecnn_deploy.exporters.int8_calibration import check_frames
from aecnn_deploy.exporters.onnx_export import IO_NAMES
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

Frames = npt.NDArray[np.uint8]

# The normalisation of the frame stays in float32, and so do pooling and reshaping: they cost nothing.
_OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool"]
_BATCH = 16


def int8_model(full_onnx: Path, calibration_frames: Frames, out: Path) -> Path:
    """Quantise ``full_onnx`` (export_onnx's "full") to int8 with the ranges of ``calibration_frames``; gives ``out``.

    ``calibration_frames``: uint8 (N, H, W, 3), training photographs; 20 do as well as 100. ``out`` is written beside
    and renamed. Raises SettingsError: no frames, or frames of another shape than the model's. RunnerError:
    ``full_onnx`` does not load. ExportError: ONNX Runtime cannot quantise it.
    """
    require("onnx", why="int8 quantisation")
    quantization = require("onnxruntime.quantization", why="int8 quantisation", extra="train")
    shape_inference = require("onnxruntime.quantization.shape_inference", why="int8 quantisation", extra="train")
    _check_frames(full_onnx, calibration_frames)
    # Inside the folder of ``out``, so that the rename stays within one file system.
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=out.parent) as folder:
        prepared, quantised = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        try:
            shape_inference.quant_pre_process(str(full_onnx), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(quantised),
                CalibrationFeed(IO_NAMES["full"][0], calibration_frames),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=_OPERATORS,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
        except Exception as exc:  # onnx and ONNX Runtime raise their own classes, which share no base
            raise ExportError(f"ONNX Runtime cannot quantise {full_onnx}: {_one_line(exc)}") from exc
        quantised.replace(out)
    return out


def top1(path: Path, frames: Frames, *, threads: int = 1) -> npt.NDArray[np.int64]:
    """The classes int64 (N,) that the network ``path`` names for ``frames`` (N, H, W, 3), by ONNX Runtime.

    Raises RunnerError: ``path`` does not load, or takes other frames.
    """
    classes = np.empty(len(frames), np.int64)
    with OnnxRuntimeRunner(path, threads=threads) as runner:
        for start in range(0, len(frames), _BATCH):
            classes[start : start + _BATCH] = runner.infer(frames[start : start + _BATCH]).argmax(axis=1)
    return classes


def _check_frames(full_onnx: Path, frames: Frames) -> None:
    with OnnxRuntimeRunner(full_onnx, threads=1) as runner:
        check_frames(frames, runner.input_shape)


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:300] or type(exc).__name__
