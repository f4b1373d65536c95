"""What LoadGen wrote: the summary of a test, and the answers that it logged."""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mlperf.settings import JudgeError

SUMMARY, DETAIL, ACCURACY = "mlperf_log_summary.txt", "mlperf_log_detail.txt", "mlperf_log_accuracy.json"

MISSED = "Performance constraints not satisfied"  # of Server: the bound
TOO_SHORT = "Min duration not satisfied"  # of Offline: the system is faster than LoadGen was told

_PERCENTILE = re.compile(r"([0-9.]+) percentile latency \(ns\)\s*: ([0-9]+)")
_TARGET = re.compile(r"([0-9.]+)th percentile latency \(ns\) : ([0-9]+)")
_RATES = ("QPS w/ loadgen overhead", "Completed samples per second", "Samples per second")
_DETAIL_LINE = ":::MLLOG "


@dataclass(frozen=True, slots=True)
class Summary:
    """A performance run as LoadGen judged it. Latencies are of a query: of one sample, or MultiStream's of several."""

    scenario: str
    valid: bool
    reasons: tuple[str, ...]  # why it is not, or what LoadGen found wrong
    latency_ms: dict[str, float]  # "mean", "min", "max", "p50", "p90", …
    target: tuple[float, float] | None  # the percentile that counts, and its milliseconds
    rate_hz: float | None  # samples a second; None of MultiStream, which LoadGen gives no rate
    samples_per_query: int


@dataclass(frozen=True, slots=True)
class Logged:
    """One answer as LoadGen logged it."""

    index: int  # of the sample
    answer: int  # the class's index


def read_summary(path: Path) -> Summary:
    """The summary of a performance run. Raises JudgeError: it is none."""
    try:
        text = path.read_text()
    except OSError as exc:
        raise JudgeError(f"{path}: {exc.strerror}; LoadGen wrote no summary") from None
    fields = dict(re.findall(r"^ *(\S[^:\n]*?) *: +(\S.*)$", text, re.MULTILINE))
    verdict = fields.get("Result is")
    if verdict not in ("VALID", "INVALID"):
        raise JudgeError(f"{path} has no verdict, 'Result is : VALID' or INVALID: LoadGen did not end the test")
    latency_ms = {
        name: int(fields[f"{name.capitalize()} latency (ns)"]) / 1e6
        for name in ("min", "mean", "max")
        if f"{name.capitalize()} latency (ns)" in fields
    }
    latency_ms |= {f"p{float(name):g}": int(found) / 1e6 for name, found in _PERCENTILE.findall(text)}
    if "p50" not in latency_ms:
        raise JudgeError(f"{path} has no latencies: LoadGen did not end the test")
    target = _TARGET.search(text)
    rates = [float(fields[name]) for name in _RATES if name in fields]
    return Summary(
        scenario=fields["Scenario"],
        valid=verdict == "VALID",
        reasons=_reasons(text),
        latency_ms=latency_ms,
        target=(float(target[1]), int(target[2]) / 1e6) if target else None,
        rate_hz=rates[0] if rates else None,
        samples_per_query=int(fields["samples_per_query"]),
    )


def _reasons(text: str) -> tuple[str, ...]:
    """What was not satisfied, with LoadGen's advice, and its errors and warnings."""
    reasons = [f"{name} not satisfied" for name in re.findall(r"^ *(.+?) satisfied ?: NO$", text, re.MULTILINE)]
    if reasons and (advice := re.search(r"^Recommendations:\n(.*?)^(?=\n|=|Early)", text, re.MULTILINE | re.DOTALL)):
        reasons += [line.strip(" *") for line in advice[1].splitlines() if line.strip()]
    if any(reason.startswith("Early stopping") for reason in reasons):
        found = re.search(r"^Early Stopping Result:\n(.*?)^\n", text, re.MULTILINE | re.DOTALL)
        reasons += [" ".join(line.strip(" *") for line in found[1].splitlines())] if found else []
    reasons += re.findall(r"^[0-9]+ (?:errors?|warnings?) encountered.*$", text, re.MULTILINE | re.IGNORECASE)
    return tuple(reasons)


def read_answers(path: Path) -> list[Logged]:
    """The answers of an accuracy log. Raises JudgeError: it is none, or an answer is no int32."""
    try:
        entries = json.loads(path.read_text())
        return [Logged(int(each["qsl_idx"]), *struct.unpack("<i", bytes.fromhex(each["data"]))) for each in entries]
    except OSError as exc:
        raise JudgeError(f"{path}: {exc.strerror}; LoadGen wrote no answers") from None
    except (ValueError, KeyError, TypeError, struct.error) as exc:
        raise JudgeError(f"{path} is no accuracy log of int32 answers: {type(exc).__name__}: {exc}") from None


def read_errors(path: Path) -> list[str]:
    """Errors and warnings of a detail log, each in words. Raises JudgeError: it cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError as exc:
        raise JudgeError(f"{path}: {exc.strerror}; LoadGen wrote no details") from None
    found = []
    for line in lines:
        if line.startswith(_DETAIL_LINE):
            event = json.loads(line.removeprefix(_DETAIL_LINE))
            if event["metadata"].get("is_error") or event["metadata"].get("is_warning"):
                found.append(f"{event['key']}: {event['value']}")
    return found
