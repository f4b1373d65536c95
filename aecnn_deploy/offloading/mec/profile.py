"""What a scenario must know of the networks: for each option its accuracy, its bytes and its times.

An option is a way to offload one task: a split with a ratio V, an early exit that is sent a whole picture, or any other
row of a table. Times are those of a device of speed 1 (a Raspberry Pi 4) and of a server of capacity 1, alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from aecnn_deploy.errors import ScenarioError

Floats = NDArray[np.float64]


class Option(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to offload. Milliseconds, bytes; ``accuracy`` from 0 to 1 is top-1 of tasks that are done so."""

    name: str
    accuracy: float
    payload_bytes: float  # of one task on the air; not counted where the picture itself is sent
    device_ms: float  # head and encoding, on a device of speed 1
    edge_ms: float  # decoding, recovery and tail, on a server of capacity 1
    sends_picture: bool = False  # the payload is the task's own picture, ``image_bytes`` of its device

    def __post_init__(self) -> None:
        if not self.name:
            raise ScenarioError("an option has no name; give each option of the profile a name")
        if not 0 <= self.accuracy <= 1:
            raise ScenarioError(f"option {self.name}: accuracy {self.accuracy} is outside 0 to 1; give a share")
        for field in ("payload_bytes", "device_ms", "edge_ms"):
            value = getattr(self, field)
            if not (np.isfinite(value) and value >= 0):
                raise ScenarioError(f"option {self.name}: {field} is {value}, expected a number of at least 0")
        if self.edge_ms == 0:
            raise ScenarioError(f"option {self.name}: edge_ms is 0; an option that no server works on is no offloading")


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a scenario, and the unsplit network on the device. ``source`` says where the numbers are from."""

    name: str
    source: str
    local_accuracy: float
    local_ms: float  # the unsplit network on a device of speed 1
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        if not self.options:
            raise ScenarioError(f"profile {self.name} has no option to offload by; it needs at least one")
        names = [option.name for option in self.options]
        if len(set(names)) != len(names):
            raise ScenarioError(f"profile {self.name} names an option twice: {', '.join(names)}")
        if not (0 <= self.local_accuracy <= 1 and np.isfinite(self.local_ms) and self.local_ms > 0):
            raise ScenarioError(
                f"profile {self.name}: local_accuracy {self.local_accuracy} and local_ms {self.local_ms}; "
                "expected a share and a positive time"
            )

    def chosen(self, names: Sequence[str]) -> "Profile":
        """This profile with the options of ``names`` alone, in their order. Raises ScenarioError: it lacks one."""
        known = {option.name: option for option in self.options}
        missing = [name for name in names if name not in known]
        if missing:
            raise ScenarioError(
                f"profile {self.name} has no variant {', '.join(missing)}; it has {', '.join(known)}: "
                "name some of these, or take another profile"
            )
        return msgspec.structs.replace(self, options=tuple(known[name] for name in names))


@dataclass(frozen=True)
class ProfileArrays:
    """A profile as arrays of V options; seconds, bytes, shares."""

    accuracy: Floats  # [V]
    payload_bytes: Floats  # [V]
    sends_picture: NDArray[np.bool_]  # [V]
    device_s: Floats  # [V]
    edge_s: Floats  # [V]
    local_accuracy: float
    local_s: float

    @classmethod
    def of(cls, profile: Profile) -> "ProfileArrays":
        """The arrays of ``profile``, options in its order."""
        options = profile.options
        return cls(
            np.array([option.accuracy for option in options]),
            np.array([option.payload_bytes for option in options]),
            np.array([option.sends_picture for option in options]),
            np.array([option.device_ms for option in options]) / 1e3,
            np.array([option.edge_ms for option in options]) / 1e3,
            profile.local_accuracy,
            profile.local_ms / 1e3,
        )
