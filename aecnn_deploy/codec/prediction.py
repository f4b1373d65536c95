"""Each value less what its neighbours in the same plane predict, modulo 2**bits; and back.

Neighbours outside of a plane are 0. ``left``: the value to the left; in the first column the one above. ``up``: the
value above; in the first row the one to the left. ``median``: that of left, up and left + up - above-left, as JPEG-LS
has it (Weinberger, Seroussi, Sapiro, 2000, eq. 1). ``paeth``: of left, up and above-left the one nearest to
left + up - above-left, as PNG has it (RFC 2083, section 6.6).
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image

from aecnn_deploy.codec.layout import PlaneLayout, Planes


@dataclass(frozen=True, slots=True)
class Predictor:
    """``residuals(planes, mask)`` and its reverse ``restore(residuals, mask)``, both uint8 (C, H, W)."""

    residuals: Callable[[Planes, int], Planes]
    restore: Callable[[Planes, int], Planes]


def _left_residuals(planes: Planes, mask: int) -> Planes:
    out = planes.copy()
    out[:, :, 1:] -= planes[:, :, :-1]
    out[:, 1:, 0] -= planes[:, :-1, 0]
    return np.bitwise_and(out, mask, out=out)


def _left_restore(residuals: Planes, mask: int) -> Planes:
    out = residuals.copy()
    np.cumsum(residuals[:, :, 0], axis=1, dtype=np.uint8, out=out[:, :, 0])
    np.cumsum(out, axis=2, dtype=np.uint8, out=out)
    return np.bitwise_and(out, mask, out=out)


def _up_residuals(planes: Planes, mask: int) -> Planes:
    out = planes.copy()
    out[:, 1:] -= planes[:, :-1]
    out[:, 0, 1:] -= planes[:, 0, :-1]
    return np.bitwise_and(out, mask, out=out)


def _up_restore(residuals: Planes, mask: int) -> Planes:
    out = residuals.copy()
    np.cumsum(residuals[:, 0], axis=1, dtype=np.uint8, out=out[:, 0])
    np.cumsum(out, axis=1, dtype=np.uint8, out=out)
    return np.bitwise_and(out, mask, out=out)


def _median_residuals(planes: Planes, mask: int) -> Planes:
    channels, height, width = planes.shape
    padded = np.zeros((channels, height + 1, width + 1), np.int16)
    padded[:, 1:, 1:] = planes
    left, up, corner = padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1]
    predicted = left + up
    predicted -= corner
    np.clip(predicted, np.minimum(left, up), np.maximum(left, up), out=predicted)
    out: Planes = (planes - predicted).astype(np.uint8)
    return np.bitwise_and(out, mask, out=out)


def _median_restore(residuals: Planes, mask: int) -> Planes:
    """Diagonal after diagonal: all values of one have their three neighbours on the two before it."""
    channels, height, width = residuals.shape
    # Rows of ``stride`` values, one of padding before each: a step down and to the left is ``stride`` - 1 further.
    stride = width + 1
    flat = np.zeros((channels, (height + 1) * stride), np.int16)
    flat.reshape(channels, height + 1, stride)[:, 1:, 1:] = residuals
    step = max(1, stride - 1)
    for diagonal in range(height + width - 1):
        top = max(0, diagonal - width + 1)
        count = min(height - 1, diagonal) - top + 1
        begin = (top + 1) * stride + diagonal - top + 1
        end = begin + (count - 1) * step + 1
        here = flat[:, begin:end:step]
        left, up = flat[:, begin - 1 : end - 1 : step], flat[:, begin - stride : end - stride : step]
        predicted = left + up
        predicted -= flat[:, begin - stride - 1 : end - stride - 1 : step]
        np.minimum(predicted, np.maximum(left, up), out=predicted)
        here += np.maximum(predicted, np.minimum(left, up), out=predicted)
        np.bitwise_and(here, mask, out=here)
    return flat.reshape(channels, height + 1, stride)[:, 1:, 1:].astype(np.uint8)


def _paeth_residuals(planes: Planes, mask: int) -> Planes:
    channels, height, width = planes.shape
    padded = np.zeros((channels, height, width + 1), np.int16)
    padded[:, :, 1:] = planes
    left, up, corner = padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1]
    over, across = up - corner, left - corner
    to_left, to_up, to_corner = np.abs(over), np.abs(across), np.abs(over + across)  # from left + up - corner
    # Chosen by products: a branch for each value would be a guess for each value.
    over *= to_up <= to_corner
    predicted = corner + over
    predicted += (left - predicted) * (to_left <= np.minimum(to_up, to_corner))
    out = planes.copy()
    out[:, 0, 1:] -= planes[:, 0, :-1]
    out[:, 1:] -= predicted.astype(np.uint8)
    return np.bitwise_and(out, mask, out=out)


_SUB, _PAETH = 1, 4  # PNG's filter types


def _paeth_restore(residuals: Planes, mask: int) -> Planes:
    """By Pillow's PNG decoder, with the planes one below the other and the first row of each predicted from the left.

    PNG counts modulo 256: values are scaled up to it, which changes no comparison.
    """
    channels, height, width = residuals.shape
    shift = 8 - mask.bit_length()
    rows = np.empty((channels * height, width + 1), np.uint8)
    rows[:, 0] = _PAETH
    rows[::height, 0] = _SUB
    rows[:, 1:] = residuals.reshape(channels * height, width)
    if shift:
        rows[:, 1:] <<= shift
    stored = zlib.compress(rows.data, 0)
    picture = Image.frombytes("L", (width, channels * height), stored, "zip", "L")
    planes: Planes = np.frombuffer(picture.tobytes(), np.uint8).reshape(residuals.shape)
    if shift:
        planes = planes >> np.uint8(shift)
    return planes


NO_PREDICTOR = "none"
PREDICTORS: Mapping[str, Predictor] = MappingProxyType(
    {
        "left": Predictor(_left_residuals, _left_restore),
        "up": Predictor(_up_residuals, _up_restore),
        "median": Predictor(_median_residuals, _median_restore),
        "paeth": Predictor(_paeth_residuals, _paeth_restore),
    }
)


def residuals(layout: PlaneLayout, planes: Planes, predictor: str) -> Planes:
    """What ``predictor`` leaves of the planes (C, H, W); all of them for "none"."""
    if predictor == NO_PREDICTOR:
        return planes
    return PREDICTORS[predictor].residuals(planes, layout.mask)


def restore(layout: PlaneLayout, left_over: Planes, predictor: str) -> Planes:
    """The planes again; residuals over the bits' limit give values within it, but for "none"."""
    if predictor == NO_PREDICTOR:
        return left_over
    return PREDICTORS[predictor].restore(left_over, layout.mask)
