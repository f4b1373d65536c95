"""How a diagnosis reaches the edge: addresses, TLS and sessions. Whatever proves who we are is passed in here alone."""

import email.utils
import http.client
import json
import ssl
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aecnn_deploy import __version__
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import coder_names, delta_names
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.device_link import STREAM_PATH, EdgeLink, stream_url
from aecnn_deploy.wire import WIRE_VERSION, Hello, WireLimits

_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """An edge's answer to one GET."""

    status: int
    body: dict[str, Any]  # empty where it is no JSON object
    ahead_s: float | None  # this machine's clock against the edge's; None: it gave no date


class EdgeAccess:
    """One edge by its address; every wait is at most ``timeout_s`` seconds. Raises SettingsError: no address.

    What needs ``credentials`` raises CredentialsError: a file cannot be used.
    """

    def __init__(self, edge: str, timeout_s: float, credentials: Credentials) -> None:
        self.edge, self.timeout_s, self.credentials = edge, timeout_s, credentials
        self.url = stream_url(edge)
        parts = urlsplit(self.url)
        self.secure = parts.scheme == "wss"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.secure else 80)
        self._path = parts.path.removesuffix(STREAM_PATH)

    def tls(self) -> ssl.SSLContext:
        """What a device trusts."""
        context = self.credentials.ssl_context(self.url)
        return ssl.create_default_context() if context is None else context

    def headers(self) -> dict[str, str]:
        """What a device sends with every request."""
        return {"user-agent": f"aecnn-deploy/{__version__} doctor", **self.credentials.headers()}

    def link(self, bundle: Bundle) -> EdgeLink:
        """A device's link for ``bundle``, not open yet. Raises MissingExtraError."""
        hello = Hello(
            bundle_id=bundle.id,
            wire_versions=[WIRE_VERSION],
            variants=[spec.id for spec in bundle.manifest.variants],
            coders=[*coder_names(), *delta_names()],
            software=f"aecnn-deploy {__version__} doctor",
        )
        return EdgeLink(self.edge, hello, timeout_s=self.timeout_s, limits=WireLimits(), credentials=self.credentials)

    def get(self, path: str) -> Answer:
        """Raises OSError (TLS and time-outs included), http.client.HTTPException: what answers speaks no HTTP."""
        if self.secure:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self.host, self.port, timeout=self.timeout_s, context=self.tls()
            )
        else:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        try:
            connection.request("GET", self._path + path, headers=self.headers())
            asked_s = time.time()
            response = connection.getresponse()
            heard_s = time.time()
            return Answer(response.status, _object(response.read(_MOST_BYTES)), _ahead_s(response, asked_s, heard_s))
        finally:
            connection.close()


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _ahead_s(response: http.client.HTTPResponse, asked_s: float, heard_s: float) -> float | None:
    """The middle of the request's time here, less the date that the edge gave it (which is cut to whole seconds)."""
    try:
        there = email.utils.parsedate_to_datetime(response.headers["date"]).timestamp() + 0.5
    except (TypeError, ValueError, OverflowError):
        return None
    return (asked_s + heard_s) / 2 - there
