"""What each coder makes of given planes, and how long it takes on this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from aecnn_deploy.codec import PlaneDecoder, PlaneDictionary, PlaneEncoder, coder_names
from aecnn_deploy.errors import CodecError

_T = TypeVar("_T")
_ROUNDS = 3  # passes over the images; the first one warms up and is not counted


@dataclass(frozen=True, slots=True)
class CoderFigures:
    """One coder on the planes of several images: mean payload bytes, median milliseconds an image.

    Payloads stand without the message's framing. ``raw_share``: of the images, those that were sent raw.
    """

    coder: str
    bytes_mean: float
    encode_ms_p50: float
    decode_ms_p50: float
    raw_share: float


def measure_coders(
    planes: npt.NDArray[np.uint8],
    bits: int,
    coders: Sequence[str] | None = None,
    *,
    dictionary: PlaneDictionary | None = None,
) -> tuple[CoderFigures, ...]:
    """Code and decode each image of ``planes``, uint8 (N, C, H, W), with each of ``coders`` (None: all that here
    can take them).

    What is decoded is compared with what was coded. Times are those of PlaneEncoder.encode and PlaneDecoder.decode,
    copies and checks included. Raises CodecError: planes of another kind, a value over ``bits``, an unknown coder, or a
    coder that loses something. MissingExtraError: a named coder's library is not installed.
    """
    if planes.dtype != np.uint8 or planes.ndim != 4 or not len(planes):
        raise CodecError(f"planes are uint8 (N, C, H, W) of at least one image, got {planes.dtype} {planes.shape}")
    shape = (planes.shape[1], planes.shape[2], planes.shape[3])
    decoder = PlaneDecoder(shape, bits, dictionary=dictionary)
    encoders = []
    for name in coder_names() if coders is None else coders:
        try:
            encoders.append(PlaneEncoder(shape, bits, coder=name, dictionary=dictionary))
        except CodecError:
            if coders is not None:
                raise
    return tuple(_measure(planes, encoder, decoder) for encoder in encoders)


def _measure(planes: npt.NDArray[np.uint8], encoder: PlaneEncoder, decoder: PlaneDecoder) -> CoderFigures:
    coder = encoder.coder.name
    encode_ms: list[float] = []
    decode_ms: list[float] = []
    sizes = np.zeros(len(planes))
    raw = 0
    for index in range(_ROUNDS * len(planes)):
        image = planes[index % len(planes)]
        encoded, spent_ms = _timed(partial(encoder.encode, image))
        decoded, again_ms = _timed(partial(decoder.decode, encoded.coder_id, encoded.payload))
        if not np.array_equal(decoded, image):
            raise CodecError(f"coder {coder} does not give back the planes of image {index % len(planes)}")
        if index >= len(planes):
            encode_ms.append(spent_ms)
            decode_ms.append(again_ms)
        else:
            sizes[index] = len(encoded.payload)
            raw += encoded.coder == "raw"
    return CoderFigures(
        coder, float(sizes.mean()), float(np.median(encode_ms)), float(np.median(decode_ms)), raw / len(planes)
    )


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    started_s = time.perf_counter()
    done = work()
    return done, (time.perf_counter() - started_s) * 1e3
