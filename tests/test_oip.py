"""The Open Inference Protocol of a running edge, asked by tritonclient as it is."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from tests.bundles import LABELS, Edge, make_bundle, serving
from tests.edge_client import metric
from tests.oip_client import (
    FOUR_BITS,
    QUICK,
    SLOW,
    VARIANTS,
    client_of,
    directly,
    input_of,
    raw,
    refused,
    rows_for,
    same,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("oip")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    make_bundle(folder / "bundle", variants=VARIANTS)
    return open_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def edge(bundle: Bundle) -> Iterator[Edge]:
    with serving(bundle.path, "--preload", f"{QUICK},{SLOW}", "--max-batch", "8") as running:
        yield running


@pytest.fixture
def client(edge: Edge) -> Iterator[InferenceServerClient]:
    with client_of(edge) as opened:
        yield opened


class TestWhatIsServed:
    def test_live_ready_and_every_model_ready(self, client: InferenceServerClient) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert all(client.is_model_ready(name) for name in (QUICK, FOUR_BITS, SLOW, "full"))
        assert client.is_model_ready(QUICK, "1")
        assert not client.is_model_ready(QUICK, "2")
        assert not client.is_model_ready("nobody")

    def test_the_server_says_what_it_is_and_which_bundle_it_serves(
        self, client: InferenceServerClient, bundle: Bundle
    ) -> None:
        told = client.get_server_metadata()
        assert told["name"] == "aecnn-deploy"
        assert {"binary_tensor_data", "classification"} <= set(told["extensions"])
        assert told["parameters"] == {"aecnn_bundle_id": bundle.id}

    @pytest.mark.parametrize("model", [QUICK, FOUR_BITS, "full"])
    def test_metadata_and_configuration_are_those_of_the_onnx_file(
        self, client: InferenceServerClient, bundle: Bundle, model: str
    ) -> None:
        name = bundle.manifest.full if model == "full" else bundle.variant(model).tails["onnxruntime"]
        session = onnxruntime.InferenceSession(str(bundle.file(name)), providers=["CPUExecutionProvider"])
        (taken,), (given,) = session.get_inputs(), session.get_outputs()
        told = client.get_model_metadata(model)
        shape = [-1, *taken.shape[1:]]
        assert told["inputs"] == [{"name": taken.name, "datatype": "UINT8", "shape": shape}]
        assert told["outputs"] == [{"name": given.name, "datatype": "FP32", "shape": [-1, len(LABELS)]}]
        assert told["versions"] == ["1"]
        assert told["parameters"] == {"aecnn_bundle_id": bundle.id, "aecnn_variant": model}
        config = client.get_model_config(model, "1")
        assert config["max_batch_size"] == 64
        assert config["input"][0]["dims"] == shape[1:]
        assert config["parameters"]["aecnn_bundle_id"] == {"string_value": bundle.id}

    def test_the_repository_s_index_lists_every_model(self, client: InferenceServerClient) -> None:
        index = client.get_model_repository_index()
        assert [entry["name"] for entry in index] == [QUICK, FOUR_BITS, SLOW, "full"]
        assert {entry["state"] for entry in index} == {"READY"}

    @pytest.mark.parametrize(
        ("name", "told"),
        [("quick-l1-u9", "the nearest is 'quick-l1-u8'"), ("fulll", "the nearest is 'full'"), ("xyz", "there is '")],
    )
    def test_a_wrong_model_name_is_404_with_what_there_is(
        self, client: InferenceServerClient, name: str, told: str
    ) -> None:
        for asking in (
            lambda: client.get_model_metadata(name),
            lambda: client.get_model_config(name),
            lambda: client.get_inference_statistics(name),
            lambda: client.infer(name, input_of(QUICK, np.zeros((1, 4, 16, 16), np.uint8))),
        ):
            status, words = refused(asking)
            assert status == 404
            assert f"no model '{name}'" in words
            assert told in words

    def test_what_is_not_implemented_is_501_and_says_what_to_do(self, client: InferenceServerClient) -> None:
        assert refused(lambda: client.load_model("full"))[0] == 501
        assert refused(lambda: client.register_system_shared_memory("a", "/a", 8)) == (
            501,
            "shared memory is not implemented; send and take tensors as binary data",
        )
        assert refused(client.get_trace_settings)[0] == 501
        assert refused(client.get_log_settings)[0] == 501

    def test_a_wrong_path_or_method_is_a_json_error(self, edge: Edge) -> None:
        status, document, _ = raw(edge, "GET", "/v2/nothing/here")
        assert (status, "nothing is at" in document["error"]) == (404, True)
        status, document, headers = raw(edge, "GET", f"/v2/models/{QUICK}/infer")
        assert (status, headers["allow"]) == (405, "POST")
        assert "takes POST" in document["error"]
        assert raw(edge, "POST", "/v2/health/live", b"{}")[0] == 405


class TestInference:
    @pytest.mark.parametrize("model", [QUICK, FOUR_BITS, "full"])
    @pytest.mark.parametrize("binary", [True, False])
    def test_logits_are_those_of_onnx_runtime(
        self, client: InferenceServerClient, bundle: Bundle, model: str, binary: bool
    ) -> None:
        rows = rows_for(bundle, model, 3)
        wanted = directly(bundle, model, rows)
        for outputs in (None, [InferRequestedOutput("logits", binary_data=binary)]):
            result = client.infer(model, input_of(model, rows, binary=binary), outputs=outputs)
            assert same(result.as_numpy("logits"), wanted)
        response = result.get_response()
        assert (response["model_name"], response["model_version"]) == (model, "1")
        assert response["parameters"] == {"aecnn_bundle_id": bundle.id}
        assert ("data" in response["outputs"][0]) != binary

    def test_one_row_is_exact_and_the_id_comes_back(self, client: InferenceServerClient, bundle: Bundle) -> None:
        for seed in range(5):
            rows = rows_for(bundle, QUICK, 1, seed)
            result = client.infer(QUICK, input_of(QUICK, rows), model_version="1", request_id=f"no. {seed} ü")
            assert np.array_equal(result.as_numpy("logits"), directly(bundle, QUICK, rows))
            assert result.get_response()["id"] == f"no. {seed} ü"

    def test_async_requests_are_each_answered_with_their_own(self, edge: Edge, bundle: Bundle) -> None:
        batches = [rows_for(bundle, QUICK, 1 + seed % 4, seed) for seed in range(12)]
        with client_of(edge, concurrency=4) as client:
            asked = [client.async_infer(QUICK, input_of(QUICK, rows), request_id=str(id(rows))) for rows in batches]
            for rows, waiting in zip(batches, asked, strict=True):
                result = waiting.get_result(timeout=20)
                assert same(result.as_numpy("logits"), directly(bundle, QUICK, rows))
                assert result.get_response()["id"] == str(id(rows))

    @pytest.mark.parametrize("way", ["gzip", "deflate"])
    def test_compression_both_ways(self, edge: Edge, bundle: Bundle, way: str) -> None:
        rows = rows_for(bundle, QUICK, 40)
        with client_of(edge) as client:
            for outputs in (None, [InferRequestedOutput("logits", binary_data=False)]):
                result = client.infer(
                    QUICK,
                    input_of(QUICK, rows),
                    outputs=outputs,
                    request_compression_algorithm=way,
                    response_compression_algorithm=way,
                )
                assert same(result.as_numpy("logits"), directly(bundle, QUICK, rows))

    def test_the_best_classes_come_with_their_labels(self, client: InferenceServerClient, bundle: Bundle) -> None:
        rows = rows_for(bundle, QUICK, 2)
        wanted = directly(bundle, QUICK, rows)
        for binary in (True, False):
            outputs = [InferRequestedOutput("logits", class_count=3, binary_data=binary)]
            told = client.infer(QUICK, input_of(QUICK, rows), outputs=outputs).as_numpy("logits")
            assert told is not None
            for row, logits in zip(told.tolist(), wanted, strict=True):
                words = [text.decode() if isinstance(text, bytes) else text for text in row]
                order = np.argsort(-logits)[:3]
                assert [text.split(":", 2)[1:] for text in words] == [[str(index), LABELS[index]] for index in order]
                assert np.allclose([float(text.split(":")[0]) for text in words], logits[order], atol=1e-5)

    def test_rows_alone_with_curl_s_headers(self, edge: Edge, bundle: Bundle) -> None:
        rows = rows_for(bundle, QUICK, 2)
        status, document, _ = raw(
            edge, "POST", f"/v2/models/{QUICK}/infer", rows.tobytes(), Inference_Header_Content_Length="0"
        )
        assert status == 200
        assert same(np.array(document["outputs"][0]["data"], np.float32).reshape(2, -1), directly(bundle, QUICK, rows))

    def test_what_does_not_suit_the_model_is_400_in_one_line(
        self, client: InferenceServerClient, bundle: Bundle
    ) -> None:
        good = rows_for(bundle, QUICK, 1)
        cases: list[tuple[list[InferInput], Any, str]] = [
            (input_of("full", good), None, "has no input 'frames'; its only input is 'planes'"),
            (input_of(QUICK, good[:, :2]), None, "has the shape [1, 2, 16, 16], expected [-1, 4, 16, 16]"),
            (input_of(QUICK, good[0]), None, "has the shape [4, 16, 16], expected [-1, 4, 16, 16]"),
            (input_of(QUICK, np.repeat(good, 65, axis=0)), None, "65 rows, over the limit of 64"),
            (
                input_of(QUICK, good),
                [InferRequestedOutput("scores")],
                "no output 'scores'; the only output is 'logits'",
            ),
        ]
        floats = InferInput("planes", list(good.shape), "FP32")
        cases.append(([floats.set_data_from_numpy(good.astype(np.float32))], None, "is 'FP32', expected UINT8"))
        for inputs, outputs, told in cases:
            status, words = refused(lambda inputs=inputs, outputs=outputs: client.infer(QUICK, inputs, outputs=outputs))
            assert (status, told in words) == (400, True), words
        high = InferInput("planes", [1, 2, 16, 16], "UINT8").set_data_from_numpy(good[:, :2] | 16)
        assert "over the limit of 15 for 4 bits" in refused(lambda: client.infer(FOUR_BITS, [high]))[1]
        shared = InferInput("planes", list(good.shape), "UINT8").set_shared_memory("region", good.nbytes)
        assert refused(lambda: client.infer(QUICK, [shared]))[0] == 501

    def test_bodies_over_the_limits_are_413(self, edge: Edge) -> None:
        path = f"/v2/models/{QUICK}/infer"
        status, document, headers = raw(edge, "POST", path, b" " * ((1 << 20) + 1))
        assert (status, "the JSON has" in document["error"]) == (413, True)
        status, document, headers = raw(edge, "POST", path, b" " * ((1 << 20) + 65 * 1024))
        assert (status, "the body is over the limit" in document["error"]) == (413, True)
        assert headers["connection"] == "close"

    def test_failures_of_many_kinds_leave_the_edge_as_it_was(self, edge: Edge, bundle: Bundle) -> None:
        rng = np.random.default_rng(0)
        rows = rows_for(bundle, QUICK, 1)
        text = json.dumps(
            {
                "inputs": [
                    {
                        "name": "planes",
                        "shape": list(rows.shape),
                        "datatype": "UINT8",
                        "parameters": {"binary_data_size": rows.nbytes},
                    }
                ]
            }
        ).encode()
        connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=20)
        statuses = set()
        for _ in range(200):
            body = bytearray(text + rows.tobytes())
            for _ in range(rng.integers(1, 4)):
                body[int(rng.integers(0, len(text)))] = int(rng.integers(0, 256))
            body = body[: int(rng.integers(1, len(body)))] if rng.random() < 0.3 else body
            length = str(len(text)) if rng.random() < 0.8 else str(rng.integers(0, 2000))
            connection.request(
                "POST", f"/v2/models/{QUICK}/infer", bytes(body), {"Inference-Header-Content-Length": length}
            )
            answer = connection.getresponse()
            content = answer.read()
            statuses.add(answer.status)
            if answer.status != 200:
                assert json.loads(content).keys() == {"error"}
        connection.close()
        assert statuses <= {200, 400, 413, 501}
        assert 400 in statuses
        assert metric(edge, 'aecnn_open_inference_requests_total{model="quick-l1-u8",outcome="internal"}') == 0
