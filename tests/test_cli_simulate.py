"""``aecnn-deploy simulate``: its document, its table, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aecnn_deploy.errors import PolicyError, SettingsError
from aecnn_deploy.offloading.baselines.simple import RandomPolicy
from aecnn_deploy.offloading.evaluation import evaluate
from aecnn_deploy.offloading.registry import POLICIES, make_policy
from aecnn_deploy.offloading.scenario_file import load_scenario, with_changes
from aecnn_deploy.offloading.simulation import Simulation, Vary
from tests.bundles import one_line
from tests.in_process import command_here

QUICK = ("simulate", "2x7", "--slots", "12", "--batch", "2", "--policy", "random", "--policy", "local")
ROW = {
    "policy",
    "score_mean",
    "score_sd",
    "accuracy_mean",
    "success_mean",
    "throughput_mean",
    "arrived_mean",
    "energy_j_mean",
    "decision_ms_p50",
    "scores",
}


def document(*options: str) -> dict[str, Any]:
    done = command_here(*QUICK, "--json", *options)
    assert (done.returncode, done.stderr) == (0, b"")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class TestDocument:
    def test_it_has_a_row_for_each_policy(self) -> None:
        found = document("--seeds", "2", "--first-seed", "40")
        assert found.keys() == {"scenario", "seeds", "batch", "slots", "rows", "bound"}
        assert (found["scenario"], found["seeds"], found["slots"], found["bound"]) == ("2x7", [40, 41], 12, None)
        assert [row["policy"] for row in found["rows"]] == ["random", "local"]
        assert all(row.keys() == ROW for row in found["rows"])

    def test_its_numbers_are_those_of_the_evaluation(self) -> None:
        row = document()["rows"][0]
        scenario = with_changes(load_scenario("2x7"), {"slots": 12})
        direct = evaluate(RandomPolicy(1000), scenario, [1000, 1001, 1002], batch=2).row()
        assert {**row, "decision_ms_p50": None} == {**direct, "decision_ms_p50": None}
        assert row["decision_ms_p50"] > 0

    def test_the_same_command_gives_the_same_numbers(self) -> None:
        one, other = document(), document()
        for row in (*one["rows"], *other["rows"]):
            del row["decision_ms_p50"]
        assert one == other

    def test_a_key_that_varies_makes_a_list_of_points(self) -> None:
        found = document("--vary", "devices.count=3,9", "--seeds", "1")
        assert found["vary"] == {"key": "devices.count", "values": [3, 9]}
        assert [point["value"] for point in found["points"]] == [3, 9]
        assert all(point.keys() == {"value", "rows", "bound"} for point in found["points"])
        arrived = [point["rows"][0]["arrived_mean"] for point in found["points"]]
        assert arrived[1] > 2 * arrived[0]
        assert "rows" not in found

    @pytest.mark.parametrize(
        ("vary", "values"),
        [
            ("devices.deadline_ms=[30, 60],[60,150]", [[30, 60], [60, 150]]),
            ("uncertainty.device_jitter=0.0,0.5", [0.0, 0.5]),
            ("radio.shared=true,false", [True, False]),
            ("profile.method=aecnn,bottlenet++,early-exit", ["aecnn", "bottlenet++", "early-exit"]),
            ("servers.capacity=[1.0],[1.0,0.5]", [[1.0], [1.0, 0.5]]),
        ],
    )
    def test_values_are_written_as_in_toml_and_words_without_quotes(self, vary: str, values: list[Any]) -> None:
        found = document("--vary", vary, "--seeds", "1")
        assert found["vary"]["values"] == values
        scores = [point["rows"][0]["score_mean"] for point in found["points"]]
        assert len(set(scores)) > 1  # it did change something

    def test_keys_that_are_set_are_set(self) -> None:
        found = document("--set", "devices.arrival=[1, 1]", "--set", "name=full", "--set", "energy.compute_w=4",
                         "--set", "energy.transmit_w=1")  # fmt: skip
        assert found["scenario"] == "full"
        assert found["rows"][0]["arrived_mean"] == pytest.approx(70)
        assert found["rows"][0]["energy_j_mean"] > 0

    def test_it_is_written_to_a_file_too(self, tmp_path: Path) -> None:
        found = document("--out", str(tmp_path / "rows.json"))
        assert json.loads((tmp_path / "rows.json").read_text()) == found
        assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]

    def test_a_file_can_be_simulated(self, tmp_path: Path) -> None:
        path = tmp_path / "own.toml"
        path.write_text("[scenario]\nslots = 5\n[profile]\n[devices]\ncount = 2\n[servers]\ncount = 1\n")
        done = command_here("simulate", str(path), "--seeds", "1", "--json")
        assert done.returncode == 0, done.stderr.decode()
        assert json.loads(done.stdout)["slots"] == 5


class TestTable:
    def test_it_fits_in_80_columns(self) -> None:
        powered = ("--set", "energy.compute_w=4", "--set", "energy.transmit_w=1")
        done = command_here(*QUICK, *powered, "--vary", "servers.capacity=[1.0],[1.0,0.5]")
        assert done.returncode == 0, done.stderr.decode()
        lines = done.stdout.decode().splitlines()
        assert max(map(len, lines)) <= 80
        assert lines[0] == "scenario  2x7, 12 slots, 2 worlds a seed"
        assert lines[1] == "seeds     1000 to 1002"
        assert "servers.capacity = [1.0, 0.5]" in lines
        heads = [line.split() for line in lines if line.startswith("policy")]
        assert heads == [["policy", "score", "/s", "in", "time", "accuracy", "tasks", "/s", "ms", "J"]] * 2

    def test_its_numbers_are_those_of_the_document(self) -> None:
        done = command_here(*QUICK)
        rows = {line.split()[0]: line.split()[1:] for line in done.stdout.decode().splitlines() if "±" in line}
        for row in document()["rows"]:
            shown = rows[row["policy"]]
            assert shown[0] == f"{row['score_mean']:.2f}"
            assert shown[2] == f"{row['score_sd']:.2f}"
            assert shown[3] == f"{row['success_mean']:.1%}"
            assert shown[4] == f"{row['accuracy_mean']:.2%}"


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--policy", "greddy"), 1, "no policy is called 'greddy'; known are random, local"),
        (("--policy", "random"), 2, "the policies are random, local, random; name at least one, and none twice"),
        (("--vary", "devices.count"), 2, "--vary 'devices.count' is no list of values; write it as devices.count=7,14"),
        (("--vary", "devices.count="), 2, "is no list of values"),
        (("--vary", "devices.count=3,many"), 1, "devices.count = 'many': devices: Expected `int`"),
        (("--vary", "device.count=3"), 2, "a scenario has no device.count; did you mean devices.count?"),
        (("--set", "slots"), 2, "--set 'slots' is no value; write it as devices.count=20"),
        (("--set", "slots=3,4"), 2, "--set 'slots=3,4' holds 2 values, expected one"),
        (("--set", "devices.deadline_ms=[1,2]"), 1, "within the longest deadline of 2 ms"),
        (("--out", "/no/folder/rows.json"), 2, "cannot write /no/folder/rows.json"),
        (("--out", "."), 2, "cannot write ."),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(options: tuple[str, ...], status: int, said: str) -> None:
    done = command_here(*QUICK, "--slots", "100000", *options)
    assert done.returncode == status
    assert said in one_line(done.stderr)
    assert done.stdout == b""


@pytest.mark.parametrize("options", [("--seeds", "0"), ("--batch", "0"), ("--slots", "0"), ("--first-seed", "-1")])
def test_numbers_out_of_range_are_wrong_use(options: tuple[str, ...]) -> None:
    assert command_here("simulate", "2x7", *options).returncode == 2


def test_an_unknown_scenario_lists_those_there_are() -> None:
    done = command_here("simulate", "2x8")
    assert done.returncode == 1
    assert "no scenario is called '2x8'; there are 16x512, 2x7," in one_line(done.stderr)


class TestSimulation:
    def test_a_bound_is_asked_of_each_point_and_shown(self) -> None:
        base = with_changes(load_scenario("2x7"), {"slots": 4})
        vary = Vary("devices.count", (2, 3))
        asked = []

        def bound_of(scenario: Any, seeds: Any, batch: int) -> dict[str, Any]:
            asked.append((scenario.devices.count, tuple(seeds), batch))
            return {"kind": "lp", "score_mean": 1.0}

        made = Simulation(base, ("local",), (0, 1), batch=2, vary=vary, bound_of=bound_of)
        points = made.run()["points"]
        assert asked == [(2, (0, 1), 2), (3, (0, 1), 2)]
        assert [point["bound"]["kind"] for point in points] == ["lp", "lp"]

    def test_it_tells_of_every_slot(self) -> None:
        base = with_changes(load_scenario("2x7"), {"slots": 4})
        made, told = Simulation(base, ("local", "random"), (0, 1), batch=2, vary=Vary("devices.count", (2, 3))), []
        made.run(lambda: told.append(1))
        assert len(told) == made.slots() == 2 * 2 * 2 * 4

    @pytest.mark.parametrize(
        "wrong", [{"policies": ()}, {"seeds": ()}, {"seeds": (1, 1)}, {"seeds": (-1,)}, {"batch": 0}]
    )
    def test_nothing_to_run_is_refused(self, wrong: dict[str, Any]) -> None:
        right: dict[str, Any] = {"scenario": load_scenario("2x7"), "policies": ("local",), "seeds": (1,)}
        with pytest.raises(SettingsError):
            Simulation(**{**right, **wrong})

    def test_a_key_without_values_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="has no value to take"):
            Simulation(load_scenario("2x7"), ("local",), (1,), vary=Vary("devices.count", ())).run()


class TestRegistry:
    @pytest.mark.parametrize("name", ["random", "local"])
    def test_a_policy_is_made_by_its_name_and_bears_it(self, name: str) -> None:
        assert name in POLICIES
        assert make_policy(name, load_scenario("2x7"), 0).name == name

    def test_an_unknown_name_lists_those_known(self) -> None:
        with pytest.raises(PolicyError, match="known are random, local"):
            make_policy("best", load_scenario("2x7"))

    def test_random_is_the_same_again_for_the_same_seed(self) -> None:
        base = with_changes(load_scenario("2x7"), {"slots": 5})
        one, same, other = (
            evaluate(make_policy("random", base, seed), base, [0], timed_slots=0).episodes[0].score
            for seed in (1, 1, 2)
        )
        assert one == same != other


def test_help_has_an_example_and_needs_no_numpy() -> None:
    code = (
        "import sys\nfrom aecnn_deploy.cli.main import run\nstatus = run(['simulate', '--help'])\n"
        "sys.exit(status or ('numpy' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "aecnn-deploy simulate paper-2x14" in done.stdout
