"""The JSON payloads: what is read, what is refused, and that nothing is written that a peer must refuse."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aecnn_deploy.errors import WireError
from aecnn_deploy.wire import (
    Failed,
    FailureCode,
    Goodbye,
    Hello,
    RefusalCode,
    Refused,
    Result,
    Welcome,
    decode_control,
    encode_control,
)

HELLO = Hello("b1d", [1], ["v16", "v32"], ["raw", "zstd"], "test 1")
WELCOME = Welcome(1, "b1d", ["v16"], ["zstd"], 4, 1000, 2000, "onnxruntime", "test 1")
REFUSED = Refused(RefusalCode.DRAINING, "the edge is stopping")
RESULT = Result([(3, 0.75), (1, 0.25)], 0.5, 0.25, 12.5, 13.5, 1, "v16")
FAILED = Failed(FailureCode.OVERLOADED, "64 requests wait", 0.5)
GOODBYE = Goodbye("done")
ALL = [HELLO, WELCOME, REFUSED, RESULT, FAILED, GOODBYE]
KINDS = [type(control) for control in ALL]


@pytest.mark.parametrize("control", ALL, ids=lambda control: type(control).__name__)
def test_every_kind_survives_the_round_trip(control: Hello) -> None:
    assert decode_control(type(control), encode_control(control)) == control


@pytest.mark.parametrize("control", ALL, ids=lambda control: type(control).__name__)
def test_keys_of_a_later_release_are_ignored(control: Hello) -> None:
    document = json.loads(encode_control(control)) | {"colour": {"deep": [1, None]}}
    assert decode_control(type(control), json.dumps(document).encode()) == control


@pytest.mark.parametrize("control", ALL, ids=lambda control: type(control).__name__)
def test_every_absent_key_is_refused_by_name(control: Hello) -> None:
    document = json.loads(encode_control(control))
    for key in document.keys() - {"retry_after_s"}:
        rest = {name: value for name, value in document.items() if name != key}
        with pytest.raises(WireError, match=rf"{type(control).__name__} is not valid: .*`{key}`"):
            decode_control(type(control), json.dumps(rest).encode())


@pytest.mark.parametrize("control", ALL, ids=lambda control: type(control).__name__)
def test_values_of_another_type_are_refused(control: Hello) -> None:
    document = json.loads(encode_control(control))
    for key, value in document.items():
        wrong = {"1": 1} if not isinstance(value, str) else 1
        with pytest.raises(WireError, match=rf"\$\.{key}"):
            decode_control(type(control), json.dumps(document | {key: wrong}).encode())


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Hello, {"bundle_id": "two\nlines"}),
        (Hello, {"software": "x" * 201}),
        (Hello, {"variants": ["\x1b[31m"]}),
        (Hello, {"wire_versions": [-1]}),
        (Hello, {"uses": [-1]}),
        (Welcome, {"load": [[0, 1.0]]}),
        (Welcome, {"max_in_flight": 0}),
        (Welcome, {"max_payload_bytes": 2**32}),
        (Welcome, {"max_raw_bytes": 0}),
        (Refused, {"code": "Not a code"}),
        (Refused, {"code": "draining\n"}),
        (Result, {"decode_ms": -0.1}),
        (Result, {"in_flight": -1}),
        (Result, {"in_flight": 2**53}),
        (Result, {"top": [[-1, 0.5]]}),
        (Result, {"top": [[1.5, 0.5]]}),
        (Result, {"top": [[1, 0.5, 2]]}),
        (Result, {"load": [[0, -0.5, 1.0]]}),
        (Result, {"load": [[-1, 0.5, 1.0]]}),
        (Failed, {"retry_after_s": -1}),
    ],
)
def test_values_out_of_range_are_refused(kind: type[Hello], change: dict[str, object]) -> None:
    (valid,) = (control for control in ALL if type(control) is kind)
    document = json.loads(encode_control(valid)) | change
    with pytest.raises(WireError, match=f"{kind.__name__} is not valid"):
        decode_control(kind, json.dumps(document).encode())


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"reason"',
        b'{"reason":"a"}{}',
        b'{"reason":NaN}',
        b'\xef\xbb\xbf{"reason":"a"}',
        b'{"reason":"\xff"}',
        b'{"reason":"a","x":' + b"[" * 60_000,
        b'{"reason":"a","x":' + b"9" * 60_000 + b"x}",
    ],
    ids=range(10),
)
def test_payloads_that_are_no_such_json_raise_only_wire_errors(payload: bytes) -> None:
    with pytest.raises(WireError, match="Goodbye is not valid"):
        decode_control(Goodbye, payload)


def test_white_space_and_the_order_of_keys_mean_nothing() -> None:
    assert decode_control(Failed, b' {"reason" : "x",\n"code":"internal"}\t') == Failed("internal", "x")


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(KINDS), st.binary(max_size=80))
def test_garbage_raises_only_wire_errors(kind: type[Hello], payload: bytes) -> None:
    with pytest.raises(WireError):
        decode_control(kind, payload)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(ALL), st.data())
def test_any_json_value_in_any_key_is_read_or_refused(control: Hello, data: st.DataObject) -> None:
    document = json.loads(encode_control(control))
    document[data.draw(st.sampled_from(sorted(document)))] = data.draw(JSON)
    try:
        read = decode_control(type(control), json.dumps(document).encode())
    except WireError:
        return
    assert decode_control(type(control), encode_control(read)) == read


@pytest.mark.parametrize(
    "control",
    [
        Result([(1, float("nan"))], 0, 0, 0, 0, 1, "v"),
        Result([(1, float("inf"))], 0, 0, 0, 0, 1, "v"),
        Result([(-1, 0.5)], 0, 0, 0, 0, 1, "v"),
        Result([(1, 0.5)], -0.1, 0, 0, 0, 1, "v"),
        Result([(1, 0.5)], 0, 0, 0, 0, 1, "two\nlines"),
        Result([(2**70, 0.5)], 0, 0, 0, 0, 1, "v"),
        Result([(1, 0.5)], 0, 0, 0, 0, 1, "v", load=[(0, float("inf"), 1.0)]),
        Failed("Not A Code", "x"),
        Failed("internal", "x", -1.0),
        Goodbye(3),  # type: ignore[arg-type]
    ],
    ids=range(10),
)
def test_what_a_peer_would_refuse_is_not_written(control: Result) -> None:
    with pytest.raises(WireError):
        encode_control(control)


@settings(deadline=None)
@given(st.text(max_size=700))
def test_reasons_become_one_printable_line_on_both_sides(reason: str) -> None:
    read = decode_control(Goodbye, encode_control(Goodbye(reason))).reason
    received = decode_control(Goodbye, json.dumps({"reason": reason}).encode("utf-8", "replace")).reason
    for line in (read, received):
        assert line.isprintable()
        assert len(line) <= 500
        assert line == " ".join(line.split())
    if reason.isprintable() and len(reason) <= 500 and reason == " ".join(reason.split()):
        assert read == received == reason


def test_codes_are_the_documented_strings() -> None:
    assert [*RefusalCode] == [
        "bundle-mismatch", "wire-version", "no-common-coder", "unauthorized", "overloaded", "draining", "protocol",
    ]  # fmt: skip
    assert [*FailureCode] == [
        "bad-payload", "no-reference", "unknown-variant", "deadline", "overloaded", "draining", "internal",
    ]  # fmt: skip


def test_codes_of_a_later_release_are_read() -> None:
    assert decode_control(Failed, b'{"code":"too-warm","reason":"x"}') == Failed("too-warm", "x")


def test_a_peer_of_before_reads_a_session_that_switches_and_says_nothing_of_it() -> None:
    old = {"top", "decode_ms", "queue_ms", "tail_ms", "total_ms", "in_flight", "variant"}
    assert json.loads(encode_control(RESULT)).keys() == old
    assert "uses" not in json.loads(encode_control(HELLO))
    told = decode_control(Result, encode_control(msgspec.structs.replace(RESULT, load=[(1, 0.25, 12.5)])))
    assert told.load == [(1, 0.25, 12.5)]
