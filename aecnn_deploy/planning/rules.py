"""Other people's rules for the same bundle, machines and link. docs/rules.md says what is theirs and what differs.

All of them count reading, the link's fixed time and the edge's own as ``planning.predict`` does: rows can be compared.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from aecnn_deploy.bundle.manifest import Manifest
from aecnn_deploy.errors import PlanError
from aecnn_deploy.planning.link import Link
from aecnn_deploy.planning.partitions import Situation
from aecnn_deploy.planning.powers import RASPBERRY_PI_4B, DevicePowers
from aecnn_deploy.planning.profiles import DeviceProfile, EdgeProfile, FeatureProfile
from aecnn_deploy.planning.rule_cuts import jpeg_features, late_split, late_split_u8
from aecnn_deploy.planning.rule_edgent import edgent
from aecnn_deploy.planning.rule_neurosurgeon import neurosurgeon, neurosurgeon_energy, neurosurgeon_measured
from aecnn_deploy.planning.rule_outcome import RuleChoice, RuleRefusal

__all__ = ["ALL_RULES", "DEFAULT_MAX_LOSS", "Rule", "RuleChoice", "RuleRefusal", "apply_rules"]

DEFAULT_MAX_LOSS = 0.01  # of agreement with the unsplit model, for rules that code with loss

# A rule gets its name and the situation; it raises PlanError where it has no answer.
Rule = Callable[[str, Situation], RuleChoice]

ALL_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "neurosurgeon": neurosurgeon,
        "neurosurgeon-measured": neurosurgeon_measured,
        "neurosurgeon-energy": neurosurgeon_energy,
        "edgent": edgent,
        "jpeg-features": jpeg_features,
        "late-split": late_split,
        "late-split-u8": late_split_u8,
    }
)


def apply_rules(
    manifest: Manifest,
    device: DeviceProfile,
    edge: EdgeProfile,
    features: FeatureProfile | None,
    link: Link,
    *,
    deadline_ms: float | None = None,
    powers: DevicePowers | None = RASPBERRY_PI_4B,
    max_loss: float = DEFAULT_MAX_LOSS,
) -> list[RuleChoice | RuleRefusal]:
    """What each of ``ALL_RULES`` would do, in their order; a rule that lacks a measurement refuses and names it.

    ``features`` None: rules that need the unsplit model's cuts refuse. ``powers``: of the device; None: no energy.
    Raises PlanError: a profile is of another bundle. SettingsError: the deadline or ``max_loss`` is out of range.
    """
    situation = Situation(
        manifest, device, edge, features, link, deadline_ms=deadline_ms, powers=powers, max_loss=max_loss
    )
    return [_outcome(name, rule, situation) for name, rule in ALL_RULES.items()]


def _outcome(name: str, rule: Rule, situation: Situation) -> RuleChoice | RuleRefusal:
    try:
        return rule(name, situation)
    except PlanError as exc:
        return RuleRefusal(name, str(exc))
