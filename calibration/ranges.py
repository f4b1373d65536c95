"""What flows through a network on photographs: the ranges that its int8 form is scaled to, and channels' means."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from aecnn_deploy.errors import ExportError, SettingsError
from aecnn_deploy.optional import require

Array = npt.NDArray[Any]

# ONNX Runtime's calibrators. Its own defaults for entropy compare histograms of as many bins as levels: no search.
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "minmax": ("MinMax", {}),
        "percentile": ("Percentile", {"percentile": 99.99, "symmetric": False, "num_bins": 4096}),
        "entropy": ("Entropy", {"num_bins": 2048, "num_quantized_bins": 128, "symmetric": False}),
    }
)
OPERATORS = ("Add", "Clip", "Concat", "Conv", "MaxPool", "Relu")


@dataclass(frozen=True, slots=True)
class Activations:
    """``ranges``: tensor -> lowest, highest. ``means``: what a convolution reads -> the mean of each channel."""

    ranges: dict[str, tuple[float, float]]
    means: dict[str, tuple[float, ...]]


def gather_activations(
    onnx_file: Path, batches: Callable[[], Iterable[Array]], method: str = "percentile"
) -> Activations:
    """What flows through ``onnx_file`` for photographs.

    ``batches`` gives, each time that it is called, what the file's one input takes, some images at a time; for
    percentile and entropy one batch is in memory with all its activations. ``method``: a key of METHODS; but for
    "minmax" a few values lie outside of the ranges. Raises SettingsError: an unknown method, or no photograph.
    ExportError: ONNX Runtime cannot run the file on them.
    """
    if method not in METHODS:
        raise SettingsError(f"no calibration method {method!r}; choose one of {', '.join(METHODS)}")
    require("onnx", why="calibrating int8")
    try:
        return Activations(_ranges(onnx_file, batches(), method), _means(onnx_file, batches()))
    except SettingsError:
        raise
    except Exception as exc:  # onnx and ONNX Runtime raise their own classes, which share no base
        words = " ".join(str(exc).split())[:300]
        raise ExportError(f"ONNX Runtime cannot calibrate {onnx_file.name}: {words}") from exc


def _ranges(onnx_file: Path, batches: Iterable[Array], method: str) -> dict[str, tuple[float, float]]:
    calibrate = require("onnxruntime.quantization.calibrate", why="calibrating int8", extra="train")
    name, options = METHODS[method]
    with tempfile.TemporaryDirectory(prefix="aecnn-ranges-") as folder, contextlib.redirect_stdout(io.StringIO()):
        calibrator = calibrate.create_calibrator(
            str(onnx_file),
            list(OPERATORS),
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=calibrate.CalibrationMethod[name],
            extra_options=dict(options),
        )
        source = calibrator.infer_session.get_inputs()[0].name
        seen = 0
        for batch in batches:
            calibrator.collect_data(CalibrationFeed(source, batch))
            seen += len(batch)
        if not seen:
            raise SettingsError("no photograph to calibrate on; give at least one, better a hundred")
        found = calibrator.compute_data()
    return {tensor: _pair(data.range_value) for tensor, data in sorted(found.data.items())}


def _means(onnx_file: Path, batches: Iterable[Array]) -> dict[str, tuple[float, ...]]:
    onnx = require("onnx", why="calibrating int8")
    ort = require("onnxruntime", why="calibrating int8")
    model = onnx.load(str(onnx_file))
    source = model.graph.input[0].name
    read = sorted({node.input[0] for node in model.graph.node if node.op_type == "Conv"} - {source})
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in read if name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    sums: dict[str, Array] = {}
    images = 0
    for batch in batches:
        values = [batch, *(session.run(read, {source: batch}) if read else [])]
        for name, value in zip([source, *read], values, strict=True):
            sums[name] = sums.get(name, 0.0) + value.mean(axis=(2, 3), dtype=np.float64).sum(axis=0)
        images += len(batch)
    return {name: tuple(float(value) for value in total / images) for name, total in sums.items()}


class CalibrationFeed:
    """ONNX Runtime's CalibrationDataReader: the images of ``batch`` one at a time for the input ``source``."""

    def __init__(self, source: str, batch: Array) -> None:
        self._images: Iterator[dict[str, Array]] = (
            {source: np.ascontiguousarray(image[np.newaxis])} for image in batch
        )

    def get_next(self) -> dict[str, Array] | None:
        return next(self._images, None)


def _pair(values: Any) -> tuple[float, float]:
    low, high = (float(np.asarray(value).reshape(-1)[0]) for value in values)
    return low, high
