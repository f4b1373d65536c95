"""TensorRT and TensorRT-RTX on an NVIDIA GPU, by pycuda: pinned host buffers, one stream, one owner thread."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from aecnn_deploy.bundle.manifest import EngineSpec
from aecnn_deploy.errors import EngineMismatchError, RunnerError
from aecnn_deploy.runtimes.base import Array, Runner
from aecnn_deploy.runtimes.cuda_worker import acquire, release
from aecnn_deploy.runtimes.engine_header import read_engine_header
from aecnn_deploy.runtimes.tensorrt_probe import load_product

T = TypeVar("T")


def check_engine(path: Path, spec: EngineSpec, *, product: str, version: str, architecture: str, gpu: str) -> None:
    """Whether the engine ``path`` can be loaded by ``product`` ``version`` on a GPU of ``architecture``.

    Raises EngineMismatchError, which names both sides; RunnerError: the file is no engine.
    """
    here = f"{product} {version} on {architecture} ({gpu})"
    if spec.product != product or spec.version != version or architecture not in spec.architectures:
        built_for = f"{spec.product} {spec.version} on {'+'.join(spec.architectures)}"
        raise EngineMismatchError(path.name, built_for, here)
    if product == "tensorrt-rtx" and (header := read_engine_header(path)).version != version:
        raise EngineMismatchError(path.name, f"{product} {header.version}, so says its header", here)


class _EngineRunner(Runner):
    """Runs the engine ``path`` on GPU ``device``. A batch above the optimisation profile's maximum runs in pieces."""

    product: ClassVar[str]

    def __init__(self, path: Path, spec: EngineSpec, *, device: int = 0) -> None:
        super().__init__()
        self.path, self.spec, self.device = path, spec, device

    def _activate(self) -> None:
        self._trt = load_product(self.product)
        self._worker = acquire(self.device)
        try:
            check_engine(
                self.path,
                self.spec,
                product=self.product,
                version=self._trt.__version__,
                architecture=self._worker.architecture,
                gpu=self._worker.gpu,
            )
            self._on_gpu(self._load)
        except BaseException:
            self._deactivate()
            raise

    def _infer(self, batch: Array) -> Array:
        return self._on_gpu(lambda: self._run(batch))

    def _deactivate(self) -> None:
        worker = self._worker
        try:
            worker.call(self._free)
        finally:
            release(worker)

    def _on_gpu(self, job: Callable[[], T]) -> T:
        """``job`` on the owner thread; the driver's own errors become RunnerError."""
        try:
            return self._worker.call(job)
        except self._worker.cuda.Error as exc:
            raise RunnerError(f"{self.product} failed in {self.path.name}: {exc}") from exc

    # From here on: on the owner thread only.

    def _load(self) -> None:
        trt, cuda = self._trt, self._worker.cuda
        self._log = _make_log(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(self.path.read_bytes())
        if self._engine is None:
            raise RunnerError(f"{self.product} {trt.__version__} cannot load {self.path.name}: {self._log.last_error}")
        self._input = self._only_tensor(trt.TensorIOMode.INPUT)
        self._output = self._only_tensor(trt.TensorIOMode.OUTPUT)
        self.input_shape, self.input_dtype = self._describe(self._input)
        self.output_shape, self.output_dtype = self._describe(self._output)
        self._max_batch = int(self._engine.get_tensor_profile_shape(self._input, 0)[2][0])
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise RunnerError(f"{self.product} cannot make a context for {self.path.name}: {self._log.last_error}")
        self._stream = cuda.Stream()
        self._host_in = cuda.pagelocked_empty((self._max_batch, *self.input_shape), self.input_dtype)
        self._host_out = cuda.pagelocked_empty((self._max_batch, *self.output_shape), self.output_dtype)
        self._device_in = cuda.mem_alloc(self._host_in.nbytes)
        self._device_out = cuda.mem_alloc(self._host_out.nbytes)
        self._set(self._context.set_tensor_address(self._input, int(self._device_in)), "set the input's address")
        self._set(self._context.set_tensor_address(self._output, int(self._device_out)), "set the output's address")
        self._batch = 0
        # TensorRT-RTX compiles its kernels at the first run: pay that here, not with the first image.
        self._run(np.zeros((1, *self.input_shape), self.input_dtype))

    def _run(self, batch: Array) -> Array:
        result = np.empty((len(batch), *self.output_shape), self.output_dtype)
        for start in range(0, len(batch), self._max_batch):
            piece = batch[start : start + self._max_batch]
            self._run_piece(piece, result[start : start + len(piece)])
        return result

    def _run_piece(self, piece: Array, result: Array) -> None:
        cuda, count = self._worker.cuda, len(piece)
        if count != self._batch:
            self._batch = 0  # unknown until the engine has agreed
            self._set(self._context.set_input_shape(self._input, (count, *self.input_shape)), f"set batch size {count}")
            self._batch = count
        self._host_in[:count] = piece
        cuda.memcpy_htod_async(self._device_in, self._host_in[:count], self._stream)
        self._set(self._context.execute_async_v3(self._stream.handle), f"run batch size {count}")
        cuda.memcpy_dtoh_async(self._host_out[:count], self._device_out, self._stream)
        self._stream.synchronize()
        result[:] = self._host_out[:count]

    def _free(self) -> None:
        # In this order: a context may not outlive its engine, an engine its runtime; pinned and device memory must
        # go while the context of this thread is still current.
        for name in (
            "_context",
            "_engine",
            "_runtime",
            "_device_in",
            "_device_out",
            "_host_in",
            "_host_out",
            "_stream",
        ):
            self.__dict__.pop(name, None)

    def _set(self, agreed: bool, what: str) -> None:
        if not agreed:
            raise RunnerError(f"{self.product} cannot {what} in {self.path.name}: {self._log.last_error}")

    def _only_tensor(self, mode: Any) -> str:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        found = [name for name in names if self._engine.get_tensor_mode(name) == mode]
        if len(found) != 1:
            raise RunnerError(f"{self.path.name} has {len(found)} tensors of {mode}, expected 1")
        return str(found[0])

    def _describe(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        shape = tuple(int(size) for size in self._engine.get_tensor_shape(name))
        return shape[1:], np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))


class TensorRTRunner(_EngineRunner):
    """Engines of full TensorRT (10.7 and later)."""

    name = product = "tensorrt"


class TensorRTRtxRunner(_EngineRunner):
    """Engines of TensorRT-RTX; kernels are compiled for this GPU when the runner is activated."""

    name = product = "tensorrt-rtx"


def _make_log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]  # the base class is the installed product's
        """Keeps TensorRT's last error for ours, and prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "it gives no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last_error = " ".join(message.split())[:400]

    return Log()
