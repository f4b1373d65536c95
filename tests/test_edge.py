"""The edge as a process of its own: what it answers to good, broken and hostile peers."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import RunnerError, SettingsError
from aecnn_deploy.runtimes.edge_models import top_classes
from aecnn_deploy.runtimes.edge_runners import RunnerOptions, activate_tail
from aecnn_deploy.runtimes.edge_settings import EdgeSettings
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.wire import (
    FailureReceived,
    Kind,
    RefusalCode,
    RefusedByEdge,
    ResultReceived,
    Welcomed,
    pack,
)
from tests.bundles import SLOW, Edge, make_bundle, make_photos, run_full, serving
from tests.edge_client import (
    Client,
    assert_answers,
    assert_answers_fast,
    get,
    metric,
    planes_of,
    post,
    until_closed,
    wait_until_no_stream,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("edge") / "bundle"
    make_bundle(path)
    return open_bundle(path)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("edge") / "slow"
    make_bundle(path, variants=SLOW)
    return open_bundle(path)


@pytest.fixture(scope="module")
def edge(bundle: Bundle) -> Iterator[Edge]:
    with serving(bundle.path) as running:
        yield running


def test_health_and_readiness_are_told(edge: Edge, bundle: Bundle) -> None:
    assert get(edge, "/healthz")[0] == 200
    status, body = get(edge, "/readyz")
    assert status == 200
    assert json.loads(body) == {"state": "ready", "bundle_id": bundle.id}


def test_the_ready_line_says_what_is_served(edge: Edge, bundle: Bundle) -> None:
    assert edge.ready["bundle_id"] == bundle.id
    assert edge.ready["runner"] == "onnxruntime"
    assert edge.ready["variants"] == [spec.id for spec in bundle.manifest.variants]
    assert edge.ready["url"] == f"ws://127.0.0.1:{edge.ready['port']}"


@pytest.mark.parametrize("index", [0, 1])
def test_a_result_is_the_tails_softmax_of_the_planes_that_were_sent(edge: Edge, bundle: Bundle, index: int) -> None:
    spec = bundle.manifest.variants[index]
    planes = planes_of(spec, seed=5)
    tail = activate_tail(bundle, spec, RunnerOptions("onnxruntime", threads=1)).runner
    logits = tail.infer(planes[None])[0].astype(np.float64)
    scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    with Client(edge, bundle) as client:
        welcomed = client.event()
        assert isinstance(welcomed, Welcomed)
        client.ask(spec, index, planes)
        event = client.event()
    assert isinstance(event, ResultReceived)
    order = np.argsort(-scores)[:5]
    assert [entry[0] for entry in event.result.top] == order.tolist()
    np.testing.assert_allclose([entry[1] for entry in event.result.top], scores[order], rtol=1e-6)
    assert event.result.variant == spec.id
    assert event.result.total_ms >= event.result.tail_ms + event.result.decode_ms


def test_requests_in_flight_are_answered_each_under_its_own_id(edge: Edge, bundle: Bundle) -> None:
    with Client(edge, bundle) as client:
        welcomed = client.event()
        assert isinstance(welcomed, Welcomed)
        asked = {}
        for number in range(welcomed.welcome.max_in_flight):
            index = number % 2
            spec = bundle.manifest.variants[index]
            asked[client.ask(spec, index, planes_of(spec, seed=number))] = spec.id
        answered = {event.request_id: event.result.variant for event in (client.event() for _ in asked)}
    assert answered == asked


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"bundle_id": "0" * 64}, RefusalCode.BUNDLE_MISMATCH),
        ({"wire_versions": [2, 3]}, RefusalCode.WIRE_VERSION),
        ({"coders": ["brotli"]}, RefusalCode.NO_COMMON_CODER),
        ({"variants": ["another"]}, RefusalCode.BUNDLE_MISMATCH),
    ],
)
def test_a_hello_that_does_not_fit_is_refused_by_name(
    edge: Edge, bundle: Bundle, changes: dict[str, Any], code: RefusalCode
) -> None:
    with Client(edge, bundle, **changes) as client:
        event = client.event()
        assert isinstance(event, RefusedByEdge)
        assert event.refused.code == code
        assert client.close_code() == (1008, code)
    assert_answers(edge, bundle)


def test_a_bad_payload_fails_alone_and_the_stream_goes_on(edge: Edge, bundle: Bundle) -> None:
    spec = bundle.manifest.variants[0]
    size = spec.plane_bytes
    with Client(edge, bundle) as client:
        client.event()
        for index, coder, payload, raw_bytes, code in (
            (0, 1, b"no zstd frame", size, "bad-payload"),
            (0, 0, bytes(size - 1), size, "bad-payload"),
            (0, 0, bytes(size + 1), size + 1, "bad-payload"),
            (0, 77, bytes(size), size, "bad-payload"),
            (
                1,
                0,
                b"\xff" * bundle.manifest.variants[1].plane_bytes,
                bundle.manifest.variants[1].plane_bytes,
                "bad-payload",
            ),
        ):
            request_id, message = client.session.infer(index, coder, payload, raw_bytes)
            client.socket.send(message)
            event = client.event()
            assert isinstance(event, FailureReceived)
            assert (event.request_id, event.failed.code) == (request_id, code)
        client.ask(spec, 0, planes_of(spec))
        assert isinstance(client.event(), ResultReceived)


def test_an_unknown_variant_index_fails_by_name(edge: Edge, bundle: Bundle) -> None:
    with Client(edge, bundle) as client:
        client.event()
        client.socket.send(pack(Kind.INFER, b"x", request_id=1, variant=9, coder=0, raw_bytes=1))
        client.session._open_requests.add(1)  # the core would not send it
        event = client.event()
    assert isinstance(event, FailureReceived)
    assert event.failed.code == "unknown-variant"


HOSTILE = {
    "garbage": [b"\x00" * 100],
    "another-magic": [b"HTTP/1.1 200 OK" + b"\0" * 40],
    "text": ["hello"],
    "empty": [b""],
    "half-a-message": [pack(Kind.GOODBYE, b'{"reason":"x"}')[:-3]],
    "two-in-one": [pack(Kind.GOODBYE, b'{"reason":"x"}') * 2],
    "wrong-checksum": [pack(Kind.GOODBYE, b'{"reason":"x"}')[:-1] + b"!"],
    "infer-first": [pack(Kind.INFER, b"x", request_id=1, variant=0, coder=0, raw_bytes=1)],
    "not-json": [pack(Kind.HELLO, b"[[[[")],
    "from-the-wrong-side": [pack(Kind.RESULT, b"{}", request_id=1)],
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_peer_that_breaks_the_protocol_loses_its_own_stream_only(edge: Edge, bundle: Bundle, name: str) -> None:
    spec = bundle.manifest.variants[0]
    with Client(edge, bundle) as good:
        good.event()
        with connect(edge.url + "/v1/stream", compression=None, proxy=None) as bad:
            code, reason = until_closed(bad, *HOSTILE[name])
        assert code == 1002
        assert reason
        good.ask(spec, 0, planes_of(spec))
        assert isinstance(good.event(), ResultReceived)


def test_the_same_request_twice_is_a_broken_protocol(slow: Bundle) -> None:
    spec = slow.manifest.variants[0]
    with serving(slow.path) as edge, Client(edge, slow) as client:
        client.event()
        message = pack(
            Kind.INFER, planes_of(spec).tobytes(), request_id=1, variant=0, coder=0, raw_bytes=spec.plane_bytes
        )
        client.socket.send(message)
        client.socket.send(message)
        assert client.close_code()[0] == 1002
        assert_answers_fast(edge, slow)


def test_a_message_over_the_limit_is_refused_before_it_is_buffered(edge: Edge, bundle: Bundle) -> None:
    with connect(edge.url + "/v1/stream", compression=None, proxy=None) as bad:
        assert until_closed(bad, bytes(16 << 20))[0] in (1006, 1009)  # the reset may overtake the close frame
    assert_answers(edge, bundle)


def test_raw_garbage_on_the_port_leaves_other_streams_unharmed(edge: Edge, bundle: Bundle) -> None:
    spec = bundle.manifest.variants[0]
    rng = np.random.default_rng(0)
    with Client(edge, bundle) as good:
        good.event()
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", edge.port)) as bad:
                bad.sendall(rng.bytes(500) + b"\r\n\r\n")
        with socket.create_connection(("127.0.0.1", edge.port)) as bad:
            bad.sendall(b"GET /v1/stream HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            assert b" 400 " in bad.recv(100)
        good.ask(spec, 0, planes_of(spec))
        assert isinstance(good.event(), ResultReceived)


def test_a_plain_get_of_the_stream_and_a_websocket_elsewhere_are_refused(edge: Edge) -> None:
    assert get(edge, "/v1/stream")[0] in (404, 426)
    with pytest.raises(InvalidStatus), connect(edge.url + "/v1/other", proxy=None):
        pass


def test_an_image_posted_is_classified_by_the_unsplit_model(edge: Edge, bundle: Bundle, tmp_path: Path) -> None:
    (photo,) = make_photos(tmp_path, 1)
    logits = run_full(bundle, read_frame(photo, bundle.manifest.input))
    status, document = post(edge, photo.read_bytes())
    assert status == 200
    assert document["path"] == "full"
    best = int(np.argmax(logits))
    assert document["top"][0]["index"] == best
    assert document["top"][0]["label"] == bundle.manifest.labels[best]
    assert len(document["top"]) == 5


@pytest.mark.parametrize("body", [b"", b"no image"])
def test_a_body_that_is_no_image_is_400(edge: Edge, body: bytes) -> None:
    status, document = post(edge, body)
    assert (status, document["error"]["code"]) == (400, "bad-image")


def test_an_oversize_body_is_413_by_its_header_and_while_reading(edge: Edge, bundle: Bundle) -> None:
    size = (16 << 20) + 1
    connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=10)
    connection.putrequest("POST", "/v1/classify")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()  # not a byte of the body
    assert connection.getresponse().status == 413
    connection.close()
    pieces = iter([bytes(1 << 20)] * 16 + [b"x"])
    status, document = post(edge, pieces, **{"Transfer-Encoding": "chunked"})
    assert (status, document["error"]["code"]) == (413, "too-large")
    assert_answers(edge, bundle)


def test_a_client_that_leaves_in_its_body_does_no_harm(edge: Edge, bundle: Bundle) -> None:
    with socket.create_connection(("127.0.0.1", edge.port)) as leaving:
        leaving.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
    assert_answers(edge, bundle)


def test_metrics_count_requests_bytes_and_seconds(bundle: Bundle, tmp_path: Path) -> None:
    (photo,) = make_photos(tmp_path, 1)
    with serving(bundle.path) as edge:
        assert_answers(edge, bundle)
        post(edge, photo.read_bytes())
        post(edge, b"no image")
        assert metric(edge, 'aecnn_requests_total{outcome="ok",path="split"}') == 1
        assert metric(edge, 'aecnn_requests_total{outcome="ok",path="full"}') == 1
        assert metric(edge, 'aecnn_requests_total{outcome="bad-image",path="full"}') == 1
        assert metric(edge, 'aecnn_received_bytes_total{path="full"}') == photo.stat().st_size + len(b"no image")
        assert metric(edge, 'aecnn_received_bytes_total{path="split"}') > 36
        assert metric(edge, 'aecnn_stage_seconds_count{path="split",stage="tail"}') == 1
        assert metric(edge, "aecnn_in_flight") == 0


def test_many_devices_at_once_each_get_their_own_answers(edge: Edge, bundle: Bundle) -> None:
    spec = bundle.manifest.variants[0]
    tail = activate_tail(bundle, spec, RunnerOptions("onnxruntime", threads=1)).runner
    expected = {seed: int(np.argmax(tail.infer(planes_of(spec, seed)[None])[0])) for seed in range(12)}
    assert len(set(expected.values())) > 1
    got: dict[int, int] = {}

    def device(seed: int) -> None:
        with Client(edge, bundle) as client:
            client.event()
            for _ in range(5):
                client.ask(spec, 0, planes_of(spec, seed))
                got[seed] = client.event().result.top[0][0]

    threads = [threading.Thread(target=device, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert got == expected


IMPATIENT = """
import sys
import msgspec
from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.runtimes.edge_server import serve
from aecnn_deploy.runtimes.edge_settings import EdgeSettings

settings = EdgeSettings(port=0, hello_timeout_s=0.3, max_streams=1, max_uploads=1, upload_timeout_s=1.0)
serve(open_bundle(sys.argv[1]), settings, lambda ready: print(msgspec.json.encode(ready).decode(), flush=True))
"""


def test_a_silent_peer_is_closed_and_streams_are_counted(bundle: Bundle) -> None:
    with serving(bundle.path, script=IMPATIENT) as edge:
        with connect(edge.url + "/v1/stream", compression=None, proxy=None) as silent:
            code, reason = until_closed(silent)
        assert code == 1002
        assert "HELLO" in reason
        wait_until_no_stream(edge)  # the edge counts a stream until it has ended, which is after its close is heard
        with Client(edge, bundle) as one:
            assert isinstance(one.event(), Welcomed)
            with Client(edge, bundle) as too_many:
                refused = too_many.event()
            assert isinstance(refused, RefusedByEdge)
            assert refused.refused.code == "overloaded"


def test_slow_uploads_are_counted_and_ended(bundle: Bundle, tmp_path: Path) -> None:
    (photo,) = make_photos(tmp_path, 1)
    with serving(bundle.path, script=IMPATIENT) as edge:
        with socket.create_connection(("127.0.0.1", edge.port)) as slow_client:
            slow_client.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
            slow_client.settimeout(10)
            end = time.monotonic() + 5
            while post(edge, photo.read_bytes())[0] != 503:
                assert time.monotonic() < end
            assert slow_client.recv(100).startswith(b"HTTP/1.1 408 ")
        assert post(edge, photo.read_bytes())[0] == 200


@pytest.mark.parametrize("setting", [{"port": -1}, {"max_in_flight": 0}, {"drain_s": -1.0}, {"hello_timeout_s": -1.0}])
def test_a_setting_out_of_range_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(setting))):
        EdgeSettings(**setting)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_runner_that_the_bundle_has_no_engine_for_is_named(bundle: Bundle, name: str) -> None:
    with pytest.raises(RunnerError, match=f"no {name} engine"):
        activate_tail(bundle, bundle.manifest.variants[0], RunnerOptions(name))


def test_an_unknown_runner_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="auto, tensorrt, tensorrt-rtx, onnxruntime"):
        RunnerOptions("openvino")


def test_scores_are_a_softmax_and_logits_that_are_not_finite_are_refused() -> None:
    good = np.array([1.0, 3.0, 3.0, -200.0], np.float32)
    (top,) = top_classes(good[None], 3)
    assert isinstance(top, list)
    assert [index for index, _ in top] == [1, 2, 0]  # of equal ones the first, as argmax
    bad = [np.where(np.arange(4) == 1, value, good) for value in (np.nan, np.inf)] + [np.full(4, -np.inf, np.float32)]
    first, *refused, last = top_classes(np.stack([good, *bad, good]), 4)
    assert isinstance(first, list)
    assert sum(score for _, score in first) == pytest.approx(1.0)
    assert all(isinstance(row, RunnerError) for row in refused)
    assert last == first
