"""Which operator an export stumbled on: the words of torch, onnx, onnxslim and ONNX Runtime, as one error."""

import re
import sys
import traceback
from types import FrameType
from typing import Any

from aecnn_deploy.errors import ExportError, UnsupportedOpError

_LIMIT = 300  # characters of somebody else's words
_PREFACE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
# What follows is advice for torch's developers.
_ASIDE = re.compile(r"For more information, run with \S+")
_ADVICE = re.compile(r"For extended logs|The error above occurred|See the stack trace|consider using")
_FX_NODE = re.compile(r"translating node %(\w+).*?target=(?:torch\.ops\.)?([\w.:<>]+)", re.DOTALL)
_NAMED_OP = re.compile(r"\b(\w+::\w+|(?:aten|prims)\.\w+(?:\.\w+)?)")


def one_line(words: object) -> str:
    """``words`` (an exception, a text) in one line of some hundred characters, without advice for developers."""
    text = _ASIDE.sub("", _PREFACE.sub("", str(words).strip()))
    return " ".join(_ADVICE.split(text, maxsplit=1)[0].split())[:_LIMIT] or type(words).__name__


def capture_error(file: str, torch: Any, exc: Exception) -> ExportError:
    """What stopped torch.export: the operator, and the line of the module that calls it."""
    who, words = f"torch {torch.__version__} cannot capture", one_line(exc)
    calls = list(traceback.walk_tb(exc.__traceback__))
    owners = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in calls]
    # The first frame is our own call; once torch's have begun, the last one of somebody else is the module's.
    start = owners.index("torch") if "torch" in owners else len(owners)
    own = [at for at in range(start, len(calls)) if owners[at] not in {"torch", *sys.stdlib_module_names}]
    if not own:
        return ExportError(f"{who} {file}: {words}")
    place = _place(*calls[own[-1]])
    op = _last_captured(exc) or _first(_NAMED_OP, words) or _called([frame for frame, _ in calls[own[-1] + 1 :]])
    if op is None:  # the module's own error
        return ExportError(f"{who} {file}, at {place}: {words}")
    return UnsupportedOpError(file, op, place, who, words, "write it with other operators, without a branch on values")


def translation_error(file: str, torch: Any, exc: Exception) -> ExportError:
    """What stopped torch.onnx: it wraps the cause, and says of each node that it comes from the one before."""
    who, causes = f"torch {torch.__version__} cannot translate", _chain(exc)
    for cause in causes:
        if found := _FX_NODE.search(str(cause)):
            node, op = found.groups()
            return UnsupportedOpError(
                file, op, node, who, one_line(causes[-1]), "write it with other operators, or use another torch release"
            )
    return ExportError(f"{who} {file} to ONNX: {one_line(causes[-1])}")


def model_error(file: str, model: Any, who: str, words: object, remedy: str) -> ExportError:
    """What stopped a tool that works on the ONNX ``model``: the node that its ``words`` name, by name or by kind."""
    text = str(words)
    named = [node for node in model.graph.node if node.name and _has(text, node.name)]
    kinds = sorted(model.graph.node, key=lambda node: -len(node.op_type))
    kind = [node for node in kinds if _has(text, node.op_type)]
    if not named and not kind:
        return ExportError(f"{who} {file}: {one_line(text)}; {remedy}")
    node = max(named, key=lambda node: len(node.name)) if named else kind[0]
    return UnsupportedOpError(file, op_name(node), node.name, who, one_line(text), remedy)


def op_name(node: Any) -> str:
    """``Conv``, or ``domain::Conv`` for what is not ONNX's own."""
    return f"{node.domain}::{node.op_type}" if node.domain else str(node.op_type)


def _has(text: str, word: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", text) is not None


def _chain(exc: BaseException) -> list[BaseException]:
    """The exception, what caused it, and so on."""
    chain = [exc]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _last_captured(exc: Exception) -> str | None:
    """Of a value that decides what is computed: the operator that reads it, the last one in torch's half graph."""
    captured = re.findall(r"= torch\.ops\.([\w.]+)\(", str(getattr(exc, "partial_fx_graph", "")))
    return captured[-1] if captured else None


def _called(frames: list[FrameType]) -> str | None:
    """The tensor's method or function that torch was told of last, e.g. ``Tensor.__getitem__``."""
    for frame in reversed(frames):
        name = getattr(frame.f_locals.get("func"), "__qualname__", None)
        if frame.f_code.co_name == "__torch_function__" and isinstance(name, str):
            return name.replace("TensorBase.", "Tensor.").removeprefix("_")
    return None


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return found.group(1) if found else None


def _place(frame: FrameType, line: int) -> str:
    owner = frame.f_locals.get("self")
    module = f"{type(owner).__name__}." if owner is not None else ""
    return f"{module}{frame.f_code.co_name}, line {line} of {frame.f_code.co_filename.rpartition('/')[2]}"
