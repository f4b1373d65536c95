"""What one peer of an edge may take, and what becomes of those that are too many, too fast or too slow."""

import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.codec import EncodedPlanes
from aecnn_deploy.errors import SessionRefusedError, SettingsError
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.runtimes.edge_gate import CONNECTION, Gate, GuardSettings
from aecnn_deploy.runtimes.edge_guard import PEER, Guard
from aecnn_deploy.runtimes.peer_limits import Accounts, ByteBucket, Peer, PeerLimits, QuietLog
from aecnn_deploy.wire import Hello, ResultReceived, WireLimits
from tests.bundles import Edge, make_bundle, serving
from tests.edge_client import Client, assert_answers, metric, planes_of, until_closed

UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("guard") / "bundle"
    make_bundle(path)
    return open_bundle(path)


@pytest.fixture(scope="module")
def hasty(bundle: Bundle) -> Iterator[Edge]:
    """An edge that waits for nobody, and takes five connections of a peer."""
    limits = {"handshake": 1.0, "message": 1.0, "idle": 2.5, "unread": 1.0}
    options = [word for name, seconds in limits.items() for word in (f"--{name}-s", str(seconds))]
    with serving(bundle.path, *options, "--peer-connections", "5") as edge:
        yield edge


@pytest.fixture
def now_s() -> list[float]:
    return [0.0]


@contextmanager
def raw(edge: Edge, first: bytes = b"", source: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A TCP connection that has said ``first``, from the loopback address ``source``."""
    with socket.create_connection(("127.0.0.1", edge.port), timeout=20, source_address=(source, 0)) as connection:
        connection.sendall(first)
        yield connection


def seconds_until_cut(connection: socket.socket, dribble: bytes = b"", each_s: float = 0.1) -> float:
    """Send ``dribble`` byte by byte until the edge ends the connection."""
    began_s = time.monotonic()
    connection.settimeout(each_s)
    rest = iter(dribble)
    while time.monotonic() - began_s < 20:
        try:
            if not connection.recv(4096):
                return time.monotonic() - began_s
        except TimeoutError:
            pass
        except OSError:
            return time.monotonic() - began_s
        try:
            connection.sendall(bytes([byte]) if (byte := next(rest, None)) is not None else b"")
        except OSError:
            return time.monotonic() - began_s
    raise AssertionError("the edge did not cut it off within 20 s")


def frame(payload: bytes, opcode: int = 2) -> bytes:
    """A client's WebSocket frame, masked with zeros."""
    head = struct.pack(">BBQ", 0x80 | opcode, 0xFF, len(payload)) if len(payload) > 125 else struct.pack(
        ">BB", 0x80 | opcode, 0x80 | len(payload)
    )  # fmt: skip
    return head + b"\0\0\0\0" + payload


def refusals(edge: Edge, reason: str) -> float:
    return metric(edge, f'aecnn_refused_connections_total{{reason="{reason}"}}')


class TestSlowWriters:
    def test_a_connection_that_says_nothing_is_cut(self, hasty: Edge) -> None:
        before = refusals(hasty, "slow-handshake")
        with raw(hasty) as silent:
            assert 0.9 < seconds_until_cut(silent) < 10
        assert refusals(hasty, "slow-handshake") == before + 1

    def test_a_request_that_comes_byte_by_byte_is_cut(self, hasty: Edge) -> None:
        with raw(hasty, b"GET /healthz HTTP/1.1\r\n") as slow:
            assert 0.9 < seconds_until_cut(slow, b"X-Header: " + b"x" * 1000) < 10

    def test_a_second_request_that_comes_byte_by_byte_is_cut_too(self, hasty: Edge) -> None:
        with raw(hasty, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") as slow:
            assert slow.recv(4096).startswith(b"HTTP/1.1 200")
            assert 0.9 < seconds_until_cut(slow, b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 1000) < 10

    def test_a_tls_handshake_that_does_not_come_is_cut(self, bundle: Bundle, tmp_path: Path) -> None:
        from tests.certificates import Authority

        pair = Authority(tmp_path).issue("edge")
        options = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--handshake-s", "1")
        with serving(bundle.path, *options) as edge, raw(edge) as silent, raw(edge, b"\x16\x03\x01") as slow:
            assert 0.5 < seconds_until_cut(silent) < 10
            assert seconds_until_cut(slow) < 10
            _, errors = edge.stop()
        assert errors.count("no whole request within 1 s") == 2

    def test_a_message_that_comes_byte_by_byte_is_cut_and_an_honest_device_is_not(
        self, bundle: Bundle, hasty: Edge
    ) -> None:
        before = refusals(hasty, "slow-message")
        with raw(hasty, UPGRADE) as slow:
            assert slow.recv(4096).startswith(b"HTTP/1.1 101")
            slow.sendall(frame(b"x" * 4000)[:-2000])
            assert 0.5 < seconds_until_cut(slow, b"x" * 1999) < 10
            assert_answers(hasty, bundle)
        assert refusals(hasty, "slow-message") == before + 1

    def test_fragments_with_pings_between_them_are_one_message(self, hasty: Edge) -> None:
        before = refusals(hasty, "slow-message")
        with raw(hasty, UPGRADE) as slow:
            assert slow.recv(4096).startswith(b"HTTP/1.1 101")
            slow.sendall(b"\x02\x84\0\0\0\0abcd")  # a first fragment of four bytes
            began_s = time.monotonic()
            slow.settimeout(0.1)
            while refusals(hasty, "slow-message") == before:
                assert time.monotonic() - began_s < 10
                try:
                    slow.sendall(frame(b"ping", opcode=9))
                except OSError:
                    break
                time.sleep(0.1)
            assert time.monotonic() - began_s > 0.5

    def test_a_stream_without_messages_is_closed_with_the_reason(self, hasty: Edge, bundle: Bundle) -> None:
        with Client(hasty, bundle) as idle:
            idle.event()
            began_s = time.monotonic()
            while time.monotonic() - began_s < 1.5:  # pings keep TCP alive, and are no messages
                assert idle.socket.ping().wait(10)
                time.sleep(0.1)
            spec = bundle.manifest.variants[0]
            idle.ask(spec, 0, planes_of(spec))
            idle.event()
            asked_s = time.monotonic()
            code, reason = until_closed(idle.socket)
            assert (code, reason) == (1008, "idle: no message for 2.5 s")
            assert time.monotonic() - asked_s > 2


class TestSlowReaders:
    def test_a_device_that_reads_no_answers_is_cut_and_others_are_served(self, hasty: Edge, bundle: Bundle) -> None:
        before = refusals(hasty, "slow-reader")
        spec = bundle.manifest.variants[0]
        with Client(hasty, bundle) as honest:
            honest.event()
            with raw(hasty) as deaf:
                deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                deaf.sendall(UPGRADE)
                assert deaf.recv(4096).startswith(b"HTTP/1.1 101")
                deaf.settimeout(0.05)
                pings = frame(b"x" * 125, opcode=9) * 500  # each is answered by as many bytes, which nobody reads
                end_s = time.monotonic() + 25
                while refusals(hasty, "slow-reader") == before:
                    assert time.monotonic() < end_s
                    try:
                        for _ in range(20):
                            deaf.sendall(pings)
                    except TimeoutError:  # it is not read any more either
                        pass
                    except OSError:
                        break
                    honest.ask(spec, 0, planes_of(spec))
                    assert isinstance(honest.event(), ResultReceived)
        end_s = time.monotonic() + 10
        while refusals(hasty, "slow-reader") == before:
            assert time.monotonic() < end_s
            time.sleep(0.05)

    def test_the_edge_does_not_grow_while_nobody_reads(self, bundle: Bundle) -> None:
        with serving(bundle.path, "--unread-s", "60", "--peer-bytes-per-s", "0") as edge, raw(edge) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(UPGRADE)
            assert deaf.recv(4096).startswith(b"HTTP/1.1 101")
            deaf.settimeout(0.5)
            pings = frame(b"x" * 125, opcode=9) * 1000
            before = resident_bytes(edge)
            with pytest.raises(TimeoutError):
                send_all(deaf, pings, 200 << 20)
            assert resident_bytes(edge) - before < 24 << 20


class TestRate:
    def test_a_fast_peer_is_slowed_to_its_rate_and_answered(self, bundle: Bundle) -> None:
        spec = bundle.manifest.variants[0]
        planes = EncodedPlanes("raw", 0, planes_of(spec).tobytes(), spec.plane_bytes)
        count, rate, burst = 500, 250_000, 50_000
        options = ("--peer-bytes-per-s", str(rate), "--peer-burst-bytes", str(burst))
        with serving(bundle.path, *options) as edge, Client(edge, bundle) as fast, Client(edge, bundle) as other:
            fast.event()
            other.event()
            began_s = time.monotonic()
            # Two connections of one peer share its rate.
            threads = [threading.Thread(target=ask_all, args=(each, planes, count // 2)) for each in (fast, other)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took_s = time.monotonic() - began_s
            _, errors = edge.stop()
        least_s = (count * (len(planes.payload) + 36) - burst) / rate
        assert 0.9 * least_s < took_s < 3 * least_s
        assert "sends over 250000 bytes/s: slowed" in errors

    def test_a_bucket_goes_into_debt_and_pays_it(self, now_s: list[float]) -> None:
        bucket = ByteBucket(1000, 500, lambda: now_s[0])
        assert bucket.take(500) == 0
        assert bucket.take(2000) == pytest.approx(2.0)
        now_s[0] = 1.0
        assert bucket.take(0) == pytest.approx(1.0)
        now_s[0] = 2.4
        assert bucket.take(400) == 0
        assert ByteBucket(0, 1).take(1 << 40) == 0


class TestConnections:
    def test_too_many_are_refused_by_name_and_another_peer_is_served(self, bundle: Bundle, tmp_path: Path) -> None:
        tokens = tmp_path / "tokens"
        tokens.write_text("many 0123456789abcdef\none 0123456789abcdeg\n")
        tokens.chmod(0o600)
        with (
            serving(bundle.path, "--token-file", str(tokens), "--peer-connections", "3") as edge,
            ExitStack() as stack,
        ):
            headers = {"Authorization": "Bearer 0123456789abcdef"}
            streams = [
                stack.enter_context(connect(edge.url + "/v1/stream", additional_headers=headers, proxy=None))
                for _ in range(3)
            ]
            with (
                pytest.raises(InvalidStatus) as caught,
                connect(edge.url + "/v1/stream", additional_headers=headers, proxy=None),
            ):
                pass
            response = caught.value.response
            assert (response.status_code, response.headers["Retry-After"]) == (429, "5")
            assert json.loads(response.body or b"")["error"] == {
                "code": "overloaded",
                "reason": "the token many has 3 connections, the limit; close some",
            }
            other = {"Authorization": "Bearer 0123456789abcdeg"}
            stack.enter_context(connect(edge.url + "/v1/stream", additional_headers=other, proxy=None))
            streams[0].close()
            wait_until_taken(edge, headers)

    def test_a_device_hears_overloaded_when_its_peer_has_too_many(self, hasty: Edge) -> None:
        with ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(raw(hasty, UPGRADE)).recv(4096)
            hello = Hello("b", [1], ["v"], ["raw"], "test")
            link = EdgeLink(hasty.url, hello, timeout_s=5, limits=WireLimits())
            with pytest.raises(SessionRefusedError) as caught:
                link.open()
            assert caught.value.code == "overloaded"

    def test_silent_connections_are_few_for_each_address(self, hasty: Edge, bundle: Bundle) -> None:
        with ExitStack() as stack:
            silent = [stack.enter_context(raw(hasty, source="127.0.0.9")) for _ in range(5)]
            with raw(hasty, source="127.0.0.9") as sixth:
                assert seconds_until_cut(sixth) < 0.9
            assert_answers(hasty, bundle)
            assert len(silent) == 5

    def test_connections_that_ended_count_no_more(self, now_s: list[float]) -> None:
        accounts = Accounts(PeerLimits(connections=2, bytes_per_s=1024, burst_bytes=10), lambda: now_s[0])
        peer = Peer("a", "address")
        one, two = accounts.enter(peer), accounts.enter(peer)
        assert one is two is not None
        assert accounts.enter(peer) is None
        one.bucket.take(1034)
        accounts.leave(one)
        accounts.leave(one)
        assert len(accounts) == 1  # in debt: who comes back at once pays it
        assert accounts.enter(peer) is one
        now_s[0] = 2.0
        accounts.leave(one)
        assert len(accounts) == 0

    def test_a_flood_of_addresses_takes_bounded_memory(self, now_s: list[float]) -> None:
        accounts = Accounts(PeerLimits(bytes_per_s=1024, burst_bytes=10), lambda: now_s[0])
        for number in range(20_000):
            account = accounts.enter(Peer(str(number), "address"))
            assert account is not None
            account.bucket.take(1 << 30)
            accounts.leave(account)
        assert len(accounts) <= 4096


class TestPeers:
    @pytest.mark.parametrize(
        ("token", "certificate", "peer"),
        [
            ("0123456789abcdef", "camera-7", Peer("site", "token")),
            (None, "camera-7", Peer("camera-7", "certificate")),
            (None, None, Peer("192.0.2.7", "address")),
        ],
    )
    def test_the_application_hears_who_asks(
        self, tmp_path: Path, token: str | None, certificate: str | None, peer: Peer
    ) -> None:
        path = tmp_path / "tokens"
        path.write_text("site 0123456789abcdef")
        gate = Gate(GuardSettings(token_file=path if token else None))
        connection = gate.connect("192.0.2.7")
        assert connection is not None
        connection.certificate_name = certificate
        seen = []

        async def app(scope: object, receive: object, send: object) -> None:
            seen.append(scope)

        headers = [(b"Authorization", f"Bearer {token}".encode())] if token else []
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/metrics",
            "headers": headers,
            "state": {CONNECTION: connection},
        }
        with pytest.raises(StopIteration):
            Guard(app, gate)(scope, unused, unused).send(None)
        assert seen[0]["state"][PEER] == connection.peer == peer

    def test_a_log_is_not_filled(self, caplog: pytest.LogCaptureFixture, now_s: list[float]) -> None:
        log = QuietLog(logging.getLogger("test"), lambda: now_s[0])
        for _ in range(1000):
            log.warning("idle", "one idles")
        log.warning("tls", "another")
        now_s[0] = 11.0
        log.warning("idle", "one idles")
        assert caplog.messages == ["one idles"] * 5 + ["another", "one idles (and 995 more like it, not logged)"]

    @pytest.mark.parametrize(
        "setting",
        [{"connections": 0}, {"bytes_per_s": 10}, {"burst_bytes": 0}, {"in_flight": 0}, {"idle_s": 0},
         {"handshake_s": float("nan")}, {"message_s": -1}, {"unread_s": 1e9}],
    )  # fmt: skip
    def test_a_limit_out_of_range_is_refused(self, setting: dict[str, float]) -> None:
        with pytest.raises(SettingsError, match=next(iter(setting))):
            PeerLimits(**setting)  # type: ignore[arg-type]


def send_all(connection: socket.socket, piece: bytes, total_bytes: int) -> None:
    for _ in range(total_bytes // len(piece)):
        connection.sendall(piece)


def ask_all(client: Client, planes: EncodedPlanes, count: int) -> None:
    """Ask ``count`` times, eight requests in flight; each must be answered by a RESULT."""
    for asked in range(count + 8):
        if asked >= 8:
            assert isinstance(client.event(30), ResultReceived)
        if asked < count:
            client.send(planes)


def wait_until_taken(edge: Edge, headers: dict[str, str]) -> None:
    """Connect until the edge has noticed that another connection ended."""
    end_s = time.monotonic() + 10
    while True:
        try:
            with connect(edge.url + "/v1/stream", additional_headers=headers, proxy=None):
                return
        except InvalidStatus:
            assert time.monotonic() < end_s
            time.sleep(0.05)


def resident_bytes(edge: Edge) -> int:
    pages = int(Path(f"/proc/{edge.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def unused(*_: object) -> None:
    raise AssertionError("nothing is received or sent")
