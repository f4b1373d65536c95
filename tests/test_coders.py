"""Each coder beside zstd: what its bytes are, what it refuses, and what happens where its library is missing."""

import sys
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aecnn_deploy.codec import (
    EncodedPlanes,
    PlaneDecoder,
    PlaneDictionary,
    PlaneEncoder,
    PlaneLayout,
    coder_names,
    delta_names,
)
from aecnn_deploy.codec.prediction import PREDICTORS, residuals, restore
from aecnn_deploy.errors import CodecError, MissingExtraError, PayloadSizeError
from tests.planes import DICTIONARY, waves

PACKED, LEFT, UP, MEDIAN, JPEGLS, ZSTD_DICT, PAETH = 2, 3, 4, 5, 6, 7, 10


def encoded(planes: np.ndarray, bits: int, coder: str) -> EncodedPlanes:
    return PlaneEncoder(planes.shape, bits, coder=coder, dictionary=DICTIONARY).encode(planes)


def by_the_book(planes: np.ndarray, mask: int, predictor: str) -> np.ndarray:
    """docs/wire-format.md's table of predictions, value by value."""
    out = np.zeros_like(planes)
    for channel, row, column in np.ndindex(planes.shape):
        plane = planes[channel].astype(int)
        a = plane[row, column - 1] if column else 0
        b = plane[row - 1, column] if row else 0
        c = plane[row - 1, column - 1] if row and column else 0
        if not row:
            predicted = a
        elif not column:
            predicted = b
        else:
            near = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            predicted = {"left": a, "up": b, "median": sorted((a, b, a + b - c))[1], "paeth": near}[predictor]
        out[channel, row, column] = (plane[row, column] - predicted) & mask
    return out


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 8),
    st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    st.sampled_from(sorted(PREDICTORS)),
    st.integers(0, 2**32),
)
def test_predictions_are_the_documents(bits: int, shape: tuple[int, int, int], predictor: str, seed: int) -> None:
    layout = PlaneLayout(shape, bits)
    planes = np.random.default_rng(seed).integers(0, layout.mask + 1, shape, np.uint8)
    left_over = residuals(layout, planes, predictor)
    np.testing.assert_array_equal(left_over, by_the_book(planes, layout.mask, predictor))
    np.testing.assert_array_equal(restore(layout, left_over, predictor), planes)


@pytest.mark.parametrize("coder", [LEFT, UP, MEDIAN, PAETH])
def test_residuals_over_the_bits_still_give_values_within_them(coder: int) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (2, 9, 7), np.uint8)
    frame = PlaneEncoder(noise.shape, 8, coder="zstd")._encode(noise)
    assert frame is not None
    assert PlaneDecoder(noise.shape, 3).decode(coder, frame).max() <= 7


@pytest.mark.parametrize(("bits", "size"), [(1, 4), (2, 7), (3, 11), (4, 14), (5, 17), (6, 21), (7, 24)])
def test_packed_planes_take_their_bits_and_no_more(bits: int, size: int) -> None:
    planes = np.random.default_rng(bits).integers(0, 1 << bits, (1, 3, 9), np.uint8)
    encoded = PlaneEncoder(planes.shape, bits, coder="packed").encode(planes)
    assert (encoded.coder_id, len(encoded.payload)) == (PACKED, size)
    text = "".join(f"{value:0{bits}b}" for value in planes.ravel())
    assert encoded.payload == int(text.ljust(8 * size, "0"), 2).to_bytes(size, "big")


def test_packed_payloads_of_another_size_or_with_dirty_padding_are_refused() -> None:
    decoder = PlaneDecoder((1, 3, 3), 3)
    for size in (0, 3, 5):
        with pytest.raises(PayloadSizeError) as caught:
            decoder.decode(PACKED, bytes(size))
        assert (caught.value.got, caught.value.expected) == (size, 4)
    assert decoder.decode(PACKED, b"\xff\xff\xff\xe0").min() == 7
    for last in (0xE1, 0xF0):
        with pytest.raises(CodecError, match="fill the last byte up with zeros"):
            decoder.decode(PACKED, b"\xff\xff\xff" + bytes([last]))


def test_prediction_and_jpegls_shrink_smooth_planes() -> None:
    planes = waves(4, 56, 8)
    size = {name: len(encoded(planes, 8, name).payload) for name in coder_names()}
    assert size["jpegls"] < size["median-zstd"] < size["zstd"] < size["raw"]
    assert max(size["left-zstd"], size["up-zstd"]) < size["zstd"]


@pytest.mark.parametrize("bits", range(1, 9))
def test_jpegls_sends_the_scan_of_a_plain_picture(bits: int) -> None:
    planes = waves(3, 14, bits)
    encoded = PlaneEncoder(planes.shape, bits, coder="jpegls").encode(planes)
    assert encoded.coder_id == JPEGLS
    precision = max(2, bits)
    before = bytes.fromhex(f"ffd8 fff7000b {precision:02x} 002a 000e 01011100 ffda0008010100000000")
    from jpeg_ls import decode_buffer

    data, facts = decode_buffer(before + encoded.payload + b"\xff\xd9")
    assert bytes(data) == planes.tobytes()
    assert (facts["height"], facts["width"], facts["allowed_lossy_error"]) == (42, 14, 0)


def test_a_jpegls_scan_that_is_cut_or_foreign_is_refused() -> None:
    planes = np.random.default_rng(5).integers(0, 16, (4, 14, 14), np.uint8) // 3
    payload = PlaneEncoder(planes.shape, 4, coder="jpegls").encode(planes).payload
    decoder = PlaneDecoder(planes.shape, 4)
    np.testing.assert_array_equal(decoder.decode(JPEGLS, memoryview(payload)), planes)
    with pytest.raises(CodecError, match="no whole JPEG-LS scan"):
        decoder.decode(JPEGLS, payload[: len(payload) // 2])
    with pytest.raises(CodecError, match="no whole JPEG-LS scan"):
        decoder.decode(JPEGLS, b"")
    another = bytes.fromhex("ffd8fff7000b08ffffffff01011100ffda0008010100000000")  # claims four gigabytes
    for marker in (b"\xff\xd9", another, b"\xff"):
        with pytest.raises(CodecError, match="holds a marker; send the scan alone"):
            decoder.decode(JPEGLS, marker + payload if len(marker) > 1 else payload + marker)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_scans_raise_only_codec_errors(data: st.DataObject) -> None:
    planes = waves(2, 12, 4)
    payload = bytearray(PlaneEncoder(planes.shape, 4, coder="jpegls").encode(planes).payload)
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = PlaneDecoder(planes.shape, 4).decode(JPEGLS, bytes(payload))
    except CodecError:
        return
    assert decoded.shape == planes.shape
    assert decoded.max() < 16


def test_planes_that_no_jpegls_picture_can_hold_are_refused_by_name() -> None:
    with pytest.raises(CodecError, match="make 70000 rows of 1; choose another coder"):
        PlaneEncoder((70_000, 1, 1), 8, coder="jpegls")
    with pytest.raises(CodecError, match="at most 65535 rows and columns"):
        PlaneDecoder((1, 1, 70_000), 8).decode(JPEGLS, b"0")


def test_where_pyjpegls_is_missing_the_coder_is_not_offered_and_named_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "jpeg_ls", None)
    assert coder_names() == ("raw", "zstd", "packed", "left-zstd", "up-zstd", "median-zstd", "zstd-dict", "paeth-zstd")
    assert delta_names() == ("delta-zstd",)
    with pytest.raises(MissingExtraError, match=r"aecnn-deploy\[device\]"):
        PlaneEncoder((1, 2, 2), 8, coder="jpegls")
    with pytest.raises(CodecError, match="jpeg_ls"):
        PlaneDecoder((1, 2, 2), 8).decode(JPEGLS, b"1234")


def test_a_dictionary_makes_small_planes_smaller_than_any_coder_without_it() -> None:
    planes = waves(1, 14, 8, seed=9, noise=0.02)
    size = {name: len(encoded(planes, 8, name).payload) for name in coder_names() if name != "jpegls"}
    assert min(size, key=lambda name: size[name]) == "zstd-dict"
    assert size["zstd-dict"] < 0.9 * size["median-zstd"]


def test_a_frame_that_was_made_with_a_dictionary_needs_it() -> None:
    planes = waves(1, 14, 8, seed=9, noise=0.02)
    payload = encoded(planes, 8, "zstd-dict").payload
    decoder = PlaneDecoder(planes.shape, 8)
    with pytest.raises(CodecError, match="the bundle has no dictionary for these planes"):
        decoder.decode(ZSTD_DICT, payload)
    with pytest.raises(CodecError, match="no whole zstd frame"):
        decoder.decode(1, payload)
    with pytest.raises(CodecError, match="the bundle has no dictionary for these planes; choose another coder"):
        PlaneEncoder(planes.shape, 8, coder="zstd-dict")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with b''"),
        (b"text" * 100, "begins with b'text'"),
        (DICTIONARY.content[:8], "is damaged"),
        (DICTIONARY.content[:140], "is damaged"),
        (DICTIONARY.content[:4] + bytes(300), "is damaged"),
        (DICTIONARY.content + bytes(112 << 10), "over the limit of 114688"),
    ],
)
def test_a_truncated_or_foreign_dictionary_is_refused_when_it_is_loaded(content: bytes, message: str) -> None:
    bad = PlaneDictionary("median", content)
    for make in (
        lambda: PlaneEncoder((1, 4, 4), 8, coder="zstd-dict", dictionary=bad),
        lambda: PlaneDecoder((1, 4, 4), 8, dictionary=bad),
    ):
        with pytest.raises(CodecError, match=message):
            make()


def test_a_dictionary_of_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(CodecError, match="for the predictor 'linear'; upgrade this half"):
        PlaneDecoder((1, 4, 4), 8, dictionary=PlaneDictionary("linear", DICTIONARY.content))


@pytest.mark.parametrize("predictor", ["none", "left", "up", "median", "paeth"])
def test_a_dictionary_serves_what_its_prediction_leaves(predictor: str) -> None:
    planes = waves(2, 14, 5)
    dictionary = PlaneDictionary(predictor, DICTIONARY.content)
    made = PlaneEncoder(planes.shape, 5, coder="zstd-dict", dictionary=dictionary).encode(planes)
    assert made.coder == "zstd-dict"
    decoder = PlaneDecoder(planes.shape, 5, dictionary=dictionary)
    np.testing.assert_array_equal(decoder.decode(made.coder_id, made.payload), planes)
    over = PlaneEncoder(planes.shape, 8, coder="zstd-dict", dictionary=dictionary).encode(planes | 0xE0)
    with pytest.raises(CodecError, match="over the limit of 31") if predictor == "none" else nullcontext():
        assert decoder.decode(over.coder_id, over.payload).max() <= 31
