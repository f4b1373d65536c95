"""How ONNX files are written: opset, IR version, batch axis, simplification."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from aecnn_deploy.errors import SettingsError

# The opset that torch's translations are written in, so that no converter runs.
OPSET = 18
# ONNX Runtime 1.20 reads IR 10, the newest that TensorRT 10's parser knows too.
MAX_IR_VERSION = 10
# opset -> the IR version of the ONNX release that brought it, which is the oldest that its files may have. Below 14
# onnx's converter has no rule for Add and Mul; 21 is the newest that ONNX Runtime 1.20 reads.
OLDEST_IR: Mapping[int, int] = MappingProxyType({14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10})
MOST_BATCH = 1024


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    """What every ONNX file of an export has in common. Raises SettingsError: a number that the runtimes do not read.

    ``batch``: None leaves the first axis open, a number fixes it. ``simplify``: run onnxslim on each file before it is
    compared with torch.
    """

    opset: int = OPSET
    ir_version: int = MAX_IR_VERSION
    batch: int | None = None
    simplify: bool = False

    def __post_init__(self) -> None:
        if self.opset not in OLDEST_IR:
            raise SettingsError(
                f"opset is {self.opset}, accepted are {min(OLDEST_IR)} to {max(OLDEST_IR)}: "
                "onnx converts to none below, ONNX Runtime 1.20 reads none above"
            )
        oldest = OLDEST_IR[self.opset]
        if not oldest <= self.ir_version <= MAX_IR_VERSION:
            raise SettingsError(
                f"IR version is {self.ir_version}, accepted with opset {self.opset} are {oldest} to {MAX_IR_VERSION}: "
                f"the opset came with IR {oldest}, ONNX Runtime 1.20 reads none above {MAX_IR_VERSION}"
            )
        if self.batch is not None and not 1 <= self.batch <= MOST_BATCH:
            raise SettingsError(
                f"fixed batch is {self.batch}, accepted are 1 to {MOST_BATCH} images, or dynamic for an open axis"
            )

    def record(self) -> dict[str, Any]:
        """For a manifest's measurements."""
        return {"opset": self.opset, "ir_version": self.ir_version, "batch": self.batch or "dynamic"}


DEFAULTS = OnnxOptions()
