"""Compressed bodies of the Open Inference Protocol: what comes back, what is refused, and how much is taken for it."""

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecnn_deploy.errors import RequestFailedError
from aecnn_deploy.runtimes.oip_encoding import compress, inflate
from aecnn_deploy.runtimes.oip_failures import STATUS


def refusal(parsing: Callable[[], object]) -> RequestFailedError:
    with pytest.raises(RequestFailedError) as caught:
        parsing()
    check(caught.value)
    return caught.value


def check(error: RequestFailedError) -> None:
    assert error.code in STATUS
    assert error.reason.isprintable()


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_what_was_compressed_comes_back(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    body = bytes(range(24)) * 100
    assert inflate(pack(body), encoding, len(body)) == body
    smaller, name = compress(body, f"br, {encoding};q=0.5")
    assert name == encoding
    assert inflate(smaller, name, len(body)) == body


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_bomb_is_refused_at_the_limit(pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(b"\0" * 20_000_000)
    assert len(bomb) < 25_000
    encoding = "gzip" if pack is gzip.compress else "deflate"
    tracemalloc.start()
    try:
        assert refusal(lambda: inflate(bomb, encoding, 1_000_000)).code == "too-large"
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (gzip.compress(b"x" * 100, mtime=0)[:-1], "ends too early"),
        (gzip.compress(b"x", mtime=0) + b"more", "4 bytes follow"),
        (b"no gzip", "is no gzip data"),
        (b"", "ends too early"),
    ],
)
def test_a_damaged_body_is_named(body: bytes, told: str) -> None:
    assert told in refusal(lambda: inflate(body, "gzip", 1000)).reason


def test_an_unknown_encoding_is_refused_with_those_that_are_known() -> None:
    error = refusal(lambda: inflate(b"x", "br", 1000))
    assert (error.code, STATUS[error.code]) == ("bad-encoding", 415)
    assert "gzip, deflate, identity" in error.reason


@pytest.mark.parametrize("accepted", ["", "br", "gzip;q=0", "deflate; q=0.0, identity"])
def test_nothing_is_compressed_for_who_does_not_ask(accepted: str) -> None:
    assert compress(b"\0" * 5000, accepted) == (b"\0" * 5000, "")


def test_what_does_not_become_smaller_stays_as_it_is() -> None:
    noise = np.random.default_rng(0).bytes(3000)
    assert compress(noise, "gzip") == (noise, "")
    assert compress(b"small", "gzip") == (b"small", "")


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", "br", "x\n", "GZIP "]))
def test_any_compressed_body_is_bytes_or_refused(body: bytes, encoding: str) -> None:
    try:
        assert len(inflate(body, encoding, 100)) <= 100
    except RequestFailedError as exc:
        check(exc)
