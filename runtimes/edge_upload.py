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


async def upload(
    service: EdgeService, request: "Request", limit_bytes: int, remedy: str, discard_bytes: int = 0
) -> bytes:
    """The body of ``request``. Raises RequestFailedError: it is too slow, or over ``limit_bytes``.

    Of one that is too large ``discard_bytes`` are read all the same and thrown away: most clients send the whole body
    before they listen, and would hear of a broken connection only.
    """
    limit_s = service.settings.upload_timeout_s
    try:
        async with asyncio.timeout(limit_s):
            content = await _read(request, limit_bytes, limit_bytes + discard_bytes)
    except TimeoutError:
        raise RequestFailedError(TOO_SLOW, f"the body took over {limit_s:g} s to come") from None
    if content is None:
        raise RequestFailedError(TOO_LARGE, f"the body is over the limit of {limit_bytes} bytes; {remedy}")
    return content


async def _read(request: "Request", limit_bytes: int, patience_bytes: int) -> bytes | None:
    """The body; None: it is over ``limit_bytes``, told by its header or as soon as ``patience_bytes`` were read."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > patience_bytes:
        return None
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size <= limit_bytes:
            pieces.append(piece)
        else:
            pieces.clear()
        if size > patience_bytes:
            break
    return b"".join(pieces) if size <= limit_bytes else None
