"""A device that follows a controller's advice, and its frames when that is silent, wrong or away."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.controller_advice import AdviceBox
from aecnn_deploy.runtimes.controller_messages import Advice, Hello, Refused, State, Welcome, encoded, from_device
from aecnn_deploy.runtimes.device_client import DeviceSettings, RunReport, SourceImage
from tests.bundles import make_bundle, make_photos
from tests.controllers import VARIANTS, two_variants
from tests.device_runs import Part, assert_each_once, playing, run
from tests.link_proxy import LinkProxy, LinkSettings
from tests.peers import peer

SLOT_MS, EVERY_S, DEADLINE_MS = 50.0, 0.04, 400.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return two_variants(tmp_path_factory.mktemp("controller") / "bundle")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_photos(tmp_path_factory.mktemp("photos"), 1)[0].read_bytes()


def paced(photo: bytes, count: int, until: Callable[[], bool] = lambda: False) -> Iterator[SourceImage]:
    """A camera: so many frames, or until something is so."""
    began_s = time.perf_counter()
    for number in range(count):
        time.sleep(max(0.0, began_s + number * EVERY_S - time.perf_counter()))
        if until():
            return
        yield SourceImage(f"frame{number}", photo)


class TestAdviceBox:
    def test_advice_holds_for_as_long_as_it_says(self) -> None:
        box = AdviceBox(VARIANTS, 2)
        assert box.now(1.0) is None
        box.put(4, 1, "good", 100.0, 1.0)
        advice = box.now(1.09)
        assert advice is not None
        assert (advice.edge, box.index(advice), box.slot) == (1, 0, 4)
        assert box.now(1.1) is None
        box.put(5, 1, "good", 1e9, 1.0)
        assert box.now(12.0) is None  # ten seconds at most, whatever is said

    @pytest.mark.parametrize(("edge", "variant"), [(2, "good"), (None, "good"), (0, None)])
    def test_half_an_advice_is_none_and_is_said_once(
        self, edge: int | None, variant: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        box = AdviceBox(VARIANTS, 2)
        for _ in range(2):
            box.put(1, edge, variant, 100.0, 1.0)
        assert box.now(1.0) is None
        assert caplog.text.count("not followed") == 1

    def test_a_variant_that_the_bundle_lacks_is_said_once(self, caplog: pytest.LogCaptureFixture) -> None:
        box = AdviceBox(VARIANTS, 2)
        for slot in range(2):
            box.put(slot, 0, "no\x1b[31msuch", 100.0, 1.0)
            advice = box.now(1.0)
            assert advice is not None
            assert box.index(advice) is None
        assert caplog.text.count("not followed") == 1
        assert "\x1b" not in caplog.text


class Control:
    """A controller by hand: welcomes every device, and says once a slot what ``say`` gives (None: nothing)."""

    def __init__(self, say: Callable[[int], Advice | str | None]) -> None:
        self.say, self.slot = say, 0
        self.states: list[State] = []
        self.hellos: list[Hello] = []

    def __call__(self, connection: ServerConnection) -> None:
        try:
            first = from_device(connection.recv())
            assert isinstance(first, Hello)
            self.hellos.append(first)
            connection.send(encoded(Welcome(protocol=1, software="test", policy="by hand", slot_ms=SLOT_MS)))
            while True:
                self.slot += 1
                said = self.say(self.slot)
                if said is not None:
                    connection.send(said if isinstance(said, str) else encoded(said))
                end_s = time.monotonic() + SLOT_MS / 1e3
                while (left_s := end_s - time.monotonic()) > 0:
                    try:
                        told = from_device(connection.recv(timeout=left_s))
                    except TimeoutError:
                        break
                    assert isinstance(told, State)
                    self.states.append(told)
        except (ConnectionClosed, EOFError):
            pass


def to(edge: int | None, variant: str | None) -> Advice:
    return Advice(slot=1, edge=edge, variant=variant, valid_for_ms=2 * SLOT_MS)


@contextmanager
def two_edges() -> Iterator[tuple[list[Part], list[str]]]:
    with ExitStack() as stack:
        parts = [Part(), Part()]
        yield parts, [stack.enter_context(playing(part)) for part in parts]


def follow(bundle: Bundle, urls: list[str], controller: str, images: Any, **options: Any) -> RunReport:
    fields = {"other_edges": tuple(urls[1:]), "controller": controller, "deadline_ms": DEADLINE_MS, "coder": "raw"}
    return run(bundle, urls[0], images, live=True, **(fields | options))


def rest(report: RunReport) -> list[Any]:
    """Without what came before the first advice."""
    first = next((number for number, image in enumerate(report.images) if image.advised), len(report.images))
    return report.images[first:]


class TestDevice:
    def test_it_goes_where_it_is_advised(self, bundle: Bundle, photo: bytes) -> None:
        control = Control(lambda slot: to(1, "small") if slot < 12 else to(0, "good"))
        with two_edges() as (_, urls), peer(control) as controller:
            report = follow(bundle, urls, controller, paced(photo, 40))
        assert_each_once(report, 40)
        ways = [(image.edge, image.variant) for image in report.images if image.advised and image.status == "ok"]
        assert {ways[0], ways[-1]} == {(f"{urls[1]}/v1/stream", "small"), (f"{urls[0]}/v1/stream", "good")}
        assert len(set(ways)) == 2
        summary = report.summary()
        assert summary["advised"] >= 30
        assert summary["advised"] + sum(summary["unadvised"].values()) == 40
        (said,) = control.hellos
        assert (said.bundle_id, said.variants) == (bundle.id, ["good", "small"])
        assert said.edges == [url.removeprefix("ws://") for url in urls]

    def test_what_it_tells_is_what_it_measures(self, bundle: Bundle, photo: bytes) -> None:
        control = Control(lambda _: to(0, "good"))
        with two_edges() as (_, urls), peer(control) as controller:
            follow(bundle, urls, controller, paced(photo, 30), fallback="local")
        told = control.states[-5]
        assert told.slot == 1
        assert [edge.up for edge in told.edges] == [True, True]
        assert 0 < told.deadline_ms <= DEADLINE_MS
        assert told.frame_in_ms is not None
        assert told.frame_in_ms <= EVERY_S * 1e3
        assert told.local_ms is not None
        assert all(each is not None and 0 < each < 100 for each in told.device_ms)
        good, small = told.edges[0].ways
        assert good.message_bytes > 1024 > small.message_bytes  # 4×16×16 and 2×8×8 planes as they are
        assert told.edges[0].rate_bps > 0

    def test_silence_for_a_slot_and_it_decides_itself(self, bundle: Bundle, photo: bytes) -> None:
        control = Control(lambda slot: to(1, "small") if slot % 20 < 10 else None)
        with two_edges() as (_, urls), peer(control) as controller:
            report = follow(bundle, urls, controller, paced(photo, 70))
        assert_each_once(report, 70)
        words = "".join("a" if image.advised else "." for image in rest(report))
        assert "a....." in words  # half a second of silence: all but the first two slots' frames
        assert ".aa" in words
        own = [image for image in rest(report) if not image.advised]
        assert {image.unadvised for image in own} == {"silent"}
        assert {image.variant for image in own if image.status == "ok"} == {"good"}  # the most accurate in time

    def test_the_unsplit_model_runs_where_that_is_advised(
        self, bundle: Bundle, photo: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        control = Control(lambda _: to(None, None))
        with two_edges() as (_, urls), peer(control) as controller:
            report = follow(bundle, urls, controller, paced(photo, 25), fallback="local")
            other = follow(bundle, urls, controller, paced(photo, 25))
        local = [image for image in report.images if image.advised]
        assert len(local) > 15
        assert {(image.path, image.fallback, image.status) for image in local} == {("local", None, "ok")}
        assert "the unsplit model runs here" not in caplog.text  # that is for fallbacks
        assert {image.unadvised for image in other.images} <= {"silent", "no-local"}
        assert {image.path for image in other.images} == {"split"}

    @pytest.mark.parametrize(
        ("said", "why"),
        [
            (to(0, "other"), "unknown-variant"),
            (to(7, "good"), "silent"),
            (Advice(slot=1, edge=None, variant=None, valid_for_ms=100, idle=True), "unexpected"),
        ],
    )
    def test_advice_that_cannot_be_followed_is_not(self, bundle: Bundle, photo: bytes, said: Advice, why: str) -> None:
        with two_edges() as (_, urls), peer(Control(lambda _: said)) as controller:
            report = follow(bundle, urls, controller, paced(photo, 20))
        assert {image.advised for image in report.images} == {False}
        assert why in {image.unadvised for image in report.images}
        assert {image.status for image in report.images} == {"ok"}

    @pytest.mark.parametrize("said", ["{", '{"kind": "welcome"}', "x" * 20_000, '{"kind":"advice","slot":-1}'])
    def test_a_hostile_controller_costs_no_frame(self, bundle: Bundle, photo: bytes, said: str) -> None:
        with two_edges() as (_, urls), peer(Control(lambda _: said)) as controller:
            report = follow(bundle, urls, controller, paced(photo, 15))
        assert_each_once(report, 15)
        assert {(image.status, image.unadvised) for image in report.images} == {("ok", "silent")}

    def test_a_device_that_is_advised_no_longer_says_why_and_decides_itself(
        self, bundle: Bundle, photo: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        ended = encoded(Refused(code="bundle-mismatch", reason="give the device the new one"))
        control = Control(lambda slot: to(1, "small") if slot < 10 else ended)
        with two_edges() as (_, urls), peer(control) as controller:
            report = follow(bundle, urls, controller, paced(photo, 60))
        assert_each_once(report, 60)
        assert {image.status for image in report.images} == {"ok"}
        assert not report.images[-1].advised
        assert "give the device the new one" in caplog.text
        assert "this device decides itself" in caplog.text

    def test_a_controller_that_is_not_there_costs_no_frame_and_is_found_later(
        self, bundle: Bundle, photo: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        with peer(Control(lambda _: None)) as gone:
            port = int(gone.rpartition(":")[2])
        seen = threading.Event()

        def frames() -> Iterator[SourceImage]:
            with ExitStack() as stack:
                for number, image in enumerate(paced(photo, 400, seen.is_set)):
                    if number == 10:
                        stack.enter_context(peer(Control(lambda _: to(1, "small")), port))
                    yield image

        with two_edges() as (_, urls):
            report = follow(bundle, urls, gone, frames(), on_image=lambda image: seen.set() if image.advised else None)
        assert {image.unadvised for image in report.images[:9]} == {"silent"}
        assert seen.is_set()
        assert {image.status for image in report.images} == {"ok"}
        assert "this device decides itself" in caplog.text
        assert "advises again" in caplog.text

    def test_frames_for_an_edge_that_is_away_go_to_the_other_one(self, bundle: Bundle, photo: bytes) -> None:
        with ExitStack() as stack:
            good = stack.enter_context(playing(Part()))
            leaving = ExitStack()
            bad = leaving.enter_context(playing(Leaving()))
            controller = stack.enter_context(peer(Control(lambda _: to(1, "small"))))
            report = follow(bundle, [good, bad], controller, paced(photo, 40))
            leaving.close()
        assert_each_once(report, 40)
        assert {image.status for image in report.images} == {"ok"}
        assert "edge-away" in {image.unadvised for image in report.images}
        assert f"{good}/v1/stream" in {image.edge for image in report.images}

    def test_with_two_edges_and_no_controller_it_takes_the_one_that_does_better(
        self, bundle: Bundle, photo: bytes
    ) -> None:
        with ExitStack() as stack:
            urls = [stack.enter_context(playing(part)) for part in (Late(), Part())]
            report = run(bundle, urls[0], paced(photo, 30), live=True, deadline_ms=DEADLINE_MS, other_edges=(urls[1],))
        assert [image.advised for image in report.images] == [None] * 30
        assert "advised" not in report.summary()
        assert {image.edge for image in report.images[10:]} == {f"{urls[1]}/v1/stream"}

    def test_settings_that_do_not_go_together_are_refused(self, bundle: Bundle, tmp_path: Path) -> None:
        for options, why in (
            ({"controller": "http://x:1"}, "--controller needs --deadline-ms"),
            ({"other_edges": ("ws://b:1",)}, "more than one --edge needs --deadline-ms"),
            ({"controller": "http://x:1", "deadline_ms": 9.0, "variant": "good"}, "drop either"),
            ({"other_edges": ("ws://b:1",) * 16, "deadline_ms": 9.0}, "at most 16"),
        ):
            with pytest.raises(SettingsError, match=why):
                DeviceSettings("ws://a:1", **options)  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="no address of a controller"):
            follow(bundle, ["ws://127.0.0.1:9"], "somewhere", [], fallback="local")
        make_bundle(tmp_path / "bare", agreement=None)
        with pytest.raises(SettingsError, match="states no accuracy of its variants"):
            follow(open_bundle(tmp_path / "bare"), ["ws://127.0.0.1:9"], "http://127.0.0.1:9", [])

    @pytest.mark.parametrize("answers", [0, 6])
    def test_an_edge_that_falls_silent_holds_up_nothing_that_goes_to_another(
        self, bundle: Bundle, photo: bytes, answers: int
    ) -> None:
        with ExitStack() as stack:
            urls = [stack.enter_context(playing(part)) for part in (Part(), Stuck(answers))]
            controller = stack.enter_context(peer(Control(lambda _: to(1, "small"))))
            report = follow(bundle, urls, controller, paced(photo, 60))
        assert_each_once(report, 60)
        late = report.images[30:]
        assert "edge-busy" in {image.unadvised for image in late}
        assert {image.edge for image in late if image.status == "ok"} == {f"{urls[0]}/v1/stream"}
        assert sum(image.status == "ok" for image in late) >= 20

    def test_whatever_is_cut_every_frame_has_one_outcome(self, bundle: Bundle, photo: bytes) -> None:
        control = Control(lambda slot: to(slot // 3 % 2, VARIANTS[slot % 2]) if slot % 11 else None)
        with ExitStack() as stack:
            _, urls = stack.enter_context(two_edges())
            ports = [int(url.rpartition(":")[2]) for url in (*urls, stack.enter_context(peer(control)))]
            links = [
                stack.enter_context(LinkProxy(port, LinkSettings(cut_every_s=0.25, seed=number)))
                for number, port in enumerate(ports)
            ]
            report = follow(bundle, [link.url for link in links[:2]], links[2].url, paced(photo, 100), fallback="local")
        assert_each_once(report, 100)
        assert sum(link.cuts for link in links) > 5
        assert sum(image.status == "ok" for image in report.images) > 90
        assert {True, False} <= {image.advised for image in report.images}
        # Neither: only what failed or fell back before its turn came, as on a busy machine.
        neither = [image for image in report.images if image.advised is None]
        assert all(image.status == "failed" or image.fallback is not None for image in neither)


class Leaving(Part):
    """Ends every session at its third request."""

    def answer(self, connection: ServerConnection, session: Any, request_id: int, number: int) -> bool | None:
        return False if request_id > 2 else super().answer(connection, session, request_id, number)


class Stuck(Part):
    """Answers so many requests, and none after that."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.left = answers

    def answer(self, connection: ServerConnection, session: Any, request_id: int, number: int) -> bool | None:
        self.left -= 1
        return super().answer(connection, session, request_id, number) if self.left >= 0 else None


class Late(Part):
    """An edge that takes its time."""

    def answer(self, connection: ServerConnection, session: Any, request_id: int, number: int) -> bool | None:
        time.sleep(0.2)
        return super().answer(connection, session, request_id, number)
