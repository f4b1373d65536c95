"""Video clips that tests make with PyAV: every frame tells its number."""

from pathlib import Path

import av
import numpy as np

from aecnn_deploy.runtimes.frames import Frame

SIZE = (96, 64)  # width, height


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
    """Write ``frames`` pictures; ``rotation``: degrees counterclockwise that a player has to turn them."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        if codec != "libx264":
            stream.bit_rate = 8_000_000  # so that each grey stays what it is
        stream.codec_context.max_b_frames = 0
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")))
        container.mux(stream.encode())
    return path
