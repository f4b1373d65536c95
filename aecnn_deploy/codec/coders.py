"""Lossless coders by name and wire id: where a new way to turn planes into bytes is added.

A coder's wire id goes into the header of every INFER message (docs/wire-format.md) and never changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import zstandard

from aecnn_deploy.errors import CodecError, PayloadSizeError, SettingsError

Planes = npt.NDArray[np.uint8]
Payload = bytes | memoryview

DEFAULT_LEVEL = 3
MIN_LEVEL, MAX_LEVEL = 1, 22
_LONG_MATCH = 7  # the longest that zstd's fast strategy may ask for
MAX_WINDOW_BYTES = 8 << 20  # what RFC 8878 asks every decoder to support, and all that this one takes


@dataclass(frozen=True, slots=True)
class PlaneLayout:
    """What both halves know of the planes of one variant: ``shape`` (C, H, W) and ``bits`` of each value.

    A value takes one byte before coding, whatever its bits. Raises CodecError: a side below 1, bits not in 1..8.
    """

    shape: tuple[int, int, int]
    bits: int

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

    def check_values(self, planes: Planes) -> None:
        """Raises CodecError: a value does not fit in ``bits``."""
        if self.bits < 8 and (largest := int(planes.max())) >> self.bits:
            raise CodecError(
                f"planes hold the value {largest}, over the limit of {(1 << self.bits) - 1} for {self.bits} bits; "
                "use the same variant on both halves"
            )


Encode = Callable[[Planes], bytes]
Decode = Callable[[Payload], Planes]


@dataclass(frozen=True, slots=True)
class Coder:
    """One coder: ``make_encode(layout, level)`` and ``make_decode(layout)`` give functions that keep their state.

    An encode function gets C-contiguous planes that were checked against the layout. A decode function gets
    untrusted bytes: it raises CodecError for all that is wrong, and takes no memory that the bytes only claim.
    Neither is safe to call from two threads at once.
    """

    name: str
    wire_id: int
    make_encode: Callable[[PlaneLayout, int], Encode]
    make_decode: Callable[[PlaneLayout], Decode]


def _raw_encode(layout: PlaneLayout, level: int) -> Encode:
    return lambda planes: planes.tobytes()


def _raw_decode(layout: PlaneLayout) -> Decode:
    def decode(payload: Payload) -> Planes:
        if (got := memoryview(payload).nbytes) != layout.raw_bytes:
            raise PayloadSizeError("raw payload holds", got, layout.raw_bytes)
        return np.frombuffer(payload, np.uint8).reshape(layout.shape)

    return decode


def _zstd_encode(layout: PlaneLayout, level: int) -> Encode:
    if not MIN_LEVEL <= level <= MAX_LEVEL:
        raise SettingsError(f"zstd has the levels {MIN_LEVEL} to {MAX_LEVEL}, got {level}")
    # The message has a checksum of its own, and the level's own window shrinks to the planes' size.
    matching = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
    # Planes of few bits are noise to a dictionary coder: its short matches cost more than the literals that they stand
    # for. With long matches only, zstd's entropy coder does the work; the smaller of both frames is sent.
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, min_match=_LONG_MATCH, strategy=zstandard.STRATEGY_FAST, write_content_size=1, write_checksum=0
    )
    entropy = zstandard.ZstdCompressor(compression_params=parameters)

    def encode(planes: Planes) -> bytes:
        a, b = matching.compress(planes.data), entropy.compress(planes.data)
        return a if len(a) <= len(b) else b

    return encode


def _zstd_decode(layout: PlaneLayout) -> Decode:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)

    def decode(payload: Payload) -> Planes:
        if payload[:4] != zstandard.FRAME_HEADER:  # also keeps skippable frames out, whose "size" means nothing
            raise CodecError(
                f"payload begins with {bytes(payload[:4])!r}, which is no zstd frame; send coder raw or zstd"
            )
        try:
            frame = zstandard.get_frame_parameters(payload)
            _check_frame(frame, layout)
            # decompress() takes the memory that the frame declares, so it comes after the check.
            data = decompressor.decompress(payload, allow_extra_data=False)
        except zstandard.ZstdError as exc:
            raise CodecError(f"payload is no whole zstd frame: {exc}; send exactly one frame") from None
        return np.frombuffer(data, np.uint8).reshape(layout.shape)

    return decode


def _check_frame(frame: zstandard.FrameParameters, layout: PlaneLayout) -> None:
    if frame.content_size == zstandard.CONTENTSIZE_UNKNOWN:
        raise CodecError("zstd frame declares no content size; write it into the frame header")
    if frame.content_size != layout.raw_bytes:
        raise PayloadSizeError("zstd frame declares", frame.content_size, layout.raw_bytes)
    if frame.dict_id:
        raise CodecError(f"zstd frame needs dictionary {frame.dict_id}, this version has none; compress without one")
    # A single-segment frame states its content as the window, and takes no more than that.
    if frame.window_size > max(MAX_WINDOW_BYTES, layout.raw_bytes):
        raise CodecError(
            f"zstd frame wants a window of {frame.window_size} bytes, over the limit of {MAX_WINDOW_BYTES}; "
            "compress with a smaller window_log"
        )


RAW = Coder("raw", 0, _raw_encode, _raw_decode)
ZSTD = Coder("zstd", 1, _zstd_encode, _zstd_decode)

CODERS: Mapping[str, Coder] = MappingProxyType({coder.name: coder for coder in (RAW, ZSTD)})
_BY_ID: Mapping[int, Coder] = MappingProxyType({coder.wire_id: coder for coder in CODERS.values()})


def coder_names() -> tuple[str, ...]:
    """The names of all coders, in the order of their wire ids."""
    return tuple(CODERS)


def coder_by_name(name: str) -> Coder:
    """The coder ``name``. Raises CodecError: there is none, with the names of those that are."""
    try:
        return CODERS[name]
    except KeyError:
        raise CodecError(f"unknown coder {name!r}; choose one of {', '.join(CODERS)}") from None


def coder_by_id(wire_id: int) -> Coder:
    """The coder of a message header. Raises CodecError: there is none, with the ids of those that are."""
    try:
        return _BY_ID[wire_id]
    except KeyError:
        known = ", ".join(f"{coder.wire_id} ({coder.name})" for coder in CODERS.values())
        raise CodecError(f"unknown coder id {wire_id}; this version knows {known}; upgrade the older half") from None
