"""A controller's protocol and its observations, a device that follows it, and its frames when it is silent."""

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import PolicyError, SettingsError, WireError
from aecnn_deploy.offloading.agent.critic import forecast
from aecnn_deploy.offloading.agent.learned import at_face_value
from aecnn_deploy.offloading.baselines.greedy import Greedy
from aecnn_deploy.offloading.live.advising import Adviser, ControllerSettings
from aecnn_deploy.offloading.live.observing import Catalogue, observe
from aecnn_deploy.offloading.live.policies import StaticBest, named_policy
from aecnn_deploy.offloading.live.roster import EdgeSeen, Member, Roster
from aecnn_deploy.offloading.mec.observation import Actions, Observation
from aecnn_deploy.offloading.policy import Policy
from aecnn_deploy.runtimes.controller_advice import AdviceBox
from aecnn_deploy.runtimes.controller_link import ControllerLink
from aecnn_deploy.runtimes.controller_messages import (
    MAX_STATE_BYTES,
    Advice,
    EdgeTold,
    Hello,
    State,
    WayTold,
    Welcome,
    encoded,
    from_controller,
    from_device,
)
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.device_client import DeviceSettings, RunReport, SourceImage
from aecnn_deploy.runtimes.edge_names import named_edge, named_edges
from tests.bundles import Edge, TinyVariant, command, make_bundle, make_photos, one_line, serving
from tests.certificates import Authority
from tests.device_runs import Part, assert_each_once, playing, run, wait_for
from tests.in_process import command_here
from tests.link_proxy import LinkProxy, LinkSettings
from tests.peers import peer

GOOD = TinyVariant("good", 4, 4, 8, accuracy=0.9)
SMALL = TinyVariant("small", 2, 8, 8, accuracy=0.5)
VARIANTS = ("good", "small")
SLOT_MS, EVERY_S, DEADLINE_MS = 50.0, 0.04, 400.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("controller") / "bundle"
    make_bundle(path, variants=(GOOD, SMALL))
    return open_bundle(path)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_photos(tmp_path_factory.mktemp("photos"), 1)[0].read_bytes()


def paced(photo: bytes, count: int, until: Callable[[], bool] = lambda: False) -> Iterator[SourceImage]:
    """A camera: so many frames, or until something is so."""
    began_s = time.perf_counter()
    for number in range(count):
        time.sleep(max(0.0, began_s + number * EVERY_S - time.perf_counter()))
        if until():
            return
        yield SourceImage(f"frame{number}", photo)


# The protocol


def hello(bundle: Bundle, **changes: Any) -> Hello:
    fields: dict[str, Any] = {
        "protocol": 1, "device": "camera", "software": "test", "bundle_id": bundle.id, "edges": ["a", "b"],
        "variants": list(VARIANTS),
    }  # fmt: skip
    return Hello(**(fields | changes))


def state(**changes: Any) -> State:
    """A device with two edges of two variants, in round numbers."""
    ways = [
        WayTold(variant=0, message_bytes=1000, air_ms=20, decode_ms=2, wait_ms=6, tail_ms=10),
        WayTold(variant=1, message_bytes=500, air_ms=10, decode_ms=1, wait_ms=4, tail_ms=5),
    ]
    edges = [
        EdgeTold(edge=index, up=True, rate_bps=1e6, fixed_ms=3 + index, load_age_ms=0, in_flight=0, ways=ways)
        for index in range(2)
    ]
    fields: dict[str, Any] = {
        "slot": 0, "frame_in_ms": 0.0, "deadline_ms": 100.0, "backlog_ms": 7.0, "local_ms": 50.0,
        "device_ms": [8.0, 4.0], "edges": edges,
    }  # fmt: skip
    return State(**(fields | changes))


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


# The observation


CATALOGUE = Catalogue(("a", "b"), VARIANTS, (0.9, 0.5), 0.8, 0.1)


def member(bundle: Bundle, told: State, told_s: float = 0.0, **changes: Any) -> Member:
    roster = Roster(CATALOGUE.edges, CATALOGUE.variants, stale_s=1.0)
    joined = roster.join(hello(bundle, **changes), 0.0)
    assert roster.tell(joined, told, told_s) is None
    return joined


class TestObservation:
    def test_milliseconds_that_were_told_are_seconds_of_the_simulator_s_arrays(self, bundle: Bundle) -> None:
        seen = observe(CATALOGUE, [member(bundle, state())], 0.0)
        assert (seen.batch, seen.devices, seen.servers, seen.options) == (1, 1, 2, 2)
        assert seen.active.tolist() == [[True]]
        np.testing.assert_allclose(seen.deadline_s, [[0.1]])
        np.testing.assert_allclose(seen.device_backlog_s, [[0.007]])
        np.testing.assert_allclose(seen.local_s, [[0.05]])
        np.testing.assert_allclose(seen.device_s, [[[0.008, 0.004]]])
        # What the second link has more in "fixed" than the first is on its way.
        np.testing.assert_allclose(seen.airtime_s, [[[[0.02, 0.01], [0.021, 0.011]]]])
        np.testing.assert_allclose(seen.edge_s, [[[0.012, 0.006]] * 2])
        np.testing.assert_allclose(seen.edge_backlog_s, [[0.006, 0.006]])
        assert seen.radio_backlog_s.tolist() == [[0.0, 0.0]]
        assert (seen.hop_s, seen.slot_s, seen.shared_radio) == (0.003, 0.1, False)
        assert (seen.accuracy.tolist(), seen.local_accuracy) == ([0.9, 0.5], 0.8)

    def test_an_answer_alone_is_expected_when_the_sum_of_what_was_told_is_over(self, bundle: Bundle) -> None:
        seen = observe(CATALOGUE, [member(bundle, state())], 0.0)
        by_hand_ms = 7 + 8 + 20 + (2 + 10) + 3  # backlog, head and coding, air, decoding and tail, there and back
        assert seen.alone_s()[0, 0, 0, 0] * 1e3 == pytest.approx(by_hand_ms)

    def test_what_was_told_some_time_ago_has_passed_by_so_much(self, bundle: Bundle) -> None:
        seen = observe(CATALOGUE, [member(bundle, state(), told_s=0.0)], 0.005)
        np.testing.assert_allclose(seen.deadline_s, [[0.095]])  # the frame waits already
        np.testing.assert_allclose(seen.device_backlog_s, [[0.002]])
        np.testing.assert_allclose(seen.edge_backlog_s, [[0.001, 0.001]])

    @pytest.mark.parametrize(("frame_in_ms", "active"), [(0.0, True), (99.0, True), (140.0, False), (None, False)])
    def test_a_device_has_a_task_where_a_frame_comes_within_the_slot(
        self, bundle: Bundle, frame_in_ms: float | None, active: bool
    ) -> None:
        seen = observe(CATALOGUE, [member(bundle, state(frame_in_ms=frame_in_ms))], 0.0)
        assert seen.active.tolist() == [[active]]

    def test_of_two_devices_the_one_that_heard_of_an_edge_last_is_believed(self, bundle: Bundle) -> None:
        old, new = state(), state()
        slow = [msgspec.structs.replace(way, tail_ms=100, wait_ms=40) for way in old.edges[0].ways]
        fresh = msgspec.structs.replace(old.edges[0], ways=slow, load_age_ms=10)
        stale = msgspec.structs.replace(old.edges[0], load_age_ms=500)
        told = [
            member(bundle, msgspec.structs.replace(old, edges=[stale])),
            member(bundle, msgspec.structs.replace(new, edges=[fresh])),
        ]
        for members in (told, told[::-1]):
            seen = observe(CATALOGUE, members, 0.0)
            np.testing.assert_allclose(seen.edge_s[0, 0], [0.102, 0.101])
            np.testing.assert_allclose(seen.edge_backlog_s[0, 0], 0.03)

    def test_an_edge_that_is_away_and_a_variant_that_is_not_loaded_are_out_of_reach(self, bundle: Bundle) -> None:
        told = state()
        here = msgspec.structs.replace(told.edges[0], ways=told.edges[0].ways[:1])
        away = EdgeTold(edge=1, up=False)
        seen = observe(CATALOGUE, [member(bundle, state(edges=[here, away], device_ms=[8.0, None]))], 0.0)
        assert np.isfinite(seen.airtime_s[0, 0]).tolist() == [[True, False], [False, False]]
        assert np.isfinite(seen.edge_s[0]).tolist() == [[True, False], [False, False]]
        assert not np.isnan(seen.alone_s()).any()
        assert seen.feasible().tolist() == [[[True, True, False, False, False]]]

    def test_a_device_without_the_unsplit_model_never_computes_in_time(self, bundle: Bundle) -> None:
        seen = observe(CATALOGUE, [member(bundle, state(local_ms=None))], 0.0)
        assert not seen.local_fits().any()
        assert seen.values()[0, 0].tolist() == [0.0, 0.9, 0.5, 0.9, 0.5]

    def test_devices_name_edges_and_variants_in_their_own_order(self, bundle: Bundle) -> None:
        told = state(edges=[EdgeTold(edge=0, up=False), state().edges[1]], device_ms=[1.0, 2.0])
        other = member(bundle, told, edges=["b", "a"], variants=["small", "good"])
        seen = observe(CATALOGUE, [other], 0.0)
        np.testing.assert_allclose(seen.device_s, [[[0.002, 0.001]]])
        np.testing.assert_allclose(seen.airtime_s[0, 0, 0], [0.01, 0.02])  # its second edge is our first
        assert np.isinf(seen.airtime_s[0, 0, 1]).all()

    def test_an_edge_s_own_word_counts_where_devices_have_not_asked_it_for_long(self, bundle: Bundle) -> None:
        told = state()
        old = [msgspec.structs.replace(each, load_age_ms=3000) for each in told.edges]
        one = member(bundle, state(edges=old), told_s=10.0)
        seen = observe(CATALOGUE, [one], 10.0, {0: EdgeSeen(True, 10, 9.99), 1: EdgeSeen(True, 10, 2.0)})
        np.testing.assert_allclose(seen.edge_backlog_s, [[10 * 0.006 - 0.01, 0.0]])


# Policies and slots


class Fixed:
    """Decides as it is told to."""

    name = "fixed"

    def __init__(self, action: int) -> None:
        self.action: Any = action
        self.resets = 0

    def reset(self, batch: int) -> None:
        self.resets += 1

    def decide(self, seen: Observation) -> Actions:
        if isinstance(self.action, Exception):
            raise self.action
        return np.full(seen.active.shape, self.action)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def adviser(bundle: Bundle, policy: Policy, clock: Clock | None = None, **settings: Any) -> Adviser:
    return Adviser(policy, bundle, ("a", "b"), ControllerSettings(slot_ms=100, **settings), clock or Clock())


def joined(one: Adviser, bundle: Bundle, told: State | None = None, **changes: Any) -> Member:
    new = one.roster.join(hello(bundle, **changes), one.clock())
    assert one.roster.tell(new, told or state(), one.clock()) is None
    return new


class TestSlots:
    def test_each_device_is_told_by_its_own_names(self, bundle: Bundle) -> None:
        one = adviser(bundle, Fixed(1 + 1 * 2 + 0))  # the second edge, the first variant
        first, second = joined(one, bundle), joined(one, bundle, edges=["b"], told=state(edges=state().edges[:1]))
        asyncio.run(one.advise())
        assert [(each.mailbox[0].edge, each.mailbox[0].variant) for each in (first, second)] == [
            (1, "good"),
            (0, "good"),
        ]
        assert first.mailbox[0].valid_for_ms == 200
        assert one.counts.by_edge == {"a": 0, "b": 2}

    def test_who_expects_no_frame_is_told_that_nothing_is_advised(self, bundle: Bundle) -> None:
        one = adviser(bundle, Fixed(1))
        new = joined(one, bundle, state(frame_in_ms=None))
        asyncio.run(one.advise())
        assert new.mailbox[0].idle

    def test_devices_come_go_and_fall_silent_and_the_policy_hears_of_it(self, bundle: Bundle) -> None:
        clock, policy = Clock(), Fixed(0)
        one = adviser(bundle, policy, clock)
        asyncio.run(one.advise())  # nobody is there
        assert (one.counts.decisions, policy.resets) == (0, 0)
        first, second = joined(one, bundle), joined(one, bundle)
        for _ in range(2):
            asyncio.run(one.advise())
        assert policy.resets == 1
        clock.now_s += 0.31
        one.roster.tell(second, state(), clock())
        first.mailbox.clear()
        asyncio.run(one.advise())
        assert not first.mailbox  # silent for more than three slots
        assert one.status()["stale"] == 1
        assert policy.resets == 2
        one.roster.leave(second)
        asyncio.run(one.advise())
        assert one.counts.decisions == 3

    @pytest.mark.parametrize("action", [5, -1, 0.5, ValueError("no such thing")])
    def test_a_policy_that_fails_says_nothing_until_it_works_again(
        self, bundle: Bundle, action: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        policy = Fixed(action)
        one = adviser(bundle, policy)
        new = joined(one, bundle)
        for _ in range(3):
            asyncio.run(one.advise())
        assert not new.mailbox
        assert one.counts.failed == 3
        assert caplog.text.count("the policy fixed failed") == 1
        policy.action = 0
        asyncio.run(one.advise())
        assert new.mailbox
        assert "works again" in caplog.text

    def test_an_edge_that_nobody_used_for_long_is_tried_by_one_frame_now_and_then(self, bundle: Bundle) -> None:
        clock = Clock()
        one = adviser(bundle, Fixed(1), clock)
        both = [joined(one, bundle), joined(one, bundle)]
        tried = []
        for _ in range(160):
            clock.now_s += 0.1
            for each in both:
                one.roster.tell(each, state(), clock())
            asyncio.run(one.advise())
            tried += [(number, clock.now_s) for number, each in enumerate(both) if each.mailbox[0].edge == 1]
        assert {number for number, _ in tried} == {0, 1}
        assert tried[0][1] >= 106.0
        assert len(tried) == one.counts.probes <= 6
        quiet = adviser(bundle, Fixed(1), clock, probe_s=0.0)
        assert joined(quiet, bundle)
        clock.now_s += 0.1
        asyncio.run(quiet.advise())
        assert quiet.counts.probes == 0

    def test_a_bundle_without_figures_and_settings_out_of_range_are_refused(self, tmp_path: Path) -> None:
        make_bundle(tmp_path / "bundle", agreement=None)
        with pytest.raises(SettingsError, match="neither accuracy nor agreement"):
            adviser(open_bundle(tmp_path / "bundle"), Fixed(0))
        for wrong in ({"slot_ms": 1.0}, {"max_devices": 0}, {"probe_s": -1.0}):
            with pytest.raises(SettingsError):
                ControllerSettings(**wrong)  # type: ignore[arg-type]


class TestPolicies:
    def test_greedy_fills_an_edge_no_further_than_is_in_time(self, bundle: Bundle) -> None:
        # Alone, the good variant is done after 50 ms; there is time for small ones before and behind it.
        told = state(deadline_ms=61.0, local_ms=None)
        seen = observe(CATALOGUE, [member(bundle, told) for _ in range(6)], 0.0)
        made = Greedy().decide(seen)
        chance = forecast(seen, made[:, None], at_face_value(6, 2))
        assert (chance.finish_s[0, 0, 0] <= seen.deadline_s[0])[made[0] > 0].all()
        assert (made > 0).sum() >= 4
        urgent = replace(seen, deadline_s=seen.deadline_s * 0 + 0.001)
        assert Greedy().decide(urgent).tolist() == [[0] * 6]

    def test_static_holds_what_was_best_when_it_began(self, bundle: Bundle) -> None:
        policy = StaticBest(settle_slots=2)
        seen = observe(CATALOGUE, [member(bundle, state()) for _ in range(4)], 0.0)
        for _ in range(3):
            assert policy.decide(seen).tolist() == [[1, 3, 1, 3]]
        slow = replace(seen, edge_s=seen.edge_s * 50)
        assert policy.decide(slow).tolist() == [[1, 3, 1, 3]]

    def test_an_unknown_name_lists_the_known_ones(self) -> None:
        with pytest.raises(PolicyError, match="greedy"):
            named_policy("gredy")


# What the device makes of advice


class TestAdviceBox:
    def test_advice_holds_for_as_long_as_it_says(self) -> None:
        box = AdviceBox(VARIANTS, 2)
        assert box.now(1.0) is None
        box.put(4, 1, "good", 100.0, 1.0)
        advice = box.now(1.09)
        assert advice is not None
        assert (advice.edge, box.index(advice), box.slot) == (1, 0, 4)
        assert box.now(1.1) is None
        box.put(5, 1, "good", 1e9, 1.0)
        assert box.now(12.0) is None  # ten seconds at most, whatever is said

    @pytest.mark.parametrize(("edge", "variant"), [(2, "good"), (None, "good"), (0, None)])
    def test_half_an_advice_is_none_and_is_said_once(
        self, edge: int | None, variant: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        box = AdviceBox(VARIANTS, 2)
        for _ in range(2):
            box.put(1, edge, variant, 100.0, 1.0)
        assert box.now(1.0) is None
        assert caplog.text.count("not followed") == 1

    def test_a_variant_that_the_bundle_lacks_is_said_once(self, caplog: pytest.LogCaptureFixture) -> None:
        box = AdviceBox(VARIANTS, 2)
        for slot in range(2):
            box.put(slot, 0, "no\x1b[31msuch", 100.0, 1.0)
            advice = box.now(1.0)
            assert advice is not None
            assert box.index(advice) is None
        assert caplog.text.count("not followed") == 1
        assert "\x1b" not in caplog.text


class Control:
    """A controller by hand: welcomes every device, and says once a slot what ``say`` gives (None: nothing)."""

    def __init__(self, say: Callable[[int], Advice | str | None]) -> None:
        self.say, self.slot = say, 0
        self.states: list[State] = []
        self.hellos: list[Hello] = []

    def __call__(self, connection: ServerConnection) -> None:
        try:
            first = from_device(connection.recv())
            assert isinstance(first, Hello)
            self.hellos.append(first)
            connection.send(encoded(Welcome(protocol=1, software="test", policy="by hand", slot_ms=SLOT_MS)))
            while True:
                self.slot += 1
                said = self.say(self.slot)
                if said is not None:
                    connection.send(said if isinstance(said, str) else encoded(said))
                end_s = time.monotonic() + SLOT_MS / 1e3
                while (left_s := end_s - time.monotonic()) > 0:
                    try:
                        told = from_device(connection.recv(timeout=left_s))
                    except TimeoutError:
                        break
                    assert isinstance(told, State)
                    self.states.append(told)
        except (ConnectionClosed, EOFError):
            pass


def to(edge: int | None, variant: str | None) -> Advice:
    return Advice(slot=1, edge=edge, variant=variant, valid_for_ms=2 * SLOT_MS)


@contextmanager
def two_edges() -> Iterator[tuple[list[Part], list[str]]]:
    with ExitStack() as stack:
        parts = [Part(), Part()]
        yield parts, [stack.enter_context(playing(part)) for part in parts]


def follow(bundle: Bundle, urls: list[str], controller: str, images: Any, **options: Any) -> RunReport:
    fields = {"other_edges": tuple(urls[1:]), "controller": controller, "deadline_ms": DEADLINE_MS, "coder": "raw"}
    return run(bundle, urls[0], images, live=True, **(fields | options))


def rest(report: RunReport) -> list[Any]:
    """Without what came before the first advice."""
    first = next((number for number, image in enumerate(report.images) if image.advised), len(report.images))
    return report.images[first:]


class TestDevice:
    def test_it_goes_where_it_is_advised(self, bundle: Bundle, photo: bytes) -> None:
        control = Control(lambda slot: to(1, "small") if slot < 12 else to(0, "good"))
        with two_edges() as (_, urls), peer(control) as controller:
            report = follow(bundle, urls, controller, paced(photo, 40))
        assert_each_once(report, 40)
        ways = [(image.edge, image.variant) for image in report.images if image.advised and image.status == "ok"]
        assert {ways[0], ways[-1]} == {(f"{urls[1]}/v1/stream", "small"), (f"{urls[0]}/v1/stream", "good")}
        assert len(set(ways)) == 2
        summary = report.summary()
        assert summary["advised"] >= 30
        assert summary["advised"] + sum(summary["unadvised"].values()) == 40
        (said,) = control.hellos
        assert (said.bundle_id, said.variants) == (bundle.id, ["good", "small"])
        assert said.edges == [url.removeprefix("ws://") for url in urls]

    def test_what_it_tells_is_what_it_measures(self, bundle: Bundle, photo: bytes) -> None:
        control = Control(lambda _: to(0, "good"))
        with two_edges() as (_, urls), peer(control) as controller:
            follow(bundle, urls, controller, paced(photo, 30), fallback="local")
        told = control.states[-5]
        assert told.slot == 1
        assert [edge.up for edge in told.edges] == [True, True]
        assert 0 < told.deadline_ms <= DEADLINE_MS
        assert told.frame_in_ms is not None
        assert told.frame_in_ms <= EVERY_S * 1e3
        assert told.local_ms is not None
        assert all(each is not None and 0 < each < 100 for each in told.device_ms)
        good, small = told.edges[0].ways
        assert good.message_bytes > 1024 > small.message_bytes  # 4×16×16 and 2×8×8 planes as they are
        assert told.edges[0].rate_bps > 0

    def test_silence_for_a_slot_and_it_decides_itself(self, bundle: Bundle, photo: bytes) -> None:
        control = Control(lambda slot: to(1, "small") if slot % 20 < 10 else None)
        with two_edges() as (_, urls), peer(control) as controller:
            report = follow(bundle, urls, controller, paced(photo, 70))
        assert_each_once(report, 70)
        words = "".join("a" if image.advised else "." for image in rest(report))
        assert "a....." in words  # half a second of silence: all but the first two slots' frames
        assert ".aa" in words
        own = [image for image in rest(report) if not image.advised]
        assert {image.unadvised for image in own} == {"silent"}
        assert {image.variant for image in own if image.status == "ok"} == {"good"}  # the most accurate in time

    def test_the_unsplit_model_runs_where_that_is_advised(
        self, bundle: Bundle, photo: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        control = Control(lambda _: to(None, None))
        with two_edges() as (_, urls), peer(control) as controller:
            report = follow(bundle, urls, controller, paced(photo, 25), fallback="local")
            other = follow(bundle, urls, controller, paced(photo, 25))
        local = [image for image in report.images if image.advised]
        assert len(local) > 15
        assert {(image.path, image.fallback, image.status) for image in local} == {("local", None, "ok")}
        assert "the unsplit model runs here" not in caplog.text  # that is for fallbacks
        assert {image.unadvised for image in other.images} <= {"silent", "no-local"}
        assert {image.path for image in other.images} == {"split"}

    @pytest.mark.parametrize(
        ("said", "why"),
        [
            (to(0, "other"), "unknown-variant"),
            (to(7, "good"), "silent"),
            (Advice(slot=1, edge=None, variant=None, valid_for_ms=100, idle=True), "unexpected"),
        ],
    )
    def test_advice_that_cannot_be_followed_is_not(self, bundle: Bundle, photo: bytes, said: Advice, why: str) -> None:
        with two_edges() as (_, urls), peer(Control(lambda _: said)) as controller:
            report = follow(bundle, urls, controller, paced(photo, 20))
        assert {image.advised for image in report.images} == {False}
        assert why in {image.unadvised for image in report.images}
        assert {image.status for image in report.images} == {"ok"}

    @pytest.mark.parametrize("said", ["{", '{"kind": "welcome"}', "x" * 20_000, '{"kind":"advice","slot":-1}'])
    def test_a_hostile_controller_costs_no_frame(self, bundle: Bundle, photo: bytes, said: str) -> None:
        with two_edges() as (_, urls), peer(Control(lambda _: said)) as controller:
            report = follow(bundle, urls, controller, paced(photo, 15))
        assert_each_once(report, 15)
        assert {(image.status, image.unadvised) for image in report.images} == {("ok", "silent")}

    def test_a_controller_that_is_not_there_costs_no_frame_and_is_found_later(
        self, bundle: Bundle, photo: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        with peer(Control(lambda _: None)) as gone:
            port = int(gone.rpartition(":")[2])
        seen = threading.Event()

        def frames() -> Iterator[SourceImage]:
            with ExitStack() as stack:
                for number, image in enumerate(paced(photo, 400, seen.is_set)):
                    if number == 10:
                        stack.enter_context(peer(Control(lambda _: to(1, "small")), port))
                    yield image

        with two_edges() as (_, urls):
            report = follow(bundle, urls, gone, frames(), on_image=lambda image: seen.set() if image.advised else None)
        assert {image.unadvised for image in report.images[:9]} == {"silent"}
        assert seen.is_set()
        assert {image.status for image in report.images} == {"ok"}
        assert "this device decides itself" in caplog.text
        assert "advises again" in caplog.text

    def test_frames_for_an_edge_that_is_away_go_to_the_other_one(self, bundle: Bundle, photo: bytes) -> None:
        with ExitStack() as stack:
            good = stack.enter_context(playing(Part()))
            leaving = ExitStack()
            bad = leaving.enter_context(playing(Leaving()))
            controller = stack.enter_context(peer(Control(lambda _: to(1, "small"))))
            report = follow(bundle, [good, bad], controller, paced(photo, 40))
            leaving.close()
        assert_each_once(report, 40)
        assert {image.status for image in report.images} == {"ok"}
        assert "edge-away" in {image.unadvised for image in report.images}
        assert f"{good}/v1/stream" in {image.edge for image in report.images}

    def test_with_two_edges_and_no_controller_it_takes_the_one_that_does_better(
        self, bundle: Bundle, photo: bytes
    ) -> None:
        with ExitStack() as stack:
            urls = [stack.enter_context(playing(part)) for part in (Late(), Part())]
            report = run(bundle, urls[0], paced(photo, 30), live=True, deadline_ms=DEADLINE_MS, other_edges=(urls[1],))
        assert [image.advised for image in report.images] == [None] * 30
        assert "advised" not in report.summary()
        assert {image.edge for image in report.images[10:]} == {f"{urls[1]}/v1/stream"}

    def test_settings_that_do_not_go_together_are_refused(self, bundle: Bundle, tmp_path: Path) -> None:
        for options, why in (
            ({"controller": "http://x:1"}, "--controller needs --deadline-ms"),
            ({"other_edges": ("ws://b:1",)}, "more than one --edge needs --deadline-ms"),
            ({"controller": "http://x:1", "deadline_ms": 9.0, "variant": "good"}, "drop either"),
            ({"other_edges": ("ws://b:1",) * 16, "deadline_ms": 9.0}, "at most 16"),
        ):
            with pytest.raises(SettingsError, match=why):
                DeviceSettings("ws://a:1", **options)  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="no address of a controller"):
            follow(bundle, ["ws://127.0.0.1:9"], "somewhere", [], fallback="local")
        make_bundle(tmp_path / "bare", agreement=None)
        with pytest.raises(SettingsError, match="states no accuracy of its variants"):
            follow(open_bundle(tmp_path / "bare"), ["ws://127.0.0.1:9"], "http://127.0.0.1:9", [])

    @pytest.mark.parametrize("answers", [0, 6])
    def test_an_edge_that_falls_silent_holds_up_nothing_that_goes_to_another(
        self, bundle: Bundle, photo: bytes, answers: int
    ) -> None:
        with ExitStack() as stack:
            urls = [stack.enter_context(playing(part)) for part in (Part(), Stuck(answers))]
            controller = stack.enter_context(peer(Control(lambda _: to(1, "small"))))
            report = follow(bundle, urls, controller, paced(photo, 60))
        assert_each_once(report, 60)
        late = report.images[30:]
        assert "edge-busy" in {image.unadvised for image in late}
        assert {image.edge for image in late if image.status == "ok"} == {f"{urls[0]}/v1/stream"}
        assert sum(image.status == "ok" for image in late) >= 20

    def test_whatever_is_cut_every_frame_has_one_outcome(self, bundle: Bundle, photo: bytes) -> None:
        control = Control(lambda slot: to(slot // 3 % 2, VARIANTS[slot % 2]) if slot % 11 else None)
        with ExitStack() as stack:
            _, urls = stack.enter_context(two_edges())
            ports = [int(url.rpartition(":")[2]) for url in (*urls, stack.enter_context(peer(control)))]
            links = [
                stack.enter_context(LinkProxy(port, LinkSettings(cut_every_s=0.25, seed=number)))
                for number, port in enumerate(ports)
            ]
            report = follow(bundle, [link.url for link in links[:2]], links[2].url, paced(photo, 100), fallback="local")
        assert_each_once(report, 100)
        assert sum(link.cuts for link in links) > 5
        assert sum(image.status == "ok" for image in report.images) > 90
        assert {True, False} <= {image.advised for image in report.images}
        # Neither: only what failed or fell back before its turn came, as on a busy machine.
        neither = [image for image in report.images if image.advised is None]
        assert all(image.status == "failed" or image.fallback is not None for image in neither)


class Leaving(Part):
    """Ends every session at its third request."""

    def answer(self, connection: ServerConnection, session: Any, request_id: int, number: int) -> bool | None:
        return False if request_id > 2 else super().answer(connection, session, request_id, number)


class Stuck(Part):
    """Answers so many requests, and none after that."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.left = answers

    def answer(self, connection: ServerConnection, session: Any, request_id: int, number: int) -> bool | None:
        self.left -= 1
        return super().answer(connection, session, request_id, number) if self.left >= 0 else None


class Late(Part):
    """An edge that takes its time."""

    def answer(self, connection: ServerConnection, session: Any, request_id: int, number: int) -> bool | None:
        time.sleep(0.2)
        return super().answer(connection, session, request_id, number)


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
