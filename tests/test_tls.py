"""TLS between real processes: what is encrypted works, and what is wrong with a certificate is said in one line."""

import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from websockets.exceptions import InvalidMessage, InvalidStatus
from websockets.sync.client import connect

from aecnn_deploy.errors import CredentialsError, EdgeUnreachableError, SettingsError
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.runtimes.edge_gate import GuardSettings
from aecnn_deploy.runtimes.tls import EdgeTls, common_name, device_context, edge_context
from aecnn_deploy.wire import Hello, WireLimits
from tests.bundles import Edge, command, make_bundle, make_photos, one_line, serving
from tests.certificates import DAY, Authority, Pair
from tests.peers import peer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and two photographs."""
    folder = tmp_path_factory.mktemp("tls")
    make_bundle(folder / "bundle")
    make_photos(folder / "photos", 2)
    return folder


@pytest.fixture(scope="module")
def site(place: Path) -> Authority:
    return Authority(place / "site")


@pytest.fixture(scope="module")
def stranger(place: Path) -> Authority:
    return Authority(place / "stranger", "stranger")


@pytest.fixture(scope="module")
def edge(place: Path, site: Authority) -> Iterator[Edge]:
    with serving(place / "bundle", *tls(site.issue("edge", hosts=("127.0.0.1",)))) as running:
        yield running


@pytest.fixture(scope="module")
def mutual(place: Path, site: Authority) -> Iterator[Edge]:
    limit = ("--peer-connections", "3")
    with serving(place / "bundle", *tls(site.issue("mutual")), "--client-ca", str(site.ca), *limit) as running:
        yield running


def tls(pair: Pair) -> tuple[str, ...]:
    return "--tls-cert", str(pair.cert), "--tls-key", str(pair.key)


def device(place: Path, url: str, *options: object) -> tuple[int, str, str]:
    """Run ``run-device`` on the photographs: its exit status, the last line of stdout, and stderr."""
    words = ("run-device", place / "bundle", "--edge", url, "--source", place / "photos", "--threads", "1", *options)
    done = command(*map(str, words))
    lines = done.stdout.decode().splitlines()
    return done.returncode, lines[-1] if lines else "", one_line(done.stderr) if done.stderr else ""


def served(place: Path, url: str, *options: object) -> None:
    status, output, errors = device(place, url, *options)
    assert (status, errors) == (0, "")
    assert output.startswith("2 ok, 0 failed")


def refused(url: str, **files: Path) -> str:
    """Why a device's link to the edge does not open."""
    hello = Hello("b", [1], ["v"], ["raw"], "test")
    link = EdgeLink(url, hello, timeout_s=10, limits=WireLimits(), credentials=Credentials(**files))
    with pytest.raises(EdgeUnreachableError) as caught:
        link.open()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refuses_to_start(place: Path, *options: object) -> str:
    done = command("serve-edge", str(place / "bundle"), "--port", "0", *map(str, options))
    assert done.returncode == 1
    return one_line(done.stderr)


class TestChain:
    def test_a_device_that_knows_the_ca_is_served_by_wss_and_https(
        self, place: Path, site: Authority, edge: Edge
    ) -> None:
        assert edge.url.startswith("wss://")
        served(place, edge.url, "--ca", site.ca)
        context = ssl.create_default_context(cafile=str(site.ca))
        connection = http.client.HTTPSConnection("127.0.0.1", edge.port, timeout=10, context=context)
        connection.request("POST", "/v1/classify", body=(place / "photos" / "photo0.jpg").read_bytes())
        answer = json.loads(connection.getresponse().read())
        connection.close()
        assert answer["path"] == "full"

    def test_an_unknown_ca_is_named_with_the_option_that_gives_it(
        self, place: Path, stranger: Authority, edge: Edge
    ) -> None:
        status, output, errors = device(place, edge.url)
        assert (status, output) == (1, "")
        assert re.search(r"signed by no CA that this device trusts; give .* --ca FILE$", errors)
        assert "signed by no CA" in refused(edge.url, ca=stranger.ca)

    def test_a_certificate_for_another_host_is_named(self, site: Authority, edge: Edge) -> None:
        told = refused(edge.url.replace("127.0.0.1", "localhost"), ca=site.ca)
        assert "its certificate is not for localhost" in told

    def test_an_expired_certificate_is_named(self, site: Authority) -> None:
        """No edge starts with one; one that has run for long may have one."""
        pair = site.issue("past", ends=-DAY / 2)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
        with listening(context) as port:
            told = refused(f"wss://127.0.0.1:{port}", ca=site.ca)
        assert "its certificate has expired; renew it on the edge" in told

    def test_plain_ws_to_a_tls_port_is_named(self, place: Path, edge: Edge) -> None:
        assert "give --edge wss://" in refused(edge.url.replace("wss:", "ws:"))

    def test_wss_to_a_plain_port_is_named(self, site: Authority) -> None:
        with peer(lambda _: None) as url:
            told = refused(url.replace("ws:", "wss:"), ca=site.ca)
        assert "give --edge ws://" in told

    def test_tls_older_than_1_2_is_refused(self, edge: Edge) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with socket.create_connection(("127.0.0.1", edge.port), timeout=10) as plain, pytest.raises(ssl.SSLError):
            context.wrap_socket(plain)

    def test_it_works_on_asyncio_s_own_loop_too(self, place: Path, site: Authority) -> None:
        """uvloop comes with other packages only; what is beneath TLS differs between the two."""
        words = ["x", "serve-edge", "{}", "--port", "0", "--json", "--no-build", *tls(site.issue("asyncio"))]
        script = (
            "import sys\nsys.modules['uvloop'] = None\n"
            f"sys.argv = [word.format(sys.argv[1]) for word in {words!r}]\n"
            "from aecnn_deploy.cli.main import main\nmain()"
        )
        with serving(place / "bundle", script=script) as edge:
            connection = http.client.HTTPSConnection(
                "127.0.0.1", edge.port, timeout=10, context=ssl.create_default_context(cafile=str(site.ca))
            )
            connection.request("GET", "/readyz")
            assert connection.getresponse().status == 200
            connection.close()
            assert "signed by no CA" in refused(edge.url)
            assert edge.stop()[0] == 0


class TestMutual:
    def test_a_device_with_a_certificate_is_served(self, place: Path, site: Authority, mutual: Edge) -> None:
        own = site.issue("camera-7")
        served(place, mutual.url, "--ca", site.ca, "--cert", own.cert, "--key", own.key)

    def test_a_peer_has_the_name_of_its_certificate(self, site: Authority, mutual: Edge) -> None:
        own = site.issue("camera-6")
        context = device_context(site.ca, own.cert, own.key)
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(connect(mutual.url + "/v1/stream", ssl=context, proxy=None))
            fourth = partial(connect, mutual.url + "/v1/stream", ssl=context, proxy=None)
            for _ in range(5):
                # The edge closes at once: on a busy machine the connection may be gone before its answer was read.
                with pytest.raises((InvalidStatus, InvalidMessage)) as caught, fourth():
                    pass
                if isinstance(caught.value, InvalidStatus):
                    break
        assert isinstance(caught.value, InvalidStatus)
        reason = json.loads(caught.value.response.body or b"")["error"]["reason"]
        assert reason == "the certificate camera-6 has 3 connections, the limit; close some"

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_a_device_without_one_hears_that_it_needs_one(
        self, place: Path, site: Authority, mutual: Edge, version: ssl.TLSVersion
    ) -> None:
        if version is ssl.TLSVersion.TLSv1_3:
            told = refused(mutual.url, ca=site.ca)
            assert "it wants a certificate of this device; give --cert and --key" in told
            return
        context = device_context(site.ca, None, None)
        context.maximum_version = version
        address = ("127.0.0.1", mutual.port)
        with (
            socket.create_connection(address, timeout=10) as plain,
            pytest.raises(ssl.SSLError, match="ALERT_HANDSHAKE_FAILURE"),
        ):
            context.wrap_socket(plain, server_hostname="127.0.0.1")

    def test_a_device_of_another_ca_hears_that(
        self, place: Path, site: Authority, stranger: Authority, mutual: Edge
    ) -> None:
        own = stranger.issue("camera-8")
        told = refused(mutual.url, ca=site.ca, cert=own.cert, key=own.key)
        assert "it does not know the CA of this device's --cert" in told

    def test_a_device_whose_certificate_expired_hears_that(self, place: Path, site: Authority, mutual: Edge) -> None:
        own = site.issue("camera-9", ends=-DAY / 2)
        told = refused(mutual.url, ca=site.ca, cert=own.cert, key=own.key)
        assert "this device's --cert has expired; renew it" in told


class TestFilesOfTheEdge:
    def test_an_expired_certificate_ends_the_start_and_says_when_it_ended(self, place: Path, site: Authority) -> None:
        pair = site.issue("old", begins=-3 * DAY, ends=-DAY)
        told = refuses_to_start(place, *tls(pair))
        day = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%d")
        assert re.fullmatch(rf"error: the certificate \S+old\.pem ended on {day} \d\d:\d\d UTC; renew it", told)

    def test_a_certificate_that_begins_tomorrow_is_refused(self, site: Authority) -> None:
        pair = site.issue("early", begins=DAY)
        with pytest.raises(CredentialsError, match=r"begins on .* set this machine's clock"):
            edge_context(pair.cert, pair.key, None)

    def test_less_than_14_days_are_warned_of(
        self, site: Authority, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        long, short = site.issue("long", ends=15 * DAY), site.issue("short", ends=13 * DAY)
        EdgeTls(long.cert, long.key, None)
        assert caplog.messages == []
        EdgeTls(short.cert, short.key, None)
        assert re.fullmatch(r"the certificate \S+ ends on .* UTC, in 12 days; renew it", caplog.messages[0])

    def test_a_missing_file_is_named(self, place: Path, site: Authority) -> None:
        pair = site.issue("whole")
        told = refuses_to_start(place, "--tls-cert", pair.cert, "--tls-key", place / "none.key")
        assert told == f"error: cannot read the key {place / 'none.key'}: No such file or directory"

    @pytest.mark.parametrize(
        ("spoil", "told"),
        [
            (lambda pair, other: Pair(pair.key, pair.key), "holds no certificate in PEM form"),
            (lambda pair, other: Pair(pair.cert, pair.cert), "holds no key in PEM form"),
            (lambda pair, other: Pair(pair.cert, other.key), r"key \S+ is not that of the certificate"),
            (lambda pair, other: Pair(pair.cert.parent, pair.key), "cannot read the certificate .*: Is a directory"),
            (lambda pair, other: cut_short(pair), "holds a damaged certificate"),
        ],
    )
    def test_what_is_no_pair_is_named(self, site: Authority, spoil: Callable[[Pair, Pair], Pair], told: str) -> None:
        pair = spoil(site.issue("one"), site.issue("two"))
        with pytest.raises(CredentialsError, match=told):
            edge_context(pair.cert, pair.key, None)

    def test_an_encrypted_key_is_named_and_nobody_is_asked_for_a_passphrase(self, site: Authority) -> None:
        from cryptography.hazmat.primitives import serialization as forms

        pair = site.issue("locked")
        key = forms.load_pem_private_key(pair.key.read_bytes(), None)
        lock = forms.BestAvailableEncryption(b"passphrase")
        pair.key.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, lock))
        for make in (
            lambda: edge_context(pair.cert, pair.key, None),
            lambda: device_context(None, pair.cert, pair.key),
        ):
            with pytest.raises(CredentialsError, match="is encrypted; write it out without a passphrase"):
                make()

    def test_a_client_ca_that_holds_no_certificate_is_named(self, site: Authority) -> None:
        pair = site.issue("third")
        with pytest.raises(CredentialsError, match=r"holds no CA's certificate \(--client-ca\) in PEM form"):
            edge_context(pair.cert, pair.key, pair.key)

    @pytest.mark.parametrize(
        "options", [{"tls_cert": Path("c")}, {"tls_key": Path("k")}, {"client_ca": Path("a")}, {"open_status": True}]
    )
    def test_options_that_lack_their_other_half_are_refused(self, options: dict[str, object]) -> None:
        with pytest.raises(SettingsError, match="goes with"):
            GuardSettings(**options)  # type: ignore[arg-type]

    def test_a_renewed_certificate_is_taken_up_without_a_restart(self, place: Path, site: Authority) -> None:
        pair, renewed = site.issue("first", stem="renewed"), site.issue("second")
        with serving(place / "bundle", *tls(pair)) as edge:
            assert subject(edge) == "first"
            shutil.copy(renewed.key, pair.key)
            shutil.copy(renewed.cert, pair.cert)
            end_s = time.monotonic() + 20
            while subject(edge) != "second":
                assert time.monotonic() < end_s
                time.sleep(0.1)

    def test_half_a_renewal_keeps_the_old_pair_and_is_logged_once(
        self, site: Authority, caplog: pytest.LogCaptureFixture
    ) -> None:
        now_s = [0.0]
        pair, renewed = site.issue("half"), site.issue("other-half")
        running = EdgeTls(pair.cert, pair.key, None, clock=lambda: now_s[0])
        before = running.context()
        shutil.copy(renewed.cert, pair.cert)
        for now_s[0] in (0.5, 1.5, 3.0, 4.5):
            assert running.context() is before
        (told,) = caplog.messages
        assert re.fullmatch(r"the key \S+ is not that of the certificate .* loaded before stays in use", told)
        caplog.set_level("INFO")
        shutil.copy(renewed.key, pair.key)
        now_s[0] = 6.0
        assert running.context() is not before
        assert "again: it holds until" in caplog.messages[-1]


class TestDocumentation:
    @pytest.mark.skipif(shutil.which("openssl") is None or shutil.which("bash") is None, reason="needs openssl")
    def test_its_commands_make_a_site_that_works(self, tmp_path: Path) -> None:
        text = (Path(__file__).resolve().parents[1] / "docs" / "security.md").read_text()
        commands = [block for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) if block.startswith("openssl req")]
        assert len(commands) == 3
        subprocess.run(["bash", "-ec", "\n".join(commands)], cwd=tmp_path, check=True, capture_output=True, timeout=60)
        ca = tmp_path / "site-ca.pem"
        server, validity = edge_context(tmp_path / "edge.pem", tmp_path / "edge.key", ca)
        assert validity.ends > datetime.now(UTC) + timedelta(days=360)
        client = device_context(ca, tmp_path / "camera-1.pem", tmp_path / "camera-1.key")
        client.verify_flags |= ssl.VERIFY_X509_STRICT  # newer Pythons' default
        to_edge, to_device = ssl.MemoryBIO(), ssl.MemoryBIO()
        device_end = client.wrap_bio(to_device, to_edge, server_hostname="edge.site")
        edge_end = server.wrap_bio(to_edge, to_device, server_side=True)
        for end in (device_end, edge_end, device_end, edge_end):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
        assert common_name(edge_end.getpeercert()) == "camera-1"


class TestFilesOfADevice:
    def test_a_missing_file_is_one_line_and_exit_status_1(self, place: Path, edge: Edge) -> None:
        status, _, told = device(place, edge.url, "--ca", place / "none.pem")
        assert status == 1
        assert told == f"error: cannot read the CA's certificate (--ca) {place / 'none.pem'}: No such file or directory"

    def test_a_key_of_another_certificate_is_named(self, site: Authority) -> None:
        one, two = site.issue("five"), site.issue("six")
        with pytest.raises(CredentialsError, match="is not that of the certificate"):
            Credentials(site.ca, one.cert, two.key).check("wss://edge")

    def test_a_certificate_without_its_key_is_wrong_use(self, place: Path, edge: Edge, site: Authority) -> None:
        status, _, errors = device(place, edge.url, "--ca", site.ca, "--cert", site.ca)
        assert (status, errors) == (
            2,
            "error: --cert goes with --key, which is not given; a certificate needs its private key",
        )

    def test_a_ca_for_an_address_without_tls_is_wrong_use(self, site: Authority) -> None:
        with pytest.raises(SettingsError, match="give --edge wss://"):
            Credentials(ca=site.ca).check("ws://edge:8765/v1/stream")


@contextmanager
def listening(context: ssl.SSLContext) -> Iterator[int]:
    """A port that takes one TLS connection; its number."""

    def take() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection, context.wrap_socket(connection, server_side=True):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=take)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def cut_short(pair: Pair) -> Pair:
    pair.cert.write_bytes(pair.cert.read_bytes()[:200])
    return pair


def subject(edge: Edge) -> str:
    """Common name of the certificate that the edge shows."""
    from cryptography import x509

    text = ssl.get_server_certificate(("127.0.0.1", edge.port), timeout=10)
    (name,) = x509.load_pem_x509_certificate(text.encode()).subject
    return str(name.value)
