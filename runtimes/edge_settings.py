"""How an edge serves: every number that its operator can set, checked when it is set."""

from dataclasses import dataclass, field

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.edge_gate import GuardSettings
from aecnn_deploy.runtimes.edge_runners import RunnerOptions
from aecnn_deploy.runtimes.oip_limits import OipLimits
from aecnn_deploy.wire import WireLimits

FIRST, ALL, NONE = "first", "all", "none"  # what is loaded before the edge says that it is ready


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """How an edge serves. Raises SettingsError: a number is out of its range."""

    host: str = "127.0.0.1"
    port: int = 8765  # 0 takes a free one
    runner: RunnerOptions = field(default_factory=RunnerOptions)
    preload: str = FIRST  # variants that are loaded and warm before the edge is ready; the others at their first use
    memory_limit_bytes: int | None = None  # of all loaded models together, as measured when they were loaded
    max_batch: int = 16  # of one variant; the edge may find that fewer together are as fast
    batch_wait_ms: float = 0.0  # longest wait of a request for others to run with it
    max_queue: int = 256  # requests of one variant that wait for their turn
    max_in_flight: int = 512  # requests of all devices together
    max_in_flight_per_stream: int = 8
    max_streams: int = 256
    max_image_bytes: int = 16 << 20  # of a body of POST /v1/classify
    max_reference_bytes: int = 1 << 19  # of a stream's last planes, kept for differences; 0: each frame on its own
    max_uploads: int = 16  # bodies that are being read; each may hold max_image_bytes of memory
    upload_timeout_s: float = 30.0  # for one body
    drain_s: float = 10.0
    previous_s: float = 600.0  # after a reload: how long devices with the bundle before it are still served
    hello_timeout_s: float = 10.0
    limits: WireLimits = field(default_factory=WireLimits)
    open_inference: OipLimits = field(default_factory=OipLimits)
    guard: GuardSettings = field(default_factory=GuardSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port is {self.port}, expected 0 to 65535")
        for name in (
            "max_batch",
            "max_queue",
            "max_in_flight",
            "max_in_flight_per_stream",
            "max_streams",
            "max_image_bytes",
            "max_uploads",
        ):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.max_batch > 1024:
            raise SettingsError(f"max_batch is {self.max_batch}, expected at most 1024")
        if self.max_reference_bytes < 0:
            raise SettingsError(f"max_reference_bytes is {self.max_reference_bytes}, expected 0 or more")
        if self.memory_limit_bytes is not None and self.memory_limit_bytes < 1:
            raise SettingsError(f"memory_limit_bytes is {self.memory_limit_bytes}, expected at least 1")
        if not 0 <= self.batch_wait_ms <= 10_000:
            raise SettingsError(f"batch_wait_ms is {self.batch_wait_ms}, expected 0 to 10000 milliseconds")
        for name in ("drain_s", "hello_timeout_s", "upload_timeout_s", "previous_s"):
            if not 0 <= getattr(self, name) < 1e6:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected 0 or more seconds")
