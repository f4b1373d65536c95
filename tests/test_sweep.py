"""Sweeps in this process and in worker processes: order, failures, retries, death."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecnn_deploy.errors import AecnnError, SettingsError, TrainingError
from aecnn_deploy.training.progress import SilentProgress
from aecnn_deploy.training.sweep import SweepTask, in_order, run_sweep
from tests.sweep_tasks import write

ROOT = Path(__file__).resolve().parents[1]


class Told(SilentProgress):
    """Keeps what a caller is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.notes: list[str] = []

    def stage(self, title: str, steps: int) -> None:
        self.stages.append((title, steps))

    def step(self, note: str = "") -> None:
        self.notes.append(note)


def never(task_id: str) -> bool:
    return False


def refuse(task_id: str) -> None:
    raise AssertionError(f"{task_id} was executed")


@st.composite
def graphs(draw: st.DrawFn) -> list[SweepTask]:
    """Tasks that need earlier ones of a hidden order, shuffled."""
    count = draw(st.integers(0, 12))
    tasks = [
        SweepTask(f"t{number}", tuple(f"t{need}" for need in draw(st.sets(st.integers(0, number - 1), max_size=3))))
        if number
        else SweepTask("t0")
        for number in range(count)
    ]
    return draw(st.permutations(tasks))


@given(graphs())
def test_every_task_comes_after_all_that_it_needs(tasks: list[SweepTask]) -> None:
    ordered = in_order(tasks)
    assert Counter(ordered) == Counter(tasks)
    seen: set[str] = set()
    for task in ordered:
        assert seen.issuperset(task.needs)
        seen.add(task.id)
    assert in_order(ordered) == ordered


def test_tasks_keep_the_given_order_where_their_needs_allow_it() -> None:
    tasks = [SweepTask("c", needs=("b",)), SweepTask("z"), SweepTask("b"), SweepTask("a")]
    assert [task.id for task in in_order(tasks)] == ["z", "b", "c", "a"]


@given(graphs(), st.data(), st.integers(0, 2))
def test_a_sweep_does_all_that_can_be_done_and_names_the_rest(
    tasks: list[SweepTask], data: st.DataObject, retries: int
) -> None:
    ids = [task.id for task in tasks]
    some = st.sets(st.sampled_from(ids)) if ids else st.just(set[str]())
    before, broken, flaky = (data.draw(some) for _ in range(3))
    ran: list[str] = []
    done = set(before)
    needs = {task.id: task.needs for task in tasks}

    def execute(task_id: str) -> None:
        assert task_id not in done
        assert done.issuperset(needs[task_id])
        ran.append(task_id)
        if task_id in broken or (task_id in flaky and ran.count(task_id) == 1):
            raise TrainingError("no")
        done.add(task_id)

    told = Told()
    outcome = run_sweep(tasks, execute, is_done=before.__contains__, retries=retries, progress=told)
    assert outcome.done == tuple(task.id for task in in_order(tasks) if task.id in done)
    assert {*outcome.done, *outcome.failed} == set(ids)
    assert len(ran) == len(told.notes)
    for task_id, error in outcome.failed.items():
        assert task_id not in done
        if task_id in ran:
            assert error == "no"
            assert ran.count(task_id) == retries + 1
        else:
            need = re.fullmatch("needs (t[0-9]+), which failed", error)
            assert need
            assert need[1] in outcome.failed
            assert need[1] in needs[task_id]
    failing = broken | (flaky if retries == 0 else set())
    assert not failing & (done - before)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([SweepTask("a"), SweepTask("b"), SweepTask("a")], "'a' is given twice"),
        ([SweepTask("a", needs=("b",))], "'a' needs 'b', which is no task"),
        ([SweepTask("a", needs=("a",))], "in a circle: a → a"),
        (
            [SweepTask("a", needs=("b",)), SweepTask("b", needs=("a",)), SweepTask("c")],
            "in a circle: (a → b → a|b → a)",
        ),
    ],
    ids=["twice", "unknown", "itself", "circle"],
)
def test_tasks_that_cannot_be_ordered_are_refused_before_anything_runs(tasks: list[SweepTask], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        run_sweep(tasks, refuse, is_done=never, progress=SilentProgress())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jobs": 0}, "0 jobs"),
        ({"jobs": 2, "ray_address": "auto"}, "do not go together"),
        ({"retries": -1}, "-1 times"),
    ],
    ids=["no jobs", "jobs and Ray", "negative retries"],
)
def test_settings_that_no_sweep_can_have_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        run_sweep([SweepTask("a")], refuse, is_done=never, progress=SilentProgress(), **change)  # type: ignore[arg-type]


def test_a_function_that_other_processes_cannot_find_is_refused() -> None:
    tasks = [SweepTask("a"), SweepTask("b")]
    with pytest.raises(SettingsError, match=r"2 jobs.*module's function"):
        run_sweep(tasks, lambda task_id: None, is_done=never, jobs=2, progress=SilentProgress())


def test_a_sweep_that_is_done_starts_nothing() -> None:
    tasks = [SweepTask("a"), SweepTask("b")]
    told = Told()
    outcome = run_sweep(tasks, refuse, is_done=lambda _: True, jobs=2, progress=told)
    assert outcome.done == ("a", "b")
    assert not outcome.failed
    assert not told.stages


def test_failures_are_told_and_tried_again_after_everything_else(tmp_path: Path) -> None:
    tasks = [SweepTask("flaky"), SweepTask("wrong"), SweepTask("after", needs=("flaky",)), SweepTask("other")]
    told = Told()
    outcome = run_sweep(tasks, partial(write, tmp_path), is_done=never, progress=told)
    assert outcome.done == ("flaky", "after", "other")
    assert list(outcome.failed) == ["wrong"]
    assert re.fullmatch(r"ZeroDivisionError: always wrong \(sweep_tasks\.py, line \d+\)", outcome.failed["wrong"])
    assert told.stages == [
        ("sweep", 4),
        ("flaky again, alone (try 2 of 2)", 1),
        ("sweep", 1),
        ("wrong again, alone (try 2 of 2)", 1),
    ]
    assert [note.partition(":")[0] for note in told.notes] == [
        "flaky failed",
        "wrong failed",
        "other",
        "flaky",
        "after",
        "wrong failed",
    ]
    assert told.notes[0] == "flaky failed: flaky fails the first time; will be tried again alone"
    assert "again" not in told.notes[-1]


def test_ctrl_c_stops_a_sweep_in_this_process_at_once() -> None:
    ran: list[str] = []

    def execute(task_id: str) -> None:
        ran.append(task_id)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep([SweepTask("a"), SweepTask("b")], execute, is_done=never, progress=SilentProgress())
    assert ran == ["a"]


def test_a_dead_worker_fails_its_task_only_and_the_task_is_tried_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus = len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", str(cpus + 1))
    tasks = [*map(SweepTask, ("meets-1", "meets-2", "killed", "other")), SweepTask("after", needs=("killed", "other"))]
    told = Told()
    outcome = run_sweep(tasks, partial(write, tmp_path), is_done=never, jobs=2, progress=told)
    assert outcome.done == ("meets-1", "meets-2", "killed", "other", "after")
    assert not outcome.failed
    said = "killed failed: its process was killed by signal 9: out of memory? run fewer jobs; will be tried again alone"
    assert said in told.notes

    rows = {task_id: (tmp_path / task_id).read_text().split() for task_id in outcome.done}
    spans = {task_id: (float(row[1]), float(row[2])) for task_id, row in rows.items()}
    begin_s, end_s = spans.pop("killed")
    assert all(end < begin_s or end_s < begin for begin, end in spans.values())
    assert {row[3] for row in rows.values()} == {str(max(1, cpus // 2))}
    assert all(is_gone(int(row[0])) for row in rows.values())


def test_workers_get_no_task_that_is_done_and_tell_how_the_others_failed(tmp_path: Path) -> None:
    tasks = [
        *map(SweepTask, ("a", "wrong", "exits")),
        SweepTask("b", needs=("a",)),
        SweepTask("never", needs=("b", "exits")),
    ]
    execute = partial(write, tmp_path)
    outcome = run_sweep(tasks, execute, is_done="a".__eq__, jobs=2, retries=0, progress=SilentProgress())
    assert outcome.done == ("a", "b")
    assert re.fullmatch(r"ZeroDivisionError: always wrong \(sweep_tasks\.py, line \d+\)", outcome.failed.pop("wrong"))
    assert outcome.failed == {"exits": "its process ended with exit code 3", "never": "needs exits, which failed"}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["b"]


SCRIPT = """
from functools import partial
from pathlib import Path
from aecnn_deploy.training.progress import SilentProgress
from aecnn_deploy.training.sweep import SweepTask, run_sweep
from tests.sweep_tasks import write

def main():
    tasks = [SweepTask("endless-1"), SweepTask("endless-2")]
    run_sweep(tasks, partial(write, Path(FOLDER)), is_done=lambda _: False, jobs=2, progress=SilentProgress())
"""


def start_script(folder: Path, last: str) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT.replace("FOLDER", repr(str(folder))) + last)
    return subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def is_gone(pid: int) -> bool:
    """No process, or one that only waits for a parent to ask for its exit code."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def until(true: Callable[[], bool], limit_s: float) -> None:
    end_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end_s, f"not within {limit_s} s"
        time.sleep(0.05)


def workers(folder: Path) -> list[int]:
    texts = [path.read_text() for path in (folder / "tries").glob("endless*")]
    return [int(text) for text in texts if text]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_workers_do_not_outlive_the_sweep(tmp_path: Path, number: signal.Signals) -> None:
    process = start_script(tmp_path, 'if __name__ == "__main__":\n    main()\n')
    try:
        until(lambda: len(workers(tmp_path)) == 2, limit_s=60)
        pids = workers(tmp_path)
        assert not any(is_gone(pid) for pid in pids)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: the workers get it too
        else:
            process.send_signal(number)
        _, said = process.communicate(timeout=10)
        until(lambda: all(is_gone(pid) for pid in pids), limit_s=10)
        assert said.count("Traceback") == (1 if number == signal.SIGINT else 0), said
        assert process.returncode == -number
    finally:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None


def test_a_script_that_starts_itself_again_is_told_what_it_lacks(tmp_path: Path) -> None:
    process = start_script(tmp_path, "main()\n")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    error = said.strip().splitlines()[-1]
    assert error.startswith(f"{TrainingError.__module__}.TrainingError: a worker process ended with exit code 1 before")
    assert 'if __name__ == "__main__"' in error


def test_an_error_without_text_still_names_itself() -> None:
    def execute(task_id: str) -> None:
        raise AecnnError

    outcome = run_sweep([SweepTask("a")], execute, is_done=never, retries=0, progress=SilentProgress())
    assert outcome.failed == {"a": "AecnnError"}
