"""What a connection costs a real edge on loopback: CPU time to make one, memory and sockets to keep one."""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.tls import device_context
from benchmarks.processes import cpu_s, working
from benchmarks.stream_client import StreamClient
from benchmarks.traffic import Traffic
from tests.bundles import Edge, serving
from tests.certificates import Authority

_WARM = 32  # connections before the first that counts: what they allocate stays for those that come
_SPARE_FILES = 64  # of the client's process, beside its sockets
_SETTLE_S = 0.3

# A real edge with limits of its own: the command's would end the measurement at 64 connections of one address and at
# 256 streams.
_ROOMY = """
import sys
from pathlib import Path

import msgspec

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.runtimes.edge_gate import GuardSettings
from aecnn_deploy.runtimes.edge_runners import RunnerOptions
from aecnn_deploy.runtimes.edge_server import serve
from aecnn_deploy.runtimes.edge_settings import EdgeSettings
from aecnn_deploy.runtimes.peer_limits import PeerLimits


def ready(edge):
    sys.stdout.write(msgspec.json.encode(edge).decode() + "\\n")
    sys.stdout.flush()


guard = GuardSettings(tls_cert={cert}, tls_key={key}, limits=PeerLimits(connections={most}, in_flight={most}))
options = RunnerOptions(threads={threads})
serve(open_bundle(Path(sys.argv[1])), EdgeSettings(port=0, runner=options, max_streams={most}, guard=guard), ready)
"""


@dataclass(frozen=True, slots=True)
class ConnectionCosts:
    """Of one connection, by the means over many that were opened one after the other and kept."""

    tls: bool
    connections: int
    edge_cpu_s: float  # to make one
    client_cpu_s: float
    per_s: float  # as they came, one client: no limit of the edge's
    memory_bytes: float  # resident of the process; the kernel's buffers are not in it
    sockets: float
    process_bytes: int  # before the first

    def document(self) -> dict[str, Any]:
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()}


@contextmanager
def roomy_edge(
    bundle: Path, *, authority: Authority | None = None, threads: int = 1, most: int = 8192
) -> Iterator[Edge]:
    """A real edge that lets ``most`` connections in; with ``authority`` by TLS."""
    pair = authority.issue("edge") if authority is not None else None
    path = "Path({!r})"
    script = _ROOMY.format(
        cert=path.format(str(pair.cert)) if pair else None,
        key=path.format(str(pair.key)) if pair else None,
        most=most,
        threads=threads,
    )
    with serving(bundle, script=script) as edge:
        yield edge


def measure_connections(bundle: Bundle, count: int, authority: Authority | None) -> ConnectionCosts:
    """Open ``count`` connections to a real edge, HELLO and WELCOME said, and keep them.

    Raises SettingsError: more than this process's limit of open files lets a client have.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count + _WARM + _SPARE_FILES > soft:
        raise SettingsError(f"{count} connections are over the limit of {soft} open files; raise it: ulimit -n")
    traffic = Traffic(bundle.id, [each.id for each in bundle.manifest.variants], 0, [])
    with roomy_edge(bundle.path, authority=authority) as edge:
        pid = edge.process.pid
        ca = str(authority.ca) if authority is not None else None
        with working(_hold, edge.url, traffic, ca) as client:
            client.receive()
            client.ask(_WARM)
            time.sleep(_SETTLE_S)
            before = resident_bytes(pid), cpu_s(pid), open_sockets(pid)
            took_s, client_cpu_s = client.ask(count)
            time.sleep(_SETTLE_S)
            after = resident_bytes(pid), cpu_s(pid), open_sockets(pid)
    return ConnectionCosts(
        tls=authority is not None,
        connections=count,
        edge_cpu_s=(after[1] - before[1]) / count,
        client_cpu_s=client_cpu_s / count,
        per_s=count / took_s,
        memory_bytes=(after[0] - before[0]) / count,
        sockets=(after[2] - before[2]) / count,
        process_bytes=before[0],
    )


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_sockets(pid: int) -> int:
    """Sockets that a process has open."""
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found += str(link.readlink()).startswith("socket:")
    return found


def page(edge: Edge, ca: str | None = None) -> dict[str, float]:
    """``GET /metrics``, by series; ``ca``: PEM file, for an edge with TLS."""
    tls = device_context(Path(ca), None, None) if ca is not None else None
    scheme = "https" if ca is not None else "http"
    with urlopen(f"{scheme}://127.0.0.1:{edge.port}/metrics", timeout=20, context=tls) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def _hold(connection: Connection, url: str, traffic: Traffic, ca: str | None) -> None:
    """A process: open as many connections as it is told, and keep them; answers with seconds and CPU seconds."""
    tls = device_context(Path(ca), None, None) if ca is not None else None
    kept: list[StreamClient] = []
    connection.send("ready")
    while True:
        count: int = connection.recv()
        began_s, before_s = time.perf_counter(), time.process_time()
        kept += [StreamClient(url, traffic, tls=tls) for _ in range(count)]
        connection.send((time.perf_counter() - began_s, time.process_time() - before_s))
