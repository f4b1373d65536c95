"""``aecnn-deploy plan``: what it prints, its document, its figures, and what it refuses."""

import json
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from PIL import Image

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.cli.main import app
from aecnn_deploy.cli.plan_text import plan_lines
from aecnn_deploy.planning.link import Link
from aecnn_deploy.planning.plan import PlanSettings, make_plan
from aecnn_deploy.planning.predict import Predictor
from aecnn_deploy.planning.profile_store import profile_folder, write_profile
from aecnn_deploy.planning.profiles import AnyProfile, DeviceProfile, EdgeProfile, ImageCoding, Machine
from aecnn_deploy.planning.rules import ALL_RULES
from tests.bundles import one_line
from tests.in_process import command_here
from tests.plan_profiles import PI, around, device_profile, edge_profile, link_profile

DOCS = Path(__file__).resolve().parents[1] / "docs" / "planning.md"
ACCURACIES = {"tiny-l1-v2-u8": 0.961, "tiny-l1-v4-u4": 0.93}
FRAME = [
    ("jpeg-q75", 3000.0, 1.0, 0.5),
    ("raw", 12_342.0, 0.1, 0.1),
]

Plan = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two variants of known accuracy."""
    from tests.bundles import make_bundle

    folder = tmp_path_factory.mktemp("bundles")
    plain = make_bundle(folder / "plain")
    with BundleWriter(folder / "bundle") as writer:
        for name in plain.files:
            writer.path(name).write_bytes((folder / "plain" / name).read_bytes())
        writer.commit_changed(
            plain,
            variants=tuple(msgspec.structs.replace(spec, accuracy=ACCURACIES[spec.id]) for spec in plain.variants),
            measurements={"unsplit_accuracy": 0.97},
        )
    return open_bundle(folder / "bundle")


def halves(bundle: Bundle) -> list[AnyProfile]:
    """A device and an edge, with image codings of the bundle's small frame."""
    manifest, side = bundle.manifest, bundle.manifest.input.width
    heads = {
        "tiny-l1-v2-u8": {"fp32": around(21.0)},
        "tiny-l1-v4-u4": {"fp32": around(12.0)},
    }
    coders = device_profile(manifest).coders
    encoded = [ImageCoding(name, side, side, size, encode=around(encode)) for name, size, encode, _ in FRAME]
    decoded = [ImageCoding(name, side, side, size, decode=around(decode)) for name, size, _, decode in FRAME]
    edge = edge_profile(manifest)
    whole = [item for item in edge.image_codings if item.width > side]
    return [
        device_profile(manifest, heads=heads, coders=coders, image_codings=encoded, local=around(90.0, 0.03)),
        msgspec.structs.replace(edge, image_codings=[*decoded, *whole]),
    ]


@pytest.fixture
def profiles(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a device's and an edge's profile."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for profile in halves(bundle):
        write_profile(bundle, profile, tmp_path / "profiles")
    yield tmp_path / "profiles"
    assert not profile_folder(bundle).exists()


@pytest.fixture
def plan(bundle: Bundle, profiles: Path) -> Plan:
    """Run ``plan`` with these profiles."""
    return lambda *options: command_here("plan", str(bundle.path), "--profiles", str(profiles), *options)


def document(done: "subprocess.CompletedProcess[bytes]", status: int = 0) -> dict[str, Any]:
    assert done.returncode == status, done.stderr.decode()
    assert done.stderr == b""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class TestText:
    def test_the_whole_page_in_80_columns(
        self, bundle: Bundle, profiles: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(bundle.path.parent)
        asked = ("--rate-mbps", "10", "--rtt-ms", "3", "--deadline-ms", "46")
        done = command_here("plan", "bundle", "--profiles", str(profiles), *asked)
        assert (done.returncode, done.stderr) == (0, b"")
        assert max(map(len, done.stdout.decode().splitlines())) <= 80
        assert done.stdout.decode() == GOLDEN
        assert GOLDEN in DOCS.read_text()

    def test_nothing_that_fits_is_told_with_the_nearest_and_exit_status_1(self, plan: Plan) -> None:
        done = plan("--rate-mbps", "10", "--rtt-ms", "3", "--deadline-ms", "5")
        assert (done.returncode, done.stderr) == (1, b"")
        text = " ".join(done.stdout.decode().split())
        assert "cannot nothing meets the deadline of 5.0 ms: the nearest, tiny-l1-v4-u4, raw, takes " in text
        assert "the deadline is below any head's time: the fastest, of tiny-l1-v4-u4 in fp32, takes 12.0 ms" in text
        assert "instead of the choice" not in text

    def test_the_link_profile_gives_rate_and_round_trip(self, plan: Plan, bundle: Bundle, profiles: Path) -> None:
        write_profile(bundle, link_profile(bundle.manifest), profiles)
        text = plan().stdout.decode()
        assert "link      10 Mbit/s, 4.2 ms without content, measured to ws://edge-1:8765\n" in text
        assert "asked     the fastest\n" in text

    def test_what_was_not_measured_is_a_note(self, plan: Plan) -> None:
        text = " ".join(plan("--rate-mbps", "10").stdout.decode().split())
        assert "note no round trip is given and none was measured: it counts as 0 ms; give --rtt-ms" in text

    def test_rules_stand_with_their_numbers_and_those_that_lack_the_same_together(self, bundle: Bundle) -> None:
        device, edge = halves(bundle)
        assert isinstance(device, DeviceProfile)
        assert isinstance(edge, EdgeProfile)
        predictor = Predictor(bundle.manifest, device, edge)
        made = make_plan(bundle.manifest, predictor, Link(10e6, 3.0), PlanSettings())
        why = "the device profile has no times of layers"
        rules = [
            {"rule": "late", "predicted_ms": None, "why": why},
            {
                "rule": "edgent",
                "description": "the unsplit model, all on the device",
                "predicted_ms": 1234.56,
                "accuracy": None,
                "sent_bytes": 52_000.4,
                "why": "the most accurate of 5 exits within 40 ms, by accuracy",
            },
            {"rule": "early", "predicted_ms": None, "why": why},
        ]
        lines = list(plan_lines("bundle", made, device, edge, None, None, rules, ["a note"]))
        at = lines.index("other people's rules")
        assert lines[at + 1 :] == [
            " 1,234.6         -   52,000  edgent",
            "                               the unsplit model, all on the device: the most",
            "                                 accurate of 5 exits within 40 ms, by accuracy",
            f"  late, early: {why}",
            "",
            "note      a note",
        ]

    def test_full_offloading_has_no_command_of_its_own(self, plan: Plan) -> None:
        text = plan("--rate-mbps", "150", "--rtt-ms", "3", "--deadline-ms", "46", "--full").stdout.decode()
        assert "choice    full offloading, file@640x480: " in text
        assert "run       POST each image to /v1/classify of the edge: docs/serving.md" in text


class TestDocument:
    def test_the_page_names_every_key_and_every_option(self, plan: Plan) -> None:
        found = document(plan("--rate-mbps", "10", "--rtt-ms", "3", "--deadline-ms", "46", "--json"))
        keys = {*found, *found["choice"], *found["break_even"][0], *found["least_rates"][0], *found["link"]}
        text = DOCS.read_text()
        assert {key for key in keys if f"`{key}`" not in text} == set()
        command = typer.main.get_command(app).commands["plan"]  # type: ignore[attr-defined]
        options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        assert {name for name in options - {"bundle", "--help", "-h"} if f"`{name}`" not in text} == set()

    def test_it_has_the_keys_that_others_rely_on(self, plan: Plan, bundle: Bundle) -> None:
        found = document(plan("--rate-mbps", "10", "--rtt-ms", "3", "--deadline-ms", "46", "--json"))
        assert found["bundle_id"] == bundle.id
        choice = found["choice"]
        assert {"variant", "coder", "path", "predicted_ms", "accuracy", "parts_ms"} <= set(choice)
        assert (choice["variant"], choice["path"], choice["accuracy"]) == ("tiny-l1-v2-u8", "split", 0.961)
        assert choice["predicted_ms"] <= found["deadline_ms"] == 46
        assert sum(choice["parts_ms"].values()) == pytest.approx(choice["predicted_ms"], abs=1e-2)
        assert choice["low_ms"] < choice["predicted_ms"] < choice["high_ms"]
        assert {item["path"] for item in found["alternatives"]} == {"split", "full", "local"}
        assert all(item["why"] for item in found["alternatives"])
        assert found["link"] == {"rate_bps": 10e6, "fixed_ms": 3.9, "edge": None}
        assert found["profiles"]["device"]["machine"] == str(PI)
        # These profiles have no times of layers, and nobody measured what cuts send: only variants can be partitioned.
        assert [item["rule"] for item in found["rules"]] == list(ALL_RULES)
        assert {item["rule"] for item in found["rules"] if item["predicted_ms"] is not None} == {"edgent"}
        assert all(item["why"] for item in found["rules"])
        assert (found["cannot"], found["nearest"], found["accuracy_is"]) == (None, None, "accuracy")

    def test_break_even_rates_are_those_at_which_both_take_equally_long(self, plan: Plan) -> None:
        options = ("--rtt-ms", "3", "--deadline-ms", "46", "--json")
        found = document(plan("--rate-mbps", "10", *options))
        rates = [item for item in found["break_even"] if item["rate_bps"] is not None]
        assert rates
        for pair in rates:
            there = json.loads(plan("--rate-mbps", repr(pair["rate_bps"] / 1e6), *options).stdout)
            ways = [there["choice"], *there["alternatives"]]
            times = [
                next(way["predicted_ms"] for way in ways if way is not None and pair[end].items() <= way.items())
                for end in ("first", "second")
            ]
            assert times[0] == pytest.approx(times[1], abs=1e-3)

    def test_nothing_that_fits_is_null(self, plan: Plan) -> None:
        found = document(plan("--rate-mbps", "10", "--rtt-ms", "3", "--deadline-ms", "5", "--json"), 1)
        assert found["choice"] is None
        assert found["nearest"]["variant"] == "tiny-l1-v4-u4"
        assert found["cannot"].startswith("nothing meets the deadline of 5.0 ms")

    def test_full_competes_if_it_is_asked_for(self, plan: Plan) -> None:
        asked = ("--rate-mbps", "150", "--rtt-ms", "3", "--deadline-ms", "46", "--json")
        assert document(plan(*asked))["choice"]["path"] == "split"
        choice = document(plan(*asked, "--full"))["choice"]
        assert (choice["path"], choice["image_coding"], choice["accuracy"]) == ("full", "file@640x480", 0.97)

    def test_local_competes_unless_it_is_excluded(self, plan: Plan) -> None:
        asked = ("--rate-mbps", "10", "--rtt-ms", "3", "--deadline-ms", "200", "--json")
        assert document(plan(*asked))["choice"]["path"] == "local"
        assert document(plan(*asked, "--no-local"))["choice"]["path"] == "split"

    def test_an_image_size_sets_what_is_read_and_sent(self, plan: Plan) -> None:
        found = document(plan("--rate-mbps", "10", "--rtt-ms", "3", "--image-size", "1920x1080", "--json"))
        assert found["image_size"] == [1920, 1080]
        assert found["choice"]["parts_ms"]["read"] == 48.0
        assert "file@1920x1080" in {item["image_coding"] for item in found["alternatives"]}

    def test_a_given_rate_goes_before_the_measured_one(self, plan: Plan, bundle: Bundle, profiles: Path) -> None:
        write_profile(bundle, link_profile(bundle.manifest), profiles)
        found = document(plan("--rate-mbps", "2", "--json"))
        assert found["link"] == {"rate_bps": 2e6, "fixed_ms": 4.2, "edge": "ws://edge-1:8765"}

    def test_halves_of_other_releases_are_a_note(self, plan: Plan, bundle: Bundle, profiles: Path) -> None:
        edge = halves(bundle)[1]
        write_profile(bundle, msgspec.structs.replace(edge, versions={"aecnn-deploy": "0.0.9"}), profiles)
        notes = document(plan("--rate-mbps", "2", "--rtt-ms", "1", "--json"))["notes"]
        assert notes == [
            "the device was measured with aecnn-deploy 0.1.0, the edge with 0.0.9: measure one of them again"
        ]


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (("--rate-mbps", "0"), "the link's rate is 0 bit/s, expected a positive number"),
            (("--rate-mbps=-3",), "the link's rate is -3e+06 bit/s"),
            (("--rate-mbps", "nan"), "the link's rate is nan bit/s"),
            (("--rate-mbps", "1", "--rtt-ms=-1"), "the link's round trip is -1 ms, expected 0 or more"),
            (("--rate-mbps", "1", "--deadline-ms", "0"), "the deadline is 0 ms, expected a positive number"),
            (("--rate-mbps", "1", "--min-accuracy", "95"), "the least accuracy is 95, expected 0 to 1"),
            (("--rate-mbps", "1", "--image-size", "big"), "--image-size 'big' is no size, expected WIDTHxHEIGHT"),
            (("--rate-mbps", "1", "--image-size", "0x5"), "--image-size '0x5' is no size"),
            (
                ("--rate-mbps", "1", "--plot", "a.pdf"),
                "--plot a.pdf: cannot tell the format, expected a name that ends",
            ),
            (("--rate-mbps", "1", "--safe"), "--safe says how a deadline is held; give one with --deadline-ms"),
        ],
    )
    def test_wrong_use_is_one_line_and_exit_status_2(self, plan: Plan, options: tuple[str, ...], told: str) -> None:
        done = plan(*options)
        assert (done.returncode, done.stdout) == (2, b"")
        assert told in one_line(done.stderr)

    def test_wrong_use_is_told_before_profiles_are_looked_for(self, tmp_path: Path) -> None:
        done = command_here("plan", str(tmp_path / "no bundle"), "--rate-mbps", "0")
        assert done.returncode == 2

    def test_without_a_rate_and_a_link_profile_it_says_what_to_do(self, plan: Plan) -> None:
        done = plan("--deadline-ms", "50")
        assert done.returncode == 1
        assert (
            "no rate is given and there is no link profile (none is kept of this bundle); give --rate-mbps"
            in one_line(done.stderr)
        )

    def test_without_profiles_it_says_what_to_run(self, bundle: Bundle, tmp_path: Path) -> None:
        done = command_here("plan", str(bundle.path), "--profiles", str(tmp_path / "none"), "--rate-mbps", "1")
        assert done.returncode == 1
        assert "no device profile of this bundle in" in one_line(done.stderr)
        assert "run 'aecnn-deploy calibrate device' on that machine" in one_line(done.stderr)

    def test_a_profile_of_another_bundle_is_refused(self, plan: Plan, bundle: Bundle, tmp_path: Path) -> None:
        other = msgspec.structs.replace(halves(bundle)[0], bundle_id="b" * 64)
        path = write_profile(bundle, other, tmp_path / "other")
        done = plan("--rate-mbps", "1", "--device", str(path))
        assert done.returncode == 1
        assert f"was measured with bundle {'b' * 16}…" in one_line(done.stderr)

    def test_another_machine_s_link_is_refused_where_it_is_named_or_needed(
        self, plan: Plan, bundle: Bundle, profiles: Path
    ) -> None:
        path = write_profile(bundle, link_profile(bundle.manifest, machine=Machine("x86_64", "laptop")), profiles)
        named = plan("--rate-mbps", "1", "--link", str(path))
        assert named.returncode == 1
        assert f"is the link of laptop (x86_64), the device profile is of {PI}; measure" in one_line(named.stderr)
        needed = plan()
        assert needed.returncode == 1
        assert f"only of another machine than {PI}: {path}" in one_line(needed.stderr)
        notes = document(plan("--rate-mbps", "1", "--json"))["notes"]
        assert f"not used, since it is of another machine than the device: {path}" in notes

    def test_several_links_of_the_device_are_not_chosen_from(self, plan: Plan, bundle: Bundle, profiles: Path) -> None:
        for edge in ("ws://a", "ws://b"):
            path = write_profile(bundle, link_profile(bundle.manifest, edge=edge), profiles)
        done = plan("--rate-mbps", "1")
        assert done.returncode == 1
        assert "there are 2 link profiles of" in one_line(done.stderr)
        assert document(plan("--link", str(path), "--json"))["link"]["edge"] == "ws://b"
        assert document(plan("--rate-mbps", "1", "--rtt-ms", "2", "--json"))["link"]["edge"] is None

    def test_an_image_size_that_was_not_measured_is_refused(self, plan: Plan) -> None:
        done = plan("--rate-mbps", "1", "--image-size", "100x100")
        assert done.returncode == 1
        assert "reading an image of 100x100 was not measured on the device, only: 640x480" in one_line(done.stderr)


class TestFigures:
    def test_svg_and_png_are_drawn_and_said(self, plan: Plan, tmp_path: Path) -> None:
        svg, png = tmp_path / "plan.svg", tmp_path / "plan.PNG"
        done = plan("--rate-mbps", "10", "--deadline-ms", "46", "--plot", str(svg), "--plot", str(png), "--json")
        assert document(done)["plots"] == [str(svg), str(png)]
        root = ElementTree.parse(svg).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert float(root.attrib["width"].removesuffix("pt")) == pytest.approx(80 / 25.4 * 72, abs=0.1)
        with Image.open(png) as picture:
            picture.load()
            assert picture.width == pytest.approx(80 / 25.4 * 300, abs=2)
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["plan.PNG", "plan.svg"]

    def test_the_same_numbers_give_the_same_bytes(self, plan: Plan, tmp_path: Path) -> None:
        for name in ("one.svg", "other.svg"):
            assert plan("--rate-mbps", "10", "--plot", str(tmp_path / name)).returncode == 0
        assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()

    def test_a_plan_that_cannot_be_is_drawn_too(self, plan: Plan, tmp_path: Path) -> None:
        picture = tmp_path / "none.png"
        assert plan("--rate-mbps", "10", "--deadline-ms", "0.5", "--plot", str(picture)).returncode == 1
        assert picture.stat().st_size > 10_000

    def test_a_place_that_cannot_be_written_is_told(self, plan: Plan, tmp_path: Path) -> None:
        done = plan("--rate-mbps", "10", "--plot", str(tmp_path / "no" / "plan.svg"))
        assert (done.returncode, done.stdout) == (1, b"")
        assert "cannot write the figure" in one_line(done.stderr)


GOLDEN = """\
device    camera-7 (aarch64 Cortex-A72, 4 cores), 4 threads, images of 640x480
edge      edge-1 (x86_64 EPYC, 16 cores), tensorrt fp16
link      10 Mbit/s, 3.9 ms without content
asked     the most accurate within 46.0 ms

choice    tiny-l1-v2-u8, raw: 37.9 ms
          accuracy 96.1 %, 1,060 bytes sent
          read 9.1 + head 21.0 + encode 0.0 + send 0.9 + fixed 3.9 + overhead
          0.4 + decode 0.0 + tail 2.6 = 37.9 ms
          a fast image takes 35.6 ms, a slow one 42.5 ms
run       aecnn-deploy run-device bundle --edge URL --source IMAGES --variant
          tiny-l1-v2-u8 --coder raw --threads 4

      ms  accuracy    bytes  instead of the choice
    20.6         -    3,000  full offloading, jpeg-q75
                               competes only with --full; its accuracy is not
                                 known, at most 97.0 %; 17.3 ms faster than the
                                 choice
    27.1         -   12,342  full offloading, raw
                               competes only with --full; its accuracy is not
                                 known, at most 97.0 %; 10.8 ms faster than the
                                 choice
    28.5    93.0 %      548  tiny-l1-v4-u4, raw
                               3.1 points less accurate than the choice,
                                 though 9.4 ms faster
    45.1    96.1 %      630  tiny-l1-v2-u8, zstd
                               zstd: coding takes 7.5 ms more than raw and
                                 saves 0.3 ms of sending
    52.5    96.1 %      446  tiny-l1-v2-u8, jpegls
                               jpegls: coding takes 15.1 ms more than raw and
                                 saves 0.5 ms of sending
    52.9    97.0 %   52,000  full offloading, file@640x480
                               competes only with --full; 6.9 ms over the
                                 deadline: 90 % of it is the link; in time from
                                 11.9 Mbit/s
    99.1    97.0 %        0  local computing
                               53.1 ms over the deadline

tiny-l1-v2-u8, raw is faster
   below 938 kbit/s  than full offloading, jpeg-q75
  below 4.69 Mbit/s  than full offloading, raw
  below 15.4 Mbit/s  than full offloading, file@640x480
   above 146 kbit/s  than local computing
   above 457 kbit/s  than tiny-l1-v2-u8, zstd

in time from
         277 kbit/s  tiny-l1-v4-u4, raw
        1.02 Mbit/s  tiny-l1-v2-u8, raw

other people's rules
    20.6         -    3,000  edgent
                               the unsplit model, all on the edge, jpeg-q75:
                                 the most accurate of 3 exits within 46 ms, by
                                 accuracy; what JPEG costs in accuracy was not
                                 measured
  neurosurgeon, neurosurgeon-measured, neurosurgeon-energy, jpeg-features,
    late-split, late-split-u8: the unsplit model's cuts are not known; measure
    them with 'aecnn-deploy calibrate features'
"""
