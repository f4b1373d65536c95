"""How long one image takes by one path, part by part, and how that depends on the link's rate."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from types import MappingProxyType
from typing import Literal

from aecnn_deploy.errors import SettingsError

Path = Literal["split", "full", "local"]
SPLIT: Path = "split"
FULL: Path = "full"
LOCAL: Path = "local"

SEND = "send"


@dataclass(frozen=True, slots=True)
class Part:
    """Milliseconds of one stage: the median, and how far the 10th and 90th percentile lie below and above it."""

    ms: float
    below_ms: float = 0.0
    above_ms: float = 0.0

    def times(self, factor: float) -> "Part":
        return Part(self.ms * factor, self.below_ms * factor, self.above_ms * factor)


NO_TIME = Part(0.0)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The completion time of one image (AECNN, eq. 4) with everything it is made of.

    ``stages``: in the order in which they happen. A split image: read, head, encode, send, fixed, overhead, decode,
    tail; full offloading: read, encode, send, fixed, overhead, decode, full; local computing: read, local. Where the
    downlink's rate is given, ``answer`` stands after overhead.
    ``sent_bytes``: the message, as ``run-device`` counts ``wire_bytes``; ``link_bytes``: with the headers of every
    packet. Both are 0 where nothing is sent.
    """

    path: Path
    stages: Mapping[str, Part]
    variant: str | None = None
    coder: str | None = None
    head: str | None = None  # precision
    image_coding: str | None = None
    sent_bytes: float = 0.0
    link_bytes: float = 0.0

    @property
    def label(self) -> str:
        """What a person calls it."""
        if self.path == SPLIT:
            return f"{self.variant}, {self.coder}"
        return f"full offloading, {self.image_coding}" if self.path == FULL else "local computing"

    @property
    def parts(self) -> dict[str, float]:
        """Milliseconds of every stage, in order; ``total_ms`` is their sum."""
        return {name: part.ms for name, part in self.stages.items()}

    @property
    def total_ms(self) -> float:
        return sum(part.ms for part in self.stages.values())

    @property
    def low_ms(self) -> float:
        """Of a fast image: the stages' distances to their 10th percentiles, added as those of independent stages."""
        return max(0.0, self.total_ms - sqrt(sum(part.below_ms**2 for part in self.stages.values())))

    @property
    def high_ms(self) -> float:
        """Of a slow image: the same with the 90th percentiles."""
        return self.total_ms + sqrt(sum(part.above_ms**2 for part in self.stages.values()))

    @property
    def send_ms(self) -> float:
        return self.stages[SEND].ms if SEND in self.stages else 0.0

    @property
    def link_ms(self) -> float:
        """Sending, and the time that an empty request takes."""
        return self.send_ms + (self.stages["fixed"].ms if "fixed" in self.stages else 0.0)

    @property
    def coding_ms(self) -> float:
        return sum(self.stages[name].ms for name in ("encode", "decode") if name in self.stages)

    @property
    def constant_ms(self) -> float:
        """What does not depend on the rate: ``total_ms`` = ``constant_ms`` + ``link_bytes`` × 8e3 / rate."""
        return sum(part.ms for name, part in self.stages.items() if name != SEND)

    def at(self, rate_bps: float) -> "Prediction":
        """The same image over a link of another rate. Raises SettingsError: it is not positive."""
        if not rate_bps > 0:
            raise SettingsError(f"the link's rate is {rate_bps:g} bit/s, expected a positive number")
        if SEND not in self.stages:
            return self
        ms = self.link_bytes * 8e3 / rate_bps
        sending = self.stages[SEND]
        scaled = sending.times(ms / sending.ms) if sending.ms > 0 else Part(ms)
        return replace(self, stages=MappingProxyType({**self.stages, SEND: scaled}))

    def at_ms(self, rate_bps: float) -> float:
        """``at(rate_bps).total_ms``, for many rates."""
        return self.constant_ms + self.link_bytes * 8e3 / rate_bps

    def rate_for(self, deadline_ms: float) -> float | None:
        """Bits a second from which it takes ``deadline_ms`` or less; 0: any rate; None: none does."""
        left_ms = deadline_ms - self.constant_ms
        if self.link_bytes == 0:
            return 0.0 if left_ms >= 0 else None
        return self.link_bytes * 8e3 / left_ms if left_ms > 0 else None

    def sentence(self) -> str:
        """The parts in order, e.g. ``read 3.1 + head 35.2 + … = 48.2 ms``."""
        return " + ".join(f"{name} {part.ms:.1f}" for name, part in self.stages.items()) + f" = {self.total_ms:.1f} ms"
