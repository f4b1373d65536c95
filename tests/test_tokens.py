"""Bearer tokens: the file, the comparison, and what an edge answers to whom."""

import base64
import hashlib
import http.client
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.errors import CredentialsError, EdgeUnreachableError, SessionRefusedError
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.runtimes.edge_gate import Gate, GuardSettings
from aecnn_deploy.runtimes.tokens import TokenFile, find_token, read_own_token, read_tokens
from aecnn_deploy.wire import DeviceSession, Hello, Welcomed, WireLimits
from tests.bundles import Edge, command, make_bundle, make_photos, one_line, serving
from tests.edge_client import until_closed

SECRET, OTHER = "correct-horse-battery", "a-token-of-another-one="
HASHED = "known-by-its-hash-only"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    make_bundle(folder / "bundle")
    make_photos(folder / "photos", 1)
    write(
        folder / "tokens", f"# cameras\ncamera-1 {SECRET}\ncamera-2   {OTHER}\n\ndoor sha256:{digest(HASHED).upper()}\n"
    )
    return folder


@pytest.fixture(scope="module")
def edge(place: Path) -> Iterator[Edge]:
    with serving(place / "bundle", "--token-file", str(place / "tokens")) as running:
        yield running


def status(edge: Edge, path: str, authorization: str | None = None, method: str = "GET") -> tuple[int, dict[str, str]]:
    """The status and the headers, in small letters, of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=10)
    connection.request(method, path, headers={"Authorization": authorization} if authorization else {})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}


def bearer(token: str) -> str:
    return f"Bearer {token}"


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


def open_stream(edge: Edge, token: str | None) -> ClientConnection:
    headers = {"Authorization": bearer(token)} if token else {}
    return connect(edge.url + "/v1/stream", additional_headers=headers, compression=None, proxy=None)


def link(url: str, token_file: Path | None = None) -> EdgeLink:
    hello = Hello("b", [1], ["v"], ["raw"], "test")
    return EdgeLink(url, hello, timeout_s=10, limits=WireLimits(), credentials=Credentials(token_file=token_file))


class TestFile:
    def test_names_tokens_and_hashes_are_read(self, place: Path) -> None:
        tokens = read_tokens(place / "tokens")
        assert [token.name for token in tokens] == ["camera-1", "camera-2", "door"]
        for name, secret in (("camera-1", SECRET), ("camera-2", OTHER), ("door", HASHED)):
            found = find_token(tokens, secret)
            assert found is not None
            assert found.name == name
        assert find_token(tokens, SECRET[:-1]) is None
        assert find_token(tokens, "") is None
        assert find_token(tokens, digest(HASHED)) is None  # the hash is not the secret

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("a 0123456789abcde", r"line 1: the token has 15 characters, expected 16 to 512; make one with: openssl"),
            ("# only words\n\n", r"holds no token; add a line 'name token'"),
            ("just-a-token-of-22-chars", r"line 1: expected 'name token'"),
            ("ok 0123456789abcdef\nb\x7fd 0123456789abcdeg", r"line 2: expected 'name token', a name of letters"),
            ("a 0123456789abcdef extra", r"line 1: the token has other characters than letters"),
            ("a sha256:1234567890abcdef", r"line 1: the token has other characters than letters"),
            ("a 0123456789abcdef\n\na 0123456789abcdeg", r"line 3: the name a stands in an earlier line"),
            ("a 0123456789abcdef\nb 0123456789abcdef", r"line 2: b has the token of a; give each peer its own"),
            (f"a {SECRET}\nb sha256:{digest(SECRET)}", r"line 2: b has the token of a; give each peer its own"),
        ],
    )
    def test_a_bad_line_is_told_with_file_and_number(self, tmp_path: Path, text: str, told: str) -> None:
        path = write(tmp_path / "tokens", text)
        with pytest.raises(CredentialsError, match=told) as caught:
            read_tokens(path)
        assert str(path) in str(caught.value)
        assert "0123456789" not in str(caught.value)  # no secret gets into a log

    def test_what_is_no_text_is_told_with_its_line(self, tmp_path: Path) -> None:
        path = tmp_path / "tokens"
        path.write_bytes(b"a 0123456789abcdef\n\xff\xfe\n")
        with pytest.raises(CredentialsError, match="line 2: not text"):
            read_tokens(path)

    @pytest.mark.parametrize("text", [f"# mine\n{SECRET}\n", f"camera-1 {SECRET}\ncamera-2 {OTHER}\n"])
    def test_a_device_takes_the_first_token_of_its_file(self, tmp_path: Path, text: str) -> None:
        assert read_own_token(write(tmp_path / "token", text)) == SECRET

    def test_a_device_cannot_use_a_hash(self, tmp_path: Path) -> None:
        path = write(tmp_path / "token", f"door sha256:{digest(HASHED)}")
        with pytest.raises(CredentialsError, match="needs the token itself"):
            read_own_token(path)

    def test_a_change_is_taken_up_and_a_bad_one_keeps_the_old_tokens(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "aecnn_deploy.edge")
        now_s = [0.0]
        path = write(tmp_path / "tokens", f"a {SECRET}")
        tokens = TokenFile(path, clock=lambda: now_s[0])
        write(path, f"a {SECRET}\nb {OTHER}")
        now_s[0] = 0.5
        assert tokens.find(OTHER) is None  # it looks once a second
        now_s[0] = 1.5
        assert tokens.find(OTHER) is not None
        write(path, "b short")
        for now_s[0] in (3.0, 4.5, 6.0):
            assert tokens.find(OTHER) is not None
        assert [record.levelname for record in caplog.records] == ["INFO", "ERROR"]
        path.unlink()
        now_s[0] = 7.5
        assert tokens.find(OTHER) is not None
        write(path, f"a {SECRET}")
        now_s[0] = 9.0
        assert tokens.find(OTHER) is None

    def test_a_file_that_every_user_can_read_is_warned_of(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write(tmp_path / "tokens", f"a {SECRET}")
        TokenFile(path)
        assert caplog.messages == []
        path.chmod(0o644)
        TokenFile(path)
        assert "chmod 600" in caplog.messages[0]

    @pytest.mark.parametrize(("host", "warnings"), [("127.0.0.1", 0), ("0.0.0.0", 1)])
    def test_tokens_without_tls_on_a_network_are_warned_of(
        self, place: Path, caplog: pytest.LogCaptureFixture, host: str, warnings: int
    ) -> None:
        Gate(GuardSettings(token_file=place / "tokens")).warn_of_open_tokens(host)
        assert sum("unencrypted" in message for message in caplog.messages) == warnings


class TestEdge:
    @pytest.mark.parametrize("path", ["/healthz", "/readyz"])
    def test_health_needs_no_token(self, edge: Edge, path: str) -> None:
        assert status(edge, path)[0] == 200

    @pytest.mark.parametrize("path", ["/", "/metrics", "/nothing", "//healthz", "/healthz/", "/v1/../healthz"])
    def test_every_other_page_asks_a_browser_for_a_password(self, edge: Edge, path: str) -> None:
        code, headers = status(edge, path)
        assert code == 401
        assert headers["www-authenticate"].startswith("Basic realm=") == (not path.startswith("/v1/"))

    @pytest.mark.parametrize("authorization", [bearer(SECRET), basic(SECRET), bearer(HASHED), f"bearer  {OTHER}"])
    def test_a_token_opens_the_metrics_as_bearer_and_as_password(self, edge: Edge, authorization: str) -> None:
        assert status(edge, "/metrics", authorization)[0] == 200

    @pytest.mark.parametrize(
        "authorization",
        [bearer("not-the-right-token"), basic("not-the-right-token"), "Basic ***", "Basic", "Bearer", SECRET,
         f"Digest {SECRET}", bearer(digest(HASHED)), bearer("sha256:" + digest(HASHED)), bearer("x" * 10_000),
         bearer("\xe9" * 20)],
    )  # fmt: skip
    def test_whatever_is_no_token_opens_nothing(self, edge: Edge, authorization: str) -> None:
        assert status(edge, "/metrics", authorization)[0] == 401
        code, headers = status(edge, "/v1/classify", authorization, "POST")
        assert code == 401
        assert headers["www-authenticate"].startswith("Bearer ")

    def test_an_image_is_classified_with_a_token(self, place: Path, edge: Edge) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=20)
        photo = (place / "photos" / "photo0.jpg").read_bytes()
        connection.request("POST", "/v1/classify", body=photo, headers={"Authorization": bearer(SECRET)})
        assert json.loads(connection.getresponse().read())["path"] == "full"
        connection.close()

    @pytest.mark.parametrize("token", [None, "not-the-right-token"])
    def test_a_stream_without_a_token_is_refused_at_the_handshake(self, edge: Edge, token: str | None) -> None:
        with pytest.raises(InvalidStatus) as caught, open_stream(edge, token):
            pass
        response = caught.value.response
        assert response.status_code == 401
        assert json.loads(response.body or b"")["error"]["code"] == "unauthorized"
        assert response.headers["WWW-Authenticate"].startswith("Bearer ")

    @pytest.mark.parametrize("origin", ["https://elsewhere.example", "null", "http://[", "http://127.0.0.1:1"])
    def test_a_page_of_another_site_cannot_use_a_browser_s_password(self, edge: Edge, origin: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=10)
        headers = {"Authorization": basic(SECRET), "Origin": origin}
        connection.request("POST", "/v1/classify", body=b"x", headers=headers)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (403, "cross-site")
        connection.close()
        with (
            pytest.raises(InvalidStatus) as caught,
            connect(edge.url + "/v1/stream", additional_headers=headers, proxy=None),
        ):
            pass
        assert caught.value.response.status_code == 403

    def test_a_page_of_the_edge_itself_may_ask(self, edge: Edge) -> None:
        headers = {"Authorization": basic(SECRET), "Origin": edge.http}
        with connect(edge.url + "/v1/stream", additional_headers=headers, proxy=None) as stream:
            assert stream.ping().wait(10)

    def test_refusals_are_counted_by_reason_and_logged_without_the_token(self, place: Path) -> None:
        with serving(place / "bundle", "--token-file", str(place / "tokens"), "--open-status") as edge:
            for _ in range(12):
                assert status(edge, "/v1/classify", bearer("a-wrong-secret-token"), "POST")[0] == 401
            connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=10)
            connection.request("GET", "/metrics")  # open by --open-status
            page = connection.getresponse().read().decode()
            connection.close()
            _, errors = edge.stop()
        assert 'aecnn_refused_connections_total{reason="unauthorized"} 12.0' in page
        assert errors.count("refused 127.0.0.1 (unauthorized)") == 5  # of twelve: a log cannot be filled
        assert "secret" not in errors

    def test_a_token_that_is_taken_out_ends_its_streams_and_no_others(self, place: Path, tmp_path: Path) -> None:
        path = write(tmp_path / "tokens", f"a {SECRET}\nb {OTHER}")
        bundle = open_bundle(place / "bundle")
        with serving(place / "bundle", "--token-file", str(path)) as edge:
            with open_stream(edge, SECRET) as leaving, open_stream(edge, OTHER) as staying:
                write(path, f"b {OTHER}")
                began_s = time.monotonic()
                code, reason = until_closed(leaving)
                assert (code, reason.partition(":")[0]) == (1008, "unauthorized")
                assert time.monotonic() - began_s < 8
                variants = [spec.id for spec in bundle.manifest.variants]
                session = DeviceSession(Hello(bundle.id, [1], variants, ["raw"], "test"), WireLimits())
                staying.send(session.start())
                (event,) = session.receive(staying.recv(timeout=10))  # type: ignore[arg-type]
                assert isinstance(event, Welcomed)
            with pytest.raises(InvalidStatus), open_stream(edge, SECRET):
                pass
            write(path, f"a {SECRET}\nb {OTHER}")
            end_s = time.monotonic() + 10
            while True:
                try:
                    with open_stream(edge, SECRET):
                        break
                except InvalidStatus:
                    assert time.monotonic() < end_s
                    time.sleep(0.1)

    @pytest.mark.parametrize("kind", ["missing", "folder", "bad line"])
    def test_a_token_file_that_cannot_be_used_ends_the_start(self, place: Path, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "tokens"
        if kind == "folder":
            path.mkdir()
        elif kind == "bad line":
            write(path, "camera\n")
        done = command("serve-edge", str(place / "bundle"), "--port", "0", "--token-file", str(path))
        assert done.returncode == 1
        assert str(path) in one_line(done.stderr)


class TestDevice:
    def run(self, place: Path, edge: Edge, *options: str) -> tuple[int, str]:
        photos = str(place / "photos")
        done = command("run-device", str(place / "bundle"), "--edge", edge.url, "--source", photos, *options)
        return done.returncode, one_line(done.stderr) if done.stderr else ""

    def test_it_shows_the_token_of_its_file(self, place: Path, edge: Edge, tmp_path: Path) -> None:
        own = write(tmp_path / "token", SECRET)
        assert self.run(place, edge, "--token-file", str(own)) == (0, "")

    def test_it_shows_the_token_of_its_environment(
        self, place: Path, edge: Edge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AECNN_TOKEN", HASHED)
        assert self.run(place, edge) == (0, "")

    def test_without_one_it_ends_with_one_line_and_status_1(self, place: Path, edge: Edge) -> None:
        code, told = self.run(place, edge)
        assert code == 1
        assert re.match(r"error: the edge refused this device \(unauthorized\): no token came", told)
        assert told.endswith("--token-file")

    def test_an_unreadable_file_is_one_line_and_status_1(self, place: Path, edge: Edge, tmp_path: Path) -> None:
        code, told = self.run(place, edge, "--token-file", str(tmp_path))
        assert (code, told) == (1, f"error: cannot read the token file {tmp_path}: Is a directory")

    def test_a_wrong_token_is_not_tried_again_in_a_hurry(self, edge: Edge, tmp_path: Path) -> None:
        refused = link(edge.url, write(tmp_path / "token", "not-the-right-token"))
        with pytest.raises(SessionRefusedError) as caught:
            refused.open()
        assert caught.value.code == "unauthorized"
        assert refused._not_before_s - time.monotonic() > 10
        with pytest.raises(EdgeUnreachableError, match="tried just now"):
            refused.open()

    def test_a_short_token_in_the_environment_is_named_but_not_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AECNN_TOKEN", "tooshort")
        with pytest.raises(CredentialsError, match="AECNN_TOKEN: the token has 8 characters") as caught:
            link("ws://127.0.0.1:9")
        assert "tooshort" not in str(caught.value)

    def test_a_token_file_that_vanishes_later_is_a_lost_edge_and_not_the_end(self, edge: Edge, tmp_path: Path) -> None:
        own = write(tmp_path / "token", SECRET)
        running = link(edge.url, own)
        own.unlink()
        with pytest.raises(EdgeUnreachableError, match="cannot read the token file"):
            running.open()
