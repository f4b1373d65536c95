"""The command line of training with labels: real small runs, what stops them, what is refused, and evaluation."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aecnn_deploy.cli.main import run as aecnn_deploy
from aecnn_deploy.cli.stages import StageBars
from aecnn_deploy.models.backbones import build_backbone
from aecnn_deploy.models.results import ResultRow, read_results
from aecnn_deploy.models.run import load_run
from aecnn_deploy.training.settings import Algorithm1Settings, read_settings
from aecnn_deploy.training.supervised import train_supervised
from aecnn_deploy.training.tasks import tasks_of
from tests.bundles import COMMAND, environment
from tests.in_process import command_here
from tests.labelled_runs import Steps, done_at, tree, write_pictures

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LABEL_FREE = CONFIGS / "label-free-quick.toml"

# Three tasks in a few seconds: the unsplit network, a late split that needs no training, a tiny strided head.
SMALL = """
method = "algorithm1"
backbone = "resnet18"
weights = "random"
augment = "none"
hidden = 8
late_splits = [9]
late_bits = [8]
data = { validation = 0.2, test = 0.3 }
unsplit = { epochs = 1, batch = 4 }
match = { epochs = 1, batch = 4 }
distil = { epochs = 0 }

[[strided]]
name = "s"
split = 6
planes = 4
hidden = 8
depth = 0
layers = [[8, 4, 4], [16, 3, 2], [16, 3, 2]]
"""
TASKS = {"unsplit-s0", "late-split-l9-u8-s0", "strided-s-s0"}


def write_config(folder: Path, *changes: tuple[str, str]) -> Path:
    """SMALL as a file, with the ``changes`` made (old, new)."""
    text = SMALL
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(text)
    return folder / "config.toml"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


class Finished:
    """A finished run: its folder, how it was called, what it printed."""

    def __init__(self, folder: Path) -> None:
        self.data = write_pictures(folder / "data")
        (self.data / "red" / "broken.png").write_bytes(b"not a picture")
        self.config, self.out = write_config(folder), folder / "run"
        self.arguments = ["train", str(self.config), "--data", str(self.data), "--out", str(self.out), "--no-cache"]
        self.process = command_here(*self.arguments, "--json")
        self.errors = self.process.stderr.decode()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("finished"))


class TestARun:
    def test_its_json_document_holds_the_rows_the_failures_and_what_was_skipped(self, finished: Finished) -> None:
        assert finished.process.returncode == 0, finished.errors
        document = json.loads(finished.process.stdout)
        assert document.keys() == {"run", "rows", "failed", "skipped"}
        assert (document["run"], document["failed"]) == (str(finished.out), {})
        rows = msgspec.convert(document["rows"], tuple[ResultRow, ...])
        assert rows == read_results(finished.out)
        assert {row.task for row in rows} == TASKS
        assert {row.arm: row.wire_bytes is None for row in rows} == {
            "unsplit": True,
            "late-split": False,
            "strided": False,
        }

    def test_a_corrupt_image_is_named_and_counted(self, finished: Finished) -> None:
        (skipped,) = json.loads(finished.process.stdout)["skipped"]
        assert skipped.startswith("red/broken.png does not decode")
        assert f"skipped: {skipped}" in finished.errors
        assert "skipped images: 1" in finished.errors

    def test_it_can_be_read_as_an_export_reads_it(self, finished: Finished) -> None:
        loaded = load_run(finished.out)
        assert loaded.labels == ("blue", "red")
        assert {variant.id for variant in loaded.variants} == {
            row.variant for row in read_results(finished.out) if row.variant
        }

    def test_what_is_done_is_not_done_again_and_the_table_shows_all(
        self, finished: Finished, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = done_at(finished.out)
        assert before.keys() == TASKS
        assert aecnn_deploy([*finished.arguments, "--resume"]) == 0
        assert done_at(finished.out) == before
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["task", "arm", "accuracy", "wire", "bytes", "head", "seconds"]
        table = {line.split()[0]: line.split()[1:] for line in lines[1:4]}
        for row in read_results(finished.out):
            arm, accuracy, sent, head, seconds = table[row.task]
            assert (arm, accuracy, seconds) == (row.arm, f"{row.accuracy:.1%}", f"{row.train_s:.1f}")
            assert sent == ("-" if row.wire_bytes is None else f"{row.wire_bytes:.0f}")
            assert head == f"{row.head_macs / row.full_macs:.1%}"
        assert f"aecnn-deploy export {finished.out}" in lines[-2]
        assert f"aecnn-deploy report {finished.out}" in lines[-1]

    def test_it_is_kept_unless_it_is_resumed_or_replaced(
        self, finished: Finished, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = tree(finished.out)
        assert aecnn_deploy(finished.arguments) == 1
        errors = capsys.readouterr().err
        assert "--resume" in errors
        assert "--force" in errors
        assert tree(finished.out) == before

    def test_it_does_not_go_on_with_settings_that_would_change_its_tasks(
        self, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = tree(finished.out)
        changed = write_config(tmp_path, ("hidden = 8\nlate", "hidden = 16\nlate"))
        assert aecnn_deploy(["train", str(changed), *finished.arguments[2:], "--resume"]) == 1
        assert "begun with hidden = 8, the settings say 16" in capsys.readouterr().err
        assert tree(finished.out) == before

    @pytest.mark.parametrize(("address", "status"), [("nonsense", 2), ("127.0.0.1:9", 1)])
    def test_force_does_not_touch_it_before_the_cluster_answers(
        self, finished: Finished, address: str, status: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("ray")
        before = tree(finished.out)
        assert aecnn_deploy([*finished.arguments, "--force", "--ray", address]) == status
        assert address in capsys.readouterr().err
        assert tree(finished.out) == before

    def test_force_replaces_it(self, finished: Finished, tmp_path: Path) -> None:
        out = tmp_path / "run"
        shutil.copytree(finished.out, out)
        config = write_config(tmp_path, ("epochs = 1", "epochs = 0"), (SMALL[SMALL.index("[[") :], ""))
        assert aecnn_deploy(["train", str(config), "--data", str(finished.data), "--out", str(out), "--force"]) == 0
        assert {row.task for row in read_results(out)} == TASKS - {"strided-s-s0"}


def test_a_failed_task_is_named_with_the_way_on_and_the_exit_status_is_1(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unstable = "match = { epochs = 2, batch = 4, learning_rate = 1e30 }"
    config = write_config(
        tmp_path, ("unsplit = { epochs = 1", "unsplit = { epochs = 0"), ("match = { epochs = 1, batch = 4 }", unstable)
    )
    out = tmp_path / "run"
    assert aecnn_deploy(["train", str(config), "--data", str(pictures), "--out", str(out), "--json"]) == 1
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["failed"].keys() == {"strided-s-s0"}
    assert {row["task"] for row in document["rows"]} == TASKS - {"strided-s-s0"}
    assert "failed: strided-s-s0: match: the loss is" in printed.err
    last = printed.err.strip().splitlines()[-1]
    assert f"aecnn-deploy train {config} --data {pictures} --out {out} --resume" in last
    assert "Traceback" not in printed.err
    assert not (out / "run.json").exists()


@pytest.mark.slow
def test_two_processes_do_the_tasks_of_one(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["--data", str(pictures), "--out", str(out), "--jobs", "2", "--json"]
    assert aecnn_deploy(["train", str(write_config(tmp_path)), *arguments]) == 0
    assert {row["task"] for row in json.loads(capsys.readouterr().out)["rows"]} == TASKS
    assert load_run(out).labels == ("blue", "red")


def test_a_run_of_one_job_reports_one_step_for_each_task(pictures: Path, tmp_path: Path) -> None:
    settings = read_settings(write_config(tmp_path, (SMALL[SMALL.index("[[") :], "")))
    assert isinstance(settings, Algorithm1Settings)
    steps = Steps()
    train_supervised(settings, pictures, tmp_path / "run", resume=False, replace=False, progress=steps)
    assert ("sweep", 2) in steps.planned
    assert [planned for _, planned in steps.planned] == steps.done


def test_a_note_is_no_line_and_a_step_is_one_where_it_is_wished_for(capsys: pytest.CaptureFixture[str]) -> None:
    for lines, expected in ((True, "sweep\nfirst: done\n"), (False, "sweep\n")):
        with StageBars(lines=lines) as bars:
            bars.stage("sweep", 2)
            bars.note("match 0.5")
            bars.step("first: done")
            bars.step()
        assert capsys.readouterr().err == expected


class TestRefusals:
    """Nothing is written by any of them."""

    @pytest.fixture
    def refused(
        self, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> Callable[..., tuple[int, str]]:
        def train(config: Path, *options: str, data: Path = pictures) -> tuple[int, str]:
            out = tmp_path / "run"
            status = aecnn_deploy(["train", str(config), "--data", str(data), "--out", str(out), *options])
            assert not out.exists()
            return status, capsys.readouterr().err

        return train

    def test_resume_and_force_together(self, refused: Any, tmp_path: Path) -> None:
        status, errors = refused(write_config(tmp_path), "--resume", "--force")
        assert status == 2
        assert "--resume goes on with a run, --force replaces it" in errors

    def test_jobs_and_a_ray_cluster_together(self, refused: Any, tmp_path: Path) -> None:
        status, errors = refused(write_config(tmp_path), "--jobs", "2", "--ray", "local")
        assert status == 2
        assert "one of the two" in errors

    @pytest.mark.parametrize("options", [["--resume"], ["--jobs", "2"], ["--ray", "auto"]], ids=lambda o: o[0])
    def test_options_of_a_sweep_for_training_without_labels(self, refused: Any, options: list[str]) -> None:
        status, errors = refused(LABEL_FREE, *options)
        assert status == 2
        assert options[0] in errors
        assert 'go with method = "algorithm1"' in errors

    @pytest.mark.parametrize(
        ("change", "near"),
        [
            (("late_splits", "late_split"), "unknown key 'late_split'; did you mean 'late_splits'"),
            (("unsplit = { epochs", "unsplit = { epoch"), "unknown key 'unsplit.epoch'; did you mean 'epochs'"),
            (("planes = 4", "plane = 4"), "unknown key 'strided.plane'; did you mean 'planes'"),
        ],
    )
    def test_an_unknown_key_by_the_nearest_known_one(
        self, refused: Any, tmp_path: Path, change: tuple[str, str], near: str
    ) -> None:
        status, errors = refused(write_config(tmp_path, change))
        assert status == 2
        assert near in errors

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (("split = 6", "split = 77"), "resnet18 has no split point 77; choose 1 to 9"),
            (("late_splits = [9]", "late_splits = [10]"), "resnet18 has no split point 10"),
            (("[[strided]]", "[[sweep]]\nsplits = [1]\nratios = [65]\n[[strided]]"), "ratio 65 leaves no channel"),
            (("resnet18", "resnet81"), "unknown backbone 'resnet81'"),
            (("[8, 4, 4]", "[8]"), "the strided head 's' cannot be built: layer [8] of a strided head"),
            (("[8, 4, 4]", "[8, 3, 3]"), "the strided head 's' cannot be built: planes of"),
            (('weights = "random"', 'weights = "nowhere.pth"'), "no weights file nowhere.pth"),
        ],
    )
    def test_what_the_backbone_lacks(self, refused: Any, tmp_path: Path, change: tuple[str, str], why: str) -> None:
        status, errors = refused(write_config(tmp_path, change))
        assert status == 1
        assert why in errors

    def test_more_frozen_stages_than_there_are(self, refused: Any, tmp_path: Path) -> None:
        status, errors = refused(write_config(tmp_path, ("hidden = 8\nlate", "freeze = 10\nlate")))
        assert status == 2
        assert "freeze 10 is more than the 9 stages of resnet18" in errors

    def test_an_empty_category(self, refused: Any, tmp_path: Path) -> None:
        data = write_pictures(tmp_path / "data", count=4)
        (data / "void").mkdir()
        status, errors = refused(write_config(tmp_path), data=data)
        assert status == 1
        assert "category void" in errors
        assert ".jpg" in errors, "which files count as images"

    def test_data_that_is_not_there(self, refused: Any, tmp_path: Path) -> None:
        status, errors = refused(write_config(tmp_path), data=tmp_path / "nowhere")
        assert status == 1
        assert "or the name caltech101" in errors

    def test_a_place_for_data_sets_beside_a_folder(self, refused: Any, tmp_path: Path) -> None:
        status, errors = refused(write_config(tmp_path), "--data-dir", str(tmp_path))
        assert status == 2
        assert "--data-dir goes with --data caltech101" in errors


def test_the_name_caltech101_is_looked_for_under_data_dir_without_labels_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "caltech101", count=4)  # found, and too few
    arguments = ["--data", "caltech101", "--data-dir", str(tmp_path), "--out", str(tmp_path / "run")]
    assert aecnn_deploy(["train", str(LABEL_FREE), *arguments]) == 1
    assert "at least 10 photographs, got 8" in capsys.readouterr().err


@pytest.mark.slow
class TestInterruption:
    """Real processes, stopped while the strided head is trained."""

    @pytest.fixture
    def arguments(self, pictures: Path, tmp_path: Path) -> list[str]:
        config = write_config(
            tmp_path,
            ("unsplit = { epochs = 1", "unsplit = { epochs = 0"),
            ("match = { epochs = 1", "match = { epochs = 24"),
        )
        return ["train", str(config), "--data", str(pictures), "--out", str(tmp_path / "run")]

    @staticmethod
    def stop(arguments: list[str], number: int) -> tuple[int, str]:
        """Begin, and signal when all but the last task are done: exit status and stderr."""
        out = Path(arguments[-1])
        process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
        try:
            end = time.monotonic() + 120
            while len(done_at(out)) < len(TASKS) - 1 and process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            os.kill(process.pid, number)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert done_at(out).keys() == TASKS - {"strided-s-s0"}, errors
        return process.returncode, errors

    def test_ctrl_c_ends_with_130_and_says_how_to_go_on(self, arguments: list[str]) -> None:
        status, errors = self.stop(arguments, signal.SIGINT)
        assert status == 130
        assert (
            errors.strip().splitlines()[-1] == f"interrupted; go on with: aecnn-deploy {' '.join(arguments)} --resume"
        )
        assert "Traceback" not in errors

    def test_a_killed_run_goes_on_with_resume(self, arguments: list[str], tmp_path: Path) -> None:
        out = tmp_path / "run"
        status, _ = self.stop(arguments, signal.SIGKILL)
        assert status == -signal.SIGKILL
        before = done_at(out)
        assert aecnn_deploy([*arguments, "--resume"]) == 0
        after = done_at(out)
        assert after.keys() == TASKS
        assert {task: after[task] for task in before} == before
        assert load_run(out).labels == ("blue", "red")
        assert not [path.name for path in out.rglob("*") if ".json." in path.name or ".safetensors." in path.name]


class TestEvaluate:
    def evaluate(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        assert aecnn_deploy(["evaluate", *map(str, arguments), "--json"]) == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    def test_accuracy_on_the_test_split_is_what_training_measured(
        self, finished: Finished, capsys: pytest.CaptureFixture[str]
    ) -> None:
        document = self.evaluate(capsys, finished.out, "--data", finished.data)
        named = json.loads((finished.out / "data.json").read_text())["test"]
        assert document["split"] == "test"
        assert [Path(source).relative_to(finished.data).as_posix() for source in document["sources"]] == named
        assert document["labelled"] == len(named)
        measured = {row.variant: row for row in read_results(finished.out) if row.variant}
        assert {row["variant"] for row in document["rows"]} == measured.keys()
        for row in document["rows"]:
            assert row["accuracy"] == measured[row["variant"]].accuracy
            assert row["payload_bytes_mean"] == pytest.approx(measured[row["variant"]].payload_bytes, rel=0.01)

    def test_the_table_shows_agreement_and_accuracy(
        self, finished: Finished, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert aecnn_deploy(["evaluate", str(finished.out), "--data", str(finished.data), "--limit", "2"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["variant", "agreement", "accuracy", "payload", "bytes"]
        assert "on 2 photographs (test)" in lines[3]
        assert "the unsplit model had" in lines[5]

    @pytest.mark.parametrize(("part", "count"), [("train", 8), ("validation", 4), ("all", 16)])
    def test_any_part_can_be_taken(
        self, finished: Finished, capsys: pytest.CaptureFixture[str], part: str, count: int
    ) -> None:
        document = self.evaluate(capsys, finished.out, "--data", finished.data, "--split", part)
        assert (len(document["sources"]), document["labelled"]) == (count, count)

    def test_photographs_of_other_folders_have_no_accuracy(
        self, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(finished.data / "blue", tmp_path / "green")
        shutil.copy(finished.data / "blue" / "0.png", tmp_path / "red.png")
        document = self.evaluate(capsys, finished.out, "--data", tmp_path, "--split", "all")
        assert document["labelled"] == 0
        assert all("accuracy" not in row for row in document["rows"])

    def test_the_run_s_photographs_must_be_there(
        self, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(finished.data / "blue", tmp_path / "blue")
        assert aecnn_deploy(["evaluate", str(finished.out), "--data", str(tmp_path)]) == 1
        errors = capsys.readouterr().err
        assert "2 of the 4 test photographs" in errors
        assert "--split all" in errors

    def test_a_damaged_record_of_the_split_is_named(
        self, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(finished.out, tmp_path / "run")
        for content in (b"{", b'{"test": 3}', b"{}", b"[]"):
            (tmp_path / "run" / "data.json").write_bytes(content)
            assert aecnn_deploy(["evaluate", str(tmp_path / "run"), "--data", str(finished.data)]) == 1
            assert "data.json is not the record of a split" in capsys.readouterr().err

    def test_a_run_without_labels_has_no_parts(
        self, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(finished.out, tmp_path / "run")
        (tmp_path / "run" / "data.json").unlink()
        assert aecnn_deploy(["evaluate", str(tmp_path / "run"), "--data", str(finished.data), "--split", "test"]) == 2
        assert "--split test goes with a run that was trained on categories" in capsys.readouterr().err
        document = self.evaluate(capsys, tmp_path / "run", "--data", finished.data)
        assert (document["split"], document["labelled"]) == ("all", 0)


def test_the_paper_s_config_is_the_paper_s_table() -> None:
    settings = read_settings(CONFIGS / "paper-resnet50.toml")
    assert isinstance(settings, Algorithm1Settings)
    tasks = tasks_of(settings, build_backbone(settings.backbone))
    combinations = {(split, ratio, seed) for split in (1, 2) for ratio in (2, 4, 8, 16, 32, 64) for seed in (0, 1, 2)}
    for kind in ("pruned", "aecnn", "bottlenetpp"):
        chosen = [task for task in tasks if task.kind == kind]
        assert {(task.split, task.ratio, task.seed) for task in chosen} == combinations
        assert {task.bits for task in chosen} == {8}
    assert {task.method for task in tasks if task.kind == "pruned"} == {"ca"}


def test_every_config_with_labels_names_tasks_that_its_backbone_has() -> None:
    named = [(path.stem, read_settings(path)) for path in sorted(CONFIGS.glob("*.toml"))]
    checked = [name for name, item in named if isinstance(item, Algorithm1Settings)]
    for name, item in named:
        if name in checked:
            assert isinstance(item, Algorithm1Settings)
            assert len(tasks_of(item, build_backbone(item.backbone))) > 1
    assert "paper-resnet50" in checked
