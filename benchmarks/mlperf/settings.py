"""What a series of tests is, checked when it is said."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aecnn_deploy.errors import AecnnError, SettingsError

Scenario = Literal["SingleStream", "MultiStream", "Server", "Offline"]
ArmName = Literal["split", "full", "local"]
SampleKind = Literal["frame", "file"]
Mode = Literal["performance", "accuracy"]

# Offline first: what it reaches is what Server's rate is a share of.
SCENARIOS: tuple[Scenario, ...] = ("Offline", "SingleStream", "MultiStream", "Server")
ARMS: tuple[ArmName, ...] = ("split", "full", "local")
SAMPLE_KINDS: tuple[SampleKind, ...] = ("frame", "file")

FOLDER = Path(__file__).parent
USER_CONF = FOLDER / "user.conf"
REDUCED_CONF = FOLDER / "reduced.conf"


class JudgeError(AecnnError):
    """A test did not come to its end, or its logs are not what LoadGen writes."""


@dataclass(frozen=True, slots=True)
class SystemSettings:
    """The system under test: one device, with the photographs in memory, and one edge. Raises SettingsError."""

    variant: str | None = None  # the bundle's first
    coder: str | None = None  # the device's own choice
    in_flight: int = 8  # requests of the device without an answer; images at a time of full offloading
    device_threads: int = 1
    edge_threads: int = 1
    # "frame": decoded and resized before the clock starts, as MLPerf allows; "file": the photograph's bytes. Full
    # offloading always has the file, which the edge decodes.
    sample: SampleKind = "frame"
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.in_flight <= 255:
            raise SettingsError(f"in_flight is {self.in_flight}, expected 1 to 255 requests")
        for name in ("device_threads", "edge_threads"):
            if not 0 <= getattr(self, name) <= 1024:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected 0 (every core) to 1024")
        if self.sample not in SAMPLE_KINDS:
            raise SettingsError(f"unknown sample {self.sample!r}; choose one of {', '.join(SAMPLE_KINDS)}")
        if not 0 < self.timeout_s < 1e6:
            raise SettingsError(f"timeout_s is {self.timeout_s}, expected a positive number of seconds")


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """How LoadGen tests. Raises SettingsError: a number is out of its range, or two contradict each other."""

    official: bool = False  # MLPerf's own minimums: 600 s and the query counts of mlperf.conf
    seconds: float | None = None  # of a reduced performance run; None: as reduced.conf says
    user_conf: Path | None = None  # None: user.conf of an official run, reduced.conf of another
    server_target_qps: float | None = None  # None: ``server_load`` of what Offline reached
    server_load: float = 0.8
    server_tries: int = 2  # where the bound is missed, at three quarters of the rate before it
    server_latency_ms: float | None = None  # None: as user.conf says
    accuracy: bool = True  # the accuracy run, after each performance run

    def __post_init__(self) -> None:
        if self.official and self.seconds is not None:
            raise SettingsError(f"--official is 600 s a test or more, and --seconds says {self.seconds:g}; drop either")
        if self.official and not self.accuracy:
            raise SettingsError("--official is both modes, and --no-accuracy leaves one out; drop either")
        if self.seconds is not None and not 0.1 <= self.seconds <= 3600:
            raise SettingsError(f"seconds is {self.seconds:g}, expected 0.1 to 3600")
        if self.server_target_qps is not None and not 0 < self.server_target_qps <= 1e6:
            raise SettingsError(f"server_target_qps is {self.server_target_qps:g}, expected a positive number a second")
        if not 0 < self.server_load <= 1:
            raise SettingsError(f"server_load is {self.server_load:g}, expected a share of Offline's rate, up to 1")
        if not 1 <= self.server_tries <= 20:
            raise SettingsError(f"server_tries is {self.server_tries}, expected 1 to 20")
        if self.server_latency_ms is not None and not 0 < self.server_latency_ms <= 1e6:
            raise SettingsError(f"server_latency_ms is {self.server_latency_ms:g}, expected a positive number")

    @property
    def conf(self) -> Path:
        """The file that LoadGen reads, after its own."""
        return self.user_conf or (USER_CONF if self.official else REDUCED_CONF)
