"""Profiles of a scenario: from the paper's table, from a bundle that was measured, and from files."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.errors import PlanError, ScenarioError
from aecnn_deploy.offloading.mec.profile import Option, Profile
from aecnn_deploy.offloading.mec.profiles import METHODS, paper_profile, profile_from_bundle, read_profile
from aecnn_deploy.offloading.scenario_file import load_scenario
from aecnn_deploy.planning.link import bytes_on_link
from aecnn_deploy.planning.profile_store import write_profile
from aecnn_deploy.wire.header import HEADER_BYTES
from tests.bundles import make_bundle
from tests.plan_profiles import around, device_profile, edge_profile

LEAST = "[profile]\n[devices]\ncount = 3\n[servers]\ncount = 1\n"


class TestPaper:
    def test_aecnn_at_the_first_split_is_the_table_with_a_pi_4_and_an_edge_of_8_ms(self) -> None:
        profile = paper_profile("aecnn")
        first, last = profile.options[0], profile.options[-1]
        assert (first.name, first.accuracy, last.name, last.accuracy) == ("l1-v2", 0.9562, "l1-v64", 0.9147)
        assert first.payload_bytes == pytest.approx(32 * 56 * 56 * 11.13 / 8)
        assert last.payload_bytes == pytest.approx(56 * 56 * 7.73 / 8)
        assert first.device_ms == pytest.approx(118.0 / 2 / 17.33 + 4.53, abs=0.01)
        assert first.edge_ms == pytest.approx(8 + 3.03)
        assert (profile.local_ms, profile.local_accuracy) == (236, 0.9584)
        assert "2211.13745" in profile.source

    def test_at_the_second_split_only_the_last_convolutions_shrink(self) -> None:
        times = {o.name: o.device_ms for o in paper_profile("aecnn", 2).options}
        assert times["l2-v2"] - 7.89 == pytest.approx((246.46 + 102.76 / 2) / 17.327, abs=0.01)
        assert times["l2-v64"] - 1.9 == pytest.approx((246.46 + 102.76 / 64) / 17.327, abs=0.01)

    @pytest.mark.parametrize("split", [1, 2])
    def test_the_multiply_adds_are_those_of_the_networks_themselves(self, split: int) -> None:
        torch = pytest.importorskip("torch")
        pytest.importorskip("torchvision")
        from aecnn_deploy.models.backbones import build_backbone
        from aecnn_deploy.models.macs import count_macs
        from aecnn_deploy.models.split import SplitDesign, SplitModel
        from aecnn_deploy.offloading.mec import profiles
        from aecnn_deploy.planning.paper import paper_table

        backbone = build_backbone("resnet50")
        for ratio in (2, 64):
            row = paper_table().row(split, ratio)
            assert row is not None
            for kind, counted in (
                ("aecnn", profiles._pruned_macs(row)),
                ("bottlenetpp", profiles._bottlenet_macs(row)),
            ):
                design = SplitDesign(kind=kind, split=split, planes=row.kept_channels, bits=8)  # type: ignore[arg-type]
                kept = torch.arange(row.kept_channels) if kind == "aecnn" else None
                head = SplitModel(backbone, design, kept).head
                assert count_macs(head, (1, 3, 224, 224)) == pytest.approx(counted, rel=1e-3), (kind, ratio)

    def test_what_each_rival_pays(self) -> None:
        ours, pruned, theirs = (paper_profile(name).options for name in ("aecnn", "ca-pruned", "bottlenet++"))
        for mine, other, bnpp in zip(ours, pruned, theirs, strict=True):
            assert mine.accuracy > other.accuracy > bnpp.accuracy
            assert mine.payload_bytes == other.payload_bytes == bnpp.payload_bytes
            assert mine.device_ms == other.device_ms < bnpp.device_ms
            assert mine.edge_ms == other.edge_ms == bnpp.edge_ms

    def test_early_exits_are_sent_pictures_and_cost_more_the_better_they_are(self) -> None:
        profile = paper_profile("early-exit")
        assert len(profile.options) == 5
        assert all(option.sends_picture and option.device_ms == 0 for option in profile.options)
        for one, next_one in zip(profile.options, profile.options[1:], strict=False):
            assert one.accuracy < next_one.accuracy
            assert one.edge_ms < next_one.edge_ms
        assert profile.options[-1].accuracy == profile.local_accuracy
        assert profile.options[-1].edge_ms == 10

    def test_ratios_are_chosen_in_their_order(self) -> None:
        assert [option.name for option in paper_profile("aecnn", 1, [64, 4]).options] == ["l1-v64", "l1-v4"]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("vgg",), f"no method 'vgg' in the paper's profiles; choose one of {', '.join(METHODS)}"),
            (("aecnn", 3), "no split 3; it has 1, 2"),
            (("aecnn", 1, [3]), "no ratio 3 at split 1; it has 2, 4, 8, 16, 32, 64"),
            (("aecnn", 1, []), "no ratio (none is named)"),
            (("early-exit", 2), "neither a split nor ratios"),
        ],
    )
    def test_what_the_table_lacks_is_said(self, arguments: tuple[Any, ...], said: str) -> None:
        with pytest.raises(ScenarioError) as caught:
            paper_profile(*arguments)
        assert said in str(caught.value)


VARIANTS = ("tiny-l1-v2-u8", "tiny-l1-v4-u4")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two variants of known accuracy."""
    return evaluated(tmp_path_factory.mktemp("bundles"), {VARIANTS[0]: 0.96, VARIANTS[1]: 0.93}, unsplit=0.97)


def evaluated(folder: Path, accuracy: dict[str, float], *, unsplit: float | None) -> Bundle:
    plain = make_bundle(folder / "plain", agreement=None)
    with BundleWriter(folder / "bundle") as writer:
        for name in plain.files:
            writer.path(name).write_bytes((folder / "plain" / name).read_bytes())
        writer.commit_changed(
            plain,
            variants=tuple(msgspec.structs.replace(spec, accuracy=accuracy.get(spec.id)) for spec in plain.variants),
            measurements={} if unsplit is None else {"unsplit_accuracy": unsplit},
        )
    return open_bundle(folder / "bundle")


def measured(bundle: Bundle, folder: Path, *, device: dict[str, Any] | None = None, **edge: Any) -> Path:
    """A folder with latency profiles of ``bundle``, some fields changed."""
    here = device_profile(bundle.manifest)
    heads = {VARIANTS[0]: {"fp32": around(21.0)}, VARIANTS[1]: {"fp32": around(12.0)}}
    write_profile(bundle, msgspec.structs.replace(here, **{"heads": heads, **(device or {})}), folder)
    write_profile(bundle, msgspec.structs.replace(edge_profile(bundle.manifest), **edge), folder)
    return folder


class TestBundles:
    def test_what_was_measured_becomes_the_options(self, bundle: Bundle, tmp_path: Path) -> None:
        profile = profile_from_bundle(bundle, measured(bundle, tmp_path))
        here, there = device_profile(bundle.manifest), edge_profile(bundle.manifest)
        assert [(option.name, option.accuracy) for option in profile.options] == [
            (VARIANTS[0], 0.96),
            (VARIANTS[1], 0.93),
        ]
        assert (profile.local_accuracy, profile.local_ms) == (0.97, 335.0)
        for option, head_ms in zip(profile.options, (21.0, 12.0), strict=True):
            fits = [
                name
                for name, coding in here.coders[option.name].items()
                if option.payload_bytes == bytes_on_link(HEADER_BYTES + coding.bytes_mean)
                and option.device_ms == pytest.approx(head_ms + coding.encode.p50_ms)
                and option.edge_ms == pytest.approx(0.4 + 2.6 + there.coders[option.name][name].p50_ms)
            ]
            assert fits
        assert bundle.id[:16] in profile.source
        assert "camera-7" in profile.source

    def test_the_slower_the_link_the_smaller_what_is_sent(self, bundle: Bundle, tmp_path: Path) -> None:
        folder = measured(bundle, tmp_path)
        slow, fast = (profile_from_bundle(bundle, folder, rate_bps=rate).options[0] for rate in (1e4, 1e12))
        assert slow.payload_bytes < fast.payload_bytes
        assert slow.device_ms + slow.edge_ms > fast.device_ms + fast.edge_ms

    def test_variants_are_chosen_by_name(self, bundle: Bundle, tmp_path: Path) -> None:
        folder = measured(bundle, tmp_path)
        assert [o.name for o in profile_from_bundle(bundle, folder, variants=VARIANTS[1:]).options] == [VARIANTS[1]]
        with pytest.raises(ScenarioError, match=f"has no variant v9; it has {VARIANTS[0]}, {VARIANTS[1]}"):
            profile_from_bundle(bundle, folder, variants=["v9"])

    @pytest.mark.parametrize(
        ("device", "edge", "said"),
        [
            (
                {"heads": {VARIANTS[0]: {"fp32": around(1.0)}}},
                {},
                f"device profile has no head of variant {VARIANTS[1]}",
            ),
            ({"local": None}, {}, "no time of the unsplit network"),
            ({"coders": {}}, {}, f"device profile has no coder of variant {VARIANTS[0]}"),
            ({}, {"coders": {}}, f"edge profile has no decoder of variant {VARIANTS[0]}"),
            ({}, {"tails": {VARIANTS[0]: {1: around(1.0)}}}, f"has no tail of one image of variant {VARIANTS[1]}"),
            ({}, {"tails": {name: {4: around(1.0)} for name in VARIANTS}}, "edge profile has no tail of one image"),
        ],
    )
    def test_what_was_not_measured_is_named_with_the_command_that_does(
        self, bundle: Bundle, tmp_path: Path, device: dict[str, Any], edge: dict[str, Any], said: str
    ) -> None:
        folder = measured(bundle, tmp_path, device=device, **edge)
        with pytest.raises(ScenarioError) as caught:
            profile_from_bundle(bundle, folder)
        assert said in str(caught.value)
        half = "edge" if edge else "device"
        assert f"aecnn-deploy calibrate {half} {bundle.path}" in str(caught.value)

    def test_halves_without_a_common_coder_are_named(self, bundle: Bundle, tmp_path: Path) -> None:
        coders = {name: {"unheard-of": around(1.0)} for name in VARIANTS}
        with pytest.raises(ScenarioError, match=rf"variant {VARIANTS[0]} .* no coder .* in common"):
            profile_from_bundle(bundle, measured(bundle, tmp_path, coders=coders))

    def test_without_any_profile_it_says_what_to_run(self, bundle: Bundle, tmp_path: Path) -> None:
        with pytest.raises(PlanError, match="aecnn-deploy calibrate device"):
            profile_from_bundle(bundle, tmp_path)

    def test_a_variant_without_accuracy_is_named(self, tmp_path: Path) -> None:
        some = evaluated(tmp_path, {VARIANTS[0]: 0.9}, unsplit=0.97)
        folder = measured(some, tmp_path / "profiles")
        with pytest.raises(ScenarioError, match=f"variant {VARIANTS[1]} .* has no accuracy.*leave it out"):
            profile_from_bundle(some, folder)
        assert len(profile_from_bundle(some, folder, variants=VARIANTS[:1]).options) == 1

    def test_an_unsplit_network_of_unknown_accuracy_is_said(self, tmp_path: Path) -> None:
        some = evaluated(tmp_path, dict.fromkeys(VARIANTS, 0.9), unsplit=None)
        with pytest.raises(ScenarioError, match="how accurate the unsplit network is"):
            profile_from_bundle(some, measured(some, tmp_path / "profiles"))

    def test_a_scenario_takes_it_from_beside_its_file(self, bundle: Bundle, tmp_path: Path) -> None:
        measured(bundle, tmp_path / "kept")
        (tmp_path / "bundle").symlink_to(bundle.path)
        profile = f'[profile]\nsource = "bundle"\npath = "bundle"\nprofiles = "kept"\noptions = ["{VARIANTS[1]}"]'
        (tmp_path / "own.toml").write_text(LEAST.replace("[profile]", profile) + "[radio]\nloss_exponent = 2.5")
        scenario = load_scenario(str(tmp_path / "own.toml"))
        assert [option.name for option in scenario.profile.options] == [VARIANTS[1]]


MINE = Profile(
    name="mine",
    source="a guess",
    local_accuracy=0.9,
    local_ms=100.0,
    options=(Option(name="a", accuracy=0.8, payload_bytes=100.0, device_ms=1.0, edge_ms=1.0),),
)


class TestProfileFiles:
    def test_json_and_toml_say_the_same(self, tmp_path: Path) -> None:
        (tmp_path / "mine.json").write_bytes(msgspec.json.encode(MINE))
        (tmp_path / "mine.toml").write_text(
            'name = "mine"\nsource = "a guess"\nlocal_accuracy = 0.9\nlocal_ms = 100\n'
            '[[options]]\nname = "a"\naccuracy = 0.8\npayload_bytes = 100\ndevice_ms = 1\nedge_ms = 1\n'
        )
        assert read_profile(tmp_path / "mine.json") == read_profile(tmp_path / "mine.toml") == MINE

    def test_a_scenario_finds_it_beside_its_file(self, tmp_path: Path) -> None:
        (tmp_path / "mine.json").write_bytes(msgspec.json.encode(MINE))
        text = LEAST.replace("[profile]", "[profile]\nsource = 'file'\npath = 'mine.json'")
        (tmp_path / "own.toml").write_text(text)
        assert load_scenario(str(tmp_path / "own.toml")).profile == MINE

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"options": []}, "profile mine has no option to offload by"),
            ({"local_ms": 0}, "expected a share and a positive time"),
            ({"local_accuracy": "x"}, "is no profile: Expected `float`, got `str`"),
            ({"unknown": 1}, "unknown field `unknown`"),
            ({"options": [{"name": "a"}]}, "missing required field `accuracy`"),
            (
                {"options": [{**msgspec.to_builtins(MINE.options[0]), "accuracy": 95}]},
                "accuracy 95.0 is outside 0 to 1",
            ),
            ({"options": [{**msgspec.to_builtins(MINE.options[0]), "edge_ms": -1}]}, "edge_ms is -1.0"),
            ({"options": [{**msgspec.to_builtins(MINE.options[0]), "edge_ms": 0}]}, "no server works on"),
            ({"options": [msgspec.to_builtins(MINE.options[0])] * 2}, "names an option twice: a, a"),
        ],
    )
    def test_a_wrong_value_is_said_with_the_file(self, tmp_path: Path, change: dict[str, Any], said: str) -> None:
        path = tmp_path / "mine.json"
        path.write_text(json.dumps({**msgspec.to_builtins(MINE), **change}))
        with pytest.raises(ScenarioError) as caught:
            read_profile(path)
        assert said in str(caught.value)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{" * 200_000, b'{"name": NaN}', b"[" * 200_000])
    @pytest.mark.parametrize("name", ["mine.json", "mine.toml"])
    def test_garbage_is_no_profile(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ScenarioError, match=r"is no profile: .*expected name, source"):
            read_profile(tmp_path / name)

    def test_a_huge_file_is_not_read_and_a_missing_one_named(self, tmp_path: Path) -> None:
        with (tmp_path / "huge.json").open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(ScenarioError, match="which no profile has"):
            read_profile(tmp_path / "huge.json")
        with pytest.raises(ScenarioError, match=r"cannot read the profile .*none.json: No such file"):
            read_profile(tmp_path / "none.json")

    def test_the_documented_files_are_read(self, tmp_path: Path) -> None:
        text = (Path(__file__).resolve().parents[1] / "docs" / "offloading.md").read_text()
        (profile,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
        (scenario,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
        (tmp_path / "mine.json").write_text(profile)
        (tmp_path / "own.toml").write_text(
            scenario.replace("[profile]", "[profile]\nsource = 'file'\npath = 'mine.json'")
        )
        options = load_scenario(str(tmp_path / "own.toml")).profile.options
        assert [(option.name, option.sends_picture) for option in options] == [("small", False), ("picture", True)]
