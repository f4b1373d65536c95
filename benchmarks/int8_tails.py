"""What int8 costs the zoo's tails: top-1 on the test split, and how far logits are from the fp32 tail's.

    python -m benchmarks.int8_tails --data $AECNN_DATA/caltech101

The heads of the zoo's bundle run on the 1,109 test photographs (those of
``benchmarks/results/caltech101-lite0/h100/data.json``); each tail runs on their planes in fp32, in fp16 and in int8, in
ONNX Runtime. int8 is calibrated on 5 and on 32 training photographs; for the first variant also by other ways to find
ranges, and with quantised outputs. Asserted: int8 names the class of fp32 for 99 % of the photographs, by the way that
export takes. Not measured here: speed, and engines, which need a GPU.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import quantization

from aecnn_deploy.bundle.manifest import ONNXRUNTIME
from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.exporters import int8_tail
from aecnn_deploy.exporters.half_tail import half_tail
from aecnn_deploy.runtimes.base import Array
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.zoo import zoo_bundle
from benchmarks.machine import describe_machine, write_result

RESULTS = Path(__file__).parent / "results"
SPLIT = RESULTS / "caltech101-lite0" / "h100" / "data.json"
COUNTS = (5, 32)
METHODS = {"entropy": quantization.CalibrationMethod.Entropy, "percentile": quantization.CalibrationMethod.Percentile}
_BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder caltech101")
    parser.add_argument("--out", type=Path, default=RESULTS / "int8_tails.json", help="where to write the JSON")
    options = parser.parse_args()
    split = json.loads(SPLIT.read_text())
    bundle = open_bundle(zoo_bundle("caltech101-lite0"))
    test = [options.data / name for name in split["test"]]
    step = len(split["train"]) // COUNTS[-1]
    training = [options.data / name for name in split["train"][::step][: COUNTS[-1]]]
    labels = list(bundle.manifest.labels)
    truth = np.array([labels.index(file.parent.name) for file in test])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "tail.onnx")
        for variant in bundle.manifest.variants:
            source = bundle.file(variant.tails[ONNXRUNTIME])
            with OnnxRuntimeRunner(bundle.file(variant.head)) as head:
                planes, calibration = (
                    np.concatenate([head.infer(_frame(file, bundle)) for file in files]) for files in (test, training)
                )
            expected = _logits(source, planes)
            rows.append(_row(variant.id, "fp32", 0, expected, expected, truth))
            half_tail(source, path)
            rows.append(_row(variant.id, "fp16", 0, _logits(path, planes), expected, truth))
            for count in COUNTS:
                int8_tail.int8_tail(source, calibration[_evenly(count)], path)
                rows.append(_row(variant.id, "int8", count, _logits(path, planes), expected, truth))
                assert rows[-1]["same_class"] >= 0.99
            if variant is bundle.manifest.variants[0]:
                for name in (*METHODS, "quantised outputs"):
                    _other_way(source, calibration, path, name)
                    rows.append(_row(variant.id, f"int8, {name}", COUNTS[-1], _logits(path, planes), expected, truth))
    document = {
        "benchmark": "int8_tails",
        "command": ".venv/bin/python -m benchmarks.int8_tails --data $AECNN_DATA/caltech101",
        "bundle_id": bundle.id,
        "photographs": len(test),
        "rows": rows,
        **describe_machine(),
    }
    write_result(options.out, document)


def _frame(file: Path, bundle: Any) -> Array:
    return read_frame(file.read_bytes(), bundle.manifest.input, name=str(file))[np.newaxis]


def _evenly(count: int) -> Array:
    return np.linspace(0, COUNTS[-1] - 1, count).round().astype(int)


def _logits(path: Path, planes: Array) -> Array:
    with OnnxRuntimeRunner(path) as runner:
        return np.concatenate([runner.infer(planes[i : i + _BATCH]) for i in range(0, len(planes), _BATCH)])


def _other_way(source: Path, planes: Array, out: Path, name: str) -> None:
    """An int8 tail by another choice than the exporter's."""
    outputs = name == "quantised outputs"
    quantization.quantize_static(
        str(source),
        str(out),
        int8_tail._Feed("planes", planes),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Add", "Gemm"] if outputs else ["Conv"],
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=METHODS.get(name, quantization.CalibrationMethod.MinMax),
        extra_options={
            **int8_tail._OPTIONS,
            "CalibPercentile": 99.99,
            "OpTypesToExcludeOutputQuantization": [] if outputs else ["Conv"],
        },
    )


def _row(variant: str, tail: str, count: int, got: Array, expected: Array, truth: Array) -> dict[str, Any]:
    difference = np.abs(got - expected) / np.abs(expected).max()
    row = {
        "variant": variant,
        "tail": tail,
        "calibration_photographs": count,
        "top1": float((got.argmax(axis=1) == truth).mean()),
        "same_class": float((got.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
