"""Planes as their difference to those of an earlier frame of the same stream: docs/wire-format.md, section 3.

Neighbouring frames of a camera are alike, and a difference of alike planes is mostly zeros. Both halves must have the
earlier planes: which ones they have is the session's business, and the payload's first byte says how many requests ago.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from aecnn_deploy.codec.coders import CODERS
from aecnn_deploy.codec.layout import Payload, PlaneLayout, Planes
from aecnn_deploy.errors import CodecError, NoReferenceError

MAX_DISTANCE = 255  # requests; one byte

Earlier = Callable[[int], Planes | None]  # distance -> planes of the request so many ids before, None: not there


@dataclass(frozen=True, slots=True)
class DeltaCoder:
    """Codes differences by the coder ``base``, each value ``half`` of its range further where that is true.

    A picture coder predicts a value from its neighbours: for it small differences of either sign have to be near to
    each other.
    """

    name: str
    wire_id: int
    base: str
    half: bool

    def difference(self, layout: PlaneLayout, planes: Planes, earlier: Planes) -> Planes:
        """uint8 (C, H, W), modulo 2**bits."""
        changed = np.subtract(planes, earlier)
        if self.half:
            changed += np.uint8((layout.mask + 1) // 2)
        return np.bitwise_and(changed, layout.mask, out=changed)

    def undo(self, layout: PlaneLayout, changed: Planes, earlier: Planes) -> Planes:
        """The planes again."""
        planes = np.add(changed, earlier)
        if self.half:
            planes -= np.uint8((layout.mask + 1) // 2)
        return np.bitwise_and(planes, layout.mask, out=planes)


_ALL = (DeltaCoder("delta-zstd", 8, "zstd", half=False), DeltaCoder("delta-jpegls", 9, "jpegls", half=True))
DELTA_CODERS: Mapping[str, DeltaCoder] = MappingProxyType({coder.name: coder for coder in _ALL})
DELTA_BY_ID: Mapping[int, DeltaCoder] = MappingProxyType({coder.wire_id: coder for coder in _ALL})


def delta_names() -> tuple[str, ...]:
    """The names of the coders of differences that this installation has, in the order of their wire ids."""
    return tuple(name for name, coder in DELTA_CODERS.items() if CODERS[coder.base].is_installed())


def split_delta(payload: Payload, earlier: Earlier) -> tuple[Planes, Payload]:
    """The earlier planes that an untrusted payload refers to, and the rest of it.

    Raises CodecError: it is too short, or refers to itself. NoReferenceError: the planes are not there.
    """
    if len(payload) < 2 or not payload[0]:
        raise CodecError("a difference begins with a distance of 1 to 255 requests, and its planes follow")
    planes = earlier(payload[0])
    if planes is None:
        raise NoReferenceError(payload[0])
    return planes, payload[1:]
