"""How an edge uses a Ray cluster: every number that its operator can set, checked when it is set."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.edge_runners import EngineSource
from aecnn_deploy.runtimes.ray_address import check_form

# Batches that one replica may have at a time: one that runs, and one that is on its way meanwhile.
IN_FLIGHT = 2

_RANGE = re.compile(r"(\d+)(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class RaySettings:
    """Replicas on a Ray cluster. Raises SettingsError: a number is out of its range.

    ``engines`` makes what builds engines that a bundle lacks, on each node that has a GPU; None: none are built.
    """

    address: str  # auto, local or host:port
    min_replicas: int = 1
    max_replicas: int = 1
    cpus: float = 1.0  # of each replica; as many threads, rounded up, as its models on ONNX Runtime get
    gpus: float = 0.0  # of each replica
    start_s: float = 60.0  # within which the first replica must be there, and a model be loaded
    threads: int = 0  # of one ONNX Runtime model; 0: ``cpus``
    spinning: bool = False
    engines: Callable[[], EngineSource] | None = None
    target_in_flight: float = 1.5  # batches of each replica, running and waiting, that autoscaling aims at
    upscale_s: float = 3.0  # for which it must have more, before one is added
    downscale_s: float = 60.0
    attempts: int = 3  # replicas that a batch may be lost with before it has failed
    replica_wait_s: float = 30.0  # of a batch, for a replica that has its model and is free
    batch_s: float = 60.0  # within which a replica must answer

    def __post_init__(self) -> None:
        check_form(self.address)
        if not 1 <= self.min_replicas <= self.max_replicas <= 1024:
            raise SettingsError(
                f"replicas are {self.min_replicas}:{self.max_replicas}, expected 1:1 to 1024:1024, the least first"
            )
        if not 0 < self.cpus <= 1024:
            raise SettingsError(f"a replica's CPUs are {self.cpus:g}, expected more than 0, at most 1024")
        if not 0 <= self.gpus <= 64 or (self.gpus > 1 and not float(self.gpus).is_integer()):
            raise SettingsError(f"a replica's GPUs are {self.gpus:g}, expected 0 to 1, or a whole number up to 64")
        if not 0 <= self.threads <= 1024:
            raise SettingsError(f"threads is {self.threads}, expected 0 (the replica's CPUs) to 1024")
        if not 1 <= self.attempts <= 100:
            raise SettingsError(f"attempts is {self.attempts}, expected 1 to 100")
        for name in ("start_s", "target_in_flight", "replica_wait_s", "batch_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise SettingsError(f"{name} is {getattr(self, name):g}, expected a positive number")
        for name in ("upscale_s", "downscale_s"):
            if not 0 <= getattr(self, name) < 1e6:
                raise SettingsError(f"{name} is {getattr(self, name):g}, expected 0 or more seconds")


def replica_range(text: str) -> tuple[int, int]:
    """The least and the most replicas of ``MIN:MAX`` or ``N``. Raises SettingsError: it is neither."""
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise SettingsError(f"--ray-replicas is {text!r}, expected a number, or the least and the most as 1:4")
    least = int(match[1])
    return least, int(match[2] or least)
