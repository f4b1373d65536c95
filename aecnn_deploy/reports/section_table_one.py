"""Table I on the page."""

from collections.abc import Sequence

from aecnn_deploy.planning.paper import PaperTable
from aecnn_deploy.reports import page
from aecnn_deploy.reports.analysis import Given
from aecnn_deploy.reports.cells import (
    DASH,
    beside,
    entropy,
    milliseconds,
    nothing,
    percent,
    plus_minus,
    size,
    top1,
    wire_bytes,
)
from aecnn_deploy.reports.costs import scope
from aecnn_deploy.reports.page import Html, bullets, cell, join, paragraph, table
from aecnn_deploy.reports.points import NAMES
from aecnn_deploy.reports.tables import TABLE_ONE_ARMS, TableOne, TableOneRow


def table_one_section(given: Given) -> Html:
    """Table I for every split point and number of bits, and where the claim does not hold."""
    tables = given.analysis.table_one
    if not tables:
        return nothing("bottlenetpp", "ca-pruned", "aecnn")
    same = given.group.backbone == given.paper.backbone
    intro = (
        "Top-1 in %, mean ± standard deviation over seeds (number of seeds); accuracy is measured on the planes that "
        "the wire carries, bytes include framing. The grey lines are the paper's own numbers "
        f"({given.paper.source}; {given.paper.identifier}; {given.paper.measured_on}). "
        "Whether AECNN is at least as good is judged seed by seed, by the seeds that both have. "
        "At AECNN's bytes, BottleNet++ is read off its own curve; a dash: it was not measured at so few. "
        "The paper's entropy is that of a histogram of float32 values, its bytes are estimated from it. "
        f"In its table, {given.paper.correction}."
    )
    how = (
        "Planes are C / V, rounded down. Entropy, bytes and times are AECNN's, where it was not trained CA_Pruned's, "
        "else BottleNet++'s; times are medians of an image, one thread of the machine that trained."
    )
    how += f" Epochs of training, a ranking's included: {_epochs(tables)}."
    if given.group.says("bottlenet_linear"):
        how += (
            " BottleNet++ stands without its decoder's last ReLU (bottlenet_linear): with it, the negative values of "
            "these split tensors cannot be made again."
        )
    if given.group.says("shared_unsplit"):
        how += (
            " All seeds of a run begin with one unsplit network (shared_unsplit): the deviation is over ranking, "
            "pruning and recovery only."
        )
    if not same:
        intro += f" The paper's network is ResNet-50, here it is {given.group.backbone}: for orientation only."
    below = given.analysis.claim_failures
    margins = [margin for item in tables for row in item.rows for margin in row.margins]
    rivals = " and ".join(NAMES[arm] for arm in TABLE_ONE_ARMS if any(margin.rival == arm for margin in margins))
    if below:
        said = join(
            Html("<p><strong>Where the claim does not hold.</strong> "),
            f"AECNN should be at least as good as {rivals}. It is not in {len(below)} of {len(margins)} "
            "comparisons, marked ▼ in the tables:",
            Html("</p>\n"),
            bullets(below),
        )
    elif margins:
        count = f"all {len(margins)} comparisons" if len(margins) > 1 else "the one comparison"
        said = paragraph(f"AECNN is at least as good as {rivals} in {count}.")
    else:
        said = paragraph("Nothing to compare yet: AECNN or both of its rivals are missing.")
    return join(paragraph(intro), paragraph(how), said, *[_one_table(item, given.paper) for item in tables])


def _epochs(tables: Sequence[TableOne]) -> str:
    """What each arm was trained for: a longer training is part of what AECNN has over CA_Pruned."""
    found = []
    for arm in TABLE_ONE_ARMS:
        epochs = [point.epochs for item in tables for point in item.points if point.arm == arm]
        if epochs:
            low, high = min(epochs), max(epochs)
            found.append(f"{NAMES[arm]} {low:g}" + (f" to {high:g}" if high > low else ""))
    return ", ".join(found)


def _one_table(item: TableOne, paper: PaperTable) -> Html:
    shape = f" ({size(item.split_shape)})" if item.split_shape else ""
    tensor = paper.shape(item.paper_split)
    note = (
        f"Paper: ResNet-50, l = {item.paper_split}, {size(tensor)}." if tensor else "The paper has no such split point."
    )
    return table(
        f"l = {item.split}{shape}, {item.bits} bits {scope(item.points) or ''}",
        (
            "V", "planes", "BottleNet++", "CA_Pruned", "AECNN", "BottleNet++ at AECNN's bytes", "entropy, bits a value",
            "bytes on the wire", "encode, ms", "decode, ms",
        ),
        [_table_one_cells(row) for row in item.rows],
        note=note,
    )  # fmt: skip


def _table_one_cells(row: TableOneRow) -> list[str]:
    paper = row.paper
    shown = row.aecnn or row.ca_pruned or row.bottlenetpp
    planes = size(shown.planes) if shown and shown.planes else DASH
    below = [
        f"▼ {-100 * margin.difference:.2f} below {NAMES[margin.rival]}{', equal bytes' if margin.at == 'bytes' else ''}"
        for margin in row.margins
        if not margin.holds
    ]
    marks = [Html(f'<span class="below-mark">{page.text(line)}</span>') for line in below]
    return [
        join(f"{row.ratio}", Html("<small>paper</small>" if paper else "")),
        cell(planes, *beside(paper, lambda p: size((p.kept_channels, *p.shape[1:])))),
        cell(top1(row.bottlenetpp), *beside(paper, lambda p: plus_minus(p.bottlenetpp))),
        cell(top1(row.ca_pruned), *beside(paper, lambda p: plus_minus(p.ca_pruned))),
        cell(top1(row.aecnn), *beside(paper, lambda p: plus_minus(p.aecnn)), *marks, kind="below" if below else ""),
        cell(percent(row.bottlenetpp_at_equal_bytes)),
        cell(entropy(shown.entropy_bits if shown else None), *beside(paper, lambda p: plus_minus(p.entropy_bits))),
        cell(wire_bytes(shown), *beside(paper, lambda p: f"≈ {p.estimated_bytes:,.0f}")),
        cell(milliseconds(shown.encode_ms if shown else None), *beside(paper, lambda p: f"{p.encode_ms:.2f}")),
        cell(milliseconds(shown.decode_ms if shown else None), *beside(paper, lambda p: f"{p.decode_ms:.2f}")),
    ]
