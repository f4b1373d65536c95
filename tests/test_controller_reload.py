"""A controller that is told to read its bundle and its policy again: nobody's advice stops who has either bundle."""

import asyncio
import json
import signal
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import BundleError, PolicyError
from aecnn_deploy.offloading.live.advising import Adviser, ControllerSettings
from aecnn_deploy.offloading.live.generations import UNUSED_S, Advisers
from aecnn_deploy.runtimes.controller_messages import Advice, Refused, Welcome, encoded, from_controller
from tests.bundles import Edge, TinyVariant, make_bundle, serving
from tests.controllers import hello, state
from tests.device_runs import wait_for
from tests.test_controller_slots import Clock, Fixed, joined
from tests.test_edge_reload import Log, point

ACCURACIES = ((0.9, 0.5), (0.5, 0.9), (0.9, 0.4))  # of good and small, bundle by bundle
BEST = ("good", "small", "good")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("controller-reload")
    for seed, (good, small) in enumerate(ACCURACIES):
        variants = (TinyVariant("good", 4, 4, 8, accuracy=good), TinyVariant("small", 2, 8, 8, accuracy=small))
        make_bundle(folder / f"bundle{seed}", variants=variants, seed=seed)
    make_bundle(folder / "bundle3", agreement=None, seed=3)  # states no accuracy: for an edge, for no controller
    return [open_bundle(folder / f"bundle{seed}") for seed in range(4)]


@pytest.fixture
def link(tmp_path: Path, bundles: list[Bundle]) -> Path:
    link = tmp_path / "current"
    point(link, bundles[0].path)
    return link


def greet(connection: ClientConnection, bundle: Bundle) -> Welcome | Refused:
    connection.send(encoded(hello(bundle, edges=["a"])))
    said = from_controller(connection.recv(timeout=10))
    assert isinstance(said, Welcome | Refused)
    return said


def advised(connection: ClientConnection) -> str | None:
    """The variant of fresh advice; what was said before, for three slots after a state at most, is passed over."""
    with suppress(TimeoutError):
        while True:
            assert isinstance(from_controller(connection.recv(timeout=0.5)), Advice)
    connection.send(encoded(state(edges=state().edges[:1], local_ms=None, deadline_ms=1000)))
    said = from_controller(connection.recv(timeout=10))
    assert isinstance(said, Advice), said
    return said.variant


def told(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/v1/controller", timeout=10) as answer:
        document: dict[str, Any] = json.loads(answer.read())
    return document


def dial(url: str) -> ClientConnection:
    return connect(f"{url.replace('http', 'ws')}/v1/advice", compression=None)


def controlling_edge(link: Path) -> Any:
    return serving(link, "--preload", "all", "--controller", "greedy", "--slot-ms", "50")


def test_devices_of_both_bundles_are_advised_each_by_its_own_accuracies(link: Path, bundles: list[Bundle]) -> None:
    with controlling_edge(link) as edge:
        log = Log(edge)
        with dial(edge.http) as old, dial(edge.http) as new, dial(edge.http) as newest:
            assert isinstance(greet(old, bundles[0]), Welcome)
            assert advised(old) == BEST[0]
            reload_to(edge, link, bundles[1], log)
            assert isinstance(greet(new, bundles[1]), Welcome)
            assert (advised(new), advised(old)) == (BEST[1], BEST[0])
            status = told(edge.http)
            assert status["bundle_id"] == bundles[1].id
            assert status["previous"] == {"bundle_id": bundles[0].id, "devices": 1}
            reload_to(edge, link, bundles[2], log)
            assert isinstance(greet(newest, bundles[2]), Welcome)
            assert (advised(newest), advised(new)) == (BEST[2], BEST[1])
            assert closed(old) == ("bundle-mismatch", 1001)
            with dial(edge.http) as late:
                refused = greet(late, bundles[0])
                assert isinstance(refused, Refused)
                assert refused.code == "bundle-mismatch"


def reload_to(edge: Edge, link: Path, bundle: Bundle, log: Log) -> None:
    point(link, bundle.path)
    edge.process.send_signal(signal.SIGHUP)
    log.until(f"the controller advises by bundle {bundle.id[:12]}")


def closed(connection: ClientConnection) -> tuple[str | None, int | None]:
    """Why the controller ended it: the code of its refusal, and that of the WebSocket."""
    code = None
    try:
        while True:
            said = from_controller(connection.recv(timeout=10))
            code = said.code if isinstance(said, Refused) else code
    except ConnectionClosed as exc:
        return code, exc.rcvd.code if exc.rcvd is not None else None


def test_a_bundle_that_no_policy_can_weigh_is_served_and_its_devices_decide_themselves(
    link: Path, bundles: list[Bundle]
) -> None:
    with controlling_edge(link) as edge:
        log = Log(edge)
        with dial(edge.http) as old:
            greet(old, bundles[0])
            point(link, bundles[3].path)
            edge.process.send_signal(signal.SIGHUP)
            said = log.until("the controller still advises by bundle")
            assert "neither accuracy nor agreement" in said
            assert advised(old) == BEST[0]
        with urllib.request.urlopen(f"{edge.http}/readyz", timeout=10) as answer:
            assert json.loads(answer.read())["bundle_id"] == bundles[3].id
        assert told(edge.http)["bundle_id"] == bundles[0].id


def test_a_controller_alone_advises_by_the_bundle_that_it_is_given(link: Path, bundles: list[Bundle]) -> None:
    from tests.test_controller_live import controlling  # which needs torch

    with serving(bundles[0].path) as edge, controlling("greedy", [f"a={edge.url}"], bundle=str(link)) as ready:
        url = ready["url"]
        with dial(url) as old, dial(url) as new:
            greet(old, bundles[0])
            wait_for(lambda: told(url)["edges"][0]["reachable"])
            point(link, bundles[1].path)
            ready["process"].send_signal(signal.SIGHUP)
            wait_for(lambda: told(url)["bundle_id"] == bundles[1].id)
            assert told(url)["edges"][0]["reachable"] is True  # what was known of it still is
            assert isinstance(greet(new, bundles[1]), Welcome)
            assert (advised(new), advised(old)) == (BEST[1], BEST[0])
            with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
                assert "aecnn_controller_devices 2.0" in answer.read().decode()


class Source:
    """Policies as they are read one after the other, and advisers of them on one clock."""

    def __init__(self, *policies: Fixed | Exception) -> None:
        self.policies, self.clock = list(policies), Clock()

    def __call__(self, bundle: Bundle) -> Adviser:
        policy = self.policies.pop(0)
        if isinstance(policy, Exception):
            raise policy
        return Adviser(policy, bundle, ("a", "b"), ControllerSettings(), self.clock)


@pytest.mark.parametrize("broken", ["policy", "bundle"])
def test_what_cannot_be_read_changes_nothing(
    bundles: list[Bundle], broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    def open_broken() -> Bundle:
        raise BundleError("the bundle is damaged")

    advisers = Advisers(Source(Fixed(0), PolicyError("the policy is damaged")), bundles[0])
    present = advisers.present
    opened = open_broken if broken == "bundle" else lambda: bundles[1]
    assert asyncio.run(advisers.renew(opened)) is False
    assert f"the {broken} is damaged" in caplog.text
    assert advisers.all == [present]


def test_another_policy_for_the_same_bundle_is_told_that_it_begins(bundles: list[Bundle]) -> None:
    first, second = Fixed(0), Fixed(1)
    advisers = Advisers(Source(first, second), bundles[0])
    device = joined(advisers.present, bundles[0])
    asyncio.run(advisers.present.advise())
    assert device.mailbox[0].edge is None
    assert asyncio.run(advisers.renew(lambda: bundles[0]))
    asyncio.run(advisers.present.advise())
    assert device.mailbox[0].edge == 0
    assert (first.resets, second.resets) == (1, 1)
    assert len(advisers.all) == 1


def test_each_adviser_begins_one_slot_after_the_other(bundles: list[Bundle]) -> None:
    async def live() -> tuple[int, int]:
        def make(bundle: Bundle) -> Adviser:
            return Adviser(Fixed(0), bundle, ("a", "b"), ControllerSettings(slot_ms=50))

        advisers = Advisers(make, bundles[0])
        running = asyncio.create_task(advisers.run())
        await asyncio.sleep(1.0)
        alone = advisers.present.counts.slots
        assert await advisers.renew(lambda: bundles[1])
        await asyncio.sleep(1.0)
        both = advisers.present.counts.slots - alone
        running.cancel()
        return alone, both

    alone, both = asyncio.run(live())
    assert 5 <= alone <= 23
    assert 10 <= both <= 48


def test_devices_stay_where_the_bundle_before_comes_back(bundles: list[Bundle]) -> None:
    advisers = Advisers(Source(Fixed(0), Fixed(0), Fixed(1)), bundles[0])
    first, device = advisers.present, joined(advisers.present, bundles[0])
    for bundle in (bundles[1], bundles[0]):
        assert asyncio.run(advisers.renew(lambda bundle=bundle: bundle))
    assert advisers.present is first
    assert not first.closed
    assert advisers.before is not None
    assert advisers.before.bundle_id == bundles[1].id
    asyncio.run(first.advise())
    assert device.mailbox[0].edge == 0


def test_the_bundle_before_is_advised_as_long_as_a_device_has_it_and_a_minute_more(bundles: list[Bundle]) -> None:
    async def live() -> None:
        source = Source(Fixed(0), Fixed(0))
        advisers = Advisers(source, bundles[0])
        device = joined(advisers.present, bundles[0])
        assert await advisers.renew(lambda: bundles[1])
        before, counts = advisers.before, advisers.present.counts
        assert before is not None
        assert before.counts is counts
        running = asyncio.create_task(advisers.run())
        source.clock.now_s += 2 * UNUSED_S
        await asyncio.sleep(0.3)
        assert advisers.of(bundles[0].id) is before
        before.roster.leave(device)
        source.clock.now_s += UNUSED_S - 1
        await asyncio.sleep(0.3)
        assert advisers.before is before
        source.clock.now_s += 1
        await asyncio.sleep(0.3)
        assert advisers.before is None
        assert advisers.of(bundles[0].id) is advisers.present
        assert not running.done()
        running.cancel()

    asyncio.run(live())
