"""A series of tests: every scenario with every system, one edge process, and a device process for each pair."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aecnn_deploy.bundle.reader import Bundle
from benchmarks.link_arms import FILE, Arm, right_classes
from benchmarks.mlperf.accuracy import score, write_labels
from benchmarks.mlperf.judging import Failed, Order, Outcome, Ready, SetUp, judge
from benchmarks.mlperf.loadgen import Setting
from benchmarks.mlperf.logs import ACCURACY, DETAIL, MISSED, SUMMARY, TOO_SHORT
from benchmarks.mlperf.photographs import Photographs
from benchmarks.mlperf.rows import Expected, accuracy_part, check_answers, logged, performance_row
from benchmarks.mlperf.settings import (
    SCENARIOS,
    ArmName,
    JudgeError,
    JudgeSettings,
    Mode,
    Scenario,
    SystemSettings,
)
from benchmarks.processes import ProcessFailedError, Worker, cpu_s, working

_LONGEST_S = 24 * 3600.0  # of one test; a system that is silent ends it long before
_START_S = 120.0
_LOGGED = 4096  # answers of a performance run that LoadGen logs: all of a reduced one
_LOG_SEED = 720381539243781796  # which ones of a longer run
_FAST = 0.5  # LoadGen makes its queries beforehand: for a system twice as fast as it seemed
_OFFLINE_SLACK = 1.3  # Offline ends when all are answered: more samples, so that it is not over too soon
_LESS = 0.75  # of a rate at which the Server scenario's bound was missed
_MAX_LOG_BYTES = 200_000  # of a log that is kept


@dataclass(frozen=True, slots=True)
class Series:
    """What is tested."""

    bundle: Bundle
    photographs: Photographs
    system: SystemSettings
    tests: JudgeSettings
    scenarios: Sequence[Scenario]
    arms: Sequence[ArmName]
    edge_url: str
    edge_pid: int | None  # None: the edge is on another machine, and its CPU time is not known


def run_series(series: Series, folder: Path, on_row: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    """Every test's row, told as it is done; the logs are in ``folder``/SCENARIO-ARM/MODE.

    Raises JudgeError: a test did not come to its end; which one, and why.
    """
    rows = []
    answers = _direct_answers(series)
    labels = series.photographs.labels
    if labels is None:
        labels = tuple(classes[0] for classes in answers["local"])
    folder.mkdir(parents=True, exist_ok=True)
    write_labels(folder / "val_map.txt", series.photographs.files, labels)
    for arm in series.arms:
        expected = Expected(answers[arm], _stated(series, arm))
        offline_hz: float | None = None
        for scenario in [each for each in SCENARIOS if each in series.scenarios]:
            try:
                row = _pair(series, scenario, arm, folder / f"{scenario}-{arm}", offline_hz, expected, labels)
            except (JudgeError, ProcessFailedError) as exc:  # the latter: its process died of LoadGen's C++
                raise JudgeError(f"{scenario}, {arm}: {exc}") from exc
            if scenario == "Offline":
                offline_hz = row["images_per_s"]
            rows.append(row)
            on_row(row)
    return rows


def keep_logs(folder: Path, out: Path) -> None:
    """Copy to ``out``, which is replaced, what of the logs is to be kept: summaries, scores, small logs."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for path in sorted(folder.rglob("*")):
        wanted = {
            "performance": (SUMMARY, DETAIL),
            "accuracy": (SUMMARY, ACCURACY, "accuracy.txt"),
        }.get(path.parent.name, ("val_map.txt",))
        if path.is_file() and path.name in wanted and path.stat().st_size < _MAX_LOG_BYTES:
            target = partial / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _pair(
    series: Series,
    scenario: Scenario,
    arm: ArmName,
    folder: Path,
    offline_hz: float | None,
    expected: Expected,
    labels: Sequence[int],
) -> dict[str, Any]:
    """One scenario with one system: the performance run, the accuracy run, and whether they agree."""
    with _device(series, scenario, arm) as (worker, ready):
        changes = _changes(series.tests, scenario, ready.rate_hz, offline_hz)
        row = _performance(series, worker, scenario, arm, folder / "performance", changes)
        missed: list[dict[str, Any]] = []
        while (other := _other_rate(series.tests, row, changes, len(missed) + 1)) is not None:
            missed.append({name: row[name] for name in ("target", "reasons", "latency_ms", "images_per_s")})
            changes |= other
            row = _performance(series, worker, scenario, arm, folder / "performance", changes)
        row["missed_before"] = missed
        row["accuracy"], of_accuracy = None, []
        if series.tests.accuracy:
            mode: Mode = "accuracy"
            tested = _ask(worker, Order(mode, folder / mode, {}))
            found = score(folder / mode / ACCURACY, labels)
            (folder / mode / "accuracy.txt").write_text(found.text())
            metric = "top-1" if series.photographs.labels is not None else "agreement with the unsplit model"
            row["accuracy"] = accuracy_part(found, metric, tested, expected)
            of_accuracy = logged(folder / mode)
    checked = check_answers(logged(folder / "performance"), of_accuracy, expected)
    row["answers"] = {
        "performance": checked.performance,
        "accuracy": checked.accuracy,
        "wrong": checked.wrong,
        "differing_between_runs": checked.differing,
        "good": checked.good,
    }
    return row


def _performance(
    series: Series, worker: Worker, scenario: Scenario, arm: ArmName, folder: Path, changes: dict[str, Setting]
) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)  # of a run at another rate
    before_s = _edge_cpu_s(series)
    tested = _ask(worker, Order("performance", folder, dict(changes)))
    after_s = _edge_cpu_s(series)
    edge_cpu_s = None if before_s is None or after_s is None else after_s - before_s
    return performance_row(scenario, arm, folder, tested, edge_cpu_s)


def _other_rate(
    tests: JudgeSettings, row: dict[str, Any], changes: dict[str, Setting], tries: int
) -> dict[str, Setting] | None:
    """What to run once more with; None: the row is the result, whatever LoadGen says of it."""
    if row["scenario"] == "Server" and MISSED in row["reasons"] and tries < tests.server_tries:
        return {"server_target_qps": changes["server_target_qps"] * _LESS}
    if row["scenario"] == "Offline" and TOO_SHORT in row["reasons"] and tries == 1:
        return {"offline_expected_qps": row["images_per_s"] * _OFFLINE_SLACK}
    return None


@contextmanager
def _device(series: Series, scenario: Scenario, arm: ArmName) -> Iterator[tuple[Worker, Ready]]:
    set_up = SetUp(
        scenario,
        arm,
        series.bundle.path,
        series.system,
        series.edge_url,
        series.photographs.files,
        series.tests.conf,
        probe_s=min(1.0, (series.tests.seconds or 5.0) / 5),
    )
    with working(judge, set_up) as worker:
        ready = _answer(worker.receive(_START_S))
        assert isinstance(ready, Ready)
        yield worker, ready


def _ask(worker: Worker, order: Order) -> Outcome:
    tested = _answer(worker.ask(order, _LONGEST_S))
    assert isinstance(tested, Outcome)
    return tested


def _answer(said: Ready | Outcome | Failed) -> Ready | Outcome:
    if isinstance(said, Failed):
        raise JudgeError(said.why)
    return said


def _changes(tests: JudgeSettings, scenario: Scenario, rate_hz: float, offline_hz: float | None) -> dict[str, Setting]:
    """What LoadGen is told beside its files: how fast the system seems, and what the options say."""
    changes: dict[str, Setting] = {
        "accuracy_log_sampling_target": _LOGGED,
        "accuracy_log_rng_seed": _LOG_SEED,
        "offline_expected_qps": rate_hz * _OFFLINE_SLACK,
        "single_stream_expected_latency_ns": int(_FAST * 1e9 / rate_hz),
        "multi_stream_expected_latency_ns": int(_FAST * 8e9 / rate_hz),
        "server_target_qps": tests.server_target_qps or tests.server_load * (offline_hz or rate_hz),
    }
    if tests.seconds is not None:
        changes["min_duration_ms"] = int(tests.seconds * 1e3)
    if tests.server_latency_ms is not None:
        changes["server_target_latency_ns"] = int(tests.server_latency_ms * 1e6)
    return changes


def _edge_cpu_s(series: Series) -> float | None:
    return None if series.edge_pid is None else cpu_s(series.edge_pid)


def _direct_answers(series: Series) -> dict[ArmName, list[list[int]]]:
    """By system and sample, the classes that may be the answer: the models run here, without codec, link and edge."""
    bundle, files = series.bundle, list(series.photographs.files)
    split, whole = Arm(bundle.variant(series.system.variant).id, series.system.coder), Arm(image_coding=FILE)
    found = right_classes(bundle, [split, whole] if "split" in series.arms else [whole], files)
    return {"split": found.get(split, []), "full": found[whole], "local": found[whole]}


def _stated(series: Series, arm: ArmName) -> float | None:
    """What the bundle says of the system; of agreement with the unsplit model only a variant has a figure."""
    manifest, labelled = series.bundle.manifest, series.photographs.labels is not None
    if arm == "split":
        variant = series.bundle.variant(series.system.variant)
        return variant.accuracy if labelled else variant.agreement
    stated = manifest.measurements.get("unsplit_accuracy")
    return float(stated) if labelled and isinstance(stated, int | float) else None
