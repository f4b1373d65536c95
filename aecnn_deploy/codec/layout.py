"""What both halves know of the planes of one variant."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aecnn_deploy.errors import CodecError

Planes = npt.NDArray[np.uint8]
Payload = bytes | memoryview


@dataclass(frozen=True, slots=True)
class PlaneDictionary:
    """A zstd dictionary that a bundle holds for one variant: of what ``predictor`` leaves of its planes."""

    predictor: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PlaneLayout:
    """``shape`` (C, H, W) of the planes, ``bits`` of each value, and the bundle's dictionary for them, if it has one.

    A value takes one byte before coding, whatever its bits. Raises CodecError: a side below 1, bits not in 1..8.
    """

    shape: tuple[int, int, int]
    bits: int
    dictionary: PlaneDictionary | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise CodecError(f"planes have the shape (C, H, W), each at least 1, got {self.shape}; check the manifest")
        if not 1 <= self.bits <= 8:
            raise CodecError(f"planes have 1 to 8 bits, got {self.bits}; check the manifest")

    @property
    def raw_bytes(self) -> int:
        """C·H·W: bytes before coding."""
        channels, height, width = self.shape
        return channels * height * width

    @property
    def mask(self) -> int:
        """The largest value: 2**bits - 1."""
        return (1 << self.bits) - 1

    def check_values(self, planes: Planes) -> None:
        """Raises CodecError: a value does not fit in ``bits``."""
        if self.bits < 8 and (largest := int(planes.max())) > self.mask:
            raise CodecError(
                f"planes hold the value {largest}, over the limit of {self.mask} for {self.bits} bits; "
                "use the same variant on both halves"
            )
