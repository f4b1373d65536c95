"""``aecnn-deploy policy``: train, evaluate, export, as a person runs them."""

import json
from pathlib import Path
from typing import Any

import pytest

from aecnn_deploy.cli.main import run
from aecnn_deploy.offloading.droo.files import write_samples
from aecnn_deploy.offloading.droo.samples import generate_samples

QUICK = ("2x7", "--slots", "50", "--worlds", "2")


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The JSON document of a command that works."""
    capsys.readouterr()
    status = run([*arguments, "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return json.loads(captured.out)


def refusal(capsys: pytest.CaptureFixture[str], status: int, *arguments: str) -> str:
    """What is said of a command that is refused, on one line."""
    capsys.readouterr()
    assert run(list(arguments)) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    return " ".join(captured.err.split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("policies") / "short"
    assert run(["policy", "train", *QUICK, "--out", str(out)]) == 0
    return out


class TestTrain:
    def test_a_training_leaves_a_policy_and_its_curve(self, trained: Path) -> None:
        assert {path.name for path in trained.iterdir()} == {"settings.json", "curves.jsonl", "policy.onnx"}
        settings = json.loads((trained / "settings.json").read_text())
        assert (settings["method"], settings["scenario"]["name"]) == ("grl", "2x7")

    def test_wrong_use_is_said(self, capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
        out = str(tmp_path / "run")
        assert "no method is called 'best'; known are grl, droo" in refusal(
            capsys, 2, "policy", "train", "2x7", "--method", "best", "--out", out
        )
        assert "holds a trained policy" in refusal(capsys, 1, "policy", "train", *QUICK, "--out", str(trained))
        assert "no scenario" in refusal(capsys, 1, "policy", "train", "9x9", "--out", out)

    def test_droos_network_is_for_its_own_number_of_devices(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        out = str(tmp_path / "droo")
        made = answer(capsys, "policy", "train", *QUICK, "--method", "droo", "--out", out)
        assert made["curve"]["slot"] == 50
        row = answer(capsys, "policy", "evaluate", out, "--scenario", "2x7", "--seeds", "1", "--slots", "5")["rows"][0]
        assert row["policy"] == "droo"
        assert row["score_mean"] > 0
        said = refusal(capsys, 1, "policy", "evaluate", out, "--scenario", "paper-2x14", "--seeds", "1", "--slots", "5")
        assert "is for 7 devices, 2 servers and 6 options alone, here are 14 devices" in said


class TestEvaluate:
    def test_it_is_one_table_with_other_policies(self, capsys: pytest.CaptureFixture[str], trained: Path) -> None:
        found = answer(
            capsys,
            *("policy", "evaluate", str(trained), "--scenario", "3x20", "--policy", "greedy", "--policy", "random"),
            *("--seeds", "2", "--slots", "10", "--batch", "2", "--bound", "lp"),
        )
        assert [row["policy"] for row in found["rows"]] == ["short", "greedy", "random"]
        assert len({row["arrived_mean"] for row in found["rows"]}) == 1
        assert all(row["score_mean"] <= found["bound"]["score_mean"] for row in found["rows"])

    def test_the_policy_of_the_package_is_there_by_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        options = ("--scenario", "paper-2x14", "--seeds", "1", "--slots", "60", "--batch", "4")
        rows = answer(capsys, "policy", "evaluate", "grl", "greedy", "neurosurgeon", *options)["rows"]
        ours, *others = (row["score_mean"] for row in rows)
        assert ours > max(others)

    def test_droos_test_set_has_a_table_of_its_own(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        write_samples(tmp_path / "data_5.mat", generate_samples(60, 5, seed=3))
        found = answer(capsys, "policy", "evaluate", "--droo", str(tmp_path / "data_5.mat"), "--seeds", "1")
        assert {"policy", "critic_evaluations", "rate_mean", "rate_p5", "exact_share", "decision_ms_p50"} <= set(
            found["rows"][0]
        )

    def test_wrong_use_is_said(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert "no policy is named" in refusal(capsys, 2, "policy", "evaluate")
        assert "cannot read the policy" in refusal(capsys, 1, "policy", "evaluate", str(tmp_path / "none.onnx"))
        assert "no bound is called 'best'" in refusal(capsys, 2, "policy", "evaluate", "greedy", "--bound", "best")


class TestExport:
    def test_it_writes_one_file_that_evaluates_alike(
        self, capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "mine.onnx"
        made = answer(capsys, "policy", "export", str(trained), "--out", str(out))
        assert (made["scenario"], made["slots"], made["bytes"]) == ("2x7", 50, out.stat().st_size)
        options = ("--scenario", "2x7", "--seeds", "1", "--slots", "5")
        rows = answer(capsys, "policy", "evaluate", str(out), str(trained), *options)["rows"]
        assert rows[0]["policy"] == "mine"
        assert rows[0]["scores"] == rows[1]["scores"]

    def test_what_cannot_be_exported_is_said(
        self, capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path
    ) -> None:
        out = str(tmp_path / "policy.onnx")
        assert "holds no training of a policy" in refusal(capsys, 1, "policy", "export", str(tmp_path), "--out", out)
        (tmp_path / "half").mkdir()
        (tmp_path / "half" / "settings.json").write_text("{}")
        said = refusal(capsys, 1, "policy", "export", str(tmp_path / "half"), "--out", out)
        assert "is not done; go on with" in said
        said = refusal(capsys, 1, "policy", "export", str(trained), "--out", str(tmp_path / "no" / "p.onnx"))
        assert "it is a folder or in none" in said
