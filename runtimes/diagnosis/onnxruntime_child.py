"""Import ONNX Runtime and run a tiny model, as a process of its own: it may die of an instruction the CPU lacks.

Prints one JSON line: the version, and the sum of the model's outputs.
"""

import json
import resource
from pathlib import Path

MODEL = Path(__file__).with_name("probe.onnx")
SHAPE = (1, 1, 8, 8)  # of the model's input "x", float32


def main() -> None:
    """Run the model on ones."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash here is an answer, and no core file is wanted of it
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(MODEL.read_bytes(), options, providers=["CPUExecutionProvider"])
    (total,) = session.run(None, {"x": np.ones(SHAPE, np.float32)})
    print(json.dumps({"version": onnxruntime.__version__, "sum": int(total.sum())}), flush=True)


if __name__ == "__main__":
    main()
