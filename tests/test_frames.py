"""From image files to frames: what a head sees, and what is refused before it takes memory."""

import io
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import ImageError, SettingsError
from aecnn_deploy.runtimes.frames import jpeg_bytes, read_frame

SPEC = InputSpec(height=56, width=48, resize_short=64, interpolation="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3)

# EXIF orientation -> what a camera did to the upright picture before it stored it
STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 64), (65, 191), (10, 11), (1000, 71)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_frame_is_what_torchvision_resize_and_center_crop_give(size: tuple[int, int], interpolation: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    mode = getattr(transforms.InterpolationMode, interpolation.upper())
    spec = InputSpec(56, 48, 64, interpolation, SPEC.mean, SPEC.std)
    image = picture(*size)
    expected = transforms.CenterCrop((56, 48))(transforms.Resize(64, interpolation=mode)(image))
    frame = read_frame(encoded(image, "PNG"), spec)
    assert frame.shape == (56, 48, 3)
    assert frame.dtype == np.uint8
    assert frame.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(frame, np.asarray(expected))


@pytest.mark.parametrize("orientation", sorted(STORED_AS))
def test_a_photograph_stored_turned_gives_the_upright_frame(orientation: int) -> None:
    upright = picture(150, 100)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = encoded(upright.transpose(STORED_AS[orientation]), "PNG", exif=exif)
    np.testing.assert_array_equal(read_frame(turned, SPEC), read_frame(encoded(upright, "PNG"), SPEC))


def test_a_large_jpeg_is_decoded_reduced_and_looks_the_same() -> None:
    large = picture(4000, 3000)
    jpeg = encoded(large, "JPEG", quality=95)
    frame = read_frame(jpeg, SPEC)
    whole = read_frame(encoded(Image.open(io.BytesIO(jpeg)).convert("RGB"), "BMP"), SPEC)
    difference = np.abs(frame.astype(int) - whole.astype(int))
    assert difference.max() > 0  # the reduced decoding was really taken
    assert difference.mean() < 1.0


def test_a_jpeg_below_four_times_the_frame_is_decoded_in_full() -> None:
    jpeg = encoded(picture(250, 251), "JPEG", quality=95)
    whole = read_frame(encoded(Image.open(io.BytesIO(jpeg)).convert("RGB"), "PNG"), SPEC)
    np.testing.assert_array_equal(read_frame(jpeg, SPEC), whole)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_pixel_mode_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert read_frame(encoded(picture(80, 70).convert(mode), kind), SPEC).shape == (56, 48, 3)


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    grey = np.linspace(0, 65535, 80 * 70).astype(np.uint16).reshape(70, 80)
    frame = read_frame(encoded(Image.fromarray(grey), "PNG"), SPEC)
    eight_bits = read_frame(encoded(Image.fromarray((grey >> 8).astype(np.uint8)), "PNG"), SPEC)
    np.testing.assert_array_equal(frame, eight_bits)


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims ``width`` x ``height`` pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(9000, 9000), (10_000, 10_000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_from_the_header(size: tuple[int, int]) -> None:
    started_s = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as in a device's process: Pillow only warns of the middle one
        with pytest.raises(ImageError, match="pixels") as caught:
            read_frame(bomb(*size), SPEC, name="bomb.png")
    assert caught.value.source == "bomb.png"
    assert time.monotonic() - started_s < 0.5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no picture at all",
        encoded(picture(300, 200), "JPEG")[:2000],
        encoded(picture(300, 200), "PNG")[:2000],
        bomb(100, 100),
    ],
    ids=["empty", "text", "short-jpeg", "short-png", "no-pixels"],
)
def test_what_does_not_decode_is_an_image_error_of_one_line(content: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        read_frame(content, SPEC, name="x")
    assert "\n" not in str(caught.value)


def test_an_unreadable_path_is_an_image_error_with_its_name(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.jpg", tmp_path, Path("a\0b.jpg")):
        with pytest.raises(ImageError) as caught:
            read_frame(path, SPEC)
        assert caught.value.source == str(path)


def test_a_crop_larger_than_the_resize_is_refused() -> None:
    for spec in (
        InputSpec(65, 64, 64, "bicubic", SPEC.mean, SPEC.std),
        InputSpec(8, 8, 8, "cubic", (0,) * 3, (1,) * 3),
    ):
        with pytest.raises(SettingsError):
            read_frame(encoded(picture(80, 80), "PNG"), spec)


def test_jpeg_bytes_decode_to_nearly_the_same_frame() -> None:
    frame = read_frame(encoded(picture(80, 70), "PNG"), SPEC)
    again = np.asarray(Image.open(io.BytesIO(jpeg_bytes(frame, 95))))
    assert np.abs(again.astype(int) - frame.astype(int)).mean() < 3
    assert len(jpeg_bytes(frame, 5)) < len(jpeg_bytes(frame, 95))


WHOLE = [encoded(picture(90, 80), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")]


@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=12), st.data())
def test_damaged_files_give_a_frame_or_an_image_error(
    whole: bytes, changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    damaged = bytearray(whole)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    del damaged[data.draw(st.integers(1, len(damaged))) :]
    try:
        frame = read_frame(bytes(damaged), SPEC)
    except ImageError:
        return
    assert frame.shape == (56, 48, 3)
