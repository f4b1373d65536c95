"""What device and controller call an edge: the name that is given with its address, or the address's host and port."""

import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.device_settings import MAX_EDGES

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})=(.+)", re.ASCII | re.DOTALL)
_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}


class NamedEdge(NamedTuple):
    """``name``: the same on a device and on its controller."""

    name: str
    url: str


def named_edge(text: str) -> NamedEdge:
    """``NAME=URL``, or a URL whose host and port are the name. Raises SettingsError: it is neither."""
    named = _NAMED.fullmatch(text)
    url = named[2] if named else text
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise SettingsError(f"--edge {text!r} is no address: {exc}") from None
    if parts.scheme not in _PORTS or not host:
        raise SettingsError(f"--edge {text!r} is no address of an edge; give ws://HOST:PORT or NAME=ws://HOST:PORT")
    return NamedEdge(named[1] if named else f"{host}:{port or _PORTS[parts.scheme]}", url)


def named_edges(texts: Sequence[str]) -> tuple[NamedEdge, ...]:
    """Several edges, in their order. Raises SettingsError: two have one name, or there are too many."""
    edges = tuple(named_edge(text) for text in texts)
    names = [edge.name for edge in edges]
    if len(set(names)) != len(names):
        raise SettingsError(f"two edges have one name: {', '.join(names)}; give each its own: --edge NAME=ws://…")
    if len(edges) > MAX_EDGES:
        raise SettingsError(f"{len(edges)} edges were given, expected at most {MAX_EDGES}")
    return edges
