"""What an edge tells a device that switches between variants, and what it loads for it."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Lock

import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.codec import PlaneEncoder
from aecnn_deploy.errors import EdgeUnreachableError
from aecnn_deploy.planning.link_rate import LinkRate
from aecnn_deploy.runtimes.backoff import Backoff
from aecnn_deploy.runtimes.device_head import hello_of
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.runtimes.device_settings import DeviceSettings
from aecnn_deploy.runtimes.edge_load_told import EdgeLoad, VariantLoad, load_told
from aecnn_deploy.runtimes.edge_sessions import EdgeSessions
from aecnn_deploy.runtimes.moving_frame import FrameVariant, MovingFrame, Sent
from aecnn_deploy.runtimes.plane_coder import PlaneCoder
from aecnn_deploy.runtimes.plane_coders import PlaneCoders
from aecnn_deploy.wire import Failed, Load, Result, ResultReceived, Welcomed
from tests.bundles import TinyVariant, make_bundle, serving
from tests.edge_client import Client, metric, planes_of

BUSY = (TinyVariant("tiny-busy", 4, 4, 8, tail_loops=20), TinyVariant("tiny-fast", 4, 4, 8))
END_S = 30.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("load") / "bundle"
    make_bundle(path, variants=BUSY)
    return open_bundle(path)


def welcome_load(client: Client) -> list[Load]:
    event = client.event()
    assert isinstance(event, Welcomed)
    return event.welcome.load


def answer(client: Client) -> ResultReceived:
    event = client.event(END_S)
    assert isinstance(event, ResultReceived), event
    return event


def told(client: Client, bundle: Bundle, until: Callable[[dict[int, Load]], bool]) -> dict[int, Load]:
    """Ask by the fast variant until what the edge tells with an answer is as wanted."""
    end_s = time.monotonic() + END_S
    while True:
        client.ask(bundle.manifest.variants[1], 1, planes_of(bundle.manifest.variants[1]))
        load = {entry[0]: entry for entry in answer(client).result.load}
        if until(load):
            return load
        assert time.monotonic() < end_s, load


def test_variants_that_are_used_are_loaded_and_told_of_and_other_sessions_hear_nothing(bundle: Bundle) -> None:
    with serving(bundle.path, "--preload", "tiny-fast") as edge:
        with Client(edge, bundle) as client:
            assert welcome_load(client) == []
            client.ask(bundle.manifest.variants[1], 1, planes_of(bundle.manifest.variants[1]))
            assert answer(client).result.load == []
        loads = 'aecnn_load_seconds_count{variant="tiny-busy"}'
        assert metric(edge, loads) == 0
        with Client(edge, bundle, uses=[0, 1, 9]) as client:
            ((index, wait_ms, run_ms),) = welcome_load(client)
            assert (index, wait_ms) == (1, 0.0)
            assert run_ms > 0
            load = told(client, bundle, lambda load: 0 in load)
            assert load.keys() == {0, 1}
            assert load[0][2] > load[1][2] > 0  # the one with 20 matrix products takes longer
        assert metric(edge, loads) == 1


def test_a_burst_of_others_makes_the_wait_longer(bundle: Bundle) -> None:
    busy = bundle.manifest.variants[0]
    with (
        serving(bundle.path, "--preload", "all", "--max-batch", "1") as edge,
        Client(edge, bundle) as crowd,
        Client(edge, bundle, uses=[0, 1]) as client,
    ):
        crowd.event()
        before = {entry[0]: entry for entry in welcome_load(client)}
        assert before.keys() == {0, 1}
        assert before[0][1] == 0
        for _ in range(4):
            crowd.ask(busy, 0, planes_of(busy))
        during = told(client, bundle, lambda load: load[0][1] > 0)
        # In turns: the crowd's running one and one more are before it at most, and the fast one has no queue.
        assert 0 < during[0][1] < 4 * during[0][2]
        assert during[1][1] <= during[1][2] + 0.01  # the rest of another model's batch, at most its own run
        for _ in range(4):
            assert answer(crowd).result.load == []  # it did not say that it switches
        after = told(client, bundle, lambda load: load[0][1] == 0)
        assert after[0][1] == 0


def test_no_loaded_model_is_freed_for_one_that_is_only_wanted(bundle: Bundle) -> None:
    small_mb = f"{bundle.manifest.files[bundle.manifest.variants[1].tails['onnxruntime']].bytes / 1e6 + 0.001:.6f}"
    with (
        serving(bundle.path, "--preload", "tiny-fast", "--memory-limit-mb", small_mb) as edge,
        Client(edge, bundle, uses=[0, 1]) as client,
    ):
        assert [entry[0] for entry in welcome_load(client)] == [1]
        for _ in range(5):
            assert told(client, bundle, lambda _: True).keys() == {1}
        code, log = edge.stop()
    assert code == 0
    assert "tiny-busy is not loaded ahead: the limit of" in log
    assert "freed tiny-fast" not in log


def test_a_tail_that_cannot_be_loaded_ahead_harms_nobody(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    make_bundle(tmp_path / "bundle", variants=BUSY, tail_of_first=broken)
    bundle = open_bundle(tmp_path / "bundle")
    with (
        serving(bundle.path, "--preload", "tiny-fast") as edge,
        Client(edge, bundle, uses=[0, 1]) as client,
    ):
        assert [entry[0] for entry in welcome_load(client)] == [1]
        for _ in range(5):
            assert told(client, bundle, lambda _: True).keys() == {1}
        code, log = edge.stop()
    assert code == 0
    assert "tiny-busy cannot be loaded ahead" in log


class Answers:
    """Hears of a session's answers, and has no frames to look after."""

    def __init__(self) -> None:
        self.results = 0

    def on_result(self, sent: Sent, result: Result, now_s: float) -> None:
        self.results += 1

    def on_failure(self, sent: Sent, failed: Failed, now_s: float) -> None:
        raise AssertionError(failed)

    def on_lost(self, sents: list[Sent], error: EdgeUnreachableError) -> None: ...

    def on_room(self) -> None: ...

    def on_route(self) -> None: ...

    def on_defect(self, defect: BaseException) -> None:
        raise defect


def test_a_device_knows_the_load_of_its_session_from_welcome_and_results(bundle: Bundle) -> None:
    fast = bundle.manifest.variants[1]
    planes = planes_of(fast)
    encoded = PlaneEncoder(fast.planes, fast.bits, coder="raw").encode(planes)

    def loads(url: str, *uses: int) -> tuple[EdgeLoad | None, EdgeLoad | None]:
        """After the WELCOME; and after RESULTs until both variants are told of, or after one where none is used."""
        settings = DeviceSettings(url, variant="tiny-fast")
        rate = LinkRate()
        coders = PlaneCoders({1: PlaneCoder(bundle, fast, rate, coder="raw", level=3)}, rate)
        hello, answers, lock = hello_of(bundle, settings, uses), Answers(), Lock()
        sessions = EdgeSessions(
            lock,
            lambda: EdgeLink(url, hello, timeout_s=10.0, limits=settings.limits),
            coders,
            answers,
            in_flight=4,
            timeout_s=10.0,
            backoff=Backoff(),
        )
        with closing(sessions):
            with lock:
                assert sessions.load_locked() is None
            sessions.open_first()
            sessions.start()
            with lock:
                first, session = sessions.load_locked(), sessions.room_locked()
            assert session is not None
            end_s, load, asked = time.monotonic() + END_S, first, 0
            while not asked or (uses and (load is None or load.variants.keys() != {0, 1})):
                assert time.monotonic() < end_s
                asked += 1
                with lock:
                    request_id, message = session.link.prepare(1, encoded, deadline_ms=0)
                    frame = MovingFrame(0, "frame0", time.perf_counter(), None, FrameVariant("tiny-fast", 1, "fp32"))
                    sent = Sent(frame, planes, "raw", "raw", len(message), time.perf_counter(), 1)
                    sessions.register_locked(session, request_id, sent)
                session.link.send(message)
                while answers.results < asked:
                    assert time.monotonic() < end_s
                    time.sleep(0.002)
                with lock:
                    load = sessions.load_locked()
        return first, load

    with serving(bundle.path, "--preload", "tiny-fast") as edge:
        assert loads(edge.url) == (None, None)
        first, last = loads(edge.url, 0, 1)
    assert first is not None
    assert last is not None
    assert first.variants.keys() == {1}
    assert last.told_s > first.told_s
    assert last.variants[0].run_ms > last.variants[1].run_ms > 0


def test_what_was_told_stands_by_the_bundles_indexes() -> None:
    load = load_told([(0, 1.5, 12.0), (3, 0.0, 40.0)], 7.0)
    assert load == EdgeLoad({0: VariantLoad(1.5, 12.0), 3: VariantLoad(0.0, 40.0)}, 7.0)
    assert load_told([], 7.0) is None
