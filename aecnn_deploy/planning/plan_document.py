"""A plan as ``plan --json`` prints it. Times in milliseconds, rates in bits a second, accuracies from 0 to 1."""

from typing import Any

from aecnn_deploy.planning.break_even import BreakEven
from aecnn_deploy.planning.plan import Candidate, Plan
from aecnn_deploy.planning.prediction import Prediction
from aecnn_deploy.planning.profiles import DeviceProfile, EdgeProfile, LinkProfile
from aecnn_deploy.planning.reasons import why_none, why_not

Document = dict[str, Any]


def plan_document(plan: Plan) -> Document:
    """The choice, everything else with its reason, break-even rates. docs/planning.md lists the keys."""
    settings = plan.settings
    return {
        "deadline_ms": settings.deadline_ms,
        "min_accuracy": settings.min_accuracy,
        "accuracy_is": plan.accuracies.measure,
        "choice": _candidate(plan.choice, plan) if plan.choice is not None else None,
        "cannot": why_none(plan) or None,
        "nearest": _candidate(plan.nearest, plan) if plan.nearest is not None else None,
        "alternatives": [
            {**_candidate(item, plan), "why": why_not(item, plan)}
            for item in plan.candidates
            if item is not plan.choice
        ],
        "break_even": [_break_even(item) for item in plan.break_even],
        "least_rates": [
            {"variant": variant, "coder": item.prediction.coder, "rate_bps": None if rate is None else round(rate, 1)}
            for variant, (item, rate) in plan.least_rates().items()
        ],
        "unmeasured": [{"what": what, "why": why} for what, why in plan.unmeasured],
        "notes": list(plan.notes),
    }


def profiles_document(device: DeviceProfile, edge: EdgeProfile, link: LinkProfile | None) -> Document:
    """Which profiles a plan is made of, and where they are from."""
    found: Document = {}
    for name, profile in (("device", device), ("edge", edge), ("link", link)):
        if profile is not None:
            found[name] = {
                "machine": str(profile.machine),
                "measured_at": profile.measured_at,
                "versions": profile.versions,
            }
    found["device"] |= {"threads": device.threads, "images": device.images}
    found["edge"] |= {"threads": edge.threads, "runner": edge.runner, "precision": edge.precision}
    if link is not None:
        found["link"] |= {"edge": link.edge}
    return found


def _candidate(item: Candidate, plan: Plan) -> Document:
    prediction = item.prediction
    deadline_ms = plan.settings.deadline_ms
    rate = None if deadline_ms is None else prediction.rate_for(deadline_ms)
    return {
        **_named(prediction),
        "head": prediction.head,
        "predicted_ms": round(prediction.total_ms, 4),
        "low_ms": round(prediction.low_ms, 4),
        "high_ms": round(prediction.high_ms, 4),
        "parts_ms": {name: round(ms, 4) for name, ms in prediction.parts.items()},
        "sent_bytes": round(prediction.sent_bytes, 1),
        "link_bytes": round(prediction.link_bytes, 1),
        "accuracy": item.accuracy,
        "accuracy_at_most": item.accuracy if item.accuracy is not None else item.known.at_most,
        "competes": item.competes,
        "fits": item.fits(plan.settings),
        "least_rate_bps": None if rate is None else round(rate, 1),
    }


def _named(prediction: Prediction) -> Document:
    return {
        "path": prediction.path,
        "variant": prediction.variant,
        "coder": prediction.coder,
        "image_coding": prediction.image_coding,
    }


def _break_even(item: BreakEven) -> Document:
    return {
        "first": _named(item.first),
        "second": _named(item.second),
        "rate_bps": None if item.rate_bps is None else round(item.rate_bps, 1),
        "faster_below": None if item.below is None else "first" if item.below is item.first else "second",
        "faster_above": None if item.above is None else "first" if item.above is item.first else "second",
        "says": item.sentence(),
    }
