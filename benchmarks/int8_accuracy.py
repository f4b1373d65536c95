"""What int8 heads cost in accuracy: a run's variants on its test photographs, fp32 and int8 head, the same fp32 tail.

    python -m benchmarks.int8_accuracy --run RUN --data $AECNN_DATA/caltech101

Heads are calibrated on photographs of the run's training split (method "auto"), then both heads of each variant, and
the tail, run in ONNX Runtime on every photograph of the test split. ``RUN``: of ``train`` with labels; its data.json
names the split. Other ways of making weights integers are measured beside the one that is used: 7 bits everywhere
("reduced"), and unsigned 8 bits ("unsigned"), each with the same ranges. Asserted: as many photographs as the split
names.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort

from aecnn_deploy.calibration.ranges import gather_activations
from aecnn_deploy.exporters.int8_calibration import SteppedFile, calibrate_heads
from aecnn_deploy.exporters.int8_head import int8_head
from aecnn_deploy.exporters.onnx_export import export_onnx
from aecnn_deploy.models.run import load_run
from aecnn_deploy.runtimes.frames import read_frame
from benchmarks.int8_heads import in_turns, run, session
from benchmarks.machine import describe_machine, write_result

RESULTS = Path(__file__).parent / "results"
CALIBRATION = 100  # photographs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a training run with labels")
    parser.add_argument("--data", type=Path, required=True, help="its photographs")
    parser.add_argument("--out", type=Path, default=RESULTS / "int8_accuracy.json", help="where to write the JSON")
    options = parser.parse_args()
    trained = load_run(options.run)
    split: dict[str, list[str]] = json.loads((options.run / "data.json").read_text())
    step = max(1, len(split["train"]) // CALIBRATION)

    def frames_of(names: list[str]) -> np.ndarray[Any, Any]:
        return np.stack([read_frame(options.data / name, trained.input, name=name) for name in names])

    giving, test = frames_of(split["train"][::step][:CALIBRATION]), frames_of(split["test"])
    assert len(test) == len(split["test"])
    labels = np.array([trained.labels.index(Path(name).parts[0]) for name in split["test"]])
    record = calibrate_heads(trained, giving)
    rows = []
    for variant in trained.variants:
        calibration = record.variants[variant.id]
        with TemporaryDirectory() as name:
            folder = Path(name)
            stepped = SteppedFile(variant, folder)
            files = {"fp32": folder / "fp32.onnx", "tail": folder / "tail.onnx"}
            frame = stepped.ends.frame
            export_onnx(
                variant.head(), "head", files["fp32"], input_shape=frame, output_shape=variant.planes, properties={}
            )
            shape = (len(trained.labels),)
            export_onnx(
                variant.tail(), "tail", files["tail"], input_shape=variant.planes, output_shape=shape, properties={}
            )
            activations = gather_activations(stepped.path, partial(stepped.batches, giving), calibration.method)
            for weights in ("pairs", "reduced", "unsigned"):
                files[weights] = folder / f"{weights}.onnx"
                int8_head(stepped.path, files[weights], stepped.ends, activations, weights)
            sessions = {part: session(path) for part, path in files.items()}
            planes = {part: in_pieces(one, test) for part, one in sessions.items() if part != "tail"}
            named = {part: in_pieces(sessions["tail"], sent).argmax(axis=1) for part, sent in planes.items()}
            times = in_turns({part: (sessions[part], test[:1]) for part in planes}, 40)
        rows.append(
            {
                "variant": variant.id,
                "method": calibration.method,
                "photographs": len(test),
                "top1": {part: float((found == labels).mean()) for part, found in named.items()},
                "same_class_as_fp32": {part: float((found == named["fp32"]).mean()) for part, found in named.items()},
                "mean_difference_steps": {
                    part: float(np.abs(sent.astype(int) - planes["fp32"]).mean()) for part, sent in planes.items()
                },
                "head_ms": times,
            }
        )
        print(rows[-1], flush=True)
    write_result(
        options.out,
        {
            "benchmark": "int8_accuracy",
            "command": ".venv/bin/python -m benchmarks.int8_accuracy --run RUN --data $AECNN_DATA/caltech101",
            "calibration_photographs": len(giving),
            "rows": rows,
            **describe_machine(),
        },
    )


def in_pieces(one: ort.InferenceSession, batch: np.ndarray[Any, Any], size: int = 8) -> np.ndarray[Any, Any]:
    return np.concatenate([run(one, batch[start : start + size]) for start in range(0, len(batch), size)])


if __name__ == "__main__":
    main()
