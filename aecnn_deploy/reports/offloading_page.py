"""The chapter of offloading: documents in, sections of figures, tables and words out."""

from dataclasses import dataclass
from typing import Any

from aecnn_deploy.reports import page
from aecnn_deploy.reports.canvas import Drawing
from aecnn_deploy.reports.offloading_documents import Documents
from aecnn_deploy.reports.offloading_figures import comparison_figure, droo_figure, transfer_figure
from aecnn_deploy.reports.offloading_lines import distance_figure, key_title, learning_figure, sweep_figure
from aecnn_deploy.reports.offloading_looks import looks
from aecnn_deploy.reports.offloading_numbers import all_policies
from aecnn_deploy.reports.offloading_tables import (
    comparison_tables,
    droo_table,
    findings,
    learning_table,
    sweep_tables,
    transfer_table,
)
from aecnn_deploy.reports.page import Chapter, Html, Section, bullets, join, paragraph, picture

PREFIX = "offloading"
TITLE = "Offloading: policies in simulated scenarios"
_CHAPTER = "Offloading: many devices, several edge servers"
_NEEDS = (
    ("comparisons", "Policies in one scenario", "simulate SCENARIO --json, or policy evaluate --json"),
    ("sweeps", "Lines against devices, deadline, capacity or errors", "simulate SCENARIO --vary KEY=A,B,... --json"),
    ("runs", "Learning curves", "policy train writes curves.jsonl into its folder"),
    ("transfers", "One policy in other scenarios", "a table of rows with trained_on"),
    ("droo", "Rates on DROO's channels", "policy evaluate --droo --json"),
)
_CAVEATS = (
    "Simulated: tasks, channels and queues are drawn from seeds. What an option takes and how accurate it is comes "
    "from the scenario's profile, which is measured, or computed from the paper's table.",
    "The score is the accuracy of the tasks that were done in time, added up, a second and world: right answers in "
    "time to be expected. A task that is late is worth nothing.",
    "± is the standard deviation over the seeds of the evaluation. It is not that of training again, unless the rows "
    "are policies trained from several seeds.",
    "All policies of one document met the same worlds: their differences, seed by seed, say more than their "
    "deviations. Scores of different scenarios, or of different documents, are not differences of policies.",
    "Decision times are of the machine that wrote the document, one world at a time; other work may have run beside.",
    "A distance to the bound is not a distance to what a policy could reach: the bound may be out of reach.",
)


@dataclass(frozen=True, slots=True)
class Offloading:
    """The chapter, its figures by file name, its numbers for report.json, and its findings as lines."""

    chapter: Chapter
    drawings: dict[str, Drawing]
    document: dict[str, Any]
    findings: tuple[str, ...]


def offloading(documents: Documents) -> Offloading:
    """Draw and write all that the documents allow. Raises MissingExtraError: matplotlib is not installed."""
    look = looks(all_policies(documents))
    parts: list[tuple[str, Html]] = []
    drawings: dict[str, Drawing] = {}

    def show(drawing: Drawing | None) -> Html:
        if drawing is None:
            return Html("")
        drawings[drawing.name] = drawing
        return picture(drawing)

    for n, (source, compared) in enumerate(documents.comparisons, start=1):
        figure = show(comparison_figure(compared, look, f"{PREFIX}-comparison-{n}.png"))
        parts.append((f"Policies in {compared.scenario}", join(comparison_tables(compared, figure), _from(source))))
    for n, (source, swept) in enumerate(documents.sweeps, start=1):
        lines = show(sweep_figure(swept, look, f"{PREFIX}-sweep-{n}.png"))
        far = show(distance_figure(swept, look, f"{PREFIX}-distance-{n}.png"))
        title = f"{swept.scenario}, against {key_title(swept.vary.key)}"
        parts.append((title, join(sweep_tables(swept, lines, far), _from(source))))
    if runs := documents.runs:
        own = looks([run.label for run in runs], look)
        curves = show(learning_figure(runs, own, f"{PREFIX}-learning.png"))
        parts.append(("Learning curves", join(curves, learning_table(runs))))
    for n, (source, moved) in enumerate(documents.transfers, start=1):
        ratios = show(transfer_figure(moved, look, f"{PREFIX}-transfer-{n}.png"))
        parts.append(("One policy in other scenarios", join(ratios, transfer_table(moved), _from(source))))
    for n, (source, rates) in enumerate(documents.droo, start=1):
        own = looks([row.policy for row in rates.rows], look)
        figure = show(droo_figure(rates, own, f"{PREFIX}-droo-{n}.png"))
        parts.append(("Rates on DROO's channels", join(figure, droo_table(rates), _from(source))))
    parts.append(("What these figures are, and are not", _made(documents)))
    sections = [Section(f"{PREFIX}-{n}", f"{n}. {title}", body) for n, (title, body) in enumerate(parts, start=1)]
    found = findings(documents)
    document = {
        "sources": [
            {"file": item.name, "document": item.document, "made": item.made, "notes": item.notes}
            for item in documents.sources
        ],
        "left_out": documents.left_out,
        "findings": found,
        "figures": {name: {"file": name, "alt": item.alt} for name, item in drawings.items()},
    }
    short = [*found, *(note for item in documents.sources for note in item.notes)]
    intro = bullets(short, "short") if short else Html("")
    return Offloading(Chapter(PREFIX, _CHAPTER, intro, tuple(sections)), drawings, document, found)


def _from(source: str) -> Html:
    return paragraph(f"From {source}.", "note")


def _made(documents: Documents) -> Html:
    parts = [bullets(_CAVEATS)]
    absent = [(what, writer) for name, what, writer in _NEEDS if not getattr(documents, name)]
    if absent:
        parts += [
            paragraph("Not in this report, for want of a document:"),
            bullets([f"{what}: {writer}." for what, writer in absent]),
        ]
    parts += [paragraph("Documents that were read:"), bullets([item.name for item in documents.sources])]
    if documents.left_out:
        shown, more = documents.left_out[:12], len(documents.left_out) - 12
        parts += [
            paragraph("JSON files within the folders that are of another kind, and left out:"),
            bullets([*shown, *([f"and {more} more"] if more > 0 else [])]),
        ]
    made = [item for item in documents.sources if item.made]
    parts += [page.settings(f"What {item.name} says of its making", item.made) for item in made]
    return join(*parts)
