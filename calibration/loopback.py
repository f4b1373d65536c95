"""An edge without models within this process: what an empty request costs where nothing is computed."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from aecnn_deploy import __version__
from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import EncodedPlanes, PlaneEncoder, coder_names
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.wire import (
    WIRE_VERSION,
    EdgeSession,
    Hello,
    HelloReceived,
    InferReceived,
    Result,
    Welcome,
    WireLimits,
)

TINY = EncodedPlanes("raw", 0, b"\0", 1)  # the least that an INFER may carry
_TOP = 5  # classes of an answer, as a real edge gives
_TIMEOUT_S = 10.0


def hello_for(bundle: Bundle, what: str) -> Hello:
    """What a measurement says to an edge that serves ``bundle``; ``what`` it is stands on the status page."""
    return Hello(
        bundle_id=bundle.id,
        wire_versions=[WIRE_VERSION],
        variants=[spec.id for spec in bundle.manifest.variants],
        coders=list(coder_names()),
        software=f"aecnn-deploy {__version__} {what}",
        device=what,
    )


def blank_planes(spec: VariantSpec) -> EncodedPlanes:
    """Planes of zeros, which any edge takes: some ten bytes."""
    return PlaneEncoder(spec.planes, spec.bits, coder="zstd").encode(np.zeros(spec.planes, np.uint8))


@contextmanager
def loopback_link(bundle: Bundle, pause_ms: float) -> Iterator[EdgeLink]:
    """A device's own link to a WebSocket server in a thread here, which answers each request after ``pause_ms``.

    The answers tell that pause as the edge's time: a round trip less it is an empty request there and back, from a
    machine that has just waited, as in a real run. Raises MissingExtraError.
    """
    server = require("websockets.sync.server", why="measuring a request within this machine")

    def serve_one(connection: Any) -> None:
        _answer(connection, pause_ms / 1e3)

    with server.serve(serve_one, "127.0.0.1", 0, compression=None) as listening:
        thread = threading.Thread(target=listening.serve_forever, name="aecnn-loopback", daemon=True)
        thread.start()
        link = EdgeLink(
            f"ws://127.0.0.1:{listening.socket.getsockname()[1]}",
            hello_for(bundle, "calibrate"),
            timeout_s=_TIMEOUT_S,
            limits=WireLimits(),
        )
        try:
            link.open()
            yield link
        finally:
            link.close()
            listening.shutdown()
            thread.join(_TIMEOUT_S)


def _answer(connection: Any, pause_s: float) -> None:
    limits = WireLimits()
    session = EdgeSession(limits)
    for data in connection:
        began_s = time.perf_counter()
        for event in session.receive(data):
            match event:
                case HelloReceived(hello):
                    connection.send(session.welcome(_welcome(hello, limits)))
                case InferReceived():
                    time.sleep(pause_s)
                    total_ms = (time.perf_counter() - began_s) * 1e3
                    top = [(index, 0.1) for index in range(_TOP)]
                    connection.send(session.result(event.request_id, Result(top, 0.0, 0.0, 0.0, total_ms, 1, "", 1)))
                case _:
                    return


def _welcome(hello: Hello, limits: WireLimits) -> Welcome:
    return Welcome(
        wire_version=WIRE_VERSION,
        bundle_id=hello.bundle_id,
        variants=hello.variants,
        coders=hello.coders,
        max_in_flight=1,
        max_payload_bytes=limits.max_payload_bytes,
        max_raw_bytes=limits.max_raw_bytes,
        runner="loopback",
        software=hello.software,
    )
