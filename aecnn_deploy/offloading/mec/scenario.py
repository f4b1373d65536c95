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
Range = tuple[float, float]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


def _check_range(name: str, bounds: Range, low: float, high: float = np.inf) -> None:
    if not (low <= bounds[0] <= bounds[1] <= high):
        limit = f"of at least {low:g}" if high == np.inf else f"from {low:g} to {high:g}"
        raise ScenarioError(f"{name} is [{bounds[0]:g}, {bounds[1]:g}]; expected [least, most], both {limit}")


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

    name: str
    profile: Profile
    devices: Devices
    servers: Servers
    radio: Radio = Radio()
    uncertainty: Uncertainty = Uncertainty()
    energy: Energy | None = None
    slot_ms: Positive = 100.0
    slots: Count = 200  # of an episode

    def __post_init__(self) -> None:
        late = [f"{server}" for server, first, _ in self.servers.fails if first >= self.slots]
        if late:
            raise ScenarioError(
                f"scenario {self.name}: server {', '.join(late)} fails after the last of {self.slots} slots; "
                "name an earlier slot, or raise slots"
            )
        if self.uncertainty.estimate_error and not self.radio.fading:
            raise ScenarioError(
                f"scenario {self.name}: estimates are off by {self.uncertainty.estimate_error:g} of a fading of 0; "
                "set radio.fading above 0, or uncertainty.estimate_error to 0"
            )

    @property
    def certain(self) -> bool:
        """Whether what a policy sees is what happens."""
        unsure = self.uncertainty
        steady = not self.servers.fails and unsure.known_load
        return steady and not (unsure.estimate_error or unsure.device_jitter or unsure.edge_jitter)
