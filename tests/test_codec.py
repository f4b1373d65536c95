"""Planes to bytes and back: nothing is lost, and no payload makes a decoder do more than its planes need."""

import os
import struct
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from aecnn_deploy.codec import CODERS, DELTA_CODERS, PlaneDecoder, PlaneEncoder, coder_by_name, coder_names, delta_names
from aecnn_deploy.errors import CodecError, PayloadSizeError, SettingsError
from tests.planes import DICTIONARY

RAW, ZSTD = 0, 1
MAGIC = zstandard.FRAME_HEADER


def smooth_planes(channels: int, side: int, bits: int) -> np.ndarray:
    """Planes that look like activations: waves and a little noise."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:side, 0:side]
    period, phase = rng.uniform(4, 9, (2, channels, 1, 1)), rng.uniform(0, 6, (channels, 1, 1))
    waves = 0.5 + 0.3 * np.sin(x / period[0] + phase) * np.cos(y / period[1])
    noisy = waves + rng.normal(0, 0.01, waves.shape)
    return (noisy.clip(0, 1) * ((1 << bits) - 1)).astype(np.uint8)


def rle_frame(declared: int, held: int, *, dict_id: int = 0, window_log: int | None = None) -> bytes:
    """A zstd frame by hand (RFC 8878): it declares ``declared`` bytes and holds ``held`` times the byte 1."""
    descriptor = 2 << 6 | (0 if window_log else 1 << 5) | (1 if dict_id else 0)
    window = bytes([(window_log - 10) << 3]) if window_log else b""
    dictionary = bytes([dict_id]) if dict_id else b""
    block = struct.pack("<I", held << 3 | 1 << 1 | 1)[:3] + b"\x01"
    return MAGIC + bytes([descriptor]) + window + dictionary + struct.pack("<I", declared) + block


@st.composite
def planes_of_any_bits(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    bits = draw(st.integers(1, 8))
    shape = tuple(draw(st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    top = draw(st.integers(0, (1 << bits) - 1))  # a low top makes planes that coding shrinks
    return rng.integers(0, top + 1, shape, np.uint8), bits


@settings(deadline=None)
@given(planes_of_any_bits(), st.sampled_from(list(CODERS)), st.sampled_from([1, 3, 19]))
def test_planes_of_every_bit_depth_survive_the_round_trip(case: tuple[np.ndarray, int], coder: str, level: int) -> None:
    planes, bits = case
    encoded = PlaneEncoder(planes.shape, bits, coder=coder, level=level, dictionary=DICTIONARY).encode(planes)
    decoded = PlaneDecoder(planes.shape, bits, dictionary=DICTIONARY).decode(encoded.coder_id, encoded.payload)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, planes)
    assert encoded.raw_bytes == planes.size
    assert len(encoded.payload) <= encoded.raw_bytes
    assert CODERS[encoded.coder].wire_id == encoded.coder_id


def test_one_encoder_and_one_decoder_serve_many_images() -> None:
    planes = smooth_planes(8, 28, 8)
    encoder, decoder = PlaneEncoder(planes.shape, 8), PlaneDecoder(planes.shape, 8)
    for shift in range(20):
        image = np.roll(planes, shift, axis=1)
        encoded = encoder.encode(image)
        np.testing.assert_array_equal(decoder.decode(encoded.coder_id, memoryview(encoded.payload)), image)


def test_smooth_planes_shrink_and_a_higher_level_shrinks_them_more() -> None:
    planes = smooth_planes(32, 28, 4)
    fast, small = (PlaneEncoder(planes.shape, 4, level=level).encode(planes) for level in (1, 19))
    assert fast.coder == small.coder == "zstd"
    assert len(small.payload) < len(fast.payload) < planes.size / 2


def test_planes_that_do_not_shrink_are_sent_raw() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (2, 16, 16), np.uint8)
    encoded = PlaneEncoder(noise.shape, 8).encode(noise)
    assert (encoded.coder, encoded.coder_id, encoded.payload) == ("raw", RAW, noise.tobytes())


def test_planes_need_not_be_contiguous() -> None:
    planes = smooth_planes(4, 12, 8).transpose(0, 2, 1)
    assert not planes.flags.c_contiguous
    for coder in coder_names():
        encoded = PlaneEncoder(planes.shape, 8, coder=coder, dictionary=DICTIONARY).encode(planes)
        decoder = PlaneDecoder(planes.shape, 8, dictionary=DICTIONARY)
        np.testing.assert_array_equal(decoder.decode(encoded.coder_id, encoded.payload), planes)


def test_wire_ids_are_the_documented_constants() -> None:
    assert {name: coder.wire_id for name, coder in CODERS.items()} == {
        "raw": 0,
        "zstd": 1,
        "packed": 2,
        "left-zstd": 3,
        "up-zstd": 4,
        "median-zstd": 5,
        "jpegls": 6,
        "zstd-dict": 7,
        "paeth-zstd": 10,
    }
    assert {name: coder.wire_id for name, coder in DELTA_CODERS.items()} == {"delta-zstd": 8, "delta-jpegls": 9}
    assert coder_names() == tuple(CODERS)
    assert delta_names() == tuple(DELTA_CODERS)
    assert all(coder_by_name(name) is coder for name, coder in CODERS.items())


def test_unknown_coders_are_refused_with_the_known_ones() -> None:
    with pytest.raises(CodecError, match="unknown coder 'gzip'; choose one of raw, zstd, packed, "):
        PlaneEncoder((1, 2, 2), 8, coder="gzip")
    with pytest.raises(CodecError, match=r"unknown coder id 11; this version knows 0 \(raw\), .*9 \(delta-jpegls\)"):
        PlaneDecoder((1, 2, 2), 8).decode(11, b"1234")


@pytest.mark.parametrize("level", [0, 23, -1])
def test_impossible_levels_are_refused(level: int) -> None:
    with pytest.raises(SettingsError, match=f"levels 1 to 22, got {level}"):
        PlaneEncoder((1, 2, 2), 8, level=level)


@pytest.mark.parametrize("half", [PlaneEncoder, PlaneDecoder])
@pytest.mark.parametrize(("shape", "bits"), [((0, 2, 2), 8), ((2, 2), 8), ((1, 2, 2), 0), ((1, 2, 2), 9)])
def test_impossible_planes_are_refused(half: Callable[..., object], shape: tuple[int, ...], bits: int) -> None:
    with pytest.raises(CodecError, match="check the manifest"):
        half(shape, bits)


@pytest.mark.parametrize(
    ("planes", "message"),
    [
        (np.zeros((1, 2, 3), np.int8), "expects uint8 .* got int8"),
        (np.zeros((1, 2, 3), np.float32), "got float32"),
        (np.zeros((1, 3, 2), np.uint8), r"got uint8 \(1, 3, 2\)"),
        (np.zeros((1, 1, 2, 3), np.uint8), r"got uint8 \(1, 1, 2, 3\)"),
        (np.full((1, 2, 3), 16, np.uint8), "the value 16, over the limit of 15 for 4 bits"),
    ],
)
def test_planes_of_another_variant_are_not_encoded(planes: np.ndarray, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        PlaneEncoder((1, 2, 3), 4).encode(planes)


@pytest.mark.parametrize("coder", ["raw", "zstd"])
def test_values_over_the_bits_are_refused_after_decoding(coder: str) -> None:
    planes = np.full((1, 8, 8), 15, np.uint8)
    encoded = PlaneEncoder(planes.shape, 4, coder=coder).encode(planes)
    with pytest.raises(CodecError, match="the value 15, over the limit of 7 for 3 bits"):
        PlaneDecoder(planes.shape, 3).decode(encoded.coder_id, encoded.payload)


def test_the_handmade_frame_is_one_that_decodes() -> None:
    """Shows that the refusals below have the reason that they name."""
    for frame in (rle_frame(64, 64), rle_frame(64, 64, window_log=23)):
        np.testing.assert_array_equal(PlaneDecoder((1, 8, 8), 1).decode(ZSTD, frame), np.ones((1, 8, 8), np.uint8))


@pytest.mark.parametrize(
    ("coder_id", "payload", "got"),
    [
        (RAW, b"", 0),
        (RAW, bytes(63), 63),
        (RAW, bytes(65), 65),
        (ZSTD, rle_frame(63, 63), 63),
        (ZSTD, rle_frame(1 << 30, 64), 1 << 30),
    ],
)
def test_payloads_of_another_size_are_refused(coder_id: int, payload: bytes, got: int) -> None:
    with pytest.raises(PayloadSizeError) as caught:
        PlaneDecoder((1, 8, 8), 8).decode(coder_id, payload)
    assert (caught.value.got, caught.value.expected) == (got, 64)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "no zstd frame"),
        (MAGIC[:3], "no zstd frame"),
        (MAGIC, "no whole zstd frame"),
        (rle_frame(64, 64)[:-1], "no whole zstd frame"),
        (rle_frame(64, 64) + b"\0", "unused data"),
        (rle_frame(64, 64) * 2, "unused data"),
        (rle_frame(64, 128), "no whole zstd frame"),
        (rle_frame(64, 32), "no whole zstd frame"),
        (rle_frame(64, 64, dict_id=5), "needs dictionary 5"),
        (rle_frame(64, 64, window_log=30), "a window of 1073741824 bytes, over the limit of 8388608"),
        (struct.pack("<II", 0x184D2A50, 64) + bytes(64), "no zstd frame"),  # a skippable frame
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64)), "declares no content size"),
    ],
)
def test_zstd_payloads_that_break_the_rules_are_refused(payload: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        PlaneDecoder((1, 8, 8), 8).decode(ZSTD, payload)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 255), st.binary(max_size=80), st.booleans())
def test_garbage_raises_only_codec_errors(coder_id: int, garbage: bytes, framed: bool) -> None:
    payload = MAGIC + garbage if framed else garbage
    try:
        planes = PlaneDecoder((1, 4, 4), 4).decode(coder_id % 8, payload)
    except CodecError:
        return
    assert planes.shape == (1, 4, 4)
    assert planes.max() < 16


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_frames_raise_only_codec_errors(data: st.DataObject) -> None:
    planes = smooth_planes(2, 14, 4)
    payload = bytearray(PlaneEncoder(planes.shape, 4).encode(planes).payload)
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = PlaneDecoder(planes.shape, 4).decode(ZSTD, bytes(payload[: data.draw(st.integers(0, len(payload)))]))
    except CodecError:
        return
    assert decoded.shape == planes.shape  # damage that zstd cannot see; the message's checksum does
    assert decoded.max() < 16


BOMB = """
import resource
import zstandard
from aecnn_deploy.codec import PlaneDecoder
from aecnn_deploy.errors import PayloadSizeError

bomb = bytearray()
stream = zstandard.ZstdCompressor(level=1).compressobj(size=1 << 30)
for _ in range(1 << 10):
    bomb += stream.compress(bytes(1 << 20))
bomb = bytes(bomb + stream.flush())
assert len(bomb) < 200_000 and zstandard.frame_content_size(bomb) == 1 << 30

decoder = PlaneDecoder((32, 28, 28), 8)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20),) * 2)  # 64 MiB more and no byte beyond
try:
    zstandard.ZstdDecompressor().decompress(bomb)
except MemoryError:
    print("it is a bomb")
try:
    decoder.decode(1, bomb)
except PayloadSizeError as exc:
    print("refused", exc.got, exc.expected)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory by RLIMIT_AS")
def test_decompression_bomb_of_one_gibibyte_is_refused_before_decompression() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BOMB)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.stdout.splitlines() == ["it is a bomb", f"refused {1 << 30} {32 * 28 * 28}"], done.stderr


def test_refusing_a_bomb_takes_no_memory() -> None:
    decoder, frame = PlaneDecoder((32, 28, 28), 8), rle_frame(1 << 30, 1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadSizeError):
            decoder.decode(ZSTD, frame)
        assert tracemalloc.get_traced_memory()[1] < 64 << 10
    finally:
        tracemalloc.stop()
