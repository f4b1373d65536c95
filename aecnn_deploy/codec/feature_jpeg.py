"""JPEG-coded features: the quantised planes of a split as one greyscale JPEG file.

Ko, Na, Amir, Mukhopadhyay, "Edge-Host Partitioning of Deep Neural Networks with Feature Space Encoding for
Resource-Constrained Internet-of-Things Platforms", AVSS 2018: the planes are tiled into a mosaic and coded with loss.
"""

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from aecnn_deploy.codec.layout import PlaneLayout
from aecnn_deploy.errors import CodecError, SettingsError

Planes = npt.NDArray[np.uint8]

_MAX_JPEG_SIDE = 65_500  # libjpeg's


def mosaic_grid(channels: int) -> tuple[int, int]:
    """Rows and columns of the mosaic of ``channels`` planes, as near to a square as it gets."""
    columns = math.isqrt(channels - 1) + 1
    return -(-channels // columns), columns


def encode_planes(planes: Planes, bits: int, quality: int) -> bytes:
    """``planes`` (C, h, w), values below 2**``bits``, as a JPEG file of ``quality`` 1 to 100.

    Values are stretched to 0..255; spare tiles of the mosaic are zero. Raises CodecError: wrong dtype, shape, bits or
    value, or a mosaic too large for JPEG. SettingsError: ``quality`` is out of range.
    """
    if not 1 <= quality <= 100:
        raise SettingsError(f"JPEG has the qualities 1 to 100, got {quality}")
    if planes.dtype != np.uint8 or planes.ndim != 3:
        raise CodecError(f"planes to code are uint8 (C, h, w), got {planes.dtype} {planes.shape}")
    channels, height, width = planes.shape
    PlaneLayout((channels, height, width), bits).check_values(planes)
    rows, columns = mosaic_grid(channels)
    if max(rows * height, columns * width) > _MAX_JPEG_SIDE:
        raise CodecError(
            f"a mosaic of {columns * width}x{rows * height} values is over JPEG's limit of {_MAX_JPEG_SIDE} a side; "
            "send fewer channels"
        )
    tiles = np.zeros((rows * columns, height, width), np.uint8)
    tiles[:channels] = _rescaled(planes, (1 << bits) - 1, 255)
    mosaic = tiles.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    out = io.BytesIO()
    Image.fromarray(mosaic).save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()


def decode_planes(content: bytes, shape: tuple[int, int, int], bits: int) -> Planes:
    """The planes uint8 ``shape`` (C, h, w) of the file ``content``: the levels of ``bits`` that are nearest.

    Raises CodecError: ``content`` is no greyscale JPEG file of such planes.
    """
    channels, height, width = PlaneLayout(shape, bits).shape
    rows, columns = mosaic_grid(channels)
    expected = (columns * width, rows * height)
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as opened:
            mode, size = opened.mode, opened.size
            mosaic = np.asarray(opened) if (mode, size) == ("L", expected) else None
    except Exception as exc:  # a damaged file raises anything
        raise CodecError(
            f"{len(content)} bytes do not decode as a JPEG mosaic of planes: {str(exc).partition(chr(10))[0][:200]}"
        ) from None
    if mosaic is None:
        raise CodecError(
            f"the JPEG mosaic has {size[0]}x{size[1]} values of mode {mode}, the planes {shape} need "
            f"{expected[0]}x{expected[1]} of mode L; use the same variant on both halves"
        )
    tiles = mosaic.reshape(rows, height, columns, width).swapaxes(1, 2).reshape(rows * columns, height, width)
    return _rescaled(tiles[:channels], 255, (1 << bits) - 1)


def _rescaled(values: Planes, top_in: int, top_out: int) -> Planes:
    """Whole numbers 0..top_in to the nearest of 0..top_out."""
    return ((values.astype(np.uint32) * (2 * top_out) + top_in) // (2 * top_in)).astype(np.uint8)
