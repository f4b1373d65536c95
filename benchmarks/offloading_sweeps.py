"""Policies against devices, deadlines, capacity and errors of the channel estimates: the documents of the report.

    python -m benchmarks.offloading_sweeps --policy graph=POLICY.onnx --policy greedy --policy random
    aecnn-deploy report --offloading benchmarks/results/offloading --out report

One file a sweep, and comparison.json of the scenario as it is. All policies meet the same worlds, which is asserted by
the tasks that arrive; where the bound says that it holds for all policies, so is that none of them passes it in any
seed. Every row is written when it is done: the same command goes on where it was stopped, and with more policies it
adds theirs. Rows of another scenario, other seeds or another policy file are never mixed.
"""

import argparse
import hashlib
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.bounds import KINDS, bound_document
from aecnn_deploy.offloading.evaluation import TIMED_SLOTS, evaluate
from aecnn_deploy.offloading.mec.scenario import Scenario
from aecnn_deploy.offloading.registry import make_policy
from aecnn_deploy.offloading.scenario_file import load_scenario, with_changes
from benchmarks.machine import describe_machine, write_result

RESULTS = Path(__file__).parent / "results" / "offloading"
FIRST_SEED = 1000  # below are those of training
COMPARISON = "comparison"


@dataclass(frozen=True)
class Sweep:
    """A key of a scenario and its values; none: the scenario as it is."""

    key: str | None = None
    values: tuple[Any, ...] = ()


SWEEPS: Mapping[str, Sweep] = MappingProxyType(
    {
        COMPARISON: Sweep(),
        "devices": Sweep("devices.count", (7, 10, 14, 18, 22, 28)),
        "deadline": Sweep("devices.deadline_ms", ([30, 75], [45, 110], [60, 150], [90, 225], [120, 300])),
        "capacity": Sweep(
            "servers.capacity",
            ([0.4, 0.3, 0.2], [0.6, 0.45, 0.3], [0.8, 0.6, 0.4], [1.0, 0.75, 0.5], [2.0, 1.5, 1.0]),
        ),
        "estimates": Sweep("uncertainty.estimate_error", (0.0, 0.05, 0.1, 0.2, 0.35, 0.5)),
    }
)


@dataclass(frozen=True)
class Run:
    """What every sweep of a run shares. ``policies``: name in the tables -> name or file of the policy."""

    scenario: Scenario
    policies: Mapping[str, str]
    seeds: tuple[int, ...]
    batch: int
    bound: str | None  # a kind of bound, "auto" by size, or None
    time_limit_s: float | None = None  # of the bound, for each slot or world
    timed_slots: int = TIMED_SLOTS

    def facts(self, sweep: Sweep) -> dict[str, Any]:
        """What must be the same for rows to stand in one document."""
        facts: dict[str, Any] = {
            "scenario": self.scenario.name,
            "scenario_sha256": hashlib.sha256(msgspec.json.encode(self.scenario)).hexdigest(),
            "seeds": list(self.seeds),
            "batch": self.batch,
            "slots": self.scenario.slots,
        }
        return facts if sweep.key is None else facts | {"vary": {"key": sweep.key, "values": list(sweep.values)}}


def main() -> None:
    options = _parser().parse_args()
    scenario = load_scenario(options.scenario)
    if options.slots is not None:
        scenario = with_changes(scenario, {"slots": options.slots})
    named = [text.rpartition("=") if "=" in text else (text, "", text) for text in options.policy]
    run = Run(
        scenario,
        {name: policy for name, _, policy in named},
        tuple(range(FIRST_SEED, FIRST_SEED + options.seeds)),
        options.batch,
        None if options.bound == "none" else options.bound,
        options.time_limit_s,
    )
    if len(run.policies) < len(options.policy):
        raise SettingsError("two policies have one name; name them apart, as --policy NAME=FILE")
    for name in options.sweep or SWEEPS:
        print(f"{name}: {sweep_document(run, SWEEPS[name], options.out / f'{name}.json')}", flush=True)


def sweep_document(run: Run, sweep: Sweep, path: Path) -> str:
    """Compute what ``path`` lacks, writing it after each row; what was done, in words.

    Raises SettingsError: the file holds rows of another scenario, other seeds or other values.
    """
    facts = run.facts(sweep)
    points = _begun(path, facts)
    there = sum(len(point["rows"]) for point in points.values())
    made = 0
    for value in sweep.values or (None,):
        changes = {} if sweep.key is None else {sweep.key: value}
        scenario = with_changes(run.scenario, changes)
        point = points.setdefault(repr(value), {"value": value, "rows": [], "bound": None})
        for name, policy in run.policies.items():
            print_of = _fingerprint(policy)
            if any(row["policy"] == name and row.get("of") == print_of for row in point["rows"]):
                continue
            evaluation = evaluate(
                make_policy(policy, scenario, run.seeds[0]),
                scenario,
                run.seeds,
                batch=run.batch,
                timed_slots=run.timed_slots,
            )
            point["rows"] = [row for row in point["rows"] if row["policy"] != name]
            point["rows"].append({**evaluation.row(), "policy": name, "of": print_of})
            made += 1
            _write(path, facts, points, sweep)
        kind = run.bound
        if kind is not None and not (point["bound"] and kind in ("auto", point["bound"]["kind"])):
            point["bound"] = bound_document(
                scenario,
                run.seeds,
                kind=None if kind == "auto" else kind,
                batch=run.batch,
                time_limit_s=run.time_limit_s,
            )
        check(point, f"{path.name} at {value}")
        _write(path, facts, points, sweep)
    return f"{made} rows computed, {there} were there"


def check(point: Mapping[str, Any], where: str) -> None:
    """All policies met the same tasks, and none passes a bound that holds. Raises AssertionError."""
    arrived = {row["arrived_mean"] for row in point["rows"]}
    assert max(arrived) - min(arrived) <= 1e-9 * max(arrived), f"{where}: policies met other tasks: {arrived}"
    bound = point["bound"]
    if bound and bound["holds"]:
        for row in point["rows"]:
            pairs = zip(row["scores"], bound["scores"], strict=True)
            passed = [(score, most) for score, most in pairs if score > most * (1 + 1e-6)]
            assert not passed, f"{where}: {row['policy']} passes the bound {bound['kind']}: {passed}"


def _begun(path: Path, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The points that are in the file, by their value."""
    if not path.exists():
        return {}
    document = msgspec.json.decode(path.read_bytes())
    other = [key for key in facts if document.get(key) != facts[key]]
    if other:
        raise SettingsError(f"{path} holds rows of other {', '.join(other)}; remove it, or choose another --out")
    points = document["points"] if "vary" in document else [{"value": None, **{k: document[k] for k in _POINT}}]
    return {repr(point["value"]): point for point in points}


_POINT = ("rows", "bound")


def _write(path: Path, facts: dict[str, Any], points: Mapping[str, dict[str, Any]], sweep: Sweep) -> None:
    known = [points[repr(value)] for value in sweep.values or (None,) if points.get(repr(value), {}).get("rows")]
    body = {"points": known} if sweep.key is not None else {key: known[0][key] for key in _POINT}
    command = shlex.join(["python", "-m", "benchmarks.offloading_sweeps", *sys.argv[1:]])
    write_result(path, {"benchmark": "offloading_sweeps", "command": command, **facts, **body, **describe_machine()})


def _fingerprint(policy: str) -> str:
    """The policy's name, or what its file holds."""
    path = Path(policy)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else policy


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", action="append", required=True, help="NAME, FILE or NAME=FILE; may be repeated")
    parser.add_argument("--scenario", default="paper-2x14", help="by name, or a .toml file")
    parser.add_argument("--sweep", action="append", choices=sorted(SWEEPS), help="one of them; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="worlds of a seed")
    parser.add_argument("--slots", type=int, help="of an episode; default: the scenario's")
    parser.add_argument(
        "--bound", default="lp", choices=("auto", "none", *KINDS), help="auto: the tightest for the size"
    )
    parser.add_argument("--time-limit-s", type=float, help="of the bound, for each slot or world")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the documents")
    return parser


if __name__ == "__main__":
    main()
