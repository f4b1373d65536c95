"""The soak: minutes of load, faults and hostile peers. ``make soak`` runs it, for $SOAK_SECONDS (600)."""

import os
from pathlib import Path

import pytest

from benchmarks.machine import describe_machine, write_result
from tests.soak.settings import SoakSettings
from tests.soak.soak import run_soak

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 240)
def test_every_honest_frame_has_one_outcome_whatever_dies_and_whoever_is_hostile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    say("")
    report = run_soak(SoakSettings(seconds=SECONDS), tmp_path, say=say)
    say(report.text())
    if out := os.environ.get("SOAK_JSON"):
        write_result(Path(out), {"benchmark": "soak", **report.document(), **describe_machine()})
    assert report.problems == []
