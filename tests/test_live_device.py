"""A device that chooses a variant for each frame, with a real edge behind a link whose rate changes."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.cli.explain_choice import choice_lines
from aecnn_deploy.errors import PlanError, SettingsError
from aecnn_deploy.runtimes.device_client import DeviceSettings, ImageReport
from aecnn_deploy.runtimes.sources import SourceImage
from tests.bundles import Edge, TinyVariant, command, make_bundle, make_photos, one_line, serving
from tests.device_runs import LONG_S, Part, assert_each_once, failures, frames, playing, run
from tests.link_proxy import LinkProxy, LinkSettings

SIDE = 128
# 131, 33 and 2 kB as raw planes: 52, 13 and 0.8 ms at 20 Mbit/s, ten times that at 2.
LARGE = TinyVariant("large", 32, 2, 8, accuracy=0.9)
MIDDLE = TinyVariant("middle", 8, 2, 8, accuracy=0.8)
SMALL = TinyVariant("small", 8, 8, 8, accuracy=0.5)
VARIANTS = ("large", "middle", "small")
DEADLINE_MS, EVERY_S = 150.0, 0.1
FAST_BPS, SLOW_BPS = 20e6, 2e6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("live") / "bundle"
    make_bundle(path, variants=(MIDDLE, LARGE, SMALL), size=SIDE)
    return open_bundle(path)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_photos(tmp_path_factory.mktemp("photos"), 1)[0].read_bytes()


@pytest.fixture(scope="module")
def edge(bundle: Bundle) -> Iterator[Edge]:
    with serving(bundle.path, "--preload", "all") as running:
        yield running


def paced(photo: bytes, count: int, every_s: float = EVERY_S) -> Iterator[SourceImage]:
    """A camera: a frame every so long, of when it is given."""
    began_s = time.perf_counter()
    for number in range(count):
        time.sleep(max(0.0, began_s + number * every_s - time.perf_counter()))
        yield SourceImage(f"frame{number}", photo)


class Drive:
    """A camera on a link that is good, bad and good again, each until what it is about has been seen."""

    def __init__(self, photo: bytes, link: LinkProxy) -> None:
        self._photo, self._link = photo, link
        self._phase_of: dict[str, int] = {}
        self.images: list[list[ImageReport]] = [[], [], []]  # by the phase that they were captured in

    def done(self, image: ImageReport) -> None:
        self.images[self._phase_of[image.source]].append(image)

    def frames(self) -> Iterator[SourceImage]:
        number = 0
        for phase, (rate_bps, variant, least, ok) in enumerate(
            ((FAST_BPS, "large", 10, 5), (SLOW_BPS, "small", 30, 10), (FAST_BPS, "large", 5, 3))
        ):
            self._link.rate_bps = rate_bps
            end_s = time.perf_counter() + LONG_S
            count = 0
            while count < least or self._seen(phase, variant) < ok:
                assert time.perf_counter() < end_s, (phase, [image.choice for image in self.images[phase]])
                self._phase_of[f"frame{number}"] = phase
                yield SourceImage(f"frame{number}", self._photo)
                number, count = number + 1, count + 1
                time.sleep(EVERY_S)

    def _seen(self, phase: int, variant: str) -> int:
        return sum((image.variant, image.status) == (variant, "ok") for image in self.images[phase])


def test_a_drop_and_a_rise_are_followed(bundle: Bundle, edge: Edge, photo: bytes) -> None:
    with LinkProxy(edge.port, LinkSettings(rate_bps=FAST_BPS)) as link:
        drive = Drive(photo, link)
        options = {"deadline_ms": DEADLINE_MS, "coder": "raw", "explain": True}
        report = run(bundle, link.url, drive.frames(), live=True, on_image=drive.done, **options)
    assert_each_once(report, len(report.images))
    before, slow, after = ([image.status == "ok" for image in images] for images in drive.images)
    assert "large" not in {image.variant for image in drive.images[1][10:] if image.status == "ok"}
    # No other variant but the small one can be in time where the link is bad, however well it does elsewhere.
    assert sum(before) + sum(slow) + sum(after) > len(before) + len(after)
    for image in report.images:
        if image.choice is not None and image.status == "ok":
            (row,) = [row for row in image.choice["candidates"] if row["chosen"]]
            assert (row["variant"], row["coder"]) == (image.variant, "raw")
            assert row["fits"] or image.choice["trial"]
    assert report.coders is None  # the coder is fixed


@pytest.mark.parametrize("fallback", ["none", "local"])
def test_where_nothing_fits_frames_fail_at_once_or_run_here(
    bundle: Bundle, edge: Edge, photo: bytes, fallback: str
) -> None:
    with LinkProxy(edge.port, LinkSettings(rate_bps=30e3)) as link:  # the small one takes half a second
        report = run(
            bundle, link.url, paced(photo, 40, 0.05), live=True, deadline_ms=120.0, coder="raw", fallback=fallback
        )
    assert_each_once(report, 40)
    rest = report.images[10:]
    if fallback == "none":
        assert "nothing-fits" in failures(report)
        named = [image for image in rest if image.failure == "nothing-fits"]
        assert len(named) >= 20
        assert all("the fastest, small, would take" in (image.error or "") for image in named)
    else:
        assert sum(image.path == "local" and image.status == "ok" for image in rest) >= 25
        assert "nothing-fits" in {image.fallback for image in rest}


def test_every_frame_is_run_by_the_variant_that_it_says(bundle: Bundle, edge: Edge, photo: bytes) -> None:
    alone = {name: run(bundle, edge.url, frames(photo, 1), variant=name).images[0] for name in VARIANTS}
    answered = []
    for rate_bps, variant in ((100e6, "large"), (0.6e6, "small")):
        with LinkProxy(edge.port, LinkSettings(rate_bps=rate_bps)) as proxy:
            report = run(bundle, proxy.url, paced(photo, 25, 0.06), live=True, deadline_ms=400.0, coder="raw")
        answered += [image for image in report.images if image.status == "ok"]
        assert variant in {image.variant for image in answered}
    for image in answered:
        assert image.index == alone[image.variant].index
        assert image.score == pytest.approx(alone[image.variant].score, abs=1e-4)


def test_differences_refer_to_the_variant_s_own_frames(bundle: Bundle, edge: Edge, photo: bytes) -> None:
    alone = {name: run(bundle, edge.url, frames(photo, 1), variant=name).images[0] for name in VARIANTS}
    with LinkProxy(edge.port, LinkSettings(rate_bps=FAST_BPS)) as link:
        change = threading.Timer(1.0, setattr, [link, "rate_bps", 0.3e6])
        change.start()
        report = run(bundle, link.url, paced(photo, 40, 0.06), live=True, deadline_ms=DEADLINE_MS, coder="delta-zstd")
        change.cancel()
    answered = [image for image in report.images if image.status == "ok"]
    assert "delta-zstd" in {image.coder for image in answered}
    assert not failures(report) & {"bad-payload", "no-reference", "head-failed"}
    for image in answered:
        assert image.index == alone[image.variant].index


class TestAtTheStart:
    def test_a_deadline_that_no_head_keeps_is_refused(self, tmp_path: Path, photo: bytes) -> None:
        slow = tuple(TinyVariant(f"slow{loops}", 4, 4, 8, head_loops=loops, accuracy=0.5) for loops in (2, 4))
        make_bundle(tmp_path / "bundle", variants=slow)
        heavy = open_bundle(tmp_path / "bundle")
        with playing(Part()) as url:
            with pytest.raises(
                PlanError, match=r"the fastest head here, of slow2, takes .* ms, and the deadline is 1 ms"
            ):
                run(heavy, url, frames(photo, 1), deadline_ms=1.0)
            report = run(heavy, url, frames(photo, 3), deadline_ms=60.0, fallback="local")
        assert len(report.images) == 3

    def test_settings_that_do_not_go_together_are_refused(self, bundle: Bundle) -> None:
        url = "ws://127.0.0.1:9"
        for options, why in (
            ({"min_accuracy": 0.5}, "needs --deadline-ms"),
            ({"min_accuracy": 1.5, "deadline_ms": 9.0}, "expected 0 to 1"),
            ({"min_accuracy": 0.5, "deadline_ms": 9.0, "variant": "small"}, "drop either"),
        ):
            with pytest.raises(SettingsError, match=why):
                DeviceSettings(url, **options)  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match=r"the best, large, has accuracy 0\.9"):
            run(bundle, url, [], deadline_ms=9.0, min_accuracy=0.95)


class TestCommand:
    def test_explain_prints_the_reasoning_in_80_columns(self, bundle: Bundle, edge: Edge, tmp_path: Path) -> None:
        photos = make_photos(tmp_path / "photos", 4)[0].parent
        words = ("run-device", str(bundle.path), "--edge", edge.url, "--source", str(photos), "--deadline-ms", "2000")
        done = command(*words, "--explain")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.decode().splitlines()
        assert max(map(len, lines)) <= 80
        assert sum(line.startswith("> large") for line in lines) >= 2
        assert any("of 2000 ms spent; link" in line for line in lines)
        assert "coders of large:" in lines
        assert lines[-1].endswith("is expected to be done first")
        told = json.loads(command(*words, "--explain", "--json").stdout)
        assert [image["choice"]["variant"] for image in told["images"]] == ["large"] * 4
        assert told["coder_choice"]["variant"] == "large"
        silent = run(bundle, edge.url, frames(make_photos(tmp_path, 1)[0].read_bytes(), 2), deadline_ms=2000.0)
        assert [(image.choice, image.variant) for image in silent.images] == [(None, "large")] * 2

    def test_long_names_and_times_stay_within_80_columns(self) -> None:
        row = {
            "variant": "a-backbone-with-a-long-name-l12-strided-z16-u4",
            "accuracy": 0.9,
            "total_ms": 123456.7,
            "fits": False,
            "chosen": True,
            **{f"{part}_ms": 9999.9 for part in ("head", "encode", "send", "edge_queue", "edge_decode", "edge_tail")},
            "margin_ms": 250.0,
        }
        choice = {
            "variant": row["variant"],
            "coder": "delta-jpegls",
            "trial": True,
            "state": "down to that: " + "x" * 90,
            "deadline_ms": 123456.5,
            "elapsed_ms": 100000.0,
            "link": {"megabits_per_s": 10000.0, "fixed_ms": 1234.5, "backlog_ms": 123456.7},
            "candidates": [row],
        }
        lines = list(choice_lines("a/b\x1b[31m.jpg", choice))
        assert max(map(len, lines)) <= 80
        assert all(line.isprintable() for line in lines)
        assert any(line.startswith("> ") and line.endswith(" late") for line in lines)

    def test_a_bundle_without_figures_runs_its_first_variant_and_says_so(
        self, tmp_path: Path, photo: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_bundle(tmp_path / "bundle", agreement=None)
        bare = open_bundle(tmp_path / "bundle")
        with playing(Part()) as url:
            report = run(bare, url, frames(photo, 2), deadline_ms=2000.0)
        assert {image.variant for image in report.images} == {"tiny-l1-v2-u8"}
        assert "states no accuracy of its variants" in caplog.text
        refused = command(
            *("run-device", str(bare.path), "--edge", url, "--source", str(make_photos(tmp_path / "photos", 1)[0])),
            *("--deadline-ms", "2000", "--min-accuracy", "0.5"),
        )
        assert refused.returncode == 2
        assert "fix one of them with --variant" in one_line(refused.stderr)
