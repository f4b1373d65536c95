"""Which coder for this frame: the one with the least of encoding, sending and decoding.

The paper's rule, no entropy coding where it takes longer than it saves, with this device's and this edge's measured
speeds and the link's measured rate: minimise encode + bytes / rate + decode over all coders that both halves have.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aecnn_deploy.codec import EncodedPlanes, PlaneDecoder, PlaneEncoder
from aecnn_deploy.errors import CodecError

_EVERY = 64  # frames; one of so many is coded by all coders, to see how they do now
_NEW = 0.25  # weight of a new measurement against the mean of those before
_WINDOW = 32  # frames that the rate is measured over
_GUESS = 0.0008  # ms a byte before anything was measured: 10 Mbit/s


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
class LinkRate:
    """The link's rate, from what requests of known size took beyond a message without content.

    ``fixed_ms``: there and back for an empty message, the least that was seen.
    """

    fixed_ms: float | None = None
    _samples: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW), init=False)  # ms a byte

    def pinged(self, took_ms: float) -> None:
        """An empty message went there and back."""
        self.fixed_ms = took_ms if self.fixed_ms is None else min(self.fixed_ms, took_ms)

    def heard(self, wire_bytes: int, link_ms: float) -> None:
        """A request of ``wire_bytes`` took ``link_ms`` on the link, its answer included."""
        if self.fixed_ms is not None:
            self._samples.append(max(0.0, link_ms - self.fixed_ms) / wire_bytes)

    @property
    def ms_per_byte(self) -> float:
        """The lower quartile over the last frames, 0 where the link is too fast to measure; 10 Mbit/s before them.

        What disturbs a sample, another process or a lost packet, only makes it longer.
        """
        return sorted(self._samples)[len(self._samples) // 4] if self._samples else _GUESS

    @property
    def frames(self) -> int:
        """How many frames it stands on."""
        return len(self._samples)


@dataclass(slots=True)
class _Known:
    """Means of one coder's figures, newer ones count more."""

    bytes: float
    encode_ms: float
    decode_ms: float
    used: bool = False  # since all coders were last measured

    def seen(self, encoded: EncodedPlanes, encode_ms: float) -> None:
        """One more frame."""
        self.bytes += _NEW * (len(encoded.payload) - self.bytes)
        self.encode_ms += _NEW * (encode_ms - self.encode_ms)


class CoderChoice:
    """Encodes each frame of one variant by the coder that is expected to be done first. For one thread.

    ``coders``: those that both halves have. A coder that cannot take planes of this shape is left out. The first frame,
    and then one of 64, is coded and decoded by all of them; in between, the chosen coder's figures follow its frames.
    Decoding counts with this machine's time at first, then more and more with the edge's own.
    """

    def __init__(self, shape: tuple[int, int, int], bits: int, coders: Sequence[str], *, level: int) -> None:
        self.offered = tuple(coders)
        self._encoders: dict[str, PlaneEncoder] = {}
        for name in coders:
            try:
                self._encoders[name] = PlaneEncoder(shape, bits, coder=name, level=level)
            except CodecError:
                continue
        if not self._encoders:
            raise CodecError(f"none of the coders {', '.join(coders)} takes planes of {shape}")
        self._decoder = PlaneDecoder(shape, bits)
        self._known: dict[str, _Known] = {}
        self._frames = 0

    def encode(self, planes: npt.NDArray[np.uint8], ms_per_byte: float) -> tuple[str, EncodedPlanes]:
        """The chosen coder, and the frame coded by it: raw where that does not shrink the frame."""
        measured = self._measure_all(planes) if self._frames % _EVERY == 0 else {}
        self._frames += 1
        name = self.costs(ms_per_byte)[0].coder
        known = self._known[name]
        if name in measured:
            encoded = measured[name]
        else:
            encoded, took_ms = self._timed(name, planes)
            known.seen(encoded, took_ms)
        known.used = True
        return name, encoded

    def decoded(self, coder: str, took_ms: float) -> None:
        """The edge decoded a frame of ``coder`` in ``took_ms``."""
        known = self._known[coder]
        known.decode_ms += _NEW * (took_ms - known.decode_ms)

    def costs(self, ms_per_byte: float) -> tuple[CoderCost, ...]:
        """All coders, the cheapest first; empty before the first frame."""
        costs = (
            CoderCost(name, known.bytes, known.encode_ms, known.bytes * ms_per_byte, known.decode_ms)
            for name, known in self._known.items()
        )
        return tuple(sorted(costs, key=lambda cost: cost.total_ms))

    def _measure_all(self, planes: npt.NDArray[np.uint8]) -> dict[str, EncodedPlanes]:
        """The frame by every coder."""
        made = {}
        for name in self._encoders:
            if name not in self._known:  # the first time makes tables and buffers: not a frame's
                first, _ = self._timed(name, planes)
                self._decoder.decode(first.coder_id, first.payload)
            encoded, encode_ms = self._timed(name, planes)
            began_s = time.perf_counter()
            self._decoder.decode(encoded.coder_id, encoded.payload)
            decode_ms = (time.perf_counter() - began_s) * 1e3
            known = self._known.get(name)
            if known is None:
                self._known[name] = _Known(len(encoded.payload), encode_ms, decode_ms)
            else:
                known.seen(encoded, encode_ms)
                if not known.used:  # one slow answer of long ago must not keep a coder out for good
                    known.decode_ms = decode_ms
                known.used = False
            made[name] = encoded
        return made

    def _timed(self, name: str, planes: npt.NDArray[np.uint8]) -> tuple[EncodedPlanes, float]:
        began_s = time.perf_counter()
        encoded = self._encoders[name].encode(planes)
        return encoded, (time.perf_counter() - began_s) * 1e3
