"""Every number of the offloading figures as a table, and the findings in a few lines."""

from collections.abc import Callable, Iterator, Sequence

from aecnn_deploy.reports.cells import DASH, accuracy, milliseconds, percent
from aecnn_deploy.reports.numbers import Spread, spread
from aecnn_deploy.reports.offloading_documents import (
    Bound,
    Comparison,
    Documents,
    DrooTable,
    PolicyRow,
    Sweep,
    SweepPoint,
    TrainingRun,
    TransferTable,
)
from aecnn_deploy.reports.offloading_lines import key_title, key_words
from aecnn_deploy.reports.offloading_numbers import (
    Named,
    by_label,
    distance,
    mean_curve,
    named,
    number,
    ordered,
    other_worlds,
    paired,
    plural,
    plus_minus,
    policies,
    score,
    value_text,
)
from aecnn_deploy.reports.page import Html, join, paragraph, table, words

# How a kind of bound is known, and what it is; the first that fits counts.
_MEANINGS = (
    ("clairvoyant", "all slots together, every arrival, channel and computing time known beforehand"),
    ("empty queues", "each slot alone, as if all queues were empty when it begins"),
    ("lp", "each slot alone, as if tasks could be split between options and queues were empty"),
    ("exact", "the best decision of each slot by what is known in it, played slot after slot, without a look ahead"),
)
_ROW_NOTE = (
    "Behind the best: the best score less the policy's, mean ± deviation of the differences seed by seed; best ahead: "
    "in so many seeds. Accuracy is that of the tasks in time. Energy is of a task, on the device; a decision's time is "
    "the median."
)


def bound_words(document: Comparison | Sweep, bound: Bound) -> str:
    """What the bound is, whether a policy can pass it, and over what it was taken."""
    meaning = next((meaning for mark, meaning in _MEANINGS if mark in bound.kind.lower()), None)
    said = f"The bound, “{bound.kind}”" + (f": {meaning}." if meaning else ".")
    if bound.holds is not None:
        said += " No policy's score can be higher." if bound.holds else " A policy with foresight may pass it."
    if bound.proven_share is not None:
        said += f" Solved to its proven optimum in {_floor_percent(bound.proven_share)} % of the cases."
    other = other_worlds(document, bound)
    if other:
        said += f" It was taken over other worlds: {'; '.join(other)}. Distances to it are between different worlds."
    return said


def comparison_tables(document: Comparison, figure: Html) -> Html:
    """One scenario: words, figure, table."""
    rows = named(document.rows)
    intro = f"{plural(len(rows), 'policy', 'policies')}, all in the same worlds. {_worlds(document)}"
    bound = [paragraph(bound_words(document, document.bound))] if document.bound else []
    header = _columns(document, document.rows)
    body = [[item.name, *_cells(item.row, rows[0].row, document, document.bound, header)] for item in rows]
    if document.bound:
        mean = Spread(document.bound.score_mean, document.bound.score_sd, len(document.seeds))
        body.append([f"bound: {document.bound.kind}", plus_minus(mean), *[DASH] * (len(header) - 1)])
    made = table(f"Policies in {document.scenario}", ("policy", *header), body, note=_ROW_NOTE)
    return join(paragraph(intro), *bound, figure, made)


def sweep_tables(sweep: Sweep, lines: Html, far: Html) -> Html:
    """One key of one scenario: words, figures, scores and distances as tables, and every row on demand."""
    points, _ = ordered(sweep)
    header = ("policy", *[value_text(point.value) for point in points])
    names = policies(sweep)

    def grid(show: Callable[[PolicyRow, SweepPoint], str]) -> list[list[str]]:
        return [[name, *[_at(point, name, show) for point in points]] for name in names]

    scores = grid(lambda row, _: plus_minus(score(row, len(sweep.seeds))))
    bounds = [point.bound for point in points if point.bound]
    if bounds:
        cells = [number(point.bound.score_mean) if point.bound else DASH for point in points]
        scores.append([f"bound: {', '.join(dict.fromkeys(bound.kind for bound in bounds))}", *cells])
    key = key_words(sweep.vary.key)
    parts = [paragraph(f"{sweep.vary.key} takes {plural(len(points), 'value')}. {_worlds(sweep)}")]
    missing = [value for value in sweep.vary.values if repr(value) not in {repr(point.value) for point in points}]
    if missing:
        parts.append(paragraph(f"Not simulated yet: {', '.join(map(value_text, missing))}."))
    parts += [paragraph(said) for said in dict.fromkeys(bound_words(sweep, bound) for bound in bounds)]
    parts += [lines, table(f"Score, 1/s, against {key}", header, scores)]
    if bounds:
        distances = grid(lambda row, point: _distance_text(distance(row, point.bound, sweep.seeds)))
        parts += [far, table(f"Below the bound, %, against {key}", header, distances)]
    columns = _columns(sweep, [row for point in points for row in point.rows])
    every = []
    for point in points:
        rows = named(point.rows)
        for item in rows:
            cells = _cells(item.row, rows[0].row, sweep, point.bound, columns)
            every.append([value_text(point.value), words(item.name), *cells])
    whole = table(f"Every number against {key}", (key, "policy", *columns), every, note=_ROW_NOTE)
    parts.append(Html(f"<details><summary>All {len(every)} rows as a table</summary>\n{whole}</details>\n"))
    return join(*parts)


def learning_table(runs: Sequence[TrainingRun]) -> Html:
    """Where the runs of each label ended, and how long they took."""
    body = []
    for title, mine in by_label(runs).items():
        seeds = ", ".join(str(run.seed) for run in mine if run.seed is not None) or DASH
        body.append([title, f"{len(mine)}", seeds, *_ends(mine)])
    header = ("training", "runs", "seeds", "slots", "last score", "best score", "last success, %", "took, s")
    note = (
        "Scores and success are on evaluation seeds: of each run's last evaluation, and of its best one, mean ± "
        "deviation over the runs. The best evaluation of a run flatters it: other seeds judge a policy."
    )
    return table("Where trainings ended", header, body, note=note)


def transfer_table(document: TransferTable) -> Html:
    body = [
        [
            f"{row.scenario}",
            words(row.policy),
            words(row.trained_on),
            plus_minus(Spread(row.score_mean, row.score_sd, 0)),
            percent(row.ratio),
        ]
        for row in document.rows
    ]
    header = ("scenario", "policy", "trained on", "score, 1/s", "of one trained there, %")
    return table("Policies in scenarios, with what was trained there as 100 %", header, body)


def droo_table(document: DrooTable) -> Html:
    body = [
        [
            row.policy,
            f"{row.critic_evaluations:g}",
            f"{row.rate_mean:.6f}" + (f" ± {row.rate_sd:.6f}" if row.rate_sd is not None else ""),
            DASH if row.rate_p5 is None else f"{row.rate_p5:.6f}",
            percent(row.exact_share),
            DASH if row.decision_ms_p50 is None else f"{row.decision_ms_p50:.3f}",
        ]
        for row in document.rows
    ]
    header = ("policy", "critic evaluations", "rate over the optimum", "5th percentile", "optimal, %", "decision, ms")
    note = "± is the deviation that the document has: over runs with other seeds, or over other policies of the kind."
    return table("Rates on DROO's channels", header, body, note=note)


def findings(documents: Documents) -> tuple[str, ...]:
    """The summary: one line for each document."""
    return (
        *(_compared(document) for _, document in documents.comparisons),
        *(_swept(document) for _, document in documents.sweeps),
        *_moved(documents),
    )


def _compared(document: Comparison) -> str:
    best, *others = named(document.rows)
    value = plus_minus(score(best.row, len(document.seeds)))
    said = f"{document.scenario}: {best.name} is best, {value} right answers in time a second"
    if others:
        said += f", ahead of {_ahead(best, others[0], len(document.seeds))}"
    far = distance(best.row, document.bound, document.seeds)
    if far is not None and document.bound:
        said += f"; {_below(far)} ({document.bound.kind})"
    return said + "."


def _ahead(best: Named, other: Named, seeds: int) -> str:
    pair = paired(best.row, other.row)
    if pair is None or seeds < 2:
        return f"{other.name} by {number(best.row.score_mean - other.row.score_mean)}"
    return f"{other.name} by {plus_minus(pair.spread)}, in {pair.ahead} of {seeds} seeds"


def _swept(sweep: Sweep) -> str:
    points, _ = ordered(sweep)
    wins: dict[str, int] = {}
    for point in points:
        best = named(point.rows)[0].name
        wins[best] = wins.get(best, 0) + 1
    told = ", ".join(f"{name} at {count}" for name, count in sorted(wins.items(), key=lambda pair: -pair[1]))
    said = f"{sweep.scenario}, {key_title(sweep.vary.key)} at {plural(len(points), 'value')}: best is {told}"
    name = max(wins, key=lambda name: wins[name])
    found = [
        far.mean
        for point in points
        for item in named(point.rows)
        if item.name == name and (far := distance(item.row, point.bound, sweep.seeds))
    ]
    if found:
        low, high = (f"{100 * value:.1f}".replace("-", "−") for value in (min(found), max(found)))
        said += f"; {name} is {low if low == high else f'{low} to {high}'} % below the bound"
    return said + "."


def _moved(documents: Documents) -> Iterator[str]:
    for _, document in documents.transfers:
        for policy in dict.fromkeys(row.policy for row in document.rows):
            ratios = [row.ratio for row in document.rows if row.policy == policy and row.ratio is not None]
            if ratios:
                yield (
                    f"{policy}, moved to {plural(len(ratios), 'scenario')}: {100 * min(ratios):.1f} to "
                    f"{100 * max(ratios):.1f} % of a policy trained there."
                )


def _columns(document: Comparison | Sweep, rows: Sequence[PolicyRow]) -> list[str]:
    """The header of ``_cells``: what no row has gets no column."""
    several = [row.scores for row in rows if row.scores]
    bounds = [document.bound] if isinstance(document, Comparison) else [point.bound for point in document.points]
    columns = (
        ("score, 1/s", True),
        ("behind the best, 1/s", True),
        ("best ahead", several),
        ("below the bound, %", any(bounds)),
        ("accuracy, %", True),
        ("success, %", True),
        ("throughput, 1/s", True),
        ("energy, J", any(row.energy_j_mean is not None for row in rows)),
        ("decision, ms", any(row.decision_ms_p50 is not None for row in rows)),
    )
    return [title for title, there in columns if there]


def _cells(
    row: PolicyRow, best: PolicyRow, document: Comparison | Sweep, bound: Bound | None, header: Sequence[str]
) -> list[str]:
    seeds = len(document.seeds)
    pair = None if row is best else paired(best, row)
    behind = number(best.score_mean - row.score_mean) if pair is None else plus_minus(pair.spread)
    cells = {
        "score, 1/s": plus_minus(score(row, seeds)),
        "behind the best, 1/s": DASH if row is best else behind,
        "best ahead": DASH if pair is None else f"{pair.ahead} of {seeds}",
        "below the bound, %": _distance_text(distance(row, bound, document.seeds)),
        "accuracy, %": _share(row.accuracy_mean, row.accuracy_sd),
        "success, %": _share(row.success_mean, row.success_sd),
        "throughput, 1/s": number(row.throughput_mean),
        "energy, J": DASH if row.energy_j_mean is None else number(row.energy_j_mean),
        "decision, ms": milliseconds(row.decision_ms_p50),
    }
    return [cells[title] for title in header]


def _at(point: SweepPoint, name: str, show: Callable[[PolicyRow, SweepPoint], str]) -> str:
    return next((show(item.row, point) for item in named(point.rows) if item.name == name), DASH)


def _ends(runs: Sequence[TrainingRun]) -> list[str]:
    slots = [run.lines[-1].slot for run in runs]
    took = [line.seconds for run in runs for line in run.lines[-1:] if line.seconds is not None]
    scores = mean_curve(runs, "eval_score")
    success = mean_curve(runs, "eval_success")
    last = [values[-1] for _, values in scores.runs] if scores else []
    best = [values.max() for _, values in scores.runs] if scores else []
    rates = [values[-1] for _, values in success.runs] if success else []
    return [
        f"{min(slots):,}" + (f"–{max(slots):,}" if max(slots) > min(slots) else ""),
        plus_minus(spread(last)) if last else DASH,
        plus_minus(spread(best)) if best else DASH,
        accuracy(spread(rates)) if rates else DASH,
        f"{sum(took) / len(took):,.0f}" if took else DASH,
    ]


def _worlds(document: Comparison | Sweep) -> str:
    seeds = document.seeds
    names = ", ".join(map(str, seeds)) if len(seeds) <= 10 else f"{min(seeds)} to {max(seeds)}"
    said = f"{plural(len(seeds), 'seed').capitalize()}: {names}"
    said += f"; {plural(document.batch, 'world')} of each" if document.batch is not None else ""
    said += f"; {plural(document.slots, 'slot')} an episode" if document.slots is not None else ""
    return said + ("." if len(seeds) > 1 else ". One seed has no deviation: read no difference into small ones.")


def _distance_text(value: Spread | None) -> str:
    if value is None:
        return DASH
    text = f"{100 * value.mean:.2f}".replace("-", "−")
    return text + (f" ± {100 * value.sd:.2f}" if value.sd is not None else "")


def _below(far: Spread) -> str:
    return f"{abs(100 * far.mean):.1f} % {'below' if far.mean >= 0 else 'above'} the bound"


def _share(mean: float, sd: float | None) -> str:
    return f"{100 * mean:.2f}" + (f" ± {100 * sd:.2f}" if sd is not None else "")


def _floor_percent(share: float) -> str:
    """Not 100 unless it is all."""
    return "100" if share >= 1 else f"{min(100 * share, 99.9):.1f}"
