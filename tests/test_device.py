"""The device's side against real edges, and against peers that are no edges or break their word."""

import http.server
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import ServerConnection

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.codec import EncodedPlanes, coder_names, delta_names
from aecnn_deploy.errors import (
    BundleError,
    CodecError,
    EdgeUnreachableError,
    RequestFailedError,
    SessionRefusedError,
    SettingsError,
    SourceError,
)
from aecnn_deploy.runtimes.device_client import Device, DeviceSettings, ImageReport, RunReport, run_device
from aecnn_deploy.runtimes.device_link import EdgeLink, stream_url
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.sources import SourceImage
from aecnn_deploy.wire import (
    EdgeSession,
    Failed,
    Hello,
    HelloReceived,
    Welcome,
    WireLimits,
)
from tests.bundles import SLOW, make_bundle, make_photos, run_directly, serving
from tests.peers import RESULT, greet, next_request, peer

NO_STDIN = io.BytesIO()
RAW = EncodedPlanes("raw", 0, b"abcd", 4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("device") / "bundle"
    make_bundle(path)
    return open_bundle(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_photos(tmp_path_factory.mktemp("photos"), 6)


@contextmanager
def link_to(url: str, timeout_s: float = 5.0) -> Iterator[EdgeLink]:
    hello = Hello("b", [1], ["v"], list(coder_names()), "test")
    link = EdgeLink(url, hello, timeout_s=timeout_s, limits=WireLimits())
    try:
        yield link
    finally:
        link.close()


@pytest.mark.parametrize(
    ("edge", "url"),
    [
        ("ws://host:8765", "ws://host:8765/v1/stream"),
        ("http://host:8765/", "ws://host:8765/v1/stream"),
        ("https://host", "wss://host/v1/stream"),
        ("wss://host/behind/a/proxy", "wss://host/behind/a/proxy/v1/stream"),
        ("ws://[::1]:9/v1/stream", "ws://[::1]:9/v1/stream"),
    ],
)
def test_an_edge_may_be_named_by_any_of_four_schemes(edge: str, url: str) -> None:
    assert stream_url(edge) == url


@pytest.mark.parametrize(
    "edge", ["", "host:8765", "tcp://host:1", "ws://", "ws://host:99999", "ws://host:x", "ws://h?a=b"]
)
def test_what_is_no_address_of_an_edge_is_refused(edge: str) -> None:
    with pytest.raises(SettingsError, match="--edge"):
        stream_url(edge)


@pytest.mark.parametrize("variant", [None, "tiny-l1-v4-u4"])
def test_the_result_through_the_link_equals_head_and_tail_run_directly(
    bundle: Bundle, photos: list[Path], variant: str | None
) -> None:
    with serving(bundle.path) as edge:
        settings = DeviceSettings(edge.url, variant=variant, threads=1)
        report = run_device(bundle, settings, str(photos[0].parent), stdin=NO_STDIN)
    used = variant or bundle.manifest.variants[0].id
    assert [image.source for image in report.images] == [str(photo) for photo in photos]
    labels = set()
    for photo, image in zip(photos, report.images, strict=True):
        logits = run_directly(bundle, read_frame(photo, bundle.manifest.input), used).astype(np.float64)
        scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert image.status == "ok"
        assert image.variant == used
        assert image.index == int(np.argmax(logits))
        assert image.label == bundle.manifest.labels[image.index]
        assert image.score == pytest.approx(scores.max(), rel=1e-5)
        labels.add(image.label)
    assert len(labels) > 1


def test_the_times_add_up_and_the_bytes_are_the_whole_message(bundle: Bundle, photos: list[Path]) -> None:
    with serving(bundle.path) as edge:
        report = run_device(bundle, DeviceSettings(edge.url), str(photos[0]), stdin=NO_STDIN)
    (image,) = report.images
    assert image.wire_bytes is not None
    assert image.wire_bytes <= bundle.manifest.variants[0].plane_bytes + 36
    parts = [image.device_ms, image.link_ms, image.edge_ms]
    assert all(part is not None and part > 0 for part in parts)
    stages = image.stages_ms
    assert sum(part or 0 for part in parts) + stages["queue"] == pytest.approx(image.total_ms, abs=0.01)
    assert stages["read"] + stages["head"] + stages["encode"] <= (image.device_ms or 0) + 0.01
    assert stages["edge_queue"] + stages["edge_decode"] + stages["edge_tail"] <= (image.edge_ms or 0) + 0.01


def test_nothing_is_read_when_the_edge_refuses(tmp_path: Path, bundle: Bundle) -> None:
    other = tmp_path / "other"
    make_bundle(other, seed=1)
    with serving(bundle.path) as edge, pytest.raises(SessionRefusedError) as caught:
        run_device(open_bundle(other), DeviceSettings(edge.url), "-", stdin=Unreadable())
    assert caught.value.code == "bundle-mismatch"
    assert bundle.id[:12] in str(caught.value)


class Unreadable(io.BytesIO):
    """Standard input that nobody may read."""

    def readline(self, size: int | None = -1, /) -> bytes:
        raise AssertionError("an image was read")


def test_an_unreachable_edge_is_told_before_any_image(bundle: Bundle) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(EdgeUnreachableError, match="refused") as caught:
            run_device(bundle, DeviceSettings(url), "-", stdin=Unreadable())
    assert caught.value.url.startswith(url)


@pytest.mark.parametrize(("source", "what"), [("absent", "no file or folder"), (".", "holds no image")])
def test_a_source_without_images_is_told_before_the_edge_is_asked(
    bundle: Bundle, tmp_path: Path, source: str, what: str
) -> None:
    with pytest.raises(SourceError, match=what):
        run_device(bundle, DeviceSettings("ws://127.0.0.1:1"), str(tmp_path / source), stdin=NO_STDIN)


def test_an_unknown_variant_lists_the_known_ones(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="tiny-l1-v2-u8, tiny-l1-v4-u4"):
        Device(bundle, DeviceSettings("ws://127.0.0.1:1", variant="resnet"))


@pytest.mark.parametrize(
    "bad", [{"threads": -1}, {"deadline_ms": 0.0}, {"timeout_s": 0.0}, {"zstd_level": 99}, {"coder": "gzip"}]
)
def test_a_setting_out_of_range_is_refused(bundle: Bundle, bad: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Device(bundle, DeviceSettings("ws://127.0.0.1:1", **bad))


def test_every_coder_gives_the_same_classes(bundle: Bundle, photos: list[Path]) -> None:
    found: dict[str, list[int | None]] = {}
    with serving(bundle.path) as edge:
        for coder in ("smallest", "auto", *coder_names(), *delta_names()):
            if coder == "zstd-dict":  # needs a bundle with a dictionary
                continue
            settings = DeviceSettings(edge.url, coder=coder)
            report = run_device(bundle, settings, str(photos[0].parent), stdin=NO_STDIN)
            assert [image.status for image in report.images] == ["ok"] * len(photos)
            if coder in coder_names():
                assert {image.coder for image in report.images} <= {coder, "raw"}
            found[coder] = [image.index for image in report.images]
    assert all(indices == found["zstd"] for indices in found.values())


def test_a_coder_that_the_edge_does_not_decode_is_named_with_those_that_it_does(bundle: Bundle) -> None:
    def old(connection: ServerConnection) -> None:
        session = EdgeSession(WireLimits())
        (event,) = session.receive(connection.recv())  # type: ignore[arg-type]
        assert isinstance(event, HelloReceived)
        hello = event.hello
        connection.send(
            session.welcome(Welcome(1, hello.bundle_id, hello.variants, ["raw", "zstd"], 4, 1 << 20, 1 << 20, "t", "t"))
        )
        connection.recv()

    with (
        peer(old) as url,
        pytest.raises(CodecError, match=r"does not decode coder 'packed'; choose another one \(--coder\): raw, zstd"),
        Device(bundle, DeviceSettings(url, coder="packed")),
    ):
        pass


def test_an_image_that_does_not_decode_fails_alone(bundle: Bundle, photos: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:300])
    lines = "\n".join(map(str, [photos[0], broken, tmp_path / "absent.jpg", photos[1]]))
    with serving(bundle.path) as edge:
        report = run_device(bundle, DeviceSettings(edge.url), "-", stdin=io.BytesIO(lines.encode()))
    assert [image.status for image in report.images] == ["ok", "failed", "failed", "ok"]
    assert "broken.jpg" in (report.images[1].error or "")
    assert "absent.jpg" in (report.images[2].error or "")
    assert [image.failure for image in report.images] == [None, "bad-image", "bad-image", None]
    assert report.summary() | {"wire_bytes_mean": 0, "total_ms_p50": 0, "total_ms_p99": 0} == {
        "ok": 2,
        "failed": 2,
        "dropped": 0,
        "split": 2,
        "local": 0,
        "failures": {"bad-image": 2},
        "wire_bytes_mean": 0,
        "total_ms_p50": 0,
        "total_ms_p99": 0,
    }


def test_a_limit_ends_the_run(bundle: Bundle, photos: list[Path]) -> None:
    with serving(bundle.path) as edge:
        report = run_device(bundle, DeviceSettings(edge.url), str(photos[0].parent), stdin=NO_STDIN, limit=2)
    assert len(report.images) == 2
    with pytest.raises(SettingsError, match="limit"):
        run_device(bundle, DeviceSettings(edge.url), str(photos[0].parent), stdin=NO_STDIN, limit=0)


def test_the_rest_of_a_run_fails_by_name_when_the_edge_dies(bundle: Bundle, photos: list[Path]) -> None:
    with serving(bundle.path) as edge:

        def kill_after_two(_: ImageReport) -> None:
            done.append(1)
            if len(done) == 2:
                edge.process.kill()
                edge.process.wait()

        done: list[int] = []
        started_s = time.monotonic()
        report = run_device(
            bundle,
            DeviceSettings(edge.url, in_flight=1),
            str(photos[0].parent),
            stdin=NO_STDIN,
            on_image=kill_after_two,
        )
    assert [image.status for image in report.images] == ["ok"] * 2 + ["failed"] * 4
    assert {image.failure for image in report.images[3:]} == {"unreachable"}
    assert report.images[2].failure in ("link-lost", "unreachable")  # whether it was sent before the loss was seen
    assert all("cannot reach the edge" in (image.error or "") for image in report.images[2:])
    assert time.monotonic() - started_s < 10


def test_a_run_goes_on_when_the_edge_comes_back(bundle: Bundle, photos: list[Path]) -> None:
    with serving(bundle.path) as first, Device(bundle, DeviceSettings(first.url, timeout_s=5)) as device:
        image = SourceImage("photo", photos[0])
        assert device.run(image).status == "ok"
        assert first.stop()[0] == 0
        assert device.run(image).status == "failed"
        with serving(bundle.path, "--port", str(first.port)):
            end = time.monotonic() + 10
            while device.run(image).status != "ok":
                assert time.monotonic() < end
                time.sleep(0.05)


def test_an_edge_that_says_goodbye_is_left_after_its_answer() -> None:
    connections: list[int] = []

    def leaving(connection: ServerConnection) -> None:
        connections.append(1)
        session = greet(connection)
        request_id = next_request(connection, session)
        connection.send(session.goodbye("shutting down"))
        connection.send(session.result(request_id, RESULT))

    with peer(leaving) as url, link_to(url) as link:
        for _ in range(2):
            link.open()
            assert link.request(0, RAW, deadline_ms=0).result == RESULT
            assert not link.is_open
    assert len(connections) == 2


def test_a_failure_of_one_request_leaves_the_link_open() -> None:
    def picky(connection: ServerConnection) -> None:
        session = greet(connection)
        connection.send(session.fail(next_request(connection, session), Failed("overloaded", "later")))
        connection.send(session.result(next_request(connection, session), RESULT))

    with peer(picky) as url, link_to(url) as link:
        link.open()
        with pytest.raises(RequestFailedError) as caught:
            link.request(0, RAW, deadline_ms=0)
        assert (caught.value.code, caught.value.reason) == ("overloaded", "later")
        assert link.request(0, RAW, deadline_ms=0).result == RESULT


def test_an_edge_that_never_answers_is_given_up_in_time() -> None:
    stop = threading.Event()

    def silent(connection: ServerConnection) -> None:
        next_request(connection, greet(connection))
        stop.wait(20)

    with peer(silent) as url, link_to(url, timeout_s=0.3) as link:
        link.open()
        started_s = time.monotonic()
        with pytest.raises(EdgeUnreachableError, match=r"within 0\.3 s"):
            link.request(0, RAW, deadline_ms=0)
        assert time.monotonic() - started_s < 3
        stop.set()


@contextmanager
def mute_link(timeout_s: float) -> Iterator[EdgeLink]:
    """A link to a port that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        yield EdgeLink(
            f"ws://127.0.0.1:{mute.getsockname()[1]}",
            Hello("b", [1], ["v"], list(coder_names()), "test"),
            timeout_s=timeout_s,
            limits=WireLimits(),
        )


def test_a_port_that_accepts_and_says_nothing_is_given_up_in_time() -> None:
    started_s = time.monotonic()
    with mute_link(timeout_s=0.3) as link, pytest.raises(EdgeUnreachableError):
        link.open()
    assert time.monotonic() - started_s < 3


def test_attempts_at_a_dead_edge_pause_and_images_between_fail_at_once() -> None:
    with mute_link(timeout_s=0.2) as link:
        with pytest.raises(EdgeUnreachableError):
            link.open()
        started_s = time.monotonic()
        with pytest.raises(EdgeUnreachableError, match="tried just now"):
            link.open()
        assert time.monotonic() - started_s < 0.05


BREAKING: dict[str, bytes | str] = {"garbage": b"\0" * 50, "text": "hello", "empty": b"", "half": b"AECN"}


@pytest.mark.parametrize("name", sorted(BREAKING))
@pytest.mark.parametrize("when", ["greeting", "answering"])
def test_an_edge_that_breaks_the_protocol_is_named_and_left(name: str, when: str) -> None:
    def breaking(connection: ServerConnection) -> None:
        if when == "answering":
            next_request(connection, greet(connection))
        connection.send(BREAKING[name])
        connection.recv()

    def use(link: EdgeLink) -> None:
        link.open()
        link.request(0, RAW, deadline_ms=0)

    with peer(breaking) as url, link_to(url) as link:
        with pytest.raises(EdgeUnreachableError) as caught:
            use(link)
        assert "\n" not in str(caught.value)
        assert not link.is_open


def test_an_http_server_that_is_no_edge_is_named() -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            with link_to(url) as link, pytest.raises(EdgeUnreachableError, match="HTTP 404"):
                link.open()
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_speaks_no_http_is_named() -> None:
    def babble() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"220 smtp ready\r\n\r\n")
            connection.recv(1000)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=babble)
        thread.start()
        url = f"ws://127.0.0.1:{server.getsockname()[1]}"
        with link_to(url) as link, pytest.raises(EdgeUnreachableError, match="no WebSocket"):
            link.open()
        thread.join()


def test_a_deadline_that_the_device_alone_uses_up_is_not_sent(bundle: Bundle, photos: list[Path]) -> None:
    with serving(bundle.path) as edge, Device(bundle, DeviceSettings(edge.url, deadline_ms=0.001)) as device:
        report = device.run(SourceImage("photo", photos[0]))
    assert report.status == "failed"
    assert "not sent" in (report.error or "")


def test_an_answer_after_the_deadline_is_a_failure(tmp_path: Path, photos: list[Path]) -> None:
    make_bundle(tmp_path / "slow", variants=SLOW)
    slow = open_bundle(tmp_path / "slow")
    with serving(slow.path) as edge, Device(slow, DeviceSettings(edge.url, deadline_ms=100)) as device:
        report = device.run(SourceImage("photo", photos[0]))
    assert report.status == "failed"
    assert "deadline" in (report.error or "")


def test_a_summary_of_nothing_has_no_numbers() -> None:
    summary = RunReport("b", [], interrupted=True).summary()
    assert {key: value for key, value in summary.items() if value} == {}
    assert [key for key, value in summary.items() if value is None] == [
        "wire_bytes_mean",
        "total_ms_p50",
        "total_ms_p99",
    ]
