"""Documents of simulations that never took place: made by formula, for tests of what reads them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SEEDS = (1000, 1001, 1002)
_SIZE = {"slots": 200, "batch": 8}
# Share of the bound that each policy reaches at mid load, and how much of it a doubled load costs.
POLICIES = {
    "graph": (0.975, 0.01),
    "exact": (0.99, 0.0),
    "greedy": (0.94, 0.04),
    "DROO with AECNN options": (0.93, 0.08),
    "MaskablePPO": (0.90, 0.10),
    "GRL with BottleNet++": (0.89, 0.02),
    "GRLE, early exits": (0.84, 0.03),
    "neurosurgeon": (0.78, 0.25),
    "offload": (0.66, 0.30),
    "random": (0.41, 0.12),
    "local": (0.12, 0.0),
}


def row(policy: str, *, load: float = 1.0, bound: float = 40.0, seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """A row of ``simulate --json``; ``load`` 1 is mid load."""
    share, loss = POLICIES.get(policy, (0.5, 0.1))
    noise = np.random.default_rng(len(policy)).normal(0.0, 0.006, len(seeds))
    worlds = np.random.default_rng(7).normal(1.0, 0.02, len(seeds))
    scores = bound * worlds * np.clip(share - loss * (load - 1) + noise, 0.02, 1.0)
    accuracy = 0.955 - 0.02 * load * share
    arrived = 55.0 * load
    return {
        "policy": policy,
        "score_mean": float(scores.mean()),
        "score_sd": float(scores.std(ddof=1)) if len(seeds) > 1 else 0.0,
        "accuracy_mean": accuracy,
        "success_mean": min(1.0, float(scores.mean()) / accuracy / arrived),
        "throughput_mean": float(scores.mean()) / accuracy,
        "arrived_mean": arrived,
        "energy_j_mean": None,
        "decision_ms_p50": 0.3 + 0.1 * len(policy),
        "scores": scores.tolist(),
    }


def bound(mean: float = 40.0, **changes: Any) -> dict[str, Any]:
    """What the policies are held against."""
    scores = [mean - 0.3, mean, mean + 0.3]
    found = {"kind": "per-slot, empty queues", "holds": True, "score_mean": mean, "score_sd": 0.3, "scores": scores}
    return {**found, "proven_share": 0.9996, "slots": 200, "batch": 8, "seeds": list(SEEDS), **changes}


def comparison(policies: Sequence[str] = tuple(POLICIES), **changes: Any) -> dict[str, Any]:
    """The document of ``simulate --json``, with ``changes``."""
    seeds = changes.get("seeds", SEEDS)
    rows = [row(policy, seeds=seeds) for policy in policies]
    return {"scenario": "paper-2x14", "seeds": list(seeds), "rows": rows, "bound": bound(), **_SIZE, **changes}


def sweep(
    key: str = "devices.count",
    values: Sequence[Any] = (7, 10, 14, 20, 28),
    policies: Sequence[str] = tuple(POLICIES),
    **changes: Any,
) -> dict[str, Any]:
    """The document of ``simulate --vary --json``: the load rises with the values' order."""
    points = []
    for number, value in enumerate(values):
        load = 0.5 + 1.5 * number / max(1, len(values) - 1)
        most = 40.0 * load / (0.55 + 0.45 * load)
        rows = [row(policy, load=load, bound=most) for policy in policies]
        points.append({"value": value, "rows": rows, "bound": bound(most)})
    vary = {"key": key, "values": list(values)}
    return {"scenario": "paper-2x14", "seeds": list(SEEDS), "vary": vary, "points": points, **_SIZE, **changes}


def curve_lines(seed: int, *, slots: int = 20_000, every: int = 500, final: float = 39.0) -> list[dict[str, Any]]:
    """A training's curves: scores that rise to ``final``."""
    rng = np.random.default_rng(seed)
    lines = []
    for slot in range(0, slots + 1, every):
        score = final * (1 - 0.55 * float(np.exp(-slot / 3000))) + rng.normal(0, 0.4)
        evaluated = slot % (2 * every) == 0
        lines.append(
            {
                "slot": slot,
                "loss": None if slot == 0 else 0.05 + 0.8 * float(np.exp(-slot / 4000)) + abs(rng.normal(0, 0.02)),
                "train_score": score,
                "eval_score": score * 1.01 if evaluated else None,
                "eval_success": min(1.0, score / 50) if evaluated else None,
                "seconds": slot / 400,
                "seed": seed,
            }
        )
    return lines


def droo() -> dict[str, Any]:
    """The table of rates on DROO's channels."""
    rates = {"graph": (1, 0.99985), "graph, 4 candidates": (4, 0.99993), "DROO": (4, 0.9997), "sorted": (11, 0.99999)}
    rows: list[dict[str, Any]] = [
        {
            "policy": policy,
            "critic_evaluations": evaluations,
            "rate_mean": rate,
            "rate_sd": 4 * (1 - rate),
            "rate_p5": 1 - 6 * (1 - rate),
            "exact_share": 0.9,
            "decision_ms_p50": 0.2,
        }
        for policy, (evaluations, rate) in rates.items()
    ]
    rows.append({**rows[0], "policy": "DROO", "critic_evaluations": 10, "rate_mean": 0.9999, "rate_p5": 0.9992})
    return {"rows": rows, "users": 10}


def transfer() -> dict[str, Any]:
    """The table of one policy in scenarios that it was not trained in."""
    rows = []
    for scenario, ratio in (("2x7", 0.998), ("4x30", 0.987), ("3x20", 0.991)):
        for policy, factor in (("graph", 1.0), ("greedy", 0.95)):
            found = {"scenario": scenario, "policy": policy, "trained_on": "paper-2x14", "score_mean": 40 * ratio}
            rows.append({**found, "score_sd": 0.3, "ratio": ratio * factor})
    return {"rows": rows}


def write_curves(folder: Path, lines: Sequence[dict[str, Any]]) -> Path:
    """A folder as a training writes it."""
    folder.mkdir(parents=True)
    (folder / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_all(folder: Path) -> Path:
    """A folder with a document of every kind, and training runs of two labels with three seeds each."""
    folder.mkdir()
    documents = {
        "comparison": comparison(),
        "devices": sweep(),
        "deadline": sweep("devices.deadline_ms", [[40, 80], [60, 100], [60, 150], [100, 250]]),
        "capacity": sweep("servers.capacity", [[0.5], [1.0, 0.75, 0.5], [1.0], [2.0]]),
        "estimates": sweep("uncertainty.estimate_error", [0.0, 0.05, 0.1, 0.2, 0.4]),
        "droo": droo(),
        "transfer": transfer(),
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    for seed in range(3):
        write_curves(folder / "training" / "graph" / f"seed-{seed}", curve_lines(seed))
        lines = curve_lines(10 + seed, final=36.0, slots=20_000 - 2500 * seed)
        write_curves(folder / "training" / "no graph" / f"seed-{seed}", lines)
    return folder
