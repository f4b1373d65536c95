"""Planes as differences to earlier ones: nothing is lost, nothing is believed, and alike planes take few bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aecnn_deploy.codec import CODERS, DELTA_CODERS, DeltaEncoder, PlaneDecoder, PlaneEncoder, Planes, coder_names
from aecnn_deploy.errors import CodecError, NoReferenceError, PayloadSizeError
from tests.planes import waves

DELTA_ZSTD, DELTA_JPEGLS = 8, 9


def moved(planes: Planes, bits: int, share: float, seed: int = 3) -> Planes:
    """``planes`` with a share of the values one step further."""
    steps = np.random.default_rng(seed).random(planes.shape) < share
    return np.minimum(planes + steps, (1 << bits) - 1).astype(np.uint8)


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 8),
    st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from(sorted(DELTA_CODERS)),
    st.integers(1, 255),
    st.integers(0, 2**32),
)
def test_planes_come_back_from_any_earlier_ones(
    bits: int, shape: tuple[int, int, int], coder: str, distance: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    earlier, planes = rng.integers(0, 1 << bits, (2, *shape), np.uint8)
    planes = np.where(rng.random(shape) < rng.random(), planes, earlier)
    encoded = DeltaEncoder(shape, bits, coder=coder).encode(planes, earlier, distance)
    decoded = PlaneDecoder(shape, bits).decode(encoded.coder_id, encoded.payload, {distance: earlier}.get)
    np.testing.assert_array_equal(decoded, planes)
    assert not decoded.flags.writeable
    assert len(encoded.payload) <= planes.size
    assert encoded.coder in (coder, "raw")


@pytest.mark.parametrize("bits", [4, 8])
def test_alike_planes_take_less_than_half_of_their_own_bytes(bits: int) -> None:
    earlier = waves(16, 14, bits, noise=0.05)
    planes = moved(earlier, bits, 0.05)
    alone = min(
        len(PlaneEncoder(planes.shape, bits, coder=name).encode(planes).payload)
        for name in coder_names()
        if name != "zstd-dict"
    )
    for name in DELTA_CODERS:
        assert len(DeltaEncoder(planes.shape, bits, coder=name).encode(planes, earlier, 1).payload) < alone / 2


def test_unalike_planes_are_sent_raw_and_need_no_reference() -> None:
    earlier, planes = np.random.default_rng(1).integers(0, 256, (2, 3, 8, 8), np.uint8)
    for name in DELTA_CODERS:
        encoded = DeltaEncoder(planes.shape, 8, coder=name).encode(planes, earlier, 1)
        assert (encoded.coder, encoded.payload) == ("raw", planes.tobytes())


def test_small_steps_of_either_sign_are_neighbours_in_a_picture() -> None:
    coder = DELTA_CODERS["delta-jpegls"]
    layout = DeltaEncoder((1, 1, 4), 4, coder="delta-jpegls").layout
    earlier, planes = np.array([[[[5, 5, 0, 15]]], [[[4, 6, 15, 0]]]], np.uint8)
    assert coder.difference(layout, planes, earlier).tolist() == [[[7, 9, 7, 9]]]


def test_what_is_no_difference_is_refused_before_its_planes_are_decoded() -> None:
    decoder = PlaneDecoder((1, 4, 4), 8)
    earlier = {1: np.zeros((1, 4, 4), np.uint8)}.get
    for coder in (DELTA_ZSTD, DELTA_JPEGLS):
        for payload in (b"", b"\1", b"\0" + b"x" * 20):
            with pytest.raises(CodecError, match="begins with a distance of 1 to 255"):
                decoder.decode(coder, payload, earlier)
        with pytest.raises(NoReferenceError, match="no planes are kept of the request 2 before") as caught:
            decoder.decode(coder, b"\2" + b"x" * 20, earlier)
        assert caught.value.distance == 2
        with pytest.raises(NoReferenceError):  # nobody gave any
            decoder.decode(coder, b"\1" + b"x" * 20)
        with pytest.raises(CodecError, match=r"no zstd frame|no whole JPEG-LS scan"):
            decoder.decode(coder, b"\1" + b"x" * 20, earlier)
    frame = PlaneEncoder((1, 8, 8), 8, coder="zstd").encode(np.zeros((1, 8, 8), np.uint8)).payload
    with pytest.raises(PayloadSizeError):
        decoder.decode(DELTA_ZSTD, b"\1" + frame, earlier)


def test_differences_over_the_bits_are_refused() -> None:
    frame = PlaneEncoder((1, 8, 8), 8, coder="zstd").encode(np.full((1, 8, 8), 9, np.uint8)).payload
    with pytest.raises(CodecError, match="the value 9, over the limit of 7"):
        PlaneDecoder((1, 8, 8), 3).decode(DELTA_ZSTD, b"\1" + frame, {1: np.zeros((1, 8, 8), np.uint8)}.get)


def test_an_encoder_refuses_what_it_cannot_code() -> None:
    encoder = DeltaEncoder((1, 2, 2), 4)
    planes = np.zeros((1, 2, 2), np.uint8)
    for distance in (0, 256):
        with pytest.raises(CodecError, match=f"1 to 255 requests back, got {distance}"):
            encoder.encode(planes, planes, distance)
    for bad in (planes[0], planes.astype(np.int16), planes + 16):
        with pytest.raises(CodecError):
            encoder.encode(bad, planes, 1)
        with pytest.raises(CodecError):
            encoder.encode(planes, bad, 1)
    with pytest.raises(CodecError, match="unknown coder of differences 'zstd'; choose one of delta-zstd, delta-jpegls"):
        DeltaEncoder((1, 2, 2), 4, coder="zstd")
    assert all(delta.base in CODERS for delta in DELTA_CODERS.values())
