"""An edge that answers at once: the libraries and the link as they are, none of our work in between."""

import socket
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from aecnn_deploy.wire import HEADER_BYTES, EdgeSession, HelloReceived, Kind, Result, Welcome, WireLimits, pack
from aecnn_deploy.wire.messages import encode_control
from benchmarks.stream_client import STREAM_PATH

if TYPE_CHECKING:
    from starlette.websockets import WebSocket


def serve_nothing(connection: Connection, best_class: int, variant: str, max_in_flight: int = 64) -> None:
    """A process: say its port, then answer each request with one and the same five classes, ``best_class`` first.

    uvicorn and Starlette as the edge has them. Of our code only what a device needs: HELLO and WELCOME, and the
    request's id in the answer.
    """
    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute

    top = [(best_class, 0.5), *((best_class + number, 0.1234567890123) for number in range(1, 5))]
    answer = encode_control(Result(top, 0.0, 0.0, 0.0, 0.0, 1, variant))

    async def stream(websocket: "WebSocket") -> None:
        await websocket.accept()
        session = EdgeSession(WireLimits())
        (event,) = session.receive(await websocket.receive_bytes())
        assert isinstance(event, HelloReceived)
        hello = event.hello
        limits = (max_in_flight, WireLimits().max_payload_bytes, WireLimits().max_raw_bytes)
        await websocket.send_bytes(
            session.welcome(Welcome(1, hello.bundle_id, hello.variants, hello.coders, *limits, "none", "none"))
        )
        while (message := await websocket.receive())["type"] != "websocket.disconnect":
            data: bytes = message["bytes"]
            if len(data) > HEADER_BYTES and data[5] == Kind.INFER:
                await websocket.send_bytes(pack(Kind.RESULT, answer, request_id=int.from_bytes(data[8:16])))

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            connection.send(listener.getsockname()[1])

    routes: list[Any] = [WebSocketRoute(STREAM_PATH, stream)]
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        config = uvicorn.Config(
            Starlette(routes=routes),
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
        )
        Server(config).run(sockets=[listener])
