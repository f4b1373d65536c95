"""Ctrl-C at a moment of our choosing, so that no frame's report is cut in two by it."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

_PATIENCE = 2  # Ctrl-C so many times is heeded in order; the next one breaks whatever runs


class Interrupts:
    """While it is entered, Ctrl-C is counted instead of raised; a third one raises KeyboardInterrupt.

    As ``asyncio.run`` does, only in the main thread and where Python's own handler is in place; elsewhere nothing
    changes.
    """

    def __init__(self) -> None:
        self.count = 0
        self._installed = False

    def __enter__(self) -> Self:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._heard)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > _PATIENCE:
            raise KeyboardInterrupt
