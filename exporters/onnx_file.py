"""What becomes of a translated model until it is a file: tidied, converted, simplified, checked, loaded once."""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aecnn_deploy.errors import ExportError, RunnerError, UnsupportedOpError
from aecnn_deploy.exporters.onnx_options import OPSET, OnnxOptions
from aecnn_deploy.exporters.unsupported import model_error, one_line, op_name
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

BATCH = "batch"
_NEWEST_TYPE = 16  # TensorProto.BFLOAT16: the types above came with IR 9 and later
_OTHER_RELEASE = "replace it in the backbone, or use another torch or onnxscript release"


@dataclass(frozen=True, slots=True)
class Signature:
    """Names of the one input and the one output, and their shapes without the batch axis."""

    names: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """Nodes of the graph as torch translated it, and as it was written."""

    nodes_translated: int
    nodes: int


def write_onnx(
    model: Any, path: Path, signature: Signature, options: OnnxOptions, properties: Mapping[str, str]
) -> OnnxFile:
    """Write ``model``, as torch translated it, to ``path`` as ``options`` say, and load it once in ONNX Runtime.

    Raises UnsupportedOpError: an operator that the converter, onnxslim or ONNX Runtime cannot handle. Raises
    ExportError: the model is not what ``export_onnx`` promises.
    """
    onnx, name, translated = require("onnx", why="exporting"), path.name, len(model.graph.node)
    if next(item.version for item in model.opset_import if not item.domain) != options.opset:
        model = _convert(model, name, options.opset)
    if options.simplify:
        model = _slim(model, name)
    _tidy(model, properties)
    model.ir_version = options.ir_version
    _check(model, name, signature, options)
    try:
        onnx.save_model(model, str(path))
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise model_error(name, model, "onnx's checker refuses", exc, _OTHER_RELEASE) from exc
    check_loads(path)
    return OnnxFile(translated, len(model.graph.node))


def check_loads(path: Path) -> None:
    """Raises UnsupportedOpError, ExportError: ONNX Runtime does not load the file ``path``."""
    onnx, ort = require("onnx", why="exporting"), require("onnxruntime", why="exporting")
    try:
        with OnnxRuntimeRunner(path):
            pass
    except RunnerError as exc:
        words, who = exc.__cause__ or exc, f"ONNX Runtime {ort.__version__} cannot run"
        raise model_error(path.name, onnx.load(str(path)), who, words, _OTHER_RELEASE) from exc


class _Swallow(io.StringIO):
    """In stderr's place: what is printed goes nowhere, but rich's progress bars go to ``rich_proxied_file``."""

    def __init__(self, stderr: Any) -> None:
        super().__init__()
        self.rich_proxied_file = getattr(stderr, "rich_proxied_file", stderr)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, no log lines, nothing printed: what torch and onnxslim have to say comes as their exception."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(_Swallow(sys.stderr)),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _convert(model: Any, name: str, opset: int) -> Any:
    """``model`` in another opset, by onnx's converter."""
    onnx = require("onnx", why="exporting")
    for node in model.graph.node:  # the converter keeps this attribute of the reductions, which older ones lack
        for item in [item for item in node.attribute if item.name == "noop_with_empty_axes" and not item.i]:
            node.attribute.remove(item)
    try:
        lowered = onnx.version_converter.convert_version(model, opset)
    except Exception as exc:  # a RuntimeError of C++, or of the checker
        who = f"onnx {onnx.__version__} cannot convert to opset {opset}"
        raise model_error(name, model, who, exc, f"choose another --opset; {OPSET} needs no conversion") from exc
    used = {source for node in lowered.graph.node for source in node.input}
    for item in [item for item in lowered.graph.initializer if item.name not in used]:
        lowered.graph.initializer.remove(item)
    return lowered


def _slim(model: Any, name: str) -> Any:
    """``model`` with fewer nodes, by onnxslim."""
    onnxslim = require("onnxslim", why="--simplify")
    whole = type(model).FromString(model.SerializeToString())  # onnxslim works on what it is given
    try:
        with quiet():
            slim = onnxslim.slim(whole)
    except Exception as exc:  # its own errors share no base
        who = f"onnxslim {onnxslim.__version__} cannot simplify"
        raise model_error(name, model, who, exc, "leave out --simplify") from exc
    if slim is None or not slim.graph.node:
        raise ExportError(f"onnxslim {onnxslim.__version__} left nothing of {name}; leave out --simplify")
    return slim


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


def _check(model: Any, name: str, signature: Signature, options: OnnxOptions) -> None:
    """Raises ExportError: the graph is not what ``export_onnx`` promises."""
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            why = f"{node.domain} is no domain of ONNX, and no runtime knows its operators"
            raise UnsupportedOpError(name, op_name(node), node.name, "no runtime can run", why, _OTHER_RELEASE)
    opsets = {item.domain: item.version for item in model.opset_import}
    if opsets != {"": options.opset} or model.functions:
        raise ExportError(
            f"{name} needs opsets {opsets} and {len(model.functions)} functions, asked for is opset {options.opset}; "
            "use another onnxscript release"
        )
    if any(item.data_location for item in model.graph.initializer):
        raise ExportError(f"{name} keeps weights outside its file; use another torch release")
    newer = [item.name for item in model.graph.initializer if item.data_type > _NEWEST_TYPE]
    if newer:
        raise ExportError(f"{name}: {newer[0]} is of a type that IR {options.ir_version} does not know everywhere")
    left = [node.name for node in model.graph.node if node.op_type == "BatchNormalization"]
    if left:
        raise ExportError(f"{name} has {len(left)} BatchNormalization left ({left[0]}); fold it into its convolution")
    ends = (model.graph.input, model.graph.output)
    for values, expected_name, expected in zip(ends, signature.names, signature.shapes, strict=True):
        got = [value.name for value in values]
        if got != [expected_name]:
            raise ExportError(f"{name} has {', '.join(got)} where {expected_name} is expected")
        first, *rest = values[0].type.tensor_type.shape.dim
        if options.batch is None and not first.dim_param:
            raise frozen(name, f"{expected_name} has the batch size {first.dim_value}")
        if options.batch is not None and first.dim_value != options.batch:
            size = first.dim_param or first.dim_value
            raise ExportError(f"{name}: {expected_name} has the batch size {size}, asked for is {options.batch}")
        axes = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in rest)
        if axes != expected:
            raise ExportError(f"{name}: {expected_name} has the shape (batch, {axes}), expected {expected}")


def frozen(name: str, words: object) -> ExportError:
    """The module computes with its batch size as with a number."""
    return ExportError(
        f"torch's exporter froze the batch size of {name}: {one_line(words)}; "
        "the module must not compute with len() or shape[0] as a number, or use another torch release"
    )
