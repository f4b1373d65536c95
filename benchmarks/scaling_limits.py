"""What breaks first: at how many devices each resource of an edge is exhausted, by arithmetic from the inputs."""

import math
from dataclasses import dataclass
from typing import Any

from aecnn_deploy.runtimes.edge_settings import EdgeSettings
from aecnn_deploy.runtimes.edge_status import StatusSettings
from benchmarks.scaling_fleet import front_s, process_images_per_s
from benchmarks.scaling_settings import PACKET_BYTES, FleetSettings, Inputs, on_link_bytes

_SHELL_FILES = 1024  # the soft limit of most systems
_UNIT_FILES = 65_536  # LimitNOFILE of aecnn-edge.service
_SPARE_FILES = 64  # of a process, beside its connections
_BOX_MEMORY_BYTES = 32e9
_EPHEMERAL = "one proxy's address to one process"


@dataclass(frozen=True, slots=True)
class Limit:
    """A resource, where it ends, and what to do. ``devices``: of ``scope``, at the fleet's frames a second."""

    resource: str
    scope: str
    devices: int | None  # None: it does not depend on devices
    then: str
    source: str
    remedy: str

    def document(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("resource", "scope", "devices", "then", "source", "remedy")}


def limits(settings: FleetSettings, inputs: Inputs, in_flight_s: float) -> list[Limit]:
    """Every limit, the one that is reached first at the beginning. ``in_flight_s``: how long a request stays."""
    shipped = EdgeSettings()
    fps, peer = settings.fps, shipped.guard.limits
    process, box = "one process", "one box"

    def devices(images_per_s: float) -> int:
        return int(images_per_s / fps)

    up_bytes = on_link_bytes(inputs.received_bytes_per_image)
    down_bytes = on_link_bytes(inputs.sent_bytes_per_image)
    each_bytes = inputs.tls_memory_bytes_per_connection + inputs.kept_planes_bytes
    busy = min(0.95, settings.utilisation)
    found = [
        Limit(
            f"tail on {inputs.tail_cores} cores", process, devices(process_images_per_s(inputs)),
            "queues fill, devices drop frames or are told to wait", "measured",
            "more processes, a GPU, --upstream, --ray",
        ),
        Limit(
            f"tail on a GPU of {settings.gpu_images_per_s:,.0f} images/s", "one GPU",
            devices(settings.gpu_images_per_s),
            "queues fill, devices drop frames or are told to wait", "assumed", "more GPUs; a smaller variant",
        ),
        Limit(
            "event loop, with TLS", process, devices(1 / front_s(inputs)),
            "answers wait for the loop, then sockets fill", "measured",
            "more processes on a box; TLS in the balancer",
        ),
        Limit(
            "connections of one address", "one proxy, no tokens", peer.connections,
            "429, the device tries again", "--peer-connections", "tokens, a name for each device; or raise it",
        ),
        Limit(
            "streams", process, shipped.max_streams, "REFUSED overloaded", "EdgeSettings.max_streams",
            "more processes; serve-edge has no option for it",
        ),
        Limit(
            "requests in flight", process, math.floor(shipped.max_in_flight / fps / in_flight_s),
            "FAILED overloaded", f"--max-in-flight, {in_flight_s * 1e3:.0f} ms each (simulated)", "raise it",
        ),
        Limit(
            "requests in flight of one token", "one token for all", math.floor(peer.in_flight / fps / in_flight_s),
            "FAILED overloaded", f"--peer-in-flight, {in_flight_s * 1e3:.0f} ms each (simulated)",
            "a token for each site",
        ),
        Limit(
            "devices on the status page", process, StatusSettings().max_devices,
            "the least recently seen is not listed", "StatusSettings.max_devices",
            "nothing breaks; Prometheus has no series of devices",
        ),
        Limit(
            "open files, a shell's limit", process,
            int((_SHELL_FILES - _SPARE_FILES) / inputs.sockets_per_connection),
            "accept fails", "measured sockets a connection; 1,024 assumed", "ulimit -n; the unit has 65,536",
        ),
        Limit(
            "open files, the unit's limit", process,
            int((_UNIT_FILES - _SPARE_FILES) / inputs.sockets_per_connection),
            "accept fails", "LimitNOFILE of the unit", "raise it",
        ),
        Limit(
            "connections that wait to be accepted", process, inputs.backlog, "SYNs are dropped: a second's pause",
            "measured here: net.core.somaxconn, uvicorn's backlog", "more processes",
        ),
        Limit(
            "all connect at once, TLS", process, int(peer.handshake_s / inputs.tls_connect_s),
            "the last ones are cut off after --handshake-s and come again", "measured",
            "more processes; TLS in the balancer",
        ),
        Limit(
            f"all connect at once, TLS, the loop {busy:.0%} busy", process,
            int(peer.handshake_s * (1 - busy) / inputs.tls_connect_s),
            "the last ones are cut off after --handshake-s and come again", "measured",
            "more processes; TLS in the balancer",
        ),
        Limit(
            "memory, 32 GB, TLS", box, int(_BOX_MEMORY_BYTES / each_bytes), "swap or the end of the process",
            "measured a connection, 32 GB assumed", "TLS in the balancer; --reference-bytes 0",
        ),
        Limit(
            "network card of 1 Gbit/s, inbound", box, devices(1e9 / 8 / (up_bytes + PACKET_BYTES)),
            "packets are dropped", "measured bytes; headers computed", "10 Gbit/s; more boxes",
        ),
        Limit(
            "network card of 1 Gbit/s, outbound", box, devices(1e9 / 8 / (down_bytes + PACKET_BYTES)),
            "packets are dropped", "measured bytes; headers computed", "10 Gbit/s; more boxes",
        ),
        Limit(
            "ephemeral ports", _EPHEMERAL, inputs.ports, "the proxy cannot connect",
            "measured here: ip_local_port_range", "more addresses of the proxy, more processes",
        ),
        Limit(
            "open files of a balancer", "one balancer", _UNIT_FILES // 2, "accept fails",
            "65,536 assumed, two sockets a device", "more balancers, or addresses by DNS",
        ),
        Limit(
            "series in Prometheus", process, None, f"{inputs.series} of a process, whatever devices there are",
            "measured", "none needed",
        ),
    ]  # fmt: skip
    return sorted(found, key=lambda limit: math.inf if limit.devices is None else limit.devices)


def network(settings: FleetSettings, inputs: Inputs) -> dict[str, float]:
    """Mbit/s on the wire of all devices together, headers and at most one acknowledgement of each included."""
    load = settings.images_per_s
    up = on_link_bytes(inputs.received_bytes_per_image) + PACKET_BYTES
    down = on_link_bytes(inputs.sent_bytes_per_image) + PACKET_BYTES
    return {
        "up_bytes_per_image": round(up, 0),
        "down_bytes_per_image": round(down, 0),
        "up_mbit_per_s": round(load * up * 8 / 1e6, 1),
        "down_mbit_per_s": round(load * down * 8 / 1e6, 1),
        "packets_per_s": round(load * 4, 0),
    }
