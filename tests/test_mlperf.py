"""MLPerf LoadGen over real systems, with tests that are too short to measure anything; and what reads its logs."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.errors import SettingsError
from benchmarks.mlperf import accuracy, command
from benchmarks.mlperf.confs import check_conf
from benchmarks.mlperf.judging import Failed, Order, Outcome, Ready, SetUp, judge
from benchmarks.mlperf.loadgen import LoadGen
from benchmarks.mlperf.logs import MISSED, Logged, read_answers, read_summary
from benchmarks.mlperf.photographs import find_photographs, open_photographs
from benchmarks.mlperf.rows import Expected, check_answers
from benchmarks.mlperf.settings import REDUCED_CONF, USER_CONF, JudgeError, JudgeSettings, SystemSettings
from benchmarks.mlperf.table import table
from benchmarks.processes import working
from tests.bundles import LABELS, Edge, environment, make_bundle, make_photos, serving

pytestmark = pytest.mark.bench

ROOT = Path(__file__).resolve().parents[1]

SERVER_SUMMARY = """\
================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : Server
Mode     : PerformanceOnly
Completed samples per second    : 58.66
Result is : INVALID
  Performance constraints satisfied : NO
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: NO
Recommendations:
 * Reduce target QPS to improve latency.
Early Stopping Result:
 * Run unsuccessful.
 * Processed 130 queries.
 * Would need to run at least 1149 more queries,
 with the run being successful if every additional
 query were under latency.

================================================
Additional Stats
================================================
Scheduled samples per second : 62.67
Min latency (ns)                : 15649612
Max latency (ns)                : 260911122
Mean latency (ns)               : 139402113
50.00 percentile latency (ns)   : 142112334
90.00 percentile latency (ns)   : 224813557
99.00 percentile latency (ns)   : 258912446
99.90 percentile latency (ns)   : 260911122

================================================
Test Parameters Used
================================================
samples_per_query : 1
target_qps : 66.32
target_latency (ns): 100000000

No warnings encountered during test.

1 ERROR encountered. See detailed log.
"""

MULTI_STREAM_SUMMARY = """\
================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : MultiStream
Mode     : PerformanceOnly
90.0th percentile latency (ns) : 25965157
Result is : VALID
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: Yes
Early Stopping Result:
 * Processed at least 64 queries (64).
 * Would discard 0 highest latency queries.
 * Early stopping 90.0th percentile estimate: 29233885

================================================
Additional Stats
================================================
Per-query latency:
Min latency (ns)                : 24869335
Max latency (ns)                : 29233885
Mean latency (ns)               : 25649965
50.00 percentile latency (ns)   : 25533464
90.00 percentile latency (ns)   : 25965157
99.00 percentile latency (ns)   : 29233885

================================================
Test Parameters Used
================================================
samples_per_query : 8
target_qps : 12.5

No warnings encountered during test.

No errors encountered during test.
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle and nine photographs in three of its categories."""
    pytest.importorskip("mlperf_loadgen", reason="LoadGen is not installed: pip install mlcommons-loadgen")
    folder = tmp_path_factory.mktemp("mlperf")
    make_bundle(folder / "bundle")
    for number, label in enumerate(LABELS[:3]):
        make_photos(folder / "photos" / label, 3, seed=number)
    return folder


@pytest.fixture(scope="module")
def edge(place: Path) -> Iterator[Edge]:
    with serving(place / "bundle") as edge:
        yield edge


def words(place: Path, out: Path) -> list[str]:
    return ["--bundle", str(place / "bundle"), "--data", str(place / "photos"), "--photographs", "9", "--out", str(out)]


def set_up(place: Path, url: str, **changed: Any) -> SetUp:
    files = tuple(sorted((place / "photos").rglob("*.jpg")))
    settings = SystemSettings(timeout_s=5.0)
    described: dict[str, Any] = {"scenario": "SingleStream", "arm": "split", "conf": REDUCED_CONF, "probe_s": 0.1}
    return SetUp(bundle=place / "bundle", system=settings, edge_url=url, files=files, **{**described, **changed})


class TestRuns:
    def test_loadgen_judges_the_split_system_in_both_modes(
        self, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "mlperf.json"
        asked = [*words(place, out), "--scenario", "SingleStream", "Offline", "--arm", "split", "--seconds", "0.5"]
        assert command.main(asked) == 0
        found = json.loads(out.read_text())
        assert found["run"] == "reduced"
        assert "Reduced run: 0.5 s" in capsys.readouterr().out
        offline, single = found["rows"]
        assert (offline["scenario"], single["scenario"]) == ("Offline", "SingleStream")
        for row in found["rows"]:
            assert row["result"] in ("VALID", "INVALID")
            assert row["answers"]["good"]
            assert row["answers"]["performance"] == row["samples"] >= 64
            assert row["answers"]["accuracy"] == 9
            assert row["sent_bytes_mean"] > 36
            assert row["cpu_ms_an_image"]["edge"] is not None
            assert 0 < row["cpu_ms_an_image"]["loadgen"] < row["cpu_ms_an_image"]["device"]
            assert int(row["seeds"]["qsl_rng_seed"]) != 0  # of LoadGen's own mlperf.conf
            assert row["settings"]["min_duration_ms"] == 500
        assert 0 < single["latency_ms"]["p50"] <= single["latency_ms"]["p99"]

        kept = tmp_path / "mlperf" / "SingleStream-split"
        assert read_summary(kept / "performance" / "mlperf_log_summary.txt").latency_ms["p50"] > 0
        log = kept / "accuracy" / "mlperf_log_accuracy.json"
        assert single["accuracy"]["sha256"] == hashlib.sha256(log.read_bytes()).hexdigest()
        again = ["--mlperf-accuracy-file", str(log), "--val-map", str(tmp_path / "mlperf" / "val_map.txt")]
        assert accuracy.main(again) == 0
        assert capsys.readouterr().out == (kept / "accuracy" / "accuracy.txt").read_text()

        assert command.main(["--table", "--out", str(out)]) == 0
        printed = capsys.readouterr().out
        assert "Reduced run" in printed
        assert "| SingleStream | split |" in printed

    def test_full_offloading_and_the_local_model_have_the_same_judge(
        self, place: Path, edge: Edge, tmp_path: Path
    ) -> None:
        out = tmp_path / "mlperf.json"
        asked = [*words(place, out), "--scenario", "Offline", "--arm", "full", "local", "--seconds", "0.2"]
        assert command.main([*asked, "--edge", edge.url, "--no-accuracy"]) == 0
        full, local = json.loads(out.read_text())["rows"]
        sizes = [path.stat().st_size for path in (place / "photos").rglob("*.jpg")]
        assert min(sizes) <= full["sent_bytes_mean"] <= max(sizes)
        assert local["sent_bytes_mean"] == 0
        assert full["answers"]["performance"] >= 100
        assert full["cpu_ms_an_image"]["edge"] is None  # it is not ours
        assert full["accuracy"] is None

    def test_a_server_run_that_misses_its_bound_is_tried_at_a_lower_rate(
        self, place: Path, edge: Edge, tmp_path: Path
    ) -> None:
        out = tmp_path / "mlperf.json"
        asked = [*words(place, out), "--scenario", "Server", "--arm", "local", "--edge", edge.url, "--no-accuracy"]
        bound = ["--server-target-qps", "200", "--server-latency-ms", "0.001"]  # which nothing keeps
        assert command.main([*asked, *bound, "--seconds", "0.2", "--server-tries", "2"]) == 0
        (row,) = json.loads(out.read_text())["rows"]
        assert row["result"] == "INVALID"
        assert MISSED in row["reasons"]
        assert row["target"] == {"percentile": 90.0, "limit_ms": 0.001, "offered_per_s": 150.0}
        (before,) = row["missed_before"]
        assert before["target"]["offered_per_s"] == 200
        assert f"INVALID: {MISSED}" in table(json.loads(out.read_text()))

    def test_an_edge_of_another_bundle_fails_the_run_with_a_word(
        self, place: Path, edge: Edge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_bundle(tmp_path / "other", seed=1)
        asked = [*words(place, tmp_path / "x.json"), "--bundle", str(tmp_path / "other"), "--edge", edge.url]
        assert command.main([*asked, "--scenario", "Offline", "--arm", "split"]) == 1
        said = capsys.readouterr().err
        assert said.startswith("Offline, split: the edge refused this device")
        assert "\n" not in said.strip()
        assert not (tmp_path / "x.json").exists()

    @pytest.mark.parametrize(("arm", "why"), [("split", "a sample failed: "), ("full", "a sample failed: POST ")])
    def test_a_system_that_fails_under_test_ends_it_with_a_word(
        self, place: Path, tmp_path: Path, arm: str, why: str
    ) -> None:
        with serving(place / "bundle") as edge, working(judge, set_up(place, edge.url, arm=arm)) as worker:
            assert isinstance(worker.receive(), Ready)
            edge.process.kill()
            edge.process.wait()
            said = worker.ask(Order("performance", tmp_path, {}))
            worker.process.join(20)
            assert worker.process.exitcode == 1  # and no abort of LoadGen's C++
        assert isinstance(said, Failed)
        assert said.why.startswith(why)

    def test_one_process_runs_one_test_after_the_other(self, place: Path, edge: Edge, tmp_path: Path) -> None:
        with working(judge, set_up(place, edge.url, arm="local", scenario="MultiStream")) as worker:
            worker.receive()
            first = worker.ask(Order("performance", tmp_path / "a", {"min_duration_ms": 100, "min_query_count": 64}))
            second = worker.ask(Order("accuracy", tmp_path / "b", {}))
        assert isinstance(first, Outcome)
        assert isinstance(second, Outcome)
        assert first.samples >= 64 * 8
        assert read_summary(tmp_path / "a" / "mlperf_log_summary.txt").samples_per_query == 8
        assert sorted({each.index for each in read_answers(tmp_path / "b" / "mlperf_log_accuracy.json")}) == [*range(9)]

    def test_ctrl_c_ends_a_test_and_all_its_processes(self, place: Path, tmp_path: Path) -> None:
        conf = tmp_path / "long.conf"
        conf.write_text("*.Offline.min_duration = 100\n*.SingleStream.min_duration = 600000\n")
        asked = [*words(place, tmp_path / "x.json"), "--scenario", "Offline", "SingleStream", "--arm", "local"]
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.mlperf", *asked, "--user-conf", str(conf), "--no-accuracy"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline(), process.stdout.readline()]
            assert lines[1].split()[:2] == ["Offline", "local"]
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            _, errors = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        assert process.returncode == 130
        assert errors == "interrupted: nothing was written\n"
        assert not (tmp_path / "x.json").exists()


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "why"),
        [
            ({"official": True, "seconds": 5.0}, "--official"),
            ({"official": True, "accuracy": False}, "--no-accuracy"),
            ({"seconds": 0.0}, "seconds is 0"),
            ({"server_load": 1.5}, "server_load is 1.5"),
            ({"server_target_qps": 0.0}, "server_target_qps"),
            ({"server_tries": 0}, "server_tries is 0"),
            ({"server_latency_ms": -1.0}, "server_latency_ms"),
        ],
    )
    def test_wrong_test_settings_are_refused(self, given: dict[str, Any], why: str) -> None:
        with pytest.raises(SettingsError, match=why):
            JudgeSettings(**given)

    @pytest.mark.parametrize(
        ("given", "why"),
        [
            ({"in_flight": 0}, "in_flight is 0"),
            ({"edge_threads": -1}, "edge_threads is -1"),
            ({"sample": "planes"}, "unknown sample"),
            ({"timeout_s": 0.0}, "timeout_s"),
        ],
    )
    def test_wrong_system_settings_are_refused(self, given: dict[str, Any], why: str) -> None:
        with pytest.raises(SettingsError, match=why):
            SystemSettings(**given)

    def test_wrong_use_is_one_line_and_exit_status_2(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["--official", "--seconds", "5"]) == 2
        said = capsys.readouterr().err
        assert "--official" in said
        assert said.count("\n") == 1

    def test_an_official_run_cannot_be_made_shorter_by_a_file(
        self, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        conf = tmp_path / "short.conf"
        conf.write_text("*.Server.min_duration = 1000\n")
        assert command.main([*words(place, tmp_path / "x.json"), "--official", "--user-conf", str(conf)]) == 2
        assert "sets *.Server.min_duration" in capsys.readouterr().err

    def test_an_edge_that_does_not_start_fails_the_run_with_a_word(
        self, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert command.main([*words(place, tmp_path / "x.json"), "--edge-arguments=--no-such-option"]) == 1
        assert capsys.readouterr().err.startswith("serve-edge ended: ")

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("*.Server.target_qps=5", "LoadGen would ignore it"),
            ("*.Sever.target_qps = 5", "unknown scenario 'Sever'"),
            ("*.Server.target_qsp = 5", "unknown key 'target_qsp'"),
            ("*.Server.target_qps = fast", "LoadGen would ignore it"),
        ],
    )
    def test_a_line_that_loadgen_would_ignore_is_refused(self, tmp_path: Path, line: str, why: str) -> None:
        conf = tmp_path / "user.conf"
        conf.write_text(f"# mine\n\n{line}\n")
        with pytest.raises(SettingsError, match=rf"line 3: .*{why}"):
            check_conf(conf)

    def test_the_files_of_the_benchmark_are_what_loadgen_reads(self) -> None:
        assert check_conf(USER_CONF)["aecnn.Offline.min_query_count"] == "24576"
        assert not [key for key in check_conf(USER_CONF) if key.endswith("min_duration")]  # mlperf.conf's 600 s hold
        assert check_conf(REDUCED_CONF)["*.MultiStream.min_query_count"] == "64"

    def test_a_second_scenario_of_a_process_would_lack_loadgens_own_settings(self, place: Path) -> None:
        first = LoadGen("Server", USER_CONF)
        assert first.settings()["min_duration_ms"] == 600_000
        assert first.settings()["server_target_latency_ns"] == 100_000_000
        with pytest.raises(SettingsError, match="no setting 'qps'"):
            first.change({"qps": 5})
        with pytest.raises(SettingsError, match="once in a process"):
            LoadGen("Offline", USER_CONF)


class TestLogs:
    def test_a_summary_says_why_a_run_is_invalid(self, tmp_path: Path) -> None:
        path = tmp_path / "summary.txt"
        path.write_text(SERVER_SUMMARY)
        found = read_summary(path)
        assert (found.scenario, found.valid, found.rate_hz) == ("Server", False, 58.66)
        assert found.latency_ms["p90"] == pytest.approx(224.813557)
        assert found.latency_ms["p99.9"] == pytest.approx(260.911122)
        assert found.reasons[:3] == (
            MISSED,
            "Early stopping not satisfied",
            "Reduce target QPS to improve latency.",
        )
        assert "at least 1149 more queries" in found.reasons[3]
        assert found.reasons[4].startswith("1 ERROR")

    def test_a_valid_run_has_no_reasons(self, tmp_path: Path) -> None:
        path = tmp_path / "summary.txt"
        path.write_text(MULTI_STREAM_SUMMARY)
        found = read_summary(path)
        assert found.valid
        assert found.reasons == ()
        assert found.target == (90.0, pytest.approx(25.965157))
        assert (found.samples_per_query, found.rate_hz) == (8, None)

    @pytest.mark.parametrize("text", ["", "No errors encountered during test.\n", MULTI_STREAM_SUMMARY[:340]])
    def test_a_summary_without_an_end_is_refused(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "summary.txt"
        path.write_text(text)
        with pytest.raises(JudgeError, match="LoadGen did not end the test"):
            read_summary(path)

    def test_answers_are_int32(self, tmp_path: Path) -> None:
        path = tmp_path / "log.json"
        path.write_text('[\n{ "seq_id" : 0, "qsl_idx" : 36, "data" : "48010000" }\n]\n')
        assert read_answers(path) == [Logged(36, 0x148)]
        path.write_text('[{ "seq_id" : 0, "qsl_idx" : 36, "data" : "4800" }]')
        with pytest.raises(JudgeError, match="int32"):
            read_answers(path)

    def test_an_accuracy_log_has_each_sample_once(self, tmp_path: Path) -> None:
        path = tmp_path / "log.json"
        entries = [{"seq_id": 0, "qsl_idx": index, "data": f"0{index}000000"} for index in (1, 0, 2)]
        path.write_text(json.dumps(entries))
        found = accuracy.score(path, [0, 1, 5])
        assert (found.good, found.total) == (2, 3)
        assert found.text().startswith("accuracy=66.667%, good=2, total=3\nhash=")
        for labels in ([0, 1], [0, 1, 2, 3]):
            with pytest.raises(JudgeError, match="expected one for each"):
                accuracy.score(path, labels)
        path.write_text(json.dumps([*entries, entries[0]]))
        with pytest.raises(JudgeError, match="expected one for each"):
            accuracy.score(path, [0, 1, 2])

    def test_an_answer_that_differs_between_the_modes_is_found(self) -> None:
        expected = Expected([[4], [2, 3], [6]], None)
        ran = [Logged(0, 4), Logged(1, 2), Logged(2, 6)]
        assert check_answers(ran, ran, expected).good
        tied = check_answers(ran, [Logged(0, 4), Logged(1, 3), Logged(2, 6)], expected)
        assert tied.good  # two classes of the second sample tie
        differing = check_answers(ran, [Logged(0, 5), *ran[1:]], expected)
        assert (differing.wrong, differing.differing, differing.good) == (1, 1, False)
        assert not check_answers([], ran, expected).good


class TestPhotographs:
    def test_only_the_test_part_of_a_split_is_taken(self, place: Path, tmp_path: Path) -> None:
        split = tmp_path / "data.json"
        split.write_text(json.dumps({"train": ["ant/photo0.jpg"], "test": ["ant/photo1.jpg", "bee/photo2.jpg"]}))
        found = open_photographs(open_bundle(place / "bundle"), "b", place / "photos", split, 0, tmp_path)
        assert [file.name for file in found.files] == ["photo1.jpg", "photo2.jpg"]
        assert found.labels == (0, 1)
        assert found.origin == "the test split"

    def test_a_folder_that_lacks_the_test_part_is_refused(self, place: Path, tmp_path: Path) -> None:
        split = tmp_path / "data.json"
        split.write_text(json.dumps({"test": ["ant/photo1.jpg", "yak/photo2.jpg"]}))
        with pytest.raises(SettingsError, match="1 of the 2 test photographs"):
            find_photographs("b", place / "photos", split, 0)
        with pytest.raises(SettingsError, match="9 photographs, expected 10"):
            find_photographs("b", place / "photos", None, 10)

    def test_a_folder_that_is_no_label_is_named(self, place: Path, tmp_path: Path) -> None:
        shutil.copytree(place / "photos", tmp_path / "photos")
        make_photos(tmp_path / "photos" / "zebra", 1)
        with pytest.raises(SettingsError, match="'zebra'"):
            open_photographs(open_bundle(place / "bundle"), "b", tmp_path / "photos", None, 0, tmp_path)

    def test_photographs_without_categories_are_held_against_the_unsplit_model(
        self, place: Path, tmp_path: Path
    ) -> None:
        make_photos(tmp_path / "flat", 2)
        found = open_photographs(open_bundle(place / "bundle"), "b", tmp_path / "flat", None, 0, tmp_path)
        assert found.labels is None
        assert found.origin.startswith("the whole folder")
