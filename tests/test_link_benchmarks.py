"""The benchmarks over shaped links: what they make of samples, and a small one from end to end."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from benchmarks import link_drive, link_fig5
from benchmarks.link_arms import (
    RAW,
    Arm,
    Order,
    Sample,
    device_process,
    image_bytes,
    link_bytes,
    right_classes,
    short_name,
)
from benchmarks.link_drive import FULL, LIVE, _in_letters
from benchmarks.link_drivers import READY, Drive, Driver, Outcome, drive_process
from benchmarks.link_edge import serving_at
from benchmarks.link_figures import draw_drive, draw_fig5
from benchmarks.namespaces import Link, linked, why_not
from benchmarks.processes import working
from tests.bundles import VARIANTS, make_bundle, make_photos

pytestmark = pytest.mark.bench

FIRST = VARIANTS[0].id
SPLIT = Arm(FIRST, "raw")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("link")
    make_bundle(folder / "bundle")
    return open_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def photographs(bundle: Bundle) -> list[Path]:
    return make_photos(bundle.path.parent / "photos", 2)


@pytest.fixture(scope="module")
def road(bundle: Bundle) -> Iterator[tuple[Link, str]]:
    """A link, and an edge's URL at its end."""
    if reason := why_not():
        pytest.skip(reason)
    with linked() as link, serving_at(link, str(bundle.path)) as url:
        yield link, url


def samples(ms: float, sent_bytes: int = 1000) -> list[Sample]:
    return [Sample(0, ms, sent_bytes, 0)] * 3


class TestFig5:
    @pytest.mark.parametrize(("ms", "met"), [(20.0, True), (23.9, True), (24.3, False), (15.7, False)])
    def test_a_cell_is_met_within_a_tenth_and_two_milliseconds_of_what_bytes_take(self, ms: float, met: bool) -> None:
        rate_bps = (link_bytes(SPLIT, 1000) + 100) * 8e3 / 10  # 10 ms
        cells = {(SPLIT, None): samples(10.0), (SPLIT, rate_bps): samples(ms)}
        _, row = link_fig5._rows(cells, {SPLIT: 100.0}, {(SPLIT, rate_bps): 18.0}, 1.0)
        assert row["expected_ms"] == pytest.approx(20.0)
        assert row["met"] is met
        assert row["prediction_error"] == pytest.approx(abs(18.0 / ms - 1), abs=1e-4)

    def test_a_faster_downlink_takes_less_time_for_the_answer(self) -> None:
        cells = {(SPLIT, None): samples(10.0), (SPLIT, 1e6): samples(20.0)}
        slow, fast = (link_fig5._rows(cells, {SPLIT: 500.0}, None, downlink)[1] for downlink in (1.0, 10.0))
        assert slow["expected_ms"] - fast["expected_ms"] == pytest.approx(500 * 8e3 / 1e6 * 0.9)
        assert "predicted_ms" not in slow

    def test_a_wrong_class_ends_the_benchmark(self, bundle: Bundle, photographs: list[Path]) -> None:
        (right,) = right_classes(bundle, [SPLIT], photographs)[SPLIT][:1]
        wrong = next(index for index in range(7) if index not in right)
        with pytest.raises(SystemExit, match="raw at None bit/s"):
            link_fig5._check(bundle, [SPLIT], photographs, {(SPLIT, None): [Sample(0, 1.0, 1, wrong)]})

    def test_the_table_and_the_figure_show_every_arm(self, tmp_path: Path) -> None:
        cells: dict[Any, Any] = {
            (arm, rate_bps): samples(10.0) for arm in (SPLIT, Arm(image_coding=RAW), Arm()) for rate_bps in (None, 1e6)
        }
        rows = link_fig5._rows(cells, {arm: 0.0 for arm, _ in cells}, None, 1.0)
        table = link_fig5.table(rows).splitlines()
        assert [line.split(" | ")[0] for line in table[2:]] == [f"| {short_name(FIRST)}, raw", "| full, raw", "| local"]
        assert "MISSED" in table[2]  # 10 ms for what takes 8 ms more
        for suffix in (".svg", ".png"):
            draw_fig5(rows, tmp_path / f"figure{suffix}")
            assert (tmp_path / f"figure{suffix}").stat().st_size > 5000


class TestDrive:
    def test_the_score_is_the_share_in_time_times_the_accuracy_of_what_answered(self) -> None:
        accuracy = {"a": 0.9, "b": 0.8, FULL.name: 0.95}
        assert link_drive._gain(Outcome(True, "b", None, 1.0, None), LIVE.name, accuracy) == 0.8
        assert link_drive._gain(Outcome(True, None, None, 1.0, None), FULL.name, accuracy) == 0.95
        assert link_drive._gain(Outcome(False, "a", None, None, "deadline"), "a", accuracy) == 0.0

    def test_a_choice_has_followed_when_it_stays(self) -> None:
        chosen = "aaaaaaaaaa" + "aabababbbb" + "bbbbbbbaaa"
        outcomes = [Outcome(True, each, None, 1.0, None) for each in chosen]
        followed = link_drive._followed(outcomes, [(1.0, 1e7), (1.0, 1e6), (1.0, 1e7)], 10.0)
        assert [(each["variant"], each["frames"], each["seconds"]) for each in followed] == [
            ("a", 0, 0.0),
            ("b", 6, 0.6),
            ("a", 7, 0.7),
        ]


@pytest.mark.netns
class TestOverALink:
    def test_the_arms_answer_what_the_models_say_and_take_as_long_as_their_bytes(
        self, road: tuple[Link, str], bundle: Bundle, photographs: list[Path]
    ) -> None:
        link, url = road
        arms = [SPLIT, Arm(image_coding=RAW), Arm()]
        right = right_classes(bundle, arms, photographs)
        with working(device_process, link.names["device"], str(bundle.path), url, photographs) as device:
            device.receive()
            for arm in arms:
                for rate_bps in (1e6, None):
                    link.shape(rate_bps)
                    done = device.ask(Order(arm, [0, 1]))
                    for each in done.samples:
                        assert each.index in right[arm][each.photograph]
                        if rate_bps is not None:
                            assert each.ms > 0.9 * link_bytes(arm, each.sent_bytes) * 8e3 / rate_bps
                assert 60 < done.answer_bytes < 2000 if arm != Arm() else done.answer_bytes == 0

    def test_a_drive_has_an_outcome_for_every_frame(
        self, road: tuple[Link, str], bundle: Bundle, photographs: list[Path]
    ) -> None:
        link, url = road
        trace = [(0.3, 20e6), (0.3, 0.2e6), (0.3, 20e6)]
        drivers = [LIVE, Driver(FULL.name, image_coding=RAW)]  # 12 kB: too long in the middle
        with working(drive_process, link.names["device"], str(bundle.path), url) as device:
            assert device.receive() == READY
            drives = {
                driver.name: link_drive._driven(link, device, Drive(driver, photographs * 6, 3, 10.0, 80.0), trace)
                for driver in drivers
            }
        assert {len(outcomes) for outcomes in drives.values()} == {9}
        full = [each.in_time for each in drives[FULL.name]]
        assert not any(full[4:6])  # the change itself takes a moment
        assert len(image_bytes(photographs[0], RAW, bundle.manifest.input)) * 8 / 0.2e6 > 0.08


def outcome(in_time: bool, variant: str | None) -> Outcome:
    return Outcome(in_time, variant, None, None, None)


def test_a_document_of_a_drive_is_drawn(tmp_path: Path) -> None:
    document = {
        "trace": [{"seconds": 0.1, "rate_bps": 1e6}, {"seconds": 0.1, "rate_bps": 2e6}],
        "pace_hz": 10.0,
        "letters": {"small": "a", "large": "b", FULL.name: "c"},
        "frames_by_arm": {
            "live": _in_letters(
                "live",
                [outcome(True, "small"), outcome(False, "large"), outcome(False, None)],
                {"small": "a", "large": "b"},
            ),
            FULL.name: _in_letters(FULL.name, [outcome(True, None), outcome(False, None)] * 2, {FULL.name: "c"})[:3],
        },
        "rows": [{"arm": "live", "score": 0.5}, {"arm": "full, jpeg-q75", "score": 0.4}],
    }
    assert list(document["frames_by_arm"].values()) == ["Ab.", "CcC"]
    draw_drive(document, tmp_path / "drive.svg")
    drawn = (tmp_path / "drive.svg").read_text()
    assert all(f">{name}<" in drawn or name in drawn for name in ("live", "small", "large", "nothing"))


def test_both_are_skipped_with_the_reason_where_one_is_not_root() -> None:
    script = (
        "import os; from benchmarks import link_drive, link_fig5; os.geteuid() or os.setuid(65534); "
        "print(link_fig5.main([]), link_drive.main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    reason = "skipped: network namespaces and tc need root"
    assert done.stdout.splitlines() == [f"link_fig5 {reason}", f"link_drive {reason}", "0 0"]
