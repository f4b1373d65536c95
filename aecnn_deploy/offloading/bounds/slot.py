"""The best that can be made of one slot as it is seen. docs/bounds.md says why this is exact."""

import time
from dataclasses import dataclass, replace

import numpy as np

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.bounds.combine import shared_out
from aecnn_deploy.offloading.bounds.labels import Effort, Lane, OutOfTimeError, server_table
from aecnn_deploy.offloading.bounds.relaxation import lp_bound
from aecnn_deploy.offloading.mec.observation import LOCAL, Actions, Flags, Floats, Observation
from aecnn_deploy.offloading.mec.profile import Option, Profile
from aecnn_deploy.offloading.mec.scenario import Devices, Scenario, Servers
from aecnn_deploy.offloading.mec.world import certain_truth, repeated, settle

MOST_DEVICES = 20  # with something to gain: tables are of size 2^devices
MOST_LABELS = 6_000_000  # of one server, some 400 MB
_FIRST_BUDGET = 0.02
_WIDEN = 2.5
_TOLERANCE = 1e-9  # of a value, for each device


@dataclass(frozen=True)
class SlotOptimum:
    """One slot's best decision, or the best that was found in time."""

    actions: Actions  # [N]
    value: float  # accuracies of the tasks that are in time under it, added; what the simulator says
    bound: float  # no decision is worth more; ``value`` where proven
    proven: bool

    @property
    def gap(self) -> float:
        """What may be missing to the optimum."""
        return self.bound - self.value


def exact_slot(
    seen: Observation, *, time_limit_s: float = 20.0, most_labels: int = MOST_LABELS, bound_by_lp: bool = True
) -> SlotOptimum:
    """The decision of the highest value in one world (B = 1), if everything comes as it is seen.

    Solutions are sought that lose at most a budget against every device's best option, which is widened until one is
    found: none that loses less can then exist. Beyond ``time_limit_s``, ``most_labels`` or MOST_DEVICES: the best that
    is known, with a bound from the budgets that were searched and, with ``bound_by_lp``, from ``lp_bound`` (which
    needs scipy, and time beyond the limit). Raises SettingsError: several worlds, or limits that are not positive.
    """
    _check(seen, time_limit_s, most_labels)
    effort = Effort(time.perf_counter() + time_limit_s, most_labels)
    gain = _gains(seen)
    best_gain = gain.max(axis=(1, 2), initial=0.0)
    base = seen.values()[0, :, LOCAL]
    top = float((base + best_gain).sum())
    members = np.flatnonzero(best_gain > 0)
    actions = np.zeros(seen.devices, np.int64)
    if not len(members):
        return SlotOptimum(actions, slot_value(seen, actions), top, True)
    proven, known_loss, searched, loss = False, np.inf, 0.0, np.inf
    if len(members) <= MOST_DEVICES:
        lanes = _lanes(seen, gain, best_gain, members)
        budget = _FIRST_BUDGET
        try:
            while not proven:
                tables = [server_table(lane, budget, effort) for lane in lanes]
                loss, rows = shared_out(tables, best_gain[members], budget, effort)
                if loss < known_loss:
                    known_loss, actions = loss, np.zeros(seen.devices, np.int64)
                    for lane, table, row in zip(lanes, tables, rows, strict=True):
                        picked = table.chosen(row)
                        actions[members[lane.device[picked]]] = lane.action[picked]
                searched = budget
                proven = known_loss <= budget
                budget = min(budget * _WIDEN, known_loss)
        except OutOfTimeError:
            pass
    value = slot_value(seen, actions)
    if np.isfinite(known_loss) and abs(value - (top - known_loss)) > _TOLERANCE * seen.devices:
        raise RuntimeError(f"the simulator gives {value} where the labels give {top - known_loss}: a defect here")
    if proven:
        return SlotOptimum(actions, value, value, True)
    other, other_value = _admitted(seen, gain, effort)
    if other_value > value:
        actions, value = other, other_value
    bound = top - searched
    if bound_by_lp:
        bound = min(bound, lp_bound(seen))
    bound = max(bound, value)
    return SlotOptimum(actions, value, bound, bound - value <= _TOLERANCE * seen.devices)


def slot_value(seen: Observation, actions: Actions) -> float:
    """What ``actions`` [N] are worth in one world, if everything comes as it is seen: accuracies in time, added."""
    return float(slot_values(seen, actions[None])[0])


def slot_values(seen: Observation, actions: Actions) -> Floats:
    """[R]: what each row of ``actions`` [R, N] is worth in one world (B = 1), if everything comes as it is seen."""
    many = repeated(seen, len(actions))
    outcome, *_ = settle(many, certain_truth(many), actions, _NO_ENERGY)
    return outcome.reward


# ``settle`` asks a scenario only whether energy is counted.
_NO_ENERGY = Scenario(
    name="none",
    profile=Profile(
        name="none",
        source="none",
        local_accuracy=1.0,
        local_ms=1.0,
        options=(Option(name="any", accuracy=1.0, payload_bytes=1.0, device_ms=1.0, edge_ms=1.0),),
    ),
    devices=Devices(count=1),
    servers=Servers(count=1),
)


def one_world(seen: Observation, world: int) -> Observation:
    """World number ``world`` of ``seen`` alone, B = 1."""
    row = slice(world, world + 1)
    return replace(
        seen,
        active=seen.active[row],
        deadline_s=seen.deadline_s[row],
        device_backlog_s=seen.device_backlog_s[row],
        local_s=seen.local_s[row],
        device_s=seen.device_s[row],
        airtime_s=seen.airtime_s[row],
        edge_s=seen.edge_s[row],
        radio_backlog_s=seen.radio_backlog_s[row],
        edge_backlog_s=seen.edge_backlog_s[row],
    )


def _check(seen: Observation, time_limit_s: float, most_labels: int) -> None:
    if seen.batch != 1:
        raise SettingsError(f"an observation of {seen.batch} worlds; give one world at a time, as one_world(seen, 0)")
    if not (time_limit_s > 0 and most_labels > 0):
        raise SettingsError(
            f"a time limit of {time_limit_s} s and {most_labels} labels; both are limits above 0, as 20 s and "
            f"{MOST_LABELS} labels"
        )


def _gains(seen: Observation) -> Floats:
    """[N, S, V]: by how much each option is better than local, 0 where it is not, or never in time.

    An option that is late alone is late in company: others only make it wait. One that is worth no more than local
    is never needed: local takes no server's time.
    """
    in_time: Flags = seen.feasible()[0, :, 1:].reshape(seen.devices, seen.servers, seen.options)
    values = seen.values()[0]
    gain = values[:, 1:].reshape(in_time.shape) - values[:, LOCAL, None, None]
    return np.where(in_time & (gain > 0), gain, 0.0)


def _lanes(seen: Observation, gain: Floats, best_gain: Floats, members: Actions) -> list[Lane]:
    bit = np.zeros(seen.devices, np.int64)
    bit[members] = np.arange(len(members))
    ready = seen.device_backlog_s[0, :, None] + seen.device_s[0]
    lanes = []
    for server in range(seen.servers):
        device, option = np.nonzero(gain[:, server] > 0)
        ready_s, airtime_s = ready[device, option], seen.airtime_s[0, device, server, option]
        order = np.lexsort((device, ready_s if seen.shared_radio else ready_s + airtime_s))
        device, option = device[order], option[order]
        lanes.append(
            Lane(
                device=bit[device],
                action=1 + server * seen.options + option,
                ready_s=ready_s[order],
                airtime_s=airtime_s[order],
                service_s=seen.edge_s[0, server, option],
                deadline_s=seen.deadline_s[0, device],
                loss=best_gain[device] - gain[device, server, option],
                radio_free_s=float(seen.radio_backlog_s[0, server]),
                edge_free_s=float(seen.edge_backlog_s[0, server]),
                hop_s=seen.hop_s,
                shared_radio=seen.shared_radio,
            )
        )
    return lanes


def _admitted(seen: Observation, gain: Floats, effort: Effort) -> tuple[Actions, float]:
    """A decision for slots that are too large: device by device, the earliest deadline first, what is worth most."""
    actions = np.zeros(seen.devices, np.int64)
    value = slot_value(seen, actions)
    members = np.flatnonzero(gain.max(axis=(1, 2)) > 0)
    for device in members[np.argsort(seen.deadline_s[0, members], kind="stable")]:
        if time.perf_counter() > effort.until:
            break
        tried = 1 + np.flatnonzero(gain[device].ravel() > 0)
        rows = np.tile(actions, (len(tried), 1))
        rows[:, device] = tried
        values = slot_values(seen, rows)
        best = int(values.argmax())
        if values[best] > value:
            actions, value = rows[best], float(values[best])
    return actions, value
