"""The set policy: shipped, trained, read; and the table that holds it against DROO and rules."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aecnn_deploy.cli.policy_droo import evaluate_droo
from aecnn_deploy.errors import PolicyError, SettingsError
from aecnn_deploy.offloading.droo import set_policy
from aecnn_deploy.offloading.droo.files import write_samples
from aecnn_deploy.offloading.droo.physics import alternating_weights
from aecnn_deploy.offloading.droo.rules import order_preserving, pick
from aecnn_deploy.offloading.droo.samples import Samples, draw_gains, generate_samples, mean_gains
from aecnn_deploy.offloading.droo.set_policy import (
    SHIPPED,
    SetPolicy,
    node_terms,
    read_policy,
    round_scores,
    shapes,
    write_policy,
)
from aecnn_deploy.offloading.droo.table import droo_table, online_total, table_of
from aecnn_deploy.offloading.droo.table_text import table_lines
from aecnn_deploy.offloading.droo.torch_online import OnlineDroo, OnlineSettings
from aecnn_deploy.offloading.droo.torch_set import SetTraining, recorded_source, train_set_policy

ROW = {"policy", "critic_evaluations", "rate_mean", "rate_sd", "rate_p5", "exact_share", "runs", "decision_ms_p50"}


@pytest.fixture(scope="module")
def fresh() -> Samples:
    """Ten devices as in the published file, from a seed that no training has, with proven optima."""
    return generate_samples(3000, 10, seed=77_000)


def random_policy(seed: int = 0, rounds: int = 2, hidden: int = 5) -> SetPolicy:
    rng = np.random.default_rng(seed)
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes(rounds, hidden).items()}
    return SetPolicy(rounds, hidden, {name: v.astype(np.float64) for name, v in values.items()}, {"seed": seed})


def mean_rate(policy: SetPolicy, samples: Samples, candidates: int) -> float:
    modes = policy.candidates(samples.gains, samples.weights, candidates)
    return float((pick(samples.gains, samples.weights, modes)[1] / samples.optimum).mean())


class TestShipped:
    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
    def test_it_reaches_the_proven_optimum_with_few_evaluations(self, fresh: Samples, path: Path) -> None:
        policy = read_policy(path)
        assert mean_rate(policy, fresh, 1) >= 0.9998
        assert mean_rate(policy, fresh, 4) >= 0.9999
        assert policy.training["samples"].startswith("generated")
        assert policy.training["critic_evaluations"] > 0

    @pytest.mark.parametrize(
        ("devices", "weights"),
        [(5, None), (12, None), (10, alternating_weights(10, reverse=True)), (6, np.array([1, 2, 1.3, 0.8, 1, 1.7]))],
        ids=["5", "12", "reversed", "others"],
    )
    def test_other_numbers_of_devices_and_weights_need_no_training(
        self, devices: int, weights: np.ndarray[Any, np.dtype[np.float64]] | None
    ) -> None:
        samples = generate_samples(600, devices, seed=77_001, weights=weights)
        for path in SHIPPED:
            assert mean_rate(read_policy(path), samples, 1) >= 0.9998

    def test_it_is_small(self) -> None:
        assert sum(path.stat().st_size for path in SHIPPED) < 200_000


class TestSetPolicy:
    def test_devices_in_another_order_get_the_same_scores(self) -> None:
        policy, rng = random_policy(), np.random.default_rng(1)
        gains, weights, order = draw_gains(rng, 6, mean_gains(8)), alternating_weights(8), rng.permutation(8)
        gains[:, 1] = gains[:, 0]  # equals have no order between them
        scores = policy.scores(gains, weights)
        np.testing.assert_allclose(policy.scores(gains[:, order], weights[order]), scores[:, order], rtol=1e-9)
        assert np.ptp(scores) > 0.1

    def test_only_the_ratios_of_weights_count(self) -> None:
        policy, gains = random_policy(), draw_gains(np.random.default_rng(2), 6, mean_gains(5))
        weights = alternating_weights(5)
        np.testing.assert_allclose(policy.scores(gains, 7 * weights), policy.scores(gains, weights), rtol=1e-9)
        assert np.abs(policy.scores(gains, weights**2) - policy.scores(gains, weights)).max() > 1e-3

    def test_numpy_and_torch_give_the_same_scores(self) -> None:
        policy, gains = random_policy(), draw_gains(np.random.default_rng(3), 6, mean_gains(9))
        terms = node_terms(gains, alternating_weights(9))
        parameters = {name: torch.from_numpy(values) for name, values in policy.parameters.items()}
        tensors = {name: torch.from_numpy(values) for name, values in terms.items()}
        np.testing.assert_allclose(
            round_scores(torch, parameters, 2, tensors)[-1].numpy(), policy.scores(gains, alternating_weights(9))
        )

    def test_more_candidates_are_never_worse(self) -> None:
        policy, samples = random_policy(), generate_samples(50, 6, seed=6)
        rates = np.stack(
            [
                pick(samples.gains, samples.weights, policy.candidates(samples.gains, samples.weights, count))[1]
                for count in range(1, 8)
            ]
        )
        assert (np.diff(rates, axis=0) >= -1e-9 * rates[1:]).all()
        assert rates[-1].mean() > rates[0].mean()

    def test_a_single_device_is_scored(self) -> None:
        assert np.isfinite(random_policy().scores(np.array([[1e-6]]), np.ones(1))).all()


class TestTraining:
    def test_it_learns_from_the_critic_alone_and_the_same_each_time(self) -> None:
        samples = generate_samples(300, 6, seed=8)
        settings = SetTraining(steps=60, samples_per_step=64, rounds=2, hidden=16, seed=4)
        source = recorded_source(samples.training_gains, samples.weights, 64)
        first, again = (train_set_policy(source, settings, about={"samples": "here"}) for _ in range(2))
        for name, values in first.parameters.items():
            np.testing.assert_array_equal(values, again.parameters[name])
        untrained = train_set_policy(source, SetTraining(steps=1, samples_per_step=1, rounds=2, hidden=16, seed=4))
        assert mean_rate(first, samples, 1) > max(0.995, mean_rate(untrained, samples, 1))
        assert first.training["samples"] == "here"
        # At the least: all candidates of every new sample, then one round of changes of one device.
        assert first.training["critic_evaluations"] >= 60 * 64 * (7 + 6)

    @pytest.mark.parametrize("wrong", [{"steps": 0}, {"replayed_steps": -1}, {"learning_rate": 1.0}, {"hidden": 0}])
    def test_settings_that_cannot_work_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(SettingsError):
            SetTraining(**wrong)


class TestPolicyFile:
    def test_a_written_policy_is_read_as_it_was(self, tmp_path: Path) -> None:
        policy = random_policy()
        write_policy(tmp_path / "p.npz", policy)
        read = read_policy(tmp_path / "p.npz")
        assert (read.rounds, read.hidden, read.training) == (policy.rounds, policy.hidden, policy.training)
        for name, values in policy.parameters.items():
            np.testing.assert_array_equal(read.parameters[name], values)

    def test_files_that_are_none_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "p.npz"
        with pytest.raises(PolicyError, match="No such file"):
            read_policy(path)
        for content in (b"", b"PK\x03\x04", SHIPPED[0].read_bytes()[:4000], b"\x93NUMPY" + b"\0" * 90):
            path.write_bytes(content)
            with pytest.raises(PolicyError, match="DROO set policy"):
                read_policy(path)
        np.savez(path, other=np.ones(3))
        with pytest.raises(PolicyError, match="is no DROO set policy"):
            read_policy(path)
        np.savez(path, about=np.array({"a": 1}, object))  # would be pickle
        with pytest.raises(PolicyError, match="is no DROO set policy"):
            read_policy(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": "another"}, "is no 'aecnn-deploy droo set policy 1' file"),
            ({"rounds": "2"}, "is no 'aecnn-deploy"),
            ({"rounds": 3}, "its arrays are not those of 3 rounds"),
            ({"hidden": 10**9}, "at most 16 of 512"),
            ({"training": 1}, "is no 'aecnn-deploy"),
        ],
    )
    def test_a_policy_of_another_kind_is_refused(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        write_policy(tmp_path / "p.npz", random_policy())
        with np.load(tmp_path / "p.npz") as archive:
            arrays = dict(archive)
        arrays["about"] = np.array(json.dumps(json.loads(str(arrays["about"])) | change))
        np.savez(tmp_path / "p.npz", **arrays)
        with pytest.raises(PolicyError, match=message):
            read_policy(tmp_path / "p.npz")

    def test_parameters_that_are_not_finite_are_refused(self, tmp_path: Path) -> None:
        policy = random_policy()
        broken = dict(policy.parameters) | {"0.in.bias": np.full(5, np.nan)}
        write_policy(tmp_path / "p.npz", SetPolicy(2, 5, broken, {}))
        with pytest.raises(PolicyError, match="not finite"):
            read_policy(tmp_path / "p.npz")

    def test_an_archive_that_unpacks_to_too_much_is_refused(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "p.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("about.npy", b"\0" * (set_policy._MOST_BYTES + 1))
        assert (tmp_path / "p.npz").stat().st_size < 100_000
        with pytest.raises(PolicyError, match="unpacks to"):
            read_policy(tmp_path / "p.npz")


class TestOnlineDroo:
    def test_learners_together_and_frames_in_parts_give_what_one_alone_gives(self) -> None:
        samples = generate_samples(250, 5, seed=3)
        together = OnlineDroo(5, samples.weights, (1, 2)).run(samples.gains)
        alone = OnlineDroo(5, samples.weights, (2,))
        parts = [alone.run(samples.gains[start : start + 7]) for start in range(0, 250, 7)]
        rates = np.concatenate([part.rates[0] for part in parts])
        assert (np.isclose(rates, together.rates[1], rtol=1e-6)).mean() > 0.98
        assert (together.modes[0] != together.modes[1]).any()

    def test_k_falls_from_n_as_the_first_candidates_win(self) -> None:
        samples = generate_samples(1500, 6, seed=3)
        frames = OnlineDroo(6, samples.weights, (1, 2)).run(samples.gains)
        assert (frames.evaluations[:, :32] == 6).all()
        assert 1 < frames.evaluations[:, -300:].mean() < 5.5
        ratios = frames.rates / samples.optimum
        assert (ratios <= 1 + 1e-9).all()
        assert ratios[:, -300:].mean() > max(0.99, ratios[:, :100].mean())

    def test_a_fixed_k_stays(self) -> None:
        samples = generate_samples(100, 6, seed=3)
        frames = OnlineDroo(6, samples.weights, (1,), OnlineSettings(fixed_candidates=3)).run(samples.gains)
        assert (frames.evaluations == 3).all()

    def test_the_actor_of_a_learner_is_what_it_decides_with(self) -> None:
        samples = generate_samples(60, 6, seed=3)
        learners = OnlineDroo(6, samples.weights, (1, 2), OnlineSettings(fixed_candidates=2, interval=1000))
        modes = [order_preserving(learners.actor(number)(samples.gains), 2) for number in range(2)]
        wanted = np.stack([pick(samples.gains, samples.weights, each)[1] for each in modes])
        np.testing.assert_allclose(learners.run(samples.gains).rates, wanted, rtol=1e-6)

    def test_settings_that_cannot_work_are_refused(self) -> None:
        with pytest.raises(SettingsError):
            OnlineSettings(memory=0)
        with pytest.raises(SettingsError, match="over DROO's limit of 4 devices"):
            OnlineDroo(4, np.ones(4), (1,), OnlineSettings(fixed_candidates=5))


@pytest.fixture(scope="module")
def mat_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("droo") / "data.mat"
    write_samples(path, generate_samples(1000, 10, seed=77_002))
    return path


@pytest.fixture(scope="module")
def document(mat_file: Path) -> dict[str, Any]:
    told: list[int] = []
    document = droo_table(mat_file, seeds=2, on_frames=told.append)
    assert sum(told) == 2 * 800 + 200
    return document


class TestTable:
    def test_each_row_has_every_key_and_figures_that_can_be(self, document: dict[str, Any]) -> None:
        for row in document["rows"]:
            assert set(row) == ROW
            assert 0 < row["rate_p5"] <= 1 + 1e-9
            assert 0 < row["rate_mean"] <= 1 + 1e-9
            assert 0 <= row["exact_share"] <= 1
            assert row["decision_ms_p50"] > 0
        assert (document["samples"], document["training_samples"], document["devices"]) == (200, 800, 10)
        assert document["online_frames"] == 800
        json.dumps(document, allow_nan=False)

    def test_policies_can_be_compared_at_equal_numbers_of_critic_evaluations(self, document: dict[str, Any]) -> None:
        rates = {(row["policy"], row["critic_evaluations"]): row["rate_mean"] for row in document["rows"]}
        assert len(rates) == len(document["rows"])
        for count in (1, 4):
            assert rates["set policy", count] >= (0.9998 if count == 1 else 0.9999)
            for other in ("DROO", "DROO trained with K = N", "random"):
                assert rates["set policy", count] > rates[other, count]
        assert rates["set policy", 1] > max(rates["all local", 1], rates["all offloaded", 1])
        assert rates["thresholds in h√w", 11] > 0.9999
        assert rates["enumeration", 1024] == pytest.approx(1, abs=1e-12)
        (adaptive,) = (row for row in document["rows"] if row["policy"] == "DROO, adaptive K")
        assert 1 < adaptive["critic_evaluations"] < 10
        assert adaptive["runs"] == 2

    def test_the_text_is_at_most_80_columns_wide_and_sorted_by_evaluations(self, document: dict[str, Any]) -> None:
        lines = table_lines(document)
        assert max(map(len, lines)) <= 80
        found = [float(re.split(r"  +", line)[1].split()[0]) for line in lines[2:-2]]
        assert len(found) == len(document["rows"])
        assert found == sorted(found)

    def test_droo_can_be_left_out_or_learn_from_fewer_frames(self, mat_file: Path) -> None:
        without = droo_table(mat_file, seeds=1, online_frames=0)
        assert not any(row["policy"].startswith("DROO") for row in without["rows"])
        few = droo_table(mat_file, seeds=1, online_frames=40)
        assert few["online_frames"] == 40
        assert sum(row["policy"].startswith("DROO") for row in few["rows"]) == 7
        samples = generate_samples(1000, 10, seed=77_002)
        assert (online_total(samples, 0), online_total(samples, 40)) == (0, 280)

    def test_a_single_device_has_a_table(self) -> None:
        document = table_of(generate_samples(40, 1, seed=1), [random_policy()], seeds=1, online_frames=20)
        counts = [row["critic_evaluations"] for row in document["rows"] if row["policy"] == "set policy"]
        assert counts == [1, 2]

    @pytest.mark.parametrize(("seeds", "frames"), [(0, None), (1, -1)])
    def test_no_seed_and_negative_frames_are_wrong_use(self, mat_file: Path, seeds: int, frames: int | None) -> None:
        with pytest.raises(SettingsError, match="at least 1 seed"):
            droo_table(mat_file, seeds=seeds, online_frames=frames)

    def test_the_command_prints_the_document_or_the_table(
        self, mat_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_policy(tmp_path / "p.npz", random_policy(seed=5))
        evaluate_droo(mat_file, tmp_path / "p.npz", 1, True)
        document = json.loads(capsys.readouterr().out)
        assert document["policies"] == [{"seed": 5}]
        assert set(document["rows"][0]) == ROW
        evaluate_droo(mat_file, None, 1, False)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "data.mat: 200 test samples of 10 devices, 1 seeds"
        assert any(line.startswith("set policy ") for line in lines)

    def test_without_droo_nothing_needs_torch(self, mat_file: Path) -> None:
        code = f"""
import sys
sys.modules["torch"] = None
from pathlib import Path
from aecnn_deploy.offloading.droo.table import droo_table
print(len(droo_table(Path({str(mat_file)!r}), seeds=1, online_frames=0)["rows"]))
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ, check=False
        )
        assert (done.returncode, done.stdout) == (0, "11\n"), done.stderr


@pytest.mark.bench
def test_the_benchmark_trains_and_writes_a_table(tmp_path: Path) -> None:
    out, policy = tmp_path / "droo.json", tmp_path / "policy.npz"
    command = [sys.executable, "-m", "benchmarks.droo_table", "--generate", "600", "--steps", "20", "--seeds", "2"]
    subprocess.run([*command, "--online-frames", "200", "--out", out], check=True, timeout=200)
    document = json.loads(out.read_text())
    names = {row["policy"] for row in document["tables"][0]["rows"]}
    assert {"set policy", "set policy, this file's", "DROO (PyTorch port), adaptive K"} <= names
    subprocess.run([*command, "--train", policy], check=True, timeout=200)
    assert read_policy(policy).training["samples"].startswith("first 80 % of generated")
