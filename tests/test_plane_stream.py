"""Differences over a real link: what they refer to, what survives a lost connection, and what an edge keeps."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image
from websockets.sync.server import ServerConnection

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.codec import DeltaEncoder, PlaneEncoder, coder_names, delta_names
from aecnn_deploy.errors import CodecError, EdgeUnreachableError, RequestFailedError
from aecnn_deploy.runtimes.device_client import Device, DeviceSettings, ImageReport, run_device
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.runtimes.plane_memory import KeptPlanes
from aecnn_deploy.runtimes.plane_stream import PlaneStream
from aecnn_deploy.runtimes.sources import SourceImage
from aecnn_deploy.wire import (
    EdgeSession,
    Failed,
    FailureReceived,
    Hello,
    HelloReceived,
    InferReceived,
    ResultReceived,
    Welcome,
    Welcomed,
    WireLimits,
)
from tests.bundles import make_bundle, serving
from tests.edge_client import Client, planes_of
from tests.peers import RESULT, peer

IDS = {"raw": 0, "zstd": 1, "delta-zstd": 8, "delta-jpegls": 9}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("stream") / "bundle"
    make_bundle(path)
    return open_bundle(path)


def camera(frames: int, *, cut: int | None = None) -> list[SourceImage]:
    """Frames of a still scene with a little noise; another scene from ``cut`` on."""
    rng = np.random.default_rng(4)
    scenes = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8)).resize((72, 72), Image.Resampling.BICUBIC)
        )
        for _ in range(2)
    ]
    images = []
    for index in range(frames):
        noisy = scenes[cut is not None and index >= cut] + rng.normal(0, 0.5, (72, 72, 3))
        content = io.BytesIO()
        Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8)).save(content, "PNG")
        images.append(SourceImage(f"frame{index}", content.getvalue()))
    return images


def kinds(reports: list[ImageReport]) -> str:
    """A letter for each frame: k for one of its own (a key frame), d for a difference, - for none."""
    return "".join("-" if image.coder is None else "d" if image.coder in delta_names() else "k" for image in reports)


def frames_of(spec: Any, count: int) -> list[np.ndarray]:
    """Planes that differ from each other in a few values."""
    rng = np.random.default_rng(2)
    first = planes_of(spec, 1) // 3
    return [np.where(rng.random(first.shape) < 0.05, first + 1, first).astype(np.uint8) for _ in range(count)]


@contextmanager
def stream_to(url: str, bundle: Bundle, coder: str = "delta-zstd") -> Iterator[PlaneStream]:
    """A device's stream without its head."""
    variants = [spec.id for spec in bundle.manifest.variants]
    link = EdgeLink(
        url,
        Hello(bundle.id, [1], variants, [*coder_names(), *delta_names()], "test"),
        timeout_s=5.0,
        limits=WireLimits(),
    )
    stream = PlaneStream(bundle, bundle.manifest.variants[0], link, coder=coder, level=3)
    stream.open()
    try:
        yield stream
    finally:
        link.close()


class ScriptedEdge:
    """A peer that answers by a script, and keeps what it was asked: coder ids, with the session's number."""

    def __init__(self, script: str, references: int = 5) -> None:
        self.script, self.references = list(script), references
        self.asked: list[tuple[int, int]] = []
        self.sessions = 0

    def __call__(self, connection: ServerConnection) -> None:
        self.sessions += 1
        session = EdgeSession(WireLimits())
        (event,) = session.receive(connection.recv())  # type: ignore[arg-type]
        assert isinstance(event, HelloReceived)
        hello = event.hello
        coders = hello.coders if self.references else [name for name in hello.coders if "delta" not in name]
        connection.send(
            session.welcome(
                Welcome(
                    1, hello.bundle_id, hello.variants, coders, 4, 1 << 20, 1 << 20, "test", "test", self.references
                )
            )
        )
        while True:
            (event,) = session.receive(connection.recv())  # type: ignore[arg-type]
            assert isinstance(event, InferReceived)
            self.asked.append((self.sessions, event.coder_id))
            match self.script.pop(0):
                case "ok":
                    pass
                case "r":
                    connection.send(session.result(event.request_id, RESULT))
                case "n":
                    connection.send(session.fail(event.request_id, Failed("no-reference", "gone")))
                case "o":
                    connection.send(session.fail(event.request_id, Failed("overloaded", "later")))
                case "x":
                    return


def asked_by(edge: ScriptedEdge, bundle: Bundle, count: int, **options: Any) -> list[str]:
    """Send ``count`` alike frames; what became of each."""
    outcomes = []
    with peer(edge) as url, stream_to(url, bundle, **options) as stream:
        for planes in frames_of(bundle.manifest.variants[0], count):
            try:
                outcomes.append(stream.ask(planes, lambda: 0, may_reconnect=True).encoded.coder)
            except (RequestFailedError, EdgeUnreachableError) as exc:
                outcomes.append(type(exc).__name__)
    return outcomes


class TestTheDevice:
    def test_the_first_frame_of_a_session_stands_alone_and_the_others_are_differences(self, bundle: Bundle) -> None:
        edge = ScriptedEdge("rrrr")
        assert asked_by(edge, bundle, 4) == ["zstd", "delta-zstd", "delta-zstd", "delta-zstd"]

    def test_a_lost_connection_is_made_again_and_the_frame_is_sent_on_its_own(self, bundle: Bundle) -> None:
        edge = ScriptedEdge("rrxrr")
        assert asked_by(edge, bundle, 4) == ["zstd", "delta-zstd", "zstd", "delta-zstd"]
        delta, alone = IDS["delta-zstd"], IDS["zstd"]
        assert edge.asked == [(1, alone), (1, delta), (1, delta), (2, alone), (2, delta)]

    def test_a_connection_that_is_lost_again_is_given_up(self, bundle: Bundle) -> None:
        edge = ScriptedEdge("rxx")
        assert asked_by(edge, bundle, 2) == ["zstd", "LinkLostError"]
        assert edge.sessions == 2

    def test_a_reference_that_the_edge_lost_costs_one_more_message(self, bundle: Bundle) -> None:
        edge = ScriptedEdge("rrnrr")
        assert asked_by(edge, bundle, 4) == ["zstd", "delta-zstd", "zstd", "delta-zstd"]
        assert [coder for _, coder in edge.asked] == [1, 8, 8, 1, 8]
        assert edge.sessions == 1

    def test_a_reference_that_is_said_to_be_lost_twice_is_a_failure(self, bundle: Bundle) -> None:
        assert asked_by(ScriptedEdge("rnnr"), bundle, 3) == ["zstd", "RequestFailedError", "zstd"]

    def test_only_what_was_answered_is_referred_to_and_no_further_back_than_the_edge_keeps(
        self, bundle: Bundle
    ) -> None:
        edge = ScriptedEdge("rooor", references=3)
        failed = ["RequestFailedError"] * 3
        assert asked_by(edge, bundle, 5) == ["zstd", *failed, "zstd"]
        assert [coder for _, coder in edge.asked] == [1, 8, 8, 8, 1]

    def test_an_edge_without_references_gets_none(self, bundle: Bundle) -> None:
        edge = ScriptedEdge("rr", references=0)
        assert set(asked_by(edge, bundle, 2, coder="smallest")) <= {*coder_names()}
        with pytest.raises(CodecError, match="the edge does not decode coder 'delta-zstd'"):
            asked_by(ScriptedEdge("rr", references=0), bundle, 2)

    def test_another_edge_that_decodes_less_gets_what_it_decodes(self, bundle: Bundle) -> None:
        class Older(ScriptedEdge):
            def __call__(self, connection: ServerConnection) -> None:
                self.references = 5 if not self.sessions else 0
                super().__call__(connection)

        edge = Older("rrxrr")
        outcomes = asked_by(edge, bundle, 4, coder="smallest")
        assert outcomes[1].startswith("delta-")
        assert not any(name.startswith("delta-") for name in outcomes[2:])
        assert all(coder < 8 for session, coder in edge.asked if session == 2)


@pytest.mark.parametrize("coder", ["smallest", "delta-zstd", "delta-jpegls"])
def test_a_still_camera_takes_a_fraction_of_the_bytes_and_gets_the_same_answers(bundle: Bundle, coder: str) -> None:
    images = camera(20)
    with serving(bundle.path) as edge:
        with Device(bundle, DeviceSettings(edge.url, coder="zstd")) as device:
            alone = [device.run(image) for image in images]
        with Device(bundle, DeviceSettings(edge.url, coder=coder)) as device:
            found = [device.run(image) for image in images]
    assert [(image.index, image.score) for image in found] == [(image.index, image.score) for image in alone]
    assert [image.status for image in found] == ["ok"] * 20
    assert kinds(found) == "k" + 19 * "d"
    assert sum(image.wire_bytes or 0 for image in found[1:]) < 0.7 * sum(image.wire_bytes or 0 for image in alone[1:])


def test_a_cut_is_sent_on_its_own_and_differences_go_on_after_it(bundle: Bundle) -> None:
    with serving(bundle.path) as edge, Device(bundle, DeviceSettings(edge.url, coder="delta-zstd")) as device:
        reports = [device.run(image) for image in camera(12, cut=7)]
    assert kinds(reports) == "k" + 6 * "d" + "k" + 4 * "d"


def test_differences_survive_an_edge_that_is_killed_and_started_again(bundle: Bundle) -> None:
    images = camera(30)
    with serving(bundle.path) as first, Device(bundle, DeviceSettings(first.url, coder="delta-zstd")) as device:
        reports = [device.run(image) for image in images[:3]]
        first.process.kill()
        first.process.wait()
        reports.append(device.run(images[3]))
        with serving(bundle.path, "--port", str(first.port)):
            end = time.monotonic() + 15
            while (last := device.run(images[4])).status != "ok":
                assert time.monotonic() < end
                time.sleep(0.05)
            reports += [last, *(device.run(image) for image in images[5:8])]
    assert [image.status for image in reports] == ["ok"] * 3 + ["failed"] + ["ok"] * 4
    assert kinds(reports) == "kdd-kddd"


class TestTheEdge:
    def test_it_keeps_so_many_answered_requests_of_each_variant_as_it_says(self, bundle: Bundle) -> None:
        spec = bundle.manifest.variants[0]
        alone, delta = PlaneEncoder(spec.planes, spec.bits), DeltaEncoder(spec.planes, spec.bits)
        frames = frames_of(spec, 4)
        room = sum(variant.plane_bytes for variant in bundle.manifest.variants) * 3
        with serving(bundle.path, "--reference-bytes", str(room)) as edge, Client(edge, bundle) as client:
            welcomed = client.event()
            assert isinstance(welcomed, Welcomed)
            assert welcomed.welcome.references == 3
            for planes in frames:
                client.send(alone.encode(planes))
                assert isinstance(client.event(), ResultReceived)
            expected = client.send(alone.encode(frames[0])), client.event().result.top
            # Requests 3, 4 and 5 are kept.
            client.send(delta.encode(frames[0], frames[2], 3))
            assert client.event().result.top == expected[1]
            client.send(delta.encode(frames[0], frames[2], 4))
            event = client.event()
            assert isinstance(event, FailureReceived)
            assert event.failed.code == "no-reference"
            client.send(delta.encode(frames[0], frames[0], 8))
            assert client.event().failed.code == "no-reference"

    def test_planes_are_never_taken_from_another_variant_or_another_session(self, bundle: Bundle) -> None:
        one, two = bundle.manifest.variants
        with serving(bundle.path) as edge:
            with Client(edge, bundle) as client:
                client.event()
                client.send(PlaneEncoder(one.planes, one.bits).encode(planes_of(one)))
                assert isinstance(client.event(), ResultReceived)
                planes = planes_of(two)
                client.send(DeltaEncoder(two.planes, two.bits).encode(planes, planes, 1), index=1)
                assert client.event().failed.code == "no-reference"
            with Client(edge, bundle) as client:
                client.event()
                client.session._last_request_id = 1  # as if the first request had been of this session
                planes = planes_of(one)
                client.send(DeltaEncoder(one.planes, one.bits).encode(planes, planes, 1))
                assert client.event().failed.code == "no-reference"

    def test_a_request_that_failed_is_no_reference(self, bundle: Bundle) -> None:
        spec = bundle.manifest.variants[0]
        planes = planes_of(spec)
        with serving(bundle.path) as edge, Client(edge, bundle) as client:
            client.event()
            broken = PlaneEncoder(spec.planes, spec.bits, coder="zstd").encode(planes // 9)
            client.session._last_request_id = 0
            message = client.session.infer(0, broken.coder_id, broken.payload[:-1], broken.raw_bytes)[1]
            client.socket.send(message)
            assert client.event().failed.code == "bad-payload"
            client.send(DeltaEncoder(spec.planes, spec.bits).encode(planes, planes, 1))
            assert client.event().failed.code == "no-reference"

    @pytest.mark.parametrize(("option", "coders"), [("0", [*coder_names()]), ("100", [*coder_names()])])
    def test_without_room_for_one_frame_it_offers_no_differences(
        self, bundle: Bundle, option: str, coders: list[str]
    ) -> None:
        with serving(bundle.path, "--reference-bytes", option) as edge:
            with Client(edge, bundle) as client:
                welcome = client.event().welcome
            report = run_device(bundle, DeviceSettings(edge.url), "-", stdin=io.BytesIO(camera(1)[0].content))
        assert (welcome.references, welcome.coders) == (0, coders)
        assert [image.status for image in report.images] == ["ok"]

    def test_what_is_kept_is_bounded_whatever_ids_a_device_chooses(self) -> None:
        kept = KeptPlanes(3)
        planes = np.zeros((1, 2, 2), np.uint8)
        for request_id in (1, 1 << 40, 7, 7, 2, 9):
            kept.keep(request_id, planes)
        assert [request_id for request_id in (1, 1 << 40, 7, 2, 9) if kept.get(request_id) is not None] == [7, 2, 9]
