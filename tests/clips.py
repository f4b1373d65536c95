"""Video clips that tests make with PyAV: every frame tells its number."""

import struct
from pathlib import Path

import av
import numpy as np

from aecnn_deploy.runtimes.frames import Frame

SIZE = (96, 64)  # width, height

# Degrees counterclockwise -> a, b, u, c, d: to the right (x) goes to (a, b), down (y) to (c, d).
_TURNS = {90: (0, -1, 0, 1, 0), 180: (-1, 0, 0, 0, -1), 270: (0, 1, 0, -1, 0)}


def picture(number: int, size: tuple[int, int] = SIZE) -> Frame:
    """Grey that says ``number``, 0 to 80, with a white bar at its top that no turned or mirrored picture has."""
    width, height = size
    pixels = np.full((height, width, 3), 10 + 3 * number, np.uint8)
    pixels[: height // 4, : width // 2] = 255
    return pixels


def number_of(pixels: Frame) -> int:
    """Which ``picture`` it was, before a codec changed it a little."""
    below = pixels[pixels.shape[0] // 2 :, pixels.shape[1] // 2 :]
    return round((float(np.mean(below)) - 10) / 3)


def make_clip(
    path: Path,
    *,
    frames: int = 10,
    fps: int = 10,
    codec: str = "libx264",
    size: tuple[int, int] = SIZE,
    rotation: int = 0,
    gop: int = 5,
    options: dict[str, str] | None = None,
) -> Path:
    """Write ``frames`` pictures; ``rotation`` (MP4, MOV): degrees counterclockwise that a player has to turn them."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        if codec != "libx264":
            stream.bit_rate = 8_000_000  # so that each grey stays what it is
        stream.codec_context.max_b_frames = 0
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")))
        container.mux(stream.encode())
    if rotation:
        content = bytearray(path.read_bytes())
        at = content.index(b"tkhd") + 44  # its matrix's first two rows, in 16.16 (ISO/IEC 14496-12, 8.3.2)
        content[at : at + 20] = struct.pack(">5i", *(value << 16 for value in _TURNS[rotation % 360]))
        path.write_bytes(content)
    return path
