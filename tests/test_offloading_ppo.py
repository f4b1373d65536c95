"""The baseline MaskablePPO: training into a folder, its policy file read by numpy alone, what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aecnn_deploy.errors import PolicyError, SettingsError
from aecnn_deploy.offloading.baselines.ppo import LAYOUT, POLICY, PpoSettings, load_ppo, train_ppo, write_ppo
from aecnn_deploy.offloading.evaluation import evaluate
from aecnn_deploy.offloading.mec.observation import Actions, Observation
from aecnn_deploy.offloading.mec.world import World
from aecnn_deploy.offloading.registry import make_policy
from tests.offloading_worlds import small

pytest.importorskip("sb3_contrib")

import torch

from aecnn_deploy.offloading.baselines.ppo_training import Worlds, _Run

TINY = small(devices=4, servers=1, slots=40)
STEPS = 8 * 25 * 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training's folder."""
    out = tmp_path_factory.mktemp("ppo") / "run"
    train_ppo(TINY, seed=0, steps=STEPS, out=out)
    return out


class MaskedRandom:
    """Any choice that the masks allow."""

    name = "masked random"

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def reset(self, batch: int) -> None:
        pass

    def decide(self, seen: Observation) -> Actions:
        feasible = seen.feasible()
        return np.where(feasible, self._rng.random(feasible.shape), -1.0).argmax(axis=2)


def changed(trained: Path, path: Path, **changes: object) -> Path:
    """The policy file with other arrays, or another text where ``about`` is a dict of changes; None: taken away."""
    with np.load(trained / POLICY, allow_pickle=False) as archive:
        arrays: dict[str, object] = {name: archive[name] for name in archive.files}
    for name, value in changes.items():
        key = name.replace("_", ".")
        if key == "about" and isinstance(value, dict):
            value = np.array(json.dumps(json.loads(str(arrays["about"])) | value))
        arrays[key] = value
    with path.open("wb") as file:
        np.savez(file, **{name: np.asarray(value) for name, value in arrays.items() if value is not None})
    return path


class TestTraining:
    def test_it_learns_more_than_the_masks_give(self, trained: Path) -> None:
        scores = [
            evaluate(policy, TINY, (0, 1, 2), timed_slots=1).row()["score_mean"]
            for policy in (MaskedRandom(), load_ppo(trained / POLICY))
        ]
        assert scores[0] * 1.05 < scores[1]

    def test_its_folder_says_what_was_trained_and_how_it_went(self, trained: Path) -> None:
        assert {file.name for file in trained.iterdir()} == {"settings.json", "curves.jsonl", POLICY}
        document = json.loads((trained / "settings.json").read_text())
        assert document["method"] == "ppo"
        assert document["scenario"]["devices"]["count"] == 4
        assert document["settings"] == PpoSettings(steps=STEPS).document()
        points = [json.loads(line) for line in (trained / "curves.jsonl").read_text().splitlines()]
        assert [point["slot"] for point in points] == list(range(25, 301, 25))
        assert set(points[0]) == {
            "slot", "loss", "train_score", "eval_score", "eval_success", "seconds", "seed"
        }  # fmt: skip
        assert points[0]["train_score"] < points[-1]["train_score"]
        assert all(0 < point["eval_score"] < point["eval_success"] <= 1 for point in points)

    def test_a_seed_trains_the_same_again_and_another_does_not(self, tmp_path: Path) -> None:
        policies = []
        for number, seed in enumerate((3, 3, 4)):
            path = train_ppo(TINY, seed=seed, steps=50, out=tmp_path / str(number), worlds=2)
            policies.append(load_ppo(path).scores(World(TINY, batch=2, seed=0).observe()))
        assert np.array_equal(policies[0], policies[1])
        assert not np.array_equal(policies[0], policies[2])

    def test_steps_are_slots_over_all_worlds_in_whole_rollouts(self, tmp_path: Path) -> None:
        played: list[int] = []
        path = train_ppo(TINY, seed=0, steps=101, out=tmp_path / "run", worlds=4, on_step=played.append)
        assert played == list(range(4, 201, 4))
        assert load_ppo(path).facts.steps == 200

    def test_a_folder_with_something_in_it_is_left_alone(self, trained: Path) -> None:
        before = (trained / POLICY).read_bytes()
        with pytest.raises(PolicyError, match="not empty"):
            train_ppo(TINY, seed=0, steps=10, out=trained)
        assert (trained / POLICY).read_bytes() == before

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"worlds": 0}, "worlds is 0"),
            ({"gamma": 1.5}, "gamma is 1.5"),
            ({"learning_rate": 0.0}, "learning_rate is 0.0"),
            ({"ent_coef": -1.0}, "ent_coef is -1.0"),
            ({"seed": -1}, "seed is -1"),
            ({"worlds": 3, "minibatches": 4}, "equal minibatches"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, changes: dict[str, float], said: str) -> None:
        with pytest.raises(SettingsError, match=said):
            PpoSettings(**changes)  # type: ignore[arg-type]


class TestWorlds:
    def test_an_episode_ends_in_all_worlds_with_what_would_have_come(self) -> None:
        worlds = Worlds(TINY, worlds=3, episode=5, seed=1)
        alike = World(TINY, batch=3, seed=1)
        alike.reset()
        vectors = worlds.reset()
        assert np.array_equal(vectors, worlds.features.of(alike.observe()))
        for slot in range(1, 6):
            actions = np.full((3, 4), 1 + slot % 4)
            vectors, rewards, dones, infos = worlds.step(actions)
            outcome = alike.step(actions)
            np.testing.assert_allclose(rewards * 4 * 0.6, outcome.reward, rtol=1e-5)
            assert dones.all() == dones.any() == (slot == 5)
        last = np.stack([info["terminal_observation"] for info in infos])
        assert np.array_equal(last, worlds.features.of(alike.observe()))
        assert all(info["TimeLimit.truncated"] for info in infos)
        alike.reset()
        assert np.array_equal(vectors, worlds.features.of(alike.observe()))

    def test_masks_come_for_each_world_as_the_trainer_asks(self) -> None:
        worlds = Worlds(TINY, worlds=3, episode=5, seed=1)
        worlds.reset()
        assert worlds.has_attr("action_masks")
        masks = np.stack(worlds.env_method("action_masks"))
        assert np.array_equal(masks.reshape(3, 4, 5), worlds.world.observe().feasible())


class TestPolicy:
    def test_numpy_decides_as_the_network_that_was_trained(self, tmp_path: Path) -> None:
        settings = PpoSettings(steps=100, worlds=4)
        run = _Run(TINY, settings, tmp_path)
        run.model.learn(100, log_interval=None)
        policy = run.policy()
        seen = World(TINY, batch=64, seed=5).observe()
        features = run.worlds.features
        chosen, _ = run.model.predict(features.of(seen), action_masks=features.masks(seen), deterministic=True)
        assert np.array_equal(policy.decide(seen), chosen)
        with torch.no_grad():
            latent = run.model.policy.mlp_extractor.forward_actor(torch.from_numpy(features.of(seen)))
            logits = run.model.policy.action_net(latent).numpy()
        np.testing.assert_allclose(policy.scores(seen).reshape(64, -1), logits, atol=1e-5)

    def test_a_file_decides_as_what_was_written(self, tmp_path: Path) -> None:
        policy = _Run(TINY, PpoSettings(worlds=2), tmp_path).policy()
        write_ppo(policy, tmp_path / POLICY)
        assert [file.name for file in tmp_path.iterdir()] == [POLICY]
        loaded = load_ppo(tmp_path / POLICY)
        seen = World(TINY, batch=64, seed=7).observe()
        assert loaded.facts == policy.facts
        assert np.array_equal(loaded.scores(seen), policy.scores(seen))
        assert np.array_equal(loaded.decide(seen), policy.decide(seen))

    def test_it_never_chooses_what_cannot_be_in_time(self, trained: Path) -> None:
        policy = load_ppo(trained / POLICY)
        world = World(TINY, batch=32, seed=11)
        forbidden = 0
        for _ in range(20):
            seen = world.observe()
            actions = policy.decide(seen)
            feasible = seen.feasible()
            assert np.take_along_axis(feasible, actions[..., None], axis=2).all()
            unmasked = policy.scores(seen).argmax(axis=2)
            forbidden += int((~np.take_along_axis(feasible, unmasked[..., None], axis=2)[..., 0]).sum())
            world.step(actions)
        assert forbidden  # the masks had something to forbid

    def test_it_is_made_from_its_folder_or_file_without_torch(self, trained: Path) -> None:
        for path in (trained, trained / POLICY):
            assert make_policy(str(path), TINY).name == "ppo"
        code = (
            "import sys; from pathlib import Path\n"
            "from aecnn_deploy.offloading.baselines.ppo import load_ppo\n"
            "load_ppo(Path(sys.argv[1]))\n"
            "assert not {'torch', 'gymnasium', 'stable_baselines3'} & set(sys.modules)\n"
        )
        subprocess.run([sys.executable, "-c", code, trained / POLICY], check=True, timeout=60)


class TestRefusals:
    @pytest.mark.parametrize("sizes", [{"devices": 5, "servers": 1}, {"devices": 4, "servers": 2}])
    def test_other_sizes_are_refused_with_both_named(self, trained: Path, sizes: dict[str, int]) -> None:
        other = small(**sizes)
        said = f"trained for 4 devices, 1 servers .* got {sizes['devices']} devices, {sizes['servers']} servers"
        with pytest.raises(PolicyError, match=said):
            make_policy(str(trained), other)
        with pytest.raises(PolicyError, match=said):
            load_ppo(trained / POLICY).decide(World(other).observe())

    def test_a_file_that_is_not_there_or_cut_short_is_refused(self, trained: Path, tmp_path: Path) -> None:
        with pytest.raises(PolicyError, match="cannot read"):
            load_ppo(tmp_path / "none.npz")
        content = (trained / POLICY).read_bytes()
        for number, damaged in enumerate((b"", b"PK", content[: len(content) // 2], b"\0" * 100)):
            path = tmp_path / f"{number}.npz"
            path.write_bytes(damaged)
            with pytest.raises(PolicyError, match="no ppo policy"):
                load_ppo(path)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"about": None}, "no ppo policy"),
            ({"about": {"layout": LAYOUT + 1}}, f"layout {LAYOUT + 1}"),
            ({"about": {"format": 2}}, "format 2"),
            ({"about": {"devices": "four"}}, "no ppo policy"),
            ({"about": {"devices": 0}}, "must be positive"),
            ({"about": {"layers": 10**9}}, "1000000000 layers"),
            ({"about": {"layers": 2}}, "not those of 2 layers"),
            ({"about": {"devices": 3}}, "layer 0"),
            ({"1_bias": None}, "not those of 3 layers"),
            ({"1_bias": np.zeros(3, np.float32)}, "layer 1"),
            ({"2_bias": np.full(20, np.nan, np.float32)}, "layer 2"),
            ({"2_bias": np.zeros(20, np.int64)}, "layer 2"),
            ({"2_weight": np.zeros((64, 19), np.float32), "2_bias": np.zeros(19, np.float32)}, "19 scores"),
            ({"1_bias": np.array([{}] * 64, object)}, "no ppo policy"),  # a pickle is never unpacked
        ],
    )
    def test_a_file_that_contradicts_itself_is_refused(
        self, trained: Path, tmp_path: Path, changes: dict[str, object], said: str
    ) -> None:
        path = changed(trained, tmp_path / "changed.npz", **changes)
        with pytest.raises(PolicyError, match=said):
            load_ppo(path)
