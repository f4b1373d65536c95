"""Whether a shaped link is what it says: a plain TCP transfer at each rate, and what single messages take.

    .venv/bin/python -m benchmarks.shaper_check

No code of the package's is in it but ``planning.link.bytes_on_link``, which counts headers. ``goodput`` is the share of
the rate that a transfer reaches, counted with its headers, from when its first bytes have come; the bound is 3 %.
``messages``: median of the time from sending a message to an answer of one byte, and what bytes ÷ rate says of both.
"""

import argparse
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

from aecnn_deploy.planning.link import bytes_on_link
from benchmarks.namespaces import ADDRESSES, Link, enter, linked, why_not

BOUND = 0.03
RATES_BPS = (1e6, 2e6, 5e6, 10e6, 50e6, 150e6)
MESSAGES_BYTES = (100, 700, 1800, 7000, 30000)
_PORT = 5000
_REPEATS = 9
_HEAD = 8  # of a message: its whole length
_WARM_UP_S = 0.2


class Transfers:
    """One TCP connection over a link, from the device to the edge, whose far end answers when a message is through."""

    def __init__(self, connection: socket.socket, took: "list[float]") -> None:
        self._connection, self._took = connection, took
        self.alone_ms = median(self.message_ms(_HEAD + 1) for _ in range(50))

    def message_ms(self, size: int) -> float:
        """From sending ``size`` bytes to the answer of one byte."""
        began_s = time.perf_counter()
        self._connection.sendall(size.to_bytes(_HEAD, "big") + bytes(size - _HEAD))
        self._connection.recv(1)
        return (time.perf_counter() - began_s) * 1e3

    def rate_bps(self, rate_bps: float, seconds: float) -> float:
        """The rate of a long message, with its headers, as the receiver sees it once it is under way."""
        size = max(20_000, round(rate_bps / 8 * (seconds + _WARM_UP_S)))
        self.message_ms(size)
        counted_bytes, counted_s = self._took
        return bytes_on_link(counted_bytes, around=0) * 8 / counted_s


@contextmanager
def transfers(link: Link) -> Iterator[Transfers]:
    """The connection; call it before the link is shaped, if ``alone_ms`` is to be the machine's own time."""
    took = [0.0, 0.0]
    ready, ends = threading.Event(), threading.Event()
    near: list[socket.socket] = []

    def receive() -> None:
        enter(link.names["edge"])
        with socket.create_server((ADDRESSES["edge"], _PORT)) as server:
            ready.set()
            far, _ = server.accept()
        with far:
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while head := _exactly(far, _HEAD):
                _take(far, int.from_bytes(head, "big") - _HEAD, took)
                far.sendall(b"k")

    def connect() -> None:
        enter(link.names["device"])
        near.append(socket.create_connection((ADDRESSES["edge"], _PORT)))
        ends.set()

    threads = [threading.Thread(target=receive, daemon=True), threading.Thread(target=connect, daemon=True)]
    threads[0].start()
    ready.wait()
    threads[1].start()
    ends.wait()
    with near[0] as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield Transfers(connection, took)
    for thread in threads:
        thread.join()


def check_shaper(link: Link, rates_bps: Sequence[float] = RATES_BPS, seconds: float = 1.0) -> list[dict[str, Any]]:
    """A row for each rate; leaves the link unshaped."""
    link.shape(None)
    rows = []
    with transfers(link) as connection:
        for rate_bps in rates_bps:
            link.shape(rate_bps)
            share = connection.rate_bps(rate_bps, seconds) / rate_bps
            messages = []
            for size in MESSAGES_BYTES:
                took_ms = median(connection.message_ms(size) for _ in range(_REPEATS))
                both_bytes = bytes_on_link(size, around=0) + bytes_on_link(1, around=0)
                expected_ms = connection.alone_ms + both_bytes * 8e3 / rate_bps
                messages.append({"bytes": size, "p50_ms": round(took_ms, 3), "expected_ms": round(expected_ms, 3)})
            met = abs(share - 1) <= BOUND
            rows.append({"rate_bps": rate_bps, "goodput": round(share, 4), "met": met, "messages": messages})
        link.shape(None)
    return rows


def _exactly(connection: socket.socket, size: int) -> bytes:
    """``size`` bytes; none at the end of the stream."""
    content = b""
    while len(content) < size and (piece := connection.recv(size - len(content))):
        content += piece
    return content


def _take(connection: socket.socket, size: int, took: list[float]) -> None:
    """Receive ``size`` bytes; ``took``: how many came after the warm-up, and in what time."""
    began_s = time.perf_counter()
    counting_from_s, before = began_s, 0
    got = 0
    while got < size:
        got += len(connection.recv(min(size - got, 1 << 16)))
        now_s = time.perf_counter()
        if now_s - began_s <= _WARM_UP_S:
            counting_from_s, before = now_s, got
    took[:] = [got - before, max(time.perf_counter() - counting_from_s, 1e-9)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a transfer at each rate")
    options = parser.parse_args(arguments)
    if reason := why_not():
        print(f"skipped: {reason}")
        return 0
    with linked() as link:
        rows = check_shaper(link, seconds=options.seconds)
    for row in rows:
        print(json.dumps(row))
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
