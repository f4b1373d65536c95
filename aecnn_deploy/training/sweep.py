"""Sweeps: tasks with dependencies, run here one by one, by worker processes, or on a Ray cluster.

A task writes its own result, so nothing but its failure comes back, and a sweep that was stopped goes on: whatever is
done already is skipped. A task that fails stops only what needs it. When nothing else is left to run it is tried
again, alone: what failed for want of memory beside others often succeeds by itself.
"""

import heapq
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Protocol

from aecnn_deploy.errors import AecnnError, SettingsError, TrainingError
from aecnn_deploy.training.freed_memory import keep_freed_memory
from aecnn_deploy.training.progress import Progress

Execute = Callable[[str], None]

_LOOK_AGAIN_S = 1.0
_END_S = 5.0
_READY = True


@dataclass(frozen=True, slots=True)
class SweepTask:
    """One task and the ids of the tasks whose results it reads."""

    id: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """Ids whose results are there, in the order of the sweep, and the error text of each id that failed."""

    done: tuple[str, ...]
    failed: dict[str, str]


class Crew(Protocol):
    """Whoever executes tasks: this process, worker processes, a cluster. It reports every task that it started."""

    @property
    def free(self) -> int:
        """How many tasks may be started now."""

    def start(self, task_id: str) -> None:
        """Begin one task; only while ``free`` is positive."""

    def wait(self) -> list[tuple[str, str | None]]:
        """Until at least one task ended: its id, and its error text or None."""

    def refresh(self) -> None:
        """Give back what idle workers hold, before a task is tried again alone."""
        return

    def close(self) -> None:
        """End at once, with everything that still runs."""
        return


def run_sweep(
    tasks: Sequence[SweepTask],
    execute: Execute,
    *,
    is_done: Callable[[str], bool],
    jobs: int = 1,
    ray_address: str | None = None,
    shared: Path | None = None,
    retries: int = 1,
    progress: Progress,
) -> SweepOutcome:
    """Call ``execute(id)`` for every task that is not done, after everything that it needs.

    ``jobs`` = 1 runs in this process in the order of ``in_order``; more are spawned worker processes, which share the
    cores. ``ray_address`` ("auto", "local" or host:port) runs on a Ray cluster instead, one core a task, and a quarter
    of a GPU where the cluster has any; every node must see ``shared``, the folder that the tasks write to. With
    either, ``execute`` must pickle: a module's function, or functools.partial of one.

    An exception or a dead worker fails its task, which is tried again alone at the end, ``retries`` times; what needs
    a failed task fails with it. Raises SettingsError: settings that do not go together. TrainingError: a task is given
    twice, needs an unknown one or itself; workers cannot start; no cluster, or a node that does not see ``shared``.
    KeyboardInterrupt ends every worker.
    """
    if jobs < 1:
        raise SettingsError(f"a sweep with {jobs} jobs cannot run; give 1 or more")
    if jobs > 1 and ray_address is not None:
        raise SettingsError(f"{jobs} jobs and a Ray cluster do not go together; give one of the two")
    if retries < 0:
        raise SettingsError(f"a task cannot be tried again {retries} times; give 0 or more")
    book = _Book(in_order(tasks), is_done, retries)
    if steps := book.reachable():
        with closing(_crew(execute, min(jobs, steps), ray_address, shared)) as crew:
            _work_off(book, crew, progress)
    return book.outcome()


def in_order(tasks: Sequence[SweepTask]) -> list[SweepTask]:
    """The tasks, each after everything that it needs, otherwise as given.

    Raises TrainingError: an id is given twice or needed but not given, or tasks need each other in a circle.
    """
    place = {task.id: number for number, task in enumerate(tasks)}
    if len(place) < len(tasks):
        twice = next(task.id for number, task in enumerate(tasks) if place[task.id] != number)
        raise TrainingError(f"sweep task {twice!r} is given twice; leave one out")
    for task in tasks:
        if unknown := [need for need in task.needs if need not in place]:
            raise TrainingError(f"sweep task {task.id!r} needs {unknown[0]!r}, which is no task of this sweep; add it")
    sorter = TopologicalSorter({task.id: task.needs for task in tasks})
    try:
        sorter.prepare()
    except CycleError as exc:
        raise TrainingError(f"sweep tasks need each other in a circle: {' → '.join(exc.args[1])}") from exc
    ordered: list[SweepTask] = []
    ready: list[int] = []
    while sorter.is_active():
        for task_id in sorter.get_ready():
            heapq.heappush(ready, place[task_id])
        ordered.append(tasks[heapq.heappop(ready)])
        sorter.done(ordered[-1].id)
    return ordered


class _Book:
    """What is done, what failed how often, what may start: the sweep's rules, without processes."""

    def __init__(self, tasks: Sequence[SweepTask], is_done: Callable[[str], bool], retries: int) -> None:
        self._needs = {task.id: task.needs for task in tasks}
        self._done = {task.id for task in tasks if is_done(task.id)}
        self._tries = dict.fromkeys(self._needs, 0)
        self._errors: dict[str, str] = {}
        self.retries = retries

    def _new(self) -> Iterator[str]:
        return (task_id for task_id, tries in self._tries.items() if not tries and task_id not in self._done)

    def reachable(self) -> int:
        """How many tasks that were never tried can get done if all of them succeed."""
        good, count = set(self._done), 0
        for task_id in self._new():
            if good.issuperset(self._needs[task_id]):
                good.add(task_id)
                count += 1
        return count

    def ready(self) -> list[str]:
        """What was never tried and has everything that it needs."""
        return [task_id for task_id in self._new() if self._done.issuperset(self._needs[task_id])]

    def to_retry(self) -> str | None:
        """The failed task to try again next: the one with the fewest tries."""
        left = [task_id for task_id in self._errors if self._tries[task_id] <= self.retries]
        return min(left, key=self._tries.__getitem__, default=None)

    def begin(self, task_id: str) -> int:
        """Which try this is, from 1."""
        self._tries[task_id] += 1
        return self._tries[task_id]

    def end(self, task_id: str, error: str | None) -> str:
        """Notes how a try ended; the same for a person."""
        if error is None:
            self._errors.pop(task_id, None)
            self._done.add(task_id)
            return f"{task_id}: done"
        self._errors[task_id] = error
        again = "; will be tried again alone" if self._tries[task_id] <= self.retries else ""
        return f"{task_id} failed: {error}{again}"

    def outcome(self) -> SweepOutcome:
        failed: dict[str, str] = {}
        for task_id, needs in self._needs.items():
            if task_id in self._done:
                continue
            broken = next((need for need in needs if need in failed), None)
            failed[task_id] = self._errors.get(task_id) or f"needs {broken}, which failed"
        return SweepOutcome(tuple(task_id for task_id in self._needs if task_id in self._done), failed)


def _work_off(book: _Book, crew: Crew, progress: Progress) -> None:
    while True:
        if steps := book.reachable():
            progress.stage("sweep", steps)
        running = 0
        while (ready := book.ready()[: crew.free]) or running:
            for task_id in ready:
                book.begin(task_id)
                crew.start(task_id)
            ended = crew.wait()
            running += len(ready) - len(ended)
            for task_id, error in ended:
                progress.step(book.end(task_id, error))
        again = book.to_retry()
        if again is None:
            return
        progress.stage(f"{again} again, alone (try {book.begin(again)} of {book.retries + 1})", 1)
        crew.refresh()
        crew.start(again)
        for task_id, error in crew.wait():
            progress.step(book.end(task_id, error))


def _crew(execute: Execute, jobs: int, ray_address: str | None, shared: Path | None) -> Crew:
    if ray_address is not None:
        from aecnn_deploy.training.sweep_ray import RayCrew

        return RayCrew(execute, ray_address, shared)
    return _Here(execute) if jobs == 1 else _Workers(execute, jobs)


def attempt(execute: Execute | bytes, task_id: str) -> str | None:
    """Run one task; the text of its error, or None. Bytes are a pickled ``execute``."""
    try:
        # Loaded in here: where this runs its module may be missing.
        (pickle.loads(execute) if isinstance(execute, bytes) else execute)(task_id)
    except AecnnError as exc:
        return str(exc) or type(exc).__name__
    except Exception as exc:
        where = traceback.extract_tb(exc.__traceback__)[-1]
        said = " ".join(f"{type(exc).__name__}: {exc}".split())
        return f"{said} ({Path(where.filename).name}, line {where.lineno})"
    return None


class _Here(Crew):
    """This process: one task at a time."""

    def __init__(self, execute: Execute) -> None:
        self._execute = execute
        self._task_id: str | None = None

    @property
    def free(self) -> int:
        return int(self._task_id is None)

    def start(self, task_id: str) -> None:
        self._task_id = task_id

    def wait(self) -> list[tuple[str, str | None]]:
        assert self._task_id is not None
        task_id, self._task_id = self._task_id, None
        return [(task_id, attempt(self._execute, task_id))]


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    link: Connection
    task_id: str | None = None
    ready: bool = False


class _Workers(Crew):
    """Worker processes, each with its pipe: the death of one concerns nobody but its task.

    Spawned, since a process that has used CUDA cannot fork, and kept, so that torch is imported once in each.
    """

    def __init__(self, execute: Execute, jobs: int) -> None:
        try:
            self._payload = pickle.dumps(execute)
        except (pickle.PicklingError, AttributeError, TypeError) as exc:
            raise SettingsError(
                f"a sweep with {jobs} jobs sends its function to other processes, but {exc}; "
                "give a module's function, or functools.partial of one"
            ) from exc
        self._jobs = jobs
        self._workers: list[_Worker] = []

    @property
    def free(self) -> int:
        return self._jobs - sum(worker.task_id is not None for worker in self._workers)

    def start(self, task_id: str) -> None:
        idle = (worker for worker in self._workers if worker.task_id is None and worker.process.is_alive())
        worker = next(idle, None) or self._spawn()
        worker.task_id = task_id
        with suppress(OSError):  # it died meanwhile: wait finds out
            worker.link.send(task_id)

    def _spawn(self) -> _Worker:
        spawn = multiprocessing.get_context("spawn")
        link, theirs = spawn.Pipe()
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        process = spawn.Process(target=_serve, args=(theirs, self._payload, max(1, cpus // self._jobs)))
        with _without_interrupts():
            process.start()
            self._workers.append(_Worker(process, link))
        theirs.close()  # so that the end of the worker is the end of the pipe
        return self._workers[-1]

    def wait(self) -> list[tuple[str, str | None]]:
        while True:
            busy = [worker for worker in self._workers if worker.task_id is not None]
            # A task's own child may hold both of these open after the worker is gone: look at the exit code as well.
            connection.wait([w.link for w in busy] + [w.process.sentinel for w in busy], timeout=_LOOK_AGAIN_S)
            if ended := [result for worker in busy if (result := self._result(worker)) is not None]:
                return ended

    def _result(self, worker: _Worker) -> tuple[str, str | None] | None:
        task_id = worker.task_id
        assert task_id is not None
        exited = worker.process.exitcode is not None  # before the pipe is read: its last words may be in there
        try:
            if worker.link.poll():
                message = worker.link.recv()
                if message is _READY:
                    worker.ready = True
                    return None
                worker.task_id = None
                return task_id, message if message is None else str(message)
            if not exited:
                return None
        except (OSError, EOFError):
            pass
        return task_id, self._obituary(worker)

    def _obituary(self, worker: _Worker) -> str:
        """How the worker died; it is taken off the list, and ``start`` spawns another in its place."""
        worker.process.join(_END_S)
        code = worker.process.exitcode
        self._end([worker])
        if code is not None and code < 0:
            name = "out of memory? run fewer jobs" if code == -signal.SIGKILL else signal.strsignal(-code)
            return f"its process was killed by signal {-code}: {name}"
        if not worker.ready:
            raise TrainingError(
                f"a worker process ended with exit code {code} before its first task; what it printed says why "
                '(a script that starts a sweep needs: if __name__ == "__main__")'
            )
        return f"its process ended with exit code {code}"

    def refresh(self) -> None:
        self._end(list(self._workers))

    close = refresh

    def _end(self, workers: Sequence[_Worker]) -> None:
        for worker in workers:
            worker.process.terminate()
        limit_s = time.monotonic() + _END_S
        for worker in workers:
            worker.process.join(max(0.0, limit_s - time.monotonic()))
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
            worker.link.close()
            self._workers.remove(worker)


def _serve(link: Connection, payload: bytes, threads: int) -> None:
    """A worker process: ids in; after each one its error text or None out."""
    # Ctrl-C reaches every process of a terminal; the one that started this one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()
    link.send(_READY)
    while True:
        try:
            task_id = link.recv()
        except EOFError:
            return
        link.send(attempt(payload, str(task_id)))


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, whatever it died of."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C waits. A process that starts in here inherits that, until it is ready to say what Ctrl-C means to it."""
    resource_tracker.ensure_running()  # started later, it would lift what is blocked here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
