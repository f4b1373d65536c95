"""The graph policy: features, candidates, critics, search, training that goes on, one file."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from aecnn_deploy.errors import PolicyError, SettingsError
from aecnn_deploy.offloading.agent.candidates import groups_of, joined_changes, order_preserving, single_changes
from aecnn_deploy.offloading.agent.critic import ModelCritic, Prices
from aecnn_deploy.offloading.agent.features import graph_of
from aecnn_deploy.offloading.agent.learned import TASK_FEATURES, ChanceNetwork, LearnedCritic
from aecnn_deploy.offloading.agent.policy import METADATA_KEY, GraphPolicy, load_policy, read_policy
from aecnn_deploy.offloading.agent.residuals import QUANTILES, Experience, Residuals
from aecnn_deploy.offloading.agent.run import CHECKPOINT, CURVES, POLICY, train_policy
from aecnn_deploy.offloading.agent.search import SearchSettings, decide
from aecnn_deploy.offloading.agent.settings import TrainSettings
from aecnn_deploy.offloading.agent.trainer import Trainer
from aecnn_deploy.offloading.evaluation import evaluate
from aecnn_deploy.offloading.mec.observation import Observation
from aecnn_deploy.offloading.mec.world import World, certain_truth, settle
from tests.offloading_worlds import certain, small, uncertain

LIGHT = SearchSettings(moves=2, changes=12, steps=1, anchors=True)
QUICK = TrainSettings(slots=30, episode=10, worlds=4, curve_slots=4, price_slots=3, samples=4, width=16, search=LIGHT)


def random_residuals(seed: int = 0) -> Residuals:
    rng = np.random.default_rng(seed)
    return Residuals(*(np.sort(rng.normal(0, 0.3, QUANTILES)) for _ in range(4)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training's folder."""
    out = tmp_path_factory.mktemp("policy") / "run"
    train_policy(uncertain(), replace(QUICK, slots=80, worlds=8, episode=40), out)
    return out


class TestCandidates:
    def test_they_begin_with_the_best_choice_of_each_device(self) -> None:
        scores = np.random.default_rng(0).normal(size=(3, 5, 7))
        made = order_preserving(scores, groups_of(2, 3), moves=2)
        assert (made[:, 0] == scores.argmax(axis=2)).all()
        assert made.shape == (3, 1 + 6 * 2, 5)
        assert made.min() >= 0
        assert made.max() < 7

    def test_two_choices_are_droos_quantiser(self) -> None:
        """Huang, Bi, Zhang, eq. 8 and 9: the second candidate flips the device nearest to the threshold."""
        margin = np.array([0.9, -0.1, 0.3, -0.7])
        scores = np.stack([np.zeros(4), margin], axis=1)[None]
        made = order_preserving(scores, groups_of(1, 1)[:1], moves=3)[0]
        assert made.tolist() == [[1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]

    def test_moved_thresholds_keep_the_order_of_the_scores(self) -> None:
        rng = np.random.default_rng(1)
        for _ in range(20):
            scores = rng.normal(size=(1, 8, 1 + 2 * 3))
            groups = groups_of(2, 3)
            made = order_preserving(scores, groups, moves=4)[0, 1:].reshape(len(groups), 4, 8)
            for group, rows in zip(groups, made, strict=True):
                margin = np.where(group, scores, -np.inf).max(2) - np.where(group, -np.inf, scores).max(2)
                for row in rows:
                    within = group[row]
                    if within.any() and not within.all():
                        assert margin[0][within].min() >= margin[0][~within].max()

    def test_single_changes_change_one_device_each_and_are_all_different(self) -> None:
        scores = np.random.default_rng(2).normal(size=(2, 6, 5))
        around = scores.argmax(axis=2)
        made = single_changes(scores, around, 10)
        assert ((made != around[:, None]).sum(axis=2) == 1).all()
        assert len({tuple(row) for row in made[0]}) == 10

    def test_joined_changes_are_the_gaining_ones_best_first(self) -> None:
        around = np.array([[0, 0, 0, 0]])
        changed = np.array([[[1, 0, 0, 0], [2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 4, 0], [0, 0, 0, 5]]])
        gains = np.array([[0.5, 0.9, 0.7, -1.0, 0.1]])
        made = joined_changes(around, changed, gains, joins=3)
        assert made[0].tolist() == [[2, 3, 0, 0], [2, 3, 0, 5], [2, 3, 0, 5]]


class TestCritics:
    def test_where_all_is_certain_the_model_is_the_simulator(self) -> None:
        scenario = certain()
        world = World(scenario, batch=6, seed=3)
        rng = np.random.default_rng(0)
        critic = ModelCritic(Residuals.none(), Prices())
        for _ in range(10):
            seen = world.observe()
            actions = rng.integers(0, seen.choices, seen.active.shape)
            outcome, *_ = settle(seen, certain_truth(seen), actions, scenario)
            assert critic.score(seen, actions[:, None])[:, 0] == pytest.approx(outcome.reward)
            world.step(actions)

    def test_work_that_is_left_costs_its_price(self) -> None:
        seen = World(certain(), batch=1, seed=3).observe()
        seen = replace(seen, active=np.ones_like(seen.active))
        everybody = np.full((1, 1, seen.devices), 1)
        free = ModelCritic(Residuals.none(), Prices()).score(seen, everybody)
        for name in ("radio", "edge", "device"):
            dear = ModelCritic(Residuals.none(), Prices(**{name: 2.0})).score(seen, everybody)
            assert dear <= free
        assert ModelCritic(Residuals.none(), Prices(radio=2.0)).score(seen, everybody) < free

    def test_futures_spread_as_the_residuals_do(self) -> None:
        residuals = random_residuals()
        futures = residuals.futures(64, 14, 2, seed=1)
        assert futures.air.shape == (64, 14, 2)
        assert np.log(futures.air).std() == pytest.approx(residuals.air.std(), rel=0.1)
        assert np.log(futures.server).mean(axis=0) == pytest.approx(residuals.server.mean(), abs=0.05)

    def test_experience_learns_how_far_estimates_are_off(self) -> None:
        scenario = uncertain()
        world, experience = World(scenario, batch=16, seed=1), Experience()
        for _ in range(30):
            seen, truth = world.observe(), world.truth()
            actions = 1 + seen.airtime_s[..., -1].argmin(axis=2) * seen.options + seen.options - 1
            experience.learn(seen, truth, actions, world.step(actions).sent)
        found = experience.residuals()
        assert np.std(found.device) == pytest.approx(scenario.uncertainty.device_jitter, rel=0.15)
        assert np.std(found.task) == pytest.approx(scenario.uncertainty.edge_jitter, rel=0.25)
        assert found.server.max() > 0.2  # capacities change between slots

    def test_nothing_is_uncertain_where_nothing_is_off(self) -> None:
        world, experience = World(certain(), batch=4, seed=1), Experience()
        for _ in range(5):
            seen, truth = world.observe(), world.truth()
            actions = np.full(seen.active.shape, seen.options)
            experience.learn(seen, truth, actions, world.step(actions).sent)
        assert experience.residuals().certain

    def test_the_learned_critic_prefers_what_is_in_time(self) -> None:
        """A network that reads nothing but the time to spare."""
        row = [0.0] * TASK_FEATURES
        row[0] = 1.0
        network = ChanceNetwork([row, [-number for number in row]], [0.0, 0.0], [50.0, -50.0], 0.0)
        critic = LearnedCritic(network, Prices())
        seen = World(certain(), batch=1, seed=3).observe()
        model = ModelCritic(Residuals.none(), Prices())
        rng = np.random.default_rng(0)
        candidates = rng.integers(0, seen.choices, (1, 64, seen.devices))
        assert critic.score(seen, candidates)[0] == pytest.approx(model.score(seen, candidates)[0], abs=0.7)

    def test_a_learned_critic_of_other_shapes_is_refused(self) -> None:
        with pytest.raises(PolicyError, match="expected as many of each"):
            LearnedCritic(ChanceNetwork([[0.0]], [0.0], [0.0], 0.0), Prices())


class TestSearch:
    def test_more_search_is_never_worth_less(self) -> None:
        seen = World(uncertain(), batch=4, seed=5).observe()
        critic = ModelCritic(random_residuals(), Prices(1.0, 1.0, 1.0))
        scores = np.random.default_rng(0).normal(size=(4, seen.devices, seen.choices))
        worth = []
        for settings in (
            SearchSettings(0, 1, 0),
            SearchSettings(2, 8, 0),
            SearchSettings(2, 8, 2),
            SearchSettings(2, 40, 8),
        ):
            worth.append(critic.score(seen, decide(scores, seen, critic, settings)[:, None])[:, 0])
        for less, more in itertools.pairwise(worth):
            assert (more >= less - 1e-9).all()

    def test_settings_out_of_range_are_refused(self) -> None:
        with pytest.raises(SettingsError, match="at least one change"):
            SearchSettings(changes=0)
        with pytest.raises(SettingsError, match="slots is 0"):
            TrainSettings(slots=0)

    def test_a_large_network_of_devices_is_decided_too(self, trained: Path) -> None:
        world = World(small(devices=60, servers=5), batch=2, seed=0)
        assert load_policy(trained / POLICY).decide(world.observe()).shape == (2, 60)


def permuted(seen: Observation, order: np.ndarray) -> Observation:  # type: ignore[type-arg]
    names = ("active", "deadline_s", "device_backlog_s", "local_s", "device_s", "airtime_s")
    return replace(seen, **{name: getattr(seen, name)[:, order] for name in names})


class TestTheActor:
    def test_it_knows_no_order_of_devices(self, trained: Path) -> None:
        file = read_policy(trained / POLICY)
        seen = World(uncertain(), batch=3, seed=1).observe()
        order = np.random.default_rng(0).permutation(seen.devices)
        assert file.scores(permuted(seen, order)) == pytest.approx(file.scores(seen)[:, order], abs=1e-4)

    def test_devices_without_a_task_do_not_matter(self, trained: Path) -> None:
        file = read_policy(trained / POLICY)
        seen = World(uncertain(), batch=1, seed=1).observe()
        packed, places = seen.packed()
        assert packed.active.all()
        assert file.scores(packed)[0] == pytest.approx(file.scores(seen)[0, places[0]], abs=1e-4)

    def test_features_are_finite_and_bounded_even_of_what_cannot_be_reached(self) -> None:
        seen = World(uncertain(), batch=2, seed=1).observe()
        lost = replace(seen, airtime_s=np.full_like(seen.airtime_s, np.inf), edge_s=np.full_like(seen.edge_s, np.inf))
        graph = graph_of(lost)
        for part in (graph.path, graph.local, graph.server):
            assert np.isfinite(part).all()
            assert np.abs(part).max() <= 4.0


class TestTraining:
    def test_it_beats_the_untrained_actor_on_other_seeds(self, trained: Path) -> None:
        scenario = replace_slots(uncertain(), 40)
        alone = SearchSettings(moves=0, steps=0)
        file = read_policy(trained / POLICY)
        untrained = Trainer(scenario, QUICK)
        before = evaluate(_Scored(untrained), scenario, [0, 1], batch=4, timed_slots=1).row()
        after = evaluate(GraphPolicy(file, search=alone), scenario, [0, 1], batch=4, timed_slots=1).row()
        assert number(after["score_mean"]) > 1.05 * number(before["score_mean"])

    def test_an_interrupted_training_goes_on_to_the_same_policy(self, tmp_path: Path) -> None:
        class StoppedError(Exception):
            pass

        def interrupt(trainer: Trainer) -> None:
            if trainer.slot == 15:
                raise StoppedError

        train_policy(uncertain(), QUICK, tmp_path / "whole")
        with pytest.raises(StoppedError):
            train_policy(uncertain(), QUICK, tmp_path / "parts", on_slot=interrupt)
        with pytest.raises(PolicyError, match="--resume"):
            train_policy(uncertain(), QUICK, tmp_path / "parts")
        train_policy(uncertain(), QUICK, tmp_path / "parts", resume=True)
        assert (tmp_path / "parts" / POLICY).read_bytes() == (tmp_path / "whole" / POLICY).read_bytes()
        points = [json.loads(line) for line in (tmp_path / "parts" / CURVES).read_text().splitlines()]
        assert [point["slot"] for point in points] == [10, 20, 30]
        assert not (tmp_path / "parts" / CHECKPOINT).exists()

    def test_another_training_does_not_go_on_there(self, tmp_path: Path) -> None:
        def stop(trainer: Trainer) -> None:
            if trainer.slot == 11:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_policy(uncertain(), QUICK, tmp_path / "run", on_slot=stop)
        with pytest.raises(PolicyError, match="another settings"):
            train_policy(uncertain(), replace(QUICK, seed=9), tmp_path / "run", resume=True)
        with pytest.raises(PolicyError, match="another scenario"):
            train_policy(certain(), QUICK, tmp_path / "run", resume=True)
        (tmp_path / "run" / CHECKPOINT).write_bytes(b"damaged")
        with pytest.raises(PolicyError, match="is damaged"):
            train_policy(uncertain(), QUICK, tmp_path / "run", resume=True)

    def test_a_trained_run_is_not_overwritten(self, trained: Path) -> None:
        with pytest.raises(PolicyError, match="holds a trained policy"):
            train_policy(uncertain(), QUICK, trained, resume=True)


class TestPolicyFile:
    def test_both_critics_decide(self, trained: Path) -> None:
        seen = World(uncertain(), batch=2, seed=1).observe()
        for critic in ("model", "learned"):
            actions = load_policy(trained / POLICY, critic=critic).decide(seen)
            assert actions.shape == seen.active.shape
            assert actions[seen.active].max() > 0
        with pytest.raises(PolicyError, match="no critic is called 'best'; known are model, learned"):
            load_policy(trained / POLICY, critic="best")

    def test_an_empty_slot_is_decided(self, trained: Path) -> None:
        seen = World(uncertain(), batch=2, seed=1).observe()
        empty = replace(seen, active=np.zeros_like(seen.active))
        assert (load_policy(trained / POLICY).decide(empty) == 0).all()

    def test_what_is_no_policy_is_refused(self, trained: Path, tmp_path: Path) -> None:
        import onnx

        with pytest.raises(PolicyError, match="cannot read the policy"):
            read_policy(tmp_path / "none.onnx")
        (tmp_path / "bad.onnx").write_bytes(b"no graph")
        with pytest.raises(PolicyError, match="is no ONNX file that runs"):
            read_policy(tmp_path / "bad.onnx")
        model = onnx.load(trained / POLICY)
        text = next(entry.value for entry in model.metadata_props if entry.key == METADATA_KEY)
        facts = json.loads(text)
        for change, said in (
            ({"features": 99}, "was trained on features of version 99"),
            ({"format": 7}, "has policy format 7, this version reads 1"),
            ({"residuals": {}}, "lack residuals"),
            ({"prices": {"radio": -1.0, "edge": 0.0, "device": 0.0}}, "no number of at least 0"),
            ({"seed": "one"}, "is damaged"),
        ):
            del model.metadata_props[:]
            entry = model.metadata_props.add()
            entry.key, entry.value = METADATA_KEY, json.dumps({**facts, **change})
            onnx.save(model, tmp_path / "other.onnx")
            with pytest.raises(PolicyError, match=said):
                read_policy(tmp_path / "other.onnx")
        del model.metadata_props[:]
        onnx.save(model, tmp_path / "plain.onnx")
        with pytest.raises(PolicyError, match="lacks the metadata"):
            read_policy(tmp_path / "plain.onnx")


class _Scored:
    """The actor of a trainer, without search."""

    name = "untrained"

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def reset(self, batch: int) -> None:
        pass

    def decide(self, seen: Observation) -> np.ndarray:  # type: ignore[type-arg]
        critic = self._trainer.critic(seed=0)
        return decide(self._trainer.scored(seen), seen, critic, SearchSettings(moves=0, steps=0))


def replace_slots(scenario, slots):  # type: ignore[no-untyped-def]
    return msgspec.structs.replace(scenario, slots=slots)


def number(value: object) -> float:
    assert isinstance(value, float)
    return value
