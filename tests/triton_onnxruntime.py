"""Triton's ONNX Runtime backend in small, for a server that comes without the real one: it runs inside Triton.

A Python backend of the name ``onnxruntime`` (``backends/onnxruntime/model.py``): Triton reads, checks and normalises
``config.pbtxt``, batches, warms up, limits and labels as it would for the real one; only the session is opened here.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton  # Triton's own, beside its Python backend


class TritonPythonModel:
    """One instance of one model."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        (taken,), (given,) = config["input"], config["output"]
        self.name, self.taken, self.given = args["model_name"], taken["name"], given["name"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["intra_op_thread_count"]["string_value"])
        file = Path(args["model_repository"], args["model_version"], config["default_model_filename"])
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        arrays = [triton.get_input_tensor_by_name(request, self.taken).as_numpy() for request in requests]
        batch = np.concatenate(arrays)
        print(f"{self.name} ran {batch.dtype} {batch.shape}", flush=True)
        result = self.session.run([self.given], {self.taken: batch})[0]
        ends = np.cumsum([len(array) for array in arrays])
        parts = np.split(result, ends[:-1])
        return [triton.InferenceResponse([triton.Tensor(self.given, part)]) for part in parts]
