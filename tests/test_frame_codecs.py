"""Frames and planes as JPEG, WebP and AVIF files: what they cost, what arrives, what is refused."""

import io
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aecnn_deploy.codec.feature_jpeg import decode_planes, encode_planes, mosaic_grid
from aecnn_deploy.errors import CodecError, ImageError, MissingExtraError, SettingsError
from aecnn_deploy.models.backbones import backbone_spec
from aecnn_deploy.training.frame_codecs import GRID, FrameCodec, coded, container_bytes
from aecnn_deploy.training.photographs import choose_files, load_photographs

NAMES = ("jpeg", "webp", "avif")
FORMATS = {"jpeg": "JPEG", "webp": "WEBP", "avif": "AVIF"}


def picture(side: int = 96, seed: int = 0) -> np.ndarray:
    """A smooth coloured frame with an edge in it."""
    coarse = np.random.default_rng(seed).integers(40, 216, (7, 7, 3), dtype=np.uint8)
    frame = np.array(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    frame[side // 3 : side // 2, side // 4 : side // 2] = (250, 20, 30)
    return frame


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [96, 48])
def test_a_coded_frame_comes_back_at_the_networks_size_and_looks_alike(name: str, side: int) -> None:
    frame = picture()
    codec = FrameCodec(name, 80, side)
    content = codec.encode(frame)
    assert Image.open(io.BytesIO(content)).format == FORMATS[name]
    assert Image.open(io.BytesIO(content)).size == (side, side)
    decoded = codec.decode(content, 96)
    assert (decoded.dtype, decoded.shape) == (np.dtype(np.uint8), (96, 96, 3))
    assert psnr_db(decoded, frame) > (27 if side == 96 else 20)


@pytest.mark.parametrize("name", NAMES)
def test_lower_quality_and_smaller_sides_cost_fewer_bytes(name: str) -> None:
    frame = picture(128)
    for codecs in (
        [FrameCodec(name, quality, 128) for quality in (10, 40, 90)],
        [FrameCodec(name, 60, side) for side in (32, 64, 128)],
    ):
        sizes = [len(codec.encode(frame)) for codec in codecs]
        assert all(a < b for a, b in pairwise(sizes)), sizes


@pytest.mark.parametrize("name", NAMES)
def test_a_coded_frame_carries_no_metadata(name: str) -> None:
    opened = Image.open(io.BytesIO(FrameCodec(name, 50, 96).encode(picture())))
    assert not opened.getexif()
    assert not opened.info.keys() & {"exif", "icc_profile", "xmp", "comment"}


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_the_options_send_fewer_bytes_than_pillows_own_without_losing_quality(name: str) -> None:
    frame = picture(224, seed=4)
    ours = FrameCodec(name, 30, 224)
    content = ours.encode(frame)
    out = io.BytesIO()
    Image.fromarray(frame).save(out, FORMATS[name], quality=30)
    default = out.getvalue()
    assert len(content) < len(default)
    loss_db = psnr_db(ours.decode(default, 224), frame) - psnr_db(ours.decode(content, 224), frame)
    assert loss_db < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_frames_coded_by_a_pool_are_those_coded_one_by_one(name: str) -> None:
    frames = np.stack([picture(64, seed) for seed in range(5)])
    codec = FrameCodec(name, 40, 48)
    decoded, sizes = coded(frames, codec, workers=3)
    contents = [codec.encode(frame) for frame in frames]
    assert (decoded.dtype, decoded.shape, sizes.dtype) == (np.dtype(np.uint8), frames.shape, np.dtype(np.int64))
    assert sizes.tolist() == [len(content) for content in contents]
    np.testing.assert_array_equal(decoded, np.stack([codec.decode(content, 64) for content in contents]))
    again, same_sizes = coded(frames, codec)
    np.testing.assert_array_equal(again, decoded)
    np.testing.assert_array_equal(same_sizes, sizes)


def test_no_frames_are_coded_to_no_frames() -> None:
    decoded, sizes = coded(np.empty((0, 32, 32, 3), np.uint8), FrameCodec("webp", 40, 32))
    assert (decoded.shape, sizes.shape) == ((0, 32, 32, 3), (0,))


@pytest.mark.parametrize("name", ["webp", "avif"])
def test_another_thread_runs_while_a_frame_is_encoded(name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    codec = FrameCodec(name, 90, 512)
    spent_s = []

    def encode() -> None:
        start = time.perf_counter()
        codec.encode(noise)
        spent_s.append(time.perf_counter() - start)

    thread = threading.Thread(target=encode)
    ticks = 0
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    # An encoder that held the interpreter's lock would let the loop run before and after only.
    assert ticks > 8, (ticks, spent_s)


@pytest.mark.parametrize(
    ("name", "quality", "side", "words"),
    [
        ("jpg", 50, 96, "known are jpeg, webp, avif"),
        ("jpeg", 0, 96, "1 to 100, got 0"),
        ("webp", 101, 96, "0 to 100, got 101"),
        ("avif", -1, 96, "0 to 100, got -1"),
        ("avif", 50, 7, "8 to 4096 pixels, got 7"),
    ],
)
def test_impossible_codecs_are_refused(name: str, quality: int, side: int, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        FrameCodec(name, quality, side)


def test_a_pillow_without_avif_is_named_with_the_release_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.SAVE, "AVIF")
    with pytest.raises(MissingExtraError, match=r"pillow>=11\.3") as caught:
        FrameCodec("avif", 50, 96)
    assert caught.value.extra == "train"
    assert FrameCodec("webp", 50, 96).name == "webp"


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((96, 80, 3), np.uint8),
        np.zeros((96, 96), np.uint8),
        np.zeros((96, 96, 4), np.uint8),
        np.zeros((96, 96, 3), np.float32),
        np.zeros((64, 64, 3), np.uint8),
    ],
)
def test_frames_that_a_codec_cannot_take_are_refused(frame: np.ndarray) -> None:
    with pytest.raises(SettingsError, match="a frame"):
        FrameCodec("jpeg", 50, 96).encode(frame)


def test_no_worker_and_a_single_frame_are_refused() -> None:
    codec = FrameCodec("jpeg", 50, 96)
    with pytest.raises(SettingsError, match="at least 1 worker, got 0"):
        coded(picture()[np.newaxis], codec, workers=0)
    with pytest.raises(SettingsError, match="N, S, S, 3"):
        coded(picture(), codec)


@pytest.mark.parametrize("name", NAMES)
def test_content_of_another_kind_or_side_or_cut_short_is_refused(name: str) -> None:
    codec = FrameCodec(name, 50, 96)
    content = codec.encode(picture())
    other = FrameCodec("webp" if name != "webp" else "jpeg", 50, 96)
    for bad in (b"", content[: len(content) // 2], other.encode(picture())):
        with pytest.raises(ImageError, match="coded frame"):
            codec.decode(bad, 96)
    with pytest.raises(ImageError, match="48x48 pixels, expected 96x96"):
        codec.decode(FrameCodec(name, 50, 48).encode(picture()), 96)


@pytest.mark.parametrize("name", NAMES)
def test_the_grid_has_valid_points_without_repetition(name: str) -> None:
    points = GRID[name]
    assert 12 <= len(points) <= 14
    assert len(set(points)) == len(points)
    assert {side for side, _ in points} == {224, 160, 112, 80}
    assert all(FrameCodec(name, quality, side).side == side for side, quality in points)


def test_what_container_bytes_counts_of_an_avif_is_the_same_for_every_frame_but_for_the_length() -> None:
    codec = FrameCodec("avif", 30, 96)
    ours, other = codec.encode(picture(seed=1)), codec.encode(picture(seed=2))
    taken, given_bytes = container_bytes(ours), container_bytes(other)
    assert taken == given_bytes
    payload = ours[taken:]
    assert ours[taken - 4 : taken] == b"mdat"
    # The receiver's template: another frame's container with this payload's length in iloc and mdat.
    length = (len(other) - given_bytes).to_bytes(4, "big")
    container = bytearray(other[:given_bytes])
    place = container.index(length)
    container[place : place + 4] = len(payload).to_bytes(4, "big")
    container[taken - 8 : taken - 4] = (len(payload) + 8).to_bytes(4, "big")
    rebuilt = bytes(container) + payload
    assert rebuilt == ours
    np.testing.assert_array_equal(codec.decode(rebuilt, 96), codec.decode(ours, 96))


@pytest.mark.parametrize(("name", "expected"), [("jpeg", 193), ("webp", 20)])
def test_container_bytes_of_a_jpeg_and_a_webp_do_not_depend_on_the_picture(name: str, expected: int) -> None:
    # JPEG: SOI 2, JFIF 18, two tables of 69, frame header 19, scan header 14, EOI 2.
    for seed in range(3):
        assert container_bytes(FrameCodec(name, 30, 96).encode(picture(seed=seed))) == expected


@pytest.mark.parametrize("name", NAMES)
def test_container_bytes_refuses_what_ends_within_its_headers(name: str) -> None:
    content = FrameCodec(name, 30, 96).encode(picture())
    for bad in (b"", content[:15], content[1:]):
        with pytest.raises(ImageError, match="coded frame"):
            container_bytes(bad)


@pytest.mark.data
def test_the_grid_spans_the_budgets_on_real_photographs(caltech101: Path) -> None:
    spec = backbone_spec("efficientnet_lite0").input
    frames = load_photographs(choose_files(caltech101, 12, seed=3), spec).frames
    lowest_bytes = {"jpeg": 550, "webp": 330, "avif": 500}
    for name, points in GRID.items():
        ends = (points[0], max(points))
        sizes = [coded(frames, FrameCodec(name, quality, side))[1].mean() for side, quality in ends]
        assert sizes[0] < lowest_bytes[name], (name, sizes)
        assert 4200 < sizes[1] < 8000, (name, sizes)


@pytest.mark.data
def test_baseline_jpeg_is_smaller_than_progressive_on_real_photographs(caltech101: Path) -> None:
    spec = backbone_spec("efficientnet_lite0").input
    frames = load_photographs(choose_files(caltech101, 12, seed=3), spec).frames
    codec = FrameCodec("jpeg", 20, 224)
    progressive_bytes = 0
    for frame in frames:
        out = io.BytesIO()
        Image.fromarray(frame).save(out, "JPEG", quality=20, optimize=True, progressive=True, subsampling="4:2:0")
        progressive_bytes += len(out.getvalue())
    assert coded(frames, codec)[1].sum() < progressive_bytes


@st.composite
def any_planes(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    bits = draw(st.integers(1, 8))
    shape = draw(st.tuples(st.integers(1, 11), st.integers(1, 20), st.integers(1, 20)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(0, 1 << bits, shape, np.uint8), bits


@given(any_planes(), st.integers(1, 100))
@settings(max_examples=60)
def test_decoded_planes_always_have_their_shape_and_range(case: tuple[np.ndarray, int], quality: int) -> None:
    planes, bits = case
    decoded = decode_planes(encode_planes(planes, bits, quality), planes.shape, bits)
    assert (decoded.dtype, decoded.shape) == (np.dtype(np.uint8), planes.shape)
    assert int(decoded.max()) < 1 << bits


@given(any_planes())
@settings(max_examples=60)
def test_quality_100_is_nearly_exact(case: tuple[np.ndarray, int]) -> None:
    planes, bits = case
    decoded = decode_planes(encode_planes(planes, bits, 100), planes.shape, bits)
    error = np.abs(decoded.astype(int) - planes)
    assert error.max() <= (2 if bits == 8 else 1)
    if bits <= 6:  # a step is 4 or more grey levels, the file's error about one
        assert error.max() == 0


def test_lower_quality_of_planes_costs_fewer_bytes_and_more_error() -> None:
    y, x = np.mgrid[0:28, 0:28]
    waves = np.stack([127 + 120 * np.sin(x / (3 + i)) * np.cos(y / (4 + i)) for i in range(6)]).astype(np.uint8)
    contents = [encode_planes(waves, 8, quality) for quality in (5, 30, 90)]
    errors = [float(np.abs(decode_planes(content, waves.shape, 8).astype(int) - waves).mean()) for content in contents]
    assert all(len(a) < len(b) for a, b in pairwise(contents))
    assert all(a > b for a, b in pairwise(errors)), errors


@pytest.mark.parametrize(
    ("channels", "grid"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (4, (2, 2)), (5, (2, 3)), (8, (3, 3)), (32, (6, 6))]
)
def test_the_mosaic_is_nearly_square(channels: int, grid: tuple[int, int]) -> None:
    assert mosaic_grid(channels) == grid


def test_the_mosaic_lays_the_planes_row_by_row() -> None:
    planes = np.stack([np.full((8, 16), level, np.uint8) for level in (0, 1, 2, 3, 1)])
    mosaic = np.asarray(Image.open(io.BytesIO(encode_planes(planes, 2, 100))))
    assert mosaic.shape == (16, 48)
    tiles = [[int(mosaic[row + 4, column + 8]) for column in (0, 16, 32)] for row in (0, 8)]
    assert tiles == [[0, 85, 170], [255, 85, 0]]


def test_planes_and_files_that_do_not_fit_are_refused() -> None:
    planes = np.full((4, 14, 14), 5, np.uint8)
    with pytest.raises(CodecError, match="value 5, over the limit of 3"):
        encode_planes(planes, 2, 50)
    with pytest.raises(CodecError, match="uint8"):
        encode_planes(planes.astype(np.int64), 4, 50)
    with pytest.raises(CodecError, match="1 to 8 bits, got 9"):
        encode_planes(planes, 9, 50)
    with pytest.raises(SettingsError, match="1 to 100, got 0"):
        encode_planes(planes, 4, 0)
    with pytest.raises(CodecError, match="limit of 65500 a side"):
        encode_planes(np.zeros((1, 1, 65_501), np.uint8), 4, 50)
    content = encode_planes(planes, 4, 50)
    with pytest.raises(CodecError, match="28x28 values of mode L"):
        decode_planes(content, (9, 14, 14), 4)
    with pytest.raises(CodecError, match="do not decode"):
        decode_planes(content[:100], planes.shape, 4)
    colour = FrameCodec("jpeg", 50, 28).encode(picture(28))
    with pytest.raises(CodecError, match="mode RGB"):
        decode_planes(colour, planes.shape, 4)
