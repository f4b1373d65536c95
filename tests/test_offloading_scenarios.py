"""Scenario files and profiles: what ships, what is read, and what is refused with which words."""

import re
from pathlib import Path
from typing import Any

import pytest

from aecnn_deploy.errors import AecnnError, ScenarioError, SettingsError
from aecnn_deploy.offloading.mec.profiles import paper_profile
from aecnn_deploy.offloading.mec.scenario import Devices, Energy, Radio, Scenario, Servers, Uncertainty
from aecnn_deploy.offloading.scenario_file import load_scenario, parse_scenario, scenario_names, with_changes

DOCS = Path(__file__).resolve().parents[1] / "docs" / "offloading.md"
SHIPPED = ("16x512", "2x7", "3x20", "4x30", "certain-2x14", "failing-3x20", "mobile-2x14", "paper-2x14")
LEAST = "[profile]\n[devices]\ncount = 3\n[servers]\ncount = 1\n"


def parse(text: str, folder: Path = Path()) -> Scenario:
    return parse_scenario(text.encode(), "mine.toml", folder)


class TestShipped:
    def test_these_come_with_the_package(self) -> None:
        assert scenario_names() == SHIPPED

    @pytest.mark.parametrize("name", SHIPPED)
    def test_each_is_of_the_size_and_kind_that_its_name_says(self, name: str) -> None:
        scenario = load_scenario(name)
        servers, devices = (int(number) for number in name.rpartition("-")[2].split("x"))
        assert (scenario.name, scenario.servers.count, scenario.devices.count) == (name, servers, devices)
        assert scenario.certain == name.startswith("certain")
        assert (scenario.devices.move_m_s > 0) == name.startswith("mobile")
        assert bool(scenario.servers.fails) == name.startswith("failing")
        assert [option.name for option in scenario.profile.options] == [f"l1-v{2**n}" for n in range(1, 7)]

    def test_the_larger_ones_have_as_many_servers_a_square_metre(self) -> None:
        def share(name: str) -> float:
            scenario = load_scenario(name)
            return scenario.radio.area_m**2 / scenario.servers.count

        for name in ("3x20", "4x30", "16x512"):
            assert share(name) == pytest.approx(share("paper-2x14"), rel=0.02)

    def test_the_largest_brings_each_server_as_many_tasks(self) -> None:
        def tasks(name: str) -> float:
            scenario = load_scenario(name)
            return scenario.devices.count * sum(scenario.devices.arrival) / 2 / scenario.servers.count

        assert tasks("16x512") == pytest.approx(tasks("paper-2x14"), rel=0.05)

    def test_the_documentation_names_every_key_and_every_scenario(self) -> None:
        text = DOCS.read_text()
        parts = {"devices": Devices, "servers": Servers, "radio": Radio, "uncertainty": Uncertainty, "energy": Energy}
        keys = {f"{table}.{key}" for table, kind in parts.items() for key in kind.__struct_fields__}
        keys |= {f"scenario.{key}" for key in ("name", "slots", "slot_ms")}
        keys |= {
            f"profile.{key}" for key in ("source", "method", "split", "options", "path", "profiles", "device", "edge")
        }
        documented = set(re.findall(r"^\| `([a-z]+\.\w+)` \|", text, re.MULTILINE))
        assert documented == keys
        assert set(re.findall(r"^\| `([\w-]+)` \| \d+ ×", text, re.MULTILINE)) == set(SHIPPED)


class TestFiles:
    def test_a_file_of_the_least_has_the_documented_defaults(self, tmp_path: Path) -> None:
        (tmp_path / "small.toml").write_text(LEAST)
        scenario = load_scenario(str(tmp_path / "small.toml"))
        assert (scenario.name, scenario.slots, scenario.slot_ms) == ("small", 200, 100)
        assert scenario.radio == Radio()
        assert scenario.profile == paper_profile("aecnn")

    def test_every_key_is_read(self, tmp_path: Path) -> None:
        scenario = parse(
            """
            [scenario]
            name = "own"
            slots = 10
            slot_ms = 50
            [profile]
            source = "paper"
            method = "ca-pruned"
            split = 2
            options = ["l2-v64", "l2-v8"]
            [devices]
            count = 3
            speed = [1, 2]
            [servers]
            count = 2
            capacity = [1, 0.5]
            fails = [[0, 2, 4], [0, 6, 8], [1, 2, 3]]
            [radio]
            shared = false
            [uncertainty]
            known_load = false
            [energy]
            compute_w = 4
            transmit_w = 1
            """
        )
        assert (scenario.name, scenario.slots, scenario.slot_ms) == ("own", 10, 50.0)
        assert [option.name for option in scenario.profile.options] == ["l2-v64", "l2-v8"]
        assert scenario.profile.options[0].accuracy == 0.9363
        assert scenario.devices.speed == (1.0, 2.0)
        assert scenario.servers.fails == ((0, 2, 4), (0, 6, 8), (1, 2, 3))
        assert not scenario.radio.shared
        assert scenario.energy == Energy(compute_w=4.0, transmit_w=1.0)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("slots = 3", "unknown key 'slots'; known are scenario, profile, devices"),
            (LEAST + "[sever]\n", "unknown key 'sever'; did you mean 'servers'?"),
            (LEAST + "[radio]\nbandwith_mhz = 3", "unknown key 'radio.bandwith_mhz'; did you mean 'bandwidth_mhz'?"),
            (LEAST + "[scenario]\nslot = 3", "unknown key 'scenario.slot'; did you mean 'slots'?"),
            (LEAST.replace("[profile]", "[profile]\nmetod = 'aecnn'"), "unknown key 'profile.metod'; did you"),
            ("[profile]\n[devices]\ncount = 3", "lacks [servers]"),
            ("", "lacks [profile], [devices], [servers]"),
            ("devices = 3", "devices is 3, expected a table; write [devices]"),
            ("[devices", "mine.toml is no TOML"),
            ("\udcff", "mine.toml is no TOML"),
            (LEAST.replace("count = 3", "count = 0"), "devices: Expected `int` >= 1 - at `$.count`"),
            (LEAST.replace("count = 3", "count = 2.5"), "devices: Expected `int`, got `float` - at `$.count`"),
            (LEAST.replace("count = 3", "count = 3\narrival = [0.5, 1.5]"), "devices.arrival is [0.5, 1.5]; expected"),
            (LEAST.replace("count = 3", "count = 3\narrival = [0.0, 0.0]"), "no task would ever arrive"),
            (LEAST.replace("count = 3", "count = 3\nspeed = [2, 1]"), "devices.speed is [2, 1]; expected"),
            (LEAST.replace("count = 3", "count = 3\nspeed = [nan, 1]"), "devices.speed is [nan, 1]"),
            (LEAST.replace("count = 3", "count = 3\nspeed = [1, inf]"), "devices.speed is (1.0, inf); expected finite"),
            (LEAST.replace("count = 3", "count = 3\nmove_m_s = inf"), "devices.move_m_s is inf; expected finite"),
            (LEAST + "[radio]\npower_dbm = nan", "radio.power_dbm is nan; expected finite"),
            (LEAST.replace("count = 3", "count = 3\nspeed = [1]"), "Expected `array` of length 2"),
            (LEAST.replace("count = 3", "count = 3\nmove_m_s = 2000"), "across the whole area of 120 m"),
            (LEAST.replace("count = 3", "count = 3\ndeadline_ms = [5, 10]"), "within the longest deadline of 10 ms"),
            (LEAST.replace("count = 3", "count = 1000000000"), "over the limit of 10000000; name fewer devices"),
            (LEAST + "[scenario]\nslots = 100000000", "100000000 slots, over the limit of 1000000"),
            (LEAST + "[scenario]\nname = ''", "name: Expected `str` of length >= 1"),
            (LEAST + "capacity = []", "servers.capacity is empty"),
            (LEAST + "foreign = [0.5, 1.0]", "servers.foreign is [0.5, 1]; expected"),
            (LEAST + "fails = [[1, 0, 5]]", "names server 1; there are 1, counted from 0"),
            (LEAST + "fails = [[0, 5, 5]]", "from slot 5 to slot 5 is no time"),
            (LEAST + "fails = [[0, 200, 210]]", "server 0 fails at slot 200, after the last of 200 slots"),
            (LEAST + "fails = [[0, 100, 200]]", "from slot 100 on every server is down for good"),
            (LEAST + "fails = [[0, 1, 9], [0, 5, 12]]", "server 0 fails at slot 5 while it is down from 1 to 9"),
            (LEAST + "fails = [[0, 1, 9], [0, 1, 9]]", "names a failure twice"),
            (LEAST + "[radio]\nfading = 0\n[uncertainty]\nestimate_error = 0.1", "off by 0.1 of a fading of 0"),
            (LEAST + "[energy]\ncompute_w = 3", "energy: Object missing required field `transmit_w`"),
            (LEAST.replace("[profile]", "[profile]\nsource = 'web'"), "sources are paper, file, bundle"),
            (LEAST.replace("[profile]", "[profile]\nmethod = 'vgg'"), "choose one of aecnn, aecnn+picture, ca-pruned"),
            (LEAST.replace("[profile]", "[profile]\nsplit = 3"), "no split 3; it has 1, 2"),
            (LEAST.replace("[profile]", "[profile]\npath = 'x'"), "profile.path says nothing"),
            (LEAST.replace("[profile]", "[profile]\nsource = 'file'"), "profile.path is missing; name the file"),
            (LEAST.replace("[profile]", "[profile]\noptions = ['l1-v2', 'l1-v3']"), "has no variant l1-v3"),
            (LEAST.replace("[profile]", "[profile]\noptions = ['l1-v2', 'l1-v2']"), "names an option twice"),
            (LEAST.replace("[profile]", "[profile]\nsource = 'file'\npath = 'none.json'"), "cannot read"),
            (LEAST.replace("[profile]", "[profile]\nsource = 'bundle'\npath = 'none'"), "none"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_with_a_file_is_said_in_one_line(self, text: str, said: str) -> None:
        with pytest.raises(AecnnError) as caught:
            parse_scenario(text.encode(errors="surrogateescape"), "mine.toml", Path())
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        if "none" not in text:
            assert isinstance(caught.value, ScenarioError)
            assert str(caught.value).startswith("mine.toml") or "profile" in text

    def test_a_failure_of_all_servers_that_ends_is_none_for_good(self) -> None:
        assert parse(LEAST + "fails = [[0, 100, 199]]").servers.fails == ((0, 100, 199),)

    def test_a_name_that_is_none_lists_those_that_are(self, tmp_path: Path) -> None:
        with pytest.raises(ScenarioError, match=r"no scenario is called 'paper'; there are 16x512, .*paper-2x14"):
            load_scenario("paper")
        with pytest.raises(ScenarioError, match=r"cannot read the scenario .*other.toml: No such file"):
            load_scenario(str(tmp_path / "other.toml"))
        with pytest.raises(ScenarioError, match="Is a directory"):
            load_scenario(str(tmp_path))

    def test_a_huge_file_is_not_read(self, tmp_path: Path) -> None:
        with (tmp_path / "huge.toml").open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(ScenarioError, match="which no scenario has"):
            load_scenario(str(tmp_path / "huge.toml"))

    def test_deep_nesting_is_an_error_of_ours(self) -> None:
        with pytest.raises(ScenarioError, match="is no TOML"):
            parse("a = " + "[" * 100_000)


class TestChanges:
    def test_keys_are_those_of_the_file(self) -> None:
        base = load_scenario("paper-2x14")
        changed = with_changes(
            base,
            {
                "devices.count": 20,
                "uncertainty.estimate_error": 0.3,
                "devices.deadline_ms": [50, 60],
                "slots": 5,
                "scenario.slot_ms": 40,
                "energy.compute_w": 1,
                "energy.transmit_w": 2.0,
                "name": "other",
            },
        )
        assert (changed.devices.count, changed.uncertainty.estimate_error, changed.slots) == (20, 0.3, 5)
        assert (changed.devices.deadline_ms, changed.slot_ms, changed.name) == ((50.0, 60.0), 40.0, "other")
        assert changed.energy == Energy(compute_w=1.0, transmit_w=2.0)
        assert changed.radio == base.radio
        assert changed.profile == base.profile
        assert with_changes(base, {}) == base

    def test_another_profile_of_the_paper_can_be_taken(self) -> None:
        base = load_scenario("paper-2x14")
        other = with_changes(base, {"profile.method": "bottlenet++", "profile.options": ["l1-v64", "l1-v2"]})
        assert [option.accuracy for option in other.profile.options] == [0.8854, 0.9219]
        assert with_changes(base, {"profile.method": "aecnn", "profile.split": 2}).profile == paper_profile("aecnn", 2)
        fewer = with_changes(base, {"profile.options": ["l1-v8"]})
        assert fewer.profile.options == (base.profile.options[2],)

    @pytest.mark.parametrize(
        ("changes", "kind", "said"),
        [
            ({"devices.cont": 3}, SettingsError, "did you mean devices.count?"),
            ({"zzz": 3}, SettingsError, "known are name, scenario.name, slots"),
            ({"profile.path": "x"}, SettingsError, "no profile.path"),
            ({"devices.count": "x"}, ScenarioError, "paper-2x14 with devices.count = 'x': devices: Expected `int`"),
            ({"devices.deadline_ms": [1, 2]}, ScenarioError, "within the longest deadline of 2 ms"),
            ({"energy.compute_w": 3}, ScenarioError, "missing required field `transmit_w`"),
            ({"radio.fading": 0}, ScenarioError, "off by 0.1 of a fading of 0"),
            ({"radio.bandwidth_mhz": float("inf")}, ScenarioError, "expected finite"),
            ({"profile.options": ["exit1"]}, ScenarioError, "has no variant exit1"),
            ({"profile.method": "early-exit", "profile.split": 2}, ScenarioError, "neither a split nor ratios"),
        ],
    )
    def test_they_are_checked_as_a_file_is(self, changes: dict[str, Any], kind: type[AecnnError], said: str) -> None:
        with pytest.raises(kind) as caught:
            with_changes(load_scenario("paper-2x14"), changes)
        assert said in str(caught.value)
