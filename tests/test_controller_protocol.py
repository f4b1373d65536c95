"""A controller's messages and names, and edges and controllers as processes that speak its protocol."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import SettingsError, WireError
from aecnn_deploy.runtimes.controller_advice import AdviceBox
from aecnn_deploy.runtimes.controller_link import ControllerLink
from aecnn_deploy.runtimes.controller_messages import (
    MAX_STATE_BYTES,
    Advice,
    Welcome,
    encoded,
    from_controller,
    from_device,
)
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.edge_names import named_edge, named_edges
from tests.bundles import Edge, command, make_photos, one_line, serving
from tests.certificates import Authority
from tests.controllers import VARIANTS, hello, state, two_variants
from tests.device_runs import wait_for
from tests.in_process import command_here


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return two_variants(tmp_path_factory.mktemp("controller") / "bundle")


class TestMessages:
    def test_what_is_said_is_what_is_heard(self, bundle: Bundle) -> None:
        for message in (hello(bundle), state()):
            assert from_device(encoded(message)) == message
        for answer in (
            Welcome(protocol=1, software="s", policy="p", slot_ms=100),
            Advice(slot=3, edge=1, variant="good", valid_for_ms=200),
            Advice(slot=3, edge=None, variant=None, valid_for_ms=200, idle=True),
        ):
            assert from_controller(encoded(answer)) == answer

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[" * 20_000,
            "null",
            '{"kind": "advice"}',
            '{"kind": "state", "slot": 1e400}',
            '{"kind": "hello", "protocol": 1, "device": "", "software": "", "bundle_id": "b", "edges": []}',
            b"\xff\xfe",
        ],
        ids=["nothing", "cut off", "deep", "null", "of the other side", "infinite", "empty", "no text"],
    )
    def test_garbage_is_refused_in_one_printable_line(self, text: str | bytes) -> None:
        with pytest.raises(WireError) as caught:
            from_device(text)
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize(
        ("name", "value"),
        [("deadline_ms", -1), ("backlog_ms", 1e10), ("slot", -1), ("device_ms", [1.0] * 257), ("frame_in_ms", "now")],
    )
    def test_numbers_out_of_their_range_are_refused(self, name: str, value: object) -> None:
        document = json.loads(encoded(state()))
        document[name] = value
        with pytest.raises(WireError, match=r"not as docs/controller\.md"):
            from_device(json.dumps(document))

    def test_too_large_is_refused_before_it_is_read(self) -> None:
        with pytest.raises(WireError, match="over the limit of 65536"):
            from_device(" " * (MAX_STATE_BYTES + 1))

    def test_keys_of_a_later_version_are_passed_over(self) -> None:
        document = json.loads(encoded(state())) | {"battery": 0.5}
        assert from_device(json.dumps(document)) == state()


class TestNames:
    def test_an_edge_is_called_by_its_name_or_by_host_and_port(self) -> None:
        assert named_edge("ws://Edge:8765") == ("edge:8765", "ws://Edge:8765")
        assert named_edge("wss://edge/under") == ("edge:443", "wss://edge/under")
        assert named_edge("near=ws://[::1]:9") == ("near", "ws://[::1]:9")

    def test_what_is_no_address_and_what_is_named_twice_is_refused(self) -> None:
        for text in ("edge:8765", "near=", "ftp://edge", "ws://edge:99999"):
            with pytest.raises(SettingsError, match="no address"):
                named_edge(text)
        with pytest.raises(SettingsError, match="two edges have one name"):
            named_edges(["a=ws://b:1", "a=ws://c:1"])
        with pytest.raises(SettingsError, match="at most 16"):
            named_edges([f"ws://edge:{port}" for port in range(1, 18)])


# The processes


TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "tokens").write_text(f"camera {TOKEN}\n")
    (folder / "tokens").chmod(0o600)
    make_photos(folder / "photos", 4)
    return folder


@pytest.fixture(scope="module")
def edge(bundle: Bundle, place: Path) -> Iterator[Edge]:
    """An edge that is a controller, too."""
    options = ("--controller", "greedy", "--slot-ms", "50", "--token-file", str(place / "tokens"), "--open-status")
    with serving(bundle.path, "--preload", "all", *options) as running:
        yield running


def dial(edge: Edge, token: str | None = TOKEN) -> ClientConnection:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return connect(f"{edge.url}/v1/advice", additional_headers=headers, compression=None)


def until_closed(connection: ClientConnection) -> int | None:
    """The close code, of whatever came before."""
    try:
        while True:
            connection.recv(timeout=10)
    except ConnectionClosed as exc:
        return exc.rcvd.code if exc.rcvd is not None else None


def asked(edge: Edge) -> dict[str, Any]:
    request = urllib.request.Request(f"{edge.http}/v1/controller", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        told: dict[str, Any] = json.loads(answer.read())
    return told


class TestProcess:
    def test_an_edge_advises_its_own_devices_whatever_they_call_it(self, edge: Edge, bundle: Bundle) -> None:
        with dial(edge) as connection:
            connection.send(encoded(hello(bundle, edges=["anything"])))
            welcome = from_controller(connection.recv(timeout=10))
            assert isinstance(welcome, Welcome)
            assert (welcome.policy, welcome.slot_ms) == ("greedy", 50)
            connection.send(encoded(state(edges=state().edges[:1], local_ms=None)))
            advice = from_controller(connection.recv(timeout=10))
            assert isinstance(advice, Advice)
            assert (advice.edge, advice.variant, advice.valid_for_ms) == (0, "good", 100)
            told = asked(edge)
            assert told["policy"] == "greedy"
            assert [row["name"] for row in told["devices"]] == ["camera"]
            assert told["edges"][0]["reachable"] is True

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"bundle_id": "another"}, "bundle-mismatch"),
            ({"protocol": 2}, "protocol-version"),
            ({"edges": ["a", "b"]}, "unknown-edge"),
        ],
    )
    def test_a_device_that_does_not_belong_here_is_refused_by_name(
        self, edge: Edge, bundle: Bundle, changes: dict[str, Any], code: str
    ) -> None:
        with dial(edge) as connection:
            connection.send(encoded(hello(bundle, **({"edges": ["a"]} | changes))))
            refused = json.loads(connection.recv(timeout=10))
            assert (refused["kind"], refused["code"]) == ("refused", code)
            with pytest.raises(ConnectionClosed):
                connection.recv(timeout=10)
        wait_for(lambda: asked(edge)["refused"].get(code, 0) >= 1)

    @pytest.mark.parametrize(
        "said",
        ["", "{", b"\x00\xff", '{"kind": "state"}', "x" * (MAX_STATE_BYTES + 1)],
        ids=["nothing", "cut off", "bytes", "no hello", "too large"],
    )
    def test_a_hostile_device_ends_its_own_connection_only(self, edge: Edge, bundle: Bundle, said: str | bytes) -> None:
        with dial(edge) as well:
            well.send(encoded(hello(bundle, edges=["a"])))
            well.recv(timeout=10)
            for greeted in (False, True):
                with dial(edge) as connection:
                    if greeted:
                        connection.send(encoded(hello(bundle, edges=["a"])))
                        connection.recv(timeout=10)
                    connection.send(said)
                    until_closed(connection)
            well.send(encoded(state(edges=state().edges[:1])))
            assert isinstance(from_controller(well.recv(timeout=10)), Advice)

    def test_indexes_beyond_the_hello_s_lists_are_a_breach(self, edge: Edge, bundle: Bundle) -> None:
        with dial(edge) as connection:
            connection.send(encoded(hello(bundle, edges=["a"])))
            connection.recv(timeout=10)
            connection.send(encoded(state()))  # of two edges
            assert until_closed(connection) == 1002

    def test_without_a_token_nobody_is_advised(self, edge: Edge) -> None:
        with pytest.raises(InvalidStatus) as caught, dial(edge, None):
            pass
        assert caught.value.response.status_code == 401

    def test_a_device_follows_by_the_command_line(self, edge: Edge, bundle: Bundle, place: Path) -> None:
        done = command(
            *("run-device", str(bundle.path), "--edge", edge.url, "--controller", edge.http, "--source", "-"),
            *("--deadline-ms", "2000", "--json", "--token-file", str(place / "tokens"), "--in-flight", "1"),
            stdin="".join(f"{place}/photos/photo{number % 4}.jpg\n" for number in range(200)).encode(),
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["summary"]["ok"] == 200
        assert told["summary"]["advised"] > 0
        assert {image["advised"] for image in told["images"]} <= {True, False}

    def test_a_controller_alone_says_that_it_is_ready_and_is_measured(self, bundle: Bundle, edge: Edge) -> None:
        from tests.test_controller_live import controlling  # which needs torch

        with controlling("static", [edge.url], bundle=str(bundle.path)) as ready:
            assert ready["bundle_id"] == bundle.id
            for path in ("/healthz", "/readyz", "/v1/controller"):
                with urllib.request.urlopen(ready["url"] + path, timeout=10) as answer:
                    assert json.loads(answer.read())
            with urllib.request.urlopen(ready["url"] + "/metrics", timeout=10) as answer:
                page = answer.read().decode()
            assert "aecnn_controller_slots_total" in page
            assert "aecnn_controller_devices 0.0" in page

    def test_with_tls_a_device_that_trusts_its_ca_is_advised(
        self, bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        from tests.test_controller_live import controlling  # which needs torch

        authority = Authority(tmp_path)
        pair = authority.issue("controller")
        more = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key))
        box, lock = AdviceBox(VARIANTS, 1), threading.Lock()
        with controlling("greedy", ["a=ws://127.0.0.1:9"], bundle=str(bundle.path), more=more) as ready:
            assert ready["url"].startswith("https://")
            for ca, works in ((None, False), (authority.ca, True)):
                link = ControllerLink(
                    ready["url"],
                    hello(bundle, edges=["a"]),
                    credentials=Credentials(ca=ca),
                    timeout_s=5.0,
                    lock=lock,
                    box=box,
                    tell=lambda slot, _: state(slot=slot, edges=state().edges[:1], local_ms=None),
                )
                link.start()
                wait_for(lambda works=works: box.heard > 0 if works else "signed by no CA" in caplog.text)
                link.close()
                assert (box.heard > 0) == works

    def test_wrong_use_is_refused_in_one_line(self, bundle: Bundle, place: Path) -> None:
        words = ("serve-controller", "greedy", "--bundle", str(bundle.path), "--edge", "ws://127.0.0.1:9")
        for arguments, status, why in (
            (("serve-controller", "gredy", *words[2:]), 1, "one of grl, greedy, static"),
            ((*words, "--slot-ms", "1"), 2, "expected 10 to 60000"),
            ((*words, "--edge", "ws://127.0.0.1:9"), 2, "two edges have one name"),
            ((*words[:-1], "nowhere"), 2, "no address of an edge"),
            (("serve-edge", str(bundle.path), "--controller", str(place / "tokens")), 1, "no ONNX file"),
        ):
            done = command_here(*arguments)
            assert done.returncode == status, (arguments, done.stderr)
            assert why in one_line(done.stderr)
