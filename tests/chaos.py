"""A TCP relay on loopback that breaks connections: cut after some bytes, stalled, or refused."""

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LINGER_NOTHING = struct.pack("ii", 1, 0)  # close sends a reset
_SMALL_BUFFER = 8192


class Chaos:
    """Relays to ``port``. ``cut_within``: each new connection is reset after a random number of bytes up to that."""

    def __init__(self, port: int, *, seed: int = 0) -> None:
        self.cut_within: int | None = None
        self.stalled = threading.Event()  # nothing is read any more, from either side
        self.connections = 0
        self._port, self._rng = port, random.Random(seed)
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)  # a stall is felt at once
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        self._cut: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._start(self._accept)

    def heal(self) -> None:
        """Connections are whole from now on."""
        self.cut_within = None
        self.stalled.clear()

    def cut_now(self) -> None:
        """Reset every connection there is."""
        with self._lock:
            ends, self._ends = self._ends, []
        for end in ends:
            _reset(end)
            self._cut.append(end)

    def close(self) -> None:
        self.stalled.clear()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            ends = list(self._ends)
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for end in (*ends, *self._cut):
            end.close()

    def _start(self, target: "threading.Thread | object", *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                device, _ = self._listener.accept()
                self.connections += 1
                try:
                    edge = socket.create_connection(("127.0.0.1", self._port))
                except OSError:
                    _reset(device)
                    continue
                edge.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._ends += [device, edge]
                left = [self._rng.randrange(1, self.cut_within) if self.cut_within else -1]
                self._start(self._relay, device, edge, left)
                self._start(self._relay, edge, device, left)

    def _relay(self, source: socket.socket, target: socket.socket, left: list[int]) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                while self.stalled.is_set():
                    threading.Event().wait(0.01)
                if left[0] >= 0:
                    data, left[0] = data[: left[0]], max(0, left[0] - len(data))
                target.sendall(data)
                if left[0] == 0:
                    _reset(source)
                    _reset(target)
                    return
            target.shutdown(socket.SHUT_WR)


@contextmanager
def chaos(url: str, *, seed: int = 0) -> Iterator[Chaos]:
    """A relay to the edge at ``url``."""
    relay = Chaos(int(url.rpartition(":")[2].partition("/")[0]), seed=seed)
    try:
        yield relay
    finally:
        relay.close()


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOTHING)
        end.shutdown(socket.SHUT_RDWR)
