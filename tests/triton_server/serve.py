"""A real Triton server (nvidia-pytriton, Python backend) whose models are ONNX files; in an environment of its own.

    python serve.py PLAN      PLAN is a JSON file, see tests/triton_server/process.py

Makes the plan's file "ready" when every model is loaded, and writes a line "MODEL IMAGES RUNNING" into its log for each
batch, RUNNING being how many batches of the model run at that moment.
"""

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.models.model import Model
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

plan = json.loads(Path(sys.argv[1]).read_text())
parameters = {name: model["parameters"] for name, model in plan["models"].items()}
made = Model._get_triton_model_config


def with_parameters(self):
    """pytriton has no argument for a configuration's parameters."""
    config = made(self)
    config.backend_parameters.update(parameters[self.model_name])
    return config


Model._get_triton_model_config = with_parameters


class Runs:
    """One ONNX file on ONNX Runtime, told of in the log."""

    def __init__(self, name, model):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model["file"], options, providers=["CPUExecutionProvider"])
        self.source, self.result = self.session.get_inputs()[0], self.session.get_outputs()[0]
        self.name, self.sleep_s, self.words = name, model["sleep_s"], model["fails"]
        self.lock, self.running = threading.Lock(), 0

    def tensors(self):
        source = Tensor(name=self.source.name, dtype=np.uint8, shape=tuple(self.source.shape[1:]))
        return [source], [Tensor(name=self.result.name, dtype=np.float32, shape=tuple(self.result.shape[1:]))]

    def function(self):
        @batch
        def infer(**inputs):
            (images,) = inputs.values()
            with self.lock:
                self.running += 1
                with Path(plan["log"]).open("a") as log:
                    log.write(f"{self.name} {len(images)} {self.running}\n")
            try:
                if self.words:
                    raise RuntimeError(self.words)
                time.sleep(self.sleep_s)
                return {self.result.name: self.session.run(None, {self.source.name: images})[0]}
            finally:
                with self.lock:
                    self.running -= 1

        return infer


config = TritonConfig(
    grpc_address="127.0.0.1",
    grpc_port=plan["port"],
    http_address="127.0.0.1",
    http_port=plan["http_port"],
    allow_metrics=False,
)
# For its statistics, which pytriton else keeps behind a token of its own; all of it listens on loopback.
security = TritonSecurityConfig(access_token="unused", restricted_endpoints=["trace"])
with Triton(config=config, workspace=plan["workspace"], security_config=security) as triton:
    for name, model in plan["models"].items():
        runs = Runs(name, model)
        inputs, outputs = runs.tensors()
        triton.bind(
            model_name=name,
            infer_func=[runs.function() for _ in range(model["instances"])],
            inputs=inputs,
            outputs=outputs,
            config=ModelConfig(
                max_batch_size=plan["max_batch"], batcher=DynamicBatcher(max_queue_delay_microseconds=0)
            ),
            strict=True,
        )
    triton.run()
    Path(plan["ready"]).touch()
    threading.Event().wait()
