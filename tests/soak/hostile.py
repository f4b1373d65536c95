"""Four peers that mean no good, each on a thread; none may harm an honest device, and none may be served."""

import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import msgspec
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from aecnn_deploy.errors import EdgeUnreachableError, SessionRefusedError, WireError
from aecnn_deploy.wire import Kind, pack
from benchmarks.stream_client import STREAM_PATH, StreamClient
from benchmarks.traffic import Traffic

GARBAGE, SILENT, WRONG_TOKEN, OTHER_BUNDLE = "garbage", "reads nothing", "wrong token", "other bundle"
NO_EDGE, SERVED = "no edge", "served"
_PAUSE_S = 0.25
_JOIN_S = 30.0
_RECEIVE_BUFFER_BYTES = 4096  # of the one that reads nothing: soon full
_ASKS_HZ = 100.0


class Hostiles:
    """Runs all of them against ``url`` until the end of the context.

    ``tally``: of each, what became of its attempts. ``token``: an edge with tokens is being served, this is a good one;
    without it the wrong one has nothing to be wrong about and does not run.
    """

    def __init__(self, url: str, traffic: Traffic, *, token: str | None, seed: int) -> None:
        self._url, self._traffic, self._token = url, traffic, token
        self._random = random.Random(seed)
        self._stop = threading.Event()
        parts: dict[str, Callable[[], str]] = {
            GARBAGE: self._send_garbage,
            SILENT: self._read_nothing,
            OTHER_BUNDLE: self._bring_another_bundle,
        }
        if token is not None:
            parts[WRONG_TOKEN] = self._show_a_wrong_token
        self.tally: dict[str, Counter[str]] = {name: Counter() for name in parts}
        self._threads = [
            threading.Thread(target=self._play, args=(name, part), name=name) for name, part in parts.items()
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all of them; again does nothing."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def problems(self) -> list[str]:
        """What should not have happened to them, or never happened."""
        found = [f"{thread.name}: hangs" for thread in self._threads if thread.is_alive()]
        for name, counts in self.tally.items():
            if counts[SERVED]:
                found.append(f"{name}: was served {counts[SERVED]} times")
            if not sum(counts.values()) - counts[NO_EDGE]:
                found.append(f"{name}: never reached the edge")
        return found

    def _play(self, name: str, part: Callable[[], str]) -> None:
        while not self._stop.is_set():
            self.tally[name][part()] += 1
            self._stop.wait(_PAUSE_S)

    def _send_garbage(self) -> str:
        """Bytes that are no HTTP, messages that are none of ours, damaged ones of ours: each closes the stream."""
        data = self._random.randbytes(self._random.randrange(1, 4096))
        way = self._random.randrange(4)
        if way == 0:
            return self._raw(data)
        if way == 1:
            return self._messages([data])
        hello = msgspec.json.encode({"bundle_id": self._traffic.bundle_id, "wire_versions": "all"})
        if way == 2:
            return self._messages([pack(Kind.HELLO, hello)])
        return self._messages([b"AECN\x01\x04" + data])

    def _raw(self, data: bytes) -> str:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=5) as raw:
            raw.sendall(data + b"\r\n\r\n")
            with suppress(OSError):
                while raw.recv(4096):
                    pass
            return "closed"
        return NO_EDGE

    def _messages(self, messages: Sequence[bytes]) -> str:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            with connect(
                self._url + STREAM_PATH, compression=None, proxy=None, additional_headers=headers, close_timeout=1
            ) as stream:
                try:
                    for message in messages:
                        stream.send(message)
                    while True:
                        answer = stream.recv(timeout=5)
                        if isinstance(answer, bytes) and answer[5] == Kind.RESULT:
                            return SERVED
                except ConnectionClosed:
                    return "closed"
                except TimeoutError:
                    return "left alone for 5 s"
        except (OSError, EOFError, WebSocketException):
            return NO_EDGE

    def _read_nothing(self) -> str:
        """Asks on and on, and reads no answer: until the edge has enough of it, or is gone."""
        try:
            client = StreamClient(
                self._url,
                self._traffic,
                token=self._token,
                timeout_s=5.0,
                receive_buffer_bytes=_RECEIVE_BUFFER_BYTES,
            )
        except (EdgeUnreachableError, WireError, OSError):
            return NO_EDGE
        except SessionRefusedError as exc:
            return f"refused: {exc.code}"
        try:
            while not self._stop.wait(1 / _ASKS_HZ):
                client.ask(self._traffic.requests[0])
            return "still asking"
        except TimeoutError:
            return "could send no more"
        except OSError:
            return "closed"
        finally:
            client.close()

    def _show_a_wrong_token(self) -> str:
        return self._come_in(self._traffic, f"{self._token}-wrong")

    def _bring_another_bundle(self) -> str:
        other = msgspec.structs.replace(self._traffic, bundle_id=self._traffic.bundle_id[::-1])
        return self._come_in(other, self._token)

    def _come_in(self, traffic: Traffic, token: str | None) -> str:
        try:
            StreamClient(self._url, traffic, token=token, timeout_s=5.0).close()
        except SessionRefusedError as exc:
            return f"refused: {exc.code}"
        except EdgeUnreachableError as exc:
            return "HTTP 401" if "401" in str(exc) else NO_EDGE
        except (WireError, OSError):
            return NO_EDGE
        return SERVED

    @property
    def _port(self) -> int:
        return int(self._url.rpartition(":")[2])
