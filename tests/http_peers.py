"""Edges made by hand that also answer GET, with or without TLS: any certificate, state, bundle and clock."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import trustme
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websocket

from tests.peers import greet


def idle(connection: ServerConnection) -> None:
    """Greet like an honest edge, and wait for the end."""
    with suppress(ConnectionClosed):
        greet(connection)
        for _ in connection:
            pass


@contextmanager
def edge_by_hand(
    handler: Callable[[ServerConnection], None] = idle,
    *,
    state: str = "ready",
    bundle_id: str = "",
    ahead: timedelta = timedelta(0),
    tls: ssl.SSLContext | None = None,
) -> Iterator[str]:
    """An edge on loopback in ``state``, whose clock is ``ahead``; its address, by the name localhost."""

    def answer(connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/v1/stream":
            return None
        ready = state == "ready" or request.path == "/healthz"
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        response = connection.respond(status, f'{{"state": "{state}", "bundle_id": "{bundle_id}"}}')
        del response.headers["Date"]
        response.headers["Date"] = f"{datetime.now(UTC) + ahead:%a, %d %b %Y %H:%M:%S} GMT"
        return response

    with serve_websocket(handler, "127.0.0.1", 0, compression=None, ssl=tls, process_request=answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"{'wss' if tls else 'ws'}://localhost:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def certified(authority: trustme.CA, *names: str, not_after: datetime | None = None) -> ssl.SSLContext:
    """A server's side of TLS with a certificate for ``names``, signed by ``authority``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, not_after=not_after).configure_cert(context)
    return context
