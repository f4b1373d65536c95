"""The unsplit model in the edge's place: when it is used, that it says so, and that the edge comes back by itself."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.server import ServerConnection

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.runtimes.device_client import ImageReport
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.sources import SourceImage
from aecnn_deploy.wire import EdgeSession, Failed
from tests.bundles import command, make_bundle, make_photos, run_full, serving
from tests.device_runs import LONG_S, Part, assert_each_once, failures, frames, playing, run
from tests.peers import peer

NOWHERE = "ws://127.0.0.1:9"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("fallback") / "bundle"
    make_bundle(path)
    return open_bundle(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_photos(tmp_path_factory.mktemp("photos"), 5)


@pytest.fixture(scope="module")
def photo(photos: list[Path]) -> bytes:
    return photos[0].read_bytes()


def spread(content: bytes, count: int, pause_s: float = 0.03) -> Iterator[SourceImage]:
    for image in frames(content, count):
        yield image
        time.sleep(pause_s)


def test_without_an_edge_the_unsplit_model_classifies_and_says_so(
    bundle: Bundle, photos: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    images = [SourceImage(f"frame{number}", photo) for number, photo in enumerate(photos)]
    with caplog.at_level(logging.WARNING, "aecnn_deploy.device"):
        report = run(bundle, NOWHERE, images, fallback="local")
    assert_each_once(report, 5)
    for photo, image in zip(photos, report.images, strict=True):
        logits = run_full(bundle, read_frame(photo, bundle.manifest.input)).astype(np.float64)
        scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert (image.path, image.fallback) == ("local", "unreachable")
        assert image.index == int(np.argmax(logits))
        assert image.score == pytest.approx(scores.max(), rel=1e-5)
        assert (image.coder, image.head, image.wire_bytes, image.edge_ms) == (None, None, None, 0.0)
        parts = [image.device_ms, image.link_ms, image.edge_ms, image.stages_ms["queue"]]
        assert sum(part or 0 for part in parts) == pytest.approx(image.total_ms, abs=0.01)
        assert image.stages_ms["head"] == 0.0  # no work for nothing
    summary = report.summary()
    assert (summary["ok"], summary["split"], summary["local"]) == (5, 0, 5)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("the unsplit model runs here from frame0 on: cannot reach the edge")


def test_the_edge_is_used_again_when_it_returns(bundle: Bundle, photo: bytes, caplog: pytest.LogCaptureFixture) -> None:
    paths: list[str] = []
    count = 0

    def endless() -> Iterator[SourceImage]:
        nonlocal count
        end = time.monotonic() + LONG_S
        while paths[-3:] != ["split"] * 3 or "local" not in paths:
            assert time.monotonic() < end
            yield SourceImage(f"frame{count}", photo)
            count += 1
            time.sleep(0.01)

    with ExitStack() as stack:
        edge = stack.enter_context(serving(bundle.path))

        def seen(image: ImageReport) -> None:
            paths.append(image.path)
            if len(paths) == 5:
                edge.process.kill()
                edge.process.wait()
            if paths.count("local") == 5:
                stack.enter_context(serving(bundle.path, "--port", str(edge.port)))

        with caplog.at_level(logging.WARNING, "aecnn_deploy.device"):
            report = run(bundle, edge.url, endless(), fallback="local", on_image=seen)
    assert_each_once(report, count)
    assert failures(report) == set()
    assert paths[0] == "split"
    lines = [record.getMessage() for record in caplog.records]
    assert ["runs here" in lines[0], "back to the edge" in lines[1]] == [True, True]
    summary = report.summary()
    assert summary["split"] == paths.count("split")
    assert summary["local"] == paths.count("local") >= 5


@pytest.mark.parametrize("code", ["overloaded", "draining", "internal", "deadline"])
def test_what_the_edge_does_not_do_is_done_here(bundle: Bundle, photo: bytes, code: str) -> None:
    class Unwilling(Part):
        def answer(
            self, connection: ServerConnection, session: EdgeSession, request_id: int, number: int
        ) -> bool | None:
            if request_id % 2:
                return super().answer(connection, session, request_id, number)
            connection.send(session.fail(request_id, Failed(code, "no")))
            return None

    with playing(Unwilling()) as url:
        report = run(bundle, url, frames(photo, 10), fallback="local", in_flight=1)
    assert_each_once(report, 10)
    assert [image.path for image in report.images] == ["split", "local"] * 5
    assert [image.fallback for image in report.images] == [None, code] * 5


@pytest.mark.parametrize("code", ["bad-payload", "unknown-variant"])
def test_what_shows_a_defect_is_not_covered_up(bundle: Bundle, photo: bytes, code: str) -> None:
    class Wrong(Part):
        def answer(
            self, connection: ServerConnection, session: EdgeSession, request_id: int, number: int
        ) -> bool | None:
            connection.send(session.fail(request_id, Failed(code, "no")))
            return None

    images = frames(photo, 3)
    images[1] = SourceImage("frame1", b"no image")
    with playing(Wrong()) as url:
        report = run(bundle, url, images, fallback="local")
    assert [image.failure for image in report.images] == [code, "bad-image", code]


class Mute(Part):
    def answer(self, connection: ServerConnection, session: EdgeSession, request_id: int, number: int) -> bool | None:
        return None


def test_an_edge_that_does_not_answer_in_time_leaves_time_for_the_unsplit_model(bundle: Bundle, photo: bytes) -> None:
    with playing(Mute()) as url:
        report = run(
            bundle, url, spread(photo, 6), variant="tiny-l1-v2-u8", fallback="local", deadline_ms=1000.0, timeout_s=30.0
        )
    assert_each_once(report, 6)
    assert failures(report) <= {"deadline"}  # a machine that stalls for 50 ms
    local = [image for image in report.images if image.path == "local"]
    assert len(local) >= 3
    for image in local:
        assert image.fallback == "deadline"
        assert (image.total_ms or 0) <= 1000
    assert (report.images[0].link_ms or 0) > 500  # it was tried


def test_an_edge_that_never_answers_is_given_up_after_the_timeout(bundle: Bundle, photo: bytes) -> None:
    with playing(Mute()) as url:
        report = run(bundle, url, spread(photo, 10), fallback="local", timeout_s=0.3)
    assert_each_once(report, 10)
    assert {image.path for image in report.images} == {"local"}
    assert report.images[0].fallback == "timeout"


def test_a_refusal_does_not_stop_a_device_that_has_a_fallback(bundle: Bundle, photo: bytes, tmp_path: Path) -> None:
    def closing(connection: ServerConnection) -> None:
        connection.recv()

    with peer(closing) as url:
        assert {image.path for image in run(bundle, url, frames(photo, 3), fallback="local").images} == {"local"}
    make_bundle(tmp_path / "other", seed=2)
    with serving(tmp_path / "other") as edge:
        report = run(bundle, edge.url, frames(photo, 3), fallback="local")
    assert [image.fallback for image in report.images] == ["bundle-mismatch"] * 3


def test_the_command_marks_local_rows_and_says_on_stderr_why(bundle: Bundle, photos: list[Path]) -> None:
    arguments = ("run-device", str(bundle.path), "--edge", NOWHERE, "--source", str(photos[0].parent))
    done = command(*arguments, "--fallback", "local")
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0
    assert max(map(len, lines)) <= 80
    assert all(" local " in line for line in lines[1:-1])
    assert lines[-1].startswith("5 ok, 0 failed, 5 local; total p50 ")
    (said,) = done.stderr.decode().splitlines()
    assert said.startswith("the unsplit model runs here from ")
    assert "cannot reach the edge" in said
    done = command(*arguments, "--fallback", "local", "--json")
    assert json.loads(done.stdout)["summary"]["local"] == 5
