"""torch module -> one ONNX file, by torch's dynamo exporter."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from aecnn_deploy.exporters.onnx_file import BATCH, OnnxFile, Signature, frozen, quiet, write_onnx
from aecnn_deploy.exporters.onnx_options import DEFAULTS, OPSET, OnnxOptions
from aecnn_deploy.exporters.unsupported import capture_error, translation_error
from aecnn_deploy.optional import require

if TYPE_CHECKING:
    from torch import nn

# part -> input's name, output's name
IO_NAMES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "head": ("frames", "planes"),
        "tail": ("planes", "logits"),
        "full": ("frames", "logits"),
        "steps": ("pixels", "steps"),  # a head before its planes are rounded: what int8 heads are made of
    }
)


def export_onnx(
    module: "nn.Module",
    part: str,
    path: Path,
    *,
    input_shape: tuple[int, ...],
    output_shape: tuple[int, ...],
    properties: Mapping[str, str],
    options: OnnxOptions = DEFAULTS,
) -> OnnxFile:
    """Write ``module`` (uint8 (N, *input_shape) -> uint8 or float32 (N, *output_shape)) to the ONNX file ``path``.

    The part "steps" takes float32. ``part`` is a key of IO_NAMES. The file has the opset, the IR version and the first
    axis of ``options`` (an open one is called "batch"), static other axes, weights inside, constants folded, no
    BatchNormalization, and ``properties`` as metadata. Raises ExportError: the exporter fails, freezes an open batch,
    or writes something else than this. Raises UnsupportedOpError: it, or ONNX Runtime, cannot handle an operator of the
    module.
    """
    program = _capture(module, path.name, input_shape, options.batch, whole=part != "steps")
    _simplify(program)
    model = _translate(program, part, path.name, options.opset)
    return write_onnx(model, path, Signature(IO_NAMES[part], (input_shape, output_shape)), options, properties)


def _capture(module: "nn.Module", name: str, input_shape: tuple[int, ...], batch: int | None, *, whole: bool) -> Any:
    """The module as an ExportedProgram of ATen operators. An open batch is shown as two: one would be a constant."""
    torch = require("torch", why="exporting")
    example = torch.zeros((batch or 2, *input_shape), dtype=torch.uint8 if whole else torch.float32)
    shapes = None if batch else ({0: torch.export.Dim(BATCH, min=1)},)
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as exc:  # torch's exporter raises classes of many families
        words = str(exc)
        if "Constraints violated" in words or "specialized" in words or "ConstraintViolation" in type(exc).__name__:
            raise frozen(name, exc) from exc
        raise capture_error(name, torch, exc) from exc


def _simplify(program: Any) -> None:
    """Replace operators whose decomposition is poor by equal ones that have a direct ONNX form.

    A hardtanh decomposes through symbolic shapes, which takes half of the whole export; an adaptive pool to 1x1
    becomes as_strided, and so Range and Gather over the batch.
    """
    aten = require("torch", why="exporting").ops.aten
    clamps = {
        aten.hardtanh.default: (-1.0, 1.0),
        aten.hardtanh_.default: (-1.0, 1.0),
        aten.relu6.default: (0.0, 6.0),
        aten.relu6_.default: (0.0, 6.0),
    }
    for node in program.graph_module.graph.nodes:
        if node.target in clamps:
            in_place = node.target in (aten.hardtanh_.default, aten.relu6_.default)
            if in_place and len(node.args[0].users) > 1:
                continue  # somebody else reads the tensor that is changed
            bounds = tuple(node.args[1:]) or clamps[node.target]
            node.target, node.args = aten.clamp.default, (node.args[0], *bounds)
        elif node.target is aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            node.target, node.args = aten.mean.dim, (node.args[0], [-2, -1], True)
    program.graph_module.recompile()


def _translate(program: Any, part: str, name: str, opset: int) -> Any:
    torch = require("torch", why="exporting")
    require("onnxscript", why="exporting")
    try:
        with quiet():
            source, result = IO_NAMES[part]
            translated = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=[source],
                output_names=[result],
                opset_version=max(opset, OPSET),  # an older one is onnx's converter's to make
                external_data=False,
                optimize=True,
                verbose=False,
            )
            return translated.model_proto
    except Exception as exc:
        raise translation_error(name, torch, exc) from exc
