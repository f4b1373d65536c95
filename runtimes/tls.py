"""TLS for both halves: contexts from PEM files, and what went wrong in one line. Raises CredentialsError."""

import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aecnn_deploy.errors import CredentialsError
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.tokens import FileStamp, file_stamp

logger = logging.getLogger("aecnn_deploy.edge")

WARN_BEFORE = timedelta(days=14)

_MAX_PEM_BYTES = 1 << 20
_POLL_S = 1.0
_DAY_S = 86400.0


# X509_V_ERR_… of OpenSSL's x509_vfy.h
_UNKNOWN_CA = "its certificate is signed by no CA that this device trusts; give its CA's certificate with --ca FILE"
_VERIFY = {
    9: "its certificate is not valid yet; set this device's clock, or wait",
    10: "its certificate has expired; renew it on the edge (if it has not: set this device's clock)",
    18: _UNKNOWN_CA,
    19: _UNKNOWN_CA,
    20: _UNKNOWN_CA,
    21: _UNKNOWN_CA,
}

_NO_TLS = "what answers there speaks no TLS; give --edge ws://…, or start the edge with --tls-cert and --tls-key"
_ALERTS = {  # by a part of OpenSSL's name of the error
    "ALERT_CERTIFICATE_REQUIRED": "it wants a certificate of this device; give --cert and --key",
    "ALERT_HANDSHAKE_FAILURE": "it wants a certificate of this device (--cert, --key), or has no cipher in common",
    "ALERT_UNKNOWN_CA": "it does not know the CA of this device's --cert; take one that its --client-ca signed",
    "ALERT_CERTIFICATE_EXPIRED": "this device's --cert has expired; renew it",
    "ALERT_BAD_CERTIFICATE": "it refuses this device's --cert; take one that its --client-ca signed",
    "ALERT_CERTIFICATE_UNKNOWN": "it refuses this device's --cert; take one that its --client-ca signed",
    "ALERT_UNSUPPORTED_CERTIFICATE": "it refuses this device's --cert, which is not one for clients (extendedKeyUsage)",
    "ALERT_PROTOCOL_VERSION": "it speaks no TLS version that this device does; TLS 1.2 is the oldest here",
    "UNSUPPORTED_PROTOCOL": "it speaks no TLS version that this device does; TLS 1.2 is the oldest here",
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "RECORD_LAYER_FAILURE": _NO_TLS,
    "PACKET_LENGTH_TOO_LONG": _NO_TLS,
    "HTTP_REQUEST": _NO_TLS,
    "UNEXPECTED_EOF_WHILE_READING": "it ended the TLS handshake without a word; if it has no certificate, give --edge ws://…",
}


@dataclass(frozen=True, slots=True)
class Validity:
    """From when until when a certificate holds, in UTC."""

    begins: datetime
    ends: datetime


def edge_context(cert: Path, key: Path, client_ca: Path | None) -> tuple[ssl.SSLContext, Validity]:
    """A server's context of TLS 1.2 at least, and its certificate's validity.

    ``cert``: the edge's certificate, then those between it and its CA. ``client_ca``: those whose certificates a
    client must have one of; None: none is asked for. Raises CredentialsError: a file cannot be read or holds something
    else, the key is another certificate's, or today is not a day on which the certificate holds. MissingExtraError.
    """
    validity = _check_pair(cert, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load_chain(context, cert, key)
    if client_ca is not None:
        _load_ca(context, client_ca, "--client-ca")
        context.verify_mode = ssl.CERT_REQUIRED
    return context, validity


def device_context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """A client's context of TLS 1.2 at least, which checks the edge's chain and name; without ``ca``: the system's CAs.

    Raises CredentialsError: a file cannot be read or holds something else, or the key is another certificate's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_ca(context, ca, "--ca")
    if cert is not None and key is not None:
        _read(cert, "certificate", b"-----BEGIN CERTIFICATE-----")
        if b"ENCRYPTED" in _read(key, "key", b"PRIVATE KEY-----"):
            raise _encrypted(key)
        _load_chain(context, cert, key)
    return context


class EdgeTls:
    """The context for new connections, which follows its files: a renewed certificate needs no restart.

    A change to something bad keeps the context as it was and is logged once. Raises what ``edge_context`` does.
    """

    def __init__(
        self, cert: Path, key: Path, client_ca: Path | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._files = (cert, key, client_ca)
        self._clock = clock
        self._looked_s = clock()
        self._stamps = self._look()
        self._context, self._validity = edge_context(cert, key, client_ca)
        self._warned_s = clock()
        self._warn()

    def context(self) -> ssl.SSLContext:
        """Of the files as they were a second ago at most."""
        now_s = self._clock()
        if now_s - self._looked_s >= _POLL_S:
            self._looked_s = now_s
            self._refresh()
        if now_s - self._warned_s >= _DAY_S:
            self._warned_s = now_s
            self._warn()
        return self._context

    def _refresh(self) -> None:
        stamps = self._look()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self._context, self._validity = edge_context(*self._files)
        except CredentialsError as exc:
            logger.error("%s; the certificate that was loaded before stays in use", exc)
            return
        logger.info("read %s again: it holds until %s", self._files[0], _day(self._validity.ends))
        self._warn()

    def _look(self) -> tuple[FileStamp | None, ...]:
        return tuple(file_stamp(path) if path is not None else None for path in self._files)

    def _warn(self) -> None:
        left = self._validity.ends - datetime.now(UTC)
        if left < timedelta(0):
            logger.error("the certificate %s ended on %s; renew it", self._files[0], _day(self._validity.ends))
        elif left < WARN_BEFORE:
            logger.warning(
                "the certificate %s ends on %s, in %d days; renew it",
                self._files[0],
                _day(self._validity.ends),
                left.days,
            )


def why_no_tls(exc: ssl.SSLError, host: str) -> str:
    """What a device says of a TLS connection to ``host`` that failed: the cause, and a remedy."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        code = exc.verify_code
        if code in _VERIFY:
            return _VERIFY[code]
        if "mismatch" in exc.verify_message.lower():
            return (
                f"its certificate is not for {host}; name the edge as its certificate does, or make one for {host} "
                "(subjectAltName)"
            )
        return f"its certificate is refused: {exc.verify_message}"
    reason = "UNEXPECTED_EOF_WHILE_READING" if isinstance(exc, ssl.SSLZeroReturnError) else exc.reason or ""
    for part, why in _ALERTS.items():
        if part in reason:
            return why
    return f"TLS failed ({reason.replace('_', ' ').lower() or exc.strerror or exc})"


def common_name(certificate: Any) -> str | None:
    """The subject's common name of what ``SSLObject.getpeercert`` gave, printable and at most 64 characters."""
    for part in (certificate or {}).get("subject", ()):
        for name, value in part:
            if name == "commonName":
                return "".join(mark if mark.isprintable() else "?" for mark in value)[:64] or None
    return None


def _check_pair(cert: Path, key: Path) -> Validity:
    x509 = require("cryptography.x509", why="serving with TLS", extra="edge")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    content = _read(cert, "certificate", b"-----BEGIN CERTIFICATE-----")
    secret = _read(key, "key", b"PRIVATE KEY-----")
    try:
        leaf = x509.load_pem_x509_certificates(content)[0]
        public = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise CredentialsError(f"{cert} holds a damaged certificate ({exc}); copy it again") from None
    try:
        own = load_pem_private_key(secret, password=None)
    except TypeError:
        raise _encrypted(key) from None
    except (ValueError, UnsupportedAlgorithm):
        raise CredentialsError(f"{key} holds a damaged key, or one of an unknown kind; copy it again") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if own.public_key().public_bytes(*form) != public.public_bytes(*form):
        raise _another_key(cert, key)
    validity = Validity(leaf.not_valid_before_utc, leaf.not_valid_after_utc)
    now = datetime.now(UTC)
    if now > validity.ends:
        raise CredentialsError(f"the certificate {cert} ended on {_day(validity.ends)}; renew it")
    if now < validity.begins:
        raise CredentialsError(
            f"the certificate {cert} begins on {_day(validity.begins)}, now is {_day(now)}; "
            "set this machine's clock, or make another certificate"
        )
    return validity


def _load_chain(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    try:
        context.load_cert_chain(cert, key, password=lambda: "")  # never ask on a terminal
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise _another_key(cert, key) from None
        why = (exc.reason or str(exc)).replace("_", " ").lower()
        raise CredentialsError(f"the certificate {cert} with the key {key} cannot be used: {why}") from None
    except OSError as exc:
        raise CredentialsError(f"cannot read {cert} or {key}: {exc.strerror}") from None


def _load_ca(context: ssl.SSLContext, ca: Path, option: str) -> None:
    content = _read(ca, f"CA's certificate ({option})", b"-----BEGIN CERTIFICATE-----")
    try:
        context.load_verify_locations(cadata=content.decode("ascii", "ignore"))
    except ssl.SSLError as exc:
        why = (exc.reason or str(exc)).replace("_", " ").lower()
        raise CredentialsError(f"{option} {ca} holds a damaged certificate ({why}); copy it again") from None


def _read(path: Path, what: str, marker: bytes) -> bytes:
    """The content of a PEM file. Raises CredentialsError: it cannot be read, or has no ``marker``."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_PEM_BYTES)
    except OSError as exc:
        raise CredentialsError(f"cannot read the {what} {path}: {exc.strerror}") from None
    if marker not in content:
        raise CredentialsError(f"{path} holds no {what} in PEM form ({marker.decode().strip('-')}…)")
    return content


def _another_key(cert: Path, key: Path) -> CredentialsError:
    return CredentialsError(
        f"the key {key} is not that of the certificate {cert}; give the two that were made together"
    )


def _encrypted(key: Path) -> CredentialsError:
    return CredentialsError(
        f"the key {key} is encrypted; write it out without a passphrase: openssl pkey -in KEY -out NEW"
    )


def _day(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M UTC")
