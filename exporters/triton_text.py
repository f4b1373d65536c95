"""Protobuf's text format, as much of it as a ``config.pbtxt`` needs.

Not protobuf itself: the classes of Triton's ModelConfig come with ``tritonclient`` only, which an edge that writes a
repository would then need, with gRPC, to print thirty lines. The tests parse all that is written here with them.
"""

from dataclasses import dataclass
from typing import TypeAlias

from aecnn_deploy.errors import ExportError

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_INDENT = "  "


@dataclass(frozen=True, slots=True)
class Symbol:
    """A value of an enum, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Message:
    """Fields in the order in which they are written; one that repeats stands there as often as it has values."""

    fields: "tuple[tuple[str, Value], ...]"


Value: TypeAlias = str | bool | int | Symbol | Message | tuple[int, ...]  # the last: a repeated number, in one list


def message(**fields: Value) -> Message:
    """A message in which no field repeats."""
    return Message(tuple(fields.items()))


def entry(key: str, value: Value) -> Message:
    """One entry of a map."""
    return message(key=key, value=value)


def render(config: Message) -> str:
    """``config`` as text, a field a line. Raises ExportError: a string or a number that the format has no form for."""
    return "".join(line + "\n" for line in _lines(config, ""))


def _lines(config: Message, indent: str) -> list[str]:
    lines = []
    for name, value in config.fields:
        if isinstance(value, Message):
            lines += [f"{indent}{name} {{", *_lines(value, indent + _INDENT), f"{indent}}}"]
        else:
            lines.append(f"{indent}{name}: {_scalar(value)}")
    return lines


def _scalar(value: str | bool | int | Symbol | tuple[int, ...]) -> str:
    if isinstance(value, Symbol):
        return value.name
    if isinstance(value, bool):  # before int, which it is too
        return "true" if value else "false"
    if isinstance(value, int):
        return _number(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_number, value))}]"
    return _quoted(value)


def _number(value: int) -> str:
    if not -(1 << 63) <= value < 1 << 63:
        raise ExportError(f"{value} is no 64-bit number: it cannot stand in a config.pbtxt")
    return str(value)


def _quoted(text: str) -> str:
    """Between quotes: UTF-8 as it is, control characters as three octal digits."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ExportError(f"{text!r} is no text that UTF-8 can hold; rename it and export again") from None
    inside = "".join(
        _ESCAPES.get(each) or (each if each >= " " and each != "\x7f" else f"\\{ord(each):03o}") for each in text
    )
    return f'"{inside}"'
