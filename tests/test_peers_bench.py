"""The comparison with the peers: its load keeps a schedule, its answers are checked, its tables say what it found."""

import http.server
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import SettingsError
from benchmarks.peer_clients import Target, Work, connect, wire_bytes
from benchmarks.peer_load import Generator, Load, Order, verify
from benchmarks.peer_model import PeerModel, PeerSettings, image_body, planes_body, settings_from
from benchmarks.peer_rounds import Figures, Outcome, Plan, Rounds
from benchmarks.peer_servers import PEERS, Peer, PeerFailedError, PeerMissingError, free_port, running
from benchmarks.peer_table import tables, verdict
from benchmarks.peer_work import Works, make_works
from benchmarks.peers import arguments, document, main
from tests.bundles import Edge, make_bundle, serving

pytestmark = pytest.mark.bench

CORES = os.sched_getaffinity(0)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the class that the body's first byte is, as the server's ``answer`` says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    answer: ClassVar[Any]

    def do_POST(self) -> None:
        status, best = self.answer(self.rfile.read(int(self.headers["content-length"])))
        content = json.dumps({"top": [[best, 0.5]]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def http_peer(answer: Any) -> Iterator[Target]:
    """An HTTP server on a thread: ``answer(body)`` gives the status and the class."""
    handler = type("Handler", (_Handler,), {"answer": staticmethod(answer)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Target("http", server.server_port, "/predict")
        finally:
            server.shutdown()
            thread.join()


def echo(body: bytes) -> tuple[int, int]:
    return 200, body[0]


WORK = Work([bytes((number,)) * 50 for number in range(4)], [[number] for number in range(4)])


def load(target: Target, work: Work = WORK, **changes: Any) -> Load:
    order = Order(target, "work", **{"clients": 4, "seconds": 0.5, "warm_up_s": 0.1} | changes)
    return Generator(order, work).run(time.perf_counter())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("peers")
    make_bundle(folder / "bundle")
    return open_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def works(bundle: Bundle) -> Works:
    return make_works(bundle, bundle.manifest.variants[0].id, None, 6, "zstd")


@pytest.fixture(scope="module")
def edge(bundle: Bundle) -> Iterator[Edge]:
    with serving(bundle.path) as running_edge:
        yield running_edge


def test_a_closed_loop_keeps_every_client_busy() -> None:
    with http_peer(echo) as target:
        found = load(target)
    assert found.completed > 0
    assert (found.wrong, dict(found.failures)) == (0, {})
    assert len(found.latency_ms) >= found.completed - 4
    # Little's law: four clients, each always with one request.
    assert np.mean(found.latency_ms) * found.images_per_s / 1e3 == pytest.approx(4, rel=0.5)


def test_an_open_loop_keeps_its_schedule_while_the_peer_stalls() -> None:
    stalled = threading.Event()

    def stall_once(body: bytes) -> tuple[int, int]:
        if not stalled.is_set():
            stalled.set()
            time.sleep(0.4)
        return echo(body)

    with http_peer(stall_once) as target:
        found = load(target, clients=1, rate_hz=100.0, warm_up_s=0.0, seconds=1.0)
    arrivals = len(found.latency_ms)
    assert arrivals == pytest.approx(100, abs=40)  # a closed loop would have lost the 40 of the stall
    # Those that were due in the stall waited for it, from when they were due.
    assert sum(ms > 100 for ms in found.latency_ms) >= 15
    assert max(found.latency_ms) >= 390


def test_the_same_rate_and_seed_mean_the_same_schedule() -> None:
    due = []
    with http_peer(echo) as target:
        for _ in range(2):
            order = Order(target, "work", 2, 0.3, rate_hz=50.0, seed=7)
            generator = Generator(order, WORK)
            due.append([generator._gap_s() for _ in range(50)])
            generator.close()
    assert due[0] == due[1]
    assert np.mean(due[0]) == pytest.approx(1 / 50, rel=0.5)


def test_failures_are_counted_and_are_no_images() -> None:
    with http_peer(lambda body: (503 if body[0] == 1 else 200, body[0])) as target:
        found = load(target)
    assert found.failures["http-503"] > 0
    assert found.completed > 0
    assert found.wrong == 0


def test_a_wrong_class_is_counted_and_is_no_image() -> None:
    with http_peer(lambda body: (200, 99 if body[0] == 1 else body[0])) as target:
        found = load(target)
    assert found.wrong > 0
    assert len(found.latency_ms) - found.wrong <= found.completed + 4


def test_a_peer_that_closes_is_connected_again_and_what_it_dropped_has_failed() -> None:
    turns: list[int] = []

    def drop_some(body: bytes) -> tuple[int, int]:
        turns.append(1)
        if len(turns) % 5 == 0:
            raise ConnectionAbortedError("on purpose")
        return echo(body)

    with http_peer(drop_some) as target:
        target_server_errors = http.server.ThreadingHTTPServer.handle_error
        http.server.ThreadingHTTPServer.handle_error = lambda *_: None  # type: ignore[method-assign]
        try:
            found = load(target)
        finally:
            http.server.ThreadingHTTPServer.handle_error = target_server_errors  # type: ignore[method-assign]
    assert found.failures["connection"] > 1
    assert found.completed > found.failures["connection"]


def test_a_server_that_names_another_class_is_refused() -> None:
    with http_peer(lambda body: (200, 9)) as target, pytest.raises(SystemExit, match="names class 9 for request 0"):
        verify(target, WORK)


def test_a_server_that_fails_a_request_is_refused() -> None:
    with http_peer(lambda body: (500, 0)) as target, pytest.raises(SystemExit, match="http-500"):
        verify(target, WORK)


def test_the_kernel_counts_what_a_connection_carries() -> None:
    with http_peer(echo) as target:
        assert wire_bytes(target.port) == (0, 0)
        client = connect(target, WORK)
        client.ask(1)
        while client.answer() is None:
            pass
        sent, received = wire_bytes(target.port)
        client.close()
    lines = (
        "POST /predict HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/octet-stream",
        "Content-Length: 50",
    )
    head = "\r\n".join((*lines, "", ""))
    assert sent - len(head) - 50 in (0, 1)  # the kernel may count the SYN as a byte
    assert 60 < received < 300


def test_all_peers_run_the_same_function_and_it_agrees_with_the_models(bundle: Bundle, works: Works) -> None:
    settings = PeerSettings(bundle.path, bundle.manifest.variants[0].id, 1, max_batch=4)
    model = PeerModel(settings)
    split, image = works.by_name["split/tagged"], works.by_name["image/tagged"]
    mixed = [split.bodies[0], image.bodies[0], split.bodies[1], image.bodies[1]]
    best = [top[0][0] for top in model.run(mixed)]
    for found, classes in zip(
        best, [split.classes[0], image.classes[0], split.classes[1], image.classes[1]], strict=True
    ):
        assert found in classes
    request = split.traffic.requests[0] if split.traffic else None
    assert request is not None
    assert split.bodies[0] == planes_body(request.coder_id, request.payload)
    assert image.bodies[0] == image_body(works.by_name["image/file"].bodies[0])


def test_a_peers_settings_survive_its_command_line() -> None:
    settings = PeerSettings(Path("/b"), "v", 9000, 2, 16, 2.5)
    assert settings_from(settings.arguments()) == settings
    with pytest.raises(SettingsError, match="max_batch 0"):
        PeerSettings(Path("/b"), "v", 9000, max_batch=0)


def test_servers_and_clients_share_no_core() -> None:
    with pytest.raises(SettingsError, match="give each at least one of its own"):
        Plan(frozenset({0}), frozenset({0}))


@pytest.mark.parametrize(("way", "name"), [("stream", "split/tagged"), ("classify", "image/file")])
def test_our_own_edge_is_asked_its_two_ways(edge: Edge, works: Works, way: str, name: str) -> None:
    target = Target(way, edge.port, "/v1/classify")  # type: ignore[arg-type]
    verify(target, works.by_name[name])
    found = load(target, works.by_name[name], seconds=0.3)
    assert found.completed > 0
    assert (found.wrong, dict(found.failures)) == (0, {})
    assert found.sent_bytes / found.completed > len(works.by_name[name].bodies[0]) / 2


def test_a_peer_that_leaves_daemons_is_measured_and_ended_whole(bundle: Bundle) -> None:
    script = """
import http.server, os, sys, time

if os.fork() == 0:  # a daemon of its own session, whose parent has left it
    os.setsid()
    if os.fork():
        os._exit(0)
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    time.sleep(600)
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""
    peer = Peer("made up", {}, "/", lambda settings, _: [sys.executable, "-c", script, str(settings.port)])
    settings = PeerSettings(bundle.path, "v", free_port())
    core, before = {min(CORES)}, psutil.Process().children(recursive=True)
    with running(peer, settings, core, None) as found:
        end_s = time.monotonic() + 20
        while found.cpu_s() < 0.2 and time.monotonic() < end_s:
            time.sleep(0.02)
        assert found.cpu_s() >= 0.2  # the daemon's are counted
        children = psutil.Process().children(recursive=True)
        living = [each for each in children if each not in before and each.status() != psutil.STATUS_ZOMBIE]
        assert len(living) == 2
        assert all(each.cpu_affinity() == sorted(core) for each in living)
    assert not any(each.is_running() for each in living)


def test_a_peer_that_ends_at_once_says_why(bundle: Bundle) -> None:
    peer = Peer("made up", {}, "/", lambda *_: [sys.executable, "-c", "raise SystemExit('no such luck')"])
    settings = PeerSettings(bundle.path, "v", free_port())
    with pytest.raises(PeerFailedError, match="no such luck"), running(peer, settings, set(CORES), None):
        pass


@pytest.mark.skipif(len(CORES) < 2, reason="servers and clients need a core each")
@pytest.mark.parametrize(
    ("python", "why"), [("/no/such/python", "cannot be started"), ("/bin/false", "cannot run Triton's peer")]
)
def test_a_peer_that_is_not_here_is_a_row_that_says_so(bundle: Bundle, works: Works, python: str, why: str) -> None:
    first, second = sorted(CORES)[:2]
    plan = Plan(frozenset({first}), frozenset({second}), ("triton",), rounds=1)
    outcome = Rounds(plan, works.by_name, bundle.path, bundle.manifest.variants[0].id, Path(python)).run()
    assert why in outcome.missing["triton"]
    assert outcome.rows() == []


def test_triton_without_a_python_is_named() -> None:
    settings = PeerSettings(Path("/b"), "v", 1)
    with pytest.raises(PeerMissingError, match="--triton-python"):
        PEERS["triton"].command(settings, None)


def _figures(server: str, sent: str, phase: str, completed: int, ms: float) -> Figures:
    latency = [ms] * 100
    measured = Load(1.0, completed, latency, client_cpu_s=0.1, sent_bytes=100 * completed, received_bytes=completed)
    return Figures(server, sent, phase, "http", 50.0, measured, 0.5, 0.0)


def _document(**more: float) -> dict[str, Any]:
    """A result in which ours does 100 images a second in 10 ms, and a peer what is said."""
    told = {"split": 90, "split_ms": 12.0, "image": 102, "image_ms": 10.2} | more
    outcome = Outcome(missing={"ray": "no ray here"})
    for sent in ("split", "image"):
        for server, rate, ms in (("ours", 100, 10.0), ("litserve", told[sent], told[f"{sent}_ms"])):
            for phase in ("max-16", "max-8", "own-50%", "own-90%", "common-90%"):
                outcome.figures += [_figures(server, sent, phase, int(rate) + turn, ms) for turn in (-1, 0, 1)]
    made: dict[str, Any] = {
        "payload_bytes": {"split": 1333.0, "image": 15000.0},
        "settings": {"servers": ["ours", "litserve", "ray"], "clients": [16, 8], "shares": [0.5, 0.9]},
        "missing": outcome.missing,
        "rows": outcome.rows(),
    }
    return made | {"verdict": verdict(made)}


def test_the_tables_have_medians_marks_and_who_is_missing() -> None:
    text = tables(_document())
    assert "| aecnn-deploy serve-edge | 100.0 | 100.0 | 5.00 | 1.00 | 100 | 1 |" in text
    assert "| LitServe | 12.0 / 12.0 (50/s) | 12.0 / 12.0 (50/s) | 12.0 / 12.0 (50/s) |" in text
    assert "| Ray Serve | – | – | – | – | – | – |" in text
    assert "Ray Serve was not measured, or not to the end: no ray here." in text
    assert "Split traffic: met; throughput 1.111 of LitServe, p99 at the same rate 0.833 of LitServe." in text


@pytest.mark.parametrize(
    ("more", "split", "image"),
    [
        ({}, True, True),
        ({"split": 101}, False, True),  # split traffic: ahead, not near
        ({"split_ms": 9.0}, False, True),
        ({"image": 104, "image_ms": 9.6}, True, True),  # whole images: within 5 %
        ({"image": 107}, True, False),
        ({"image_ms": 9.0}, True, False),
    ],
)
def test_the_verdict_is_ahead_in_split_traffic_and_near_the_best_in_images(
    more: dict[str, float], split: bool, image: bool
) -> None:
    found = verdict(_document(**more))
    assert (found["split"]["met"], found["image"]["met"]) == (split, image)


def test_a_busy_client_and_a_disturbed_core_are_marked() -> None:
    busy = Load(1.0, 10, [1.0], client_cpu_s=0.95)
    assert Figures("ours", "split", "max-16", "stream", None, busy, 0.5, 0.0).marks == [
        "the clients' core was over 90% busy"
    ]
    idle = Load(1.0, 10, [1.0], client_cpu_s=0.1)
    assert len(Figures("ours", "split", "max-16", "stream", None, idle, 0.5, 0.3).marks) == 1
    assert not Figures("ours", "split", "max-16", "stream", None, idle, 0.5, 0.05).marks


@pytest.mark.skipif(len(CORES) < 2, reason="servers and clients need a core each")
def test_a_whole_run_of_ours_alone(bundle: Bundle, works: Works) -> None:
    first, second = sorted(CORES)[:2]
    plan = Plan(frozenset({first}), frozenset({second}), ("ours",), clients=(4,), rounds=1, closed_s=0.2, open_s=0.2)
    variant = bundle.manifest.variants[0].id
    outcome = Rounds(plan, works.by_name, bundle.path, variant, None).run()
    assert outcome.right
    assert outcome.missing == {}
    found = document(arguments(["--bundle", str(bundle.path)]), plan, bundle.id, variant, works, outcome)
    assert json.loads(json.dumps(found)) == found
    assert {row["phase"] for row in found["rows"]} == {"max-4", "own-50%", "own-90%", "common-90%"}
    assert {row["sent"] for row in found["rows"]} == {"split", "image"}
    assert all(row["wrong"] == 0 and row["failures"] == {} for row in found["rows"])
    assert found["rows"][0]["images_per_s"] > 0
    assert found["rows"][0]["sent_bytes_per_image"] > 0
    assert found["fronts"] == {"ours": {"split": "stream", "image": "classify"}}
    assert "nothing to compare with" in tables(found)


def test_the_tables_come_from_the_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "peers.json"
    out.write_text(json.dumps(_document()))
    assert main(["--table", "--out", str(out)]) == 0
    assert "**Split traffic**" in capsys.readouterr().out
