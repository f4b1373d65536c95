"""Which coder for this frame: the one with the least of encoding, sending and decoding, or the one with fewest bytes.

The paper's rule, no entropy coding where it takes longer than it saves, with this device's and this edge's measured
speeds and the link's measured rate: minimise encode + bytes / rate + decode over all coders that both halves have.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from aecnn_deploy.codec import (
    DEFAULT_LEVEL,
    DELTA_CODERS,
    DeltaEncoder,
    EncodedPlanes,
    PlaneDecoder,
    PlaneDictionary,
    PlaneEncoder,
)
from aecnn_deploy.errors import CodecError
from aecnn_deploy.planning.link import bytes_on_link
from aecnn_deploy.planning.link_rate import LinkRate
from aecnn_deploy.wire import HEADER_BYTES

__all__ = ["CoderChoice", "CoderCost", "LinkRate", "Objective", "Reference"]

_EVERY = 64  # frames; one of so many is coded by all coders, to see how they do now
_DELTA_EVERY = 8  # frames; the same for differences: how alike frames are can change at once
_EARLY = frozenset({2, 5, 11, 23})  # and these: one frame says little
_NEW = 0.25  # weight of a new measurement against the mean of those before
_LEAST = 0.1  # the same for the share of bytes, once there are ten

Objective = Literal["time", "bytes"]


@dataclass(frozen=True, slots=True)
class Reference:
    """Planes (C, H, W) that the edge has, too: those of the request ``distance`` ids before the next one."""

    planes: npt.NDArray[np.uint8]
    distance: int


@dataclass(frozen=True, slots=True)
class CoderCost:
    """What one coder is expected to take for a frame; ``bytes`` are the payload's."""

    coder: str
    bytes: float
    encode_ms: float
    send_ms: float
    decode_ms: float

    @property
    def total_ms(self) -> float:
        return self.encode_ms + self.send_ms + self.decode_ms


@dataclass(slots=True)
class _Known:
    """Means of one coder's figures. ``share``: its bytes, of what all coders of single frames take in the mean.

    Frames differ more than coders do: only bytes of the same frame are compared.
    """

    share: float
    encode_ms: float
    decode_ms: float
    used: bool = False  # since all coders were last measured
    count: int = 0  # frames that the share stands on
    always: float | None = None  # bytes, where every frame so far took the same, as packed ones do

    def compared(self, size: int, share: float) -> None:
        """One more frame was coded by this coder and others."""
        self.always = size if not self.count or self.always == size else None
        self.count += 1
        self.share += max(1 / self.count, _LEAST) * (share - self.share)

    def took(self, encode_ms: float) -> None:
        """One more frame was coded."""
        self.encode_ms += _NEW * (encode_ms - self.encode_ms)


class CoderChoice:
    """Encodes each frame of one variant by the coder that is expected to do best. For one thread.

    ``coders``: those that both halves have, of differences too. One that cannot take planes of this shape, or whose
    dictionary the bundle lacks, is left out. ``objective``: "time" for encoding, sending and decoding together, "bytes"
    for the payload alone. Differences are made only where there is a ``Reference``, and where one turns out larger than
    its base's frames usually are (the camera turned, the light went on), the smaller of both is sent.

    The first frame, four more of the next 32, and then one of 64, is coded and decoded by all of them (by those of
    differences one of 8); in between, the chosen coder's figures follow its frames. Decoding counts with this machine's
    time at first, then more and more with the edge's own. One coder alone is not measured.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        bits: int,
        coders: Sequence[str],
        *,
        level: int = DEFAULT_LEVEL,
        objective: Objective = "time",
        dictionary: PlaneDictionary | None = None,
    ) -> None:
        self.offered, self.objective = tuple(coders), objective
        self._frames_by: dict[str, PlaneEncoder] = {}
        self._deltas_by: dict[str, DeltaEncoder] = {}
        reason = CodecError("none was offered")
        for name in coders:
            try:
                if name in DELTA_CODERS:
                    self._deltas_by[name] = DeltaEncoder(shape, bits, coder=name, level=level)
                else:
                    self._frames_by[name] = PlaneEncoder(shape, bits, coder=name, level=level, dictionary=dictionary)
            except CodecError as exc:
                if len(coders) == 1:
                    raise
                reason = exc
        # Where a difference does not pay, its base's frame is sent.
        self._deltas_by = {
            name: delta for name, delta in self._deltas_by.items() if delta.coder.base in self._frames_by
        }
        if not self._frames_by:
            raise CodecError(f"none of the coders {', '.join(coders)} takes planes of {shape}: {reason}")
        self._decoder = PlaneDecoder(shape, bits, dictionary=dictionary)
        self._known: dict[str, _Known] = {}
        self._mean_bytes = 0.0  # of all coders of single frames, for frames as they are now
        self._frames, self._delta_frames = 0, 0

    def encode(
        self, planes: npt.NDArray[np.uint8], ms_per_byte: float, reference: Reference | None = None
    ) -> tuple[str, EncodedPlanes]:
        """The chosen coder, and the frame coded by it: raw where that does not shrink the frame."""
        if len(self._frames_by) == 1 and not self._deltas_by:
            (name,) = self._frames_by
            return name, self._frames_by[name].encode(planes)
        measured = self._measure(planes, reference)
        names = {*self._frames_by, *(self._deltas_by if reference else ())}
        name = next(cost.coder for cost in self.costs(ms_per_byte) if cost.coder in names)
        encoded = measured[name] if name in measured else self._seen(name, planes, reference)
        if name in self._deltas_by:
            base = self._deltas_by[name].coder.base
            if len(encoded.payload) > self._bytes(base):
                alone = measured[base] if base in measured else self._seen(base, planes, None)
                if len(alone.payload) < len(encoded.payload):
                    name, encoded = base, alone
        self._known[name].used = True
        return name, encoded

    def decoded(self, coder: str, took_ms: float) -> None:
        """The edge decoded a frame of ``coder`` in ``took_ms``."""
        if known := self._known.get(coder):
            known.decode_ms += _NEW * (took_ms - known.decode_ms)

    def costs(self, ms_per_byte: float) -> tuple[CoderCost, ...]:
        """All coders that were measured, the best by the objective first; empty before the first frame."""
        costs = (
            CoderCost(
                name,
                self._bytes(name),
                known.encode_ms,
                bytes_on_link(HEADER_BYTES + self._bytes(name)) * ms_per_byte,
                known.decode_ms,
            )
            for name, known in self._known.items()
        )
        return tuple(sorted(costs, key=lambda cost: cost.total_ms if self.objective == "time" else cost.bytes))

    def _bytes(self, name: str) -> float:
        """What a frame is expected to take."""
        known = self._known[name]
        if known.always is not None:
            return known.always
        return min(known.share * self._mean_bytes, self._decoder.layout.raw_bytes)  # no coder sends more than raw

    def _measure(self, planes: npt.NDArray[np.uint8], reference: Reference | None) -> dict[str, EncodedPlanes]:
        """The frame by every coder whose turn it is to be measured."""
        made: dict[str, EncodedPlanes] = {}
        mean_bytes = 0.0  # of this frame
        if self._frames % _EVERY == 0 or self._frames in _EARLY:
            made = {name: self._measured(name, planes, None) for name in self._frames_by}
            mean_bytes = float(np.mean([len(encoded.payload) for encoded in made.values()]))
            self._follow(mean_bytes)
        self._frames += 1
        if reference:
            if self._delta_frames % _DELTA_EVERY == 0:
                for name, delta in self._deltas_by.items():
                    base = delta.coder.base
                    if base not in made:
                        made[base] = self._seen(base, planes, None)
                    mean_bytes = mean_bytes or len(made[base].payload) / self._known[base].share
                    made[name] = self._measured(name, planes, reference)
            self._delta_frames += 1
        for name, encoded in made.items():
            self._known[name].compared(len(encoded.payload), len(encoded.payload) / mean_bytes)
        return made

    def _follow(self, mean_bytes: float) -> None:
        self._mean_bytes += (_NEW if self._mean_bytes else 1.0) * (mean_bytes - self._mean_bytes)

    def _measured(self, name: str, planes: npt.NDArray[np.uint8], reference: Reference | None) -> EncodedPlanes:
        """The frame by one coder, encoded and decoded."""
        if name not in self._known:  # the first time makes tables and buffers: not a frame's
            self._decode(self._timed(name, planes, reference)[0], reference)
        encoded, encode_ms = self._timed(name, planes, reference)
        began_s = time.perf_counter()
        self._decode(encoded, reference)
        decode_ms = (time.perf_counter() - began_s) * 1e3
        known = self._known.get(name)
        if known is None:
            self._known[name] = _Known(0.0, encode_ms, decode_ms)
        else:
            known.took(encode_ms)
            if not known.used:  # one slow answer of long ago must not keep a coder out for good
                known.decode_ms = decode_ms
            known.used = False
        return encoded

    def _seen(self, name: str, planes: npt.NDArray[np.uint8], reference: Reference | None) -> EncodedPlanes:
        """The frame by a coder that was measured before."""
        encoded, took_ms = self._timed(name, planes, reference)
        known = self._known[name]
        known.took(took_ms)
        if known.always != len(encoded.payload):
            known.always = None
        if name in self._frames_by:
            if known.always is None:  # else it says nothing of the frame
                self._follow(len(encoded.payload) / known.share)
        else:
            known.share += _NEW * (len(encoded.payload) / self._mean_bytes - known.share)
        return encoded

    def _timed(
        self, name: str, planes: npt.NDArray[np.uint8], reference: Reference | None
    ) -> tuple[EncodedPlanes, float]:
        began_s = time.perf_counter()
        if name in self._frames_by:
            encoded = self._frames_by[name].encode(planes)
        else:
            assert reference is not None
            encoded = self._deltas_by[name].encode(planes, reference.planes, reference.distance)
        return encoded, (time.perf_counter() - began_s) * 1e3

    def _decode(self, encoded: EncodedPlanes, reference: Reference | None) -> None:
        self._decoder.decode(
            encoded.coder_id, encoded.payload, lambda _: reference.planes if reference is not None else None
        )
