"""Bounds against what can be counted out: every decision of a small slot, every play of a short run."""

import copy
import itertools
import time
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.bounds import (
    KINDS,
    ExactPolicy,
    bound_document,
    clairvoyant_bound,
    exact_slot,
    kind_by_size,
    labels,
    lp_bound,
    per_slot_bound,
)
from aecnn_deploy.offloading.bounds.relaxation import relaxed, slot_alternatives
from aecnn_deploy.offloading.bounds.slot import slot_values
from aecnn_deploy.offloading.evaluation import evaluate
from aecnn_deploy.offloading.mec.observation import Observation
from aecnn_deploy.offloading.mec.profile import Option, Profile
from aecnn_deploy.offloading.mec.scenario import Devices, Radio, Scenario, Servers, Uncertainty
from aecnn_deploy.offloading.mec.world import World

PROFILE = Profile(
    name="two options",
    source="made up",
    local_accuracy=0.95,
    local_ms=150,
    options=(
        Option(name="large", accuracy=0.94, payload_bytes=90e3, device_ms=8, edge_ms=14),
        Option(name="small", accuracy=0.85, payload_bytes=12e3, device_ms=3, edge_ms=9),
    ),
)
UNSURE = Uncertainty(estimate_error=0.2, device_jitter=0.3, edge_jitter=0.3, known_load=False)


def random_slot(seed: int, size: tuple[int, int, int] | None = None) -> Observation:
    """One crowded slot in whole milliseconds, so that there are ties; ``size``: devices, servers, options."""
    rng = np.random.default_rng(seed)
    devices, servers, options = size or (int(rng.integers(1, 6)), int(rng.integers(1, 4)), int(rng.integers(1, 3)))
    if servers == 3 and options == 2:
        devices = min(devices, 4)

    def seconds(low: int, high: int, *shape: int) -> np.ndarray:
        return rng.integers(low, high, (1, *shape)) / 1e3

    airtime = seconds(0, 35, devices, servers, options)
    airtime[rng.random(airtime.shape) < 0.1] = np.inf
    edge = seconds(5, 30, servers, options)
    edge[:, rng.random(servers) < 0.15] = np.inf
    return Observation(
        active=rng.random((1, devices)) < 0.9,
        deadline_s=seconds(20, 75, devices),
        device_backlog_s=seconds(0, 10, devices) * rng.integers(0, 2),
        local_s=seconds(30, 400, devices),
        device_s=seconds(0, 12, devices, options),
        airtime_s=airtime,
        edge_s=edge,
        radio_backlog_s=seconds(0, 20, servers) * rng.integers(0, 2),
        edge_backlog_s=seconds(0, 30, servers) * rng.integers(0, 2),
        accuracy=rng.integers(50, 97, options) / 100,
        local_accuracy=float(rng.choice([0.6, 0.9, 0.96])),
        hop_s=0.002,
        slot_s=0.1,
        shared_radio=bool(rng.random() < 0.6),
    )


def counted_out(seen: Observation) -> float:
    """The best value of all decisions, each settled by the simulator."""
    decisions = np.array(list(itertools.product(range(seen.choices), repeat=seen.devices)))
    return float(slot_values(seen, decisions).max())


def scenario(slots: int = 3, *, count: int = 2, servers: int = 1, shared: bool = True, **fields: object) -> Scenario:
    """Few slow devices on a slow radio with late deadlines: queues last from slot to slot."""
    return Scenario(
        name="small",
        profile=PROFILE,
        devices=Devices(count=count, speed=(0.8, 1.5), arrival=(0.9, 1.0), deadline_ms=(40, 260)),
        servers=Servers(count=servers, capacity=(1.0, 0.3), stay=0.5, fails=fields.pop("fails", ())),  # type: ignore[arg-type]
        radio=Radio(bandwidth_mhz=1.4, shared=shared, area_m=80.0),
        slots=slots,
        **fields,  # type: ignore[arg-type]
    )


def best_of_all_plays(world: World, slots: int, scores: list[float]) -> float:
    """The highest sum of rewards of any sequence of decisions; ``scores`` gets the highest reward of each slot."""
    if world.slot == slots:
        return 0.0
    best, at = 0.0, world.slot
    for decision in itertools.product(range(world.choices), repeat=world.scenario.devices.count):
        branch = copy.deepcopy(world)
        reward = float(branch.step(np.array([decision])).reward[0])
        scores[at] = max(scores[at], reward)
        best = max(best, reward + best_of_all_plays(branch, slots, scores))
    return best


class TestASlot:
    def test_the_exact_optimum_is_the_best_of_all_decisions(self) -> None:
        lost_someone = 0
        for seed in range(150):
            seen = random_slot(seed)
            found, best = exact_slot(seen), counted_out(seen)
            assert found.proven
            assert found.value == found.bound == pytest.approx(best, abs=1e-9), seed
            assert slot_values(seen, found.actions[None])[0] == found.value
            alone = np.where(seen.feasible(), seen.values(), 0.0).max(axis=2).sum()
            lost_someone += best < alone - 0.5
        assert lost_someone > 15  # crowded slots were among them

    @pytest.mark.parametrize("size", [(7, 1, 2), (6, 1, 3), (5, 2, 2)])
    def test_dropping_labels_that_others_cover_loses_nothing(
        self, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # small slots have few labels: here they are sifted after every choice
        monkeypatch.setattr(labels, "_GROWTH", 0.0)
        monkeypatch.setattr(labels, "_SPARED", 0)
        for seed in range(60):
            seen = random_slot(seed, size)
            assert exact_slot(seen).value == pytest.approx(counted_out(seen), abs=1e-9), seed

    def test_a_linear_programme_is_never_below_the_optimum_and_whole_tasks_lie_between(self) -> None:
        apart = 0
        for seed in range(60):
            seen = random_slot(seed)
            best = exact_slot(seen).value
            whole = relaxed(slot_alternatives(seen), whole=True, time_limit_s=10)
            bound = lp_bound(seen)
            assert bound >= whole.bound - 1e-9
            assert whole.bound >= best - 1e-9, seed
            apart += bound > best + 1e-3
        assert 0 < apart < 50  # it is a relaxation, and not a useless one

    def test_queues_at_radio_and_server_only_hurt(self) -> None:
        for seed in range(100):
            seen = random_slot(seed)
            none = np.zeros_like(seen.radio_backlog_s)
            emptied = replace(seen, radio_backlog_s=none, edge_backlog_s=none)
            assert exact_slot(emptied).value >= exact_slot(seen).value

    def test_a_busy_device_may_help_the_others(self) -> None:
        # why the bound of a slot with empty queues must not assume the order of service: device 1 sends for long
        seen = Observation(
            active=np.ones((1, 2), bool),
            deadline_s=np.array([[0.014, 0.100]]),
            device_backlog_s=np.array([[0.0, 0.007]]),
            local_s=np.full((1, 2), 1.0),
            device_s=np.array([[[0.010], [0.005]]]),
            airtime_s=np.array([[[[0.001]], [[0.020]]]]),
            edge_s=np.array([[[0.001]]]),
            radio_backlog_s=np.zeros((1, 1)),
            edge_backlog_s=np.zeros((1, 1)),
            accuracy=np.ones(1),
            local_accuracy=1.0,
            hop_s=0.0,
            slot_s=0.1,
            shared_radio=True,
        )
        idle = replace(seen, device_backlog_s=np.zeros((1, 2)))
        assert exact_slot(seen).value == 2
        assert exact_slot(idle).value == 1
        assert lp_bound(idle) == pytest.approx(2, abs=1e-6)

    def test_devices_ready_at_once_are_served_by_number(self) -> None:
        # device 0 sends first and makes device 1 late, though both would be in time the other way round
        seen = replace(
            random_slot(0),
            active=np.ones((1, 2), bool),
            deadline_s=np.array([[0.100, 0.020]]),
            device_backlog_s=np.zeros((1, 2)),
            local_s=np.full((1, 2), 1.0),
            device_s=np.full((1, 2, 1), 0.005),
            airtime_s=np.array([[[[0.020]], [[0.005]]]]),
            edge_s=np.full((1, 1, 1), 0.001),
            radio_backlog_s=np.zeros((1, 1)),
            edge_backlog_s=np.zeros((1, 1)),
            accuracy=np.array([0.9]),
            shared_radio=True,
        )
        assert exact_slot(seen).value == 0.9
        assert exact_slot(replace(seen, shared_radio=False)).value == 1.8

    def test_an_empty_slot_is_worth_nothing_and_proven(self) -> None:
        seen = random_slot(1)
        found = exact_slot(replace(seen, active=np.zeros_like(seen.active)))
        assert (found.value, found.bound, found.proven, found.gap) == (0.0, 0.0, True, 0.0)
        assert not found.actions.any()
        assert lp_bound(replace(seen, active=np.zeros_like(seen.active))) == 0.0

    def test_beyond_a_limit_there_is_a_decision_and_a_bound(self) -> None:
        unproven = 0
        for seed in range(60):
            seen = random_slot(seed)
            best = exact_slot(seen).value
            hurried = exact_slot(seen, most_labels=1)
            assert hurried.value <= best + 1e-9 <= hurried.bound + 2e-9
            assert hurried.gap == hurried.bound - hurried.value
            assert slot_values(seen, hurried.actions[None])[0] == hurried.value
            assert hurried.proven == (hurried.gap <= 1e-9 * seen.devices)
            unproven += not hurried.proven
        assert unproven > 5

    def test_the_time_limit_is_kept(self) -> None:
        crowd = scenario(count=40, servers=3, shared=False)
        crowd = msgspec.structs.replace(
            crowd, radio=Radio(bandwidth_mhz=20.0), devices=Devices(count=40, arrival=(1, 1))
        )
        seen = World(crowd, seed=1).observe()
        start = time.perf_counter()
        found = exact_slot(seen, time_limit_s=0.2, bound_by_lp=False)
        assert time.perf_counter() - start < 1.5
        assert not found.proven
        assert 0 < found.value < found.bound

    def test_more_devices_than_sets_can_hold_are_bounded_by_the_linear_programme(self) -> None:
        crowd = msgspec.structs.replace(scenario(), devices=Devices(count=30, arrival=(1, 1)))
        seen = World(crowd, seed=1).observe()
        found = exact_slot(seen, time_limit_s=0.3)
        alone = np.where(seen.feasible(), seen.values(), 0.0).max(axis=2).sum()
        assert 0 < found.value <= found.bound < alone - 1

    def test_several_worlds_at_once_are_refused(self) -> None:
        seen = World(scenario(), batch=2, seed=0).observe()
        with pytest.raises(SettingsError, match="2 worlds"):
            exact_slot(seen)

    def test_a_limit_of_no_time_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="time limit"):
            exact_slot(random_slot(0), time_limit_s=0)
        with pytest.raises(SettingsError, match="time limit"):
            ExactPolicy(time_limit_s=-1)


class TestARun:
    @pytest.mark.parametrize(
        "small",
        [
            scenario(),
            scenario(shared=False),
            scenario(uncertainty=UNSURE),
            scenario(fails=((0, 1, 2),), slot_ms=50.0),
            scenario(slots=2, servers=2, uncertainty=UNSURE),
        ],
        ids=["shared", "own-channels", "unsure", "failing", "two-servers"],
    )
    def test_no_play_exceeds_the_bounds(self, small: Scenario) -> None:
        gap = 0.0
        for seed in range(2):
            per_slot = [0.0] * small.slots
            best = best_of_all_plays(World(small, seed=seed), small.slots, per_slot)
            seconds = small.slots * small.slot_ms / 1e3
            bound = clairvoyant_bound(small, seed, time_limit_s=10)
            apart = per_slot_bound(small, seed)
            assert bound.proven
            assert bound.score >= best / seconds - 1e-9
            assert bound.lp_score >= bound.score - 1e-9
            assert apart.score >= bound.score - 1e-6
            assert (apart.scores >= np.array(per_slot) * small.slots / seconds - 1e-9).all()
            assert apart.score <= per_slot_bound(small, seed, whole=False).score + 1e-9
            gap += bound.score - best / seconds
        assert gap < 2 * 10  # of about 20 tasks a second each

    def test_the_exact_policy_is_within_the_bounds_of_the_same_worlds(self) -> None:
        small = scenario(slots=8, count=5, servers=2, uncertainty=UNSURE)
        policy = ExactPolicy()
        episode = evaluate(policy, small, [3], batch=2, timed_slots=0).episodes[0]
        assert (policy.slots, policy.proven, policy.gap, policy.proven_share) == (16, 16, 0.0, 1.0)
        bound = per_slot_bound(small, 3, batch=2)
        assert (bound.scores >= episode.scores - 1e-9).all()
        together = clairvoyant_bound(small, 3, batch=2, time_limit_s=2)
        assert episode.score <= together.score <= bound.score + 1e-6
        assert (together.worlds, together.slots) == (2, 8)

    def test_looking_at_one_slot_only_can_be_beaten(self) -> None:
        # "exact per slot" is no bound of a run: a later slot pays for what an earlier one takes
        small = scenario()
        best = best_of_all_plays(World(small, seed=0), 3, [0.0] * 3)
        played = evaluate(ExactPolicy(), small, [0], batch=1, timed_slots=0).episodes[0].score * 0.3
        assert played < best - 0.05

    def test_a_server_that_fails_begins_anew_with_an_empty_queue(self) -> None:
        # the simulator forgets the queue of a failed server while its tasks counted as done: two lives, two machines
        late = Devices(count=6, arrival=(1, 1), deadline_ms=(320, 320), speed=(3.0, 3.0))
        slow = msgspec.structs.replace(
            PROFILE, local_ms=5000, options=(msgspec.structs.replace(PROFILE.options[1], edge_ms=100),)
        )
        failing = Scenario(
            name="failing",
            profile=slow,
            devices=late,
            servers=Servers(count=1, fails=((0, 1, 2),)),
            radio=Radio(area_m=10.0),
            slot_ms=50.0,
            slots=3,
        )
        lucky = World(failing, seed=0)
        reward = 0.0
        for slot in range(3):
            actions = np.zeros((1, 6), np.int64)
            actions[0, :3] = 0 if slot == 1 else 1
            reward += float(lucky.step(actions).reward[0])
        assert reward == pytest.approx(6 * 0.85)  # 600 ms of work, done from 0 to 420 ms
        bound = clairvoyant_bound(failing, 0, time_limit_s=5)
        assert bound.score >= reward / 0.15 - 1e-9

    def test_slots_that_no_episode_has_are_refused(self) -> None:
        for slots in (0, 4):
            with pytest.raises(SettingsError, match="1 to 3"):
                clairvoyant_bound(scenario(), 0, slots=slots)
        with pytest.raises(SettingsError, match="0 worlds"):
            per_slot_bound(scenario(), 0, batch=0)


class TestTheDocument:
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_kind_has_the_same_keys(self, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
        small = scenario(slots=6, count=3)
        document = bound_document(small, [1, 2], kind=kind, slots=4, time_limit_s=2)
        assert document["kind"] == kind
        assert document["holds"] == (kind != "exact per slot")
        assert (document["slots"], document["seeds"]) == (4, [1, 2])
        scores = document["scores"]
        assert isinstance(scores, list)
        assert document["score_mean"] == pytest.approx(np.mean(scores))
        assert document["score_sd"] == pytest.approx(np.std(scores, ddof=1))
        assert 0 <= float(str(document["proven_share"])) <= 1
        assert msgspec.json.decode(msgspec.json.encode(document)) == document
        assert capfd.readouterr().out == ""

    def test_the_tighter_the_kind_the_lower_the_score(self) -> None:
        small = scenario(slots=5, count=4, servers=2)
        kinds = ("exact per slot", "clairvoyant", "per-slot, empty queues", "lp")
        scores = [float(str(bound_document(small, [0], kind=kind)["score_mean"])) for kind in kinds]
        assert scores == pytest.approx(sorted(scores), abs=1e-6)

    def test_the_kind_is_chosen_by_size(self) -> None:
        many = Devices(count=400)
        assert kind_by_size(scenario(slots=50)) == "clairvoyant"
        assert kind_by_size(scenario(slots=5000)) == "per-slot, empty queues"
        assert kind_by_size(msgspec.structs.replace(scenario(slots=50), devices=many)) == "lp"
        assert bound_document(scenario(), [0])["kind"] == "clairvoyant"

    def test_an_unknown_kind_and_no_seed_are_refused(self) -> None:
        with pytest.raises(SettingsError, match="there are clairvoyant"):
            bound_document(scenario(), [0], kind="oracle")
        with pytest.raises(SettingsError, match="no seed"):
            bound_document(scenario(), [])
