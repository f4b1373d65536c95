"""A bundle that is replaced while the edge serves: nothing is lost, and a bad one changes nothing."""

import json
import os
import shutil
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, Queue

import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.wire import GoodbyeReceived, RefusedByEdge, ResultReceived, Welcomed
from tests.bundles import Edge, make_bundle, serving
from tests.edge_client import Client, assert_answers, get, planes_of


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("reload")
    for seed in range(3):
        make_bundle(folder / f"bundle{seed}", seed=seed)
    return [open_bundle(folder / f"bundle{seed}") for seed in range(3)]


class Log:
    """An edge's stderr, line by line as it comes."""

    def __init__(self, edge: Edge) -> None:
        self._lines: Queue[str] = Queue()
        self._edge = edge
        threading.Thread(target=self._read, daemon=True).start()

    def until(self, words: str) -> str:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                line = self._lines.get(timeout=0.2)
            except Empty:
                continue
            if words in line:
                return line
        raise AssertionError(f"the edge did not say {words!r}")

    def _read(self) -> None:
        assert self._edge.process.stderr is not None
        for line in self._edge.process.stderr:
            self._lines.put(line)


def point(link: Path, to: Path) -> None:
    fresh = link.with_name("fresh")
    fresh.symlink_to(to)
    fresh.rename(link)


@pytest.fixture
def link(tmp_path: Path, bundles: list[Bundle]) -> Path:
    link = tmp_path / "current"
    point(link, bundles[0].path)
    return link


def served(edge: Edge) -> str:
    document: dict[str, str] = json.loads(get(edge, "/readyz")[1])
    return document["bundle_id"]


def test_a_reload_loses_no_request_and_serves_old_and_new_devices(link: Path, bundles: list[Bundle]) -> None:
    old, new, newest = bundles
    spec = old.manifest.variants[0]
    with serving(link, "--previous-s", "0.1") as edge, ExitStack() as stack:
        log = Log(edge)
        client = stack.enter_context(Client(edge, old))
        client.event()
        point(link, new.path)
        asked, answered = [], []
        edge.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 20
        while served(edge) != new.id or len(asked) < 50:
            asked.append(client.ask(spec, 0, planes_of(spec)))
            event = client.event()
            assert isinstance(event, ResultReceived)
            answered.append(event.request_id)
            assert time.monotonic() < end
        assert asked == answered
        log.until(f"reloaded: serving bundle {new.id[:12]}")
        assert_answers(edge, new)
        assert_answers(edge, old)  # a device that has not got the new one yet
        point(link, newest.path)
        edge.process.send_signal(signal.SIGHUP)
        log.until(f"bundle {old.id[:12]} is not served any more")
        goodbye = client.event()
        assert isinstance(goodbye, GoodbyeReceived)
        assert newest.id[:12] in goodbye.goodbye.reason
        assert client.close_code()[0] == 1001
        log.until(f"bundle {new.id[:12]} is not served any more")  # nobody has it
        assert_answers(edge, newest)
        with Client(edge, new) as refused:
            event = refused.event()
            assert isinstance(event, RefusedByEdge)
            assert event.refused.code == "bundle-mismatch"


@pytest.mark.parametrize("damage", ["gone", "damaged", "tail"])
def test_a_bad_bundle_leaves_the_old_one_serving_and_says_so(
    tmp_path: Path, link: Path, bundles: list[Bundle], damage: str
) -> None:
    bad = tmp_path / "bad"
    if damage == "damaged":
        shutil.copytree(bundles[1].path, bad)
        with (bad / "full.onnx").open("r+b") as file:
            file.write(b"damage")
    elif damage == "tail":
        wrong = bundles[1].path / "heads" / "tiny-l1-v2-u8.onnx"
        make_bundle(bad, seed=7, tail_of_first=wrong)
    spec = bundles[0].manifest.variants[0]
    with serving(link) as edge, Client(edge, bundles[0]) as client:
        log = Log(edge)
        assert isinstance(client.event(), Welcomed)
        point(link, bad)
        edge.process.send_signal(signal.SIGHUP)
        line = log.until("not reloaded")
        assert bundles[0].id[:12] in line
        assert served(edge) == bundles[0].id
        client.ask(spec, 0, planes_of(spec))
        assert isinstance(client.event(), ResultReceived)
        assert_answers(edge, bundles[0])
        point(link, bundles[0].path)
        edge.process.send_signal(signal.SIGHUP)
        log.until("still bundle")
        os.kill(edge.process.pid, 0)


def test_a_tail_that_was_overwritten_since_the_start_is_not_loaded(tmp_path: Path, bundles: list[Bundle]) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(bundles[0].path, path)
    second = bundles[0].manifest.variants[1]
    with serving(path) as edge, Client(edge, bundles[0]) as client:
        client.event()
        shutil.copy(bundles[1].path / "tails" / f"{second.id}.onnx", path / "tails" / f"{second.id}.onnx")
        client.ask(second, 1, planes_of(second))
        failed = client.event().failed
    assert failed.code == "internal"
    assert "is damaged" in failed.reason
