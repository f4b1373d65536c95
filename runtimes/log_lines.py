"""Log lines for people and for programs: one line a record, nothing in it that a stranger can steer or flood.

A record's structured fields are given with ``extra=fields(...)``; any logger's records, uvicorn's too, go through the
root's handler, which ``configure_logging`` sets.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from aecnn_deploy.errors import SettingsError

Value = str | int | float | bool | None | Mapping[str, float]

TEXT, JSON = "text", "json"
FORMATS = (TEXT, JSON)
REQUESTS = "aecnn_deploy.edge.requests"  # the logger that writes a line for each request, at DEBUG
_UNLIMITED = (REQUESTS, "aecnn_deploy.device.images")  # lines that were asked for, one a request or an image
MAX_MESSAGE_CHARACTERS, MAX_FIELD_CHARACTERS = 2000, 500

_FIELDS = "aecnn_fields"  # the record's attribute
_MAX_KINDS = 256


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How a command logs. Raises SettingsError: no such format, or a number is out of its range.

    Of one kind (a logger's message before its arguments are put in, and the field ``code``) ``burst`` lines are
    written in ``window_s`` seconds, and of all kinds together 20 times as many; ``requests`` adds a line for each
    request, which are not counted.
    """

    format: str = TEXT
    requests: bool = False
    burst: int = 20
    window_s: float = 10.0

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise SettingsError(f"no log format {self.format!r}; choose one of {', '.join(FORMATS)}")
        if self.burst < 1:
            raise SettingsError(f"burst is {self.burst}, expected at least 1 line")
        if not 0 < self.window_s < 1e6:
            raise SettingsError(f"window_s is {self.window_s}, expected a positive number of seconds")


def fields(**values: Value) -> dict[str, Any]:
    """``extra`` of a log call: what a program wants to read of the line apart from its message."""
    return {_FIELDS: values}


def configure_logging(settings: LogSettings, stream: TextIO) -> None:
    """Write the records of every logger from INFO on to ``stream``, those of requests if the settings say so.

    Replaces the root's handlers.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if settings.format == JSON else TextLines())
    handler.addFilter(RateLimit(settings))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger(REQUESTS).setLevel(logging.DEBUG if settings.requests else logging.INFO)


def one_line(text: str, limit: int) -> str:
    """``text`` without line breaks, control characters, marks that turn text around and lone surrogates."""
    if not text.isprintable():
        text = " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


class RateLimit(logging.Filter):
    """Lets the first records of each kind in a window through, counts the rest, and says how many at the next one."""

    def __init__(self, settings: LogSettings, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._settings, self._now_s = settings, now_s
        self._kinds: OrderedDict[tuple[str, ...], _Kind] = OrderedDict()  # the least recently logged first
        self._all = _Kind()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name in _UNLIMITED:
            return True
        code = getattr(record, _FIELDS, {}).get("code", "")
        # A message without arguments may be anything; with them it is a literal of the code.
        kind = (record.name, str(record.msg) if record.args else "", str(code))
        kept = self._kinds.pop(kind, None) or _Kind()
        self._kinds[kind] = kept
        while len(self._kinds) > _MAX_KINDS:
            self._kinds.popitem(last=False)
        now_s, settings = self._now_s(), self._settings
        if not kept.admits(now_s, settings.window_s, settings.burst):
            return False
        if not self._all.admits(now_s, settings.window_s, 20 * settings.burst):
            kept.left_out += 1
            return False
        record.left_out, kept.left_out = kept.left_out, 0
        return True


@dataclass(slots=True)
class _Kind:
    """Records of one kind: how many in the window that began at ``since_s``, and how many were left out."""

    since_s: float = -1e9
    count: int = 0
    left_out: int = 0

    def admits(self, now_s: float, window_s: float, burst: int) -> bool:
        if now_s - self.since_s >= window_s:
            self.since_s, self.count = now_s, 0
        self.count += 1
        if self.count > burst:
            self.left_out += 1
            return False
        return True


class TextLines(logging.Formatter):
    """``TIME LEVEL MESSAGE``; an exception as its last line: a stranger's broken request must not fill the log."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        stamp = self.formatTime(record)
        return f"{stamp} {record.levelname} {_message(record)}"


class JsonLines(logging.Formatter):
    """One JSON object a line: ``ts``, ``level``, ``logger``, ``message``, then the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        document: dict[str, Value] = {
            "ts": stamp.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": one_line(record.name, MAX_FIELD_CHARACTERS),
            "message": _message(record),
        }
        for name, value in getattr(record, _FIELDS, {}).items():
            document.setdefault(name, one_line(value, MAX_FIELD_CHARACTERS) if isinstance(value, str) else value)
        if record.exc_info and record.exc_info[0] is not None:
            document["error"] = record.exc_info[0].__name__
        if left_out := getattr(record, "left_out", 0):
            document["left_out"] = left_out
        return msgspec.json.encode(document).decode()


def _message(record: logging.LogRecord) -> str:
    text = one_line(record.getMessage(), MAX_MESSAGE_CHARACTERS)
    if record.exc_info and record.exc_info[0] is not None:
        text += one_line(f": {record.exc_info[0].__name__}: {record.exc_info[1]}", MAX_FIELD_CHARACTERS)
    if left_out := getattr(record, "left_out", 0):
        text += f" ({left_out} more like this were not logged)"
    return text
