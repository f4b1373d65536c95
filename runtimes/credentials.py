"""What a device shows to its edge, and by what it knows it: certificates and a token."""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.tls import device_context
from aecnn_deploy.runtimes.tokens import check_token, read_own_token

TOKEN_VARIABLE = "AECNN_TOKEN"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Files of one device; each is read again for every connection, so that a renewed one is taken up.

    Raises SettingsError: a certificate without its key, or the reverse.
    """

    ca: Path | None = None  # PEM; by which the edge's certificate is checked. None: the system's CAs
    cert: Path | None = None  # PEM; this device's own certificate, for an edge that wants one
    key: Path | None = None  # PEM, not encrypted
    token_file: Path | None = None  # its first token is sent. None: the environment's AECNN_TOKEN, if it is set

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            given, lacks = ("--cert", "--key") if self.key is None else ("--key", "--cert")
            raise SettingsError(f"{given} goes with {lacks}, which is not given; a certificate needs its private key")

    def check(self, url: str) -> None:
        """Raises CredentialsError: a file cannot be used. SettingsError: the options do not go with ``url``."""
        self.ssl_context(url)
        self.headers()

    def ssl_context(self, url: str) -> ssl.SSLContext | None:
        """For a wss:// address; None for ws://. Raises CredentialsError, SettingsError."""
        if urlsplit(url).scheme == "wss":
            return device_context(self.ca, self.cert, self.key)
        for option, value in (("--ca", self.ca), ("--cert", self.cert)):
            if value is not None:
                raise SettingsError(f"{option} is for TLS, and {url} has none; give --edge wss://…")
        return None

    def headers(self) -> dict[str, str]:
        """HTTP headers that say who the device is. Raises CredentialsError: the token cannot be used."""
        if self.token_file is not None:
            return {"Authorization": f"Bearer {read_own_token(self.token_file)}"}
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            return {}
        check_token(token, TOKEN_VARIABLE)
        return {"Authorization": f"Bearer {token}"}
