"""The golden vectors and docs/wire-format.md: what is written down is what is done."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from aecnn_deploy.codec import CODERS, DELTA_CODERS, PlaneDecoder
from aecnn_deploy.wire import (
    DEVICE_TABLE,
    EDGE_TABLE,
    Failed,
    FailureCode,
    Goodbye,
    Hello,
    Kind,
    MessageReader,
    RefusalCode,
    Refused,
    Result,
    Welcome,
    WireLimits,
    decode_control,
    encode_control,
    pack,
)
from tests.planes import DICTIONARY

VECTORS = Path(__file__).parent / "vectors" / "wire1"
DOCUMENT = (Path(__file__).parents[1] / "docs" / "wire-format.md").read_text()

BUNDLE = "3f" * 32
VARIANTS = ["resnet50-l1-v16-u8", "resnet50-l1-v32-u8"]
CODER_NAMES = ["raw", "zstd"]
SOFTWARE = "aecnn-deploy 0.1.0"
TOO_LONG = "zstd frame declares 64 bytes, the planes have 32; use the same variant on both halves"

# name -> kind, request id, object
CONTROL = {
    "hello": (Kind.HELLO, 0, Hello(BUNDLE, [1], VARIANTS, CODER_NAMES, SOFTWARE)),
    "hello-trace": (
        Kind.HELLO,
        0,
        Hello(BUNDLE, [1], VARIANTS, CODER_NAMES, SOFTWARE, "000102030405060708090a0b0c0d0e0f", "front door"),
    ),
    "welcome": (
        Kind.WELCOME,
        0,
        Welcome(1, BUNDLE, VARIANTS, CODER_NAMES, 4, 8388608, 8388608, "onnxruntime", SOFTWARE),
    ),
    "welcome-references": (
        Kind.WELCOME,
        0,
        Welcome(1, BUNDLE, VARIANTS, [*CODER_NAMES, "delta-zstd"], 4, 8388608, 8388608, "onnxruntime", SOFTWARE, 5),
    ),
    "hello-uses": (Kind.HELLO, 0, Hello(BUNDLE, [1], VARIANTS, CODER_NAMES, SOFTWARE, uses=[0, 1])),
    "welcome-load": (
        Kind.WELCOME,
        0,
        Welcome(
            *(1, BUNDLE, VARIANTS, CODER_NAMES, 4, 8388608, 8388608, "onnxruntime", SOFTWARE),
            load=[(0, 0.0, 12.5)],
        ),
    ),
    "refused": (Kind.REFUSED, 0, Refused(RefusalCode.BUNDLE_MISMATCH, "this edge serves bundle 3f3f3f3f3f3f")),
    "result": (Kind.RESULT, 1, Result([(281, 0.75), (282, 0.125)], 0.25, 0.5, 12.5, 13.5, 2, VARIANTS[1])),
    "result-load": (
        Kind.RESULT,
        2,
        Result(
            *([(281, 0.75)], 0.25, 0.5, 12.5, 13.5, 2, VARIANTS[1], 1),
            load=[(0, 1.25, 12.5), (1, 0.0, 40.0)],
        ),
    ),
    "failed": (Kind.FAILED, 2, Failed(FailureCode.BAD_PAYLOAD, TOO_LONG)),
    "failed-retry": (Kind.FAILED, 3, Failed(FailureCode.OVERLOADED, "64 requests wait", 0.5)),
    "failed-reference": (
        Kind.FAILED,
        11,
        Failed(FailureCode.NO_REFERENCE, "no planes are kept of the request 9 before this one"),
    ),
    "goodbye": (Kind.GOODBYE, 0, Goodbye("the edge is stopping")),
}

# A raw block: the residuals of three predictions.
RESIDUALS = bytes.fromhex("28b52ffd 20 0c 610000 01020304 00010107 02000003")
SLOPE_AND_FLAT = [[[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]], [[7, 7, 7, 7], [7, 7, 7, 7], [7, 7, 7, 6]]]

# name -> payload, request id, variant, coder, deadline, raw size
INFER = {
    "infer-raw": (bytes(range(6)), 1, 1, 0, 250, 6),
    "infer-zstd": (bytes.fromhex("28b52ffd 20 20 030100 07"), 2, 0, 1, 0, 32),
    "infer-packed": (bytes.fromhex("053940"), 3, 0, 2, 0, 6),
    "infer-left-zstd": (RESIDUALS, 4, 0, 3, 0, 12),
    "infer-up-zstd": (RESIDUALS, 5, 0, 4, 0, 12),
    "infer-median-zstd": (RESIDUALS, 6, 0, 5, 0, 12),
    "infer-jpegls": (bytes.fromhex("bf4a5e01b5f2"), 7, 1, 6, 0, 24),
    "infer-zstd-dict": (
        bytes.fromhex("28b52ffd20c4e50000b30002cc7b92713132b04605fc8b5615b0c483a583d473a764476104"),
        *(8, 0, 7, 0, 196),
    ),
    "infer-delta-zstd": (bytes.fromhex("08 28b52ffd 20 06 310000 000000000701"), 9, 1, 8, 0, 6),
    "infer-delta-jpegls": (bytes.fromhex("0312f57e55af20"), 10, 1, 9, 0, 24),
    "infer-paeth-zstd": (bytes.fromhex("28b52ffd 20 0c 610000 010203040307020503030101"), 11, 0, 10, 0, 12),
    "infer-extremes": (b"\xff", 2**64 - 1, 2**16 - 1, 255, 2**32 - 1, 8 << 20),
}


def vector(name: str) -> bytes:
    return bytes.fromhex((VECTORS / f"{name}.hex").read_text())


def test_every_vector_is_tested_and_every_kind_has_one() -> None:
    assert {path.stem for path in VECTORS.iterdir()} == CONTROL.keys() | INFER.keys()
    assert {vector(name)[5] for name in CONTROL.keys() | INFER.keys()} == {kind.value for kind in Kind}


@pytest.mark.parametrize("name", CONTROL)
def test_control_messages_are_the_golden_bytes(name: str) -> None:
    kind, request_id, control = CONTROL[name]
    assert pack(kind, encode_control(control), request_id=request_id) == vector(name)
    (message,) = MessageReader(WireLimits()).feed(vector(name))
    assert (message.header.kind, message.header.request_id) == (kind, request_id)
    assert decode_control(type(control), message.payload) == control


@pytest.mark.parametrize("name", INFER)
def test_infer_messages_are_the_golden_bytes(name: str) -> None:
    payload, request_id, variant, coder, deadline_ms, raw_bytes = INFER[name]
    fields = {
        "request_id": request_id,
        "variant": variant,
        "coder": coder,
        "deadline_ms": deadline_ms,
        "raw_bytes": raw_bytes,
    }
    assert pack(Kind.INFER, payload, **fields) == vector(name)
    (message,) = MessageReader(WireLimits()).feed(vector(name))
    assert message.payload == payload
    assert {key: getattr(message.header, key) for key in fields} == fields


@pytest.mark.parametrize(
    ("name", "planes"),
    [
        ("infer-raw", np.arange(6, dtype=np.uint8).reshape(1, 2, 3)),
        ("infer-zstd", np.full((2, 4, 4), 7, np.uint8)),
        ("infer-packed", np.arange(6, dtype=np.uint8).reshape(1, 2, 3)),
        ("infer-left-zstd", [[[1, 3, 6, 2], [1, 2, 3, 2], [3, 3, 3, 6]]]),
        ("infer-up-zstd", [[[1, 3, 6, 2], [1, 4, 7, 1], [3, 4, 7, 4]]]),
        ("infer-median-zstd", [[[1, 3, 6, 2], [1, 4, 7, 2], [3, 4, 7, 5]]]),
        ("infer-jpegls", SLOPE_AND_FLAT),
        ("infer-paeth-zstd", [[[1, 3, 6, 2], [4, 3, 0, 5], [7, 2, 1, 6]]]),
        ("infer-zstd-dict", [[[20 + 9 * r + 5 * c + (r * c) % 3 for c in range(14)] for r in range(14)]]),
        ("infer-delta-zstd", [[[0, 1, 2], [3, 3, 6]]]),
        ("infer-delta-jpegls", [[[1, 1, 2, 3], *SLOPE_AND_FLAT[0][1:]], [[0, 7, 7, 7], [7] * 4, [7, 7, 7, 5]]]),
    ],
)
def test_payloads_of_the_vectors_decode_to_their_planes(name: str, planes: np.ndarray) -> None:
    payload, _, _, coder, _, raw_bytes = INFER[name]
    planes = np.asarray(planes, np.uint8)
    assert raw_bytes == planes.size
    bits = 8 if name == "infer-zstd-dict" else 3
    earlier = {8: np.arange(6, dtype=np.uint8).reshape(1, 2, 3), 3: np.asarray(SLOPE_AND_FLAT, np.uint8)}
    decoder = PlaneDecoder(planes.shape, bits, dictionary=DICTIONARY)
    np.testing.assert_array_equal(decoder.decode(coder, payload, earlier.get), planes)


@pytest.mark.parametrize("name", sorted(CONTROL.keys() | INFER.keys()))
def test_the_document_prints_every_vector(name: str) -> None:
    assert f"`{name}.hex`\n```\n{(VECTORS / f'{name}.hex').read_text()}```\n" in DOCUMENT


def test_the_documents_code_makes_and_reads_the_vectors() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    read, write = names["read"], names["write"]
    assert names["goodbye"] == vector("goodbye")
    assert callable(read)
    assert callable(write)
    for name, (payload, request_id, variant, coder, deadline_ms, raw_bytes) in INFER.items():
        assert write(4, payload, request_id, variant, coder, deadline_ms, raw_bytes) == vector(name)
        assert read(vector(name)) == (4, request_id, payload)
    for name, (kind, request_id, control) in CONTROL.items():
        assert read(vector(name)) == (kind, request_id, json.loads(encode_control(control)))


@pytest.mark.parametrize(
    ("title", "table"), [("Table 3: the device.", DEVICE_TABLE), ("Table 4: the edge.", EDGE_TABLE)]
)
def test_the_document_prints_the_transition_tables(title: str, table: dict) -> None:
    printed = DOCUMENT.partition(title)[2].partition("\n\n")[2].partition("\n\n")[0].splitlines()[2:]
    assert printed == [f"| {state.value} | {step.value} | {after.value} |" for (state, step), after in table.items()]


def test_the_document_names_every_key_code_and_coder() -> None:
    keys = {key for _, _, control in CONTROL.values() for key in control.__struct_fields__}
    for word in [*keys, *RefusalCode, *FailureCode]:
        assert f"| `{word}`" in DOCUMENT or f", `{word}` |" in DOCUMENT, word
    ids = {name: coder.wire_id for name, coder in CODERS.items()}
    ids |= {name: coder.wire_id for name, coder in DELTA_CODERS.items()}
    assert sorted(ids.values()) == list(range(11))
    for name, wire_id in ids.items():
        assert f"| {wire_id} | `{name}` |" in DOCUMENT
    defaults = WireLimits()
    for name in ("max_payload_bytes", "max_raw_bytes", "max_control_bytes"):
        assert f"| `{name}` | {getattr(defaults, name):,} |" in DOCUMENT
