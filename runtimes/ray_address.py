"""Connecting to a Ray cluster by its address, so that one that is not there is told at once and in one line."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import aecnn_deploy
from aecnn_deploy.errors import AecnnError, SettingsError

LOCAL = "local"  # a cluster of one node on this machine, which ends with the process
AUTO = "auto"  # $RAY_ADDRESS, else the cluster that this machine is a node of

_CONNECT_S = 10.0
_STORE_BYTES = 80 * 2**20  # Ray's smallest is 75 MiB


def check_form(address: str) -> None:
    """Raises SettingsError: ``address`` is none of auto, local and host:port."""
    if address in (AUTO, LOCAL):
        return
    host, _, port = address.rpartition(":")
    if not (host and "/" not in host and port.isdecimal() and 0 < int(port) < 2**16):
        raise SettingsError(f"Ray address {address!r} is none of auto, local and host:port")


def connect(
    ray: Any, address: str, failed: type[AecnnError], *, store_bytes: int = _STORE_BYTES, **options: object
) -> None:
    """``ray.init`` for the cluster at ``address``; ``options`` are more of it.

    ``store_bytes``: of a local cluster's object store. Raises SettingsError: the address is of no known form;
    ``failed``: no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what runs here reports to nobody
    options = {"address": address, "log_to_driver": False, "logging_level": "ERROR"} | options
    if address == LOCAL:
        options |= {"include_dashboard": False, "object_store_memory": store_bytes}
    else:
        known = _last_known() if address == AUTO else address
        if known != AUTO:
            _check_answers(known, failed)
    try:
        ray.init(**options)
    except (OSError, RuntimeError, ValueError) as exc:
        raise failed(
            f"cannot use the Ray cluster {address!r}: {' '.join(str(exc).split())}; "
            "start one with: ray start --head, or give 'local'"
        ) from exc


def node_name(node: dict[str, Any]) -> str:
    """What an operator finds a node of ``ray.nodes()`` by."""
    return f"Ray node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def check_release(node: dict[str, Any], release: str, failed: type[AecnnError]) -> None:
    """Raises ``failed``: the node has another release of this package than this process."""
    if release != aecnn_deploy.__version__:
        raise failed(
            f"{node_name(node)} has aecnn-deploy {release}, here is {aecnn_deploy.__version__}; "
            "install the same on both"
        )


def _last_known() -> str:
    """What ``auto`` means: $RAY_ADDRESS, else the cluster that Ray noted here last, which may be long gone."""
    if given := os.environ.get("RAY_ADDRESS"):
        return given
    with suppress(OSError):
        noted = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster").read_text().strip()
        if noted:
            return noted
    return AUTO


def _check_answers(address: str, failed: type[AecnnError]) -> None:
    """Something listens at host:port, which Ray itself would try for minutes before it ends the process."""
    check_form(address)
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as exc:
        raise failed(
            f"no Ray cluster answers at {address}: {exc}; start one there with: ray start --head --port {port}"
        ) from exc
