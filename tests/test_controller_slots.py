"""What a controller makes of what devices tell: observations, what policies decide, and who is advised in a slot."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import PolicyError, SettingsError
from aecnn_deploy.offloading.agent.critic import forecast
from aecnn_deploy.offloading.agent.learned import at_face_value
from aecnn_deploy.offloading.baselines.greedy import Greedy
from aecnn_deploy.offloading.live.advising import Adviser, ControllerSettings
from aecnn_deploy.offloading.live.observing import Catalogue, observe
from aecnn_deploy.offloading.live.policies import StaticBest, named_policy
from aecnn_deploy.offloading.live.roster import EdgeSeen, Member, Roster
from aecnn_deploy.offloading.mec.observation import Actions, Observation
from aecnn_deploy.offloading.policy import Policy
from aecnn_deploy.runtimes.controller_messages import EdgeTold, State
from tests.bundles import make_bundle
from tests.controllers import VARIANTS, hello, state, two_variants

CATALOGUE = Catalogue(("a", "b"), VARIANTS, (0.9, 0.5), 0.8, 0.1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return two_variants(tmp_path_factory.mktemp("controller") / "bundle")


# The observation


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
