"""Several policies in one scenario, or along one of its keys: the document of ``simulate --json``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.evaluation import evaluate
from aecnn_deploy.offloading.mec.scenario import Scenario
from aecnn_deploy.offloading.registry import make_policy
from aecnn_deploy.offloading.scenario_file import with_changes

FIRST_SEED = 1000  # of evaluation: training has the seeds below

# the bound of a scenario over seeds and worlds of each: {"kind", "score_mean", …}
BoundOf = Callable[[Scenario, Sequence[int], int], dict[str, Any]]


@dataclass(frozen=True)
class Vary:
    """One key of the scenario takes each of ``values`` in turn."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Simulation:
    """What to simulate. ``policies``: names; each meets the same ``batch`` worlds for each of ``seeds``.

    Raises SettingsError: no policy, a policy or a seed twice, no seed or no world, a seed below 0.
    """

    scenario: Scenario
    policies: tuple[str, ...]
    seeds: tuple[int, ...]
    batch: int = 8
    vary: Vary | None = None
    bound_of: BoundOf | None = None  # None: no bound is computed

    def __post_init__(self) -> None:
        if not self.policies or len(set(self.policies)) < len(self.policies):
            named = ", ".join(self.policies) or "none"
            raise SettingsError(f"the policies are {named}; name at least one, and none twice")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise SettingsError(f"the seeds are {list(self.seeds)}; expected at least one, none below 0, none twice")
        if self.batch < 1:
            raise SettingsError(f"{self.batch} worlds at once; expected at least 1")

    def scenarios(self) -> list[Scenario]:
        """One for each value, or the one. Raises SettingsError: no such key; ScenarioError: a value does not fit."""
        if self.vary is None:
            return [self.scenario]
        if not self.vary.values:
            raise SettingsError(f"{self.vary.key} has no value to take; name some, as {self.vary.key}=1,2")
        return [with_changes(self.scenario, {self.vary.key: value}) for value in self.vary.values]

    def slots(self) -> int:
        """How often ``run`` calls ``on_slot``."""
        runs = len(self.policies) * len(self.seeds)
        return sum(runs * scenario.slots for scenario in self.scenarios())

    def run(self, on_slot: Callable[[], None] | None = None) -> dict[str, Any]:
        """The document: ``scenario``, ``seeds``, and ``rows`` and ``bound``, or ``vary`` and ``points`` of these.

        Raises PolicyError: no such policy, or it decides wrongly. SettingsError, ScenarioError: as ``scenarios``.
        """
        scenarios = self.scenarios()
        for scenario in scenarios:  # what cannot be made is said before anything runs
            for name in self.policies:
                make_policy(name, scenario, self.seeds[0])
        document: dict[str, Any] = {
            "scenario": self.scenario.name,
            "seeds": list(self.seeds),
            "batch": self.batch,
            "slots": self.scenario.slots,
        }
        if self.vary is None:
            return document | self._point(scenarios[0], on_slot)
        points = [
            {"value": value, **self._point(scenario, on_slot)}
            for value, scenario in zip(self.vary.values, scenarios, strict=True)
        ]
        return document | {"vary": {"key": self.vary.key, "values": list(self.vary.values)}, "points": points}

    def _point(self, scenario: Scenario, on_slot: Callable[[], None] | None) -> dict[str, Any]:
        rows = [
            evaluate(
                make_policy(name, scenario, self.seeds[0]), scenario, self.seeds, batch=self.batch, on_slot=on_slot
            ).row()
            for name in self.policies
        ]
        bound = None if self.bound_of is None else self.bound_of(scenario, self.seeds, self.batch)
        return {"rows": rows, "bound": bound}
