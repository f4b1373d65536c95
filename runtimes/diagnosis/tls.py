"""The edge's certificate: whether this machine trusts it, and for how long."""

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from aecnn_deploy.runtimes.diagnosis.clock import SYNCHRONISE
from aecnn_deploy.runtimes.diagnosis.edge_access import EdgeAccess
from aecnn_deploy.runtimes.diagnosis.finding import Finding, ok, problem, warning

_SOON_DAYS = 14
_DAY_S = 86_400
_TRUST = "make this machine trust the authority that signed it, or give the edge a certificate with its whole chain"

# OpenSSL's X509_V_ERR_ numbers
_REMEDIES: Mapping[int, str] = MappingProxyType(
    {
        9: f"the certificate begins in the future: set the clock here ({SYNCHRONISE}), or wait",
        10: f"renew the edge's certificate and restart the edge; if it is new, the clock here is wrong: {SYNCHRONISE}",
        18: "a self-signed certificate: " + _TRUST,
        19: _TRUST,
        20: _TRUST,
        21: _TRUST,
        62: "use the host name that the certificate was issued for, or issue one for this name",
        64: "use the address that the certificate was issued for, or issue one for this address",
    }
)


def check_certificate(edge: EdgeAccess) -> Iterator[Finding]:
    """Whether a TLS connection can be made, and until when; nothing for an address without TLS."""
    if not edge.secure:
        return
    try:
        with (
            socket.create_connection((edge.host, edge.port), timeout=edge.timeout_s) as raw,
            edge.tls().wrap_socket(raw, server_hostname=edge.host) as connection,
        ):
            certificate = connection.getpeercert() or {}
            version = connection.version() or "TLS"
    except ssl.SSLCertVerificationError as exc:
        remedy = _REMEDIES.get(exc.verify_code, _TRUST)
        yield problem("tls", f"the certificate of {edge.host} is refused: {exc.verify_message}", remedy)
        return
    except ssl.SSLError as exc:
        why = (exc.reason or str(exc)).replace("_", " ").lower()
        yield problem(
            "tls", f"{edge.host}:{edge.port}: {why}", "if the edge serves without TLS, give its ws:// address"
        )
        return
    except OSError as exc:
        yield problem(
            "tls",
            f"{edge.host}:{edge.port}: no TLS connection: {exc.strerror or exc}",
            "if the edge serves without TLS, give its ws:// address; else look at its log",
        )
        return
    yield judge_end(str(certificate.get("notAfter", "")), time.time(), f"{version}, certificate of {edge.host}")


def judge_end(not_after: str, now_s: float, what: str) -> Finding:
    """The finding for a trusted certificate that ends at ``not_after``, in OpenSSL's words."""
    try:
        days = (ssl.cert_time_to_seconds(not_after) - now_s) / _DAY_S
    except ValueError:
        return ok("tls", f"{what}: trusted")
    if days < _SOON_DAYS:
        return warning("tls", f"{what}: trusted, but it ends in {days:.0f} days", "renew the edge's certificate")
    return ok("tls", f"{what}: trusted, {days:.0f} days left")
