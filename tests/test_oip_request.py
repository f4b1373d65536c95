"""The Open Inference Protocol's bytes without a server: whatever comes, a request or one clear refusal."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aecnn_deploy.errors import RequestFailedError, SettingsError
from aecnn_deploy.runtimes.oip_answer import answer_of
from aecnn_deploy.runtimes.oip_failures import STATUS
from aecnn_deploy.runtimes.oip_limits import OipLimits
from aecnn_deploy.runtimes.oip_models import BUNDLE_KEY, TensorModel
from aecnn_deploy.runtimes.oip_request import (
    InferRequest,
    OutputAsked,
    header_length,
    open_envelope,
    request_of,
)
from aecnn_deploy.runtimes.oip_routes import What, call_of

LIMITS = OipLimits(max_rows=4, max_json_bytes=4096)
SHAPE = (2, 3, 2)
MODEL = TensorModel("tail", "b" * 64, "planes", SHAPE, 15, ("ant", "bee: a bee", "cat"), LIMITS.max_rows)
ROWS = np.arange(24, dtype=np.uint8).reshape(2, *SHAPE) % 16

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def document(rows: np.ndarray[Any, Any] = ROWS, *, binary: bool = True, **changes: Any) -> dict[str, Any]:
    """A request for ``rows``; ``changes`` are of its input."""
    data: dict[str, Any] = {"parameters": {"binary_data_size": rows.nbytes}}
    if not binary:
        data = {"data": rows.tolist()}
    return {"inputs": [{"name": "planes", "shape": list(rows.shape), "datatype": "UINT8", **data, **changes}]}


def parse(asked: Any, binary: bytes | None = None) -> InferRequest:
    text = json.dumps(asked).encode()
    body, length = (text, None) if binary is None else (text + binary, len(text))
    return request_of(open_envelope(body, length, LIMITS), MODEL)


def refusal(parsing: Callable[[], object]) -> RequestFailedError:
    with pytest.raises(RequestFailedError) as caught:
        parsing()
    check_refusal(caught.value)
    return caught.value


def check_refusal(error: RequestFailedError) -> None:
    assert error.code in STATUS
    assert error.reason.isprintable()
    assert 0 < len(error.reason) < 500


class TestParsing:
    def test_binary_rows_share_the_memory_of_the_body(self) -> None:
        text = json.dumps(document()).encode()
        body = text + ROWS.tobytes()
        request = request_of(open_envelope(body, len(text), LIMITS), MODEL)
        assert np.array_equal(request.rows, ROWS)
        assert np.shares_memory(request.rows, np.frombuffer(body, np.uint8))

    @pytest.mark.parametrize("flat", [False, True])
    def test_json_rows_may_be_nested_or_flat(self, flat: bool) -> None:
        asked = document(binary=False)
        if flat:
            asked["inputs"][0]["data"] = ROWS.ravel().tolist()
        assert np.array_equal(parse(asked).rows, ROWS)

    def test_a_body_of_rows_alone_needs_no_json(self) -> None:
        request = request_of(open_envelope(ROWS.tobytes(), 0, LIMITS), MODEL)
        assert np.array_equal(request.rows, ROWS)
        assert request.output == OutputAsked(binary=False)

    def test_id_timeout_and_outputs_are_read(self) -> None:
        asked = document() | {"id": "seven", "parameters": {"timeout": 1500, "priority": 3, "binary_data_output": True}}
        request = parse(asked, ROWS.tobytes())
        assert (request.id, request.timeout_s, request.output) == ("seven", 0.0015, OutputAsked(binary=True))
        asked["outputs"] = [{"name": "logits", "parameters": {"classification": 2, "binary_data": False}}]
        assert parse(asked, ROWS.tobytes()).output == OutputAsked(binary=False, classes=2)

    def test_the_sender_s_bundle_is_read(self) -> None:
        text = json.dumps(document(binary=False) | {"parameters": {BUNDLE_KEY: "abc"}}).encode()
        assert open_envelope(text, None, LIMITS).bundle_id == "abc"

    @pytest.mark.parametrize("text", ["-1", "0x10", "1.0", "", "٣", "9" * 13, "1e3", " 1"])
    def test_a_header_length_that_is_no_number_is_refused(self, text: str) -> None:
        assert refusal(lambda: header_length(text)).code == "bad-request"

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"name": "plane"}, "has no input 'plane'; its only input is 'planes'"),
            ({"datatype": "FP32"}, "is 'FP32', expected UINT8"),
            ({"shape": [2, 2, 2, 3]}, "has the shape [2, 2, 2, 3], expected [-1, 2, 3, 2]"),
            ({"shape": [2, 3, 2]}, "expected [-1, 2, 3, 2]"),
            ({"shape": []}, "expected [-1, 2, 3, 2]"),
            ({"shape": [0, 2, 3, 2]}, "expected [-1, 2, 3, 2]"),
            ({"shape": [-1, 2, 3, 2]}, "expected [-1, 2, 3, 2]"),
            ({"shape": [5, 2, 3, 2]}, "5 rows, over the limit of 4"),
            ({"shape": [1 << 62, 2, 3, 2]}, "over the limit of 4"),
            ({"shape": [10**400, 2, 3, 2]}, "no inference request"),
            ({"shape": [True, 2, 3, 2]}, "no inference request"),
            ({"parameters": {"binary_data_size": 23}}, "'binary_data_size' 23, its shape has 24 bytes"),
            ({"parameters": {"binary_data_size": 1 << 40}}, "its shape has 24 bytes"),
            ({"parameters": {"binary_data_size": True}}, "expected a whole number"),
            ({"parameters": {"binary_data_size": "24"}}, "expected a whole number"),
            ({"parameters": {}}, "neither 'data' nor the parameter 'binary_data_size'"),
            ({"parameters": {"shared_memory_region": "x", "shared_memory_byte_size": 24}}, "shared memory is not"),
            ({"data": [1]}, "send one of them"),
            ({"name": 7}, "no inference request"),
        ],
    )
    def test_an_input_that_does_not_suit_the_model_is_named(self, changes: dict[str, Any], told: str) -> None:
        assert told in refusal(lambda: parse(document(**changes), ROWS.tobytes())).reason

    @pytest.mark.parametrize(
        ("data", "told"),
        [
            ([1] * 23, "are 23 values, its shape has 24"),
            ([256] * 24, "no whole numbers of 0 to 255"),
            ([-1] * 24, "no whole numbers"),
            ([1.5] * 24, "no whole numbers"),
            ([True] * 24, "no whole numbers"),
            (["1"] * 24, "no whole numbers"),
            ([[], 1], "no whole numbers"),
            ([10**30] * 24, "no whole numbers"),
            ({"a": 1}, "no whole numbers"),
            ("text", "no whole numbers"),
            (None, "no whole numbers"),
            ([16] * 24, "holds the value 16, over the limit of 15 for 4 bits"),
        ],
    )
    def test_data_that_are_no_planes_are_refused(self, data: object, told: str) -> None:
        assert told in refusal(lambda: parse(document(binary=False, data=data))).reason

    @pytest.mark.parametrize(
        ("more", "told"),
        [
            ({"inputs": []}, "'planes' of tail is missing"),
            ({"inputs": document()["inputs"] * 2}, "comes 2 times"),
            ({"outputs": [{"name": "logit"}]}, "no output 'logit'; the only output is 'logits'"),
            ({"outputs": [{"name": "logits"}] * 2}, "asked for 2 times"),
            ({"outputs": [{"name": "logits", "parameters": {"classification": 0}}]}, "expected 1 class or more"),
            ({"outputs": [{"name": "logits", "parameters": {"shared_memory_region": "x"}}]}, "shared memory is not"),
            ({"parameters": {"timeout": -1}}, "expected 0 (none) or more microseconds"),
            ({"parameters": {"timeout": 1.5}}, "expected a whole number"),
            ({"parameters": {"timeout": 1 << 64}}, "no inference request"),
            ({"parameters": {"binary_data_output": 1}}, "expected true or false"),
            ({"parameters": {"x": {}}}, "no inference request"),
            ({"id": 7}, "no inference request"),
        ],
    )
    def test_a_request_that_asks_for_what_is_not_there_is_refused(self, more: dict[str, Any], told: str) -> None:
        assert told in refusal(lambda: parse(document() | more, ROWS.tobytes())).reason

    @pytest.mark.parametrize(
        ("body", "length", "code", "told"),
        [
            (b"", None, "bad-request", "no JSON"),
            (b"{", None, "bad-request", "no JSON"),
            (b"\xff\xfe", None, "bad-request", "no JSON"),
            (b'{"inputs": [], "id": "\\ud800"}', None, "bad-request", "no JSON"),
            (b"[]", None, "bad-request", "no inference request"),
            (b"{}", None, "bad-request", "no inference request"),
            (b"{}", 3, "bad-request", "is 3, the body has 2 bytes"),
            (b"1234", 2, "bad-request", "no inference request"),
            (b"[" * 4000, None, "bad-request", "no inference request"),
            (b'{"inputs": [{"name": "planes", "data": ' + b"[" * 4000, None, "bad-request", "nested too deeply"),
            (b" " * 4097, None, "too-large", "over the limit of 4096"),
            (b"x" * 13, 0, "bad-request", "one row of planes has 12"),
            (b"", 0, "bad-request", "at least one"),
            (b"\0" * 60, 0, "bad-request", "5 rows, over the limit of 4"),
        ],
    )
    def test_a_body_that_is_no_request_is_refused(self, body: bytes, length: int | None, code: str, told: str) -> None:
        error = refusal(lambda: request_of(open_envelope(body, length, LIMITS), MODEL))
        assert (error.code, told in error.reason) == (code, True), error.reason

    @pytest.mark.parametrize("change", [-1, 1, -24])
    def test_binary_data_of_another_size_than_declared_are_refused(self, change: int) -> None:
        binary = (ROWS.tobytes() + b"\0")[: ROWS.nbytes + change]
        told = f"{ROWS.nbytes + change} bytes follow the JSON, 'binary_data_size' is 24"
        assert told in refusal(lambda: parse(document(), binary)).reason

    def test_binary_data_without_the_header_s_length_are_refused(self) -> None:
        assert "needs the HTTP header" in refusal(lambda: parse(document())).reason

    @pytest.mark.parametrize("setting", [{"max_rows": 0}, {"max_json_bytes": 1}, {"max_body_bytes": 1 << 31}])
    def test_a_limit_out_of_range_is_refused(self, setting: dict[str, int]) -> None:
        with pytest.raises(SettingsError, match=next(iter(setting))):
            OipLimits(**setting)


class TestHostile:
    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=300), st.none() | st.integers(0, 400))
    def test_any_bytes_are_a_request_or_refused(self, body: bytes, length: int | None) -> None:
        parsed_or_refused(body, length)

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_a_document_with_anything_anywhere_is_a_request_or_refused(self, data: st.DataObject) -> None:
        asked = document(binary=data.draw(st.booleans()))
        asked |= {"id": "7", "outputs": [{"name": "logits", "parameters": {"classification": 1, "binary_data": True}}]}
        asked["parameters"] = {"timeout": 5, "binary_data_output": True, BUNDLE_KEY: "x"}
        for _ in range(data.draw(st.integers(1, 3))):
            spoil(asked, data)
        text = json.dumps(asked).encode(errors="surrogatepass")
        binary = data.draw(st.sampled_from([b"", ROWS.tobytes(), ROWS.tobytes()[1:]]))
        parsed_or_refused(text + binary, data.draw(st.sampled_from([None, len(text), len(text) + 1, 0])))

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=5), st.booleans())
    def test_a_request_with_changed_bytes_is_a_request_or_refused(
        self, changes: list[tuple[int, int]], binary: bool
    ) -> None:
        text = json.dumps(document(binary=binary)).encode()
        body = bytearray(text + (ROWS.tobytes() if binary else b""))
        for place, value in changes:
            body[place % len(body)] = value
        parsed_or_refused(bytes(body), len(text) if binary else None)

    @given(
        st.text(max_size=60) | st.lists(st.sampled_from(["models", "versions", "1", "x", "infer", ""])).map("/".join)
    )
    def test_any_path_is_a_call_or_refused(self, rest: str) -> None:
        try:
            call = call_of("/v2/" + rest)
        except RequestFailedError as exc:
            check_refusal(exc)
        else:
            assert call.methods


def parsed_or_refused(body: bytes, length: int | None) -> None:
    try:
        envelope = open_envelope(body, length, LIMITS)
        assert envelope.bundle_id is None or isinstance(envelope.bundle_id, str)
        request = request_of(envelope, MODEL)
    except RequestFailedError as exc:
        check_refusal(exc)
        return
    assert request.rows.dtype == np.uint8
    assert request.rows.shape[1:] == SHAPE
    assert 1 <= len(request.rows) <= LIMITS.max_rows
    assert request.rows.max() <= MODEL.largest
    assert request.timeout_s is None or 0 < request.timeout_s < 1e13
    assert answer_of(request, MODEL, [np.zeros(3, np.float32)] * len(request.rows)).body


def spoil(place: Any, data: st.DataObject) -> None:
    """Put anything anywhere, take something away, or put it in twice."""
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and data.draw(st.booleans()):
            place = place[key]
            continue
        what = data.draw(st.sampled_from(["replace", "remove", "double"]))
        if what == "remove":
            del place[key]
        elif what == "double" and isinstance(place, list):
            place.append(place[key])
        else:
            place[key] = data.draw(JSON_VALUES)
        return


class TestAnswers:
    def asked(self, **output: Any) -> InferRequest:
        return InferRequest("7", ROWS, OutputAsked(**output), None)

    def test_best_classes_are_told_with_logit_index_and_label(self) -> None:
        rows = [np.array([0.5, 2, -1], np.float32), np.array([1, 1, 3], np.float32)]
        answer = answer_of(self.asked(binary=False, classes=2), MODEL, rows)
        assert answer.json_bytes is None
        (output,) = json.loads(answer.body)["outputs"]
        assert output == {
            "name": "logits",
            "datatype": "BYTES",
            "shape": [2, 2],
            "data": ["2.000000:1:bee: a bee", "0.500000:0:ant", "3.000000:2:cat", "1.000000:0:ant"],
        }

    def test_more_classes_than_there_are_give_all(self) -> None:
        answer = answer_of(self.asked(binary=False, classes=1000), MODEL, [np.zeros(3, np.float32)])
        assert json.loads(answer.body)["outputs"][0]["shape"] == [1, 3]

    def test_json_tells_each_float32_exactly(self) -> None:
        row = np.random.default_rng(0).normal(size=3).astype(np.float32)
        (output,) = json.loads(answer_of(self.asked(binary=False), MODEL, [row, -row]).body)["outputs"]
        assert np.array_equal(np.array(output["data"], np.float32).reshape(2, 3), np.stack([row, -row]))

    def test_what_json_cannot_tell_is_refused_and_comes_as_binary(self) -> None:
        row = np.array([0, -np.inf, 1], np.float32)
        assert "infinite" in refusal(lambda: answer_of(self.asked(binary=False), MODEL, [row])).reason
        answer = answer_of(self.asked(binary=True), MODEL, [row])
        assert answer.body[answer.json_bytes :] == row.tobytes()


class TestPaths:
    @pytest.mark.parametrize(
        ("path", "what", "model"),
        [
            ("/v2", What.SERVER, ""),
            ("/v2/", What.SERVER, ""),
            ("/v2/health/live", What.LIVE, ""),
            ("/v2/health/ready", What.READY, ""),
            ("/v2/models/stats", What.STATISTICS, ""),
            ("/v2/repository/index", What.INDEX, ""),
            ("/v2/models/m", What.MODEL, "m"),
            ("/v2/models/m/versions/1", What.MODEL, "m"),
            ("/v2/models/m/versions/1/infer", What.INFER, "m"),
            ("/v2/models/versions/ready", What.MODEL_READY, "versions"),
            ("/v2/models/m/config", What.CONFIG, "m"),
            ("/v2/models/m/stats", What.STATISTICS, "m"),
        ],
    )
    def test_a_path_is_a_call(self, path: str, what: What, model: str) -> None:
        call = call_of(path)
        assert (call.what, call.model) == (what, model)

    @pytest.mark.parametrize(
        ("path", "code"),
        [
            ("/v2/models", "not-found"),
            ("/v2/models/m/versions/2", "not-found"),
            ("/v2/models/m/versions", "not-found"),
            ("/v2/models/m/infer/more", "not-found"),
            ("/v2/health", "not-found"),
            ("/v2/repository/models/m/load", "not-implemented"),
            ("/v2/systemsharedmemory/status", "not-implemented"),
            ("/v2/cudasharedmemory/region/x/register", "not-implemented"),
            ("/v2/models/m/trace/setting", "not-implemented"),
            ("/v2/models/m/generate", "not-implemented"),
            ("/v2/logging", "not-implemented"),
        ],
    )
    def test_what_is_not_there_is_told_apart_from_what_is_not_implemented(self, path: str, code: str) -> None:
        assert refusal(lambda: call_of(path)).code == code
