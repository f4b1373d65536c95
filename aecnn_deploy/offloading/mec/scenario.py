"""A scenario: how many devices and servers, what they compute, how they are linked, and what is uncertain.

Written as TOML; docs/offloading.md says what each key means. What contradicts itself is refused here, once.
"""

from typing import Annotated

import msgspec
import numpy as np

from aecnn_deploy.errors import ScenarioError
from aecnn_deploy.offloading.mec.profile import Profile

Count = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Range = tuple[float, float]

MOST_LINKS = 10_000_000  # N·S·max(V, taps): beyond, one slot of one world takes gigabytes
MOST_SLOTS = 1_000_000


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


def _check_range(name: str, bounds: Range, low: float, high: float = np.inf) -> None:
    if not (low <= bounds[0] <= bounds[1] <= high):
        limit = f"of at least {low:g}" if high == np.inf else f"from {low:g} to {high:g}"
        raise ScenarioError(f"{name} is [{bounds[0]:g}, {bounds[1]:g}]; expected [least, most], both {limit}")


def _check_finite(part: msgspec.Struct) -> None:
    """Refuse a number that is none, wherever it stands: bounds do not catch it."""
    for field in msgspec.structs.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, _Part):
            _check_finite(value)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not np.isfinite(number) for number in numbers):
            table = f"{type(part).__name__.lower()}." if not hasattr(part, "profile") else ""
            raise ScenarioError(f"{table}{field.name} is {value}; expected finite numbers")


class Devices(_Part, frozen=True):
    """Each device draws its own value of each range, once for an episode; deadlines for each task."""

    count: Count
    speed: Range = (1.0, 1.0)  # log-uniform; 1 is a Raspberry Pi 4
    arrival: Range = (0.6, 0.6)  # the chance of a task in a slot
    deadline_ms: Range = (60.0, 150.0)
    image_kb: Range = (15.0, 15.0)  # of the picture, for options that send it
    prepare_ms: NotNegative = 5.0  # decoding and resizing on a device of speed 1, for every decision
    move_m_s: NotNegative = 0.0  # mobility: speed of a random walk with slowly turning direction

    def __post_init__(self) -> None:
        _check_range("devices.speed", self.speed, 1e-3)
        _check_range("devices.arrival", self.arrival, 0.0, 1.0)
        _check_range("devices.deadline_ms", self.deadline_ms, 1e-3)
        _check_range("devices.image_kb", self.image_kb, 1e-3)
        if self.arrival[1] == 0:
            raise ScenarioError("devices.arrival is [0, 0]: no task would ever arrive; give a chance above 0")


class Servers(_Part, frozen=True):
    """Each server stands at its own access point. Capacity 1 is the server that the profile was measured on."""

    count: Count
    capacity: tuple[Positive, ...] = (1.0,)  # its levels; a server changes to another one now and then
    stay: Share = 0.9  # the chance that level and foreign load stay what they are, each, from slot to slot
    foreign: Range = (0.0, 0.0)  # share of its time that other work takes, drawn anew within these bounds
    fails: tuple[tuple[int, int, int], ...] = ()  # (server, first slot, slot when it is back)

    def __post_init__(self) -> None:
        if not self.capacity:
            raise ScenarioError("servers.capacity is empty; give at least one level, as [1.0]")
        _check_range("servers.foreign", self.foreign, 0.0, 0.95)
        for server, first, back in self.fails:
            if not 0 <= server < self.count:
                raise ScenarioError(
                    f"servers.fails names server {server}; there are {self.count}, counted from 0: "
                    f"name one from 0 to {self.count - 1}"
                )
            if not 0 <= first < back:
                raise ScenarioError(
                    f"servers.fails: from slot {first} to slot {back} is no time; expected 0 <= first < back"
                )


class Radio(_Part, frozen=True):
    """The uplink. Rates are ``efficiency``·W·log2(1 + SNR), at most ``most_bits``·W."""

    bandwidth_mhz: Positive = 10.0
    shared: bool = True  # one task after another at each access point; else each device has this band to itself
    power_dbm: float = 20.0
    noise_figure_db: float = 7.0
    loss_exponent: Positive = 3.5
    loss_at_1m_db: float = 40.0
    shadowing_db: NotNegative = 4.0
    area_m: Positive = 120.0  # devices are within a square of this side, servers on a grid within it
    fading: Share = 1.0  # share of the power that fades (1: Rayleigh, 0: none)
    diversity: Count = 4  # independent taps that are averaged: a wide band does not fade as one
    memory: Share = 0.7  # correlation of a tap from slot to slot
    efficiency: Positive = 0.7
    most_bits: Positive = 5.5  # per second and hertz
    hop_ms: NotNegative = 2.0


class Uncertainty(_Part, frozen=True):
    """How far what a policy sees may be from what happens; all zero and ``known``: certain."""

    estimate_error: Share = 0.0  # share of a tap's power that the estimate does not see
    device_jitter: NotNegative = 0.0  # standard deviation of the logarithm of computing times
    edge_jitter: NotNegative = 0.0
    known_load: bool = True  # this slot's capacity and foreign load are seen; else the last slot's


class Energy(_Part, frozen=True):
    """Watts of a device, for the energy of each task. Left out: none is counted."""

    compute_w: Positive
    transmit_w: Positive


class Scenario(_Part, frozen=True):
    """One scenario, with its profile read."""

    name: Name
    profile: Profile
    devices: Devices
    servers: Servers
    radio: Radio = Radio()
    uncertainty: Uncertainty = Uncertainty()
    energy: Energy | None = None
    slot_ms: Positive = 100.0
    slots: Count = 200  # of an episode

    def __post_init__(self) -> None:
        _check_finite(self)
        self._check_size()
        self._check_failures()
        self._check_reach()
        if self.uncertainty.estimate_error and not self.radio.fading:
            raise ScenarioError(
                f"scenario {self.name}: estimates are off by {self.uncertainty.estimate_error:g} of a fading of 0; "
                "set radio.fading above 0, or uncertainty.estimate_error to 0"
            )
        way_m = self.devices.move_m_s * self.slot_ms / 1e3
        if way_m > self.radio.area_m:
            raise ScenarioError(
                f"scenario {self.name}: a device moves {way_m:g} m in a slot, across the whole area of "
                f"{self.radio.area_m:g} m; lower devices.move_m_s or slot_ms, or raise radio.area_m"
            )

    def _check_size(self) -> None:
        """Refuse what would take more memory than a machine has, before it is taken."""
        options = len(self.profile.options)
        links = self.devices.count * self.servers.count * max(options, self.radio.diversity)
        if links > MOST_LINKS:
            raise ScenarioError(
                f"scenario {self.name}: {self.devices.count} devices, {self.servers.count} servers, {options} options "
                f"and {self.radio.diversity} taps make {links} numbers a slot, over the limit of {MOST_LINKS}; "
                "name fewer devices or servers"
            )
        if self.slots > MOST_SLOTS:
            raise ScenarioError(
                f"scenario {self.name}: {self.slots} slots, over the limit of {MOST_SLOTS}; name fewer, and more seeds"
            )

    def _check_failures(self) -> None:
        """Refuse failures that are never met, that overlap, or that leave no server for good."""
        for server, first, back in self.servers.fails:
            if first >= self.slots:
                raise ScenarioError(
                    f"scenario {self.name}: server {server} fails at slot {first}, after the last of {self.slots} "
                    "slots, counted from 0; name an earlier slot, or raise slots"
                )
            for other, start, _ in self.servers.fails:
                if other == server and first < start < back:
                    raise ScenarioError(
                        f"scenario {self.name}: server {server} fails at slot {start} while it is down from {first} "
                        f"to {back}; make one failure of both"
                    )
        if len(set(self.servers.fails)) < len(self.servers.fails):
            raise ScenarioError(f"scenario {self.name}: servers.fails names a failure twice; name it once")
        lost = {server for server, _, back in self.servers.fails if back >= self.slots}
        if len(lost) == self.servers.count:
            since = max(first for _, first, back in self.servers.fails if back >= self.slots)
            raise ScenarioError(
                f"scenario {self.name}: from slot {since} on every server is down for good; let one of them come back "
                f"before slot {self.slots}, or leave one running"
            )

    def _check_reach(self) -> None:
        """Refuse deadlines that no option could meet: on the fastest device, the best link and the free server."""
        devices, radio = self.devices, self.radio
        speed = max(self.servers.capacity) * (1 - self.servers.foreign[0])
        best_bps = radio.bandwidth_mhz * 1e6 * radio.most_bits
        least_ms = np.inf
        for option in self.profile.options:
            sent_bytes = devices.image_kb[0] * 1e3 if option.sends_picture else option.payload_bytes
            ready_ms = (devices.prepare_ms + option.device_ms) / devices.speed[1]
            least_ms = min(least_ms, ready_ms + 8e3 * sent_bytes / best_bps + option.edge_ms / speed + radio.hop_ms)
        if least_ms > devices.deadline_ms[1]:
            raise ScenarioError(
                f"scenario {self.name}: no option of profile {self.profile.name} is ever done within the longest "
                f"deadline of {devices.deadline_ms[1]:g} ms; the fastest takes {least_ms:.3g} ms at best: raise "
                "devices.deadline_ms or radio.bandwidth_mhz, or take faster options"
            )

    @property
    def certain(self) -> bool:
        """Whether what a policy sees is what happens."""
        unsure = self.uncertainty
        steady = not self.servers.fails and unsure.known_load
        return steady and not (unsure.estimate_error or unsure.device_jitter or unsure.edge_jitter)
