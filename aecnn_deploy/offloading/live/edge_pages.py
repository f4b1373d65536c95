"""What edges say of themselves: their ``GET /v1/status``, asked now and then. docs/observability.md."""

import asyncio
import http.client
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

import msgspec

from aecnn_deploy.errors import AecnnError
from aecnn_deploy.offloading.live.generations import Advisers
from aecnn_deploy.offloading.live.roster import EdgeSeen
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.device_link import websocket_url
from aecnn_deploy.runtimes.edge_names import NamedEdge

STATUS_PATH = "/v1/status"
_TIMEOUT_S = 2.0
_MAX_BYTES = 1 << 20
_EVERY_S = 1.0


class _Variant(msgspec.Struct):
    queued: int


class _Status(msgspec.Struct):
    state: str
    variants: list[_Variant]


def status_of(url: str, credentials: Credentials) -> int | None:
    """How many requests wait at the edge of ``url`` (a wss:// or ws:// URL of its status); None: it does not say."""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    try:
        if parts.scheme == "wss":
            context = credentials.ssl_context(url)
            connection = http.client.HTTPSConnection(parts.netloc, timeout=_TIMEOUT_S, context=context)
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT_S)
        with closing(connection):
            connection.request("GET", parts.path, headers=credentials.headers())
            answer = connection.getresponse()
            body = answer.read(_MAX_BYTES)
        if answer.status != 200:
            return None
        said = msgspec.json.decode(body, type=_Status)
    except (OSError, http.client.HTTPException, msgspec.DecodeError, UnicodeError, ValueError, AecnnError):
        return None
    return sum(max(0, variant.queued) for variant in said.variants) if said.state == "ready" else None


class EdgePages:
    """Asks every edge once a second. Raises SettingsError, CredentialsError: an address or a file cannot be used."""

    def __init__(self, edges: Sequence[NamedEdge], credentials: Credentials) -> None:
        self._urls = [websocket_url(edge.url, STATUS_PATH, "--edge") for edge in edges]
        self._credentials = credentials
        for url in self._urls:
            if urlsplit(url).scheme == "wss":
                credentials.check(url)
        credentials.headers()

    async def watch(self, advisers: Advisers) -> None:
        """Until it is cancelled."""
        pool = ThreadPoolExecutor(len(self._urls), "controller-status")  # one that is away holds up no other
        try:
            await asyncio.gather(*(self._watch(advisers, pool, index, url) for index, url in enumerate(self._urls)))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _watch(self, advisers: Advisers, pool: ThreadPoolExecutor, index: int, url: str) -> None:
        loop = asyncio.get_running_loop()
        while True:
            asked_s = advisers.present.clock()
            queued = await loop.run_in_executor(pool, status_of, url, self._credentials)
            advisers.seen[index] = EdgeSeen(queued is not None, queued or 0, asked_s)
            await asyncio.sleep(_EVERY_S)
