"""The sections of the page: computed rows in, words and tables out."""

from collections.abc import Sequence

from aecnn_deploy.reports import page
from aecnn_deploy.reports.analysis import Given
from aecnn_deploy.reports.cells import (
    DASH,
    accuracy,
    best_cell,
    difference_cell,
    factor_text,
    nothing,
    points_text,
    reached_by,
    share,
    size,
    top1,
    wire_bytes,
)
from aecnn_deploy.reports.costs import scope
from aecnn_deploy.reports.curves import BudgetRow, verdict
from aecnn_deploy.reports.numbers import share_error
from aecnn_deploy.reports.page import Html, Section, bullets, join, missing, paragraph, picture, table, words
from aecnn_deploy.reports.points import CODECS, NAMES, OURS, RANKED, Point
from aecnn_deploy.reports.section_table_one import table_one_section

SECTION_NAMES = (
    ("table-one", "Table I: BottleNet++, CA_Pruned, AECNN"),
    ("rankings", "Other rankings of the channels"),
    ("importance", "Fig. 4: importance of the channels from random batches"),
    ("rate", "Rate against accuracy"),
    ("work", "Work on the device against accuracy"),
    ("budgets", "The curve that decides: against image codecs"),
    ("factors", "Compression in the paper's terms"),
    ("ablations", "Ablations: what each part is worth"),
    ("speed", "The faster path against plain Algorithm 1"),
    ("made", "How this was made"),
)


def sections(given: Given, prefix: str) -> tuple[Section, ...]:
    """All sections of one backbone; ``prefix`` keeps their ids apart from another backbone's."""
    makers = (table_one_section, _rankings, _importance, _rate, _work, _budgets, _factors, _ablations, _speed, _made)
    return tuple(
        Section(f"{prefix}-{name}", f"{number}. {title}", maker(given))
        for number, ((name, title), maker) in enumerate(zip(SECTION_NAMES, makers, strict=True), start=1)
    )


def summary(given: Given) -> Html:
    """The findings in a few lines."""
    group, analysis = given.group, given.analysis
    lines = []
    if group.unsplit:
        lines.append(
            f"Unsplit: {accuracy(group.unsplit.accuracy)} % top-1 on {group.unsplit.test_images:,} test images"
            f" (the paper's ResNet-50: {given.paper.unsplit[0]} ± {given.paper.unsplit[1]} %)."
        )
        images = group.unsplit.test_images
        lines.append(
            f"One test image is {100 / images:.2f} points, the standard error of an accuracy "
            f"{100 * share_error(group.unsplit.accuracy.mean, images):.2f} points at the unsplit network's, "
            f"{100 * share_error(0.85, images):.2f} at 85 %; deviations over seeds (±) do not contain it."
        )
    margins = [margin for item in analysis.table_one for row in item.rows for margin in row.margins]
    claims = (("CA_Pruned at the same ratio", "ratio"), ("BottleNet++ at the same bytes", "bytes"))
    for what, at in claims:
        mine = [margin for margin in margins if margin.at == at]
        if mine:
            lines.append(
                f"AECNN is at least as good as {what} at {sum(m.holds for m in mine)} of {len(mine)} settings."
            )
    known = [row for row in analysis.budgets if row.codec or row.ours]
    if known:
        lines.append(
            "Against the best of JPEG, WebP and AVIF: ours is more accurate, or alone, at "
            f"{sum(row.wins for row in known)} of {len(known)} budgets with a head of 30 % or less of the "
            f"multiply-adds ({sum(row.clear for row in known)} of them by more than one standard error, or alone), at "
            f"{sum(row.wins_small for row in known)} with 10 % or less."
        )
    best = [row for row in analysis.factors if row.factor_sent and row.what == analysis.factors[0].what]
    if best:
        said = ", ".join(f"{row.factor_sent:,.0f}× at {100 * row.loss:g}" for row in best)
        lines.append(f"Compression of the tensor that is sent, by points of accuracy lost: {said}.")
    unfinished = [run.path for run in group.runs if not run.finished]
    notes = [
        f"Without run.json, unfinished or kept without the networks: {', '.join(unfinished)}; what was measured counts."
    ] * bool(unfinished)
    return Html(bullets([*lines, *notes, *group.notes], "short") if lines or notes or group.notes else "")


def _rankings(given: Given) -> Html:
    rows = given.analysis.rankings
    if not rows:
        return nothing(*RANKED)
    arms = ("ca-pruned", *RANKED)
    body = []
    for row in rows:
        best = max(point.accuracy.mean for point in row.points.values())
        cells = [f"l = {row.split}, V = {row.ratio}, {row.bits} bits"]
        for arm in arms:
            point = row.points.get(arm)
            shown = page.text(top1(point))
            cells.append(Html(f"<strong>{shown}</strong>") if point and point.accuracy.mean == best else shown)
        body.append(cells)
    points = [point for row in rows for point in row.points.values()]
    header = ("setting", "attention of the paper", *[NAMES[arm].removesuffix(" ranking") for arm in RANKED])
    intro = "CA_Pruned, without feature recovery, with the channels chosen in other ways: what the attention is worth."
    return join(
        paragraph(intro + " The best of each row is bold."),
        table(f"Top-1 in %, by ranking {scope(points) or ''}", header, body),
    )


def _importance(given: Given) -> Html:
    rows, agreement = given.analysis.stability, given.analysis.agreement
    if "importance" not in given.drawings and not rows and not agreement:
        return missing(
            "No ranking with random batches in these runs: train the arm aecnn, whose ranking keeps the importance of "
            "random batches."
        )
    parts = [picture(given.drawings["importance"])] if "importance" in given.drawings else []
    if rows:
        body = [
            [
                f"{row.method}, l = {row.split}, seed {row.seed}",
                f"{row.channels}",
                f"{row.batch_images}" if row.batch_images else DASH,
                f"{min(row.correlations):.3f}" if row.correlations else DASH,
                f"{sum(row.correlations) / len(row.correlations):.3f}" if row.correlations else DASH,
            ]
            for row in rows
        ]
        header = ("ranking", "channels", "images a batch", "lowest ρ", "mean ρ")
        parts.append(table("Spearman's rank correlation between the batches", header, body))
    if agreement:
        body = [
            [f"l = {r.split}, seed {r.seed}", f"{r.first} and {r.second}", f"{r.correlation:.3f}"] for r in agreement
        ]
        parts.append(table("Spearman's rank correlation between the methods", ("split point", "methods", "ρ"), body))
    return join(*parts)


def _rate(given: Given) -> Html:
    if "rate-accuracy" not in given.drawings:
        return nothing("aecnn", "bottlenetpp", *CODECS)
    shown = given.group.points
    body = [
        [
            point.name,
            wire_bytes(point),
            top1(point),
            share(point.head_share),
            size(point.planes) if point.planes else DASH,
            f"{point.train_s:,.0f}",
            words(", ".join(point.devices)),
        ]
        for point in sorted(shown, key=lambda point: (point.wire_bytes or 0.0, -point.accuracy.mean))
    ]
    header = ("point", "bytes", "top-1, %", "device multiply-adds, % of unsplit", "planes", "training, s", "trained on")
    points = table(f"All points {scope(shown) or ''}", header, body)
    return join(
        paragraph(f"Every arm that was measured {scope(shown) or ''}.{_names_of_heads(shown)}"),
        picture(given.drawings["rate-accuracy"]),
        Html(f"<details><summary>All {len(body)} points as a table</summary>\n{points}</details>\n"),
    )


def _names_of_heads(points: Sequence[Point]) -> str:
    if not any(point.arm == "strided" for point in points):
        return ""
    return (
        " A strided head is called, in brackets, as its [[strided]] table in the settings at the end; its V is that of "
        "the number of values, not of channels."
    )


def _work(given: Given) -> Html:
    names = [name for name in ("multiply-adds", "three-axes") if name in given.drawings]
    if not names:
        return nothing("aecnn", "local-int8", *CODECS)
    intro = (
        "A split has three rivals: sending a coded frame (no work on the device), computing everything on the device "
        "(no bytes), and another split. A head above 30 % of the multiply-adds does not count: a device that can run "
        "it can nearly run the whole network."
    )
    return join(paragraph(intro), *[picture(given.drawings[name]) for name in names])


def _budgets(given: Given) -> Html:
    rows = given.analysis.budgets
    if not rows:
        return join(
            paragraph("Needs image codecs and at least one network of ours."), nothing(*CODECS, *OURS, any_of=True)
        )
    points = [p for row in rows for p in (row.codec, row.ours, row.ours_small, row.aecnn) if p]
    header = (
        "budget, B", "best codec", "ours, head ≤ 30 %", "difference", "ours, head ≤ 10 %", "difference",
        "AECNN as written, head ≤ 30 %",
    )  # fmt: skip
    body = [
        [
            f"{row.budget_bytes:,}",
            best_cell(row.codec),
            best_cell(row.ours),
            difference_cell(row.margin),
            best_cell(row.ours_small),
            difference_cell(row.margin_small),
            best_cell(row.aecnn),
        ]
        for row in rows
    ]
    intro = (
        "For each budget of bytes an image, framing included: the most accurate frame of JPEG, WebP or AVIF at any "
        "quality and side, and the most accurate network of ours, both at or below the budget. Both are picked by "
        "their accuracy on the test split, which flatters both. Differences are in points of top-1; their standard "
        "error is taken photograph by photograph where both rows keep which were named right, else as of two "
        "accuracies on so many photographs each, which is rather too large."
    )
    codecs, ours = (scope(given.group.of(*arms)) for arms in (CODECS, OURS))
    if codecs and ours:
        intro += f" Training: classifiers on coded frames {codecs}, networks of ours {ours}."
    return join(
        paragraph(intro),
        table(f"Best at or below each budget {scope(points) or ''}", header, body),
        bullets([_verdict(row) for row in rows]),
    )


def _verdict(row: BudgetRow) -> Html:
    kind = "wins" if row.wins else "loses" if row.codec else "note"
    return Html(f'<span class="{kind}">{page.text(verdict(row))}</span>')


def _factors(given: Given) -> Html:
    rows = given.analysis.factors
    if not rows:
        return nothing("unsplit", *OURS)
    first = given.analysis.first_shape
    against = f"first split point ({size(first)})" if first else "first split point (shape unknown)"
    header = ("points lost", "which", "tensor that is sent, factor", "by", f"{against}, factor", "by")
    body = [
        [
            f"{100 * row.loss:g}",
            words(row.what),
            factor_text(row.factor_sent),
            words(reached_by(row.sent)),
            factor_text(row.factor_first),
            words(reached_by(row.first)),
        ]
        for row in sorted(rows, key=lambda row: row.loss)
    ]
    intro = (
        "The float32 tensor of the split, 4·C·H·W bytes, over the bytes on the wire, framing included: the largest "
        "factor among points that lose no more than so many points against the unsplit network. The paper claims 256 "
        "with 4.4 points lost, from an estimate of the entropy (64 × 32 / 7.73)."
    )
    points = [point for row in rows for point in (row.sent, row.first) if point]
    return join(paragraph(intro), table(f"Compression factors {scope(points) or ''}", header, body))


def _ablations(given: Given) -> Html:
    tables = given.analysis.ablations
    if not tables:
        return missing(
            "No ablation rows in these runs. They are [[strided]] tables of the settings that have an ablation: one is "
            "called “all”, each other one is called by what it leaves out."
        )
    header = ("label", "top-1, %", "difference to “all”, points", "bytes", "training, s")
    parts = []
    for item in tables:
        body = [
            [
                row.point.label or DASH,
                top1(row.point),
                DASH if row.difference is None else points_text(row.difference),
                wire_bytes(row.point),
                f"{row.point.train_s:,.0f}",
            ]
            for row in item.rows
        ]
        note = "" if item.reference else "No row is labelled “all”: there is nothing to compare with."
        caption = f"{item.title} {scope([row.point for row in item.rows]) or ''}"
        parts.append(table(caption, header, body, note=note))
    return join(*parts)


def _speed(given: Given) -> Html:
    rows = given.analysis.speed
    if not rows:
        return nothing("aecnn", "aecnn-fast")
    header = ("setting", "Algorithm 1, %", "seconds", "faster path, %", "seconds", "difference, points", "speed-up")
    body = [
        [
            row.plain.name.removeprefix(f"{NAMES['aecnn']}, "),
            top1(row.plain),
            f"{row.plain.train_s:,.0f}",
            top1(row.fast),
            f"{row.fast.train_s:,.0f}",
            points_text(row.difference),
            DASH if row.speed_up is None else f"{row.speed_up:.1f}×",
        ]
        for row in rows
    ]
    points = [point for row in rows for point in (row.plain, row.fast)]
    figure = [picture(given.drawings["speed"])] if "speed" in given.drawings else []
    intro = (
        "Heads of the same planes, trained as the paper writes it and by matching the split tensor first, then "
        "distilling from the unsplit network. The faster path ranks by eq. 8 on the unsplit network as it is, and its "
        "recovery may correct the received channels too. A speed-up is given where both were trained on the same kind "
        "of device."
    )
    return join(paragraph(intro), table(f"Accuracy and wall-clock {scope(points) or ''}", header, body), *figure)


def _made(given: Given) -> Html:
    group = given.group
    parts = []
    if given.analysis.costs:
        body = [
            [
                item.title,
                f"{item.rows}",
                f"{item.train_s:,.0f}",
                words(str(item.scope)),
                words(", ".join(f"{count:,}" for count in item.test_images)),
                words(", ".join(item.devices)),
            ]
            for item in given.analysis.costs
        ]
        note = (
            "Seconds of wall-clock, all rows added up; what several rows share counts once, except for the training of "
            "a ranking: it counts with every network that was pruned by it."
        )
        header = ("table", "rows", "training, s", "size", "test images", "device")
        parts.append(table("What each table took", header, body, note=note))
    else:
        parts.append(missing("No result rows in these runs: train at least one arm."))
    seeds = sorted({row.seed for row in group.rows})
    parts.append(paragraph(f"Seeds: {', '.join(map(str, seeds))}.") if seeds else Html(""))
    for run in group.runs:
        state = "finished" if run.finished else "without run.json: unfinished, or kept without its networks"
        parts.append(paragraph(f"Run {run.path}: {run.results} results, {run.rankings} rankings, {state}."))
        if run.settings:
            parts.append(
                page.settings(f"Settings and versions of {run.path}", {"settings": run.settings, "tools": run.tools})
            )
    return join(*parts)
