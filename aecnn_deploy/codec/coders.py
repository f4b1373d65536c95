"""Lossless coders by name and wire id: where a new way to turn planes into bytes is added.

A coder's wire id goes into the header of every INFER message (docs/wire-format.md) and never changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

from aecnn_deploy.codec import packing
from aecnn_deploy.codec.jpegls import has_jpegls, jpegls_decoder, jpegls_encoder
from aecnn_deploy.codec.layout import Payload, PlaneDictionary, PlaneLayout, Planes
from aecnn_deploy.codec.prediction import NO_PREDICTOR, PREDICTORS, residuals, restore
from aecnn_deploy.codec.zstd import dictionary_decoder, dictionary_encoder, residual_encoder, zstd_decoder, zstd_encoder
from aecnn_deploy.errors import CodecError, PayloadSizeError

Encode = Callable[[Planes], bytes | None]
Decode = Callable[[Payload], Planes]


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Coder:
    """One coder: ``make_encode(layout, level)`` and ``make_decode(layout)`` give functions that keep their state.

    An encode function gets C-contiguous planes that were checked against the layout; it may give None where its bytes
    would not be fewer than the planes'. A decode function gets untrusted bytes: it raises CodecError for all that is
    wrong, and takes no memory that the bytes only claim. Neither is safe to call from two threads at once.
    ``is_installed``: whether what the coder needs is here; both ``make`` functions raise MissingExtraError where it is
    not, and CodecError for planes that the coder cannot take.
    """

    name: str
    wire_id: int
    make_encode: Callable[[PlaneLayout, int], Encode]
    make_decode: Callable[[PlaneLayout], Decode]
    is_installed: Callable[[], bool] = _always


def _raw_encode(layout: PlaneLayout, level: int) -> Encode:
    return lambda planes: planes.tobytes()


def _raw_decode(layout: PlaneLayout) -> Decode:
    def decode(payload: Payload) -> Planes:
        if (got := memoryview(payload).nbytes) != layout.raw_bytes:
            raise PayloadSizeError("raw payload holds", got, layout.raw_bytes)
        return np.frombuffer(payload, np.uint8).reshape(layout.shape)

    return decode


def _packed_encode(layout: PlaneLayout, level: int) -> Encode:
    return partial(packing.pack, layout)


def _packed_decode(layout: PlaneLayout) -> Decode:
    return partial(packing.unpack, layout)


def _zstd_encode(layout: PlaneLayout, level: int) -> Encode:
    return zstd_encoder(level)


def _predicted(predictor: str, wire_id: int) -> Coder:
    def make_encode(layout: PlaneLayout, level: int) -> Encode:
        frame = residual_encoder(level)
        return lambda planes: frame(residuals(layout, planes, predictor))

    def make_decode(layout: PlaneLayout) -> Decode:
        frame = zstd_decoder(layout)
        return lambda payload: restore(layout, frame(payload), predictor)

    assert predictor in PREDICTORS
    return Coder(f"{predictor}-zstd", wire_id, make_encode, make_decode)


def _dictionary_of(layout: PlaneLayout) -> PlaneDictionary:
    if layout.dictionary is None:
        raise CodecError("the bundle has no dictionary for these planes; choose another coder")
    if layout.dictionary.predictor not in (NO_PREDICTOR, *PREDICTORS):
        raise CodecError(f"the dictionary is for the predictor {layout.dictionary.predictor!r}; upgrade this half")
    return layout.dictionary


def _dictionary_encode(layout: PlaneLayout, level: int) -> Encode:
    dictionary = _dictionary_of(layout)
    frame = dictionary_encoder(level, dictionary)
    return lambda planes: frame(residuals(layout, planes, dictionary.predictor))


def _dictionary_decode(layout: PlaneLayout) -> Decode:
    dictionary = _dictionary_of(layout)
    frame = dictionary_decoder(layout, dictionary)
    return lambda payload: restore(layout, frame(payload), dictionary.predictor)


def _jpegls_encode(layout: PlaneLayout, level: int) -> Encode:
    return jpegls_encoder(layout)


RAW = Coder("raw", 0, _raw_encode, _raw_decode)
_ALL = (
    RAW,
    Coder("zstd", 1, _zstd_encode, zstd_decoder),
    Coder("packed", 2, _packed_encode, _packed_decode),
    _predicted("left", 3),
    _predicted("up", 4),
    _predicted("median", 5),
    Coder("jpegls", 6, _jpegls_encode, jpegls_decoder, has_jpegls),
    Coder("zstd-dict", 7, _dictionary_encode, _dictionary_decode),
    _predicted("paeth", 10),  # 8 and 9 are those of differences: delta.py
)

CODERS: Mapping[str, Coder] = MappingProxyType({coder.name: coder for coder in _ALL})


def coder_names() -> tuple[str, ...]:
    """The names of the coders of single frames that this installation has, in the order of their wire ids."""
    return tuple(name for name, coder in CODERS.items() if coder.is_installed())


def coder_by_name(name: str) -> Coder:
    """The coder ``name``. Raises CodecError: there is none, with the names of those that are."""
    try:
        return CODERS[name]
    except KeyError:
        raise CodecError(f"unknown coder {name!r}; choose one of {', '.join(CODERS)}") from None
