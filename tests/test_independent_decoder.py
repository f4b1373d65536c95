"""The page is enough to write another implementation from: one that was reads its vectors, and what this one sends."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from aecnn_deploy.codec import PlaneEncoder, coder_names
from aecnn_deploy.wire import Kind, pack
from tests.independent_decoder import BrokenRuleError, planes_of, read

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
    ],
)
def test_it_decodes_the_planes_that_the_page_names(name: str, shape: tuple[int, int, int], planes: str) -> None:
    assert np.array(planes_of(VECTORS[name], shape, 3)).ravel().tolist() == [int(value) for value in planes.split()]


@pytest.mark.parametrize("bits", range(1, 9))
def test_it_decodes_what_this_implementation_sends(bits: int) -> None:
    y, x = np.mgrid[0:9, 0:7]
    wave = 0.5 + 0.5 * np.sin(x / 3 + np.arange(3)[:, None, None]) * np.cos(y / 4)
    planes = (wave * ((1 << bits) - 1)).astype(np.uint8)
    for number, coder in enumerate(coder_names(), 1):
        encoded = PlaneEncoder(planes.shape, bits, coder=coder).encode(planes)
        message = pack(
            Kind.INFER, encoded.payload, request_id=number, coder=encoded.coder_id, raw_bytes=encoded.raw_bytes
        )
        assert planes_of(message, (3, 9, 7), bits) == planes.tolist(), coder


def test_it_refuses_a_vector_with_any_byte_of_its_header_changed() -> None:
    for message in VECTORS.values():
        for index in range(36):
            damaged = bytearray(message)
            damaged[index] ^= 1
            with pytest.raises(BrokenRuleError):
                read(bytes(damaged))
