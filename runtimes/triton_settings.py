"""How an edge uses a Triton server: where it is, and every number that an operator can set."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from aecnn_deploy.errors import SettingsError

PLAIN, TLS = "triton", "tritons"  # the schemes of --upstream
GRPC_PORT = 8001  # Triton's own default

BUNDLE_PLACE = "{bundle}"  # in a prefix: the bundle id's first 12 digits

_FORM = f"{PLAIN}://HOST:PORT, or {TLS}://HOST:PORT for TLS; the port is that of gRPC, {GRPC_PORT} if not given"
_NAME = re.compile(r"[A-Za-z0-9._-]*")
_MAX_PREFIX = 100


@dataclass(frozen=True, slots=True)
class TritonAddress:
    """Where a Triton server listens for gRPC."""

    host: str
    port: int
    tls: bool

    @property
    def target(self) -> str:
        """As gRPC takes it, and without a resolver of its own choosing."""
        return f"dns:///[{self.host}]:{self.port}" if ":" in self.host else f"dns:///{self.host}:{self.port}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{TLS if self.tls else PLAIN}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """How an edge uses a Triton server. Raises SettingsError: a value is out of its range, or two contradict.

    A model's name there is ``prefix`` and the variant's id, or ``full``; ``{bundle}`` in the prefix stands for the
    first 12 digits of the bundle's id, so that two bundles can be there side by side while the edge is reloaded.
    """

    url: str
    ca: Path | None = None  # PEM file of CAs to trust; None: the system's
    prefix: str = ""
    parallel: int = 4  # batches of one model that are there at once
    call_s: float = 10.0  # for one call
    retry_s: float = 10.0  # how long a batch is tried again while the server is away; 0: never
    wait_s: float = 30.0  # for server and models to be there when the edge starts
    address: TritonAddress = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", parse_address(self.url))
        if self.ca is not None and not self.address.tls:
            raise SettingsError(f"--upstream-ca goes with {TLS}://…, got {self.url!r}")
        if not _NAME.fullmatch(self.prefix.replace(BUNDLE_PLACE, "")) or len(self.prefix) > _MAX_PREFIX:
            raise SettingsError(
                f"--upstream-prefix is {self.prefix!r}, expected at most {_MAX_PREFIX} letters, digits, '.', '_' and "
                f"'-', and {BUNDLE_PLACE} for the bundle's id"
            )
        if not 1 <= self.parallel <= 64:
            raise SettingsError(f"--upstream-parallel is {self.parallel}, expected 1 to 64 batches")
        if not 0 < self.call_s <= 600:
            raise SettingsError(f"--upstream-timeout-s is {self.call_s}, expected over 0 and up to 600 seconds")
        for option, seconds in (("--upstream-retry-s", self.retry_s), ("--upstream-wait-s", self.wait_s)):
            if not 0 <= seconds <= 600:
                raise SettingsError(f"{option} is {seconds}, expected 0 to 600 seconds")

    def model_name(self, name: str, bundle_id: str) -> str:
        """What ``name`` (a variant's id, or ``full``) of that bundle is called on the server."""
        return self.prefix.replace(BUNDLE_PLACE, bundle_id[:12]) + name


def parse_address(url: str) -> TritonAddress:
    """The address in ``url``. Raises SettingsError: it is not of the form ``triton://HOST:PORT``."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as exc:  # a port that is none, a bracket too many
        raise SettingsError(f"--upstream is {url!r}: {exc}; give {_FORM}") from None
    if parts.scheme not in (PLAIN, TLS):
        hint = " (Triton's HTTP port is not used)" if parts.scheme in ("http", "https") else ""
        raise SettingsError(f"--upstream is {url!r}{hint}; give {_FORM}")
    if not host or port == 0:
        raise SettingsError(f"--upstream is {url!r}, which names no {'host' if not host else 'port'}; give {_FORM}")
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise SettingsError(f"--upstream is {url!r}, with more than a host and a port; give {_FORM}")
    if not re.fullmatch(r"[A-Za-z0-9._:%-]+", host):
        raise SettingsError(f"--upstream is {url!r}, whose host is none; give {_FORM}")
    return TritonAddress(host, port if port is not None else GRPC_PORT, parts.scheme == TLS)
