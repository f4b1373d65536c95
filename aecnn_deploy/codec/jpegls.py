"""JPEG-LS (ITU-T T.87, lossless) of the planes, one below the other, as one grey picture; by CharLS in pyjpegls.

Both halves know size and bits, so the markers around the scan are not sent: a decoder makes them from its layout, and
no byte of a peer ever says how large a picture is.
"""

import struct
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

from aecnn_deploy.codec.layout import Payload, PlaneLayout, Planes
from aecnn_deploy.errors import CodecError, PayloadSizeError
from aecnn_deploy.optional import require

_END = b"\xff\xd9"  # EOI
_MOST = 0xFFFF  # rows or columns of a JPEG-LS picture
_WHY = "coding planes as JPEG-LS"


def has_jpegls() -> bool:
    """Whether pyjpegls is installed."""
    return find_spec("jpeg_ls") is not None


def jpegls_encoder(layout: PlaneLayout) -> Callable[[Planes], bytes | None]:
    """A function that makes the scan of contiguous planes, None where it takes more room than they do.

    Raises CodecError: too large. MissingExtraError: pyjpegls is not installed.
    """
    header = _header(layout)
    library = require("jpeg_ls", why=_WHY)
    channels, height, width = layout.shape

    def encode(planes: Planes) -> bytes | None:
        try:
            whole = library.encode_buffer(planes.tobytes(), channels * height, width, 1, _precision(layout))
        except RuntimeError:  # CharLS gets a buffer of the picture's size
            return None
        if not (whole.startswith(header) and whole.endswith(_END)):
            raise CodecError("this pyjpegls writes other markers than T.87's plain ones; install pyjpegls 1.5")
        return bytes(whole[len(header) : -len(_END)])

    return encode


def jpegls_decoder(layout: PlaneLayout) -> Callable[[Payload], Planes]:
    """A function that reads untrusted bytes as one scan: uint8 (C, H, W). Raises as ``jpegls_encoder`` does."""
    header = _header(layout)
    library = require("jpeg_ls", why=_WHY)

    def decode(payload: Payload) -> Planes:
        scan = bytes(payload)
        # Within a scan 0xFF is followed by a byte below 0x80 (T.87, A.1): a marker could begin another picture.
        values = np.frombuffer(scan, np.uint8)
        if ((values[:-1] == 0xFF) & (values[1:] >= 0x80)).any() or scan[-1:] == b"\xff":
            raise CodecError("JPEG-LS payload holds a marker; send the scan alone")
        try:
            data, _ = library.decode_buffer(header + scan + _END)
        except (RuntimeError, ValueError) as exc:
            raise CodecError(f"payload is no whole JPEG-LS scan: {str(exc).strip()[:200]}") from None
        if len(data) != layout.raw_bytes:
            raise PayloadSizeError("JPEG-LS scan holds", len(data), layout.raw_bytes)
        return np.frombuffer(data, np.uint8).reshape(layout.shape)

    return decode


def _precision(layout: PlaneLayout) -> int:
    return max(2, layout.bits)  # T.87 has no picture of one bit


def _header(layout: PlaneLayout) -> bytes:
    """SOI, SOF55 and SOS of the planes' picture, 25 bytes. Raises CodecError: it has too many rows or columns."""
    channels, height, width = layout.shape
    if channels * height > _MOST or width > _MOST:
        raise CodecError(
            f"JPEG-LS takes at most {_MOST} rows and columns, the planes {layout.shape} make "
            f"{channels * height} rows of {width}; choose another coder"
        )
    frame = struct.pack(">HHBHHBBBB", 0xFFF7, 11, _precision(layout), channels * height, width, 1, 1, 0x11, 0)
    scan = struct.pack(">HHBBBBBB", 0xFFDA, 8, 1, 1, 0, 0, 0, 0)
    return b"\xff\xd8" + frame + scan
