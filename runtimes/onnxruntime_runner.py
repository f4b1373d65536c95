"""ONNX Runtime on the CPU: heads on a device, tails and full models anywhere."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from aecnn_deploy.errors import RunnerError
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.base import Array, Runner

VARIANT_KEY = "aecnn.variant"  # of an ONNX file's metadata

_DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {"tensor(uint8)": np.dtype(np.uint8), "tensor(float)": np.dtype(np.float32)}
)


class OnnxRuntimeRunner(Runner):
    """Runs ``path`` on ONNX Runtime's CPU provider.

    ``threads`` 0 takes every core. ``spinning`` lets idle threads burn a core between two images: lower latency
    where the process has the machine to itself, ruinous where it shares it. ``variant``: refuse a file that names
    another one in its metadata, so that a head and a tail which do not belong together are never paired.

    A file with a fixed batch axis is run as often as it takes, the last time filled up with zeros: ``infer`` takes any
    batch all the same, and costs one image as much as a whole batch. ``batch``, once active: that size, or None.
    """

    name = "onnxruntime"
    batch: int | None

    def __init__(self, path: Path, *, threads: int = 0, spinning: bool = False, variant: str | None = None) -> None:
        super().__init__()
        self.path, self._threads, self._spinning, self._variant = path, threads, spinning, variant

    def _activate(self) -> None:
        ort = require("onnxruntime", why="running an ONNX model")
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self._spinning else "0")
        try:
            self._session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # ONNX Runtime raises its own classes, which share no base
            raise RunnerError(f"ONNX Runtime {ort.__version__} cannot load {self.path}: {_first_line(exc)}") from exc
        named = self._session.get_modelmeta().custom_metadata_map.get(VARIANT_KEY)
        if self._variant is not None and named not in (None, self._variant):
            raise RunnerError(f"{self.path} is of variant {named!r}, not of {self._variant!r}; export the bundle again")
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise RunnerError(f"{self.path} has {len(inputs)} inputs and {len(outputs)} outputs, expected 1 and 1")
        unknown = {inputs[0].type, outputs[0].type} - _DTYPES.keys()
        if unknown:
            raise RunnerError(f"{self.path} has a {unknown.pop()}, expected one of {', '.join(_DTYPES)}")
        self.batch = _fixed_batch(self.path, inputs[0].shape, outputs[0].shape)
        self._input, self._output = inputs[0].name, [outputs[0].name]
        self.input_shape, self.output_shape = tuple(inputs[0].shape[1:]), tuple(outputs[0].shape[1:])
        self.input_dtype, self.output_dtype = _DTYPES[inputs[0].type], _DTYPES[outputs[0].type]

    def _infer(self, batch: Array) -> Array:
        if self.batch is None or len(batch) == self.batch:
            return self._run(batch)
        missing = -len(batch) % self.batch
        whole = np.concatenate([batch, np.zeros((missing, *self.input_shape), self.input_dtype)])
        pieces = [self._run(whole[at : at + self.batch]) for at in range(0, len(whole), self.batch)]
        return np.concatenate(pieces)[: len(batch)]

    def _run(self, batch: Array) -> Array:
        try:
            result: Array = self._session.run(self._output, {self._input: batch})[0]
        except Exception as exc:
            raise RunnerError(f"ONNX Runtime failed in {self.path.name}: {_first_line(exc)}") from exc
        return result

    def _deactivate(self) -> None:
        del self._session


def _fixed_batch(path: Path, taken: list[Any], given: list[Any]) -> int | None:
    """The size of the first axis; None where it is open."""
    sizes = [shape[0] if shape and isinstance(shape[0], int) else None for shape in (taken, given)]
    if sizes[0] != sizes[1] or (sizes[0] is not None and sizes[0] < 1):
        raise RunnerError(f"{path} takes a batch of {sizes[0] or 'any size'} and gives one of {sizes[1] or 'any size'}")
    return sizes[0]


def _first_line(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0][:300]
