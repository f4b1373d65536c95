"""One thread for one model: models run here, never on the event loop."""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """A thread that runs jobs in the order of their arrival and hands each result to the loop that asked.

    The thread is a daemon, so that a job that never ends cannot keep a process alive that was told twice to stop.
    ``waiting`` counts jobs that were handed in and have not ended.
    """

    def __init__(self, name: str) -> None:
        self.name, self.waiting = name, 0
        self._last: Callable[[], None] | None = None
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def run(self, job: Callable[[], T]) -> "asyncio.Future[T]":
        """What ``job`` returns or raises, as a future of the running loop; cancelled before its turn, it is skipped."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.waiting += 1
        future.add_done_callback(self._ended)
        self._jobs.put((job, future))
        return future

    def close(self, timeout_s: float, last: Callable[[], None] | None = None) -> bool:
        """End the thread after the jobs before this call and ``last``; whether it did within ``timeout_s``."""
        self._last = last
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _ended(self, _: object) -> None:
        self.waiting -= 1

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, future = item
            if future.cancelled():
                continue
            result, error = None, None
            try:
                result = job()
            except BaseException as exc:  # the job's owner hears of it, whatever it is
                error = exc
            try:
                future.get_loop().call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
                return
            del item, job, future, result, error  # else the last payload lives until the next job
        if self._last is not None:
            self._last()


def _settle(future: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
    if future.done():  # cancelled while the job ran
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
