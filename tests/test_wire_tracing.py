"""The ids of a request's trace: what docs/wire-format.md says is what both halves compute."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecnn_deploy.errors import WireError
from aecnn_deploy.wire import Hello, decode_control, encode_control, new_trace, request_trace

DOCUMENT = (Path(__file__).parents[1] / "docs" / "wire-format.md").read_text()
TRACE = "000102030405060708090a0b0c0d0e0f"


@pytest.mark.parametrize(
    ("request_id", "trace_id", "span_id"),
    [
        (1, "112ac280cda01f4cd59e4150e2be4230", "5d20534e7fac07fa"),
        (2, "8e87288ec670948426d95202777216b2", "72d3a65f4442425d"),
    ],
)
def test_the_documents_ids_are_those_of_the_code(request_id: int, trace_id: str, span_id: str) -> None:
    ids = request_trace(TRACE, request_id)
    assert (f"{ids.trace_id:032x}", f"{ids.span_id:016x}") == (trace_id, span_id)
    text = " ".join(DOCUMENT.split())
    assert re.search(rf"request {request_id} .{{0,30}}`{trace_id}` and (?:the span id )?`{span_id}`", text)


@given(trace=st.integers(1, 2**128 - 1), first=st.integers(1, 2**64 - 1), second=st.integers(1, 2**64 - 1))
def test_ids_are_never_0_and_differ_between_requests(trace: int, first: int, second: int) -> None:
    one, two = request_trace(f"{trace:032x}", first), request_trace(f"{trace:032x}", second)
    assert 0 < one.trace_id < 2**128
    assert 0 < one.span_id < 2**64
    assert (one == two) == (first == second)


def test_each_session_has_another_trace_that_a_hello_takes() -> None:
    traces = {new_trace() for _ in range(100)}
    assert len(traces) == 100
    for trace in traces:
        hello = Hello("b", [1], ["v"], ["raw"], "s", trace=trace)
        assert decode_control(Hello, encode_control(hello)) == hello


@pytest.mark.parametrize("trace", ["0" * 32, "0" * 31 + "g", "AB" * 16, "ab" * 15, "ab" * 17, "ab" * 16 + "\n", ""])
def test_a_hello_with_no_proper_trace_is_refused(trace: str) -> None:
    with pytest.raises(WireError):
        encode_control(Hello("b", [1], ["v"], ["raw"], "s", trace=trace))


def test_a_hello_without_the_new_keys_has_the_bytes_that_it_always_had() -> None:
    payload = encode_control(Hello("b", [1], ["v"], ["raw"], "s"))
    assert payload == b'{"bundle_id":"b","wire_versions":[1],"variants":["v"],"coders":["raw"],"software":"s"}'
