"""Every policy on one test set: rate over the published optimum, at counted evaluations of the critic.

Tested are the last 20 % of a file's samples. Only DROO and a policy that is to be trained here see the first 80 %.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.droo.exact import MOST_ENUMERATED, best_modes
from aecnn_deploy.offloading.droo.files import read_samples
from aecnn_deploy.offloading.droo.physics import Floats, computation_rate
from aecnn_deploy.offloading.droo.rules import (
    coordinate_descent,
    order_preserving,
    pick,
    random_modes,
    threshold_modes,
)
from aecnn_deploy.offloading.droo.samples import Samples
from aecnn_deploy.offloading.droo.set_policy import SHIPPED, SetPolicy, read_policy
from aecnn_deploy.optional import require

if TYPE_CHECKING:
    from aecnn_deploy.offloading.droo.torch_online import OnlineDroo, OnlineSettings

EXACT: Final = 1e-6  # relative: a rate that close to the published optimum counts as it
CANDIDATES: Final = (1, 2, 4)
_TIMED: Final = 100  # decisions, one by one

# gains (S, N) -> rates (S,) and evaluations of the critic, (S,) or one number
_Decide = Callable[[Floats], tuple[Floats, Floats | float]]


def droo_table(
    path: Path,
    *,
    seeds: int,
    policy: Path | None = None,
    online_frames: int | None = None,
    on_frames: Callable[[int], None] = lambda frames: None,
) -> dict[str, Any]:
    """The document of ``policy evaluate --droo``: :func:`table_of` the samples and the policy that the paths name.

    Raises PolicyError: a file that cannot be read; SettingsError: fewer than one seed or frame.
    """
    samples = read_samples(path)
    policies = [read_policy(each) for each in ([policy] if policy else SHIPPED)]
    return table_of(samples, policies, seeds=seeds, online_frames=online_frames, on_frames=on_frames)


def online_total(samples: Samples, online_frames: int | None = None) -> int:
    """How many frames :func:`table_of` tells ``on_frames`` of, without the port."""
    learned = samples.first_test if online_frames is None else online_frames
    return 2 * learned + (len(samples.test_gains) if learned else 0)


def table_of(
    samples: Samples,
    policies: Sequence[SetPolicy],
    *,
    seeds: int,
    online_frames: int | None = None,
    port: bool = False,
    name: str = "set policy",
    on_frames: Callable[[int], None] = lambda frames: None,
) -> dict[str, Any]:
    """``{"rows": [{"policy", "critic_evaluations", "rate_mean", "rate_sd", "rate_p5", "exact_share", "runs",
    "decision_ms_p50"}], …}``.

    ``rate_mean``: mean over the test samples and runs of rate over published optimum; ``rate_sd``: of the runs' means;
    ``rate_p5``: fifth percentile over samples and runs; ``exact_share``: of samples within 1e-6 of the optimum;
    ``critic_evaluations``: mean for one decision; ``runs``: policies or seeds. ``seeds``: runs of what is random.
    ``online_frames``: frames that DROO learns from, the first 80 % over and over; default: once, 0 leaves DROO out.
    ``port``: DROO as its authors' PyTorch code has it beside. Raises SettingsError: fewer than one seed, or negative
    frames; MissingExtraError: DROO without torch.
    """
    learned = samples.first_test if online_frames is None else online_frames
    if seeds < 1 or learned < 0:
        raise SettingsError(f"{seeds} seeds and {learned} frames: at least 1 seed and 0 frames are needed")
    rows: list[dict[str, Any]] = []
    for candidates in _fitting(CANDIDATES, samples.devices):
        rows.append(_row(samples, name, [_set(samples, each, candidates) for each in policies]))
    if learned:
        rows += _droo_rows(samples, seeds, learned, port, on_frames)
    rows += _rule_rows(samples, seeds)
    return {
        "rows": rows,
        "file": samples.source,
        "devices": samples.devices,
        "weights": samples.weights.tolist(),
        "samples": len(samples.test_gains),
        "training_samples": samples.first_test,
        "seeds": seeds,
        "online_frames": learned,
        "policies": [dict(each.training) for each in policies],
    }


def _fitting(candidates: Sequence[int], devices: int) -> list[int]:
    return [count for count in candidates if count <= devices + 1]


def _set(samples: Samples, policy: SetPolicy, candidates: int) -> _Decide:
    def decide(gains: Floats) -> tuple[Floats, float]:
        modes = policy.candidates(gains, samples.weights, candidates)
        return pick(gains, samples.weights, modes)[1], candidates

    return decide


def _rule_rows(samples: Samples, seeds: int) -> list[dict[str, Any]]:
    weights, devices = samples.weights, samples.devices
    rngs = [np.random.default_rng([seed, 0xA11]) for seed in range(1, seeds + 1)]

    def thresholds(gains: Floats) -> tuple[Floats, float]:
        return pick(gains, weights, threshold_modes(gains, weights))[1], devices + 1

    def constant(offload: bool) -> _Decide:
        def decide(gains: Floats) -> tuple[Floats, float]:
            return computation_rate(gains, np.full(gains.shape, offload), weights), 1

        return decide

    def coins(rng: np.random.Generator, count: int) -> _Decide:
        def decide(gains: Floats) -> tuple[Floats, float]:
            return pick(gains, weights, random_modes(rng, len(gains), count, devices))[1], count

        return decide

    def descent(rng: np.random.Generator) -> _Decide:
        def decide(gains: Floats) -> tuple[Floats, Floats]:
            start = random_modes(rng, len(gains), 1, devices)[:, 0]
            _, rates, evaluations = coordinate_descent(gains, weights, start)
            return rates, evaluations

        return decide

    rows = [_row(samples, "thresholds in h√w", [thresholds])]
    rows += [_row(samples, "random", [coins(rng, count) for rng in rngs]) for count in (1, 4, devices + 1)]
    rows += [_row(samples, "all local", [constant(False)]), _row(samples, "all offloaded", [constant(True)])]
    rows.append(_row(samples, "coordinate descent", [descent(rng) for rng in rngs]))
    if devices <= MOST_ENUMERATED:

        def enumerated(gains: Floats) -> tuple[Floats, float]:
            return best_modes(gains, weights)[1], 1 << devices

        rows.append(_row(samples, "enumeration", [enumerated]))
    return rows


def _droo_rows(
    samples: Samples, seeds: int, learned: int, port: bool, on_frames: Callable[[int], None]
) -> list[dict[str, Any]]:
    """DROO after ``learned`` frames: its actors frozen at given candidates, then as published, learning on."""
    require("torch", why="training DROO", extra="offloading")
    from aecnn_deploy.offloading.droo.torch_online import OnlineDroo, one_thread

    gains = samples.training_gains[np.arange(learned) % samples.first_test]

    def learner(settings: "OnlineSettings") -> "OnlineDroo":
        made = OnlineDroo(samples.devices, samples.weights, tuple(range(1, seeds + 1)), settings)
        made.run(gains, on_frames=on_frames)
        return made

    def frozen(made: "OnlineDroo", number: int, count: int) -> _Decide:
        actor = made.actor(number)

        def decide(gains: Floats) -> tuple[Floats, float]:
            return pick(gains, samples.weights, order_preserving(actor(gains), count))[1], count

        return decide

    rows = []
    with one_thread():
        for title, settings in _droo_variants(samples.devices, port):
            made = learner(settings)
            for count in _fitting(CANDIDATES, samples.devices):
                rows.append(_row(samples, title, [frozen(made, number, count) for number in range(seeds)]))
            if settings.fixed_candidates is None:
                frames = made.run(samples.test_gains, on_frames=on_frames)
                mean = float(frames.evaluations.mean())
                shown = _decision_ms(frozen(made, 0, round(mean)), samples.test_gains)  # without what it learns
                rows.append(_summary(f"{title}, adaptive K", frames.rates / samples.test_optimum, mean, shown))
    return rows


def _droo_variants(devices: int, port: bool) -> list[tuple[str, "OnlineSettings"]]:
    from aecnn_deploy.offloading.droo.torch_online import OnlineSettings

    published = OnlineSettings()
    variants = [("DROO", published), ("DROO trained with K = N", replace(published, fixed_candidates=devices))]
    return [*variants, ("DROO (PyTorch port)", replace(published, port=True))] if port else variants


def _row(samples: Samples, name: str, runs: Sequence[_Decide]) -> dict[str, Any]:
    """A row of the decisions of each run."""
    gains = samples.test_gains
    found = [decide(gains) for decide in runs]
    ratios = np.stack([rates for rates, _ in found]) / samples.test_optimum
    evaluations = float(np.mean([np.mean(spent) for _, spent in found]))
    return _summary(name, ratios, evaluations, _decision_ms(runs[0], gains))


def _summary(name: str, ratios: Floats, evaluations: float, decision_ms: float) -> dict[str, Any]:
    """One row of ``ratios`` (runs, samples) of rate over published optimum."""
    means = ratios.mean(1)
    return {
        "policy": name,
        "critic_evaluations": round(evaluations, 3),
        "rate_mean": float(means.mean()),
        "rate_sd": float(means.std(ddof=1)) if len(means) > 1 else None,
        "rate_p5": float(np.percentile(ratios, 5)),
        "exact_share": float((ratios >= 1 - EXACT).mean()),
        "runs": len(means),
        "decision_ms_p50": round(decision_ms, 4),
    }


def _decision_ms(decide: _Decide, gains: Floats) -> float:
    """Median milliseconds of one decision, the critic included, of one sample at a time."""
    taken = []
    for row in range(min(_TIMED, len(gains))):
        start = time.perf_counter()
        decide(gains[row : row + 1])
        taken.append(time.perf_counter() - start)
    return float(np.median(taken)) * 1e3
