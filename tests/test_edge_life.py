"""The edge under load and at its end: deadlines, overload, draining, devices that leave."""

import signal
import socket
import time
from collections.abc import Iterator

import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.wire import (
    FailureReceived,
    GoodbyeReceived,
    Kind,
    RefusedByEdge,
    ResultReceived,
    pack,
)
from tests.bundles import SLOW, Edge, make_bundle, serving
from tests.edge_client import Client, assert_answers_fast, get, metric, planes_of, post, wait_until_in_flight


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


def test_a_request_whose_deadline_has_passed_is_not_run(slow: Bundle) -> None:
    spec = slow.manifest.variants[0]
    with serving(slow.path) as edge, Client(edge, slow) as client:
        client.event()
        first = client.ask(spec, 0, planes_of(spec))
        late = client.ask(spec, 0, planes_of(spec), deadline_ms=1)
        events = {event.request_id: event for event in (client.event(), client.event())}
    assert isinstance(events[first], ResultReceived)
    assert isinstance(events[late], FailureReceived)
    assert events[late].failed.code == "deadline"


def test_more_than_the_edge_can_hold_is_answered_overloaded(slow: Bundle) -> None:
    spec = slow.manifest.variants[0]
    with serving(slow.path, "--max-in-flight", "1") as edge, Client(edge, slow) as one, Client(edge, slow) as two:
        one.event()
        two.event()
        one.ask(spec, 0, planes_of(spec))
        wait_until_in_flight(edge, 1)
        two.ask(spec, 0, planes_of(spec))
        event = two.event()
        assert isinstance(event, FailureReceived)
        assert event.failed.code == "overloaded"
        assert event.failed.retry_after_s
        assert post(edge, b"x")[0] == 503
        assert isinstance(one.event(), ResultReceived)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_what_is_in_flight_and_exits_0(slow: Bundle, number: int) -> None:
    spec = slow.manifest.variants[0]
    with serving(slow.path) as edge, Client(edge, slow) as client, Client(edge, slow) as idle:
        client.event()
        idle.event()
        request_id = client.ask(spec, 0, planes_of(spec))
        wait_until_in_flight(edge, 1)
        edge.process.send_signal(number)
        assert isinstance(client.event(), GoodbyeReceived)
        assert get(edge, "/readyz")[0] == 503  # it still listens, and says that it takes nothing new
        assert post(edge, b"x")[1]["error"]["code"] == "draining"
        with Client(edge, slow) as newcomer:
            refused = newcomer.event()
            assert isinstance(refused, RefusedByEdge)
            assert refused.refused.code == "draining"
        client.socket.send(
            pack(Kind.INFER, planes_of(spec).tobytes(), request_id=99, variant=0, coder=0, raw_bytes=spec.plane_bytes)
        )
        client.session._open_requests.add(99)  # the core would not send it after a GOODBYE
        events = {event.request_id: event for event in (client.event(), client.event())}
        assert isinstance(events[request_id], ResultReceived)
        assert isinstance(events[99], FailureReceived)
        assert events[99].failed.code == "draining"
        assert client.close_code()[0] == 1001
        assert idle.close_code()[0] == 1001
        _, errors = edge.process.communicate(timeout=20)
    assert edge.process.returncode == 0
    assert "Traceback" not in errors


def test_what_does_not_end_within_the_drain_time_fails_by_name(slow: Bundle) -> None:
    spec = slow.manifest.variants[0]
    with serving(slow.path, "--drain-s", "0.1") as edge, Client(edge, slow) as client:
        client.event()
        asked = [client.ask(spec, 0, planes_of(spec)) for _ in range(4)]
        wait_until_in_flight(edge, len(asked))
        status, errors = edge.stop()
        events = [client.event() for _ in range(len(asked) + 1)]
        assert client.close_code()[0] == 1001
    failed = [event for event in events if isinstance(event, FailureReceived)]
    assert failed
    assert {event.failed.code for event in failed} == {"draining"}
    assert (status, "Traceback" in errors) == (0, False)


def test_a_second_signal_stops_at_once(slow: Bundle) -> None:
    spec = slow.manifest.variants[0]
    with serving(slow.path) as edge, Client(edge, slow) as client:
        client.event()
        for _ in range(8):
            client.ask(spec, 0, planes_of(spec))
        wait_until_in_flight(edge, 8)
        edge.process.send_signal(signal.SIGINT)
        assert isinstance(client.event(), GoodbyeReceived)
        started_s = time.monotonic()
        status, errors = edge.stop()
    assert status == 130
    assert time.monotonic() - started_s < 2.5
    assert "Traceback" not in errors


def test_a_device_that_leaves_takes_its_waiting_requests_with_it(slow: Bundle) -> None:
    spec = slow.manifest.variants[0]
    with serving(slow.path) as edge:
        with Client(edge, slow) as client:
            client.event()
            for _ in range(8):
                client.ask(spec, 0, planes_of(spec))
            wait_until_in_flight(edge, 8)
            client.socket.socket.shutdown(socket.SHUT_RDWR)
        end = time.monotonic() + 5
        while metric(edge, "aecnn_in_flight"):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert_answers_fast(edge, slow)


def test_a_device_that_says_goodbye_still_gets_its_answers(slow: Bundle) -> None:
    spec = slow.manifest.variants[0]
    with serving(slow.path) as edge, Client(edge, slow) as client:
        client.event()
        client.ask(spec, 0, planes_of(spec))
        client.ask(slow.manifest.variants[1], 1, planes_of(spec))
        client.socket.send(client.session.goodbye("done"))
        assert {type(client.event()), type(client.event())} == {ResultReceived}
        assert client.close_code()[0] == 1000
