"""Full offloading, the first rival of a split: the resized frame as a JPEG, WebP or AVIF file.

The options are those that send the fewest bytes on photographs of Caltech-101, 224 px (libjpeg-turbo 3.2, libwebp
1.6, aom 3.14). JPEG: optimised Huffman tables save 5 to 25 %; baseline is up to 16 % smaller than progressive at
these sizes. WebP: method 6 is 6 % smaller than 4 and loses less than that is worth. AVIF: speed 6 is 1 to 7 % smaller
than 8, and speed 4 at most 1 % smaller than 6 for four times its time. 4:4:4 adds 10 to 15 % to a JPEG and 2 % to an
AVIF for no better a picture than the same bytes of 4:2:0; WebP has 4:2:0 only.
"""

import io
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from aecnn_deploy.errors import ImageError, MissingExtraError, SettingsError

Frame = npt.NDArray[np.uint8]
Frames = npt.NDArray[np.uint8]

MIN_SIDE, MAX_SIDE = 8, 4096


@dataclass(frozen=True, slots=True)
class _Kind:
    """How Pillow makes one kind of file."""

    pillow_format: str
    qualities: tuple[int, int]
    options: Mapping[str, Any]
    requirement: str


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "jpeg": _Kind("JPEG", (1, 100), {"optimize": True, "progressive": False, "subsampling": "4:2:0"}, "pillow"),
        "webp": _Kind("WEBP", (0, 100), {"method": 6}, "pillow"),
        # One thread a file: a pool codes several files at once, and aom's bytes depend on the number of threads.
        "avif": _Kind("AVIF", (0, 100), {"speed": 6, "subsampling": "4:2:0", "max_threads": 1}, "pillow>=11.3"),
    }
)

# codec -> (side, quality): the lower edge of bytes against what EfficientNet-Lite0 loses (the divergence of its
# classes from those of the uncoded frame, 100 photographs). A side has several points, so that one classifier
# fine-tuned for it serves them all. Headers that container_bytes counts: JPEG 193 bytes, AVIF 275, WebP 20.
GRID: Mapping[str, tuple[tuple[int, int], ...]] = MappingProxyType(
    {
        "jpeg": (
            *((80, quality) for quality in (4, 6, 10, 15)),
            *((112, quality) for quality in (8, 10, 15)),
            *((160, quality) for quality in (10, 15, 25, 40)),
            *((224, quality) for quality in (10, 22, 35)),
        ),
        "webp": (
            *((80, quality) for quality in (0, 5, 12, 25, 40)),
            *((112, quality) for quality in (0, 40, 60)),
            *((160, quality) for quality in (25, 40, 60, 75)),
            *((224, quality) for quality in (0, 55)),
        ),
        "avif": (
            *((80, quality) for quality in (1, 10, 25)),
            *((112, quality) for quality in (8, 15, 22, 30)),
            *((160, quality) for quality in (22, 30)),
            *((224, quality) for quality in (20, 27, 35, 45, 55)),
        ),
    }
)


@dataclass(frozen=True, slots=True)
class FrameCodec:
    """Codes a square frame as a file of the kind ``name`` ("jpeg", "webp", "avif"), ``side`` pixels wide and high.

    ``quality`` is Pillow's, 0 to 100 (JPEG from 1). The file holds no metadata. Raises SettingsError: unknown name, a
    quality or side out of range. Raises MissingExtraError: this Pillow cannot write the format.
    """

    name: str
    quality: int
    side: int

    def __post_init__(self) -> None:
        if self.name not in _KINDS:
            raise SettingsError(f"unknown frame codec {self.name!r}; known are {', '.join(_KINDS)}")
        kind = _KINDS[self.name]
        lowest, highest = kind.qualities
        if not lowest <= self.quality <= highest:
            raise SettingsError(f"{self.name} has the qualities {lowest} to {highest}, got {self.quality}")
        if not MIN_SIDE <= self.side <= MAX_SIDE:
            raise SettingsError(f"a coded frame has a side of {MIN_SIDE} to {MAX_SIDE} pixels, got {self.side}")
        Image.init()
        if kind.pillow_format not in Image.SAVE or kind.pillow_format not in Image.OPEN:
            raise MissingExtraError(kind.requirement, "train", f"coding frames as {kind.pillow_format}")

    def encode(self, frame: Frame) -> bytes:
        """The file of ``frame``, uint8 (S, S, 3) with S at least ``side``. Raises SettingsError: it is none such."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape[0] != frame.shape[1]:
            raise SettingsError(f"a frame is uint8 (S, S, 3), got {frame.dtype} {frame.shape}; crop it to a square")
        if frame.shape[0] < self.side:
            raise SettingsError(
                f"a frame of {frame.shape[0]} pixels cannot be sent at {self.side}: enlarging it only costs bytes; "
                f"choose a side of {frame.shape[0]} or less"
            )
        kind = _KINDS[self.name]
        image = _resized(Image.fromarray(frame), self.side, Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, kind.pillow_format, quality=self.quality, **kind.options)
        return out.getvalue()

    def decode(self, content: bytes, side_out: int) -> Frame:
        """The frame uint8 (``side_out``, ``side_out``, 3) of the file ``content``, as the network takes it.

        Raises ImageError: ``content`` is no file of this codec and side.
        """
        source = f"a coded frame of {len(content)} bytes"
        try:
            with Image.open(io.BytesIO(content), formats=[_KINDS[self.name].pillow_format]) as opened:
                size = opened.size
                image = opened.convert("RGB") if size == (self.side, self.side) else None
        except Exception as exc:  # a damaged file raises anything
            raise ImageError(source, str(exc).partition("\n")[0][:200]) from None
        if image is None:
            raise ImageError(source, f"it has {size[0]}x{size[1]} pixels, expected {self.side}x{self.side}")
        return np.asarray(_resized(image, side_out, Image.Resampling.BICUBIC))


def coded(frames: Frames, codec: FrameCodec, *, workers: int | None = None) -> tuple[Frames, npt.NDArray[np.int64]]:
    """What arrives of ``frames`` (N, S, S, 3) and what it costs: decoded frames uint8 (N, S, S, 3), bytes int64 (N,).

    ``workers`` threads (None: one a core); Pillow's codecs run outside of Python's lock. Raises SettingsError: no
    worker, or frames that ``codec`` cannot take.
    """
    if workers is not None and workers < 1:
        raise SettingsError(f"coding frames takes at least 1 worker, got {workers}")
    if frames.ndim != 4:
        raise SettingsError(f"frames are uint8 (N, S, S, 3), got {frames.dtype} {frames.shape}")
    decoded = np.empty(frames.shape, np.uint8)
    sizes = np.empty(len(frames), np.int64)

    def one(index: int) -> None:
        content = codec.encode(frames[index])
        decoded[index] = codec.decode(content, frames.shape[1])
        sizes[index] = len(content)

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for _ in pool.map(one, range(len(frames))):
            pass
    return decoded, sizes


def container_bytes(content: bytes) -> int:
    """How many bytes of a file by FrameCodec say only its codec, side, quality and length.

    A link that knows these need not send them: what is left is the picture. AVIF: all but the payload of ``mdat``.
    WebP: the RIFF and chunk headers. JPEG: all but the Huffman tables, which are each picture's own, and the scan.
    Raises ImageError: ``content`` is no such file.
    """
    try:
        if content[4:12] == b"ftypavif":
            return _avif_container_bytes(content)
        if content[:4] == b"RIFF" and content[8:16] == b"WEBPVP8 ":
            return 20
        if content[:2] == b"\xff\xd8":
            return _jpeg_container_bytes(content)
        why = "it is neither a JPEG nor a lossy WebP nor an AVIF file"
    except IndexError:
        why = "it ends within its headers"
    raise ImageError(f"a coded frame of {len(content)} bytes", why)


def _resized(image: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    return image if image.size == (side, side) else image.resize((side, side), resampling)


def _avif_container_bytes(content: bytes) -> int:
    """ISO 14496-12: boxes of a four-byte length and a four-byte type."""
    position, picture_bytes = 0, 0
    while position < len(content):
        length = max(8, _number(content, position, 4))
        if content[position + 4 : position + 8] == b"mdat":
            picture_bytes += length - 8
        position += length
    if position > len(content):
        raise IndexError
    return len(content) - picture_bytes


def _jpeg_container_bytes(content: bytes) -> int:
    """ISO 10918-1: markers of two bytes, each but the first with a two-byte length."""
    huffman_table, scan, end_bytes = 0xC4, 0xDA, 2
    position, tables_bytes = 2, 0
    while True:
        marker, length = content[position + 1], 2 + _number(content, position + 2, 2)
        position += length
        if marker == huffman_table:
            tables_bytes += length
        if marker == scan:
            return position - tables_bytes + end_bytes


def _number(content: bytes, position: int, size: int) -> int:
    if position + size > len(content):
        raise IndexError
    return int.from_bytes(content[position : position + size], "big")
