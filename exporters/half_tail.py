"""A fp32 tail -> the same in fp16, for a bundle that was exported without one."""

import warnings
from pathlib import Path

from aecnn_deploy.errors import ExportError
from aecnn_deploy.optional import require


def half_tail(source: Path, out: Path) -> None:
    """Write the fp32 tail ``source`` to ``out`` with float16 inside; input, output and metadata are the source's.

    Raises ExportError: ONNX Runtime's converter fails. MissingExtraError: onnx is not installed.
    """
    onnx = require("onnx", why="making a tail half", extra="train")
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():  # of weights that underflow; what that costs is measured by whoever asked
        warnings.simplefilter("ignore")
        try:
            half = convert_float_to_float16(onnx.load(str(source)), keep_io_types=True)
        except Exception as exc:  # the converter's own errors share no base
            raise ExportError(f"{source.name} cannot be made half: {exc}; export the run with --engine") from exc
    onnx.save(half, str(out))
