"""One small contract for everything that runs a model file: activate, infer, deactivate."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from aecnn_deploy.errors import RunnerError

Array = npt.NDArray[Any]


class Runner(ABC):
    """Runs one model file with one input and one output.

    A subclass sets ``name`` and writes the parts that begin with an underscore; the public methods check.
    After ``activate``: ``input_shape`` and ``output_shape`` (without the batch axis), ``input_dtype`` and
    ``output_dtype`` are known. ``infer`` may be called from any thread, ``concurrency`` calls at a time.
    """

    name: str
    concurrency: int = 1
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    input_dtype: np.dtype[Any]
    output_dtype: np.dtype[Any]

    def __init__(self) -> None:
        self._active = False

    def activate(self) -> Self:
        """Load the model. Raises RunnerError (or EngineMismatchError): it cannot be loaded here."""
        if not self._active:
            self._activate()
            self._active = True
        return self

    def infer(self, batch: Array) -> Array:
        """The model's output for ``batch`` (N, *input_shape). Raises RunnerError: not active, wrong shape or dtype."""
        if not self._active:
            raise RunnerError(f"{self.name} runner is not active: call activate() first")
        if batch.dtype != self.input_dtype or batch.shape[1:] != self.input_shape or batch.ndim < 1 or not len(batch):
            raise RunnerError(
                f"{self.name} runner expects {self.input_dtype} (N, {', '.join(map(str, self.input_shape))}) "
                f"with N at least 1, got {batch.dtype} {batch.shape}"
            )
        return self._infer(batch)

    def deactivate(self) -> None:
        """Free what ``activate`` took; twice does no harm."""
        if self._active:
            self._active = False
            self._deactivate()

    def __enter__(self) -> Self:
        return self.activate()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.deactivate()

    @abstractmethod
    def _activate(self) -> None: ...

    @abstractmethod
    def _infer(self, batch: Array) -> Array: ...

    @abstractmethod
    def _deactivate(self) -> None: ...
