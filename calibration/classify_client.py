"""Whole images to an edge: POST /v1/classify over one connection that is kept, as full offloading does."""

import http.client
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Self
from urllib.parse import urlsplit

import msgspec

from aecnn_deploy.errors import EdgeUnreachableError, RequestFailedError
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.device_link import STREAM_PATH, stream_url
from aecnn_deploy.runtimes.handshake import refusal_of, unreachable

CLASSIFY_PATH = "/v1/classify"

_MOST_BYTES = 1 << 20  # of an answer
_Milliseconds = Annotated[float, msgspec.Meta(ge=0)]


class _Answer(msgspec.Struct):
    decode_ms: _Milliseconds
    full_ms: _Milliseconds


class _Error(msgspec.Struct):
    code: str
    reason: str
    retry_after_s: float | None = None


class _Failure(msgspec.Struct):
    error: _Error


@dataclass(frozen=True, slots=True)
class Classified:
    """One image's answer: what it took from here, and of it the edge's decoding and unsplit model, as it says."""

    took_ms: float
    decode_ms: float
    full_ms: float


class ClassifyClient:
    """A context manager, for one thread; entering it connects.

    Raises SettingsError: no address, or credentials that do not go with it; CredentialsError. When entered, and by
    ``classify``, EdgeUnreachableError.
    """

    def __init__(self, edge: str, credentials: Credentials, *, timeout_s: float) -> None:
        self._url, self._credentials, self._timeout_s = stream_url(edge), credentials, timeout_s
        parts = urlsplit(self._url)
        self._path = parts.path.removesuffix(STREAM_PATH) + CLASSIFY_PATH
        context = credentials.ssl_context(self._url)
        self._headers = {"content-type": "application/octet-stream", **credentials.headers()}
        host = parts.hostname or ""
        self._connection = (
            http.client.HTTPConnection(host, parts.port or 80, timeout=timeout_s)
            if context is None
            else http.client.HTTPSConnection(host, parts.port or 443, timeout=timeout_s, context=context)
        )

    def __enter__(self) -> Self:
        try:
            self._connection.connect()
        except OSError as exc:
            raise unreachable(self._url, exc, self._timeout_s, self._credentials) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def classify(self, content: bytes) -> Classified:
        """Send an image file and wait for its answer.

        Raises EdgeUnreachableError: no answer. SessionRefusedError: credentials. RequestFailedError: the edge says no.
        """
        began_s = time.perf_counter()
        try:
            self._connection.request("POST", self._path, content, self._headers)
            response = self._connection.getresponse()
            body = response.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException) as exc:
            raise unreachable(self._url, exc, self._timeout_s, self._credentials) from None
        took_ms = (time.perf_counter() - began_s) * 1e3
        if response.status == http.HTTPStatus.OK:
            try:
                answer = msgspec.json.decode(body, type=_Answer)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise EdgeUnreachableError(self._url, f"what it answers to {CLASSIFY_PATH} is no edge's") from None
            return Classified(took_ms, answer.decode_ms, answer.full_ms)
        try:
            error = msgspec.json.decode(body, type=_Failure).error
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise refusal_of(self._url, response.status, body) from None
        if response.status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
            raise refusal_of(self._url, response.status, body)
        raise RequestFailedError(error.code, error.reason, error.retry_after_s)
