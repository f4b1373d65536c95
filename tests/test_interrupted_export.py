"""``aecnn-deploy export`` stopped in the middle, as its user stops it: no half bundle."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from aecnn_deploy.bundle.reader import open_bundle
from tests.bundles import COMMAND, command, environment, make_bundle, one_line
from tests.random_runs import VARIANT, random_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    random_run(folder)
    return folder


def stop(run: Path, out: Path, number: int) -> tuple[int, str]:
    """Signal an export when its head is written and its tail is not: exit status and stderr."""
    process = subprocess.Popen(
        [*COMMAND, "export", str(run), "--out", str(out), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        end = time.monotonic() + 120
        while not leftovers(out, f"heads/{VARIANT}.onnx") and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert not leftovers(out, "full.onnx")
        process.send_signal(number)
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert printed == ""
    return process.returncode, errors


def leftovers(out: Path, name: str = "") -> list[Path]:
    """What of ``name`` stands in the hidden folders in which bundles for ``out`` are made."""
    return list(out.parent.glob(f".{out.name}.partial-*/{name}"))


def test_ctrl_c_leaves_nothing_and_ends_with_130(run: Path, tmp_path: Path) -> None:
    status, errors = stop(run, tmp_path / "made" / "bundle", signal.SIGINT)
    assert status == 130, errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_a_hidden_folder_that_is_no_bundle_and_is_in_nobodys_way(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    status, _ = stop(run, out, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert not out.exists()
    (left,) = leftovers(out)
    assert list(tmp_path.iterdir()) == [left]
    shown = command("bundle", "show", str(left))
    assert shown.returncode == 1
    assert "is not a bundle" in one_line(shown.stderr)
    made = make_bundle(out)
    assert open_bundle(out).id == made.bundle_id
    assert leftovers(out) == [left]
