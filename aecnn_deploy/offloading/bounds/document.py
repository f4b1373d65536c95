"""What ``simulate --json`` says under "bound"."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.bounds.clairvoyant import clairvoyant_bound, per_slot_bound, shortened
from aecnn_deploy.offloading.bounds.policy import ExactPolicy
from aecnn_deploy.offloading.evaluation import evaluate
from aecnn_deploy.offloading.mec.scenario import Scenario

# kind -> whether no policy's score can be higher
KINDS: Mapping[str, bool] = MappingProxyType(
    {
        "clairvoyant": True,
        "per-slot, empty queues": True,
        "lp": True,
        "exact per slot": False,  # what the best play of each slot alone achieves; foresight may achieve more
    }
)
_CLAIRVOYANT_TASKS = 250  # that arrive in a run, for which all slots are bounded together
_WHOLE_CHOICES = 400  # of one slot, for which whole tasks are asked for


def kind_by_size(scenario: Scenario, slots: int | None = None) -> str:
    """The tightest of KINDS that is a bound and takes less than some minutes for a world."""
    devices = scenario.devices
    active = devices.count * sum(devices.arrival) / 2
    if active * (slots or scenario.slots) <= _CLAIRVOYANT_TASKS:
        return "clairvoyant"
    choices = active * scenario.servers.count * len(scenario.profile.options)
    return "per-slot, empty queues" if choices <= _WHOLE_CHOICES else "lp"


def bound_document(
    scenario: Scenario,
    seeds: Sequence[int],
    *,
    kind: str | None = None,
    slots: int | None = None,
    batch: int = 1,
    time_limit_s: float | None = None,
    on_slot: Callable[[], None] | None = None,
) -> dict[str, object]:
    """The bound of ``scenario`` over ``seeds``, for the worlds that ``evaluate`` runs with the same ``batch``.

    ``kind``: one of KINDS; None: by size. ``slots``: only the first of each episode (then the policies compared must
    be scored on these, too). ``time_limit_s``: for each slot, or for each world of "clairvoyant". Raises SettingsError:
    no seed, or no such kind; MissingExtraError: scipy is not installed.
    """
    chosen = kind or kind_by_size(scenario, slots)
    if chosen not in KINDS:
        raise SettingsError(f"no bound of kind {chosen!r}; there are {', '.join(KINDS)}")
    if not seeds:
        raise SettingsError("a bound over no seed; give those that the policies are scored on")
    scores, shares = [], []
    for seed in seeds:
        if chosen == "clairvoyant":
            run = clairvoyant_bound(scenario, seed, slots=slots, batch=batch, time_limit_s=time_limit_s or 60.0)
            scores.append(run.score)
            shares.append(float(run.proven))
        elif chosen == "exact per slot":
            policy = ExactPolicy(time_limit_s=time_limit_s or 20.0)
            short = shortened(scenario, slots)
            row = evaluate(policy, short, [seed], batch=batch, timed_slots=0, on_slot=on_slot)
            scores.append(float(row.episodes[0].score))
            shares.append(policy.proven_share)
        else:
            each = per_slot_bound(
                scenario,
                seed,
                slots=slots,
                batch=batch,
                whole=chosen != "lp",
                time_limit_s=time_limit_s or 10.0,
                on_slot=on_slot,
            )
            scores.append(each.score)
            shares.append(each.proven_share)
    return {
        "kind": chosen,
        "holds": KINDS[chosen],
        "score_mean": float(np.mean(scores)),
        "score_sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
        "proven_share": float(np.mean(shares)),
        "slots": slots or scenario.slots,
        "seeds": list(seeds),
        "batch": batch,
        "scores": scores,
    }
