"""A device in small, and what the tests of a running edge ask of it."""

import http.client
import json
import time
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import EncodedPlanes, PlaneEncoder, coder_names, delta_names
from aecnn_deploy.wire import (
    DeviceSession,
    Hello,
    ResultReceived,
    Welcomed,
    WireLimits,
)
from tests.bundles import Edge


class Client:
    """A device made by hand: the session core on a WebSocket."""

    def __init__(self, edge: Edge, bundle: Bundle, **changes: Any) -> None:
        variants = [spec.id for spec in bundle.manifest.variants]
        fields = {
            "bundle_id": bundle.id,
            "wire_versions": [1],
            "variants": variants,
            "coders": [*coder_names(), *delta_names()],
            "software": "test",
        }
        self.session = DeviceSession(Hello(**(fields | changes)), WireLimits())
        self.socket: ClientConnection = self._stack(edge.url)
        self.socket.send(self.session.start())

    def _stack(self, url: str) -> ClientConnection:
        self._context = connect(url + "/v1/stream", compression=None, proxy=None)
        return self._context.__enter__()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)

    def event(self, timeout_s: float = 10.0) -> Any:
        data = self.socket.recv(timeout=timeout_s)
        assert isinstance(data, bytes)
        (event,) = self.session.receive(data)
        return event

    def ask(self, spec: VariantSpec, index: int, planes: np.ndarray[Any, Any], deadline_ms: int = 0) -> int:
        return self.send(PlaneEncoder(spec.planes, spec.bits).encode(planes), index, deadline_ms)

    def send(self, encoded: EncodedPlanes, index: int = 0, deadline_ms: int = 0) -> int:
        request_id, message = self.session.infer(
            index, encoded.coder_id, encoded.payload, encoded.raw_bytes, deadline_ms
        )
        self.socket.send(message)
        return request_id

    def close_code(self) -> tuple[int, str]:
        return until_closed(self.socket)


def until_closed(stream: ClientConnection, *messages: bytes | str) -> tuple[int, str]:
    """Send ``messages`` and read until the edge closes: its close code and reason, (1006, "") for a reset."""
    try:
        for message in messages:
            stream.send(message)
        while True:
            stream.recv(timeout=10)
    except ConnectionClosed as exc:
        return (exc.rcvd.code, exc.rcvd.reason) if exc.rcvd is not None else (1006, "")


def planes_of(spec: VariantSpec, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 1 << spec.bits, spec.planes, dtype=np.uint8)


def get(edge: Edge, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def post(edge: Edge, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=10)
    connection.request(
        "POST", "/v1/classify", body=body, headers=headers, encode_chunked="Transfer-Encoding" in headers
    )
    answer = connection.getresponse()
    document = json.loads(answer.read())
    connection.close()
    return answer.status, document


def metric(edge: Edge, line: str) -> float:
    for text in get(edge, "/metrics")[1].decode().splitlines():
        if text.startswith(line + " "):
            return float(text.removeprefix(line + " "))
    return 0.0


def wait_until_in_flight(edge: Edge, count: int) -> None:
    end = time.monotonic() + 10
    while metric(edge, "aecnn_in_flight") < count:
        assert time.monotonic() < end
        time.sleep(0.01)


def wait_until_no_stream(edge: Edge) -> None:
    end = time.monotonic() + 10
    while metric(edge, "aecnn_streams") > 0:
        assert time.monotonic() < end
        time.sleep(0.01)


def assert_answers(edge: Edge, bundle: Bundle) -> None:
    """A fresh device is served."""
    spec = bundle.manifest.variants[0]
    with Client(edge, bundle) as client:
        assert isinstance(client.event(), Welcomed)
        request_id = client.ask(spec, 0, planes_of(spec))
        event = client.event()
        assert isinstance(event, ResultReceived)
        assert event.request_id == request_id


def assert_answers_fast(edge: Edge, slow: Bundle) -> None:
    """The variant without the slow tail is served."""
    spec = slow.manifest.variants[1]
    with Client(edge, slow) as client:
        client.event()
        client.ask(spec, 1, planes_of(spec))
        assert isinstance(client.event(), ResultReceived)
