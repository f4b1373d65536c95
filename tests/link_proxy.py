"""A bad link on loopback: a TCP proxy that is slow, delays, and cuts connections, in the middle of a message too."""

import asyncio
import random
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

_PIECE_BYTES = 4096
_PIECES = 64  # that wait for their time, of one direction of a connection
_START_S = 10.0
_LOOK_S = 0.02  # how often a piece that waits looks at the rate


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What is bad about the link. Raises ValueError: a number is out of its range."""

    rate_bps: float | None = None  # of each direction, all connections together
    delay_s: tuple[float, float] = (0.0, 0.0)  # of each piece, drawn evenly between the two; order is kept
    cut_every_s: float | None = None  # mean time between two cuts, each of one connection
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.delay_s[0] <= self.delay_s[1]:
            raise ValueError(f"delay_s is {self.delay_s}, expected a smallest and a largest number of seconds")
        for name in ("rate_bps", "cut_every_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}, expected a positive number")


@dataclass(frozen=True, slots=True)
class _Piece:
    """``last``: what the link has carried when it is through. ``came_s``: when it came."""

    content: bytes
    last: float
    came_s: float
    delay_s: float


class LinkProxy:
    """Forwards TCP connections to ``to_port`` on loopback, on a thread of its own; a context manager.

    ``cuts`` counts the connections that it broke, all by a reset, half of them within what was being sent.
    """

    def __init__(self, to_port: int, settings: LinkSettings) -> None:
        self.port, self.cuts = 0, 0
        self._to_port, self._settings = to_port, settings
        self._random = random.Random(settings.seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="link proxy")
        self._started, self._stop = threading.Event(), asyncio.Event()
        self._connections: set[_Connection] = set()
        self._last = [0.0, 0.0]  # bytes that the link can have carried when each direction has sent what it has
        self._base = (0.0, 0.0)  # a time, and the bytes that the link can have carried by then

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(_START_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def rate_bps(self) -> float | None:
        """Of each direction; what is set holds at once, also for what is under way. From any thread."""
        return self._settings.rate_bps

    @rate_bps.setter
    def rate_bps(self, rate_bps: float | None) -> None:
        def change() -> None:
            now_s = self._loop.time()
            self._base = now_s, self._carried(now_s)
            self._settings = replace(self._settings, rate_bps=rate_bps)

        self._loop.call_soon_threadsafe(change)

    def stop_cutting(self) -> None:
        """Leave the connections whole from now on."""
        self._settings = LinkSettings(self._settings.rate_bps, self._settings.delay_s)

    def take(self, direction: int, content: bytes) -> "_Piece":
        """A piece came now."""
        now_s = self._loop.time()
        if self._settings.rate_bps is not None:
            self._last[direction] = max(self._carried(now_s), self._last[direction]) + len(content)
        return _Piece(content, self._last[direction], now_s, self._random.uniform(*self._settings.delay_s))

    def left_s(self, piece: "_Piece") -> float:
        """When a piece is through, as the link's rate is now; negative: it has been."""
        now_s, rate_bps = self._loop.time(), self._settings.rate_bps
        link_s = piece.came_s - now_s if rate_bps is None else (piece.last - self._carried(now_s)) * 8 / rate_bps
        return link_s + piece.delay_s

    def _carried(self, now_s: float) -> float:
        since_s, carried = self._base
        return carried + (now_s - since_s) * (self._settings.rate_bps or 0.0) / 8

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=256)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        cutting = asyncio.create_task(self._cut_at_random())
        await self._stop.wait()
        cutting.cancel()
        server.close()
        for connection in list(self._connections):
            connection.cut()
        while self._connections:
            await asyncio.sleep(0.01)
        await asyncio.gather(cutting, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(self, (writer, far_writer))
        self._connections.add(connection)
        try:
            await connection.forward(reader, far_reader)
        finally:
            self._connections.discard(connection)

    async def _cut_at_random(self) -> None:
        while self._settings.cut_every_s is not None:
            await asyncio.sleep(self._random.expovariate(1 / self._settings.cut_every_s))
            if self._connections and self._settings.cut_every_s is not None:
                connection = self._random.choice(sorted(self._connections, key=id))
                self.cuts += 1
                if self._random.random() < 0.5:
                    connection.cut()
                else:
                    connection.cut_within_a_piece = True


class _Connection:
    """One connection and its far half, forwarded both ways until either ends."""

    def __init__(self, proxy: LinkProxy, writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self._proxy, self._writers = proxy, writers
        self.cut_within_a_piece = False

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def forward(self, near: asyncio.StreamReader, far: asyncio.StreamReader) -> None:
        ways: list[Coroutine[Any, Any, None]] = []
        for direction, (reader, writer) in enumerate(((near, self._writers[1]), (far, self._writers[0]))):
            queue: asyncio.Queue[_Piece] = asyncio.Queue(_PIECES)
            ways += [self._take(direction, reader, queue), self._give(writer, queue)]
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in self._writers:
                writer.close()

    async def _take(self, direction: int, reader: asyncio.StreamReader, queue: "asyncio.Queue[_Piece]") -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                await queue.put(self._proxy.take(direction, piece))
        await queue.put(_Piece(b"", 0.0, 0.0, 0.0))
        await asyncio.Event().wait()  # _give ends the connection, once it has given all

    async def _give(self, writer: asyncio.StreamWriter, queue: "asyncio.Queue[_Piece]") -> None:
        with suppress(OSError):
            while (item := await queue.get()).content:
                piece = item.content
                while (left_s := self._proxy.left_s(item)) > 0:
                    await asyncio.sleep(min(left_s, _LOOK_S))
                if self.cut_within_a_piece:
                    writer.write(piece[: len(piece) // 2])
                    await asyncio.sleep(0)
                    self.cut()
                    return
                writer.write(piece)
                await writer.drain()
