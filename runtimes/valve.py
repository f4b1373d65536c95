"""A transport that several have reasons to stop reading from."""

import asyncio
from typing import Any


class Valve(asyncio.Transport):
    """A transport whose reading stops for as long as anyone has a reason to stop it, and says for how long it did.

    uvicorn pauses and resumes as its application reads; a rate limit must not be undone by that.
    """

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._inner, self._loop = inner, loop
        self._reasons: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._shut_s, self._since_s = 0.0, 0.0

    def hold(self, seconds: float) -> None:
        """Read nothing for ``seconds``, from now."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self.release, "rate")
        self.stop("rate")

    def stop(self, reason: str) -> None:
        """Read nothing until ``reason`` is released."""
        if not self._reasons:
            self._since_s = self._loop.time()
            if not self._inner.is_closing():
                self._inner.pause_reading()
        self._reasons.add(reason)

    def release(self, reason: str) -> None:
        """``reason`` is over; without another one reading goes on."""
        if reason not in self._reasons:
            return
        self._reasons.discard(reason)
        if not self._reasons:
            self._shut_s += self._loop.time() - self._since_s
            if not self._inner.is_closing():
                self._inner.resume_reading()

    @property
    def shut_s(self) -> float:
        """Seconds in which nothing was read, in all."""
        return self._shut_s + (self._loop.time() - self._since_s if self._reasons else 0.0)

    def end(self) -> None:
        """The connection was lost."""
        if self._timer is not None:
            self._timer.cancel()

    def pause_reading(self) -> None:
        self.stop("application")

    def resume_reading(self) -> None:
        self.release("application")

    def is_reading(self) -> bool:
        return not self._reasons

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._inner.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._inner.is_closing()

    def close(self) -> None:
        self._inner.close()

    def abort(self) -> None:
        self._inner.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._inner.write(data)

    def get_write_buffer_size(self) -> int:
        return self._inner.get_write_buffer_size()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._inner.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._inner.get_protocol()
