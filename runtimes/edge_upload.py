"""The bodies of HTTP requests, read within an edge's limits of number, time and size."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aecnn_deploy.errors import RequestFailedError
from aecnn_deploy.runtimes.edge_service import TOO_LARGE, TOO_SLOW, EdgeService
from aecnn_deploy.wire import FailureCode

if TYPE_CHECKING:
    from starlette.requests import Request


@contextmanager
def upload_place(service: EdgeService) -> Iterator[None]:
    """One of the places for bodies that are in memory. Raises RequestFailedError: all are taken."""
    if service.uploads >= service.settings.max_uploads:
        raise RequestFailedError(FailureCode.OVERLOADED, f"{service.uploads} bodies are being uploaded, the limit", 1.0)
    service.uploads += 1
    try:
        yield
    finally:
        service.uploads -= 1


async def upload(service: EdgeService, request: "Request", limit_bytes: int, remedy: str) -> bytes:
    """The body of ``request``. Raises RequestFailedError: it is too slow, or over ``limit_bytes``."""
    limit_s = service.settings.upload_timeout_s
    try:
        async with asyncio.timeout(limit_s):
            return await _read(request, limit_bytes, remedy)
    except TimeoutError:
        raise RequestFailedError(TOO_SLOW, f"the body took over {limit_s:g} s to come") from None


async def _read(request: "Request", limit_bytes: int, remedy: str) -> bytes:
    """Told by the header where it has the size, else as soon as so much was read."""
    declared = request.headers.get("content-length", "0")
    pieces, size = [], 0
    if not declared.isdecimal() or int(declared) <= limit_bytes:
        async for piece in request.stream():
            size += len(piece)
            if size > limit_bytes:
                break
            pieces.append(piece)
    else:
        size = int(declared)
    if size > limit_bytes:
        raise RequestFailedError(TOO_LARGE, f"the body is over the limit of {limit_bytes} bytes; {remedy}")
    return b"".join(pieces)
