"""``aecnn-deploy report --offloading``: what it reads and refuses, its arithmetic, its figures, its page."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from aecnn_deploy.cli import report as report_command
from aecnn_deploy.errors import RunFormatError, SettingsError
from aecnn_deploy.reports import canvas
from aecnn_deploy.reports import offloading_reading as reading
from aecnn_deploy.reports.offloading_documents import CurveLine, Documents, TrainingRun
from aecnn_deploy.reports.offloading_figures import draw_comparison, draw_droo, draw_transfer
from aecnn_deploy.reports.offloading_lines import draw_distance, draw_learning, draw_sweep
from aecnn_deploy.reports.offloading_looks import label, looks
from aecnn_deploy.reports.offloading_numbers import all_policies, distance, mean_curve, named, paired, value_text
from aecnn_deploy.reports.offloading_reading import read_documents
from aecnn_deploy.reports.report import build_report, make_report
from tests.offloading_documents import (
    POLICIES,
    SEEDS,
    bound,
    comparison,
    curve_lines,
    droo,
    row,
    sweep,
    transfer,
    write_all,
    write_curves,
)
from tests.result_rows import result_row, unsplit_row, write_run
from tests.test_report import PNG, Reader


@pytest.fixture(scope="module", autouse=True)
def _coarse_figures() -> Iterator[None]:
    """Small pictures: no test here looks at their pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "DPI", 20)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a document of every kind."""
    return write_all(tmp_path_factory.mktemp("offloading") / "documents")


@pytest.fixture(scope="module")
def everything(folder: Path) -> Documents:
    return read_documents([folder])


def read(tmp_path: Path, document: Any) -> Documents:
    """What is read of one document: JSON, or text as it is."""
    path = tmp_path / "document.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return read_documents([path])


def page_of(found: Documents) -> str:
    return build_report([], found).files["index.html"].decode()


class TestReading:
    def test_documents_are_known_by_their_keys(self, everything: Documents) -> None:
        counts = [
            len(found)
            for found in (
                everything.comparisons,
                everything.sweeps,
                everything.transfers,
                everything.droo,
                everything.runs,
            )
        ]
        assert counts == [1, 4, 1, 1, 6]
        assert everything.left_out == ()

    def test_runs_of_one_training_share_a_label_and_differ_in_the_seed(self, everything: Documents) -> None:
        found = {(run.label, run.seed) for run in everything.runs}
        assert found == {("graph", n) for n in range(3)} | {("no graph", 10 + n) for n in range(3)}

    def test_the_seed_of_a_run_may_stand_in_its_folder_alone(self, tmp_path: Path) -> None:
        lines = [{**line, "seed": None} for line in curve_lines(0)]
        folders = [write_curves(tmp_path / f"graph-seed{n}", lines) for n in (0, 7)]
        assert [(run.label, run.seed) for run in read_documents(folders).runs] == [("graph", 0), ("graph", 7)]

    def test_a_label_in_the_lines_counts_before_the_folder(self, tmp_path: Path) -> None:
        lines = [{**line, "label": "mine"} for line in curve_lines(0)]
        assert [run.label for run in read_documents([write_curves(tmp_path / "x", lines)]).runs] == ["mine"]

    def test_a_resumed_training_counts_each_slot_once_as_written_last(self, tmp_path: Path) -> None:
        lines = [{"slot": 0, "eval_score": 1.0}, {"slot": 5, "eval_score": 2.0}, {"slot": 5, "eval_score": 3.0}]
        (run,) = read_documents([write_curves(tmp_path / "run", lines)]).runs
        assert [(line.slot, line.eval_score) for line in run.lines] == [(0, 1.0), (5, 3.0)]

    def test_a_training_that_is_still_writing_is_read_up_to_its_torn_line(self, tmp_path: Path) -> None:
        path = write_curves(tmp_path / "run", curve_lines(0, slots=1000)) / "curves.jsonl"
        path.write_text(path.read_text() + '{"slot": 1500, "lo')
        found = read_documents([path])
        assert [line.slot for line in found.runs[0].lines] == [0, 500, 1000]
        assert "its last line is incomplete" in page_of(found)

    def test_other_json_within_a_folder_is_left_out_and_named(self, tmp_path: Path) -> None:
        (tmp_path / "other.json").write_text('{"hidden": 64}')
        (tmp_path / "comparison.json").write_text(json.dumps(comparison()))
        found = read_documents([tmp_path])
        assert found.left_out == (str(tmp_path / "other.json"),)
        assert "other.json" in page_of(found)

    def test_the_settings_beside_curves_are_shown_with_them(self, tmp_path: Path) -> None:
        run = write_curves(tmp_path / "run", curve_lines(0))
        (run / "settings.json").write_text('{"method": "grl", "scenario": {"x": 1}, "settings": {"hidden": 64}}')
        found = read_documents([tmp_path])
        assert found.left_out == ()
        assert found.sources[0].made == {"method": "grl", "settings": {"hidden": 64}}

    def test_a_file_that_is_given_twice_counts_once(self, tmp_path: Path) -> None:
        path = tmp_path / "comparison.json"
        path.write_text(json.dumps(comparison()))
        assert len(read_documents([tmp_path, path]).sources) == 1

    def test_a_document_may_say_more_than_is_known(self, tmp_path: Path) -> None:
        document = comparison(machine={"cpu": "<b>"}, tomorrow=[1, {"x": 2}])
        document["rows"][0]["tomorrow"] = "x"
        found = read(tmp_path, document)
        assert found.sources[0].made == {"machine": {"cpu": "<b>"}}
        assert "<b>" not in page_of(found)

    @pytest.mark.parametrize(
        ("document", "said"),
        [
            ('{"scenario": "x", ', r"document\.json is damaged"),
            ("", r"document\.json is damaged"),
            ("\xff\xfe", r"document\.json is damaged"),
            ("[" * 100_000, "nested too deeply"),
            ("NaN", "damaged"),
            ({"hidden": 64}, "is no document of offloading: expected an object with 'scenario'"),
            ([1, 2], "is no document of offloading"),
            ({**comparison(), "seeds": []}, "not a comparison of policies: .*seeds"),
            ({**comparison(), "rows": [{"policy": "x"}]}, "missing required field `score_mean`"),
            ({**comparison(), "rows": [{**row("graph"), "score_mean": "high"}]}, r"\$\.rows\[0\]\.score_mean"),
            ({**comparison(), "rows": [{**row("graph"), "success_mean": 1.2}]}, r"<= 1\.0.*success_mean"),
            ({**comparison(), "rows": [{**row("graph"), "score_sd": -1}]}, r">= 0\.0.*score_sd"),
            ({**comparison(), "rows": [row("graph")] * 61}, "length <= 60"),
            ({**comparison(), "rows": [{**row("graph"), "policy": ""}]}, "policy"),
            ({**comparison(), "rows": [{**row("graph"), "scores": [1.0]}]}, "'graph' has 1 scores for 3 seeds"),
            ({**comparison(), "rows": [{**row("graph"), "score_mean": 99}]}, "its scores average 38"),
            (comparison(bound={"score_mean": 1.0}), "bound"),
            (sweep(points=[]), "not a sweep"),
            (sweep(vary={"values": [1]}), "vary"),
            ({**sweep(), "points": [{"value": {"a": 1}, "rows": [row("graph")]}]}, "value"),
            ({"rows": [{"policy": "x", "critic_evaluations": 1}]}, "not a table of DROO rates.*rate_mean"),
            ({"rows": [{"trained_on": "x"}]}, "not a transfer table"),
        ],
    )
    def test_a_damaged_document_is_refused_by_name(self, tmp_path: Path, document: Any, said: str) -> None:
        with pytest.raises(RunFormatError, match=said) as refused:
            read(tmp_path, document)
        assert "document.json" in str(refused.value)

    @pytest.mark.parametrize("line", ["{", '{"slot": -1}', '{"loss": 1}', "[]", '{"slot": 1, "eval_success": 7}'])
    def test_a_damaged_line_of_curves_is_refused_by_number(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "curves.jsonl"
        path.write_text(f'{{"slot": 0}}\n{line}\n{{"slot": 2}}\n')
        with pytest.raises(RunFormatError, match=r"curves\.jsonl, line 2, is damaged"):
            read_documents([path])

    def test_what_is_empty_away_or_too_big_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(RunFormatError, match="holds no document of offloading"):
            read_documents([tmp_path])
        with pytest.raises(RunFormatError, match=r"cannot read .*nothing\.json"):
            read_documents([tmp_path / "nothing.json"])
        (tmp_path / "curves.jsonl").write_text("\n")
        with pytest.raises(RunFormatError, match="no line of curves yet"):
            read_documents([tmp_path])
        monkeypatch.setattr(reading, "MAX_BYTES", 100)
        with pytest.raises(RunFormatError, match="over the limit of 100 bytes"):
            read(tmp_path, comparison())


class TestNumbers:
    def test_differences_are_taken_seed_by_seed(self, tmp_path: Path) -> None:
        rows = [
            {**row("graph"), "scores": [3.0, 5.0, 7.0], "score_mean": 5.0},
            {**row("greedy"), "scores": [2.0, 5.5, 6.0], "score_mean": 4.5},
        ]
        ((_, document),) = read(tmp_path, comparison(rows=rows)).comparisons
        pair = paired(document.rows[0], document.rows[1])
        assert pair is not None
        assert pair.differences == (1.0, -0.5, 1.0)
        assert (pair.ahead, pair.spread.mean) == (2, 0.5)
        assert pair.spread.sd == pytest.approx(0.75**0.5)

    def test_the_distance_to_the_bound_is_paired_where_the_bound_has_the_same_seeds(self, tmp_path: Path) -> None:
        rows = [{**row("graph"), "scores": [36.0, 40.0, 44.0], "score_mean": 40.0, "score_sd": 4.0}]
        limits = {"score_mean": 50.0, "scores": [45.0, 50.0, 55.0]}
        ((_, document),) = read(tmp_path, comparison(rows=rows, bound=bound(**limits))).comparisons
        far = distance(document.rows[0], document.bound, document.seeds)
        assert far is not None
        assert far.mean == pytest.approx(0.2)
        assert far.sd == pytest.approx(0.0, abs=1e-12)
        ((_, other),) = read(tmp_path, comparison(rows=rows, bound=bound(**limits, seeds=[1, 2, 3]))).comparisons
        far = distance(other.rows[0], other.bound, other.seeds)
        assert far is not None
        assert far.sd == pytest.approx(4.0 / 50.0)

    def test_a_mean_curve_goes_as_far_as_all_runs_and_reads_between_their_points(self) -> None:
        def run(pairs: dict[int, float]) -> TrainingRun:
            lines = tuple(CurveLine(slot=slot, eval_score=value) for slot, value in pairs.items())
            return TrainingRun("x", None, lines)

        curve = mean_curve([run({0: 0.0, 10: 10.0, 20: 20.0}), run({0: 2.0, 5: 7.0, 15: 17.0})], "eval_score")
        assert curve is not None
        assert curve.slots.tolist() == [0, 5, 10, 15]
        assert curve.mean.tolist() == [1.0, 6.0, 11.0, 16.0]
        assert curve.sd is not None
        assert curve.sd.tolist() == pytest.approx([2**0.5] * 4)
        assert mean_curve([run({0: 1.0})], "loss") is None

    def test_two_rows_of_one_name_are_told_apart(self, tmp_path: Path) -> None:
        rows = [row("graph"), {**row("graph"), "score_mean": 38.7}, row("graph (2)")]
        ((_, document),) = read(tmp_path, comparison(rows=rows)).comparisons
        assert sorted(item.name for item in named(document.rows)) == ["graph", "graph (2)", "graph (3)"]

    @pytest.mark.parametrize(
        ("value", "text"),
        [(7, "7"), (0.25, "0.25"), ((60.0, 150.0), "60–150"), ((1.0,), "1"), (True, "yes"), ("a", "a")],
    )
    def test_a_varied_value_is_written_as_a_reader_would(self, value: Any, text: str) -> None:
        assert value_text(value) == text


class TestFigures:
    def test_a_comparison_has_a_bar_for_each_policy_the_bound_and_a_difference_for_each_but_the_best(
        self, everything: Documents
    ) -> None:
        ((_, document),) = everything.comparisons
        bars, differences = draw_comparison(document, looks(all_policies(everything))).axes
        assert len(bars.patches) == len(POLICIES)
        assert bars.get_legend_handles_labels()[1] == ["bound: per-slot, empty queues"]
        assert [item.get_text() for item in bars.get_yticklabels()][:3] == ["exact", "graph", "greedy"]
        assert len(differences.containers) == len(POLICIES) - 1

    def test_a_comparison_of_one_seed_shows_no_deviation_and_no_difference(self, tmp_path: Path) -> None:
        found = read(tmp_path, comparison(seeds=[4], bound=None))
        ((_, document),) = found.comparisons
        (bars,) = draw_comparison(document, looks(all_policies(found))).axes
        assert len(bars.patches) == len(POLICIES)
        assert [type(item).__name__ for item in bars.containers] == ["BarContainer"] * len(POLICIES)
        assert "One seed has no deviation" in page_of(found)

    def test_a_sweep_has_four_panels_with_a_line_for_each_policy_and_the_bound_beside_the_score(
        self, everything: Documents
    ) -> None:
        document = next(item for _, item in everything.sweeps if item.vary.key == "devices.count")
        panels = draw_sweep(document, looks(all_policies(everything))).axes
        # Score panel: a line and two caps of an error bar for each policy, and the bound.
        named_lines = [sum(not line.get_label().startswith("_") for line in panel.lines) for panel in panels]
        assert named_lines == [len(POLICIES) + 1, len(POLICIES), len(POLICIES), len(POLICIES)]
        lines = [line for line in panels[0].lines if line.get_label() in POLICIES]
        assert all(line.get_xdata().tolist() == [7, 10, 14, 20, 28] for line in lines)
        distances = draw_distance(document, looks(all_policies(everything))).axes
        assert [sum(line.get_label() in POLICIES for line in panel.lines) for panel in distances] == [len(POLICIES)] * 2

    def test_numbers_of_a_sweep_stand_in_order_and_ranges_as_they_came(self, tmp_path: Path) -> None:
        look = looks(POLICIES)
        ((_, document),) = read(tmp_path, sweep(values=[28, 7, 14])).sweeps
        assert draw_sweep(document, look).axes[0].lines[0].get_xdata().tolist() == [7, 14, 28]
        ((_, document),) = read(tmp_path, sweep("devices.deadline_ms", [[90, 200], [40, 80]])).sweeps
        axes = draw_sweep(document, look).axes[0]
        assert axes.lines[0].get_xdata().tolist() == [0, 1]
        assert [item.get_text() for item in axes.get_xticklabels()] == ["90–200", "40–80"]
        ((_, document),) = read(tmp_path, sweep("servers.capacity", [[1.0, 0.75, 0.5], [2.0]])).sweeps
        axes = draw_sweep(document, look).axes[0]
        assert [item.get_text() for item in axes.get_xticklabels()] == ["1\n0.75\n0.5", "2"]

    def test_a_sweep_without_bounds_and_with_a_policy_missing_somewhere_is_drawn(self, tmp_path: Path) -> None:
        document = sweep(values=[1, 2])
        for point in document["points"]:
            point["bound"] = None
        document["points"][1]["rows"] = [row("graph")]
        page = page_of(read(tmp_path, document))
        assert page.count("<figure>") == 1
        assert "below the bound" not in page

    def test_learning_curves_have_a_mean_a_band_and_a_line_for_each_run(self, everything: Documents) -> None:
        look = looks([run.label for run in everything.runs])
        panels = draw_learning(everything.runs, look).axes
        assert len(panels) == 4
        assert all(len(panel.lines) == 2 * (3 + 1) for panel in panels)
        assert all(len(panel.collections) == 2 for panel in panels)
        assert panels[0].get_legend_handles_labels()[1] == ["graph (3 runs)", "no graph (3 runs)"]

    def test_transfer_and_droo_show_every_row(self, everything: Documents) -> None:
        ((_, moved),) = everything.transfers
        axes = draw_transfer(moved, looks(all_policies(everything))).axes[0]
        assert axes.get_yticklabels()[0].get_text() == "2x7: graph from paper-2x14"
        assert len(axes.get_yticklabels()) == len(transfer()["rows"])
        ((_, rates),) = everything.droo
        axes = draw_droo(rates, looks([item.policy for item in rates.rows])).axes[0]
        points = [len(line.get_xdata()) for line in axes.lines if not line.get_label().startswith("_")]
        assert sum(points) == len(droo()["rows"])

    def test_a_policy_looks_the_same_in_every_figure_and_no_two_look_alike(self, everything: Documents) -> None:
        look = looks(all_policies(everything))
        assert len(set(look.values())) == len(look)
        assert looks(reversed(all_policies(everything))) == look
        own = looks(["another", "greedy", "graph"], look)
        assert (own["graph"], own["greedy"]) == (look["graph"], look["greedy"])
        assert len(set(own.values())) == 3
        many = looks([f"policy {n}" for n in range(50)])
        assert len(set(many.values())) == 50

    def test_names_of_a_figure_are_no_mathematics_have_their_letters_and_an_end(self) -> None:
        assert label("a$b$") == r"a\$b\$"
        assert label("\U0001f9ea\n名") == "???"
        assert label("_hidden").strip() == "_hidden"
        assert len(label("x" * 200)) == 30


class TestPage:
    def test_it_has_every_section_its_figures_with_words_and_tables_beside_them(self, everything: Documents) -> None:
        report = build_report([], everything)
        page = report.files["index.html"].decode()
        reader = Reader(page)
        assert reader.open == []
        assert "script" not in reader.tags
        assert all(target.startswith(("#", "data:")) for target in reader.targets)
        links = [target[1:] for target in reader.targets if target.startswith("#")]
        assert len(links) == 10
        assert all(reader.ids.count(link) == 1 for link in links)
        assert len(reader.images) == 1 + 4 * 2 + 3
        assert all(len(image["alt"] or "") > 60 for image in reader.images)
        assert page.count("<table>") == 1 + 4 * 3 + 3
        assert "Not in this report" not in page
        pictures = report.document["offloading"]["figures"]
        assert all(report.files[name].startswith(PNG) for name in pictures)
        assert report.document["files"] == sorted(report.files)

    def test_it_says_who_is_best_what_the_bound_is_and_over_which_seeds(self, tmp_path: Path) -> None:
        page = page_of(read(tmp_path, comparison(["graph", "greedy"])))
        assert "paper-2x14: graph is best, 38.82 ± 0.09 right answers in time a second, ahead of greedy by" in page
        assert "in 3 of 3 seeds; 3.0 % below the bound (per-slot, empty queues)." in page
        assert (
            "each slot alone, as if all queues were empty when it begins. No policy&#x27;s score can be higher." in page
        )
        assert "Solved to its proven optimum in 99.9 % of the cases." in page
        assert f"3 seeds: {', '.join(map(str, SEEDS))}; 8 worlds of each; 200 slots an episode." in page
        assert "Learning curves: policy train writes" in page

    def test_a_bound_over_other_worlds_is_said_to_be_one(self, tmp_path: Path) -> None:
        page = page_of(read(tmp_path, comparison(bound=bound(seeds=[7], slots=20))))
        assert "over other worlds: 1 seed of its own; 20 slots where the policies have 200." in page

    def test_a_sweep_that_is_not_finished_says_what_is_missing(self, tmp_path: Path) -> None:
        document = sweep(values=[7, 14])
        document["vary"]["values"] = [7, 14, 28]
        assert "Not simulated yet: 28." in page_of(read(tmp_path, document))

    def test_text_from_a_document_is_escaped(self, tmp_path: Path) -> None:
        evil = "<script>alert(1)</script>$\\frac{"
        hostile = [{**row("graph"), "policy": evil}, {**row("greedy"), "policy": '"><img src=x>'}]
        document = comparison(rows=hostile, scenario=evil, bound=bound(kind=evil))
        (tmp_path / "a.json").write_text(json.dumps(document))
        swept = sweep(evil, [evil, "b"], scenario=evil)
        swept["points"][0]["rows"] = hostile
        (tmp_path / "b.json").write_text(json.dumps(swept))
        moved = transfer()
        moved["rows"][0] |= {"policy": evil, "scenario": evil, "trained_on": evil}
        (tmp_path / "c.json").write_text(json.dumps(moved))
        rates = droo()
        rates["rows"][0]["policy"] = evil
        (tmp_path / "d.json").write_text(json.dumps(rates))
        write_curves(tmp_path / "x", [{**line, "label": evil} for line in curve_lines(0)])
        page = page_of(read_documents([tmp_path]))
        reader = Reader(page)
        assert reader.open == []
        assert "script" not in reader.tags
        assert all((image["src"] or "").startswith("data:") for image in reader.images)

    def test_numbers_at_the_edge_are_drawn(self, tmp_path: Path) -> None:
        nothing = {**row("graph"), "score_mean": 0, "score_sd": 0, "scores": [0, 0, 0], "success_mean": 0}
        (tmp_path / "a.json").write_text(json.dumps(comparison(rows=[nothing], bound=bound(0.0, scores=[0, 0, 0]))))
        huge = {**row("random"), "score_mean": 1e12, "scores": [1e12] * 3, "throughput_mean": 1e12}
        (tmp_path / "b.json").write_text(json.dumps(sweep(values=[1, 1e9, 1e15], points=[
            {"value": value, "rows": [nothing, huge]} for value in (1, 1e9, 1e15)
        ])))  # fmt: skip
        (tmp_path / "c.json").write_text(json.dumps(sweep(values=[3], policies=["graph"])))
        rates = [{"policy": "x", "critic_evaluations": 0, "rate_mean": 1.0, "rate_p5": 0}]
        (tmp_path / "d.json").write_text(json.dumps({"rows": rates}))
        write_curves(tmp_path / "run", [{"slot": 0, "eval_score": 1.0}])
        none = {"scenario": "x", "policy": "graph", "trained_on": "y", "score_mean": 0}
        (tmp_path / "e.json").write_text(json.dumps({"rows": [none, {**none, "ratio": 0.0}]}))
        assert page_of(read_documents([tmp_path])).count("<figure>") == 7


class TestCommand:
    @pytest.fixture
    def app(self) -> typer.Typer:
        app = typer.Typer()
        report_command.register(app)
        return app

    def call(self, app: typer.Typer, *arguments: str) -> Any:
        return app(args=list(arguments), prog_name="report", standalone_mode=False)

    def test_it_reports_on_documents_alone(
        self, app: typer.Typer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "c.json").write_text(json.dumps(comparison(["graph", "greedy"])))
        self.call(app, "--offloading", str(tmp_path / "c.json"), "--out", str(tmp_path / "out"))
        shown = capsys.readouterr().out
        assert "graph is best" in shown
        assert "index.html, 1 figures, report.json" in shown
        written = json.loads((tmp_path / "out" / "report.json").read_text())
        assert {path.name for path in (tmp_path / "out").iterdir()} == set(written["files"])
        self.call(app, "--offloading", str(tmp_path / "c.json"), "--out", str(tmp_path / "out"))

    def test_documents_stand_behind_the_backbones_of_a_run(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", [unsplit_row(), result_row(wire_bytes=600.0)])
        (tmp_path / "c.json").write_text(json.dumps(comparison(["graph", "greedy"])))
        document = make_report([run], tmp_path / "out", offloading=[tmp_path / "c.json"])
        page = (tmp_path / "out" / "index.html").read_text()
        assert len(document["backbones"]) == 1
        assert page.index('id="b1"') < page.index('id="offloading"')
        assert "Split inference" in page

    def test_nothing_to_report_on_is_refused_and_a_damaged_document_leaves_no_report(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="nothing to report on"):
            make_report([], tmp_path / "out")
        (tmp_path / "c.json").write_text("{")
        with pytest.raises(RunFormatError):
            make_report([], tmp_path / "out", offloading=[tmp_path])
        assert not (tmp_path / "out").exists()
