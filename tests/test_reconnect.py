"""Every frame ends in one result or one named failure, whatever becomes of the edge and the link."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import EdgeUnreachableError, SessionRefusedError
from aecnn_deploy.runtimes.device_client import ImageReport
from aecnn_deploy.runtimes.sources import SourceImage
from aecnn_deploy.wire import EdgeSession, Failed
from tests.bundles import TinyVariant, make_bundle, make_photos, serving
from tests.chaos import chaos
from tests.device_runs import LONG_S, Part, assert_each_once, failures, frames, playing, result, run
from tests.peers import greet, peer

LINK = {"link-lost", "unreachable"}
STARTING = {"overloaded"}  # an edge that still loads its models refuses


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("reconnect") / "bundle"
    make_bundle(path)
    return open_bundle(path)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_photos(tmp_path_factory.mktemp("photos"), 1)[0].read_bytes()


class Watched:
    """A source that goes on until ``done`` says so, and the reports so far."""

    def __init__(self, content: bytes, pause_s: float = 0.004) -> None:
        self.reports: list[ImageReport] = []
        self.captured = 0
        self.done = False
        self._content, self._pause_s = content, pause_s

    def __iter__(self) -> Iterator[SourceImage]:
        end = time.monotonic() + LONG_S
        while not self.done:
            assert time.monotonic() < end
            yield SourceImage(f"frame{self.captured}", self._content)
            self.captured += 1
            time.sleep(self._pause_s)

    def of(self, status: str) -> int:
        return sum(image.status == status for image in self.reports)


class TestARealEdge:
    def test_an_edge_that_is_killed_and_started_again_loses_no_frame(self, bundle: Bundle, photo: bytes) -> None:
        source = Watched(photo)
        with ExitStack() as stack:
            edge = stack.enter_context(serving(bundle.path))
            answered_before = 0

            def seen(image: ImageReport) -> None:
                nonlocal answered_before
                source.reports.append(image)
                if not answered_before and source.of("ok") == 10:
                    edge.process.kill()
                    edge.process.wait()
                    stack.enter_context(serving(bundle.path, "--port", str(edge.port)))
                    answered_before = source.of("ok") + 4  # those that were in flight
                elif answered_before and source.of("ok") > answered_before + 5:
                    source.done = True

            report = run(bundle, edge.url, source, on_image=seen)
        assert_each_once(report, source.captured)
        assert failures(report) <= LINK | STARTING
        assert report.images[-1].status == "ok"

    def test_a_refusal_of_an_edge_with_another_bundle_names_every_frame_after_it(
        self, bundle: Bundle, photo: bytes, tmp_path: Path
    ) -> None:
        make_bundle(tmp_path / "other", seed=5)
        source = Watched(photo)
        with ExitStack() as stack:
            edge = stack.enter_context(serving(bundle.path))

            def seen(image: ImageReport) -> None:
                source.reports.append(image)
                if len(source.reports) == 5:
                    edge.process.kill()
                    edge.process.wait()
                    stack.enter_context(serving(tmp_path / "other", "--port", str(edge.port)))
                source.done = image.failure == "bundle-mismatch"

            report = run(bundle, edge.url, source, on_image=seen)
        assert_each_once(report, source.captured)
        assert failures(report) <= LINK | STARTING | {"bundle-mismatch"}
        assert "bundle" in (report.images[-1].error or "")

    @pytest.mark.parametrize("seed", range(2))
    def test_connections_cut_at_any_byte_lose_no_frame(self, bundle: Bundle, photo: bytes, seed: int) -> None:
        source = Watched(photo)
        with serving(bundle.path) as edge, chaos(edge.url, seed=seed) as relay:

            def seen(image: ImageReport) -> None:
                source.reports.append(image)
                if relay.connections > 12:
                    relay.heal()
                    source.done = source.of("ok") > 20 and all(image.status == "ok" for image in source.reports[-10:])

            relay_began = []

            def begun() -> Iterator[SourceImage]:
                for image in source:
                    if not relay_began:
                        relay_began.append(True)
                        relay.cut_within = 6000
                        relay.cut_now()
                    yield image

            report = run(bundle, relay.url, begun(), on_image=seen)
        assert_each_once(report, source.captured)
        assert failures(report) <= LINK
        assert relay.connections > 12

    def test_an_edge_that_stops_reading_holds_nobody_for_longer_than_the_timeout(
        self, tmp_path: Path, photo: bytes
    ) -> None:
        make_bundle(tmp_path / "large", variants=(TinyVariant("large", channels=16, stride=1, bits=8),), size=128)
        large = open_bundle(tmp_path / "large")
        source = Watched(photo, 0.02)
        times: list[float] = []
        with serving(large.path) as edge, chaos(edge.url) as relay:

            def seen(image: ImageReport) -> None:
                source.reports.append(image)
                if len(source.reports) == 5:
                    relay.stalled.set()
                    times.append(time.monotonic())
                elif image.status == "failed" and len(times) == 1:
                    times.append(time.monotonic())
                    relay.heal()
                source.done = len(times) == 2 and image.status == "ok"

            report = run(large, relay.url, source, coder="raw", timeout_s=0.5, in_flight=8, on_image=seen)
        assert_each_once(report, source.captured)
        assert "timeout" in failures(report)
        assert failures(report) <= LINK | {"timeout"}
        assert times[1] - times[0] < 3


class Break(Part):
    """Breaks its word at one request of its first session."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def answer(self, connection: ServerConnection, session: EdgeSession, request_id: int, number: int) -> bool | None:
        if number > 1 or request_id < 5:
            return super().answer(connection, session, request_id, number)
        match self.how:
            case "answers twice":
                message = session.result(request_id, result(request_id))
                connection.send(message)
                connection.send(message)
            case "answers another id":
                other = EdgeSession(session.limits)
                other.state, other._open_requests = session.state, {request_id + 100}
                connection.send(other.result(request_id + 100, result(1)))
            case "sends garbage":
                connection.send(b"\0" * 50)
            case "sends text":
                connection.send("hello")
            case "leaves":
                return False
            case "says goodbye":
                if request_id == 5:
                    connection.send(session.goodbye("restarting"))
                connection.send(session.result(request_id, result(request_id)))
            case "says goodbye and leaves":
                connection.send(session.goodbye("restarting"))
                return False
        return None


BREAKS = (
    "answers twice",
    "answers another id",
    "sends garbage",
    "sends text",
    "leaves",
    "says goodbye",
    "says goodbye and leaves",
)


class TestAnEdgeThatBreaksItsWord:
    @pytest.mark.parametrize("how", BREAKS)
    def test_the_frames_in_flight_are_sent_again_in_a_new_session(self, bundle: Bundle, photo: bytes, how: str) -> None:
        edge = Break(how)
        with playing(edge) as url:
            report = run(bundle, url, frames(photo, 30))
        assert_each_once(report, 30)
        assert failures(report) == set()
        assert edge.sessions == 2
        again = [coder for session, _, coder in edge.asked if session == 2]
        assert again[0] < 8  # a frame of its own

    def test_what_is_lost_twice_is_reported_once(self, bundle: Bundle, photo: bytes) -> None:
        class Leaving(Part):
            def answer(
                self, connection: ServerConnection, session: EdgeSession, request_id: int, number: int
            ) -> bool | None:
                return False

        edge = Leaving()
        with playing(edge) as url:
            report = run(bundle, url, frames(photo, 10))
        assert_each_once(report, 10)
        assert failures(report) <= LINK
        assert report.summary()["failed"] == 10
        assert report.images[0].failure == "link-lost"

    @pytest.mark.parametrize("polite", [True, False])
    def test_an_edge_that_takes_connections_and_leaves_at_once_is_asked_less_and_less(
        self, bundle: Bundle, photo: bytes, polite: bool
    ) -> None:
        sessions = 0

        def fickle(connection: ServerConnection) -> None:
            nonlocal sessions
            sessions += 1
            session = greet(connection)
            if polite:
                connection.send(session.goodbye("not today"))

        def spread() -> Iterator[SourceImage]:
            for image in frames(photo, 40):
                yield image
                time.sleep(0.02)

        with peer(fickle) as url:
            report = run(bundle, url, spread())
        assert_each_once(report, 40)
        assert failures(report) <= LINK | {"draining"}
        assert report.summary()["failed"] == 40
        assert 2 <= sessions < 30

    def test_an_edge_that_never_answers_ends_every_frame_by_a_timeout_and_is_left(
        self, bundle: Bundle, photo: bytes
    ) -> None:
        class Mute(Part):
            def answer(
                self, connection: ServerConnection, session: EdgeSession, request_id: int, number: int
            ) -> bool | None:
                return None

        edge = Mute()
        began_s = time.monotonic()
        with playing(edge) as url:
            report = run(bundle, url, frames(photo, 40), timeout_s=0.4)
        assert_each_once(report, 40)
        assert [image.failure for image in report.images[:4]] == ["timeout"] * 4
        assert failures(report) <= {"timeout", *LINK}
        assert time.monotonic() - began_s < 8  # not 40 / 4 times 0.4 s for each
        assert 1 <= edge.sessions < 20

    def test_one_request_that_is_never_answered_times_out_alone(self, bundle: Bundle, photo: bytes) -> None:
        class Forgetful(Part):
            def answer(
                self, connection: ServerConnection, session: EdgeSession, request_id: int, number: int
            ) -> bool | None:
                if number == 1 and request_id == 3:
                    return None
                return super().answer(connection, session, request_id, number)

        edge = Forgetful()

        def spread() -> Iterator[SourceImage]:
            for image in frames(photo, 20):
                yield image
                time.sleep(0.05)

        with playing(edge) as url:
            report = run(bundle, url, spread(), timeout_s=0.4)
        assert_each_once(report, 20)
        assert [image.failure for image in report.images] == [None, None, "timeout"] + [None] * 17
        assert edge.sessions == 2

    def test_a_difference_without_its_reference_is_sent_again_on_its_own(self, bundle: Bundle, photo: bytes) -> None:
        class Short(Part):
            def answer(
                self, connection: ServerConnection, session: EdgeSession, request_id: int, number: int
            ) -> bool | None:
                if self.asked[-1][2] >= 8:
                    connection.send(session.fail(request_id, Failed("no-reference", "gone")))
                    return None
                return super().answer(connection, session, request_id, number)

        edge = Short()
        with playing(edge) as url:
            report = run(bundle, url, frames(photo, 12), coder="delta-zstd", in_flight=2)
        assert_each_once(report, 12)
        assert failures(report) == set()
        assert any(coder >= 8 for _, _, coder in edge.asked)


class TestAPause:
    @pytest.mark.parametrize(("code", "live"), [("overloaded", True), ("deadline", True), ("overloaded", False)])
    def test_an_edge_that_asks_for_a_pause_gets_it_and_frames_of_now_fail_at_once(
        self, bundle: Bundle, photo: bytes, code: str, live: bool
    ) -> None:
        class Busy(Part):
            def __init__(self) -> None:
                super().__init__()
                self.at: list[float] = []

            def answer(
                self, connection: ServerConnection, session: EdgeSession, request_id: int, number: int
            ) -> bool | None:
                self.at.append(time.monotonic())
                if request_id == 3:
                    connection.send(session.fail(request_id, Failed(code, "too much", 0.4)))
                    return None
                return super().answer(connection, session, request_id, number)

        edge = Busy()

        def spread() -> Iterator[SourceImage]:
            for image in frames(photo, 30):
                yield image
                time.sleep(0.03)

        with playing(edge) as url:
            report = run(bundle, url, spread(), in_flight=1, live=live, policy="all")
        assert_each_once(report, 30)
        assert report.images[2].failure == code
        between = [image.failure for image in report.images[3:]]
        assert set(between) == ({None, "overloaded"} if live else {None})  # files wait, a camera does not
        assert between == sorted(between, key=lambda failure: failure is None)  # first the pause, then results
        assert edge.sessions == 1
        assert edge.at[3] - edge.at[2] >= 0.39

    def test_a_dead_edge_is_told_before_anything_is_read(self, bundle: Bundle) -> None:
        def unreadable() -> Iterator[SourceImage]:
            raise AssertionError("it was read")
            yield

        with pytest.raises(EdgeUnreachableError):
            run(bundle, "ws://127.0.0.1:9", unreadable())

    def test_a_refusal_is_told_before_anything_is_read(self, bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
        make_bundle(tmp_path / "other", seed=3)
        with serving(bundle.path) as edge, pytest.raises(SessionRefusedError):
            run(open_bundle(tmp_path / "other"), edge.url, frames(photo, 2))
