"""Neurosurgeon: Kang et al., "Neurosurgeon: Collaborative Intelligence Between the Cloud and Mobile Edge", ASPLOS 2017.

The unsplit model is cut between two layers, and the tensor there is sent as it is. The best cut, both ends included, is
found by trying all: for latency, or for the device's energy.

As in the paper: one regression for each kind of layer and machine predicts what a layer takes from its configuration;
the link's rate is given; every cut is tried. What differs: the regressions are fitted to the layers of this one model,
not to a range of made-up ones, on multiply-adds and bytes written in place of each kind's own features; a cut is where
one tensor alone crosses, for networks are no chains any more; energy is time × power of what the device does, where
the paper predicts power layer by layer; and reading, the round trip and the edge's own time count, as for every rule.
"""

from collections.abc import Callable

from aecnn_deploy.errors import PlanError
from aecnn_deploy.planning.layers import LayerTable
from aecnn_deploy.planning.partitions import ON_DEVICE, ON_EDGE, Partition, Situation
from aecnn_deploy.planning.rule_outcome import RuleChoice, choice

Tables = tuple[LayerTable, LayerTable]  # the device's layers, the edge's


def neurosurgeon(rule: str, situation: Situation) -> RuleChoice:
    """The partition with the least latency, by the predictors. Raises PlanError: a profile lacks what it needs."""
    device, edge, error = situation.predicted_layers
    partitions = neurosurgeon_partitions(situation, (device, edge))
    best = min(partitions, key=_total_ms)
    why = f"{_compared(partitions, _total_ms, 'ms')}; {_checked(situation, best, error)}"
    return choice(rule, situation, best, why, predictor_error=error)


def neurosurgeon_measured(rule: str, situation: Situation) -> RuleChoice:
    """The same by the layers' measured times: what better predictors could reach at most. Raises PlanError."""
    partitions = neurosurgeon_partitions(situation)
    best = min(partitions, key=_total_ms)
    why = f"{_compared(partitions, _total_ms, 'ms')}, by measured layers"
    return choice(rule, situation, best, why)


def neurosurgeon_energy(rule: str, situation: Situation) -> RuleChoice:
    """The partition with the least energy of the device, by the predictors. Raises PlanError: powers are unknown."""
    powers = situation.powers
    if powers is None:
        raise PlanError("what the device draws is not known; give its powers in watts")
    device, edge, error = situation.predicted_layers
    partitions = neurosurgeon_partitions(situation, (device, edge))

    def energy_mj(partition: Partition) -> float:
        return powers.energy_mj(partition.parts)

    best = min(partitions, key=energy_mj)
    drawn = f"at {powers.compute_w:g} W computing, {powers.send_w:g} W sending, {powers.idle_w:g} W waiting"
    why = f"{_compared(partitions, energy_mj, 'mJ')}, {drawn}; {_checked(situation, best, error)}"
    return choice(rule, situation, best, why, predictor_error=error)


def neurosurgeon_partitions(situation: Situation, tables: Tables | None = None) -> list[Partition]:
    """All partitions, at least one; ``tables``: predicted layers, None: as measured. Raises PlanError."""
    local_ms, full_ms = (table.total_ms for table in tables) if tables else (situation.local_ms, situation.full_ms)
    ends = situation.ends(local_ms=local_ms, edge_ms=full_ms, accuracy=situation.unsplit_accuracy)
    return [*ends, *situation.float_cuts(tables)]


def _checked(situation: Situation, best: Partition, error: float) -> str:
    """What the measured layers say of a choice that predicted ones made."""
    said = f"the predictors are off by {error:.0%}"
    same = [each.total_ms for each in neurosurgeon_partitions(situation) if each.where == best.where]
    return f"{said}; by measured layers it takes {same[0]:.1f} ms" if same else said


def _compared(partitions: list[Partition], cost: Callable[[Partition], float], unit: str) -> str:
    """Both ends beside the best of all."""
    ends = []
    for name in (ON_EDGE, ON_DEVICE):
        if costs := [cost(each) for each in partitions if each.where.startswith(name)]:
            ends.append(f"{name} {min(costs):.1f} {unit}")
    best = min(map(cost, partitions))
    return f"{best:.1f} {unit} is the least of {len(partitions)} partitions" + (f" ({', '.join(ends)})" if ends else "")


def _total_ms(partition: Partition) -> float:
    return partition.total_ms
