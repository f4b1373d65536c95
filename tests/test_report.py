"""``aecnn-deploy report``: the arithmetic on known numbers, the page as a reader and a parser see it, the folder."""

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer

from aecnn_deploy.cli import report as report_command
from aecnn_deploy.errors import RunFormatError, SettingsError
from aecnn_deploy.models.results import Ranking, ResultRow
from aecnn_deploy.planning.paper import paper_table
from aecnn_deploy.reports import canvas
from aecnn_deploy.reports.analysis import analyse
from aecnn_deploy.reports.points import Group, make_group, read_groups
from aecnn_deploy.reports.report import Report, build_report, check_target, make_report, write_report
from tests.result_rows import codec_row, many_rows, rankings, result_row, unsplit_row, write_run

PNG = b"\x89PNG\r\n\x1a\n"


Values = list[float]


@pytest.fixture(scope="module", autouse=True)
def _coarse_figures() -> Iterator[None]:
    """Small pictures: no test here looks at their pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "DPI", 20)
        yield


def group_of(rows: list[ResultRow], orders: list[Ranking] | None = None, backbone: str = "resnet50") -> Group:
    return make_group(backbone, [], rows, orders or [])


class Reader(HTMLParser):
    """What a browser would look at: open elements, ids, links, sources, images."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.open += [tag] if tag not in self.VOID else []
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.targets += [value for key, value in attrs if key in ("href", "src") and value]
        self.images += [found] if tag == "img" else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def full() -> Report:
    """The report of a run that has everything."""
    return build_report([group_of(many_rows(), [*rankings(1), *rankings(2, channels=24)])])


class TestPage:
    def test_the_page_is_one_file_that_loads_nothing(self, full: Report) -> None:
        page = full.files["index.html"].decode()
        reader = Reader(page)
        assert reader.open == []
        assert "script" not in reader.tags
        assert all(target.startswith(("#", "data:")) for target in reader.targets)
        assert "url(" not in page
        assert "@import" not in page

    def test_every_entry_of_the_contents_leads_to_one_place(self, full: Report) -> None:
        reader = Reader(full.files["index.html"].decode())
        links = [target[1:] for target in reader.targets if target.startswith("#")]
        assert len(links) == 11
        assert all(reader.ids.count(link) == 1 for link in links)

    def test_every_figure_is_inside_the_page_and_beside_it_with_a_description(self, full: Report) -> None:
        reader = Reader(full.files["index.html"].decode())
        figures = full.document["backbones"][0]["figures"]
        assert set(figures) == {"importance", "rate-accuracy", "multiply-adds", "three-axes", "speed"}
        assert len(reader.images) == len(figures)
        assert all(image["src"] and image["src"].startswith("data:image/png;base64,") for image in reader.images)
        assert all(len(image["alt"] or "") > 60 for image in reader.images)
        assert all(full.files[item["file"]].startswith(PNG) for item in figures.values())

    def test_it_shows_the_papers_numbers_and_its_misprint(self, full: Report) -> None:
        page = full.files["index.html"].decode()
        for number in ("95.62 ± 0.20", "88.54 ± 0.44", "95.84 ± 0.35", "arXiv 2211.13745", "prints 32 channels"):
            assert number in page

    def test_the_document_holds_the_numbers_of_the_page(self, full: Report) -> None:
        document = json.loads(full.files["report.json"])
        assert document == json.loads(json.dumps(full.document))
        (backbone,) = document["backbones"]
        assert len(backbone["points"]) == len(group_of(many_rows()).points)
        assert [row["budget_bytes"] for row in backbone["budgets"]][:2] == [300, 400]
        assert document["files"] == sorted(full.files)

    def test_the_same_rows_give_the_same_bytes(self) -> None:
        rows: list[ResultRow] = [unsplit_row(), codec_row(), result_row(), result_row(ratio=8, wire_bytes=900.0)]
        assert build_report([group_of(rows)]).files == build_report([group_of(rows[::-1])]).files

    def test_text_from_a_run_is_escaped(self, tmp_path: Path) -> None:
        label = '<script>alert("x")</script>'
        run = write_run(tmp_path / "a<b>", [result_row(label=label), unsplit_row(device="<i>")])
        page = build_report(read_groups([run])).files["index.html"].decode()
        assert "<script" not in page
        assert "<i>" not in page
        assert "a<b>" not in page
        assert "&lt;script&gt;" in page

    def test_a_claim_that_does_not_hold_is_marked_and_said(self) -> None:
        rows = [result_row(accuracy=0.90), result_row(arm="ca-pruned", accuracy=0.91)]
        page = build_report([group_of(rows)]).files["index.html"].decode()
        assert "Where the claim does not hold" in page
        assert "▼ 1.00 below CA_Pruned" in page

    @pytest.mark.parametrize(
        "kept",
        [
            (),
            ("unsplit",),
            ("local-int8",),
            ("aecnn",),
            ("aecnn-fast",),
            ("jpeg",),
            ("ca-pruned", "l1"),
            ("late-split",),
        ],
    )
    def test_a_run_without_most_arms_says_what_to_train(self, kept: tuple[str, ...]) -> None:
        rows = [next(row for row in many_rows() if row.arm == arm and not row.ablation) for arm in kept]
        page = build_report([group_of(rows, backbone="unknown")]).files["index.html"].decode()
        assert Reader(page).open == []
        rankings_missing = (
            "It needs: arms = [&quot;random&quot;, &quot;l1&quot;, &quot;se&quot;, &quot;cbam&quot;] in a [[sweep]]"
        )
        assert (rankings_missing in page) == ("l1" not in kept)
        assert "No ablation rows" in page

    def test_a_single_point_can_be_drawn_alone(self) -> None:
        one = build_report([group_of([result_row(wire_bytes=50.0, split_shape=None, planes=None, entropy_bits=None)])])
        assert sum(name.endswith(".png") for name in one.files) == 3

    def test_how_long_each_arm_was_trained_stands_beside_table_one(self) -> None:
        rows = [
            result_row(epochs=21.0),
            result_row(arm="ca-pruned", epochs=13.0),
            result_row(arm="ca-pruned", ratio=8, epochs=11.0),
        ]
        page = build_report([group_of(rows)]).files["index.html"].decode()
        assert "Epochs of training, a ranking&#x27;s included: CA_Pruned 11 to 13, AECNN 21." in page

    def test_a_caption_names_only_lines_and_marks_that_are_drawn(self) -> None:
        alone = [result_row(head_macs=90, full_macs=100)]
        with_codec = [*alone, codec_row(), result_row(ratio=8, head_macs=9, full_macs=100)]
        for rows, there in ((alone, False), (with_codec, True)):
            page = build_report([group_of(rows)]).files["index.html"].decode()
            assert ("The dotted line" in page) == there
            assert ("The full line" in page) == there

    def test_two_backbones_are_kept_apart(self) -> None:
        groups = [group_of([result_row()]), group_of([result_row()], backbone="efficientnet_lite0")]
        report = build_report(groups)
        reader = Reader(report.files["index.html"].decode())
        assert len(reader.ids) == len(set(reader.ids)) == 22
        assert "efficientnet_lite0-rate-accuracy.png" in report.files

    def test_the_first_split_points_tensor_is_known_without_a_row_of_it(self) -> None:
        group = group_of([result_row(split=2, split_shape=(256, 56, 56))])
        assert analyse(group, paper_table()).first_shape == (64, 56, 56)


class TestFolder:
    def small(self) -> Report:
        return Report({"index.html": b"page", "report.json": b""}, {})

    def report_at(self, out: Path) -> dict[str, bytes]:
        document = {"kind": "aecnn-deploy report", "files": ["index.html", "old.png", "report.json"]}
        out.mkdir()
        (out / "old.png").write_bytes(b"old")
        (out / "report.json").write_text(json.dumps(document))
        return {}

    def test_an_earlier_report_is_replaced_whole(self, tmp_path: Path) -> None:
        self.report_at(tmp_path / "out")
        write_report(self.small(), tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.html", "report.json"]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_folder_that_holds_more_than_a_report_is_refused_and_kept(self, tmp_path: Path) -> None:
        self.report_at(tmp_path / "out")
        (tmp_path / "out" / "mine.txt").write_text("mine")
        with pytest.raises(SettingsError, match="add --force"):
            write_report(self.small(), tmp_path / "out")
        write_report(self.small(), tmp_path / "out", replace=True)
        assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
        assert (tmp_path / "out" / "index.html").read_bytes() == b"page"

    def test_a_run_is_not_taken_for_a_report_and_a_file_never_is(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", [result_row()])
        with pytest.raises(SettingsError, match="not an earlier report"):
            make_report([run], run)
        (tmp_path / "file").write_text("")
        with pytest.raises(SettingsError, match="is a file"):
            check_target(tmp_path / "file", replace=True)
        assert (run / "run.json").is_file()

    def test_a_damaged_row_leaves_no_report(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", [result_row()])
        (run / "results" / "broken.json").write_text('{"task": ')
        with pytest.raises(RunFormatError, match=r"broken\.json is not a ResultRow"):
            make_report([run], tmp_path / "out")
        write_run(tmp_path / "better", [result_row(accuracy=7.5)])
        with pytest.raises(RunFormatError, match=r"Expected `float` <= 1.* - at `\$.accuracy`"):
            make_report([tmp_path / "better"], tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestCommand:
    @pytest.fixture
    def app(self) -> typer.Typer:
        app = typer.Typer()
        report_command.register(app)
        return app

    def call(self, app: typer.Typer, *arguments: str) -> Any:
        return app(args=list(arguments), prog_name="report", standalone_mode=False)

    def test_it_writes_the_folder_and_says_who_wins(
        self, app: typer.Typer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows: list[ResultRow] = [unsplit_row(), codec_row(), result_row(wire_bytes=600.0, accuracy=0.93)]
        run = write_run(tmp_path / "run", rows, backbone=None)
        self.call(app, str(run), "--out", str(tmp_path / "out"))
        shown = capsys.readouterr().out
        assert "700 B: only ours is so small, 93.00 %" in shown
        assert "1 of 1 runs have no run.json: unfinished" in shown
        assert (tmp_path / "out" / "index.html").is_file()
        self.call(app, str(run), "--out", str(tmp_path / "out"), "--json")
        assert json.loads(capsys.readouterr().out)["kind"] == "aecnn-deploy report"
