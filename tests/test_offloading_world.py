"""The simulator: queues against plain event-by-event simulations, and worlds that no decision changes."""

import heapq
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aecnn_deploy.errors import PolicyError, SettingsError
from aecnn_deploy.offloading.baselines.simple import AllLocal, RandomPolicy
from aecnn_deploy.offloading.evaluation import evaluate
from aecnn_deploy.offloading.mec import line
from aecnn_deploy.offloading.mec.line import Served, serve
from aecnn_deploy.offloading.mec.observation import Actions, Observation, option_of, server_of
from aecnn_deploy.offloading.mec.scenario import Scenario
from aecnn_deploy.offloading.mec.world import World, certain_truth, repeated, settle
from aecnn_deploy.offloading.scenario_file import load_scenario, scenario_names, with_changes

UNCERTAIN, CERTAIN = "paper-2x14", "certain-2x14"
# what no draw makes different: every device, link and task is the same
PLAIN = {
    "devices.speed": [1.0, 1.0],
    "devices.arrival": [1.0, 1.0],
    "devices.deadline_ms": [100.0, 100.0],
    "radio.fading": 0.0,
    "radio.shadowing_db": 0.0,
}


def scenario(name: str = UNCERTAIN, **changes: Any) -> Scenario:
    """A shipped scenario; ``devices_count=3`` is ``devices.count``."""
    return with_changes(load_scenario(name), {key.replace("__", "."): value for key, value in changes.items()})


def events(case: dict[str, Any], row: int, shared: bool) -> tuple[list[float], list[bool]]:
    """One row of ``serve`` by a queue of events: ready, the air is free, arrived, the server is free."""
    server, ready, airtime, service, deadline = (
        case[name][row] for name in ("server", "ready_s", "airtime_s", "service_s", "deadline_s")
    )
    count, lanes = len(server), case["radio_free_s"].shape[1]
    finish, sent = [np.inf] * count, [False] * count
    waiting: dict[tuple[str, int], deque[int]] = {(k, s): deque() for k in ("air", "edge") for s in range(lanes)}
    busy = dict.fromkeys(waiting, True)
    heap: list[tuple[float, int, str, int]] = []
    for lane in range(lanes):
        heapq.heappush(heap, (case["radio_free_s"][row, lane], -1, "air free", lane))
        heapq.heappush(heap, (case["edge_free_s"][row, lane], -1, "edge free", lane))
    for task in range(count):
        if server[task] >= 0:
            heapq.heappush(heap, (ready[task], task, "ready", int(server[task])))

    def begin(kind: str, lane: int, now: float) -> None:
        while waiting[kind, lane] and not busy[kind, lane]:
            task = waiting[kind, lane].popleft()
            takes = airtime[task] if kind == "air" else service[task]
            if now >= deadline[task] or np.isinf(takes):
                continue  # dropped, and takes no time
            busy[kind, lane] = True
            if kind == "air":
                sent[task] = True
                heapq.heappush(heap, (now + takes, task, "arrived", lane))
            else:
                finish[task] = now + takes
            heapq.heappush(heap, (now + takes, count, f"{kind} free", lane))

    while heap:
        now, task, what, lane = heapq.heappop(heap)
        if what == "ready" and shared:
            waiting["air", lane].append(task)
            begin("air", lane, now)
        elif what == "ready":
            if now < deadline[task] and np.isfinite(airtime[task]):
                sent[task] = True
                heapq.heappush(heap, (now + airtime[task], task, "arrived", lane))
        elif what == "arrived":
            waiting["edge", lane].append(task)
            begin("edge", lane, now)
        else:
            kind = what.split()[0]
            busy[kind, lane] = False
            begin(kind, lane, now)
    return finish, sent


def random_case(seed: int, rows: int, devices: int, servers: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shape = (rows, devices)
    return {
        "server": rng.integers(-1, servers, shape),
        "ready_s": rng.uniform(0, 0.08, shape),
        "airtime_s": np.where(rng.random(shape) < 0.1, np.inf, rng.exponential(0.02, shape)),
        "service_s": np.where(rng.random(shape) < 0.1, np.inf, rng.exponential(0.02, shape)),
        "deadline_s": rng.uniform(0.01, 0.2, shape),
        "radio_free_s": rng.uniform(0, 0.05, (rows, servers)),
        "edge_free_s": rng.uniform(0, 0.05, (rows, servers)),
    }


class TestServe:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 16), st.integers(1, 4), st.booleans())
    def test_tasks_fare_as_in_a_plain_simulation_of_events(
        self, seed: int, rows: int, devices: int, servers: int, shared: bool
    ) -> None:
        case = random_case(seed, rows, devices, servers)
        served = serve(**case, shared_radio=shared)
        for row in range(rows):
            finish, sent = events(case, row, shared)
            np.testing.assert_allclose(served.finish_s[row], finish, rtol=1e-12)
            assert served.sent[row].tolist() == sent

    @pytest.mark.parametrize("shared", [True, False])
    def test_few_rows_and_many_give_the_same_to_the_bit(self, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        case = random_case(3, 50, 20, 3)
        monkeypatch.setattr(line, "_FEW_ROWS", 0)
        many = serve(**case, shared_radio=shared)
        monkeypatch.setattr(line, "_FEW_ROWS", 50)
        few = serve(**case, shared_radio=shared)
        for name in Served.__dataclass_fields__:
            assert np.array_equal(getattr(many, name), getattr(few, name)), name

    def test_what_is_given_is_not_changed(self) -> None:
        for rows in (1, 100):
            case = random_case(0, rows, 10, 2)
            before = {name: value.copy() for name, value in case.items()}
            serve(**case, shared_radio=True)
            assert all(np.array_equal(before[name], case[name]) for name in case)

    def test_air_and_servers_are_busy_for_exactly_the_tasks_they_took(self) -> None:
        case = random_case(7, 40, 12, 2)
        case["radio_free_s"][:] = case["edge_free_s"][:] = 1.0  # never idle from here on
        case["ready_s"] *= 0
        case["deadline_s"] += 1.0
        served = serve(**case, shared_radio=True)
        for lane in range(2):
            sent = np.where(served.sent & (case["server"] == lane), case["airtime_s"], 0).sum(axis=1)
            np.testing.assert_allclose(served.radio_free_s[:, lane], 1 + sent)
            done = np.where(np.isfinite(served.finish_s) & (case["server"] == lane), served.finish_s, 1.0)
            np.testing.assert_allclose(served.edge_free_s[:, lane], done.max(axis=1))


def in_absolute_time(world: World, actions: list[NDArray[np.int64]], seen: list[Any]) -> NDArray[np.float64]:
    """[slots, N] finishing times of one certain world, from one clock for the whole episode and no backlogs."""
    devices, servers = world.scenario.devices.count, world.scenario.servers.count
    processor, air, edge = [0.0] * devices, [0.0] * servers, [0.0] * servers
    finish = np.full((len(actions), devices), np.inf)
    for slot, (decided, now) in enumerate(zip(actions, seen, strict=True)):
        begin = slot * now.slot_s
        queue: list[tuple[float, int]] = []
        for device in range(devices):
            if not now.active[0, device]:
                continue
            start = max(begin, processor[device])
            if decided[0, device] == 0:
                done = start + now.local_s[0, device]
                if done <= begin + now.deadline_s[0, device]:
                    processor[device] = finish[slot, device] = done
                continue
            option = int(option_of(decided, now.options)[0, device])
            processor[device] = start + now.device_s[0, device, option]
            queue.append((processor[device], device))
        for ready, device in sorted(queue):
            server = int(server_of(decided, now.options)[0, device])
            option = int(option_of(decided, now.options)[0, device])
            latest = begin + now.deadline_s[0, device] - now.hop_s
            start = max(ready, air[server])
            if start >= latest:
                continue
            air[server] = start + now.airtime_s[0, device, server, option]
            start = max(air[server], edge[server])
            if start < latest:
                edge[server] = start + now.edge_s[0, server, option]
                finish[slot, device] = edge[server] + now.hop_s
    return finish


class TestSlots:
    @pytest.mark.parametrize("seed", range(4))
    def test_what_a_slot_leaves_behind_is_carried_into_the_next(self, seed: int) -> None:
        crowded = scenario(CERTAIN, slots=40, radio__bandwidth_mhz=4, devices__deadline_ms=[100.0, 400.0])
        world, rng = World(crowded, seed=seed), np.random.default_rng(seed)
        seen, actions, finish, backlogs = [], [], [], []
        for slot in range(crowded.slots):
            seen.append(world.observe())
            actions.append(rng.integers(0, world.choices, (1, 14)))
            backlogs.append(
                [seen[-1].device_backlog_s.max(), seen[-1].radio_backlog_s.max(), seen[-1].edge_backlog_s.max()]
            )
            finish.append(world.step(actions[-1]).finish_s[0] + slot * 0.1)
        np.testing.assert_allclose(np.array(finish), in_absolute_time(world, actions, seen), atol=1e-9)
        assert (np.max(backlogs, axis=0) > 0).all()  # there was something to carry, at each of the three

    def test_a_task_that_is_dropped_takes_neither_air_nor_server(self) -> None:
        # one airtime of the largest option is longer than any deadline: whoever is first leaves nothing to the others
        slow = scenario(CERTAIN, **PLAIN, radio__bandwidth_mhz=2, servers__count=1)
        world = World(slow, seed=0)
        seen = world.observe()
        airtimes_s = seen.airtime_s[0, :, 0, 0]
        assert airtimes_s.min() > 0.1
        outcome = world.step(np.ones((1, 14), np.int64))
        assert not outcome.in_time.any()
        left_s = world.observe().radio_backlog_s[0, 0]
        assert np.isclose(left_s, seen.device_s[0, :, 0] + airtimes_s - seen.slot_s).any()  # of one, and no other
        assert not world.observe().edge_backlog_s.any()

    @pytest.mark.parametrize(
        ("actions", "said"),
        [
            (np.zeros((1, 13), np.int64), "shape (1, 13)"),
            (np.zeros((1, 14)), "float64"),
            (np.full((1, 14), 13), "13 to 13, expected 0 (local) to 12"),
            (np.full((1, 14), -1), "-1 to -1"),
        ],
    )
    def test_a_decision_of_other_shape_or_numbers_is_refused(self, actions: NDArray[Any], said: str) -> None:
        with pytest.raises(PolicyError, match=said.replace("(", r"\(").replace(")", r"\)")):
            World(scenario()).step(actions)

    def test_a_slot_without_tasks_brings_nothing_and_costs_nothing(self) -> None:
        idle = scenario(devices__arrival=[0.0, 1e-9], energy__compute_w=1.0, energy__transmit_w=1.0)
        world = World(idle, batch=2)
        outcome = world.step(np.full((2, 14), 5))
        assert not outcome.active.any()
        assert outcome.reward.tolist() == [0, 0]
        assert outcome.energy_j is not None
        assert not outcome.energy_j.any()
        assert not world.observe().device_backlog_s.any()


def truths(world: World, decide: Any, slots: int) -> list[tuple[Any, ...]]:
    found = []
    for _ in range(slots):
        seen, truth = world.observe(), world.truth()
        parts = (seen.active, seen.deadline_s, seen.airtime_s, seen.edge_s, truth.airtime_s, truth.edge_s)
        found.append((*(part.copy() for part in parts), truth.device_noise.copy(), truth.edge_noise.copy()))
        world.step(decide(seen))
    return found


class TestWorlds:
    @pytest.mark.parametrize("name", ["paper-2x14", "mobile-2x14", "failing-3x20"])
    def test_the_same_seed_brings_the_same_world_whatever_is_decided(self, name: str) -> None:
        chosen = load_scenario(name)
        policies = [AllLocal(), RandomPolicy(1), RandomPolicy(2)]
        first, *others = (truths(World(chosen, batch=2, seed=9), policy.decide, 30) for policy in policies)
        for other in others:
            for mine, theirs in zip(first, other, strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def test_a_reset_with_a_seed_begins_the_same_draws_and_one_without_goes_on(self) -> None:
        world = World(scenario(), batch=2, seed=4)
        first = truths(world, AllLocal().decide, 3)
        world.reset()
        second = truths(world, AllLocal().decide, 3)
        world.reset(4)
        again = truths(world, AllLocal().decide, 3)
        assert all(np.array_equal(a, b) for a, b in zip(first[2], again[2], strict=True))
        assert not np.array_equal(first[2][4], second[2][4])

    def test_the_worlds_of_a_batch_differ_and_other_seeds_give_others(self) -> None:
        one, other = (World(scenario(), batch=2, seed=seed).truth().airtime_s for seed in (0, 1))
        assert not np.array_equal(one[0], one[1])
        assert not np.array_equal(one, other)

    def test_a_certain_scenario_shows_what_happens(self) -> None:
        world, rng = World(load_scenario(CERTAIN), batch=3, seed=1), np.random.default_rng(0)
        for _ in range(20):
            seen, truth, sure = world.observe(), world.truth(), certain_truth(world.observe())
            for name in ("airtime_s", "edge_s", "device_noise", "edge_noise"):
                assert np.array_equal(getattr(truth, name), getattr(sure, name)), name
            world.step(rng.integers(0, seen.choices, (3, 14)))

    def test_an_uncertain_scenario_shows_something_else(self) -> None:
        world = World(load_scenario(UNCERTAIN), batch=40, seed=1)
        world.step(np.zeros((40, 14), np.int64))
        seen, truth = world.observe(), world.truth()
        error = np.log(seen.airtime_s / truth.airtime_s)
        assert 0.01 < error.std() < 1.0
        assert abs(np.median(error)) < 0.1
        changed = (seen.edge_s != truth.edge_s).any(axis=2).mean()
        assert 0.05 < changed < 0.5  # level and foreign load stay by a chance of 0.9 each

    @pytest.mark.parametrize("jitter", [0.1, 0.4])
    def test_computing_times_are_right_on_average_and_spread_as_told(self, jitter: float) -> None:
        world = World(scenario(uncertainty__device_jitter=jitter, uncertainty__edge_jitter=jitter), batch=400)
        for noise in (world.truth().device_noise, world.truth().edge_noise):
            assert noise.mean() == pytest.approx(1, abs=0.03)
            assert np.log(noise).std() == pytest.approx(jitter, rel=0.05)

    def test_what_is_feasible_alone_is_in_time_alone_when_all_is_certain(self) -> None:
        single = scenario(CERTAIN, devices__count=1, devices__arrival=[1.0, 1.0], devices__deadline_ms=[15.0, 100.0])
        choices = World(single).choices
        seen = World(single, batch=60, seed=2).observe()
        rows = repeated(seen, choices)
        actions = np.tile(np.arange(choices), 60)[:, None]
        outcome, *_ = settle(rows, certain_truth(rows), actions, single)
        feasible = seen.feasible().reshape(60, choices)
        feasible[:, 0] = seen.local_fits()[:, 0]  # always allowed, not always in time
        assert np.array_equal(outcome.in_time.reshape(60, choices), feasible)
        assert 0.2 < feasible.mean() < 0.95
        worth = np.where(feasible, seen.values().reshape(60, choices), 0)
        np.testing.assert_allclose(outcome.accuracy.reshape(60, choices), worth)


class TestRadio:
    def test_without_fading_and_walking_a_link_stays_as_it_is(self) -> None:
        world = World(scenario(CERTAIN, radio__fading=0.0), seed=0)
        before = world.truth().airtime_s
        world.step(np.zeros((1, 14), np.int64))
        assert np.array_equal(before, world.truth().airtime_s)

    def test_who_walks_changes_the_link_a_little_each_slot_and_stays_in_the_area(self) -> None:
        walking = scenario("mobile-2x14", radio__fading=0.0, uncertainty__estimate_error=0.0, devices__move_m_s=5.0)
        world = World(walking, seed=0)
        rates = []
        for _ in range(400):
            rates.append(1 / world.truth().airtime_s[0, :, :, 0])
            world.step(np.zeros((1, 14), np.int64))
        steps = np.abs(np.diff(np.log(rates), axis=0))
        assert 0 < np.median(steps) < 0.1
        # 200 m walked on a square of 120: nobody is out of reach for that
        assert np.isfinite(rates).all()
        assert (np.max(rates, axis=0) / np.min(rates, axis=0)).max() > 1.3

    def test_devices_without_walking_keep_their_average_link_with_it_they_do_not(self) -> None:
        halves = {}
        for name, speed in (("still", 0.0), ("walking", 20.0)):
            world = World(scenario(CERTAIN, devices__move_m_s=speed, radio__memory=0.0), batch=4, seed=3)
            logs = []
            for _ in range(120):
                logs.append(np.log(world.truth().airtime_s[..., 0]))
                world.step(np.zeros((4, 14), np.int64))
            halves[name] = np.abs(np.mean(logs[:20], axis=0) - np.mean(logs[-20:], axis=0)).mean()
        assert halves["still"] < 0.5 * halves["walking"]

    def test_fading_remembers_as_much_as_is_told(self) -> None:
        def correlation(memory: float) -> float:
            world = World(scenario(CERTAIN, radio__memory=memory, radio__diversity=1), batch=50, seed=0)
            before = np.log(world.truth().airtime_s[..., 0]).ravel()
            world.step(np.zeros((50, 14), np.int64))
            return float(np.corrcoef(before, np.log(world.truth().airtime_s[..., 0]).ravel())[0, 1])

        assert correlation(0.95) > correlation(0.0) + 0.1
        assert correlation(1.0) == pytest.approx(1)

    def test_more_diversity_is_a_steadier_link(self) -> None:
        def spread(taps: int) -> float:
            still = scenario(
                CERTAIN, **{**PLAIN, "radio__diversity": taps, "radio.fading": 1.0, "radio.most_bits": 50.0}
            )
            return float(np.std(np.log(World(still, batch=200, seed=0).truth().airtime_s[..., 0])))

        assert spread(16) < spread(1)

    def test_an_own_band_each_means_that_nobody_waits_for_the_air(self) -> None:
        apart = scenario(CERTAIN, **PLAIN, radio__shared=False, devices__deadline_ms=[1000.0, 1000.0])
        world = World(apart, seed=0)
        outcome = world.step(np.full((1, 14), 6))
        assert outcome.in_time.all()
        assert not world.observe().radio_backlog_s.any()


class TestServers:
    def test_a_failed_server_serves_nothing_and_forgets_what_waited(self) -> None:
        sure = {**PLAIN, "uncertainty.estimate_error": 0.0}
        failing = with_changes(load_scenario("failing-3x20"), {**sure, "servers.fails": [[1, 2, 4]], "slots": 8})
        world, options = World(failing, seed=0), 6
        to_second = np.full((1, 20), 1 + 1 * options + 5)
        in_time, waiting, shown = [], [], []
        for _ in range(6):
            waiting.append(world.observe().edge_backlog_s[0, 1])
            shown.append(bool(np.isinf(world.observe().edge_s[0, 1]).all()))
            in_time.append(int(world.step(to_second).in_time.sum()))
        assert [count > 0 for count in in_time] == [True, True, False, False, True, True]
        assert waiting[2] > 0
        assert waiting[3] == waiting[4] == 0
        # load is not known in this slot's terms here: the failure is seen a slot late
        assert shown == [False, False, False, True, True, False]

    def test_levels_and_foreign_load_slow_a_server_down_as_told(self) -> None:
        busy = scenario(servers__capacity=[1.0, 0.5], servers__foreign=[0.0, 0.5], servers__stay=0.0)
        world = World(busy, batch=50, seed=0)
        alone = busy.profile.options[0].edge_ms / 1e3
        slower = np.concatenate(
            [world.truth().edge_s[..., 0].ravel() / alone for _ in range(3) if world.step(np.zeros((50, 14), np.int64))]
        )
        assert 1.0 <= slower.min() < 1.1
        assert 3.0 < slower.max() <= 4.0

    def test_a_server_that_always_stays_as_it_is_does(self) -> None:
        world = World(scenario(servers__stay=1.0), batch=5, seed=0)
        before = world.truth().edge_s
        for _ in range(5):
            world.step(np.zeros((5, 14), np.int64))
        assert np.array_equal(before, world.truth().edge_s)


class TestAccounting:
    def test_energy_is_computing_and_sending_at_their_powers(self) -> None:
        powered = scenario(
            CERTAIN, **PLAIN, devices__deadline_ms=[500.0, 500.0], energy__compute_w=4.0, energy__transmit_w=1.5
        )
        seen = World(powered, seed=0).observe()
        local = World(powered, seed=0).step(np.zeros((1, 14), np.int64))
        np.testing.assert_allclose(local.energy_j, np.full((1, 14), (5 + 236) / 1e3 * 4.0))
        sent = World(powered, seed=0).step(np.full((1, 14), 3))
        assert sent.in_time.all()
        np.testing.assert_allclose(sent.energy_j, seen.device_s[..., 2] * 4.0 + seen.airtime_s[..., 0, 2] * 1.5)

    def test_a_device_that_cannot_be_in_time_does_not_begin(self) -> None:
        hurried = scenario(CERTAIN, **PLAIN, energy__compute_w=4.0, energy__transmit_w=1.0)
        world = World(hurried, seed=0)
        outcome = world.step(np.zeros((1, 14), np.int64))
        assert not outcome.in_time.any()
        assert outcome.energy_j is not None
        assert not outcome.energy_j.any()
        assert not world.observe().device_backlog_s.any()

    def test_an_evaluation_adds_up(self) -> None:
        short = scenario(slots=25, energy__compute_w=4.0, energy__transmit_w=1.0)
        made = evaluate(RandomPolicy(5), short, [1, 2], batch=3, timed_slots=2)
        for episode in made.episodes:
            assert episode.score == pytest.approx(episode.accuracy * episode.throughput)
            assert episode.throughput == pytest.approx(episode.success * episode.arrived)
            assert episode.score == pytest.approx(episode.scores.mean())
            assert episode.energy_j is not None
            assert episode.energy_j > 0
        row = made.row()
        assert row["score_mean"] == pytest.approx(np.mean([episode.score for episode in made.episodes]))
        assert row["score_sd"] == pytest.approx(np.std([episode.score for episode in made.episodes], ddof=1))
        # by hand, from the worlds themselves
        world, policy, worth = World(short, batch=3, seed=2), RandomPolicy(5), 0.0
        for _ in range(25):
            outcome = world.step(policy.decide(world.observe()))
            worth += float(np.where(outcome.finish_s <= world.scenario.slot_ms * 99, outcome.accuracy, 0).sum())
        assert made.episodes[1].score == pytest.approx(worth / (3 * 2.5))

    def test_every_policy_meets_the_same_tasks(self) -> None:
        short = scenario(slots=20)
        arrived = [
            evaluate(policy, short, [7], timed_slots=0).episodes[0].arrived for policy in (RandomPolicy(), AllLocal())
        ]
        assert arrived[0] == arrived[1]

    def test_no_seed_is_no_evaluation(self) -> None:
        with pytest.raises(SettingsError, match="0 seeds"):
            evaluate(AllLocal(), scenario(), [])


class Nearest:
    """Each task goes to where it would be done first if it were alone."""

    name = "nearest"

    def reset(self, batch: int) -> None:
        pass

    def decide(self, seen: Observation) -> Actions:
        return 1 + seen.alone_s().reshape(seen.batch, seen.devices, -1).argmin(axis=2)


@pytest.mark.parametrize("name", scenario_names())
def test_every_shipped_scenario_runs_and_offloading_pays(name: str) -> None:
    short = with_changes(load_scenario(name), {"slots": 140 if name.startswith("failing") else 10})
    policies = (Nearest(), RandomPolicy(), AllLocal())
    scores = {
        policy.name: evaluate(policy, short, [1], batch=1, timed_slots=0).episodes[0].score for policy in policies
    }
    assert max(scores["nearest"], scores["random"]) > 1.5 * scores["local"] > 0
