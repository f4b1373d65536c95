"""The benchmarks of offloading, reduced."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import offloading_bounds

pytestmark = pytest.mark.bench  # solves slots by HiGHS, which takes seconds each


def test_labels_and_integer_programme_agree_on_slots_of_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bounds.json"
    sizes = ["--seeds", "2", "--slots", "6", "--highs-slots", "3", "--run-slots", "3", "--run-limit", "3"]
    names = ["--scenarios", "certain-2x14", "uncertain-2x7"]
    monkeypatch.setattr(sys, "argv", ["offloading_bounds", *sizes, *names, "--out", str(out)])
    offloading_bounds.main()
    document = json.loads(out.read_text())
    assert [row["scenario"] for row in document["slots"]] == ["certain-2x14", "uncertain-2x7"]
    for row in document["slots"]:
        assert row["proven_share"] == 1
        assert row["highs_slots"] == 3
        assert 0 < row["exact_ms_p50"] < row["highs_ms_p50"]
    scores = [row["score_mean"] for row in document["runs"]]
    assert scores == pytest.approx(sorted(scores), abs=1e-6)
