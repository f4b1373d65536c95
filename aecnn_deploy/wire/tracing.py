"""The ids of one request's trace, which both halves derive from the HELLO's key ``trace``: docs/wire-format.md, 4.

An INFER has no room for a trace context. So the device says one random number in each session's HELLO, and the ids of
request n follow from it and n.
"""

import hashlib
import secrets
from dataclasses import dataclass

TRACE_DIGITS = 32


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """The trace of one request, and the device's span in it, as OpenTelemetry's integers; never 0."""

    trace_id: int  # 128 bits
    span_id: int  # 64 bits


def new_trace() -> str:
    """A session's random ``trace``: 32 hexadecimal digits, not all of them 0."""
    return f"{secrets.randbits(128) or 1:032x}"


def request_trace(trace: str, request_id: int) -> RequestTrace:
    """The ids of request ``request_id`` (1 to 2⁶⁴ − 1) in the session whose HELLO says ``trace``.

    SHA-256 of the 16 bytes of ``trace`` and the 8 of the id, big-endian: its first 16 bytes are the trace id, the
    next 8 the device's span id; 0 becomes 1.
    """
    digest = hashlib.sha256(bytes.fromhex(trace) + request_id.to_bytes(8, "big")).digest()
    return RequestTrace(int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:24], "big") or 1)
