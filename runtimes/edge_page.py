"""The status page and its numbers: ``GET /`` and ``GET /v1/status``."""

import base64
import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING

from aecnn_deploy.runtimes.edge_observer import EdgeObserver

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

PAGE_PATH, STATUS_PATH = "/", "/v1/status"


def page_and_policy() -> tuple[str, str]:
    """The page, and the Content-Security-Policy that lets in its own style and script, by their hashes, and no other.

    Nothing comes from anywhere but this edge, so the page works where there is no internet.
    """
    page = resources.files("aecnn_deploy.runtimes").joinpath("status_page.html").read_text("utf-8")
    hashes = {
        tag: " ".join(_source(text) for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL))
        for tag in ("style", "script")
    }
    policy = (
        f"default-src 'none'; style-src {hashes['style']}; script-src {hashes['script']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def status_routes(observer: EdgeObserver) -> "list[Route]":
    """The page's routes over ``observer``."""
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route

    page, policy = page_and_policy()
    guards = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}

    async def show(_: "Request") -> "Response":
        return HTMLResponse(page, headers={**guards, "content-security-policy": policy, "cache-control": "no-cache"})

    async def status(_: "Request") -> "Response":
        return Response(
            observer.status.encoded(),
            media_type="application/json",
            headers={**guards, "cache-control": "no-store"},
        )

    return [Route(PAGE_PATH, show), Route(STATUS_PATH, status)]


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
