"""The status page in a real browser, over a real edge."""

import http.server
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.runtimes.edge_page import page_and_policy
from aecnn_deploy.wire import FailureReceived, ResultReceived
from tests.bundles import Edge, make_bundle, serving
from tests.chromium import CHROMIUM, Page, browser
from tests.edge_client import Client, get, planes_of, post, until_closed

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
LONG = "w" * 200
STATE = "document.getElementById('state').textContent"


def text_of(table: str) -> str:
    return f"document.getElementById('{table}').innerText"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("page") / "bundle"
    make_bundle(path)
    return open_bundle(path)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture(scope="module")
def edge(bundle: Bundle) -> Iterator[Edge]:
    """An edge with three devices, one of which has left, and refusals of each kind."""
    spec = bundle.manifest.variants[0]
    with serving(bundle.path) as running:
        with Client(running, bundle, bundle_id="ab" * 32) as refused:
            refused.event()
        with Client(running, bundle) as stranger:
            stranger.event()
            until_closed(stranger.socket, b"garbage" * 10)
        post(running, b"no image")
        with Client(running, bundle, device="trolley") as left:
            left.event()
            left.ask(spec, 0, planes_of(spec))
            left.event()
        with Client(running, bundle, device=HOSTILE) as hostile, Client(running, bundle, device=LONG) as long:
            for client in (hostile, long):
                client.event()
                for _ in range(5):
                    client.ask(spec, 0, planes_of(spec))
                    assert isinstance(client.event(), ResultReceived)
            _, spoilt = hostile.session.infer(0, 0, b"too short", 9)
            hostile.socket.send(spoilt)
            assert isinstance(hostile.event(), FailureReceived)
            yield running


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 375])
def test_it_shows_devices_variants_and_refusals_within_its_width(
    page: Page, edge: Edge, bundle: Bundle, tmp_path: Path, width: int, dark: bool
) -> None:
    page.open(edge.http + "/", width=width, dark=dark)
    page.wait_for(f"{STATE} === 'serving'")
    page.screenshot(tmp_path / "page.png")  # kept where the test fails
    devices = page.value(text_of("devices"))
    for word in ("trolley", HOSTILE, LONG, bundle.manifest.variants[0].id):
        assert word in devices
    for variant in bundle.manifest.variants:
        assert variant.id in page.value(text_of("variants"))
    refusals = page.value(text_of("refusals"))
    for code in ("bundle-mismatch", "protocol", "bad-image", "bad-payload"):
        assert code in refusals
    assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    wide = "[...document.querySelectorAll('main *')].filter(n => n.getBoundingClientRect().right > innerWidth + 1)"
    assert page.value(f"{wide}.map(n => n.outerHTML.slice(0, 80))") == []
    ground = page.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 3 * 128) == dark
    assert page.complaints == []


def test_words_of_a_device_are_text_and_nothing_else(page: Page, edge: Edge) -> None:
    page.open(edge.http + "/")
    page.wait_for(f"{STATE} === 'serving'")
    names = page.value("[...document.querySelectorAll('#devices td.first span')].map(n => n.textContent)")
    assert HOSTILE in names
    assert page.value("document.querySelectorAll('#devices script, #devices img').length") == 0
    assert "owned" not in page.value("document.title")


def test_live_numbers_follow_requests(page: Page, edge: Edge, bundle: Bundle) -> None:
    spec = bundle.manifest.variants[1]
    page.open(edge.http + "/")
    page.wait_for(f"{STATE} === 'serving'")
    with Client(edge, bundle, device="late") as client:
        client.event()
        row = "[...document.querySelectorAll('#devices tbody tr')].find(n => n.innerText.startsWith('late'))"
        cells = f"[...(({row} || {{}}).cells || [])].map(n => n.innerText)"
        end_s = time.monotonic() + 30
        while not (shown := page.value(cells)) or shown[2] == "0":  # images a second: of seconds that are over
            assert time.monotonic() < end_s, shown
            client.ask(spec, 1, planes_of(spec))
            client.event()
        assert shown[1] == spec.id
        assert int(shown[3].replace(",", "")) > 0
    page.wait_for("[...document.querySelectorAll('#path-split svg path')].some(n => n.getAttribute('d'))")
    assert page.value("document.querySelector('#path-split .sum b').textContent").endswith(" ms")


def test_an_edge_that_has_gone_is_told_at_once(page: Page, bundle: Bundle) -> None:
    with serving(bundle.path) as edge:
        page.open(edge.http + "/")
        page.wait_for(f"{STATE} === 'serving'")
        assert page.value("document.getElementById('notice').hidden")
        edge.stop()
    page.wait_for(f"{STATE} === 'not answering'")
    assert "has not answered for " in page.wait_for("document.getElementById('notice').innerText")
    assert page.value("document.body.classList.contains('stale')")
    page.complaints.clear()  # the browser's own: a connection was refused


def test_an_edge_without_devices_says_how_to_start_one(page: Page, bundle: Bundle) -> None:
    with serving(bundle.path) as edge:
        page.open(edge.http + "/", width=375)
        page.wait_for(f"{STATE} === 'serving'")
        hint = page.value("document.getElementById('devices-empty').innerText")
        assert f"aecnn-deploy run-device BUNDLE --edge ws://127.0.0.1:{edge.port} --source photos/" in hint
        assert page.value("document.documentElement.scrollWidth") == 375


def test_a_status_behind_a_token_is_asked_for_and_shown(page: Page, edge: Edge) -> None:
    with behind_a_token(edge, "right") as url:
        page.open(url)
        page.wait_for(f"{STATE} === 'no access'")
        assert "those with a token only" in page.value("document.getElementById('notice').innerText")
        give = "document.getElementById('token').value = '{}'; document.querySelector('#ask button').click()"
        page.value(give.format("wrong"))
        page.wait_for("document.getElementById('notice-text').textContent.includes('does not take this token')")
        page.value(give.format("right"))
        page.wait_for(f"{STATE} === 'serving'")
        assert page.value("document.getElementById('notice').hidden")
    page.complaints.clear()  # the browser's own: answers of 401


@contextmanager
def behind_a_token(edge: Edge, token: str) -> Iterator[str]:
    """A server that shows the page to everybody, and the edge's status to who has ``token``."""
    text, policy = page_and_policy()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, kind = 200, text.encode(), "text/html"
            if self.path == "/v1/status":
                kind = "application/json"
                if self.headers.get("authorization") == f"Bearer {token}":
                    body = get(edge, "/v1/status")[1]
                else:
                    status, body = 401, b"{}"
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-security-policy", policy)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def test_the_page_lets_in_no_script_but_its_own(page: Page) -> None:
    text, policy = page_and_policy()
    spoilt = text.replace("poll();\n</script>", "poll();\n</script><script>document.title='owned'</script>")
    assert spoilt != text
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_answer_once, args=(listener, spoilt.encode(), policy))
        thread.start()
        page.open(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        thread.join(30)
    assert page.value("document.title") != "owned"
    assert any("Content Security Policy" in complaint for complaint in page.complaints)
    page.complaints.clear()


def _answer_once(listener: socket.socket, body: bytes, policy: str) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        lines = ["HTTP/1.1 200 OK", "content-type: text/html", "connection: close", f"content-length: {len(body)}"]
        head = "\r\n".join([*lines, f"content-security-policy: {policy}", "", ""])
        connection.sendall(head.encode() + body)
