"""The graph policy beside every baseline, against bounds, and in networks that it was not trained in.

    python -m benchmarks.offloading_table train --runs runs/offloading     # hours on one core; goes on where it stopped
    python -m benchmarks.offloading_table table --runs runs/offloading     # some minutes, an idle machine
    aecnn-deploy report --offloading benchmarks/results/offloading --out report

Learned policies are trained from three seeds each, all for the same number of slots, and all policies are scored on the
same worlds of other seeds: a row's score is the mean over trainings, its ± over the seeds of the worlds, and
``trainings`` has each training's own. That all policies met the same tasks, and that none passes a bound that holds, is
asserted. What is claimed of the figures is checked, and what does not hold is said and makes the exit status 1.
"""

import argparse
import itertools
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aecnn_deploy.cli.main import run as command
from aecnn_deploy.offloading.agent.policy import GraphPolicy, read_policy
from aecnn_deploy.offloading.agent.search import SearchSettings
from aecnn_deploy.offloading.agent.settings import TRAINING_SEED
from aecnn_deploy.offloading.baselines.tuning import best_fixed, futures_greedy, tuned_greedy
from aecnn_deploy.offloading.bounds import bound_document
from aecnn_deploy.offloading.evaluation import evaluate
from aecnn_deploy.offloading.mec.scenario import Scenario
from aecnn_deploy.offloading.policy import Policy
from aecnn_deploy.offloading.registry import make_policy
from aecnn_deploy.offloading.scenario_file import load_scenario, with_changes
from benchmarks.machine import describe_machine, write_result

RESULTS = Path(__file__).parent / "results" / "offloading"
UNCERTAIN, CERTAIN = "paper-2x14", "certain-2x14"
ELSEWHERE = ("2x7", "3x20", "4x30")
DEEP = SearchSettings(moves=3, changes=48, steps=4, joins=6)
TUNING_SEEDS = (TRAINING_SEED + 1, TRAINING_SEED + 2)


@dataclass(frozen=True)
class Training:
    """A learned row: the arguments of ``policy train``, and the changes of the scenario that it is scored with."""

    name: str
    scenario: str
    method: str = "grl"
    profile: str | None = None  # in place of AECNN's
    picture_kb: int | None = None  # in place of the paper's 200
    slots: int | None = None  # of training, in place of the method's own

    def arguments(self) -> list[str]:
        """Of ``policy train``, without folder and seed."""
        changed = [f"--set={key}={value}".replace(" ", "") for key, value in self.changes().items()]
        length = [] if self.slots is None else ["--slots", str(self.slots)]
        return [self.scenario, "--method", self.method, *changed, *length]

    def changes(self) -> dict[str, Any]:
        """Of the scenario."""
        made: dict[str, Any] = {} if self.profile is None else {"profile.method": self.profile}
        return made if self.picture_kb is None else made | {"devices.image_kb": [self.picture_kb] * 2}

    def where(self) -> Scenario:
        """The scenario that it is scored in."""
        return with_changes(load_scenario(self.scenario), self.changes())


LEARNED = (
    Training("grl", UNCERTAIN),
    Training("droo", UNCERTAIN, "droo"),
    Training("ppo", UNCERTAIN, "ppo", slots=1500),
    Training("grle-early-exit", UNCERTAIN, profile="early-exit"),
    Training("grl-bottlenet++", UNCERTAIN, profile="bottlenet++"),
)
# What small pictures change: the files of Caltech-101 have 15 kB, where the paper says 200.
SMALL_PICTURES = (
    Training("early-exit-15kB", UNCERTAIN, profile="early-exit", picture_kb=15),
    Training("grl-or-picture-15kB", UNCERTAIN, profile="aecnn+picture", picture_kb=15),
)
AT_HOME = tuple(Training(f"grl-{name}", name, slots=400) for name in (CERTAIN, *ELSEWHERE))


@dataclass(frozen=True)
class Setting:
    """What all rows share."""

    runs: Path
    trainings: tuple[int, ...]
    seeds: tuple[int, ...]
    batch: int
    slots: int | None

    def folder(self, training: Training, seed: int) -> Path:
        """Of one training."""
        return self.runs / f"{training.name}-{seed}"

    def scenario(self, scenario: Scenario) -> Scenario:
        """As long as asked for."""
        return scenario if self.slots is None else with_changes(scenario, {"slots": self.slots})


def train(setting: Setting, slots: int | None) -> None:
    """All trainings that are not done."""
    for training, seed in itertools.product((*LEARNED, *SMALL_PICTURES, *AT_HOME), setting.trainings):
        folder = setting.folder(training, seed)
        if any((folder / name).exists() for name in ("policy.onnx", "policy.npz")):
            continue
        arguments = ["policy", "train", *training.arguments(), "--seed", str(seed), "--out", str(folder), "--resume"]
        if slots is not None:
            arguments += ["--slots", str(slots)]
        if command(arguments):
            raise SystemExit(f"{folder} was not trained")


def score(policies: Sequence[Policy], name: str, scenario: Scenario, setting: Setting) -> dict[str, Any]:
    """One row: of one policy, or of the trainings of one."""
    rows = [
        evaluate(policy, scenario, setting.seeds, batch=setting.batch, timed_slots=200 if first else 0).row()
        for first, policy in zip([True] + [False] * len(policies), policies, strict=False)
    ]
    scores = np.mean([row["scores"] for row in rows], axis=0)
    row = {**rows[0], "policy": name, "scores": scores.tolist()}
    for key in ("accuracy_mean", "success_mean", "throughput_mean"):
        row[key] = float(np.mean([one[key] for one in rows]))
    row["score_mean"], row["score_sd"] = float(scores.mean()), float(scores.std(ddof=1)) if len(scores) > 1 else 0.0
    if len(rows) > 1:
        each = [float(one["score_mean"]) for one in rows]
        row |= {"trainings": each, "trainings_sd": float(np.std(each, ddof=1))}
    print(
        f"  {scenario.name:14} {name:18} {row['score_mean']:7.2f} ± {row['score_sd']:.2f}"
        f"  in time {row['success_mean']:.1%}  {row['decision_ms_p50'] or 0:.2f} ms",
        flush=True,
    )
    return row


def trained(training: Training, setting: Setting, scenario: Scenario, **options: Any) -> list[Policy]:
    """The policies of its trainings; with ``options``, the graph policy decides by these."""
    made: list[Policy] = []
    for seed in setting.trainings:
        folder = setting.folder(training, seed)
        if options:
            made.append(GraphPolicy(read_policy(folder / "policy.onnx"), **options))
        else:
            made.append(make_policy(str(folder), scenario))
    return made


def rules(scenario: Scenario) -> Iterable[tuple[str, Callable[[], Policy]]]:
    """What is not learned; what can be fitted is fitted on training seeds."""
    for name in ("random", "local", "neurosurgeon", "greedy"):
        yield name, lambda name=name: make_policy(name, scenario)  # type: ignore[misc]
    yield "offload", lambda: best_fixed(scenario, TUNING_SEEDS)
    yield "greedy-tuned", lambda: tuned_greedy(scenario, TUNING_SEEDS)
    yield "exact", lambda: make_policy("exact", scenario)


def comparison(setting: Setting) -> dict[str, Any]:
    """The uncertain scenario: every baseline, and what the parts of ours bring."""
    scenario = setting.scenario(load_scenario(UNCERTAIN))
    rows = [score([make()], name, scenario, setting) for name, make in rules(scenario)]
    for training in LEARNED:
        where = setting.scenario(training.where())
        rows.append(score(trained(training, setting, where), training.name, where, setting))
    ours = LEARNED[0]
    parts = [
        score(trained(ours, setting, scenario), "grl", scenario, setting),
        score(trained(ours, setting, scenario, critic="learned"), "grl-learned-critic", scenario, setting),
        score(trained(ours, setting, scenario, search=DEEP, samples=16), "grl-deep-search", scenario, setting),
        score(trained(ours, setting, scenario, search=SearchSettings(0, 1, 0)), "grl-actor-alone", scenario, setting),
    ]
    for one in SMALL_PICTURES:
        done = tuple(seed for seed in setting.trainings if any(setting.folder(one, seed).glob("policy.*")))
        if not done:
            print(f"  {one.name} is left out: it is not trained")
            continue
        some = replace(setting, trainings=done)
        where = setting.scenario(one.where())
        parts.append(score(trained(one, some, where), one.name, where, setting) | {"trained": len(done)})
    prices = read_policy(setting.folder(ours, setting.trainings[0]) / "policy.onnx").prices()
    by_futures = futures_greedy(scenario, TUNING_SEEDS, prices=prices)
    parts.append(score([by_futures], "greedy-futures", scenario, setting))
    bound = bound_document(scenario, setting.seeds, kind="lp", batch=setting.batch)
    check(rows, bound)
    return document(setting, scenario, rows, bound) | {"parts": parts}


def certain(setting: Setting) -> dict[str, Any]:
    """The certain scenario, against the exact optimum of each slot and a bound that no policy passes."""
    scenario = setting.scenario(load_scenario(CERTAIN))
    rows = [score([make_policy(name, scenario)], name, scenario, setting) for name in ("exact", "greedy", "random")]
    rows.append(score(trained(AT_HOME[0], setting, scenario), "grl", scenario, setting))
    rows.append(score(trained(LEARNED[0], setting, scenario), "grl-from-uncertain", scenario, setting))
    bound = bound_document(scenario, setting.seeds, kind="per-slot, empty queues", batch=setting.batch)
    check(rows, bound)
    return document(setting, scenario, rows, bound)


def transfer(setting: Setting) -> dict[str, Any]:
    """One policy, trained on 2×14, beside policies trained where they are scored."""
    rows = []
    for training in AT_HOME[1:]:
        scenario = setting.scenario(training.where())
        away = score(trained(LEARNED[0], setting, scenario), "grl", scenario, setting)
        home = score(trained(training, setting, scenario), training.name, scenario, setting)
        check([away, home], None)
        for row, trained_on in ((home, scenario.name), (away, UNCERTAIN)):
            rows.append(
                {
                    "scenario": scenario.name,
                    "policy": "grl",
                    "trained_on": trained_on,
                    "score_mean": row["score_mean"],
                    "score_sd": row["score_sd"],
                    "ratio": row["score_mean"] / home["score_mean"],
                    "trainings": row.get("trainings"),
                }
            )
    return {"rows": rows, "seeds": list(setting.seeds), "batch": setting.batch} | describe_machine()


def document(setting: Setting, scenario: Scenario, rows: list[dict[str, Any]], bound: Any) -> dict[str, Any]:
    """As the report reads it."""
    return {
        "scenario": scenario.name,
        "seeds": list(setting.seeds),
        "batch": setting.batch,
        "slots": scenario.slots,
        "rows": rows,
        "bound": bound,
    } | describe_machine()


def check(rows: Sequence[dict[str, Any]], bound: dict[str, Any] | None) -> None:
    """The same tasks for all; nobody passes a bound that holds."""
    arrived = {round(row["arrived_mean"], 9) for row in rows}
    assert len(arrived) == 1, f"policies met other tasks: {arrived}"
    if bound is not None and bound["holds"]:
        for row in rows:
            passes = [one - most for one, most in zip(row["scores"], bound["scores"], strict=True) if one > most + 1e-6]
            assert not passes, f"{row['policy']} passes the bound by {max(passes)}"


def claims(table: dict[str, Any], sure: dict[str, Any], moved: dict[str, Any]) -> list[tuple[str, bool]]:
    """What is said of the figures, and whether it holds."""
    by_name = {row["policy"]: row for row in table["rows"]}
    ours = by_name["grl"]
    made = []
    for name in ("droo", "ppo", "grle-early-exit", "grl-bottlenet++", "greedy", "greedy-tuned"):
        ahead = [one - other for one, other in zip(ours["scores"], by_name[name]["scores"], strict=True)]
        lead = ours["score_mean"] / by_name[name]["score_mean"] - 1
        made.append(
            (f"ahead of {name} by {lead:.1%}, in {sum(a > 0 for a in ahead)} of {len(ahead)} seeds", min(ahead) > 0)
        )
    grl = next(row for row in sure["rows"] if row["policy"] == "grl")
    share = grl["score_mean"] / sure["bound"]["score_mean"]
    made.append(
        (f"{share:.2%} of the bound ({sure['bound']['kind']}) in {sure['scenario']}, at least 97 %", share >= 0.97)
    )
    for row in moved["rows"]:
        if row["trained_on"] == UNCERTAIN:
            made.append(
                (
                    f"{row['ratio']:.2%} of a policy trained there in {row['scenario']}, at least 98 %",
                    row["ratio"] >= 0.98,
                )
            )
    took = ours["decision_ms_p50"]
    made.append((f"{took:.2f} ms a decision, at most 2", took <= 2))
    return made


def main(arguments: Sequence[str]) -> int:
    """Exit status 1: a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--trainings", type=int, default=3)
    parser.add_argument("--train-slots", type=int)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    setting = Setting(
        given.runs, tuple(range(given.trainings)), tuple(range(1000, 1000 + given.seeds)), given.batch, given.slots
    )
    if given.what == "train":
        train(setting, given.train_slots)
        return 0
    table, sure, moved = comparison(setting), certain(setting), transfer(setting)
    checked = claims(table, sure, moved)
    given.out.mkdir(parents=True, exist_ok=True)
    table["claims"] = [{"claim": text, "holds": holds} for text, holds in checked]
    for name, made in (("comparison", table), ("certain", sure), ("transfer", moved)):
        write_result(given.out / f"{name}.json", made)
    for training, seed in itertools.product(LEARNED, setting.trainings):
        curve = setting.folder(training, seed) / "curves.jsonl"
        if curve.exists():
            place = given.out / training.name / f"seed-{seed}"
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(curve, place / "curves.jsonl")
    for text, holds in checked:
        print("holds " if holds else "FAILS ", text)
    return 0 if all(holds for _, holds in checked) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
