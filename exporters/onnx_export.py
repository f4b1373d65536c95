"""torch module -> one ONNX file, by torch's dynamo exporter, with the batch axis left open."""

import contextlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from aecnn_deploy.errors import ExportError
from aecnn_deploy.optional import require

if TYPE_CHECKING:
    from torch import nn

# The newest opset that torch's translations are written in, so that no version converter runs. ONNX Runtime 1.20 reads
# opsets to 21 and IR 10, TensorRT 10 opsets to 20 or more.
OPSET = 18
MAX_IR_VERSION = 10
BATCH = "batch"
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
) -> None:
    """Write ``module`` (uint8 (N, *input_shape) -> uint8 or float32 (N, *output_shape)) to the ONNX file ``path``.

    The part "steps" takes float32.
    ``part`` is a key of IO_NAMES. The file has an open first axis called "batch", static other axes, weights inside,
    constants folded, no BatchNormalization, and ``properties`` as metadata. Raises ExportError: the exporter fails,
    freezes the batch, or writes something else than this.
    """
    program = _capture(module, path.name, input_shape, whole=part != "steps")
    _simplify(program)
    model = _translate(program, part, path.name)
    _tidy(model, properties)
    _check(model, path.name, IO_NAMES[part], (input_shape, output_shape))
    onnx = require("onnx", why="exporting")
    try:
        onnx.save_model(model, str(path))
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(f"{path.name} does not pass onnx's checker: {_one_line(exc)}") from exc


def _capture(module: "nn.Module", name: str, input_shape: tuple[int, ...], *, whole: bool) -> Any:
    """The module as an ExportedProgram of ATen operators. A batch of two: torch treats one as a constant."""
    torch = require("torch", why="exporting")
    example = torch.zeros((2, *input_shape), dtype=torch.uint8 if whole else torch.float32)
    batch = torch.export.Dim(BATCH, min=1)
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as exc:  # torch's exporter raises classes of many families
        words = str(exc)
        if "Constraints violated" in words or "specialized" in words or "ConstraintViolation" in type(exc).__name__:
            raise _frozen(name, _one_line(exc)) from exc
        raise ExportError(f"torch {torch.__version__} cannot capture {name}: {_one_line(exc)}") from exc


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


def _translate(program: Any, part: str, name: str) -> Any:
    torch = require("torch", why="exporting")
    require("onnxscript", why="exporting")
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            source, result = IO_NAMES[part]
            translated = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=[source],
                output_names=[result],
                opset_version=OPSET,
                external_data=False,
                optimize=True,
                verbose=False,
            )
            return translated.model_proto
    except Exception as exc:
        raise ExportError(f"torch {torch.__version__} cannot translate {name} to ONNX: {_one_line(exc)}") from exc


def _tidy(model: Any, properties: Mapping[str, str]) -> None:
    """Drop what the exporter writes down about this machine (paths in stack traces), and name the batch axis."""
    onnx = require("onnx", why="exporting")
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    for item in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if first.dim_param:
            first.dim_param = BATCH
    onnx.helper.set_model_props(model, dict(properties))


def _check(model: Any, name: str, io_names: tuple[str, str], shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Raises ExportError: the graph is not what ``export_onnx`` promises."""
    opsets = {item.domain: item.version for item in model.opset_import}
    if opsets != {"": OPSET} or model.ir_version > MAX_IR_VERSION or model.functions:
        raise ExportError(
            f"{name} needs opsets {opsets}, IR {model.ir_version} and {len(model.functions)} functions; "
            f"the runtimes read opset {OPSET}, IR {MAX_IR_VERSION}; use another onnxscript release"
        )
    if any(item.data_location for item in model.graph.initializer):
        raise ExportError(f"{name} keeps weights outside its file; use another torch release")
    left = [node.name for node in model.graph.node if node.op_type == "BatchNormalization"]
    if left:
        raise ExportError(f"{name} has {len(left)} BatchNormalization left ({left[0]}); fold it into its convolution")
    for values, expected_name, expected in zip((model.graph.input, model.graph.output), io_names, shapes, strict=True):
        got = [value.name for value in values]
        if got != [expected_name]:
            raise ExportError(f"{name} has {', '.join(got)} where {expected_name} is expected")
        first, *rest = values[0].type.tensor_type.shape.dim
        if not first.dim_param:
            raise _frozen(name, f"{expected_name} has the batch size {first.dim_value}")
        axes = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in rest)
        if axes != expected:
            raise ExportError(f"{name}: {expected_name} has the shape (batch, {axes}), expected {expected}")


def _frozen(name: str, words: str) -> ExportError:
    return ExportError(
        f"torch's exporter froze the batch size of {name}: {words}; "
        "the module must not compute with len() or shape[0] as a number, or use another torch release"
    )


def _one_line(exc: Exception) -> str:
    words = str(exc).replace('For more information, run with TORCH_LOGS="+dynamic".', "")
    return " ".join(words.split())[:300] or type(exc).__name__
