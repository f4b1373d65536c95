"""zstd frames of planes, or of what a prediction leaves of them."""

from collections.abc import Callable

import numpy as np
import zstandard

from aecnn_deploy.codec.layout import Payload, PlaneLayout, Planes
from aecnn_deploy.errors import CodecError, PayloadSizeError, SettingsError

DEFAULT_LEVEL = 3
MIN_LEVEL, MAX_LEVEL = 1, 22
_LONG_MATCH = 7  # the longest that zstd's fast strategy may ask for
MAX_WINDOW_BYTES = 8 << 20  # what RFC 8878 asks every decoder to support, and all that this one takes


def zstd_encoder(level: int) -> Callable[[Planes], bytes]:
    """A function that makes one frame of contiguous planes. Raises SettingsError: no such level."""
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


def zstd_decoder(layout: PlaneLayout) -> Callable[[Payload], Planes]:
    """A function that reads untrusted bytes as exactly one frame of C·H·W bytes: read-only uint8 (C, H, W)."""
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
