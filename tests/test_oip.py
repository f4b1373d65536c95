"""The Open Inference Protocol of a running edge, asked by tritonclient as it is."""

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gevent.ssl
import numpy as np
import onnxruntime
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.wire import ResultReceived
from tests.bundles import LABELS, Edge, TinyVariant, make_bundle, serving
from tests.certificates import Authority
from tests.edge_client import Client, get, metric, planes_of, wait_until_in_flight

# A batch of the slow one takes some tenths of a second, whatever its size.
VARIANTS = (
    TinyVariant("quick-l1-u8", 4, 4, 8),
    TinyVariant("quick-l1-u4", 2, 4, 4),
    TinyVariant("slow-l1-u8", 4, 4, 8, tail_loops=30),
)
QUICK, FOUR_BITS, SLOW = (variant.id for variant in VARIANTS)
SECRET = "a-token-for-the-tests"


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


def client_of(edge: Edge, **options: Any) -> InferenceServerClient:
    return InferenceServerClient(f"127.0.0.1:{edge.port}", **options)


def rows_for(bundle: Bundle, model: str, count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    if model == "full":
        spec = bundle.manifest.input
        return rng.integers(0, 256, (count, spec.height, spec.width, 3), dtype=np.uint8)
    variant = bundle.variant(model)
    return rng.integers(0, 1 << variant.bits, (count, *variant.planes), dtype=np.uint8)


def input_of(model: str, rows: np.ndarray[Any, Any], *, binary: bool = True) -> list[InferInput]:
    asked = InferInput("frames" if model == "full" else "planes", list(rows.shape), "UINT8")
    return [asked.set_data_from_numpy(rows, binary_data=binary)]


def directly(bundle: Bundle, model: str, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits by ONNX Runtime alone, of the bundle's file, by the names that stand in it."""
    name = bundle.manifest.full if model == "full" else bundle.variant(model).tails["onnxruntime"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(bundle.file(name)), options, providers=["CPUExecutionProvider"])
    logits: np.ndarray[Any, Any] = session.run(["logits"], {"frames" if model == "full" else "planes": rows})[0]
    return logits


def same(got: np.ndarray[Any, Any] | None, wanted: np.ndarray[Any, Any]) -> bool:
    """To six digits: a batch of another size may be summed in another order."""
    return got is not None and got.dtype == np.float32 and np.allclose(got, wanted, rtol=1e-6, atol=1e-6)


def raw(edge: Edge, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return (
        answer.status,
        json.loads(content) if content else None,
        {key.lower(): value for key, value in answer.headers.items()},
    )


def refused(asking: Any) -> tuple[int, str]:
    """The HTTP status and the words of what tritonclient raises."""
    with pytest.raises(InferenceServerException) as caught:
        asking()
    return int(caught.value.status()), str(caught.value.message())


@contextmanager
def asking(edge: Edge, model: str, rows: np.ndarray[Any, Any]) -> Iterator[list[InferResult]]:
    """Ask for ``rows`` in the background; the result is there at the end."""
    results: list[InferResult] = []

    def ask() -> None:
        with client_of(edge) as client:
            results.append(client.infer(model, input_of(model, rows)))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield results
    finally:
        thread.join(30)


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


class TestSharedLanes:
    def test_it_runs_together_with_streams_and_both_get_their_own(self, edge: Edge, bundle: Bundle) -> None:
        spec, rows = bundle.variant(SLOW), rows_for(bundle, SLOW, 24, seed=5)
        with Client(edge, bundle) as device, asking(edge, SLOW, rows) as results:
            device.event()
            wait_until_in_flight(edge, len(rows))
            device.ask(spec, 2, planes_of(spec))  # its turn comes before most of the rows that were there first
            answer = device.event()
        assert isinstance(answer, ResultReceived)
        assert answer.result.batch > 1  # with rows of the other protocol: it has no request but this one
        assert answer.result.top[0][0] == directly(bundle, SLOW, planes_of(spec)[None]).argmax()
        assert same(results[0].as_numpy("logits"), directly(bundle, SLOW, rows))

    def test_each_row_counts_as_a_request_and_each_request_once_more(self, edge: Edge, bundle: Bundle) -> None:
        lines = (
            'aecnn_requests_total{outcome="ok",path="split"}',
            f'aecnn_open_inference_requests_total{{model="{QUICK}",outcome="ok"}}',
            'aecnn_requests_total{outcome="bad-request",path="split"}',
        )
        before = [metric(edge, line) for line in lines]
        with client_of(edge) as client:
            client.infer(QUICK, input_of(QUICK, rows_for(bundle, QUICK, 5)))
            refused(lambda: client.infer(QUICK, input_of("full", rows_for(bundle, QUICK, 1))))
            stats = client.get_inference_statistics(QUICK)["model_stats"][0]
        assert [metric(edge, line) - old for line, old in zip(lines, before, strict=True)] == [5, 1, 1]
        assert stats["inference_count"] == metric(edge, f'aecnn_batch_size_sum{{variant="{QUICK}"}}')
        assert stats["execution_count"] == metric(edge, f'aecnn_batch_size_count{{variant="{QUICK}"}}')
        asked = stats["inference_stats"]
        assert asked["success"]["count"] == before[1] + 1
        assert asked["success"]["ns"] > asked["compute_infer"]["ns"] > 0
        assert asked["fail"]["count"] > 0

    def test_a_timeout_that_cannot_be_met_is_504_and_one_that_can_is_kept(self, edge: Edge, bundle: Bundle) -> None:
        rows = rows_for(bundle, SLOW, 1)
        with client_of(edge) as client:
            status, words = refused(lambda: client.infer(SLOW, input_of(SLOW, rows), timeout=1000))
            assert (status, "its 1 ms cannot be met" in words) == (504, True)
            assert client.infer(SLOW, input_of(SLOW, rows), timeout=20_000_000).as_numpy("logits") is not None

    def test_a_request_of_which_one_row_finds_no_place_fails_whole_and_holds_none(self, bundle: Bundle) -> None:
        rows = rows_for(bundle, SLOW, 8)
        with serving(bundle.path, "--preload", SLOW, "--max-queue", "8", "--max-batch", "1") as edge:
            with asking(edge, SLOW, rows) as results:
                wait_until_in_flight(edge, 8)
                status, told, headers = raw(
                    edge, "POST", f"/v2/models/{SLOW}/infer", rows.tobytes(), Inference_Header_Content_Length="0"
                )
                assert (status, "wait for slow-l1-u8, the limit is 8" in told["error"]) == (503, True)
                assert int(headers["retry-after"]) >= 1
                assert metric(edge, "aecnn_in_flight") <= 8
            assert same(results[0].as_numpy("logits"), directly(bundle, SLOW, rows))
            assert metric(edge, "aecnn_in_flight") == 0
            with client_of(edge) as client:
                status, words = refused(lambda: client.infer(SLOW, input_of(SLOW, rows_for(bundle, SLOW, 9))))
                assert (status, "9 rows, over the limit of 8" in words) == (400, True)  # they would never find a place


class TestLife:
    def test_a_signal_lets_it_finish_and_refuses_what_is_new(self, bundle: Bundle) -> None:
        rows = rows_for(bundle, SLOW, 16)
        with serving(bundle.path, "--preload", SLOW, "--max-batch", "1", "--drain-s", "30") as edge:
            with asking(edge, SLOW, rows) as results, client_of(edge) as client:
                wait_until_in_flight(edge, 16)
                os.kill(edge.process.pid, signal.SIGTERM)
                wait_until(lambda: not client.is_server_ready())
                assert client.is_server_live()
                assert not client.is_model_ready(SLOW)
                status, words = refused(lambda: client.infer(SLOW, input_of(SLOW, rows)))
                assert (status, "shutting down" in words) == (503, True)
            assert same(results[0].as_numpy("logits"), directly(bundle, SLOW, rows))
            assert edge.process.wait(20) == 0

    def test_after_a_reload_it_serves_the_new_bundle_and_the_old_one_to_who_names_it(
        self, bundle: Bundle, folder: Path
    ) -> None:
        make_bundle(folder / "fresh", variants=VARIANTS, seed=1)
        fresh, link = open_bundle(folder / "fresh"), folder / "link"
        link.symlink_to(bundle.path)
        rows = rows_for(bundle, QUICK, 1)
        with serving(link, "--preload", QUICK) as edge, client_of(edge) as client:
            assert same(client.infer(QUICK, input_of(QUICK, rows)).as_numpy("logits"), directly(bundle, QUICK, rows))
            (folder / "next").symlink_to(fresh.path)
            (folder / "next").rename(link)
            os.kill(edge.process.pid, signal.SIGHUP)
            wait_until(lambda: client.get_server_metadata()["parameters"]["aecnn_bundle_id"] == fresh.id)
            for named, served in ((None, fresh), (bundle.id, bundle), (fresh.id, fresh)):
                named_too = {"aecnn_bundle_id": named} if named else None
                result = client.infer(QUICK, input_of(QUICK, rows), parameters=named_too)
                assert same(result.as_numpy("logits"), directly(served, QUICK, rows))
                assert result.get_response()["parameters"]["aecnn_bundle_id"] == served.id
            status, words = refused(
                lambda: client.infer(QUICK, input_of(QUICK, rows), parameters={"aecnn_bundle_id": "0" * 64})
            )
            assert (status, "no bundle '000" in words) == (404, True)

    def test_tokens_and_tls_are_the_edge_s(self, bundle: Bundle, folder: Path) -> None:
        site, tokens = Authority(folder / "site"), folder / "tokens"
        pair = site.issue("edge", hosts=("127.0.0.1",))
        tokens.write_text(f"grafana {SECRET}\n")
        tokens.chmod(0o600)
        options = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--token-file", str(tokens))
        rows = rows_for(bundle, QUICK, 1)
        with serving(bundle.path, *options, "--open-status") as edge, ExitStack() as stack:
            client = stack.enter_context(
                client_of(
                    edge,
                    ssl=True,
                    ssl_options={"ca_certs": str(site.ca)},
                    ssl_context_factory=gevent.ssl.create_default_context,
                )
            )
            assert client.is_server_live()
            assert client.is_server_ready()
            for asking in (
                client.get_server_metadata,
                lambda: client.infer(QUICK, input_of(QUICK, rows)),
                lambda: client.infer(
                    QUICK, input_of(QUICK, rows), headers={"Authorization": "Bearer not-this-one-at-all"}
                ),
            ):
                status, words = refused(asking)
                assert (status, "token" in words) == (401, True)
            shown = {"Authorization": f"Bearer {SECRET}"}
            result = client.infer(QUICK, input_of(QUICK, rows), headers=shown)
            assert np.array_equal(result.as_numpy("logits"), directly(bundle, QUICK, rows))
            assert client.get_server_metadata(headers=shown)["name"] == "aecnn-deploy"


def test_the_status_page_shows_who_asked(edge: Edge, client: InferenceServerClient, bundle: Bundle) -> None:
    client.infer(QUICK, input_of(QUICK, rows_for(bundle, QUICK, 2)))
    time.sleep(1.1)  # the document is made at most once a second
    devices = json.loads(get(edge, "/v1/status")[1])["devices"]
    row = next(device for device in devices if device["address"] == "127.0.0.1")
    assert row["ok"] >= 2
    assert (row["path"], row["variant"]) == ("split", QUICK)


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
