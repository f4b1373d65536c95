"""What others make of the same planes: plain zstd, JPEG-LS as files, JPEG XL. For comparison; no coder of the link."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from aecnn_deploy.calibration.coders import CoderFigures
from aecnn_deploy.errors import CodecError

PLAIN_ZSTD, JPEGLS_FILE, JPEG_XL = "plain zstd-3", "JPEG-LS file", "JPEG XL e3"
_WARM_UP = 5  # images

Encode = Callable[[npt.NDArray[np.uint8]], bytes]
Decode = Callable[[bytes], Any]


def has_picture_codecs() -> bool:
    """Whether imagecodecs, which has JPEG-LS and JPEG XL, is installed."""
    return find_spec("imagecodecs") is not None


def measure_peers(planes: npt.NDArray[np.uint8]) -> tuple[CoderFigures, ...]:
    """Code and decode each image of ``planes``, uint8 (N, C, H, W), its planes one below the other.

    JPEG-LS and JPEG XL (lossless, effort 3, one thread) where imagecodecs is installed. Raises CodecError: one loses
    something.
    """
    tall = np.ascontiguousarray(planes).reshape(len(planes), -1, planes.shape[3])
    plain, reader = zstandard.ZstdCompressor(level=3, write_checksum=False), zstandard.ZstdDecompressor()
    peers: dict[str, tuple[Encode, Decode]] = {
        PLAIN_ZSTD: (lambda x: plain.compress(x.tobytes()), lambda b: np.frombuffer(reader.decompress(b), np.uint8))
    }
    if has_picture_codecs():
        import imagecodecs

        peers[JPEGLS_FILE] = (lambda x: bytes(imagecodecs.jpegls_encode(x)), imagecodecs.jpegls_decode)
        peers[JPEG_XL] = (
            lambda x: bytes(imagecodecs.jpegxl_encode(x, lossless=True, effort=3, numthreads=1)),
            lambda b: imagecodecs.jpegxl_decode(b, numthreads=1),
        )
    return tuple(_measure(name, tall, encode, decode) for name, (encode, decode) in peers.items())


def _measure(name: str, tall: npt.NDArray[np.uint8], encode: Encode, decode: Decode) -> CoderFigures:
    sizes, encode_ms, decode_ms = [], [], []
    for image in (*tall[:_WARM_UP], *tall):
        began_s = time.perf_counter()
        content = encode(image)
        middle_s = time.perf_counter()
        decoded = decode(content)
        encode_ms.append((middle_s - began_s) * 1e3)
        decode_ms.append((time.perf_counter() - middle_s) * 1e3)
        sizes.append(len(content))
        if not np.array_equal(np.asarray(decoded).reshape(image.shape), image):
            raise CodecError(f"{name} does not give back the planes; install another imagecodecs")
    begin = len(sizes) - len(tall)
    return CoderFigures(
        name,
        float(np.mean(sizes[begin:])),
        float(np.median(encode_ms[begin:])),
        float(np.median(decode_ms[begin:])),
        0.0,
    )
