"""One device's stream on the edge: the session core's rules between a WebSocket and the service."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Hashable, MutableMapping
from typing import TYPE_CHECKING, Any

import msgspec

from aecnn_deploy import __version__
from aecnn_deploy.codec import coder_names, delta_names
from aecnn_deploy.errors import RequestFailedError, WireError
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.edge_generation import Generation
from aecnn_deploy.runtimes.edge_lane import Lane
from aecnn_deploy.runtimes.edge_load import LoadTold
from aecnn_deploy.runtimes.edge_service import Caller, EdgeService
from aecnn_deploy.runtimes.edge_view import SPLIT
from aecnn_deploy.runtimes.log_lines import fields
from aecnn_deploy.runtimes.peer_limits import Peer
from aecnn_deploy.runtimes.plane_memory import KeptPlanes
from aecnn_deploy.wire import (
    HEADER_BYTES,
    WIRE_VERSION,
    EdgeSession,
    Failed,
    FailureCode,
    Hello,
    HelloReceived,
    InferReceived,
    RefusalCode,
    Result,
    Welcome,
)

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

logger = logging.getLogger("aecnn_deploy.edge")

NORMAL, GOING_AWAY, PROTOCOL_ERROR, POLICY_VIOLATION = 1000, 1001, 1002, 1008  # close codes of RFC 6455
_MAX_REASON_BYTES = 120  # RFC 6455 leaves 123 in a close frame


class Stream:
    """Serves one WebSocket until either side leaves. What a peer does wrong ends its own stream only."""

    def __init__(self, service: EdgeService, websocket: "WebSocket") -> None:
        self._service, self._websocket = service, websocket
        self._session = EdgeSession(service.settings.limits)
        self._generation: Generation | None = None  # once the HELLO has named a bundle that is served
        self._lanes: list[Lane | None] = []  # by the HELLO's variant index
        self._kept: list[KeptPlanes | None] = []  # the same
        self._load: LoadTold | None = None  # for a device that switches between variants
        self._requests: dict[asyncio.Task[None], int] = {}  # with their ids; until the answer is sent
        client = websocket.client
        self._peer = service.observer.connected(f"{client.host}:{client.port}" if client else "a device")
        self._caller = caller_of(websocket.scope, self)
        self._device_left = False
        # Sending to a device that has left, or after our own close, is no failure of the edge.
        self._gone = (require("starlette.websockets", why="serving an edge").WebSocketDisconnect, RuntimeError)
        settings = service.settings
        self._max_in_flight = min(settings.max_in_flight_per_stream, settings.max_in_flight)

    async def run(self) -> None:
        """Accept the WebSocket and answer it until it is closed."""
        await self._websocket.accept()
        self._service.streams.add(self)
        try:
            await self._converse()
        except WireError as exc:
            self._service.observer.connection_refused(RefusalCode.PROTOCOL, str(exc), self._peer)
            more = fields(peer=self._peer.address, device=self._peer.name, code=RefusalCode.PROTOCOL)
            logger.warning("closed the stream of %s: %s", self._peer.address, exc, extra=more)
            with contextlib.suppress(WireError):  # REFUSED can be said until WELCOME was
                await self._send(self._session.refuse(RefusalCode.PROTOCOL, str(exc)))
            await self._close(PROTOCOL_ERROR, str(exc))
        finally:
            self._service.streams.discard(self)
            if self._generation is not None:
                self._generation.streams.discard(self)
            self._service.observer.left(self._peer)
            for task in self._requests:
                task.cancel()

    async def finish(self, reason: str) -> None:
        """Say GOODBYE, answer what is in flight, then close."""
        with contextlib.suppress(WireError):  # no session yet, or one that has ended
            await self._send(self._session.goodbye(reason))
        while self._requests:
            await asyncio.wait(list(self._requests))
        await self._close(GOING_AWAY, reason)

    async def abandon(self) -> None:
        """Fail what is in flight and close."""
        for task, request_id in list(self._requests.items()):
            task.cancel()
            with contextlib.suppress(WireError):
                await self._send(self._session.fail(request_id, _failed(_draining())))
        await self._close(GOING_AWAY, "the edge is shutting down")

    async def _converse(self) -> None:
        if not await self._greet():
            return
        while (data := await self._receive()) is not None:
            received_s = time.perf_counter()
            self._service.observer.received(SPLIT, len(data))
            events = self._session.receive(data)
            if len(events) != 1 or not self._session.at_boundary:
                raise WireError("a WebSocket message must hold exactly one message of ours")
            if isinstance(events[0], InferReceived):
                self._start(events[0], received_s)
                while len(self._requests) > 2 * self._max_in_flight:  # a device that reads no answers gets no more
                    await asyncio.wait(list(self._requests), return_when=asyncio.FIRST_COMPLETED)
            else:  # GOODBYE: the last answer closes
                self._device_left = True
                if not self._requests:
                    await self._close(NORMAL, "")

    async def _greet(self) -> bool:
        """Wait for the HELLO and answer it; whether the session is open."""
        try:
            data = await asyncio.wait_for(self._receive(), self._service.settings.hello_timeout_s)
        except TimeoutError:
            raise WireError(f"no HELLO came within {self._service.settings.hello_timeout_s:g} s") from None
        if data is None:
            return False
        events = self._session.receive(data)
        if len(events) != 1 or not isinstance(events[0], HelloReceived) or not self._session.at_boundary:
            raise WireError("the first WebSocket message must hold a HELLO and nothing else")
        hello = events[0].hello
        refusal = self._refusal(hello)
        if refusal is not None:
            code, reason = refusal
            self._service.observer.connection_refused(code, reason, self._peer)
            more = fields(peer=self._peer.address, device=hello.device or "", code=code)
            logger.warning("refused %s (%s): %s", self._peer.address, code, reason, extra=more)
            await self._send(self._session.refuse(code, reason))
            await self._close(POLICY_VIOLATION, code)
            return False
        welcome = self._welcome(hello)
        name, verified = hello.device, isinstance(self._caller.peer, str) and bool(self._caller.peer)
        if verified:  # several devices may share a token: each keeps its own name behind that of the token
            name = f"{self._caller.peer}/{hello.device}" if hello.device else str(self._caller.peer)
        self._service.observer.welcomed(
            self._peer, name=name, software=hello.software, trace=hello.trace, verified=verified
        )
        await self._send(self._session.welcome(welcome))
        for lane in self._used(hello).values():
            self._service.pool.want_ahead(lane, lambda: self in self._service.streams)
        return True

    def _welcome(self, hello: Hello) -> Welcome:
        generation = self._service.generation(hello.bundle_id)
        assert generation is not None  # else it was refused
        self._generation = generation
        generation.streams.add(self)
        self._lanes = [generation.tails.get(name) for name in hello.variants]
        known = [generation.bundle.variant(name) for name in hello.variants if name in generation.tails]
        settings = self._service.settings
        differences = set(hello.coders) & set(delta_names())
        references = generation.references(known, self._max_in_flight) if differences else 0
        self._kept = [KeptPlanes(references) if lane and references else None for lane in self._lanes]
        coders = (*coder_names(), *(delta_names() if references else ()))
        if used := self._used(hello):
            self._load = LoadTold(used, lambda: self._service.pool.loaded, self._caller)
        return Welcome(
            wire_version=WIRE_VERSION,
            bundle_id=generation.bundle.id,
            variants=[variant.id for variant in known],
            coders=[name for name in hello.coders if name in coders],
            max_in_flight=self._max_in_flight,
            max_payload_bytes=settings.limits.max_payload_bytes,
            max_raw_bytes=settings.limits.max_raw_bytes,
            runner=generation.runner_name,
            software=f"aecnn-deploy {__version__}",
            references=references,
            load=self._load.now() if self._load else [],
        )

    def _used(self, hello: Hello) -> dict[int, Lane]:
        """The lanes of the variants that the device switches between, each once, by their index."""
        used: dict[Lane, int] = {}
        for index in hello.uses:
            if index < len(self._lanes) and (lane := self._lanes[index]) is not None:
                used.setdefault(lane, index)
        return {index: lane for lane, index in used.items()}

    def _refusal(self, hello: Hello) -> tuple[RefusalCode, str] | None:
        service, mine = self._service, self._service.bundle.id
        generation = service.generation(hello.bundle_id)
        if service.draining or not service.ready:
            why = "is shutting down" if service.draining else "is still loading its models"
            return RefusalCode.DRAINING if service.draining else RefusalCode.OVERLOADED, f"the edge {why}; try again"
        if WIRE_VERSION not in hello.wire_versions:
            return RefusalCode.WIRE_VERSION, (
                f"the device speaks wire versions {hello.wire_versions}, the edge {WIRE_VERSION}; "
                "install the same release on both"
            )
        if generation is None:
            return RefusalCode.BUNDLE_MISMATCH, (
                f"the device has bundle {hello.bundle_id[:12]}…, the edge serves {mine[:12]}…; "
                "start both halves with the same bundle"
            )
        if not set(hello.coders) & set(coder_names()):
            return RefusalCode.NO_COMMON_CODER, (
                f"the device has coders {hello.coders}, the edge {list(coder_names())}; "
                "install the same release on both"
            )
        if not set(hello.variants) & generation.tails.keys():
            return RefusalCode.BUNDLE_MISMATCH, f"the edge has none of the device's variants {hello.variants}"
        if len(service.streams) > service.settings.max_streams:
            limit = service.settings.max_streams
            return RefusalCode.OVERLOADED, f"the edge has {limit} streams, its limit; raise --max-streams there"
        return None

    def _start(self, request: InferReceived, received_s: float) -> None:
        task = asyncio.create_task(self._answer(request, received_s))
        self._requests[task] = request.request_id
        task.add_done_callback(self._requests.pop)

    async def _answer(self, request: InferReceived, received_s: float) -> None:
        try:
            result = await self._infer(request, received_s)
            if self._load is not None:
                result = msgspec.structs.replace(result, load=self._load.now())
            message = self._session.result(request.request_id, result)
            self._observe(request, result, len(message))
        except RequestFailedError as exc:
            message = self._fail(request, received_s, _failed(exc))
        except Exception as exc:  # a defect of ours: the device hears of it, and its stream goes on
            more = fields(peer=self._peer.address, device=self._peer.name, code=FailureCode.INTERNAL)
            logger.exception("request %d of %s failed", request.request_id, self._peer.address, extra=more)
            message = self._fail(request, received_s, Failed(FailureCode.INTERNAL, type(exc).__name__))
        await self._send(message)
        if self._device_left and len(self._requests) == 1:
            await self._close(NORMAL, "")

    def _observe(self, request: InferReceived, result: Result, sent_bytes: int) -> None:
        stages_ms = {"queue": result.queue_ms, "decode": result.decode_ms, "tail": result.tail_ms}
        self._service.observer.answered(
            SPLIT,
            result.variant,
            self._peer,
            stages_ms | {"total": result.total_ms},
            result.batch,
            sent_bytes,
            request_id=request.request_id,
            received_bytes=HEADER_BYTES + len(request.payload),
        )

    def _fail(self, request: InferReceived, received_s: float, failed: Failed) -> bytes:
        lane = self._lane(request)
        self._service.observer.failed(
            SPLIT,
            failed.code,
            self._peer,
            failed.reason,
            variant=lane.model.name if lane else "",
            request_id=request.request_id,
            total_ms=(time.perf_counter() - received_s) * 1e3,
        )
        return self._session.fail(request.request_id, failed)

    def _lane(self, request: InferReceived) -> Lane | None:
        return self._lanes[request.variant] if request.variant < len(self._lanes) else None

    async def _infer(self, request: InferReceived, received_s: float) -> Result:
        lane = self._lane(request)
        if lane is None or self._generation is None:
            raise RequestFailedError(
                FailureCode.UNKNOWN_VARIANT, f"variant index {request.variant} of {len(self._lanes)} is not served"
            )
        expected = self._generation.bundle.variant(lane.model.name).plane_bytes
        if request.raw_bytes != expected:
            raise RequestFailedError(
                FailureCode.BAD_PAYLOAD, f"{request.raw_bytes} bytes of planes, {lane.model.name} has {expected}"
            )
        return await self._service.infer(lane, request, received_s, self._caller, self._kept[request.variant])

    async def _receive(self) -> bytes | None:
        """The next binary WebSocket message, or None at the end. Raises WireError: it is a text message."""
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        data: bytes | None = message.get("bytes")
        if data is None:
            raise WireError("a text WebSocket message came; ours are binary")
        return data

    async def _send(self, data: bytes) -> None:
        with contextlib.suppress(*self._gone):
            await self._websocket.send_bytes(data)

    async def _close(self, code: int, reason: str) -> None:
        text = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        with contextlib.suppress(*self._gone):
            await self._websocket.close(code, text)


def caller_of(scope: "MutableMapping[str, Any]", stream: Hashable) -> Caller:
    """Who asks: the peer that was identified by a token or a certificate, else one of those who were not.

    Those share the place of one peer; an address says little, since whole sites stand behind one.
    """
    peer: Peer = scope["state"]["peer"]
    return Caller(peer.name if peer.how in ("token", "certificate") else "", stream, peer)


def _failed(error: RequestFailedError) -> Failed:
    return Failed(error.code, error.reason, error.retry_after_s)


def _draining() -> RequestFailedError:
    return RequestFailedError(FailureCode.DRAINING, "the edge shut down before its turn came", 1.0)
