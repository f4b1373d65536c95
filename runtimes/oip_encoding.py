"""Compressed HTTP bodies: inflated within a limit, compressed where a client asks for it and it is of use. No I/O."""

import zlib
from collections.abc import Mapping
from types import MappingProxyType

from aecnn_deploy.errors import RequestFailedError
from aecnn_deploy.runtimes.edge_service import TOO_LARGE
from aecnn_deploy.runtimes.oip_failures import BAD_ENCODING, bad_request, shown

IDENTITY = "identity"

# name -> zlib's window bits; "deflate" is HTTP's word for the zlib format (RFC 9110, 8.4.1.2)
_WINDOWS: Mapping[str, int] = MappingProxyType({"gzip": 31, "deflate": 15})

_LEAST_BYTES = 1024  # below this a packet is saved by nothing
_LEVEL = 1


def inflate(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """``body`` as it was before ``encoding``, a ``Content-Encoding``.

    Raises RequestFailedError: an encoding that is not known, damaged data, or over ``limit_bytes``, of which no more
    are ever taken.
    """
    name = encoding.strip().lower()
    if name in ("", IDENTITY):
        return body
    window = _WINDOWS.get(name)
    if window is None:
        raise RequestFailedError(
            BAD_ENCODING, f"no Content-Encoding '{shown(name)}'; there is {', '.join((*_WINDOWS, IDENTITY))}"
        )
    inflater = zlib.decompressobj(window)
    try:
        content = inflater.decompress(body, limit_bytes + 1)
    except zlib.error as exc:
        raise bad_request(f"the body is no {name} data: {shown(exc)}") from None
    if len(content) > limit_bytes:
        raise RequestFailedError(
            TOO_LARGE, f"the {name} body inflates to over {limit_bytes} bytes, the limit; send fewer rows"
        )
    if not inflater.eof:
        raise bad_request(f"the {name} body ends too early")
    if inflater.unused_data:
        raise bad_request(f"{len(inflater.unused_data)} bytes follow the {name} data")
    return content


def compress(body: bytes, accepted: str) -> tuple[bytes, str]:
    """``body`` in an encoding of ``accepted``, an ``Accept-Encoding``, and its name; as it is ("") if that saves
    nothing."""
    if len(body) < _LEAST_BYTES:
        return body, ""
    for name, window in _WINDOWS.items():
        if not _accepts(accepted, name):
            continue
        deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, window)
        smaller = deflater.compress(body) + deflater.flush()
        return (smaller, name) if len(smaller) < len(body) else (body, "")
    return body, ""


def _accepts(accepted: str, name: str) -> bool:
    """Whether ``accepted`` names ``name``, and not only to refuse it."""
    for part in accepted.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() == name:
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
