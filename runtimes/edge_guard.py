"""The edge's ASGI middleware: every request has a peer, by token, certificate or address, or is refused."""

import base64
import binascii
import contextlib
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from aecnn_deploy.runtimes.edge_gate import CONNECTION, CONNECTIONS, CROSS_SITE, UNAUTHORIZED, Connection, Gate
from aecnn_deploy.runtimes.peer_limits import Peer
from aecnn_deploy.runtimes.tokens import MAX_TOKEN_CHARACTERS, Token
from aecnn_deploy.wire import RefusalCode

logger = logging.getLogger("aecnn_deploy.edge")

PEER = "peer"  # its key in the state of an ASGI scope

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_ALWAYS_OPEN = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
_API = ("/v1/", "/v2")
_OPEN_INFERENCE = "/v2"  # whose errors are a line of text
_PAGE_METHODS = frozenset({"GET", "HEAD"})
_RETRY_AFTER_S = 5
_REALM = 'realm="aecnn-deploy", charset="UTF-8"'


class _Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """A request that is answered here."""

    def __init__(self, status: int, reason: str, code: str, text: str, **headers: str) -> None:
        self.status, self.reason, self.code, self.text, self.headers = status, reason, code, text, headers
        super().__init__(text)


class Guard:
    """Wraps the edge's application: ``scope["state"]["peer"]`` is a ``Peer`` in all that it lets through.

    Refused requests are answered ``{"error": {"code", "reason"}}``, below ``/v2`` ``{"error": reason}``, with 401 (no
    token of this edge), 403 (a browser's, from another site) or 429 (too many connections); so is the handshake of a
    WebSocket.
    """

    def __init__(self, app: App, gate: Gate) -> None:
        self._app, self._gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or one WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        connection = state.get(CONNECTION)
        try:
            state[PEER] = self._admit(scope, connection)
        except _Refusal as refusal:
            who = connection.address if connection is not None else "a peer"
            self._gate.refused(refusal.reason, f"refused {who} ({refusal.code}): {refusal.text}")
            await _answer(scope, send, refusal)
            return
        if scope["type"] == "websocket" and connection is not None:
            self._gate.watch(connection)
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope, connection: Connection | None) -> Peer:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        is_page = scope["type"] == "http" and scope["method"] in _PAGE_METHODS
        _check_site(headers, is_page)
        token = self._token(scope["path"], headers, is_page)
        address = connection.address if connection is not None else (scope.get("client") or ("a peer",))[0]
        if token is not None:
            peer = Peer(token.name, "token")
        elif connection is not None and connection.certificate_name is not None:
            peer = Peer(connection.certificate_name, "certificate")
        else:
            peer = Peer(address, "address")
        if connection is not None and not self._gate.adopt(connection, peer, token):
            raise _Refusal(
                429,
                CONNECTIONS,
                RefusalCode.OVERLOADED,
                f"{peer} has {self._gate.limits.connections} connections, the limit; close some",
                **{"retry-after": str(_RETRY_AFTER_S)},
            )
        return peer

    def _token(self, path: str, headers: dict[str, str], is_page: bool) -> Token | None:
        """The token of a request that needs one, or shows one. Raises _Refusal: it is none of ours."""
        tokens = self._gate.tokens
        if tokens is None:
            return None
        is_page = is_page and not path.startswith(_API)
        presented = _presented(headers.get("authorization", ""))
        found = tokens.find(presented) if presented else None
        if found is None and path not in _ALWAYS_OPEN and not (is_page and self._gate.settings.open_status):
            why = "the token is none of this edge's" if presented else "no token came: 'Authorization: Bearer TOKEN'"
            # A browser asks for a name and a password when it hears of Basic; the password is the token.
            scheme = "Basic" if is_page else "Bearer"
            raise _Refusal(
                401, UNAUTHORIZED, RefusalCode.UNAUTHORIZED, why, **{"www-authenticate": f"{scheme} {_REALM}"}
            )
        return found


def _presented(authorization: str) -> str:
    """The token of an ``Authorization`` header: Bearer's, or the password of Basic; "" if there is none."""
    scheme, _, value = authorization.partition(" ")
    value = value.strip()
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    elif scheme.lower() != "bearer":
        return ""
    return value if len(value) <= MAX_TOKEN_CHARACTERS else ""


def _check_site(headers: dict[str, str], is_page: bool) -> None:
    """A browser sends a password that it knows along with what any other site asks of it. Raises _Refusal."""
    origin = headers.get("origin")
    if origin is None or is_page:
        return
    with contextlib.suppress(ValueError):  # no address at all
        if urlsplit(origin).netloc.lower() == headers.get("host", "").lower():
            return
    raise _Refusal(403, CROSS_SITE, CROSS_SITE, "a page of another site asked; ask without a browser")


async def _answer(scope: Scope, send: Send, refusal: _Refusal) -> None:
    told: object = {"code": str(refusal.code), "reason": refusal.text}
    if scope["path"].startswith(_OPEN_INFERENCE):
        told = refusal.text
    body = msgspec.json.encode({"error": told})
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    prefix = "websocket.http" if scope["type"] == "websocket" else "http"
    await send(
        {
            "type": f"{prefix}.response.start",
            "status": refusal.status,
            "headers": [
                (name.encode(), value.encode("latin-1")) for name, value in (headers | refusal.headers).items()
            ],
        }
    )
    await send({"type": f"{prefix}.response.body", "body": body, "more_body": False})
