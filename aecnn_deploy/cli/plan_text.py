"""A plan for a person, in 80 columns."""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from aecnn_deploy.planning.break_even import say_rate
from aecnn_deploy.planning.plan import Candidate, Plan
from aecnn_deploy.planning.predict import Size
from aecnn_deploy.planning.prediction import FULL, SPLIT
from aecnn_deploy.planning.profiles import DeviceProfile, EdgeProfile, LinkProfile
from aecnn_deploy.planning.reasons import ms, percent, why_none, why_not

_WIDTH = 80
_MARGIN = 10  # columns of the words at the left
_RATE = 19  # columns of a rate
_ROW = 29  # columns before a candidate's name


def plan_lines(
    bundle: str,
    plan: Plan,
    device: DeviceProfile,
    edge: EdgeProfile,
    link: LinkProfile | None,
    image_size: Size | None,
    rules: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
) -> Iterator[str]:
    """The lines of ``plan``: what it is made of, the choice, the alternatives, break-even rates, other rules, notes."""
    yield from _beside("device", f"{device.machine}, {_threads(device.threads)}{_images(image_size)}")
    yield from _beside("edge", f"{edge.machine}, {edge.runner} {edge.precision}")
    over = f", measured to {link.edge}" if link is not None else ""
    yield from _beside("link", f"{say_rate(plan.link.rate_bps)}, {ms(plan.link.fixed_ms)} without content{over}")
    yield from _beside("asked", _asked(plan))
    yield ""
    yield from _choice(bundle, plan, device.threads)
    yield ""
    yield from _alternatives(plan)
    yield from _break_even(plan)
    if rates := plan.least_rates():
        yield ""
        yield "in time from" + (" (the median)" if plan.settings.safe else "")
        for variant, (way, rate) in rates.items():
            if rate is None:
                yield f"{'no rate':>{_RATE}}  {variant}"
            else:
                yield f"{say_rate(rate, at_least=True):>{_RATE}}  {variant}, {way.prediction.coder}"
    if rules:
        yield ""
        yield "other people's rules"
        yield from _rules(rules)
    if notes:
        yield ""
        for note in notes:
            yield from _beside("note", note)


def _asked(plan: Plan) -> str:
    settings = plan.settings
    asked = "the fastest" if settings.deadline_ms is None else f"the most accurate within {ms(settings.deadline_ms)}"
    if settings.safe:
        asked += " for a slow image, too"
    if settings.min_accuracy is not None:
        asked += f", accuracy {percent(settings.min_accuracy)} or more"
    if plan.accuracies.measure == "agreement":
        asked += "; accuracy is top-1 agreement with the unsplit model"
    return asked


def _choice(bundle: str, plan: Plan, threads: int) -> Iterator[str]:
    if plan.choice is None:
        yield from _beside("cannot", why_none(plan))
        return
    prediction, deadline_ms = plan.choice.prediction, plan.settings.deadline_ms
    yield from _beside("choice", f"{prediction.label}: {ms(prediction.total_ms)}")
    accuracy = "its accuracy is not known" if plan.choice.accuracy is None else f"accuracy {_accuracy(plan.choice)}"
    yield from _beside("", f"{accuracy}, {_bytes(plan.choice)} bytes sent")
    yield from _beside("", prediction.sentence())
    if prediction.high_ms > prediction.total_ms:
        slow = f"a fast image takes {ms(prediction.low_ms)}, a slow one {ms(prediction.high_ms)}"
        if deadline_ms is not None and prediction.high_ms > deadline_ms:
            slow += ": over the deadline; --safe plans for slow images"
        yield from _beside("", slow)
    if prediction.path == SPLIT:
        options = f"--variant {prediction.variant} --coder {prediction.coder}"
        options += f" --threads {threads}" if threads else ""
        yield from _beside("run", f"aecnn-deploy run-device {bundle} --edge URL --source IMAGES {options}")
    elif prediction.path == FULL:
        yield from _beside("run", "POST each image to /v1/classify of the edge: docs/serving.md")


def _alternatives(plan: Plan) -> Iterator[str]:
    """Every variant with its fastest coder, the chosen variant's other coders, and the other paths."""
    best = plan.best_of_variants()
    chosen = plan.choice.prediction.variant if plan.choice is not None else None
    yield (
        f"{'ms':>8}{'accuracy':>10}{'bytes':>9}  instead of the choice"
        if plan.choice is not None
        else (f"{'ms':>8}{'accuracy':>10}{'bytes':>9}  what was considered")
    )
    for item in plan.candidates:
        variant = item.prediction.variant
        if item is plan.choice or (variant is not None and variant != chosen and best[variant] is not item):
            continue
        yield from _row(item)
        if why := why_not(item, plan):
            yield from _indented(why, _ROW + 2)
    for what, why in plan.unmeasured:
        yield from _indented(f"{what}: {why}", _ROW)


def _break_even(plan: Plan) -> Iterator[str]:
    """At which rates the choice, or what is nearest, is faster than each other path."""
    subject = plan.choice or plan.nearest
    mine = [item for item in plan.break_even if subject is not None and item.first is subject.prediction]
    if subject is not None and mine:
        yield ""
        yield from _indented(f"{subject.label} is faster", 0)
        for item in mine:
            first, *rest = wrap(item.second.label, _WIDTH - _RATE - 7, break_on_hyphens=False)
            yield f"{item.of_first():>{_RATE}}  than {first}"
            yield from (" " * (_RATE + 7) + line for line in rest)
    for item in plan.break_even:
        if item not in mine:
            yield from _indented(item.sentence())


def _row(item: Candidate) -> Iterator[str]:
    numbers = f"{item.prediction.total_ms:>8,.1f}{_accuracy(item):>10}{_bytes(item):>9}"
    first, *rest = wrap(item.label, _WIDTH - _ROW)
    yield f"{numbers:<{_ROW}}{first}"
    for line in rest:
        yield " " * _ROW + line


def _rules(rules: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What each rule would do, and what it would take; those that lack the same are named together."""
    lacking: dict[str, list[str]] = {}
    for rule in rules:
        if rule.get("predicted_ms") is None:
            lacking.setdefault(rule["why"], []).append(rule["rule"])
            continue
        accuracy = "-" if rule["accuracy"] is None else percent(rule["accuracy"])
        numbers = f"{rule['predicted_ms']:>8,.1f}{accuracy:>10}{rule['sent_bytes']:>9,.0f}"
        yield f"{numbers:<{_ROW}}{rule['rule']}"
        yield from _indented(f"{rule['description']}: {rule['why']}", _ROW + 2)
    for why, names in lacking.items():
        yield from _indented(f"{', '.join(names)}: {why}")


def _accuracy(item: Candidate) -> str:
    return "-" if item.accuracy is None else percent(item.accuracy)


def _bytes(item: Candidate) -> str:
    return f"{item.prediction.sent_bytes:,.0f}"


def _threads(count: int) -> str:
    return "every core" if count == 0 else f"{count} thread{'s' * (count != 1)}"


def _images(size: Size | None) -> str:
    return "" if size is None else f", images of {size[0]}x{size[1]}"


def _beside(word: str, text: str) -> Iterator[str]:
    """``text`` wrapped beside a word in the margin."""
    for line in wrap(text, _WIDTH - _MARGIN, break_long_words=False, break_on_hyphens=False):
        yield f"{word:<{_MARGIN}}{line}"
        word = ""


def _indented(text: str, columns: int = 2) -> Iterator[str]:
    for number, line in enumerate(wrap(text, _WIDTH - columns - 2, break_long_words=False, break_on_hyphens=False)):
        yield " " * (columns + 2 * (number > 0)) + line
