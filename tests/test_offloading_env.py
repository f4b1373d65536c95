"""The gymnasium environments: what gymnasium checks, masks, seeds, and many worlds against one."""

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from aecnn_deploy.errors import PolicyError, ScenarioError
from aecnn_deploy.offloading.evaluation import evaluate
from aecnn_deploy.offloading.mec.flat import CLIP, FlatFeatures
from aecnn_deploy.offloading.mec.observation import Actions, Observation
from aecnn_deploy.offloading.mec.world import World, settle
from aecnn_deploy.offloading.scenario_file import load_scenario, scenario_names, with_changes

gymnasium = pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env  # noqa: E402

from aecnn_deploy.offloading.mec.env import (  # noqa: E402
    OffloadingEnv,
    OffloadingVectorEnv,
    expected_arrivals,
)

ENV_ID = "aecnn/Offloading-v0"
SHORT = with_changes(load_scenario("paper-2x14"), {"slots": 6, "energy.compute_w": 4.0, "energy.transmit_w": 1.0})


class Anything:
    """The first choice of the mask of each device."""

    name = "anything"

    def reset(self, batch: int) -> None:
        pass

    def decide(self, seen: Observation) -> Actions:
        return (seen.feasible() * np.arange(seen.choices)).max(axis=2)


class TestOne:
    @pytest.mark.parametrize("name", scenario_names())
    def test_it_is_an_environment_as_gymnasium_wants_it(self, name: str) -> None:
        made = gymnasium.make(ENV_ID, scenario=name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(made.unwrapped)

    def test_its_id_can_be_made_without_an_import_before(self) -> None:
        code = (
            "import gymnasium\n"
            f"made = gymnasium.make('aecnn_deploy.offloading.mec.env:{ENV_ID}', scenario='2x7', seed=3)\n"
            "assert made.reset()[0].shape == made.observation_space.shape\n"
        )
        subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)

    def test_observations_stay_in_their_space_whatever_happens(self) -> None:
        wild = with_changes(
            load_scenario("failing-3x20"),
            {
                "radio.bandwidth_mhz": 0.5,
                "devices.speed": [0.01, 3],
                "servers.fails": [[0, 1, 4], [1, 2, 5]],
                "slots": 9,
            },
        )
        env = OffloadingEnv(wild, seed=0)
        rng = np.random.default_rng(0)
        vector, _ = env.reset()
        largest = 0.0
        for _ in range(9):
            assert env.observation_space.contains(vector)
            largest = max(largest, float(vector.max()))
            vector, *_ = env.step(rng.integers(0, 19, 20))
        assert largest == CLIP  # what is out of reach, or of a server that is down, is clipped

    def test_a_vector_is_laid_out_as_documented(self) -> None:
        world = World(SHORT, batch=3, seed=2)
        world.step(np.full((3, 14), 2))
        seen, features = world.observe(), FlatFeatures(SHORT)
        vectors = features.of(seen)
        assert vectors.shape == (3, features.size)
        assert vectors.dtype == np.float32
        n, s, v = 14, 2, 6
        sizes = (n, n, n, n, n * v, n * s * v, s, s, s * v)
        active, deadline, backlog, local, device, air, radio, edge, service = np.split(
            vectors, np.cumsum(sizes)[:-1], axis=1
        )
        assert np.array_equal(active, seen.active)
        np.testing.assert_allclose(deadline, np.where(seen.active, seen.deadline_s, 0) / 0.15, rtol=1e-6)
        np.testing.assert_allclose(backlog, seen.device_backlog_s / 0.15, rtol=1e-5)
        np.testing.assert_allclose(local, np.minimum(seen.local_s / 0.15, CLIP), rtol=1e-6)
        np.testing.assert_allclose(device.reshape(3, n, v), seen.device_s / 0.15, rtol=1e-6)
        np.testing.assert_allclose(air.reshape(3, n, s, v), np.minimum(seen.airtime_s / 0.15, CLIP), rtol=1e-6)
        np.testing.assert_allclose(radio, seen.radio_backlog_s / 0.15, rtol=1e-5)
        np.testing.assert_allclose(edge, seen.edge_backlog_s / 0.15, rtol=1e-5)
        np.testing.assert_allclose(service.reshape(3, s, v), seen.edge_s / 0.15, rtol=1e-6)
        assert (backlog > 0).any() or (radio > 0).any()

    def test_an_episode_is_the_evaluation_of_the_same_decisions(self) -> None:
        env, total, infos = OffloadingEnv(SHORT), 0.0, []
        env.reset(seed=11)
        truncated = False
        while not truncated:
            choices = env.action_masks().reshape(14, 13) * np.arange(13)
            _, reward, terminated, truncated, info = env.step(choices.max(axis=1))
            assert not terminated
            total += reward
            infos.append(info)
        assert len(infos) == SHORT.slots
        episode = evaluate(Anything(), SHORT, [11], batch=1, timed_slots=0).episodes[0]
        assert total * expected_arrivals(SHORT) / (SHORT.slots * 0.1) == pytest.approx(episode.score)
        assert sum(info["in_time"] for info in infos) / sum(info["arrived"] for info in infos) == pytest.approx(
            episode.success
        )
        assert sum(info["energy_j"] for info in infos) / sum(info["arrived"] for info in infos) == pytest.approx(
            episode.energy_j
        )
        assert [info["slot"] for info in infos] == [1, 2, 3, 4, 5, 6]
        assert expected_arrivals(SHORT) == pytest.approx(14 * 0.6)

    def test_seeds_fix_episodes_and_none_goes_on(self) -> None:
        env = OffloadingEnv(SHORT, seed=5)
        first = env.reset()[0]
        assert np.array_equal(first, env.reset(seed=5)[0])
        assert np.array_equal(first, FlatFeatures(SHORT).of(World(SHORT, seed=5).observe())[0])
        second = env.reset()[0]
        assert not np.array_equal(first, second)
        env.reset(seed=5)
        assert np.array_equal(second, env.reset()[0])
        assert not np.array_equal(OffloadingEnv(SHORT).reset()[0], OffloadingEnv(SHORT).reset()[0])

    def test_masks_allow_local_always_and_else_what_is_in_time_alone(self) -> None:
        env = OffloadingEnv(SHORT, seed=1)
        env.reset()
        seen = World(SHORT, seed=1).observe()
        masks = env.action_masks()
        assert masks.shape == (14 * 13,)
        assert np.array_equal(masks.reshape(14, 13), seen.feasible()[0])
        assert masks.reshape(14, 13)[:, 0].all()
        assert not masks.reshape(14, 13)[~seen.active[0], 1:].any()
        assert 0.1 < masks.mean() < 0.9

    @pytest.mark.parametrize("actions", [np.full(14, 13), np.full(13, 0), np.full(14, -1), np.full(14, 0.5)])
    def test_wrong_actions_are_refused(self, actions: Any) -> None:
        env = OffloadingEnv(SHORT, seed=1)
        env.reset()
        with pytest.raises(PolicyError, match="a decision"):
            env.step(actions)

    def test_before_reset_and_without_a_scenario_it_says_so(self) -> None:
        for made in (OffloadingEnv(SHORT), OffloadingVectorEnv(SHORT, 2)):
            with pytest.raises(gymnasium.error.ResetNeeded):
                made.step(made.action_space.sample())
            with pytest.raises(gymnasium.error.ResetNeeded):
                made.action_masks()
        with pytest.raises(ScenarioError, match="no scenario is called 'none'"):
            OffloadingEnv("none")


class TestMany:
    def test_one_of_many_is_the_single_one(self) -> None:
        one, many = OffloadingEnv(SHORT), OffloadingVectorEnv(SHORT, 1)
        rng = np.random.default_rng(0)
        vector, vectors = one.reset(seed=8)[0], many.reset(seed=8)[0]
        for _ in range(SHORT.slots):
            assert np.array_equal(vector, vectors[0])
            assert np.array_equal(one.action_masks(), many.action_masks()[0])
            action = rng.integers(0, 13, 14)
            vector, reward, _, truncated, info = one.step(action)
            vectors, rewards, _, truncations, infos = many.step(action[None])
            assert reward == rewards[0]
            assert truncated == truncations[0]
            assert {name: values[0] for name, values in infos.items()} == info

    def test_each_of_many_fares_as_it_would_alone(self) -> None:
        many, rng = OffloadingVectorEnv(SHORT, 5), np.random.default_rng(0)
        many.reset(seed=8)
        world = World(SHORT, batch=5, seed=8)
        for _ in range(4):
            actions = rng.integers(0, 13, (5, 14))
            _, rewards, *_ = many.step(actions)
            seen, truth = world.observe(), world.truth()
            for row in range(5):
                only = np.array([row])
                parts = {
                    name: getattr(seen, name)[only]
                    for name in seen.__dataclass_fields__
                    if np.shape(getattr(seen, name))[:1] == (5,)
                }
                alone = type(seen)(**{**{name: getattr(seen, name) for name in seen.__dataclass_fields__}, **parts})
                true = type(truth)(**{name: getattr(truth, name)[only] for name in truth.__dataclass_fields__})
                outcome, *_ = settle(alone, true, actions[only], SHORT)
                assert outcome.reward[0] / expected_arrivals(SHORT) == pytest.approx(rewards[row], abs=1e-12)
            world.step(actions)

    def test_it_resets_itself_in_the_step_after_the_last(self) -> None:
        many = gymnasium.make_vec(ENV_ID, num_envs=3, vectorization_mode="vector_entry_point", scenario=SHORT, seed=4)
        assert many.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.NEXT_STEP
        first, _ = many.reset()
        assert many.observation_space.contains(first)
        ends = []
        for _ in range(2 * (SHORT.slots + 1)):
            vectors, rewards, terminated, truncated, info = many.step(many.action_space.sample())
            assert not terminated.any()
            ends.append(bool(truncated.all()))
            assert truncated.all() == truncated.any()
            if info["slot"][0] == 0:
                assert not rewards.any()
                assert not np.array_equal(vectors, first)  # another episode, not the same again
                assert (vectors[:, 28:42] == 0).all()  # no device has a backlog
        assert ends == [*[False] * 5, True, False] * 2

    def test_seeds_fix_all_worlds_and_a_list_counts_as_one(self) -> None:
        many = OffloadingVectorEnv(SHORT, 2, seed=3)
        first = many.reset()[0]
        assert np.array_equal(first, many.reset(seed=3)[0])
        assert not np.array_equal(first[0], first[1])
        listed = many.reset(seed=[1, 2])[0]
        assert np.array_equal(listed, many.reset(seed=[1, 2])[0])
        assert not np.array_equal(listed, many.reset(seed=[2, 1])[0])


def test_maskable_ppo_takes_the_environment_as_it_is() -> None:
    sb3 = pytest.importorskip("sb3_contrib")
    tiny = with_changes(SHORT, {"devices.count": 3})
    model = sb3.MaskablePPO(
        "MlpPolicy", OffloadingEnv(tiny, seed=0), n_steps=16, batch_size=8, n_epochs=1, device="cpu"
    )
    model.learn(16)
    env = OffloadingEnv(tiny, seed=1)
    vector, _ = env.reset()
    actions, _ = model.predict(vector, action_masks=env.action_masks())
    masks = env.action_masks().reshape(3, 13)
    assert masks[np.arange(3), actions].all()
    env.step(actions)
