"""What ``export`` is told of its ONNX files and their frames, from text: wrong use is found before any work."""

import re
from typing import TYPE_CHECKING

from aecnn_deploy.errors import SettingsError

if TYPE_CHECKING:
    from aecnn_deploy.exporters.onnx_options import OnnxOptions


def onnx_options(opset: int, ir_version: int, batch: str, *, simplify: bool) -> "OnnxOptions":
    """``batch``: "dynamic" or a number. Raises SettingsError: a value that no runtime reads."""
    from aecnn_deploy.exporters.onnx_options import OnnxOptions

    if batch != "dynamic" and not re.fullmatch(r"\d{1,9}", batch, re.ASCII):
        raise SettingsError(f"--onnx-batch is {batch!r}, expected dynamic or a number of images")
    return OnnxOptions(opset, ir_version, None if batch == "dynamic" else int(batch), simplify)


def frame_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of ``S`` or ``HxW``; None: the run's own. Raises SettingsError: neither."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text, re.ASCII)
    if found is None:
        raise SettingsError(f"--input-size is {text!r}, expected pixels: S for a square, or HEIGHTxWIDTH")
    return int(found[1]), int(found[2] or found[1])
