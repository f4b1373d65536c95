"""How a device runs, checked when it is said."""

from dataclasses import dataclass, field
from typing import Literal

from aecnn_deploy.codec import DEFAULT_LEVEL
from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.backoff import FIRST_S, LONGEST_S
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.head_choice import AUTO, check_precision
from aecnn_deploy.runtimes.plane_coder import check_coder
from aecnn_deploy.wire import WireLimits

Policy = Literal["latest", "all"]
Fallback = Literal["local", "none"]

POLICIES: tuple[Policy, ...] = ("latest", "all")
FALLBACKS: tuple[Fallback, ...] = ("local", "none")
DEFAULT_IN_FLIGHT = 4
MAX_EDGES = 16  # of one device, and of one controller


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """How a device runs. Raises SettingsError: a number is out of its range, or a word is unknown."""

    edge: str  # ws://HOST:PORT, wss://, http:// or https://
    variant: str | None = None  # None: chosen for each frame where there is a deadline, else the bundle's first
    head: str = AUTO  # its precision; or "auto": the faster, as far as it is known
    threads: int = 0  # of each model here; 0 takes every core
    spinning: bool = False
    # Of the planes: "smallest", "auto" (the fastest for each frame), or a coder's name. None: "auto" where the variant
    # is chosen for each frame, else "smallest".
    coder: str | None = None
    zstd_level: int = DEFAULT_LEVEL
    deadline_ms: float | None = None  # for each image, from its capture (of a file: from opening it) to its label
    min_accuracy: float | None = None  # 0 to 1; of the variants that are chosen among
    explain: bool = False  # each report says how its variant was chosen
    timeout_s: float = 10.0  # for each wait for the edge
    name: str | None = None  # what the edge's status page calls this device; None: the host's name
    credentials: Credentials = field(default_factory=Credentials)
    limits: WireLimits = field(default_factory=WireLimits)
    in_flight: int = DEFAULT_IN_FLIGHT  # requests without an answer, if the edge allows as many; 1: one after the other
    policy: Policy | None = None  # of frames that wait for the head; None: "latest" for live sources, else "all"
    fallback: Fallback = "none"
    longest_pause_s: float = LONGEST_S  # between attempts at an edge that is away
    seed: int | None = None  # of the pauses between attempts at an edge that is away
    other_edges: tuple[str, ...] = ()  # beside ``edge``; each as there, or NAME=URL by the controller's name for it
    controller: str | None = None  # http://HOST:PORT, https://, ws:// or wss://: who says where each frame goes

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= 1024:
            raise SettingsError(f"threads is {self.threads}, expected 0 (every core) to 1024")
        if self.coder is not None:
            check_coder(self.coder)
        self._check_min_accuracy()
        self._check_ways()
        check_precision(self.head)
        if self.name is not None and not (self.name.isprintable() and 1 <= len(self.name) <= 64):
            raise SettingsError(f"the name {self.name!r} is not 1 to 64 printable characters; choose another --name")
        if self.deadline_ms is not None and not 0 < self.deadline_ms < 1e9:
            raise SettingsError(f"deadline_ms is {self.deadline_ms}, expected a positive number of milliseconds")
        if not 0 < self.timeout_s < 1e6:
            raise SettingsError(f"timeout_s is {self.timeout_s}, expected a positive number of seconds")
        if not FIRST_S <= self.longest_pause_s < 1e6:
            raise SettingsError(f"longest_pause_s is {self.longest_pause_s}, expected {FIRST_S} seconds or more")
        if not 1 <= self.in_flight <= 255:
            raise SettingsError(f"in_flight is {self.in_flight}, expected 1 (one after the other) to 255")
        if self.policy not in (None, *POLICIES):
            raise SettingsError(f"unknown policy {self.policy!r}; choose one of {', '.join(POLICIES)}")
        if self.fallback not in FALLBACKS:
            raise SettingsError(f"unknown fallback {self.fallback!r}; choose one of {', '.join(FALLBACKS)}")

    @property
    def several_ways(self) -> bool:
        """Whether each frame's edge is chosen, and not only its variant."""
        return bool(self.other_edges) or self.controller is not None

    def _check_ways(self) -> None:
        if not self.several_ways:
            return
        what = "--controller" if self.controller is not None else "more than one --edge"
        if self.deadline_ms is None:
            raise SettingsError(f"{what} needs --deadline-ms: each frame goes where it is expected to be in time")
        if self.variant is not None:
            raise SettingsError(f"{what} is for choosing among ways, and --variant fixes one; drop either")
        if len(self.other_edges) >= MAX_EDGES:
            raise SettingsError(f"{1 + len(self.other_edges)} edges were given, expected at most {MAX_EDGES}")

    def _check_min_accuracy(self) -> None:
        if self.min_accuracy is None:
            return
        if not 0 <= self.min_accuracy <= 1:
            raise SettingsError(f"min_accuracy is {self.min_accuracy:g}, expected 0 to 1")
        if self.variant is not None:
            raise SettingsError("--min-accuracy is for choosing among variants, and --variant fixes one; drop either")
        if self.deadline_ms is None:
            raise SettingsError("--min-accuracy needs --deadline-ms: the most accurate variant in time is taken")
