"""The device's pipeline: order, overlap, policies, and how a run ends."""

import dataclasses
import gc
import io
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import SettingsError, SourceError
from aecnn_deploy.runtimes.device_client import DeviceSettings, ImageReport, run_device
from aecnn_deploy.runtimes.frame_failure import Failure
from aecnn_deploy.runtimes.run_report import RunTotals
from aecnn_deploy.runtimes.sources import SourceImage
from aecnn_deploy.wire import EdgeSession, Failed
from tests.bundles import COMMAND, command, environment, make_bundle, make_photos, one_line, serving
from tests.device_runs import LONG_S, Part, assert_each_once, failures, frames, playing, result, run, wait_for


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("pipeline") / "bundle"
    make_bundle(path)
    return open_bundle(path)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_photos(tmp_path_factory.mktemp("photos"), 1)[0].read_bytes()


class Together(Part):
    """Waits until so many requests are there, or for a while, then answers them, the last one first."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.waiting = count, []  # type: ignore[var-annotated]
        self.most = 0

    def answer(self, connection: ServerConnection, session: EdgeSession, request_id: int, number: int) -> bool | None:
        self.waiting.append(request_id)
        self.most = max(self.most, len(self.waiting))
        if len(self.waiting) == self.count:
            for waiting in reversed(self.waiting):
                connection.send(session.result(waiting, result(waiting)))
            self.waiting.clear()
        return None


class Slow(Part):
    """Answers each request so many seconds after it came, several at a time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.lock = seconds, threading.Lock()

    def answer(self, connection: ServerConnection, session: EdgeSession, request_id: int, number: int) -> bool | None:
        def late() -> None:
            with self.lock, suppress(ConnectionClosed):
                connection.send(session.result(request_id, result(request_id)))

        threading.Timer(self.seconds, late).start()
        return None


class TestOrder:
    def test_answers_out_of_order_are_told_in_the_order_of_capture(self, bundle: Bundle, photo: bytes) -> None:
        told: list[str] = []
        with playing(Together(4)) as url:
            report = run(bundle, url, frames(photo, 24), in_flight=4, on_image=lambda image: told.append(image.source))
        assert_each_once(report, 24)
        assert told == [image.source for image in report.images]
        assert [image.index for image in report.images] == [(number + 1) % 7 for number in range(24)]
        assert report.summary()["ok"] == 24

    @pytest.mark.parametrize(("wanted", "allowed", "count"), [(3, 4, 3), (9, 2, 2)])
    def test_so_many_requests_are_in_flight_as_both_halves_allow(
        self, bundle: Bundle, photo: bytes, wanted: int, allowed: int, count: int
    ) -> None:
        edge = Together(count)
        edge.max_in_flight = allowed
        with playing(edge) as url:
            assert_each_once(run(bundle, url, frames(photo, 6 * count), in_flight=wanted), 6 * count)
        assert edge.most == count

    def test_one_in_flight_is_one_image_after_the_other(self, bundle: Bundle, photo: bytes) -> None:
        events: list[str] = []

        def source() -> Iterator[SourceImage]:
            for image in frames(photo, 5):
                events.append(f"capture {image.name}")
                yield image

        with playing(Part()) as url:
            run(bundle, url, source(), in_flight=1, on_image=lambda image: events.append(f"told {image.source}"))
        assert events == [f"{what} frame{number}" for number in range(5) for what in ("capture", "told")]

    @pytest.mark.parametrize("in_flight", [1, 4])
    def test_the_stages_and_the_queue_add_up_to_the_whole(self, bundle: Bundle, photo: bytes, in_flight: int) -> None:
        with serving(bundle.path) as edge:
            report = run(bundle, edge.url, frames(photo, 20), in_flight=in_flight)
        assert_each_once(report, 20)
        assert (sum(image.stages_ms["queue"] for image in report.images) > 0) == (in_flight > 1)
        for image in report.images:
            parts = [image.device_ms, image.link_ms, image.edge_ms, image.stages_ms["queue"]]
            assert sum(part or 0 for part in parts) == pytest.approx(image.total_ms, abs=0.01)
            assert min(part if part is not None else -1 for part in parts) >= 0
            stages = image.stages_ms
            assert stages["read"] + stages["head"] + stages["encode"] <= (image.device_ms or 0) + 0.01


def test_capture_and_edge_overlap(bundle: Bundle, photo: bytes) -> None:
    def slow_source() -> Iterator[SourceImage]:
        for image in frames(photo, 20):
            time.sleep(0.05)
            yield image

    with playing(Slow(0.15)) as url:
        began_s = time.monotonic()
        report = run(bundle, url, slow_source(), in_flight=4)
        took_s = time.monotonic() - began_s
    assert_each_once(report, 20)
    assert report.summary()["ok"] == 20
    # One after the other takes 20 * (0.05 + 0.15) = 4 s, overlapped 1.2 s.
    assert took_s < 2.6


class TestPolicies:
    def endless(self, photo: bytes, stop: threading.Event, count: int = 100_000) -> Iterator[SourceImage]:
        for image in frames(photo, count):
            if stop.is_set():
                return
            time.sleep(0.002)
            yield image

    def test_latest_replaces_what_waits_for_the_head_and_reports_it(self, bundle: Bundle, photo: bytes) -> None:
        with playing(Slow(0.1)) as url:
            report = run(bundle, url, self.endless(photo, threading.Event(), 150), live=True, in_flight=1)
        assert_each_once(report, 150)
        assert failures(report) == {"dropped"}
        summary = report.summary()
        assert summary["dropped"] == summary["failed"] > 50
        assert summary["ok"] >= 2
        assert report.images[-1].status == "ok"  # nothing newer came
        assert report.faults == 0

    def test_all_drops_nothing_of_a_live_source(self, bundle: Bundle, photo: bytes) -> None:
        with playing(Slow(0.02)) as url:
            report = run(bundle, url, self.endless(photo, threading.Event(), 30), live=True, policy="all")
        assert_each_once(report, 30)
        assert report.summary()["ok"] == 30

    def test_files_are_all_run_unless_latest_is_asked_for(self, bundle: Bundle, photo: bytes) -> None:
        with playing(Slow(0.05)) as url:
            assert failures(run(bundle, url, frames(photo, 12))) == set()
            assert failures(run(bundle, url, frames(photo, 60), policy="latest", in_flight=1)) == {"dropped"}

    @pytest.mark.parametrize("bad", [{"policy": "newest"}, {"fallback": "cloud"}, {"in_flight": 0}, {"in_flight": 256}])
    def test_a_setting_that_is_none_is_refused(self, bad: dict[str, Any]) -> None:
        with pytest.raises(SettingsError):
            DeviceSettings("ws://127.0.0.1:1", **bad)


class TestOneFrame:
    def test_a_class_without_a_label_and_a_failure_of_the_edge_are_named(self, bundle: Bundle, photo: bytes) -> None:
        class Odd(Part):
            def answer(
                self, connection: ServerConnection, session: EdgeSession, request_id: int, number: int
            ) -> bool | None:
                if request_id == 2:
                    connection.send(session.fail(request_id, Failed("bad-payload", "no")))
                elif request_id == 3:
                    connection.send(session.fail(request_id, Failed("from-the-future", "no")))
                else:
                    answer = result(request_id)
                    top = [(99, 1.0)] if request_id == 4 else answer.top
                    connection.send(session.result(request_id, type(answer)(top, 0.1, 0.1, 0.1, 0.4, 1, "v")))
                return None

        with playing(Odd()) as url:
            report = run(bundle, url, frames(photo, 6))
        assert_each_once(report, 6)
        assert [image.failure for image in report.images] == [None, "bad-payload", "internal", "bad-result", None, None]

    def test_an_image_that_does_not_decode_fails_alone_and_in_its_place(self, bundle: Bundle, photo: bytes) -> None:
        images = frames(photo, 8)
        images[3] = SourceImage("frame3", b"no image")
        with playing(Slow(0.02)) as url:
            report = run(bundle, url, images)
        assert_each_once(report, 8)
        assert [image.failure for image in report.images] == [None] * 3 + ["bad-image"] + [None] * 4

    def test_a_deadline_is_an_outcome_when_it_passes_and_the_late_answer_is_ignored(
        self, bundle: Bundle, photo: bytes
    ) -> None:
        class LateOnce(Slow):
            def answer(
                self, connection: ServerConnection, session: EdgeSession, request_id: int, number: int
            ) -> bool | None:
                if request_id == 2:
                    return super().answer(connection, session, request_id, number)
                connection.send(session.result(request_id, result(request_id)))
                return None

        times: list[float] = []
        edge = LateOnce(1.0)

        def spread() -> Iterator[SourceImage]:
            for image in frames(photo, 12):
                yield image
                time.sleep(0.15)

        began_s = time.monotonic()
        with playing(edge) as url:
            report = run(
                bundle,
                url,
                spread(),
                deadline_ms=600.0,
                on_image=lambda _: times.append(time.monotonic() - began_s),
            )
        assert_each_once(report, 12)
        assert [image.failure for image in report.images] == [None, "deadline"] + [None] * 10
        assert "no answer yet" in (report.images[1].error or "")
        assert edge.sessions == 1


class TestTheEnd:
    def test_a_source_that_vanishes_ends_the_run_with_its_reason(self, bundle: Bundle, photo: bytes) -> None:
        def vanishing(count: int) -> Iterator[SourceImage]:
            yield from frames(photo, count)
            raise SourceError("the camera is gone")

        with playing(Slow(0.05)) as url:
            report = run(bundle, url, vanishing(6))
            assert_each_once(report, 6)
            assert report.summary()["ok"] == 6
            assert report.error == "the camera is gone"
            assert report.document()["error"] == "the camera is gone"
            with pytest.raises(SourceError, match="the camera is gone"):
                run(bundle, url, vanishing(0))

    def test_a_source_is_closed_however_the_run_ends(self, bundle: Bundle, photo: bytes) -> None:
        class Camera:
            live = True
            closed = 0

            def __iter__(self) -> Iterator[SourceImage]:
                return iter(frames(photo, 3))

            def close(self) -> None:
                self.closed += 1

        camera = Camera()
        with playing(Part()) as url:
            run(bundle, url, camera, policy="all")
        assert camera.closed == 1
        with pytest.raises(SettingsError):
            run(bundle, "no address", camera)
        assert camera.closed == 2

    def test_stop_lets_what_is_in_flight_end_and_names_the_rest(self, bundle: Bundle, photo: bytes) -> None:
        stop, told = threading.Event(), []

        def seen(image: ImageReport) -> None:
            told.append(image)
            if len(told) == 5:
                stop.set()

        captured: list[str] = []

        def endless() -> Iterator[SourceImage]:
            for image in frames(photo, 100_000):
                captured.append(image.name)
                yield image

        with playing(Slow(0.1)) as url:
            report = run(bundle, url, endless(), stop=stop, on_image=seen)
        assert report.interrupted
        assert_each_once(report, len(report.images))
        assert len(captured) - 1 <= len(report.images) <= len(captured)  # one may have come after the end
        assert failures(report) <= {"interrupted"}
        assert report.summary()["ok"] > 5  # those in flight
        assert report.faults == 0

    def test_stop_ends_a_run_whose_source_gives_nothing(self, bundle: Bundle, photo: bytes) -> None:
        stop, forever = threading.Event(), threading.Event()

        def stuck() -> Iterator[SourceImage]:
            yield from frames(photo, 2)
            forever.wait(LONG_S)

        with playing(Part()) as url:
            report = run(bundle, url, stuck(), stop=stop, on_image=lambda image: stop.set())
        forever.set()
        assert [image.source for image in report.images] == ["frame0", "frame1"]
        wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "aecnn-capture"])

    def test_what_on_image_raises_ends_the_run_and_its_threads(self, bundle: Bundle, photo: bytes) -> None:
        def full(image: ImageReport) -> None:
            if image.source == "frame3":
                raise BrokenPipeError

        with playing(Slow(0.02)) as url, pytest.raises(BrokenPipeError):
            run(bundle, url, frames(photo, 1000), on_image=full)
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("aecnn-")]

    def test_a_defect_of_the_source_is_raised_when_all_frames_have_their_outcome(
        self, bundle: Bundle, photo: bytes
    ) -> None:
        told: list[str] = []

        def broken() -> Iterator[SourceImage]:
            yield from frames(photo, 3)
            raise ZeroDivisionError

        with playing(Part()) as url, pytest.raises(ZeroDivisionError):
            run(bundle, url, broken(), on_image=lambda image: told.append(image.status))
        assert told == ["ok"] * 3


def test_without_keep_nothing_grows_with_the_frames(bundle: Bundle, photo: bytes) -> None:
    objects: dict[int, int] = {}
    count = 0

    def seen(_: ImageReport) -> None:
        nonlocal count
        count += 1
        if count in (200, 700):
            gc.collect()
            objects[count] = len(gc.get_objects())

    with serving(bundle.path) as edge:
        report = run(bundle, edge.url, (image for image in frames(photo, 800)), keep=False, on_image=seen)
    assert (report.images, report.summary()["ok"]) == ([], 800)
    assert objects[700] - objects[200] < 200


class TestTheCommand:
    def start(self, bundle: Bundle, url: str, *options: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*COMMAND, "run-device", str(bundle.path), "--edge", url, "--source", "-", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
    def test_a_signal_ends_a_run_that_waits_for_its_source(
        self, bundle: Bundle, photo: bytes, tmp_path: Path, number: int, status: int
    ) -> None:
        (tmp_path / "a.jpg").write_bytes(photo)
        with serving(bundle.path) as edge:
            device = self.start(bundle, edge.url, "--jsonl")
            assert device.stdin is not None
            assert device.stdout is not None
            device.stdin.write(f"{tmp_path}/a.jpg\n" * 3)
            device.stdin.flush()
            lines = [json.loads(device.stdout.readline()) for _ in range(3)]
            device.send_signal(number)
            out, errors = device.communicate(timeout=LONG_S)
        assert (device.returncode, errors) == (status, "")
        (last,) = map(json.loads, out.splitlines())
        assert [line["status"] for line in lines] == ["ok"] * 3
        assert last["summary"]["ok"] == 3
        assert last["interrupted"] is True

    def test_a_second_ctrl_c_does_not_wait_for_an_edge_that_says_nothing(
        self, bundle: Bundle, photo: bytes, tmp_path: Path
    ) -> None:
        (tmp_path / "a.jpg").write_bytes(photo)
        edge = Together(99)  # never answers
        with playing(edge) as url:
            device = self.start(bundle, url, "--jsonl", "--timeout-s", "100")
            assert device.stdin is not None
            device.stdin.write(f"{tmp_path}/a.jpg\n" * 3)
            device.stdin.flush()
            wait_for(lambda: len(edge.asked) == 3)
            device.send_signal(signal.SIGINT)
            time.sleep(1.0)
            assert device.poll() is None  # it waits for what is in flight
            device.send_signal(signal.SIGINT)
            out, errors = device.communicate(timeout=LONG_S)
        assert (device.returncode, errors) == (130, "")
        *images, last = map(json.loads, out.splitlines())
        assert [image["failure"] for image in images] == ["interrupted"] * 3
        assert last["summary"]["failures"] == {"interrupted": 3}

    def test_json_lines_come_one_for_each_image_and_one_at_the_end(
        self, bundle: Bundle, photo: bytes, tmp_path: Path
    ) -> None:
        (tmp_path / "a.jpg").write_bytes(photo)
        (tmp_path / "b.jpg").write_bytes(b"no image")
        arguments = ("run-device", str(bundle.path), "--source", str(tmp_path))
        with serving(bundle.path) as edge:
            done = command(*arguments, "--edge", edge.url, "--jsonl")
            whole = command(*arguments, "--edge", edge.url, "--json")
        *images, last = map(json.loads, done.stdout.splitlines())
        assert done.returncode == whole.returncode == 1
        assert [image["failure"] for image in images] == [None, "bad-image"]
        document = json.loads(whole.stdout)
        assert last.keys() == document.keys() - {"images", "bundle_id"}
        assert images[0].keys() == document["images"][0].keys()
        assert last["summary"]["failures"] == {"bad-image": 1}

    def test_both_kinds_of_json_at_once_are_wrong_use(self, bundle: Bundle) -> None:
        done = command("run-device", str(bundle.path), "--edge", "ws://h:1", "--source", "-", "--json", "--jsonl")
        assert done.returncode == 2
        assert "choose one" in one_line(done.stderr)

    def test_a_source_that_vanishes_is_one_line_and_exit_status_1(self, bundle: Bundle) -> None:
        script = """
import sys
from aecnn_deploy.errors import SourceError
from aecnn_deploy.runtimes import device_client
from aecnn_deploy.cli.main import run
real = device_client.open_source
def vanishing(source, stdin, settings):
    yield from real(source, stdin)
    raise SourceError("the camera is gone")
device_client.open_source = vanishing
sys.exit(run(sys.argv[1:]))
"""
        with serving(bundle.path) as edge:
            done = subprocess.run(
                [COMMAND[0], "-c", script, "run-device", str(bundle.path), "--edge", edge.url, "--source", "."],
                capture_output=True,
                cwd=make_photos(Path(bundle.path).parent / "here", 2)[0].parent,
                timeout=60,
                check=False,
                env=environment(),
            )
        assert done.returncode == 1
        assert one_line(done.stderr) == "error: the camera is gone"
        assert done.stdout.decode().splitlines()[-1].startswith("2 ok, 0 failed")


def test_run_device_gives_a_folder_in_order(bundle: Bundle, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 9)
    with serving(bundle.path) as edge:
        report = run_device(bundle, DeviceSettings(edge.url), str(tmp_path / "photos"), stdin=io.BytesIO(), limit=7)
    assert [image.source for image in report.images] == [os.fspath(photo) for photo in photos[:7]]
    assert report.summary()["split"] == 7


def test_the_page_names_every_failure_and_every_key() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "device.md").read_text()
    keys = [field.name for field in dataclasses.fields(ImageReport)] + list(RunTotals().summary())
    assert [name for name in (*Failure, *keys) if f"`{name}`" not in text] == []
