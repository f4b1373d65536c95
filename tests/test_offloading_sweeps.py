"""The sweeps over policies, reduced: rows of the same worlds, resumed row by row, and read by the report."""

import json
from pathlib import Path
from typing import Any

import pytest

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.reports.offloading_reading import read_documents

pytestmark = pytest.mark.bench


@pytest.fixture
def sweeps() -> Any:
    from benchmarks import offloading_sweeps

    return offloading_sweeps


def small(sweeps: Any, *policies: str, **changes: Any) -> Any:
    """Two seeds, two worlds, ten slots of four devices."""
    scenario = sweeps.with_changes(sweeps.load_scenario("paper-2x14"), {"slots": 10, "devices.count": 4})
    given = {"seeds": (1000, 1001), "batch": 2, "bound": "lp", "timed_slots": 2, **changes}
    return sweeps.Run(scenario, {policy: policy for policy in policies}, **given)


def test_a_sweep_is_written_row_by_row_and_goes_on_where_it_stopped(sweeps: Any, tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    sweep = sweeps.Sweep("devices.count", (3, 5))
    assert sweeps.sweep_document(small(sweeps, "random"), sweep, path) == "2 rows computed, 0 were there"
    first = json.loads(path.read_text())
    assert [point["value"] for point in first["points"]] == [3, 5]
    assert all(point["bound"]["scores"] for point in first["points"])
    document = json.loads(path.read_text())
    document["points"].pop()
    path.write_text(json.dumps(document))
    assert sweeps.sweep_document(small(sweeps, "random"), sweep, path) == "1 rows computed, 1 were there"
    assert sweeps.sweep_document(small(sweeps, "random", "local"), sweep, path) == "2 rows computed, 2 were there"
    again = json.loads(path.read_text())
    assert [[row["policy"] for row in point["rows"]] for point in again["points"]] == [["random", "local"]] * 2
    assert [point["rows"][0]["scores"] for point in again["points"]] == [
        p["rows"][0]["scores"] for p in first["points"]
    ]
    ((_, found),) = read_documents([path]).sweeps
    assert [len(point.rows) for point in found.points] == [2, 2]


def test_the_scenario_as_it_is_becomes_a_comparison(sweeps: Any, tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    run = small(sweeps, "random", "local", bound=None)
    sweeps.sweep_document(run, sweeps.SWEEPS["comparison"], path)
    assert sweeps.sweep_document(run, sweeps.SWEEPS["comparison"], path) == "0 rows computed, 2 were there"
    ((_, found),) = read_documents([path]).comparisons
    assert found.seeds == (1000, 1001)
    assert found.bound is None


@pytest.mark.parametrize("name", ["devices", "deadline", "capacity", "estimates"])
def test_every_sweep_fits_the_papers_scenario(sweeps: Any, tmp_path: Path, name: str) -> None:
    sweep = sweeps.SWEEPS[name]
    ends = sweeps.Sweep(sweep.key, (sweep.values[0], sweep.values[-1]))
    run = small(sweeps, "random", bound=None, seeds=(1000,))
    assert sweeps.sweep_document(run, ends, tmp_path / "x.json") == "2 rows computed, 0 were there"
    scores = [point["rows"][0]["score_mean"] for point in json.loads((tmp_path / "x.json").read_text())["points"]]
    assert scores[0] != scores[1]


def test_rows_of_other_seeds_are_not_mixed(sweeps: Any, tmp_path: Path) -> None:
    path, sweep = tmp_path / "x.json", sweeps.Sweep("devices.count", (3,))
    sweeps.sweep_document(small(sweeps, "random", bound=None), sweep, path)
    with pytest.raises(SettingsError, match="rows of other seeds;"):
        sweeps.sweep_document(small(sweeps, "random", bound=None, seeds=(7,)), sweep, path)


def test_a_policy_that_passes_a_bound_that_holds_is_an_error(sweeps: Any) -> None:
    row = {"policy": "x", "arrived_mean": 1.0, "scores": [1.0, 2.0]}
    bound = {"kind": "lp", "holds": True, "scores": [1.0, 1.9]}
    with pytest.raises(AssertionError, match="x passes the bound lp"):
        sweeps.check({"rows": [row], "bound": bound}, "here")
    sweeps.check({"rows": [row], "bound": {**bound, "holds": False}}, "here")
    with pytest.raises(AssertionError, match="other tasks"):
        sweeps.check({"rows": [row, {**row, "arrived_mean": 2.0}], "bound": None}, "here")
