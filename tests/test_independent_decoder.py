"""The page is enough to write another implementation from: one that was reads its vectors, and what this one sends."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from aecnn_deploy.codec import DeltaEncoder, PlaneEncoder, coder_names, delta_names
from aecnn_deploy.wire import Kind, pack
from tests.independent_decoder import BrokenRuleError, planes_of, read
from tests.planes import DICTIONARY

HERE = Path(__file__).parent
DOCUMENT = (HERE.parent / "docs" / "wire-format.md").read_text()
VECTORS = {
    name: bytes.fromhex(text) for name, text in re.findall(r"`([a-z-]+)\.hex`\n```\n([0-9a-f\s]+)```\n", DOCUMENT)
}


def test_it_is_short_and_knows_nothing_of_this_project() -> None:
    source = (HERE / "independent_decoder.py").read_text()
    assert len(source.splitlines()) <= 150
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {"json", "re", "struct", "zlib", "typing", "jpeg_ls", "zstandard"}


def test_it_reads_every_vector_that_the_page_prints() -> None:
    assert len(VECTORS) == len(list((HERE / "vectors" / "wire1").iterdir()))
    kinds = {name: read(message)[1] for name, message in VECTORS.items()}
    assert set(kinds.values()) == {kind.name for kind in Kind}
    assert all(name.startswith(kind.lower()) for name, kind in kinds.items())


@pytest.mark.parametrize(
    ("name", "shape", "planes"),
    [
        ("infer-raw", (1, 2, 3), "0 1 2 3 4 5"),
        ("infer-zstd", (2, 4, 4), " ".join(["7"] * 32)),
        ("infer-packed", (1, 2, 3), "0 1 2 3 4 5"),
        ("infer-left-zstd", (1, 3, 4), "1 3 6 2 1 2 3 2 3 3 3 6"),
        ("infer-up-zstd", (1, 3, 4), "1 3 6 2 1 4 7 1 3 4 7 4"),
        ("infer-median-zstd", (1, 3, 4), "1 3 6 2 1 4 7 2 3 4 7 5"),
        ("infer-jpegls", (2, 3, 4), "0 1 2 3 1 2 3 4 2 3 4 5 " + "7 " * 11 + "6"),
        ("infer-paeth-zstd", (1, 3, 4), "1 3 6 2 4 3 0 5 7 2 1 6"),
        ("infer-delta-zstd", (1, 2, 3), "0 1 2 3 3 6"),
        ("infer-delta-jpegls", (2, 3, 4), "1 1 2 3 1 2 3 4 2 3 4 5 0" + " 7" * 10 + " 5"),
    ],
)
def test_it_decodes_the_planes_that_the_page_names(name: str, shape: tuple[int, int, int], planes: str) -> None:
    earlier = {1: planes_of(VECTORS["infer-raw"], (1, 2, 3), 3), 7: planes_of(VECTORS["infer-jpegls"], (2, 3, 4), 3)}
    found = planes_of(VECTORS[name], shape, 3, earlier)
    assert np.array(found).ravel().tolist() == [int(value) for value in planes.split()]


def test_it_decodes_the_vector_with_the_pages_dictionary() -> None:
    (printed,) = re.findall(r"`tests/vectors/dictionary.hex`:\n\n```\n([0-9a-f\s]+)```\n", DOCUMENT)
    row, column = np.mgrid[0:14, 0:14]
    found = planes_of(VECTORS["infer-zstd-dict"], (1, 14, 14), 8, dictionary=("median", bytes.fromhex(printed)))
    assert found == [(20 + 9 * row + 5 * column + (row * column) % 3).tolist()]
    assert bytes.fromhex(printed) == DICTIONARY.content


@pytest.mark.parametrize("bits", range(1, 9))
def test_it_decodes_what_this_implementation_sends(bits: int) -> None:
    y, x = np.mgrid[0:9, 0:7]
    wave = 0.5 + 0.5 * np.sin(x / 3 + np.arange(3)[:, None, None]) * np.cos(y / 4)
    planes = (wave * ((1 << bits) - 1)).astype(np.uint8)
    dictionary = DICTIONARY.predictor, DICTIONARY.content
    for number, coder in enumerate(coder_names(), 1):
        encoded = PlaneEncoder(planes.shape, bits, coder=coder, dictionary=DICTIONARY).encode(planes)
        message = pack(
            Kind.INFER, encoded.payload, request_id=number, coder=encoded.coder_id, raw_bytes=encoded.raw_bytes
        )
        assert planes_of(message, (3, 9, 7), bits, dictionary=dictionary) == planes.tolist(), coder
    now = planes.copy()
    now[1, 3:5] ^= 1
    for coder in delta_names():
        encoded = DeltaEncoder(planes.shape, bits, coder=coder).encode(now, planes, 2)
        assert encoded.coder == coder
        message = pack(Kind.INFER, encoded.payload, request_id=9, coder=encoded.coder_id, raw_bytes=encoded.raw_bytes)
        assert planes_of(message, (3, 9, 7), bits, {7: planes.tolist()}) == now.tolist(), coder
        with pytest.raises(BrokenRuleError, match="a reference that is kept"):
            planes_of(message, (3, 9, 7), bits, {8: planes.tolist()})


def test_it_refuses_a_vector_with_any_byte_of_its_header_changed() -> None:
    for message in VECTORS.values():
        for index in range(36):
            damaged = bytearray(message)
            damaged[index] ^= 1
            with pytest.raises(BrokenRuleError):
                read(bytes(damaged))
