"""The bundle's unsplit model on this machine: what a device falls back to when its edge is away."""

import time
from types import TracebackType
from typing import Self

import numpy as np

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import BundleError
from aecnn_deploy.runtimes.device_settings import DeviceSettings
from aecnn_deploy.runtimes.frames import Frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

_WARM_UP = 2  # the first run is slow, the second says what a run takes
_NEW = 0.25  # weight of a new run's time against the mean of those before


class LocalModel:
    """``full.onnx`` on ONNX Runtime; entering it loads it and runs it. For one thread, but for ``cost_s``.

    When entered, raises RunnerError: it does not load. BundleError: it is not of the manifest's shapes.
    """

    def __init__(self, bundle: Bundle, settings: DeviceSettings) -> None:
        self._bundle = bundle
        self._runner = OnnxRuntimeRunner(
            bundle.file(bundle.manifest.full), threads=settings.threads, spinning=settings.spinning
        )
        self.cost_s = 0.0  # what a run is expected to take

    def __enter__(self) -> Self:
        self._runner.activate()
        spec = self._bundle.manifest.input
        frame, classes = (spec.height, spec.width, 3), len(self._bundle.manifest.labels)
        if self._runner.input_shape != frame or self._runner.output_shape != (classes,):
            raise BundleError(
                f"{self._bundle.path}: the unsplit model takes {self._runner.input_shape} and gives "
                f"{self._runner.output_shape}, the manifest says {frame} and {(classes,)}; export the bundle again"
            )
        for _ in range(_WARM_UP):
            began_s = time.perf_counter()
            self._runner.infer(np.zeros((1, *frame), self._runner.input_dtype))
            self.cost_s = time.perf_counter() - began_s
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.deactivate()

    def best(self, frame: Frame) -> tuple[int, float]:
        """The best class's index and softmax score of a frame (height, width, 3), uint8 RGB. Raises RunnerError."""
        began_s = time.perf_counter()
        logits = self._runner.infer(frame[np.newaxis])[0].astype(np.float64)
        self.cost_s += _NEW * (time.perf_counter() - began_s - self.cost_s)
        best = int(np.argmax(logits))
        return best, float(1.0 / np.exp(logits - logits[best]).sum())
