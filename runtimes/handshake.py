"""Why a device's WebSocket handshake failed, in words that name a remedy."""

import socket
import ssl
from urllib.parse import urlsplit

import msgspec

from aecnn_deploy.errors import AecnnError, EdgeUnreachableError, SessionRefusedError, TimedOutError
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.tls import why_no_tls
from aecnn_deploy.wire import RefusalCode

_MAX_BODY_BYTES = 4096
_LISTEN_S = 1.0
_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


class _Error(msgspec.Struct):
    code: str
    reason: str


class _Body(msgspec.Struct):
    error: _Error


def refusal_of(url: str, status: int, body: bytes | bytearray) -> AecnnError:
    """The error of an HTTP answer to the handshake.

    A SessionRefusedError for 401 and 403, and for what an edge says in its JSON body (429: too many connections);
    else an EdgeUnreachableError: no edge answers so.
    """
    try:
        said = msgspec.json.decode(body[:_MAX_BODY_BYTES], type=_Body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = None
    if status in (401, 403):
        reason = _line(said.reason) if said else f"it answers HTTP {status}"
        return SessionRefusedError(RefusalCode.UNAUTHORIZED, f"{reason}; give the device its token with --token-file")
    if said is not None and said.code in frozenset(RefusalCode):
        return SessionRefusedError(said.code, _line(said.reason))
    return EdgeUnreachableError(url, f"it answers HTTP {status}, which no edge does")


def unreachable(url: str, exc: Exception, timeout_s: float, credentials: Credentials) -> EdgeUnreachableError:
    """The error of a handshake with ``url`` that ``exc`` ended: of TCP, of TLS, or of what is no WebSocket."""
    parts = urlsplit(url)
    host = parts.hostname or url
    if isinstance(exc, ssl.SSLError) and not isinstance(exc, _CUT_OFF):
        return EdgeUnreachableError(url, why_no_tls(exc, host), remedy="")
    if isinstance(exc, TimeoutError):
        return TimedOutError(url, f"no answer within {timeout_s:g} s")
    if parts.scheme == "wss" and not isinstance(exc, ConnectionRefusedError | socket.gaierror):
        alert = _alert(host, parts.port or 443, credentials.ssl_context(url))
        if alert is not None:
            return EdgeUnreachableError(url, why_no_tls(alert, host), remedy="")
    if isinstance(exc, _CUT_OFF):  # in the midst of TLS's own handshake: whoever listens there may know none
        return EdgeUnreachableError(url, f"TLS was cut off ({exc}); if the edge has no certificate, give --edge ws://…")
    if isinstance(exc, OSError):
        return EdgeUnreachableError(url, exc.strerror or str(exc))
    words = f" ({exc})" if str(exc) else ""
    hint = "; if the edge has a certificate, give --edge wss://…" if parts.scheme == "ws" else ""
    return EdgeUnreachableError(url, f"what answers there speaks no WebSocket{words}{hint}")


def _alert(host: str, port: int, context: ssl.SSLContext | None) -> ssl.SSLError | None:
    """What TLS says to a device that only listens. None: nothing, or there is no connection.

    With TLS 1.3 an edge refuses a client's certificate when the client's handshake is done; whoever writes then may
    see a lost connection in place of the reason.
    """
    if context is None:
        return None
    try:
        with (
            socket.create_connection((host, port), timeout=_LISTEN_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            secured.recv(1)
    except ssl.SSLError as exc:
        return exc
    except OSError:
        return None
    return None


def _line(text: str) -> str:
    """A stranger's words as one line of at most 500 characters that steers no terminal."""
    return "".join(mark if mark.isprintable() else " " for mark in text)[:500]
