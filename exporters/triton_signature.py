"""What an ONNX file takes and gives, as Triton will find it when it loads the file: asked of ONNX Runtime."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aecnn_deploy.errors import ExportError
from aecnn_deploy.optional import require

# ONNX Runtime's name of a tensor's type -> that of Triton's model configuration
DATA_TYPES: Mapping[str, str] = MappingProxyType({"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"})


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output: its name in the file, Triton's data type, its sizes without the batch axis."""

    name: str
    data_type: str
    dims: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.data_type} [-1, {', '.join(map(str, self.dims))}]"


@dataclass(frozen=True, slots=True)
class Signature:
    """The one input and the one output of a model file."""

    input: Tensor
    output: Tensor


def read_signature(path: Path) -> Signature:
    """Open ``path`` in ONNX Runtime.

    Raises MissingExtraError; ExportError: it does not load, or Triton cannot batch it.
    """
    ort = require("onnxruntime", why="writing a Triton model repository")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is asked, not run
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime raises its own classes, which share no base
        words = str(exc).strip().partition("\n")[0][:300]
        raise ExportError(
            f"ONNX Runtime {ort.__version__} cannot load {path}: {words}; export the bundle again"
        ) from exc
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ExportError(f"{path} has {len(inputs)} inputs and {len(outputs)} outputs, expected 1 and 1")
    return Signature(_tensor(path, inputs[0]), _tensor(path, outputs[0]))


def _tensor(path: Path, found: Any) -> Tensor:
    if found.type not in DATA_TYPES:
        raise ExportError(f"{path}: {found.name} is a {found.type}, expected one of {', '.join(DATA_TYPES)}")
    batch, *dims = found.shape or [0]
    if isinstance(batch, int):
        raise ExportError(
            f"{path}: {found.name} has a fixed batch of {batch}, Triton's batcher needs an open axis; "
            "export the run again without --onnx-batch"
        )
    if not dims or any(not isinstance(size, int) or size < 1 for size in dims):
        raise ExportError(f"{path}: {found.name} has the sizes {found.shape}, expected fixed ones after the batch axis")
    return Tensor(found.name, DATA_TYPES[found.type], tuple(dims))
