"""A controller's routes: the WebSocket of devices, and what it says of itself. docs/controller.md lists them."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from aecnn_deploy import __version__
from aecnn_deploy.errors import WireError
from aecnn_deploy.offloading.live.generations import Advisers
from aecnn_deploy.offloading.live.roster import Member
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.controller_messages import (
    ADVICE_PATH,
    PROTOCOL,
    Hello,
    Refused,
    State,
    Welcome,
    encoded,
    from_device,
)

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

logger = logging.getLogger("aecnn_deploy.edge")

CONTROLLER_PATH = "/v1/controller"
NORMAL, GOING_AWAY, PROTOCOL_ERROR, POLICY_VIOLATION = 1000, 1001, 1002, 1008  # close codes of RFC 6455

# Why a device is refused.
BUNDLE_MISMATCH, UNKNOWN_EDGE, FULL, VERSION, BROKEN = (
    "bundle-mismatch",
    "unknown-edge",
    "overloaded",
    "protocol-version",
    "protocol",
)


def controller_routes(advisers: Advisers) -> "list[Any]":
    """``/v1/advice`` and ``/v1/controller``: what an edge that is a controller, too, has beside its own."""
    from starlette.responses import Response
    from starlette.routing import Route, WebSocketRoute

    async def status(_: "Request") -> "Response":
        return Response(
            msgspec.json.encode(advisers.status()),
            media_type="application/json",
            headers={"cache-control": "no-store", "x-content-type-options": "nosniff"},
        )

    async def advice(websocket: "WebSocket") -> None:
        await _Conversation(advisers, websocket).run()

    return [Route(CONTROLLER_PATH, status), WebSocketRoute(ADVICE_PATH, advice)]


def build_controller_app(advisers: Advisers, more: Iterable[Any] = ()) -> "Starlette":
    """The ASGI application of a controller alone."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def healthz(_: "Request") -> "Response":
        return JSONResponse({"alive": True})

    async def readyz(_: "Request") -> "Response":
        return JSONResponse({"state": "ready", "bundle_id": advisers.present.bundle_id})

    return Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz), *controller_routes(advisers), *more])


class _Conversation:
    """One device's WebSocket, until either side leaves. What a device does wrong ends its own connection only."""

    def __init__(self, advisers: Advisers, websocket: "WebSocket") -> None:
        self._advisers, self._websocket = advisers, websocket
        self._adviser = advisers.present  # until the device has said which bundle it has
        client = websocket.client
        self._address = f"{client.host}:{client.port}" if client else "a device"
        sockets = require("starlette.websockets", why="a controller", extra="edge")
        self._gone = (sockets.WebSocketDisconnect, RuntimeError)

    async def run(self) -> None:
        await self._websocket.accept()
        try:
            await self._converse()
        except WireError as exc:
            self._adviser.counts.broken += 1
            logger.warning("closed the advice of %s: %s", self._address, exc)
            await self._refuse(BROKEN, str(exc), PROTOCOL_ERROR)
        except self._gone:
            pass

    async def _converse(self) -> None:
        adviser = self._adviser
        try:
            hello = await asyncio.wait_for(self._receive(), adviser.settings.hello_timeout_s)
        except TimeoutError:
            raise WireError(f"no HELLO came within {adviser.settings.hello_timeout_s:g} s") from None
        if not isinstance(hello, Hello):
            raise WireError("the first message is no HELLO")
        adviser = self._adviser = self._advisers.of(hello.bundle_id)
        if (refusal := self._refusal(hello)) is not None:
            code, reason = refusal
            adviser.counts.refused[code] = adviser.counts.refused.get(code, 0) + 1
            logger.warning("refused advice to %s (%s): %s", self._address, code, reason)
            await self._refuse(code, reason, POLICY_VIOLATION)
            return
        member = adviser.roster.join(hello, adviser.clock())
        adviser.wake[member] = asyncio.Event()
        sending = asyncio.create_task(self._send_always(member, adviser.wake[member]))
        try:
            await self._listen(member)
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, *self._gone):
                await sending
            del adviser.wake[member]
            adviser.roster.leave(member)

    async def _listen(self, member: Member) -> None:
        while True:
            message = await self._receive()
            if not isinstance(message, State):
                raise WireError("a second HELLO came")
            if (why := self._adviser.roster.tell(member, message, self._adviser.clock())) is not None:
                raise WireError(why)

    async def _send_always(self, member: Member, wake: asyncio.Event) -> None:
        """Only the newest advice is kept for a device that reads slowly."""
        adviser = self._adviser
        await self._websocket.send_text(
            encoded(
                Welcome(
                    protocol=PROTOCOL,
                    software=f"aecnn-deploy {__version__}",
                    policy=adviser.policy.name[:1024],
                    slot_ms=adviser.settings.slot_ms,
                )
            )
        )
        while True:
            await wake.wait()
            wake.clear()
            if adviser.closed:
                reason = f"nobody is advised by bundle {adviser.bundle_id[:12]}… any more; give the device the new one"
                await self._refuse(BUNDLE_MISMATCH, reason, GOING_AWAY)
                return
            if member.mailbox:
                await self._websocket.send_text(encoded(member.mailbox.pop()))

    async def _receive(self) -> Hello | State:
        """Raises WireError; WebSocketDisconnect: the device has left."""
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise self._gone[0](message.get("code", NORMAL))
        text: str | bytes | None = message.get("text") or message.get("bytes")
        return from_device(text or b"")

    def _refusal(self, hello: Hello) -> tuple[str, str] | None:
        adviser = self._adviser
        if hello.protocol != PROTOCOL:
            return VERSION, (
                f"the device speaks version {hello.protocol} of the protocol, the controller {PROTOCOL}; install the "
                "same release on both"
            )
        if hello.bundle_id != adviser.bundle_id:
            return BUNDLE_MISMATCH, (
                f"the device has bundle {_printable(hello.bundle_id)[:12]}…, the controller {adviser.bundle_id[:12]}…; "
                "start both with the same bundle"
            )
        if unknown := adviser.roster.unknown_edges(hello):
            return UNKNOWN_EDGE, (
                f"the device names {', '.join(_printable(name) for name in unknown[:4])}, and the controller has "
                f"{', '.join(adviser.roster.edges)}; give both the same --edge NAME=URL"
            )
        if sum(len(one.roster.members) for one in self._advisers.all) >= adviser.roster.most:
            return FULL, f"the controller has {adviser.roster.most} devices, its limit; raise --max-devices there"
        return None

    async def _refuse(self, code: str, reason: str, close: int) -> None:
        with contextlib.suppress(*self._gone):
            await self._websocket.send_text(encoded(Refused(code=code, reason=reason[:1024])))
            await self._websocket.close(close, code)


def _printable(text: str) -> str:
    return "".join(mark if mark.isprintable() else "?" for mark in text)
