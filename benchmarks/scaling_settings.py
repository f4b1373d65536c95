"""What a plan is made for, and from: the fleet's settings, and the measured inputs with where each comes from."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import msgspec

from aecnn_deploy.errors import PlanError, SettingsError

Layout = Literal["cpu", "gpu", "split"]
Placement = Literal["least-connections", "hash"]
Capture = Literal["paced", "poisson", "together"]

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
CAPTURES: tuple[Capture, ...] = get_args(Capture)

# What the link's own headers add, on Ethernet: TCP with timestamps, IPv4, the frame with preamble and gap; and for each
# message the acknowledgement that goes the other way, at most.
PACKET_BYTES = 32 + 20 + 38
SEGMENT_BYTES = 1448  # of payload in a packet


@dataclass(frozen=True, slots=True)
class LinkClass:
    """A kind of link that a ``share`` of the devices has: uplink rate, and delay one way. Raises SettingsError."""

    share: float
    rate_mbps: float
    delay_ms: float

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and self.rate_mbps > 0 and 0 <= self.delay_ms < 1e5):
            raise SettingsError(
                f"a class of links is {self.share}:{self.rate_mbps}:{self.delay_ms}; expected a share of 0 to 1, "
                "a positive rate in Mbit/s and a delay of 0 or more ms"
            )


# An assumption, not a measurement: cable, a phone network that works, one that hardly does.
LINKS = (LinkClass(0.5, 20.0, 8.0), LinkClass(0.4, 5.0, 25.0), LinkClass(0.1, 1.0, 60.0))


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """Devices, how they send, and what they send to. Raises SettingsError: a number is out of its range.

    A *box* of the layout ``cpu`` runs a process on each two of its cores, head to tail; of ``gpu`` as many processes
    for each GPU as keep it busy; of ``split`` fronts only, with all GPUs of the fleet behind all of them.
    """

    devices: int = 10_000
    fps: float = 5.0
    layout: Layout = "gpu"
    boxes: int | None = None  # None: as many as it takes
    cores: int = 16  # of a box
    gpus: int = 1  # of a box
    gpu_images_per_s: float = 5_000.0  # of one GPU, whole batches. An assumption: no GPU was measured
    gpu_launch_ms: float = 2.0  # of a GPU's batch, whatever its size. An assumption, too
    gpu_batch: int = 64
    hop_ms: float = 3.0  # layout split: to a tail elsewhere and back, without its run
    utilisation: float = 0.7  # of the scarcest part, where the number of boxes is not given
    seconds: float = 30.0
    capture: Capture = "paced"
    placement: Placement = "least-connections"
    links: tuple[LinkClass, ...] = LINKS
    window: int = 4
    deadline_ms: float | None = None
    max_streams: int = 256  # of one process, as shipped
    streams_limited: bool = True  # whether max_streams counts when the number of processes is chosen
    max_in_flight: int = 512
    max_queue: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("layout", LAYOUTS), ("placement", PLACEMENTS), ("capture", CAPTURES)):
            if getattr(self, name) not in choices:
                raise SettingsError(f"{name} is {getattr(self, name)!r}, expected one of: {', '.join(choices)}")
        for name in ("devices", "cores", "gpus", "gpu_batch", "window", "max_streams", "max_in_flight", "max_queue"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("fps", "gpu_images_per_s", "seconds"):
            if not 0 < getattr(self, name) < 1e9:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected a positive number")
        for name in ("gpu_launch_ms", "hop_ms"):
            if not 0 <= getattr(self, name) < 1e5:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected 0 or more milliseconds")
        if self.boxes is not None and self.boxes < 1:
            raise SettingsError(f"boxes is {self.boxes}, expected at least 1")
        if not 0 < self.utilisation < 1:
            raise SettingsError(f"utilisation is {self.utilisation}, expected more than 0 and less than 1")
        if self.deadline_ms is not None and self.deadline_ms <= 0:
            raise SettingsError(f"deadline_ms is {self.deadline_ms}, expected a positive number of milliseconds")
        if abs(sum(link.share for link in self.links) - 1) > 1e-6:
            raise SettingsError(f"the shares of the links add up to {sum(link.share for link in self.links):g}, not 1")
        if self.layout == "cpu" and self.cores < 2:
            raise SettingsError(f"cores is {self.cores}; the layout cpu was measured in processes of 2 cores")

    @property
    def images_per_s(self) -> float:
        """Of all devices together."""
        return self.devices * self.fps


class Inputs(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """What was measured. CPU seconds unless it says otherwise. No GPU is in them."""

    receive_answer_s: float  # of the event loop, a message in and its answer out
    beside_s: float  # of a process's other threads an image, the tail's run apart
    tls_receive_answer_s: float  # the same as the first, with TLS
    messages_per_s_one_core: float  # all of a process on one core, a tail of no time
    decode_s: float
    batch_s: list[tuple[int, float]]  # (size, seconds) of the tail on ``tail_cores``
    noise: list[float]  # runs of the tail, as shares of the median of their size
    tail_cores: int
    connect_s: float  # TCP, WebSocket, HELLO and WELCOME
    tls_connect_s: float  # the same with TLS, of an elliptic curve's certificate, nothing resumed
    memory_bytes_per_connection: float  # of the process; the kernel's buffers are not in it
    tls_memory_bytes_per_connection: float
    kept_planes_bytes: float  # of a device that sends differences, in one variant; computed, not measured
    process_bytes: float  # resident before the first device, one tail loaded
    sockets_per_connection: float
    received_bytes_per_image: float  # our messages, WebSocket's headers in it
    sent_bytes_per_image: float
    start_s: float  # wall, from the command to readiness
    load_s: float  # wall, of a tail, as the edge states it
    series: int  # of one process in Prometheus
    scrape_ms: float  # wall
    ports: int  # that one address may use to one other address and port
    backlog: int  # connections that may wait to be accepted
    open_files: int  # soft limit of this shell

    def tail_images_per_s(self) -> float:
        """Of one tail, by its best batch."""
        return max(size / seconds for size, seconds in self.batch_s)


class _InputsFile(msgspec.Struct):
    inputs: Inputs


def read_inputs(path: Path) -> Inputs:
    """The inputs of a file of ``benchmarks.scaling``. Raises PlanError: there is none, or it holds other things."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_InputsFile).inputs
    except OSError as exc:
        raise PlanError(f"{path} cannot be read: {exc.strerror}; measure it: python -m benchmarks.scaling") from None
    except msgspec.DecodeError as exc:
        raise PlanError(
            f"{path} holds no inputs of a plan: {exc}; measure them: python -m benchmarks.scaling"
        ) from None


def on_link_bytes(message_bytes: float) -> float:
    """Bytes of a message on Ethernet, headers of its packets included; its acknowledgement is on the other way."""
    return message_bytes + math.ceil(message_bytes / SEGMENT_BYTES) * PACKET_BYTES


def parse_links(text: str) -> tuple[LinkClass, ...]:
    """``share:Mbit/s:ms`` by commas. Raises SettingsError."""
    found = []
    for part in text.split(","):
        try:
            share, rate_mbps, delay_ms = (float(word) for word in part.split(":"))
        except ValueError:
            raise SettingsError(
                f"{part!r} is no class of links; give share:Mbit/s:ms, as in 0.9:20:10,0.1:1:60"
            ) from None
        found.append(LinkClass(share, rate_mbps, delay_ms))
    return tuple(found)
