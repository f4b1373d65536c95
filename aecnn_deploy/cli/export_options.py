"""What ``export`` is told of what it writes, from text: wrong use is found before any work."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from aecnn_deploy.errors import SettingsError

if TYPE_CHECKING:
    from aecnn_deploy.exporters.engines import EngineRequest
    from aecnn_deploy.exporters.onnx_options import OnnxOptions
    from aecnn_deploy.exporters.triton_settings import TritonSettings


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


def triton_settings(
    repository: Path, bundle: Path, backend: str, engine: "EngineRequest | None", onnx: "OnnxOptions", *, force: bool
) -> "TritonSettings":
    """How the Triton ``repository`` of an export to ``bundle`` is written.

    Raises SettingsError: the bundle will have no file that ``backend`` runs, or is to stand at the same place.
    ExportError: ``repository`` must not be written.
    """
    from aecnn_deploy.exporters.triton_repository import check_destination
    from aecnn_deploy.exporters.triton_settings import TENSORRT, TritonSettings

    settings = TritonSettings(backend=backend)
    if backend == TENSORRT and (engine is None or engine.product != TENSORRT):
        got = engine.product if engine else "none"
        raise SettingsError(
            f"--triton-backend {TENSORRT} needs engines of full TensorRT, got --engine {got}; "
            f"choose --engine {TENSORRT}, or --triton-backend onnxruntime"
        )
    if onnx.batch is not None:
        raise SettingsError(
            f"Triton's batcher needs the open batch axis, got a fixed batch of {onnx.batch}; "
            "leave out --onnx-batch, or --triton"
        )
    if repository.resolve() == bundle.resolve():
        raise SettingsError(f"--triton and --out are both {repository}; choose a folder for each")
    check_destination(repository, replace=force)
    return settings
