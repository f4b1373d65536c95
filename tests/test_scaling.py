"""The plan for many devices: its simulation against closed forms, its arithmetic, its page."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aecnn_deploy.errors import PlanError, SettingsError
from benchmarks import scaling
from benchmarks.machine import write_result
from benchmarks.scaling_cell import Arrivals, CellResult, CellShape, Fate, simulate
from benchmarks.scaling_check import errors
from benchmarks.scaling_fleet import fleet_shape, make_frames, place, process_images_per_s, run_fleet
from benchmarks.scaling_limits import limits
from benchmarks.scaling_plan import make_plan
from benchmarks.scaling_report import draw, fill, tables
from benchmarks.scaling_settings import FleetSettings, LinkClass, parse_links, read_inputs
from benchmarks.scaling_storm import StormSettings, moved, run_storm
from tests.scaling_inputs import INPUTS

pytestmark = pytest.mark.bench

ANY = 10**9
SMALL = FleetSettings(devices=200, seconds=2.0, gpu_images_per_s=1_000.0)


def one_server(load: float, count: int, noise: tuple[float, ...] = (1.0,)) -> tuple[float, float]:
    """Mean wait, and the seconds of a run, of a queue in front of one server, Poisson arrivals."""
    run_s = 0.01
    rng = np.random.default_rng(7)
    at_s = np.cumsum(rng.exponential(run_s / load, count))
    shape = CellShape(
        batch_s=((1, run_s),), max_batch=1, noise=noise, max_queue=ANY, max_in_flight=ANY, window=ANY, max_streams=ANY
    )
    arrivals = Arrivals(at_s, rng.integers(0, 50, count), np.zeros(50, np.int64))
    return float(simulate(shape, arrivals).queue_s.mean()), run_s


def together(shape: CellShape, devices: int, each: int = 1, *, at_s: float = 1.0) -> CellResult:
    """``each`` frames of every device, all at the same moment."""
    device = np.repeat(np.arange(devices), each)
    return simulate(shape, Arrivals(np.full(len(device), at_s), device, np.zeros(devices, np.int64)))


class TestClosedForms:
    @pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
    def test_runs_of_one_length_wait_as_m_d_1_says(self, load: float) -> None:
        wait_s, run_s = one_server(load, 20_000)
        assert wait_s == pytest.approx(load * run_s / (2 * (1 - load)), rel=0.08)

    def test_runs_of_exponential_length_wait_as_m_m_1_says(self) -> None:
        quantiles = tuple((-np.log1p(-(np.arange(1000) + 0.5) / 1000)).tolist())
        wait_s, run_s = one_server(0.6, 20_000, quantiles)
        assert wait_s == pytest.approx(0.6 * run_s / (1 - 0.6), rel=0.1)

    def test_a_front_does_one_thing_after_the_other(self) -> None:
        shape = CellShape(batch_s=((1, 1e-9),), max_batch=64, receive_s=0.001, answer_s=0.001)
        found = together(shape, 50)
        assert found.answered_s.max() - 1.0 == pytest.approx(50 * 0.002, rel=0.01)
        assert found.front_busy_s.tolist() == pytest.approx([0.1])

    def test_batches_are_of_the_sizes_that_batch_times_chooses(self) -> None:
        shape = CellShape(batch_s=((1, 0.1), (4, 0.1), (8, 0.9)), max_batch=8)
        found = together(shape, 9)
        assert sorted(found.batch.tolist()) == [1, *[4] * 8]
        assert found.answered_s.max() == pytest.approx(1.3)

    def test_two_tails_take_batches_at_once_and_the_hop_is_paid(self) -> None:
        shape = CellShape(batch_s=((1, 0.1),), max_batch=1, tails=2, slots=2, hop_s=0.02)
        assert sorted(together(shape, 4).answered_s.round(6).tolist()) == [1.12, 1.12, 1.24, 1.24]

    def test_what_a_front_does_on_the_tails_cores_makes_its_run_longer(self) -> None:
        at_s, device = np.array([1.0, 1.01, 1.02]), np.arange(3)
        shape = CellShape(batch_s=((1, 0.1),), max_batch=1, receive_s=0.005, contention=1.0)
        found = simulate(shape, Arrivals(at_s, device, np.zeros(3, np.int64)))
        assert found.answered_s[0] == pytest.approx(1.005 + 0.1 + 2 * 0.005)

    def test_shared_cores_are_refused_for_more_than_one_tail(self) -> None:
        with pytest.raises(SettingsError, match="only one front and one tail share cores"):
            CellShape(batch_s=((1, 0.1),), tails=2, contention=1.0)


class TestRefusals:
    shape = CellShape(batch_s=((1, 0.1),), max_batch=1, window=ANY)

    def test_a_device_with_all_in_flight_drops_frames(self) -> None:
        found = together(dataclasses.replace(self.shape, window=2), 1, 5)
        assert found.fate.tolist() == [Fate.OK] * 2 + [Fate.DROPPED] * 3

    def test_a_full_queue_gives_a_modest_device_the_place_of_a_greedy_one(self) -> None:
        at_s = np.array([1.0] * 8 + [1.05])
        device = np.array([0] * 8 + [1])
        shape = dataclasses.replace(self.shape, max_queue=4)
        found = simulate(shape, Arrivals(at_s, device, np.zeros(2, np.int64)))
        assert found.fate[-1] == Fate.OK
        assert np.sum(found.fate == Fate.OVERLOADED) == 4  # three found it full, one had to make room

    def test_what_cannot_be_in_time_is_refused_and_nothing_is_answered_much_too_late(self) -> None:
        shape = dataclasses.replace(self.shape, deadline_s=0.35)
        found = together(shape, 10)
        answered = found.fate == Fate.OK
        assert 3 <= answered.sum() <= 4
        assert np.all(found.answered_s[answered] <= 1.35 + 0.1)
        assert set(found.fate[~answered].tolist()) == {Fate.DEADLINE}

    def test_one_that_was_refused_sends_nothing_for_as_long_as_it_was_told(self) -> None:
        at_s = np.array([1.0, 1.0, 1.0, 1.01, 1.5])
        shape = dataclasses.replace(self.shape, max_queue=1)
        found = simulate(shape, Arrivals(at_s, np.zeros(5, np.int64), np.zeros(1, np.int64)))
        assert found.fate.tolist()[2:] == [Fate.OVERLOADED, Fate.DROPPED, Fate.OK]


class TestFleet:
    def test_every_frame_of_10_000_devices_has_one_fate(self) -> None:
        settings = FleetSettings(seconds=0.6, boxes=8)
        shape = fleet_shape(settings, INPUTS)
        found = run_fleet(settings, shape, make_frames(settings, INPUTS), place(settings, shape.fronts))
        assert len(found.fate) == 10_000 * 3
        assert found.share(*Fate) == 1.0
        assert found.share(Fate.OK) > 0.9
        assert np.isnan(found.latency_s).tolist() == (found.fate != Fate.OK).tolist()

    def test_a_slow_link_delays_a_frame_by_its_bytes_and_its_delay(self) -> None:
        settings = dataclasses.replace(SMALL, devices=1, links=(LinkClass(1.0, 1.0, 60.0),))
        frames = make_frames(settings, INPUTS)
        assert frames.at_s - frames.captured_s == pytest.approx((1376 + 90) * 8e-6 + 0.06)

    def test_a_link_that_is_too_slow_for_its_frames_falls_behind(self) -> None:
        settings = dataclasses.replace(SMALL, devices=1, links=(LinkClass(1.0, 0.02, 0.0),))
        frames = make_frames(settings, INPUTS)
        late_s = frames.at_s - frames.captured_s
        assert late_s[-1] > 2 * late_s[0]

    def test_fewer_connections_everywhere_than_by_hash_at_the_most_loaded(self) -> None:
        hashed = np.bincount(place(dataclasses.replace(SMALL, placement="hash"), 10))
        least = np.bincount(place(SMALL, 10))
        assert (least.min(), least.max()) == (20, 20)
        assert hashed.max() > 20

    def test_boxes_follow_from_the_load(self) -> None:
        cpu = fleet_shape(FleetSettings(layout="cpu"), INPUTS)
        assert cpu.fronts >= 50_000 / (process_images_per_s(INPUTS) * 0.7)
        assert cpu.boxes == math.ceil(cpu.fronts / 8)
        split = fleet_shape(FleetSettings(layout="split"), INPUTS)
        assert (split.cells, split.cell.tails) == (1, 15)
        streams = fleet_shape(FleetSettings(layout="split", max_streams=128), INPUTS)
        assert streams.fronts >= 10_000 / 128 / 0.7
        roomy = fleet_shape(FleetSettings(layout="split", streams_limited=False), INPUTS)
        assert roomy.fronts == math.ceil(50_000 * 250e-6 / 0.7)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"devices": 0},
            {"fps": 0.0},
            {"utilisation": 1.0},
            {"layout": "cloud"},
            {"boxes": 0},
            {"deadline_ms": -1.0},
            {"links": (LinkClass(0.5, 1.0, 1.0),)},
            {"layout": "cpu", "cores": 1},
        ],
        ids=str,
    )
    def test_settings_out_of_range_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(SettingsError):
            FleetSettings(**wrong)

    def test_links_are_read_from_the_command_line(self) -> None:
        assert parse_links("0.9:20:10,0.1:1:60") == (LinkClass(0.9, 20.0, 10.0), LinkClass(0.1, 1.0, 60.0))
        with pytest.raises(SettingsError, match="share:Mbit/s:ms"):
            parse_links("20:10")


class TestStorms:
    def test_nobody_connects_before_the_edges_are_back_and_everybody_does_after(self) -> None:
        found = run_storm(SMALL, INPUTS, StormSettings("all restart", seconds=40.0))
        assert found["connected"] == found["devices_hit"] == 200
        assert found["connected_s"]["p50"] > INPUTS.start_s
        assert found["attempts"] > 3 * 200
        assert found["edge_ms_by_second"][0] == {}

    def test_devices_come_back_in_as_long_as_the_handshakes_take(self) -> None:
        settings = dataclasses.replace(SMALL, boxes=1, streams_limited=False)
        found = run_storm(settings, INPUTS, StormSettings("all cut", seconds=4.0))
        assert found["connected_s"]["p100"] == pytest.approx(200 * INPUTS.tls_connect_s, rel=0.5)
        assert found["attempts"] == 200

    def test_one_address_for_all_makes_a_storm_longer(self) -> None:
        settings = dataclasses.replace(SMALL, boxes=1, streams_limited=False)
        found = run_storm(settings, INPUTS, StormSettings("all cut", seconds=20.0, waiting_connections=8))
        assert found["refused_attempts"] > 0
        assert found["connected"] == 200

    def test_the_devices_of_a_dead_box_go_to_whoever_has_fewest(self) -> None:
        settings = dataclasses.replace(SMALL, boxes=4, streams_limited=False)
        shape = fleet_shape(settings, INPUTS)
        before = place(settings, shape.fronts)
        counts = np.bincount(moved(settings, shape, before, np.flatnonzero(before == 0)), minlength=shape.fronts)
        assert counts[0] == 0
        assert counts[1:].max() - counts[1:].min() <= 1

    def test_a_full_process_refuses_and_the_device_tries_again(self) -> None:
        settings = dataclasses.replace(SMALL, boxes=2, max_streams=40, utilisation=0.99)
        found = run_storm(settings, INPUTS, StormSettings("box dies", seconds=6.0))
        assert found["connected"] < found["devices_hit"]
        assert found["refused_attempts"] > 0

    def test_the_only_box_cannot_die(self) -> None:
        with pytest.raises(SettingsError, match="--boxes 2"):
            run_storm(dataclasses.replace(SMALL, boxes=1), INPUTS, StormSettings("box dies"))


class TestPlan:
    def test_limits_are_told_in_the_order_in_which_they_are_reached(self) -> None:
        found = limits(FleetSettings(), INPUTS, 0.05)
        known = [limit.devices for limit in found if limit.devices is not None]
        assert known == sorted(known)
        by_name = {limit.resource: limit.devices for limit in found}
        assert by_name["streams"] == 256
        assert by_name["connections of one address"] == 64
        assert by_name["event loop, with TLS"] == int(1 / 250e-6 / 5)
        twice = {limit.resource: limit.devices for limit in limits(FleetSettings(fps=10.0), INPUTS, 0.05)}
        assert twice["event loop, with TLS"] == by_name["event loop, with TLS"] // 2
        assert twice["streams"] == 256

    def test_a_plan_becomes_a_page_and_a_figure(self, tmp_path: Path) -> None:
        plan = make_plan(dataclasses.replace(SMALL, devices=60, seconds=0.5), INPUTS, lambda _: None, workers=1)
        made = tables(INPUTS, {"check": None, "plan": plan, "hop_measured": False}, "figures/scaling.png")
        page = tmp_path / "page.md"
        page.write_text("".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in made))
        fill(page, made)
        fill(page, made)  # twice is the same
        text = page.read_text()
        assert all(table in text for table in made.values())
        assert text.count("what breaks first") == 1
        draw(plan, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 10_000
        with pytest.raises(PlanError, match="no place for"):
            fill(page, {"other": ""})

    def test_a_user_plans_with_stored_inputs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        stored = tmp_path / "inputs.json"
        write_result(stored, {"inputs": {field: getattr(INPUTS, field) for field in INPUTS.__struct_fields__}})
        assert read_inputs(stored) == INPUTS
        words = ["--plan", "--devices", "100", "--seconds", "0.5", "--layout", "cpu", "--boxes", "2", "--cores", "8"]
        assert scaling.main([*words, "--inputs", str(stored)]) == 0
        assert '"processes": 8' in capsys.readouterr().out
        assert scaling.main([*words, "--inputs", str(tmp_path / "none.json")]) == 2
        assert "cannot be read" in capsys.readouterr().err

    def test_errors_are_shares_of_what_was_measured(self) -> None:
        from benchmarks.scaling_check import Side

        found = errors(Side(100.0, 1.0, 2.0, 4.0, 8.0), Side(90.0, 1.5, 2.0, 4.0, 16.0))
        assert found["images_per_s"] == pytest.approx(-0.1)
        assert found["total_ms_p99"] == pytest.approx(1.0)
