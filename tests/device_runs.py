"""Runs of the device's pipeline in tests: frames to give it, edges that play a part, and what must hold of a report."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.runtimes.device_client import DeviceSettings, RunReport, run_frames
from aecnn_deploy.runtimes.sources import SourceImage
from aecnn_deploy.wire import EdgeSession, HelloReceived, InferReceived, Result, Welcome, WireLimits
from tests.peers import peer

LONG_S = 30.0  # that no test waits for unless something is wrong


def frames(content: bytes, count: int) -> list[SourceImage]:
    """``count`` frames of one image's bytes, named by their number."""
    return [SourceImage(f"frame{number}", content) for number in range(count)]


def run(bundle: Bundle, url: str, images: Any, **options: Any) -> RunReport:
    """``run_frames`` with settings and arguments mixed."""
    arguments = {name: options.pop(name) for name in ("live", "on_image", "stop", "keep", "limit") if name in options}
    settings = DeviceSettings(url, **({"threads": 1, "timeout_s": 5.0, "seed": 1, "longest_pause_s": 0.5} | options))
    return run_frames(bundle, settings, images, **arguments)


def assert_each_once(report: RunReport, count: int) -> None:
    """Every frame has exactly one report, in the order of capture, and every failure has a code and a reason."""
    assert [image.source for image in report.images] == [f"frame{number}" for number in range(count)]
    for image in report.images:
        if image.status == "ok":
            assert (image.failure, image.error) == (None, None)
            assert image.label is not None
        else:
            assert image.failure, image
            assert image.error, image
    end_s = time.monotonic() + 5  # one that has nothing left to do may not have had its last turn
    while left := [thread.name for thread in threading.enumerate() if thread.name.startswith("aecnn-")]:
        assert time.monotonic() < end_s, left
        time.sleep(0.01)


def failures(report: RunReport) -> set[str | None]:
    return {image.failure for image in report.images if image.status == "failed"}


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Part:
    """An edge by hand: each subclass says in ``answer`` what it does with a request."""

    max_in_flight = 4

    def __init__(self) -> None:
        self.sessions = 0
        self.asked: list[tuple[int, int, int]] = []  # session, request id, coder id

    def __call__(self, connection: ServerConnection) -> None:
        self.sessions += 1
        number = self.sessions
        session = EdgeSession(WireLimits())
        with suppress(ConnectionClosed, EOFError):
            (event,) = session.receive(connection.recv())  # type: ignore[arg-type]
            assert isinstance(event, HelloReceived)
            hello = event.hello
            connection.send(
                session.welcome(
                    Welcome(
                        1,
                        hello.bundle_id,
                        hello.variants,
                        hello.coders,
                        self.max_in_flight,
                        1 << 20,
                        1 << 20,
                        "test",
                        "test",
                        8,
                    )
                )
            )
            while True:
                for event in session.receive(connection.recv()):  # type: ignore[arg-type]
                    if not isinstance(event, InferReceived):
                        return
                    self.asked.append((number, event.request_id, event.coder_id))
                    if self.answer(connection, session, event.request_id, number) is False:
                        return

    def answer(self, connection: ServerConnection, session: EdgeSession, request_id: int, number: int) -> bool | None:
        """Do something with request ``request_id`` of session ``number``; False ends the connection."""
        connection.send(session.result(request_id, result(request_id)))
        return None


def result(request_id: int) -> Result:
    """An answer whose class tells which request it is of."""
    return Result([(request_id % 7, 0.5)], 0.1, 0.1, 0.1, 0.4, 1, "v")


@contextmanager
def playing(part: Part) -> Iterator[str]:
    """The part's URL while it plays."""
    with peer(part) as url:
        yield url
