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
        self._free_s = [0.0, 0.0]  # when each direction has sent what it has

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
        """Of each direction; what is set holds for all that comes from then on."""
        return self._settings.rate_bps

    @rate_bps.setter
    def rate_bps(self, rate_bps: float | None) -> None:
        self._settings = replace(self._settings, rate_bps=rate_bps)

    def stop_cutting(self) -> None:
        """Leave the connections whole from now on."""
        self._settings = LinkSettings(self._settings.rate_bps, self._settings.delay_s)

    def deliver_at_s(self, direction: int, size: int) -> float:
        """When a piece of ``size`` bytes that came now is through."""
        settings, now_s = self._settings, self._loop.time()
        if settings.rate_bps is not None:
            self._free_s[direction] = max(now_s, self._free_s[direction]) + size * 8 / settings.rate_bps
            now_s = self._free_s[direction]
        return now_s + self._random.uniform(*settings.delay_s)

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
            queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES)
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

    async def _take(
        self, direction: int, reader: asyncio.StreamReader, queue: "asyncio.Queue[tuple[float, bytes]]"
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                await queue.put((self._proxy.deliver_at_s(direction, len(piece)), piece))
        await queue.put((0.0, b""))
        await asyncio.Event().wait()  # _give ends the connection, once it has given all

    async def _give(self, writer: asyncio.StreamWriter, queue: "asyncio.Queue[tuple[float, bytes]]") -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while (item := await queue.get())[1]:
                at_s, piece = item
                if (wait_s := at_s - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                if self.cut_within_a_piece:
                    writer.write(piece[: len(piece) // 2])
                    await asyncio.sleep(0)
                    self.cut()
                    return
                writer.write(piece)
                await writer.drain()
