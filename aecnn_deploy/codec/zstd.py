"""zstd frames of planes, or of what a prediction leaves of them."""

from collections.abc import Callable

import numpy as np
import zstandard

from aecnn_deploy.codec.layout import Payload, PlaneDictionary, PlaneLayout, Planes
from aecnn_deploy.errors import CodecError, PayloadSizeError, SettingsError

DEFAULT_LEVEL = 3
MIN_LEVEL, MAX_LEVEL = 1, 22
_LONG_MATCH = 7  # the longest that zstd's fast strategy may ask for
MAX_WINDOW_BYTES = 8 << 20  # what RFC 8878 asks every decoder to support, and all that this one takes
MAX_DICTIONARY_BYTES = 112 << 10  # zstd's own default
_DICTIONARY_MAGIC = 0xEC30A437


def zstd_encoder(level: int) -> Callable[[Planes], bytes]:
    """A function that makes one frame of contiguous planes. Raises SettingsError: no such level."""
    return _smallest(_compressors(level, None))


def residual_encoder(level: int) -> Callable[[Planes], bytes]:
    """The same for what a prediction leaves, in half of the time: short matches save nothing there."""
    (_, entropy) = _compressors(level, None)
    return lambda planes: entropy.compress(planes.data)


def dictionary_encoder(level: int, dictionary: PlaneDictionary) -> Callable[[Planes], bytes]:
    """A function that makes one frame of contiguous planes with the dictionary.

    Raises SettingsError: no such level. CodecError: the dictionary is damaged.
    """
    return _smallest(_compressors(level, _loaded(dictionary)))


def _smallest(compressors: list[zstandard.ZstdCompressor]) -> Callable[[Planes], bytes]:
    return lambda planes: min((compressor.compress(planes.data) for compressor in compressors), key=len)


def _compressors(level: int, past: zstandard.ZstdCompressionDict | None) -> list[zstandard.ZstdCompressor]:
    if not MIN_LEVEL <= level <= MAX_LEVEL:
        raise SettingsError(f"zstd has the levels {MIN_LEVEL} to {MAX_LEVEL}, got {level}")
    # The message has a checksum of its own, the level's own window shrinks to the planes' size, and both halves have
    # the bundle's one dictionary: its id would be a byte for nothing.
    matching = zstandard.ZstdCompressor(
        level=level, dict_data=past, write_content_size=True, write_checksum=False, write_dict_id=False
    )
    # Planes of few bits are noise to a dictionary coder: its short matches cost more than the literals that they stand
    # for. With long matches only, zstd's entropy coder does the work; the smaller of both frames is sent.
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        min_match=_LONG_MATCH,
        strategy=zstandard.STRATEGY_FAST,
        write_content_size=1,
        write_checksum=0,
        write_dict_id=0,
    )
    return [matching, zstandard.ZstdCompressor(compression_params=parameters, dict_data=past)]


def zstd_decoder(layout: PlaneLayout) -> Callable[[Payload], Planes]:
    """A function that reads untrusted bytes as exactly one frame of C·H·W bytes: read-only uint8 (C, H, W)."""
    return _decoder(layout, zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES), 0)


def dictionary_decoder(layout: PlaneLayout, dictionary: PlaneDictionary) -> Callable[[Payload], Planes]:
    """The same for frames that were made with the dictionary. Raises CodecError: it is damaged."""
    past = _loaded(dictionary)
    decompressor = zstandard.ZstdDecompressor(dict_data=past, max_window_size=MAX_WINDOW_BYTES)
    return _decoder(layout, decompressor, past.dict_id())


def _loaded(dictionary: PlaneDictionary) -> zstandard.ZstdCompressionDict:
    """Raises CodecError: no dictionary as zstd trains them, or a large one."""
    content = dictionary.content
    if len(content) > MAX_DICTIONARY_BYTES:
        raise CodecError(f"a dictionary of {len(content)} bytes is over the limit of {MAX_DICTIONARY_BYTES}")
    if int.from_bytes(content[:4], "little") != _DICTIONARY_MAGIC:
        raise CodecError(f"the dictionary begins with {content[:4]!r}, which no zstd dictionary does; export again")
    past = zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_FULLDICT)
    try:  # zstd reads it when it is first used; what is wrong with it is to be found now
        zstandard.ZstdDecompressor(dict_data=past).decompress(zstandard.ZstdCompressor(dict_data=past).compress(b"0"))
    except zstandard.ZstdError as exc:
        raise CodecError(f"the dictionary for these planes is damaged: {exc}; export the bundle again") from None
    return past


def _decoder(
    layout: PlaneLayout, decompressor: zstandard.ZstdDecompressor, dictionary_id: int
) -> Callable[[Payload], Planes]:
    def decode(payload: Payload) -> Planes:
        if payload[:4] != zstandard.FRAME_HEADER:  # also keeps skippable frames out, whose "size" means nothing
            raise CodecError(
                f"payload begins with {bytes(payload[:4])!r}, which is no zstd frame; send coder raw or zstd"
            )
        try:
            frame = zstandard.get_frame_parameters(payload)
            _check_frame(frame, layout, dictionary_id)
            # decompress() takes the memory that the frame declares, so it comes after the check.
            data = decompressor.decompress(payload, allow_extra_data=False)
        except zstandard.ZstdError as exc:
            raise CodecError(f"payload is no whole zstd frame: {exc}; send exactly one frame") from None
        return np.frombuffer(data, np.uint8).reshape(layout.shape)

    return decode


def _check_frame(frame: zstandard.FrameParameters, layout: PlaneLayout, dictionary_id: int) -> None:
    if frame.content_size == zstandard.CONTENTSIZE_UNKNOWN:
        raise CodecError("zstd frame declares no content size; write it into the frame header")
    if frame.content_size != layout.raw_bytes:
        raise PayloadSizeError("zstd frame declares", frame.content_size, layout.raw_bytes)
    if frame.dict_id not in (0, dictionary_id):
        here = f"dictionary {dictionary_id}" if dictionary_id else "none"
        raise CodecError(f"zstd frame needs dictionary {frame.dict_id}, this coder has {here}; compress without one")
    # A single-segment frame states its content as the window, and takes no more than that.
    if frame.window_size > max(MAX_WINDOW_BYTES, layout.raw_bytes):
        raise CodecError(
            f"zstd frame wants a window of {frame.window_size} bytes, over the limit of {MAX_WINDOW_BYTES}; "
            "compress with a smaller window_log"
        )
