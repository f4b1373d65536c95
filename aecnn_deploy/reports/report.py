"""``aecnn-deploy report``: runs and documents of offloading in, a folder with a page, its figures and its numbers out.

index.html      the page: one file, figures inside it
<backbone>-*.png, offloading-*.png
report.json     every number of the page, and the names of the files
"""

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from aecnn_deploy import __version__
from aecnn_deploy.errors import SettingsError, TrainingError
from aecnn_deploy.planning.paper import paper_table
from aecnn_deploy.reports.analysis import Given, analyse, draw
from aecnn_deploy.reports.offloading_documents import Documents
from aecnn_deploy.reports.offloading_page import TITLE, offloading
from aecnn_deploy.reports.offloading_reading import read_documents
from aecnn_deploy.reports.page import Chapter, page
from aecnn_deploy.reports.points import Group, read_groups
from aecnn_deploy.reports.sections import sections, summary

KIND = "aecnn-deploy report"
REPORT_FORMAT = 1
PAGE, NUMBERS = "index.html", "report.json"


@dataclass(frozen=True, slots=True)
class Report:
    """A report in memory: its files by name, report.json among them, and that document."""

    files: dict[str, bytes]
    document: dict[str, Any]


def make_report(
    runs: Sequence[Path], out: Path, *, replace: bool = False, offloading: Sequence[Path] = ()
) -> dict[str, Any]:
    """Read ``runs`` and documents of ``offloading``, write the report to ``out``, return its document.

    Raises SettingsError: nothing to report on, or ``out`` exists, is no earlier report and may not be written into;
    RunFormatError: a folder is no run, or a run or a document is damaged; TrainingError: the disk refuses;
    MissingExtraError: matplotlib is not installed, or torch, which runs need.
    """
    if not runs and not offloading:
        raise SettingsError("nothing to report on; name the folder of a training run, or --offloading FILE_OR_FOLDER")
    check_target(out, replace=replace)
    documents = read_documents(offloading) if offloading else None
    report = build_report(read_groups(runs) if runs else [], documents)
    write_report(report, out, replace=replace)
    return report.document


def build_report(groups: Sequence[Group], offloading_documents: Documents | None = None) -> Report:
    """Compute, draw and render; touches no disk."""
    paper = paper_table()
    chapters, documents = [], []
    pictures: dict[str, bytes] = {}
    for number, group in enumerate(groups, start=1):
        analysis = analyse(group, paper)
        drawings = draw(group, analysis, re.sub(r"[^A-Za-z0-9_-]", "-", group.backbone))
        given = Given(group, analysis, drawings, paper)
        pictures |= {drawing.name: drawing.png for drawing in drawings.values()}
        prefix = f"b{number}"
        chapters.append(Chapter(prefix, group.backbone, summary(given), sections(given, prefix)))
        shown = {name: {"file": item.name, "alt": item.alt} for name, item in drawings.items()}
        documents.append(
            {
                "backbone": group.backbone,
                "runs": group.runs,
                "notes": group.notes,
                "unsplit": group.unsplit,
                "points": group.points,
                **{name: getattr(analysis, name) for name in analysis.__slots__},
                "importance": group.rankings,
                "figures": shown,
            }
        )
    more: dict[str, Any] = {}
    if offloading_documents is not None:
        policies = offloading(offloading_documents)
        chapters.append(policies.chapter)
        pictures |= {name: drawing.png for name, drawing in policies.drawings.items()}
        more["offloading"] = policies.document
    html = page(*_heading(groups, offloading_documents), chapters).encode()
    files = {PAGE: html, **pictures}
    document = msgspec.to_builtins(
        {
            "kind": KIND,
            "format": REPORT_FORMAT,
            "files": sorted([*files, NUMBERS]),
            "aecnn_deploy": __version__,
            "paper": paper,
            "backbones": documents,
            **more,
        }
    )
    files[NUMBERS] = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
    return Report(files, document)


def _heading(groups: Sequence[Group], policies: Documents | None) -> tuple[str, str]:
    """The page's title and the lines below it."""
    if not groups and policies is not None:
        count = len(policies.sources)
        return TITLE, (
            f"Policies that say, slot by slot, what each device does with its task; {count} "
            f"document{'' if count == 1 else 's'} of simulations, aecnn-deploy {__version__}."
        )
    count = sum(len(group.runs) for group in groups)
    rows = sum(len(group.rows) for group in groups)
    lead = (
        f"{rows:,} measured rows of {count} training run{'' if count == 1 else 's'}, aecnn-deploy {__version__}. "
        "Accuracies are top-1 on the test split, bytes are real ones, framing included."
    )
    return "Split inference: accuracy, bytes, device work", lead


def check_target(out: Path, *, replace: bool) -> None:
    """Raises SettingsError: ``out`` is a file, or a folder that is more than an earlier report, without ``replace``."""
    if out.exists() and not out.is_dir():
        raise SettingsError(f"{out} is a file; --out names a folder")
    if out.is_dir() and any(out.iterdir()) and not _is_report(out) and not replace:
        raise SettingsError(
            f"{out} exists and is not an earlier report alone; choose another --out, or add --force to write into it "
            "(files of other names stay)"
        )


def write_report(report: Report, out: Path, *, replace: bool = False) -> None:
    """Write the files beside ``out`` and rename them into place; a folder that is an earlier report is replaced whole.

    Raises SettingsError: as ``check_target``; TrainingError: the disk refuses.
    """
    check_target(out, replace=replace)
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=parent))
        try:
            partial.chmod(0o755)
            for name, content in report.files.items():
                (partial / name).write_bytes(content)
            _move(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as exc:
        raise TrainingError(f"cannot write {out}: {exc.strerror}; choose another --out, or free some space") from None


def _move(partial: Path, out: Path) -> None:
    if not out.exists():
        partial.rename(out)
    elif _is_report(out) or not any(out.iterdir()):
        old = partial.with_name(partial.name + ".old")
        out.rename(old)
        partial.rename(out)
        shutil.rmtree(old)
    else:
        for path in partial.iterdir():
            path.replace(out / path.name)


def _is_report(folder: Path) -> bool:
    """The folder holds a report and nothing else: nothing of somebody else's is lost with it."""
    try:
        document = msgspec.json.decode((folder / NUMBERS).read_bytes())
        listed = set(document["files"])
        return document["kind"] == KIND and all(path.name in listed and path.is_file() for path in folder.iterdir())
    except (OSError, msgspec.DecodeError, KeyError, TypeError):
        return False
