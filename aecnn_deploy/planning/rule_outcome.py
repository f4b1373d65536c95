"""What a rule answers: a choice with its prediction, or a refusal with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass

from aecnn_deploy.planning.partitions import Partition, Situation


@dataclass(frozen=True, slots=True)
class RuleChoice:
    """What ``rule`` would do. ``parts``: stage -> milliseconds, of which ``predicted_ms`` is the sum.

    ``accuracy``: top-1, None where the bundle does not say. ``sent_bytes``: of the message. ``energy_mj``: of the
    device; None where its powers are not known. ``predictor_error``: of the layers' predictors, as a share; None: the
    rule has none.
    """

    rule: str
    description: str
    predicted_ms: float
    accuracy: float | None
    sent_bytes: float
    parts: Mapping[str, float]
    energy_mj: float | None
    why: str
    predictor_error: float | None = None


@dataclass(frozen=True, slots=True)
class RuleRefusal:
    """``rule`` has no answer here, and ``why``."""

    rule: str
    why: str


def choice(
    rule: str, situation: Situation, partition: Partition, why: str, *, predictor_error: float | None = None
) -> RuleChoice:
    """``partition`` as the choice of ``rule``, with what ``situation`` remarks on it."""
    return RuleChoice(
        rule,
        partition.where,
        partition.total_ms,
        partition.accuracy,
        partition.sent_bytes,
        partition.parts,
        situation.energy_mj(partition),
        why + situation.remarks(partition),
        predictor_error,
    )
