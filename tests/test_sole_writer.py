"""Two processes in one run's folder: the second is refused, and the folder stays as it is."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aecnn_deploy.cli.main import run as aecnn_deploy
from aecnn_deploy.errors import TrainingError
from aecnn_deploy.training.checkpoints import sole_writer
from tests.bundles import environment
from tests.labelled_runs import tree, write_pictures

LATE = """
method = "algorithm1"
backbone = "resnet18"
weights = "random"
augment = "none"
late_splits = [9]
data = { validation = 0.2, test = 0.3 }
unsplit = { epochs = 0 }
"""
HOLD = """
import sys, time
from pathlib import Path
from aecnn_deploy.training.checkpoints import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text("somebody's")
    return tmp_path / "run"


@pytest.fixture
def holder(run: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that trains in ``run``, as far as the lock goes."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("option", ["--resume", "--force"])
def test_a_second_training_is_refused_and_changes_nothing(
    run: Path, holder: subprocess.Popen[bytes], option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text(LATE)
    data = write_pictures(tmp_path / "data")
    before = tree(run)
    arguments = ["train", str(tmp_path / "config.toml"), "--data", str(data), "--out", str(run), option, "--no-cache"]
    assert aecnn_deploy(arguments) == 1
    assert f"another process trains in {run}; wait until it ends" in " ".join(capsys.readouterr().err.split())
    assert tree(run) == before

    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    if option == "--force":  # a killed process is in nobody's way
        assert aecnn_deploy(arguments) == 0
        assert (run / "results").is_dir()


def test_it_is_free_again_afterwards_and_held_while_it_lasts(run: Path) -> None:
    with sole_writer(run):
        for _ in range(2):  # one that was refused has let nothing go
            with pytest.raises(TrainingError, match="another process"), sole_writer(run):
                pass
    with sole_writer(run):
        pass
