"""Edges made by hand: a WebSocket server whose handler plays any part."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websocket

from aecnn_deploy.wire import EdgeSession, HelloReceived, InferReceived, Result, Welcome, WireLimits

RESULT = Result([(1, 0.5)], 0.1, 0.1, 0.1, 0.4, 1, "v")


@contextmanager
def peer(handler: Callable[[ServerConnection], None], port: int = 0) -> Iterator[str]:
    """A WebSocket server on loopback that runs ``handler`` for each connection; its URL."""
    with serve_websocket(handler, "127.0.0.1", port, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def greet(connection: ServerConnection) -> EdgeSession:
    """An honest edge's beginning."""
    session = EdgeSession(WireLimits())
    (event,) = session.receive(connection.recv())  # type: ignore[arg-type]
    assert isinstance(event, HelloReceived)
    hello = event.hello
    welcome = Welcome(1, hello.bundle_id, hello.variants, hello.coders, 4, 1 << 20, 1 << 20, "test", "test")
    connection.send(session.welcome(welcome))
    return session


def next_request(connection: ServerConnection, session: EdgeSession) -> int:
    (event,) = session.receive(connection.recv())  # type: ignore[arg-type]
    assert isinstance(event, InferReceived)
    return event.request_id
