"""A row of the results: one scenario and one system, as LoadGen judged it, with every answer checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.mlperf.accuracy import Score
from benchmarks.mlperf.judging import Outcome
from benchmarks.mlperf.logs import ACCURACY, DETAIL, SUMMARY, Logged, Summary, read_answers, read_errors, read_summary
from benchmarks.mlperf.settings import ArmName, JudgeError, Scenario

SEEDS = ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed", "accuracy_log_rng_seed")
_PERCENTILES = ("p50", "p90", "p95", "p99", "p99.9", "mean", "min", "max")


@dataclass(frozen=True, slots=True)
class Expected:
    """What a system's answers are held against: by sample, the classes that head and tail (or model) give directly."""

    classes: Sequence[Sequence[int]]
    stated: float | None  # the accuracy, or agreement, that the bundle states


@dataclass(frozen=True, slots=True)
class Checked:
    """The answers that LoadGen logged, against what they must be."""

    performance: int  # answers of the performance run
    accuracy: int  # of the accuracy run
    wrong: int  # of both: another class than the models give when they are run directly
    differing: int  # of the performance run: another class than the accuracy run's for the same sample

    @property
    def good(self) -> bool:
        return self.performance > 0 and not self.wrong and not self.differing


def check_answers(performance: Sequence[Logged], accuracy: Sequence[Logged], expected: Expected) -> Checked:
    """Compare both runs' answers with the models' and with each other's. A tie of two classes may go either way."""
    classes = {each.index: each.answer for each in accuracy}
    wrong = sum(each.answer not in expected.classes[each.index] for each in (*performance, *accuracy))
    differing = sum(
        each.answer != classes.get(each.index, each.answer) and len(expected.classes[each.index]) == 1
        for each in performance
    )
    return Checked(len(performance), len(accuracy), wrong, differing)


def performance_row(
    scenario: Scenario, arm: ArmName, folder: Path, tested: Outcome, edge_cpu_s: float | None
) -> dict[str, Any]:
    """A performance run. Raises JudgeError: its logs are not whole, or say something else than the system does."""
    summary = read_summary(folder / SUMMARY)
    if summary.scenario != scenario:
        raise JudgeError(f"{folder / SUMMARY} is of {summary.scenario}, expected {scenario}")
    samples = max(1, tested.samples)
    device_cpu_s = tested.cpu_s - tested.loadgen_cpu_s
    return {
        "scenario": scenario,
        "arm": arm,
        "result": "VALID" if summary.valid else "INVALID",
        "reasons": [*summary.reasons, *read_errors(folder / DETAIL)],
        "target": _target(summary, tested),
        "latency_ms": {name: round(summary.latency_ms[name], 3) for name in _PERCENTILES if name in summary.latency_ms},
        "latency_of": "a sample" if summary.samples_per_query == 1 or scenario == "Offline" else "a query",
        "samples_per_query": summary.samples_per_query,
        "images_per_s": round(_rate_hz(summary), 2),
        "seconds": round(tested.seconds, 2),
        "samples": tested.samples,
        "sent_bytes_mean": round(tested.sent_bytes / samples, 1),
        "cpu_ms_an_image": {
            "device": round(device_cpu_s / samples * 1e3, 3),
            "edge": None if edge_cpu_s is None else round(edge_cpu_s / samples * 1e3, 3),
            "loadgen": round(tested.loadgen_cpu_s / samples * 1e3, 3),
        },
        "seeds": {name: str(tested.settings[name]) for name in SEEDS},  # of 64 bits: JSON's numbers have 53
        "settings": {name: value for name, value in tested.settings.items() if name not in SEEDS},
    }


def accuracy_part(found: Score, metric: str, tested: Outcome, expected: Expected) -> dict[str, Any]:
    """An accuracy run's score, beside what the bundle states."""
    stated = expected.stated
    return {
        "metric": metric,
        "share": round(found.share, 5),
        "good": found.good,
        "samples": found.total,
        "standard_error": round(found.standard_error, 5),
        "stated": None if stated is None else round(stated, 5),
        "difference": None if stated is None else round(found.share - stated, 5),
        "within_two_standard_errors": None if stated is None else _is_near(found, stated),
        "seconds": round(tested.seconds, 2),
        "sha256": found.sha256,
    }


def logged(folder: Path) -> list[Logged]:
    """The answers of a run. Raises JudgeError."""
    return read_answers(folder / ACCURACY)


def _is_near(found: Score, stated: float) -> bool:
    """Of the larger standard error: that of a few samples which are all right is 0."""
    error = max(found.standard_error, float((stated * (1 - stated) / found.total) ** 0.5))
    return abs(found.share - stated) <= 2 * error


def _target(summary: Summary, tested: Outcome) -> dict[str, float] | None:
    """The bound that the scenario has, or the percentile that it is about; None of Offline."""
    if summary.scenario == "Server":
        settings = tested.settings
        return {
            "percentile": settings["server_target_latency_percentile"] * 100,
            "limit_ms": settings["server_target_latency_ns"] / 1e6,
            "offered_per_s": round(settings["server_target_qps"], 3),
        }
    if summary.target is None:
        return None
    return {"percentile": summary.target[0], "latency_ms": round(summary.target[1], 3)}


def _rate_hz(summary: Summary) -> float:
    """Samples a second; MultiStream's from its mean latency, since its queries follow each other."""
    if summary.rate_hz is not None:
        return summary.rate_hz
    return summary.samples_per_query * 1e3 / summary.latency_ms["mean"]
