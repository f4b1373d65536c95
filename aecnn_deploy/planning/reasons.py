"""Why a way is not the choice, and why there is none: in words, with the numbers that say by how much."""

from math import ceil

from aecnn_deploy.planning.break_even import say_rate
from aecnn_deploy.planning.plan import TIE, Candidate, Plan, PlanSettings
from aecnn_deploy.planning.prediction import FULL, LOCAL, SPLIT

_LINK_SHARE = 0.25  # of a completion time, from which the link is worth a word


def why_not(candidate: Candidate, plan: Plan) -> str:
    """One line for a candidate that is not the choice; "" for the choice itself."""
    if candidate is plan.choice:
        return ""
    best = plan.best_of_variants().get(candidate.prediction.variant or "")
    if best is not None and best is not candidate:
        return _other_coder(candidate, best)
    words = [] if candidate.competes else [f"competes only {_how_to_allow(candidate)}"]
    if missed := _missed(candidate, plan.settings):
        words += missed
    elif plan.choice is not None:
        words.append(_against(candidate, plan.choice, plan.settings))
    return "; ".join(words)


def why_none(plan: Plan) -> str:
    """What nothing fits for, the nearest candidate, and what it would take; "" where there is a choice."""
    settings = plan.settings
    if plan.choice is not None:
        return ""
    near = plan.nearest
    if near is None:
        return "nothing may be chosen: local computing is excluded, and no variant could be predicted"
    competing = [item for item in plan.candidates if item.competes]
    accurate = [item for item in competing if item.accurate_enough(settings)]
    if not accurate:
        assert settings.min_accuracy is not None
        asked = f"nothing has an accuracy of {percent(settings.min_accuracy)} or more"
        if near.accuracy is None:
            return f"{asked}: none is known; leave --min-accuracy out"
        return f"{asked}: the nearest is {near.label} with {percent(near.accuracy)}"
    assert settings.deadline_ms is not None
    over_ms = near.judged_ms(settings) - settings.deadline_ms
    words = (
        f"nothing{_accurate(settings)} meets the deadline of {ms(settings.deadline_ms)}: the nearest, {near.label}, "
        f"takes {ms(near.judged_ms(settings))}{' for a slow image' if settings.safe else ''}, {ms(over_ms)} too many; "
        f"it would take a deadline of {ms(ceil(near.judged_ms(settings) * 10) / 10)}{_or_rate(accurate, settings)}"
    )
    return words + _head_alone(accurate, settings) + _what_full_would(plan)


def percent(share: float) -> str:
    """``94.7 %``."""
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """A difference of accuracies: ``1.2 points``."""
    return f"{100 * share:.{2 if share < 0.001 else 1}f} points"


def ms(value: float) -> str:
    """``48.2 ms``; below a tenth with more digits, above ten seconds in seconds."""
    if value >= 1e4:
        return f"{value / 1e3:,.1f} s"
    return f"{value:.1f} ms" if value >= 0.095 or value == 0 else f"{value:.2g} ms"


def _how_to_allow(candidate: Candidate) -> str:
    return "with --full" if candidate.prediction.path == FULL else "without --no-local"


def _missed(candidate: Candidate, settings: PlanSettings) -> list[str]:
    """Each demand that ``candidate`` does not meet."""
    words = []
    if settings.min_accuracy is not None and not candidate.accurate_enough(settings):
        if candidate.accuracy is None:
            words.append("its accuracy is not known" + _at_most(candidate))
        else:
            words.append(f"{points(settings.min_accuracy - candidate.accuracy)} below the least accuracy")
    if settings.deadline_ms is not None and not candidate.in_time(settings):
        prediction, judged_ms = candidate.prediction, candidate.judged_ms(settings)
        said = f"{ms(judged_ms - settings.deadline_ms)} over the deadline"
        said += " for a slow image" if settings.safe else ""
        if (share := prediction.link_ms / prediction.total_ms) >= _LINK_SHARE:
            said += f": {share:.0%} of it is the link".replace("%", " %")
        elif prediction.path == SPLIT and prediction.stages["head"].ms > prediction.total_ms / 2:
            said += f": {prediction.stages['head'].ms / prediction.total_ms:.0%} of it is the head".replace("%", " %")
        words.append(said + _from_rate(candidate, settings))
    return words


def _from_rate(candidate: Candidate, settings: PlanSettings) -> str:
    if settings.safe or settings.deadline_ms is None or candidate.prediction.path == LOCAL:
        return ""
    rate = candidate.prediction.rate_for(settings.deadline_ms)
    return ", and at no rate in time" if rate is None else f"; in time from {say_rate(rate, at_least=True)}"


def _against(candidate: Candidate, choice: Candidate, settings: PlanSettings) -> str:
    """Why the choice is preferred to a candidate that meets every demand."""
    slower_ms = candidate.prediction.total_ms - choice.prediction.total_ms
    speed = f"{ms(abs(slower_ms))} {'slower' if slower_ms >= 0 else 'faster'}"
    if candidate.accuracy is None:
        return f"its accuracy is not known{_at_most(candidate)}; {speed} than the choice"
    if choice.accuracy is None:
        return f"{speed} than the choice"
    less = choice.accuracy - candidate.accuracy
    if settings.deadline_ms is None:
        accuracy = f", {points(abs(less))} {'less' if less > 0 else 'more'} accurate" if abs(less) > 1e-9 else ""
        return f"{speed} than the choice{accuracy}"
    if less > TIE:
        return f"{points(less)} less accurate than the choice" + (
            f", though {speed}" if slower_ms < 0 else f", {speed}"
        )
    if less < -1e-9:
        return f"{points(-less)} more accurate than the choice, {speed}" + (
            ": so little counts as equal" if -less <= TIE and candidate.competes else ""
        )
    return f"as accurate as the choice, {speed}"


def _at_most(candidate: Candidate) -> str:
    at_most = candidate.known.at_most
    return "" if at_most is None else f", at most {percent(at_most)}"


def _other_coder(candidate: Candidate, best: Candidate) -> str:
    """The coder skip rule of the paper, for any two coders: what coding takes against what sending saves."""
    mine, other = candidate.prediction, best.prediction
    coding, sending = mine.coding_ms - other.coding_ms, mine.send_ms - other.send_ms
    head = f"{mine.coder}: "
    if coding > 0 and sending < 0:
        return head + f"coding takes {ms(coding)} more than {other.coder} and saves {ms(-sending)} of sending"
    if coding < 0 and sending > 0:
        return head + f"saves {ms(-coding)} of coding against {other.coder} and takes {ms(sending)} more to send"
    words = []
    if coding > 0:
        words.append(f"{ms(coding)} more of coding")
    if sending > 0:
        words.append(f"{ms(sending)} more of sending")
    return head + (f"{' and '.join(words)} than {other.coder}" if words else f"as long as {other.coder}")


def _accurate(settings: PlanSettings) -> str:
    return "" if settings.min_accuracy is None else f" with an accuracy of {percent(settings.min_accuracy)} or more"


def _or_rate(accurate: list[Candidate], settings: PlanSettings) -> str:
    """The lowest rate at which any of ``accurate`` is in time, by the medians' times."""
    assert settings.deadline_ms is not None
    rates = [(rate, item) for item in accurate if (rate := item.prediction.rate_for(settings.deadline_ms)) is not None]
    if settings.safe or not rates:
        return "" if settings.safe else "; no rate helps"
    rate, item = min(rates, key=lambda pair: pair[0])
    return f", or {say_rate(rate, at_least=True)} for {item.label}"


def _head_alone(accurate: list[Candidate], settings: PlanSettings) -> str:
    """A deadline below every head's time is said as that: no link and no edge can mend it."""
    assert settings.deadline_ms is not None
    splits = [item.prediction for item in accurate if item.prediction.path == SPLIT]
    if not splits:
        return ""
    fastest = min(splits, key=lambda item: item.stages["head"].ms)
    head_ms = fastest.stages["head"].ms
    if settings.deadline_ms >= head_ms:
        return ""
    return (
        f"; the deadline is below any head's time: the fastest, of {fastest.variant} in {fastest.head}, takes "
        f"{ms(head_ms)} alone"
    )


def _what_full_would(plan: Plan) -> str:
    """Full offloading that is excluded and would fit."""
    fitting = [item for item in plan.candidates if item.prediction.path == FULL and item.fits(plan.settings)]
    if plan.settings.full or not fitting:
        return ""
    return f"; {fitting[0].label} would take {ms(fitting[0].prediction.total_ms)}: --full lets it compete"
