"""One thread owns the CUDA context of each GPU; everybody else hands it jobs.

A CUDA context is current for one thread only. Calling pycuda from whichever thread happens to serve a request ends in
"invalid device context", so all CUDA work of a GPU, freeing included, goes through one queue.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from aecnn_deploy.errors import MissingExtraError, RunnerError
from aecnn_deploy.optional import require

T = TypeVar("T")
_Job = tuple[Callable[[], Any], Future[Any]]


class OwnerThread:
    """Runs jobs one after another on one thread, between ``enter`` and ``leave``, which run on it too.

    The constructor returns when ``enter`` has returned, and raises what ``enter`` raises.
    """

    def __init__(self, name: str, enter: Callable[[], None], leave: Callable[[], None]) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        entered: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, args=(enter, leave, entered), name=name, daemon=True)
        self._thread.start()
        entered.result()

    def submit(self, job: Callable[[], T]) -> "Future[T]":
        """Queue ``job``; its result or its error comes by the future. Raises RunnerError: the thread is closed."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RunnerError(f"{self._thread.name} is closed: activate the runner again")
            self._jobs.put((job, future))
        return future

    def call(self, job: Callable[[], T]) -> T:
        """Run ``job`` on the owner thread and wait for it; on that thread itself, run it at once."""
        if threading.current_thread() is self._thread:
            return job()
        return self.submit(job).result()

    def close(self) -> None:
        """Finish what is queued, leave, and end the thread; twice does no harm."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _main(self, enter: Callable[[], None], leave: Callable[[], None], entered: "Future[None]") -> None:
        try:
            enter()
        except BaseException as exc:
            entered.set_exception(exc)
            return
        entered.set_result(None)
        while (item := self._jobs.get()) is not None:
            job, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as exc:  # the caller's, not this thread's: it has to live on
                future.set_exception(exc)
            del item, job, future  # or the last job's arrays live until the next one comes
        leave()


class CudaWorker(OwnerThread):
    """The owner thread of GPU ``device``'s primary context. Raises RunnerError: there is no such GPU or no driver.

    ``architecture`` is the GPU's compute capability as "sm90", ``gpu`` its name.
    """

    def __init__(self, device: int) -> None:
        self.device = device
        super().__init__(f"cuda-worker-{device}", self._enter, self._leave)

    def _enter(self) -> None:
        self.cuda = cuda_driver()
        try:
            handle = _device(self.cuda, self.device)
            self.architecture, self.gpu = _architecture(handle), str(handle.name())
            # TensorRT calls the CUDA runtime, whose context is the primary one; another one would be a second heap.
            self._context = handle.retain_primary_context()
            self._context.push()
        except self.cuda.Error as exc:
            raise RunnerError(f"GPU {self.device} cannot be used: {exc}") from exc

    def _leave(self) -> None:
        self._context.pop()
        del self._context  # the last reference releases the primary context


def cuda_driver() -> Any:
    """The module pycuda.driver. Raises MissingExtraError: pycuda is not installed. RunnerError: no CUDA driver."""
    try:
        return require("pycuda.driver", why="running a TensorRT engine")
    except MissingExtraError:
        raise
    except ImportError as exc:  # libcuda.so.1 comes with the GPU's driver
        raise RunnerError(f"pycuda does not load, is the NVIDIA driver installed? {exc}") from exc


def gpu_architecture(device: int = 0) -> str:
    """Compute capability of GPU ``device`` as "sm90", without making a context.

    Raises MissingExtraError: pycuda is not installed. RunnerError: there is no such GPU or no driver.
    """
    cuda = cuda_driver()
    try:
        return _architecture(_device(cuda, device))
    except cuda.Error as exc:
        raise RunnerError(f"GPU {device} cannot be used: {exc}") from exc


def _device(cuda: Any, device: int) -> Any:
    cuda.init()
    count = cuda.Device.count()
    if not 0 <= device < count:
        raise RunnerError(f"there is no GPU {device}: the driver lists {count}")
    return cuda.Device(device)


def _architecture(handle: Any) -> str:
    major, minor = handle.compute_capability()
    return f"sm{major}{minor}"


_workers: dict[int, tuple[CudaWorker, int]] = {}
_workers_lock = threading.Lock()


def acquire(device: int) -> CudaWorker:
    """The worker of GPU ``device``, the same for the whole process. Give it back with ``release``."""
    with _workers_lock:
        worker, users = _workers[device] if device in _workers else (CudaWorker(device), 0)
        _workers[device] = (worker, users + 1)
    return worker


def release(worker: CudaWorker) -> None:
    """Give a worker back; the last one ends its thread and its hold on the context."""
    with _workers_lock:
        _, users = _workers.pop(worker.device)
        if users > 1:
            _workers[worker.device] = (worker, users - 1)
            return
        worker.close()
