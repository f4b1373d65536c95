"""Since when a model's server is away, and whether that is long enough to say so."""

import threading
import time
from collections.abc import Callable


class Outage:
    """One model's: begun by what fails, over by what succeeds; any thread may tell it.

    Shorter than ``limit_s`` it is nobody's business: batches are tried again. After that requests fail at once and the
    edge is not ready, until the server is back.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock, self._lock = limit_s, clock, threading.Lock()
        self._began_s: float | None = None
        self._why = ""

    @property
    def lost(self) -> bool:
        """Whether the last that was heard is a failure."""
        return self._began_s is not None

    @property
    def away(self) -> str | None:
        """Why the server is away, if it has been for longer than the limit."""
        with self._lock:
            if self._began_s is None or self._clock() - self._began_s < self._limit_s:
                return None
            return self._why

    def failed(self, why: str) -> tuple[bool, float]:
        """A call failed: whether that began the outage, and for how many seconds it goes on."""
        with self._lock:
            now_s, self._why = self._clock(), why
            if self._began_s is None:
                self._began_s = now_s
                return True, 0.0
            return False, now_s - self._began_s

    def succeeded(self) -> float | None:
        """A call succeeded: the seconds of the outage that this ended, if there was one."""
        if self._began_s is None:  # nearly always, and no lock for it
            return None
        with self._lock:
            began_s, self._began_s = self._began_s, None
            return None if began_s is None else self._clock() - began_s
