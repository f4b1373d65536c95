"""How a bundle's models are to be served by NVIDIA Triton: what an operator may choose, checked when it is chosen."""

import re
from dataclasses import dataclass

from aecnn_deploy.bundle.manifest import ENGINE_SOURCES, ONNXRUNTIME
from aecnn_deploy.errors import SettingsError

AUTO, TENSORRT = "auto", "tensorrt"
BACKENDS = (AUTO, ONNXRUNTIME, TENSORRT)
CPU, GPU = "cpu", "gpu"
DEFAULT_BATCH = 16  # of ONNX files, as an edge's own max_batch; an engine's profile may be smaller

BUNDLE_PLACE = "{bundle}"

_MOST_BATCH = 1024
_MAX_PREFIX = 64
_PREFIX = re.compile(r"[A-Za-z0-9._-]*", re.ASCII)
_MOST_US = 3_600_000_000  # an hour


@dataclass(frozen=True, slots=True)
class TritonSettings:
    """The choices behind a ``config.pbtxt``. Raises SettingsError: one is out of range, or two do not go together."""

    backend: str = AUTO  # of the tails; auto takes an engine of full TensorRT where the bundle has one
    precision: str | None = None  # a key of ENGINE_SOURCES; None: ONNX files in fp32, engines as an edge prefers them
    max_batch: int | None = None  # images; None: DEFAULT_BATCH, or an engine's largest batch where that is less
    preferred_batches: tuple[int, ...] = ()  # sizes that Triton sends at once; none: whatever waits
    queue_delay_us: int = 0  # longest wait of a request for others to run with it
    queue_timeout_us: int = 0  # a request that waited so long is refused; 0: none is
    max_queue: int = 256  # requests that may wait for one model; 0: any number
    device: str | None = None  # CPU or GPU; None: plans on GPUs, ONNX files on the CPU
    gpus: tuple[int, ...] = ()  # GPU ids that get instances; none: every GPU of the server
    instances: int = 1  # copies of each model, on each of its GPUs
    threads: int = 0  # of ONNX Runtime inside one instance; 0: every core
    warm_up: bool = True  # run zeros at batch 1 and at the largest before a model is ready
    prefix: str = ""  # what the models' names begin with; BUNDLE_PLACE in it is the bundle id's first 12 digits

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise SettingsError(f"no Triton backend {self.backend!r}; choose one of {', '.join(BACKENDS)}")
        if self.precision is not None and self.precision not in ENGINE_SOURCES:
            raise SettingsError(f"no model file is in {self.precision!r}; choose one of {', '.join(ENGINE_SOURCES)}")
        if self.max_batch is not None:
            _check("max_batch", self.max_batch, 1, _MOST_BATCH)
        _check("queue_delay_us", self.queue_delay_us, 0, _MOST_US)
        _check("queue_timeout_us", self.queue_timeout_us, 0, _MOST_US)
        _check("max_queue", self.max_queue, 0, 1 << 20)
        _check("instances", self.instances, 1, 256)
        _check("threads", self.threads, 0, 1024)
        self.check_preferred(self.max_batch or _MOST_BATCH)
        if self.queue_timeout_us and self.queue_delay_us >= self.queue_timeout_us:
            raise SettingsError(
                f"requests wait up to {self.queue_delay_us} us for others and are refused after "
                f"{self.queue_timeout_us} us; give them a longer time, or a shorter wait"
            )
        if not _PREFIX.fullmatch(self.prefix.replace(BUNDLE_PLACE, "")) or len(self.prefix) > _MAX_PREFIX:
            raise SettingsError(
                f"the prefix is {self.prefix!r}, expected at most {_MAX_PREFIX} letters, digits, '.', '_' and '-', "
                f"and {BUNDLE_PLACE} for the bundle id's first digits"
            )
        if self.prefix[:1] in (".", "_", "-"):
            raise SettingsError(f"the prefix is {self.prefix!r}, expected a letter or a digit at its beginning")
        self._check_device()

    def check_preferred(self, max_batch: int) -> None:
        """Raises SettingsError: the preferred sizes do not ascend, or leave 1 to ``max_batch``."""
        sizes = self.preferred_batches
        if sizes != tuple(sorted(set(sizes))) or any(not 1 <= size <= max_batch for size in sizes):
            raise SettingsError(
                f"preferred batches are {sizes}, expected ascending sizes from 1 to the largest batch, {max_batch}"
            )

    def _check_device(self) -> None:
        if self.device not in (None, CPU, GPU):
            raise SettingsError(f"no device {self.device!r}; choose {CPU} or {GPU}")
        if self.device == CPU and self.backend == TENSORRT:
            raise SettingsError(f"{TENSORRT} plans run on a GPU only; leave out the device, or choose {ONNXRUNTIME}")
        if self.gpus and self.device != GPU:
            raise SettingsError(f"GPU ids {self.gpus} go with the device {GPU}, got {self.device or 'none'}")
        if len(set(self.gpus)) != len(self.gpus) or any(not 0 <= number < 1024 for number in self.gpus):
            raise SettingsError(f"GPU ids are {self.gpus}, expected different numbers from 0")


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise SettingsError(f"{name} is {value}, expected {least} to {most}")


DEFAULTS = TritonSettings()
