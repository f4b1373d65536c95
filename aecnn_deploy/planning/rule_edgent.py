"""Edgent: Li, Zhou, Chen, "Edge Intelligence: On-Demand Deep Learning Model Co-Inference with Device-Edge Synergy".

MECOMM 2018; and Li, Zeng, Zhou, Chen, "Edge AI: On-Demand Accelerating Deep Neural Network Inference via Edge
Computing", IEEE Transactions on Wireless Communications, 2020.

Right-sizing and partition together: of the exits of a model whose best partition meets the deadline at this rate, the
most accurate one (algorithm 1 of the paper, for a link of a constant rate).

What differs: the exits are what a bundle has, the unsplit model and its variants, each of them a complete smaller
network, in place of the side branches of one network that was trained for it; times are measured, where the paper has
regressions; and exits are tried from the most accurate on, for smaller ones are not less accurate by their order.
"""

from dataclasses import replace

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.errors import PlanError
from aecnn_deploy.planning.partitions import ON_DEVICE, ON_EDGE, Partition, Situation, fastest_ms
from aecnn_deploy.planning.rule_outcome import RuleChoice, choice

UNSPLIT = "the unsplit model"
_RAW = "raw"


def edgent(rule: str, situation: Situation) -> RuleChoice:
    """The most accurate exit whose best partition meets the deadline; without one, the most accurate of all.

    Raises PlanError: none meets it, or none was measured.
    """
    ranks, ranked_by = exit_ranks(situation)
    exits = {name: partitions for name, partitions in edgent_exits(situation).items() if partitions}
    if not exits:
        raise PlanError("neither the unsplit model nor a variant was measured on both halves")
    late: list[str] = []
    for name in sorted(exits, key=lambda name: -ranks[name]):
        best = min(exits[name], key=lambda partition: partition.total_ms)
        if situation.deadline_ms is None or best.total_ms <= situation.deadline_ms:
            within = f" within {situation.deadline_ms:g} ms" if situation.deadline_ms is not None else ""
            why = f"the most accurate of {len(exits)} exits{within}, by {ranked_by}"
            if late:
                why += f"; better, but late: {', '.join(late)}"
            if name != UNSPLIT and (ON_DEVICE in best.where or ON_EDGE in best.where):
                why += "; one half's time there is estimated, not measured"
            return choice(rule, situation, best, why)
        late.append(f"{name} {best.total_ms:.1f} ms")
    raise PlanError(f"no exit meets {situation.deadline_ms:g} ms on this link: {', '.join(late)}")


def edgent_exits(situation: Situation) -> dict[str, list[Partition]]:
    """Exit -> its partitions; none where nothing of it was measured."""
    exits = {UNSPLIT: _unsplit(situation)}
    return exits | {spec.id: _of_variant(situation, spec) for spec in situation.manifest.variants}


def exit_ranks(situation: Situation) -> tuple[dict[str, float], str]:
    """Exit -> what it is ranked by, and that in words.

    Top-1 accuracy; where the bundle lacks one of them, agreement with the unsplit model for all, whose own is 1. A
    variant that has neither comes last.
    """
    variants = situation.manifest.variants
    names = (UNSPLIT, *(spec.id for spec in variants))
    known, words = [situation.unsplit_accuracy, *(spec.accuracy for spec in variants)], "accuracy"
    if any(value is None for value in known):
        known, words = [1.0, *(spec.agreement for spec in variants)], "agreement with the unsplit model"
    return dict(zip(names, (value or 0.0 for value in known), strict=True)), words


def _unsplit(situation: Situation) -> list[Partition]:
    try:
        cuts = situation.float_cuts()
    except PlanError:  # its ends are partitions all the same
        cuts = []
    ends = situation.ends(local_ms=situation.local_ms, edge_ms=situation.full_ms, accuracy=situation.unsplit_accuracy)
    return [replace(each, where=f"{UNSPLIT}, {each.where}") for each in (*ends, *cuts)]


def _of_variant(situation: Situation, spec: VariantSpec) -> list[Partition]:
    """At its split with raw planes; and both ends, of which one half has to be estimated.

    The head on the edge: by its share of the unsplit model's multiply-adds. The tail on the device: by its share of the
    unsplit model's time on the edge, for a bundle does not tell a tail's multiply-adds.
    """
    device, edge = situation.device, situation.edge
    head_ms = fastest_ms(device.heads.get(spec.id, {}))
    tail = edge.tails.get(spec.id, {}).get(1)
    if head_ms is None or tail is None:
        return []
    coded, decoded = device.coders.get(spec.id, {}).get(_RAW), edge.coders.get(spec.id, {}).get(_RAW)
    found = [
        situation.split(
            f"{spec.id}, raw planes",
            spec.plane_bytes,
            head_ms=head_ms,
            tail_ms=tail.p50_ms,
            accuracy=spec.accuracy,
            encode_ms=coded.encode.p50_ms if coded is not None else 0.0,
            decode_ms=decoded.p50_ms if decoded is not None else 0.0,
        )
    ]
    local_ms, full_ms = situation.local_ms, situation.full_ms
    if not full_ms:
        return found
    ends = situation.ends(
        local_ms=head_ms + local_ms * tail.p50_ms / full_ms if local_ms is not None else None,
        edge_ms=full_ms * spec.head_macs / max(spec.full_macs, 1) + tail.p50_ms,
        accuracy=spec.accuracy,
        stage="tail",
    )
    return found + [replace(each, where=f"{spec.id}, {each.where}") for each in ends]
