"""Rules that the graph policy is compared with: right where the answer is known, and as strong as they can be."""

from dataclasses import replace

import numpy as np
import pytest

from aecnn_deploy.errors import PolicyError, SettingsError
from aecnn_deploy.offloading.agent.critic import forecast
from aecnn_deploy.offloading.agent.learned import at_face_value
from aecnn_deploy.offloading.baselines.greedy import Greedy, GreedySettings
from aecnn_deploy.offloading.baselines.rules import AllLocal, AllOffloaded, Neurosurgeon, RandomPolicy, Selfish
from aecnn_deploy.offloading.baselines.tuning import Tuning, best_fixed, futures_greedy, mean_reward, tuned_greedy
from aecnn_deploy.offloading.bounds.policy import ExactPolicy
from aecnn_deploy.offloading.evaluation import evaluate
from aecnn_deploy.offloading.mec.observation import Observation, option_of, server_of
from aecnn_deploy.offloading.mec.world import World, certain_truth, settle
from aecnn_deploy.offloading.policy import Policy
from aecnn_deploy.offloading.scenario_file import load_scenario, with_changes
from tests.offloading_worlds import certain, small, uncertain

SHORT = Tuning(worlds=4, slots=10)


def slots_of(seed: int, count: int = 6, devices: int = 10) -> list[Observation]:
    """Observations of a run with something in its queues."""
    world = World(small(devices=devices), batch=3, seed=seed)
    found = []
    for _ in range(count):
        seen = world.observe()
        found.append(seen)
        world.step(np.full(seen.active.shape, 3))
    return found


def value(policy: Policy, seen: Observation) -> float:
    outcome, *_ = settle(seen, certain_truth(seen), policy.decide(seen), certain())
    return float(outcome.reward.sum())


class TestRules:
    def test_all_local_sends_nothing(self) -> None:
        assert all((AllLocal().decide(seen) == 0).all() for seen in slots_of(0))

    def test_random_draws_among_what_would_be_in_time_alone(self) -> None:
        for seen in slots_of(1):
            chosen = RandomPolicy(3).decide(seen)
            assert np.take_along_axis(seen.feasible(), chosen[..., None], axis=2).all()

    def test_random_begins_again_with_each_episode(self) -> None:
        seen, policy = slots_of(1)[0], RandomPolicy(3)
        first = policy.decide(seen)
        assert (policy.decide(seen) != first).any()
        policy.reset(3)
        assert (policy.decide(seen) == first).all()

    def test_one_option_goes_where_it_is_done_first(self) -> None:
        for seen in slots_of(2):
            chosen = AllOffloaded(2).decide(seen)
            server = server_of(chosen, seen.options)
            assert (option_of(chosen, seen.options)[seen.active] == 2).all()
            assert (server[seen.active] == seen.alone_s()[..., 2].argmin(axis=2)[seen.active]).all()

    def test_an_option_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(PolicyError, match="there are 4, counted from 0"):
            AllOffloaded(4).decide(slots_of(0)[0])

    def test_neurosurgeon_takes_the_least_latency_whatever_it_is_worth(self) -> None:
        for seen in slots_of(3):
            chosen = Neurosurgeon().decide(seen)
            local = seen.device_backlog_s + seen.local_s
            times = np.concatenate([local[..., None], seen.alone_s().reshape(*local.shape, -1)], axis=2)
            took = np.take_along_axis(times, chosen[..., None], axis=2)[..., 0]
            assert (took[seen.active] == times.min(axis=2)[seen.active]).all()

    def test_the_selfish_take_the_most_accurate_that_is_in_time_alone(self) -> None:
        for seen in slots_of(4):
            worth = np.where(seen.feasible(), seen.values(), 0.0)
            chosen = np.take_along_axis(worth, Selfish().decide(seen)[..., None], axis=2)[..., 0]
            assert (chosen[seen.active] == worth.max(axis=2)[seen.active]).all()


class TestGreedy:
    @pytest.mark.parametrize("devices", [4, 10, 20])
    def test_no_task_that_it_admits_is_late_by_what_it_sees(self, devices: int) -> None:
        for seen in slots_of(5, devices=devices):
            chosen = Greedy().decide(seen)
            made = forecast(seen, chosen[:, None], at_face_value(seen.devices, seen.servers))
            sent = made.offloaded[:, 0]
            assert sent.any()
            assert (made.finish_s[:, 0, 0] <= seen.deadline_s)[sent].all()

    def test_it_is_near_the_optimum_of_the_slot_and_never_above(self) -> None:
        greedy = exact = 0.0
        for seen in slots_of(6):
            mine, best = value(Greedy(), seen), value(ExactPolicy(), seen)
            assert mine <= best + 1e-9
            greedy, exact = greedy + mine, exact + best
        assert greedy > 0.98 * exact

    def test_upgrades_only_raise_the_value(self) -> None:
        for seen in slots_of(7):
            admitted = value(Greedy(GreedySettings(rounds=0)), seen)
            assert value(Greedy(GreedySettings(rounds=3)), seen) >= admitted - 1e-9
            assert value(Greedy(), seen) >= value(Greedy(GreedySettings(rounds=3)), seen) - 1e-9

    def test_it_is_ahead_of_every_other_rule_where_all_is_certain(self) -> None:
        scenario = with_changes(certain(), {"slots": 30})
        others = (AllLocal(), RandomPolicy(0), Neurosurgeon(), Selfish(), *(AllOffloaded(v) for v in range(4)))
        scores = {
            policy.name: [
                episode.score for episode in evaluate(policy, scenario, [0, 1], batch=3, timed_slots=0).episodes
            ]
            for policy in (Greedy(), *others)
        }
        for other in others:
            assert all(mine > theirs for mine, theirs in zip(scores["greedy"], scores[other.name], strict=True))

    def test_settings_that_mean_nothing_are_refused(self) -> None:
        with pytest.raises(SettingsError, match="knows no order 'size'"):
            GreedySettings(order="size")
        with pytest.raises(SettingsError, match="expected a positive margin"):
            GreedySettings(margin=0)


class TestTuning:
    def test_the_best_option_is_the_best_on_the_seeds_given(self) -> None:
        scenario = uncertain()
        best = best_fixed(scenario, [1], tuning=SHORT)
        rewards = [mean_reward(AllOffloaded(option), scenario, [1], SHORT) for option in range(4)]
        assert best.option == int(np.argmax(rewards))

    def test_a_tuned_greedy_is_no_worse_on_its_seeds_and_better_where_estimates_are_off(self) -> None:
        scenario = uncertain()
        tuned = tuned_greedy(scenario, [1], tuning=SHORT)
        plain = mean_reward(Greedy(), scenario, [1], SHORT)
        assert mean_reward(tuned, scenario, [1], SHORT) > 1.02 * plain

    def test_greedy_by_futures_learns_what_estimates_are_off_by(self) -> None:
        scenario = uncertain()
        by_futures = futures_greedy(scenario, [1], slots=10)
        assert mean_reward(by_futures, scenario, [2], SHORT) > mean_reward(Greedy(), scenario, [2], SHORT)

    def test_no_seed_is_refused(self) -> None:
        for tune in (best_fixed, tuned_greedy, futures_greedy):
            with pytest.raises(SettingsError, match="no"):
                tune(uncertain(), [])


class TestOtherTables:
    @pytest.mark.parametrize("method", ["early-exit", "bottlenet++"])
    def test_another_methods_profile_meets_the_same_tasks_and_channels(self, method: str) -> None:
        scenario = load_scenario("paper-2x14")
        ours, theirs = (
            World(one, batch=2, seed=4) for one in (scenario, with_changes(scenario, {"profile.method": method}))
        )
        for _ in range(5):
            mine, other = ours.observe(), theirs.observe()
            assert (mine.active == other.active).all()
            assert (mine.deadline_s == other.deadline_s).all()
            # seconds of a byte on the air
            per_byte = [
                replace(seen).airtime_s[..., -1] / world._payload[:, :, None, -1]
                for seen, world in ((mine, ours), (other, theirs))
            ]
            assert per_byte[0] == pytest.approx(per_byte[1])
            ours.step(np.zeros_like(mine.active, np.int64))
            theirs.step(np.zeros_like(mine.active, np.int64))
