"""Training of the set policy: replay and cross-entropy on the best mode that the critic finds, and on nothing else.

At each step new gains are drawn, the actor proposes its N + 1 order-preserving modes, the critic picks the best and
then tries each mode that differs from it in one device, as long as that finds a better one. What is left is the label;
what the last tries lost is what a wrong bit costs, and weighs the cross-entropy: a device whose mode does not matter
teaches nothing. No published optimum takes part, and no enumeration.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.droo.physics import Floats, Modes, alternating_weights, computation_rate
from aecnn_deploy.offloading.droo.rules import order_preserving, pick
from aecnn_deploy.offloading.droo.samples import draw_gains, mean_gains
from aecnn_deploy.offloading.droo.set_policy import SetPolicy, node_terms, round_scores, shapes

# gains (S, N) and weights (N,) of one step
Source = Callable[[np.random.Generator], tuple[Floats, Floats]]

_COST_SCALE: Final = 50.0  # a wrong bit that costs 2 % of the rate weighs as much as plain cross-entropy
_TRIES: Final = 3  # rounds of one-device changes


@dataclass(frozen=True)
class SetTraining:
    """How a set policy is trained. Raises SettingsError: a size or a rate below what works."""

    steps: int = 2000
    samples_per_step: int = 256  # new ones
    replayed_steps: int = 3  # batches from memory that each step trains on beside the new one
    memory_steps: int = 200
    learning_rate: float = 4e-3  # at first; it falls to 0 along a cosine
    rounds: int = 3
    hidden: int = 48
    seed: int = 1

    def __post_init__(self) -> None:
        whole = (self.steps, self.samples_per_step, self.memory_steps, self.rounds, self.hidden)
        if min(whole) < 1 or self.replayed_steps < 0 or not 0 < self.learning_rate < 1:
            raise SettingsError(f"{self}: sizes must be at least 1, the learning rate between 0 and 1")


def generated_source(samples: int) -> Source:
    """Gains of 4 to 14 devices at rows of distances around the published ones, half of them with its weights."""

    def draw(rng: np.random.Generator) -> tuple[Floats, Floats]:
        devices = int(rng.integers(4, 15))
        published = rng.random() < 0.5
        first_m, step_m = (2.5, 0.3) if published else (rng.uniform(2.0, 3.5), rng.uniform(0.0, 0.5))
        gains = draw_gains(rng, samples, mean_gains(devices, first_m=first_m, step_m=step_m))
        if rng.random() < 0.6:
            return gains, alternating_weights(devices, reverse=rng.random() < 0.5)
        return gains, np.exp(rng.uniform(-0.5, 0.5, devices) * rng.random())

    return draw


def recorded_source(gains: Floats, weights: Floats, samples: int) -> Source:
    """Draws from ``gains`` (S, N), such as a file's first 80 %."""

    def draw(rng: np.random.Generator) -> tuple[Floats, Floats]:
        return gains[rng.integers(0, len(gains), samples)], weights

    return draw


def train_set_policy(
    source: Source,
    settings: SetTraining,
    *,
    about: Mapping[str, Any] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> SetPolicy:
    """A policy trained on ``source``; its ``training`` tells the settings, ``about`` and the critic's evaluations."""
    rng = np.random.default_rng([settings.seed, 0x5E7])
    parameters = _initial(settings, rng)
    optimiser = torch.optim.Adam(list(parameters.values()), lr=settings.learning_rate)
    memory: deque[dict[str, Any]] = deque(maxlen=settings.memory_steps)
    evaluations = 0
    for step in range(settings.steps):
        gains, weights = source(rng)
        terms = {name: torch.from_numpy(values) for name, values in node_terms(gains, weights).items()}
        with torch.no_grad():
            scores = round_scores(torch, parameters, settings.rounds, terms)[-1].numpy()
        label, cost, spent = _judge(gains, weights, scores)
        evaluations += spent
        new = {"terms": terms, "label": torch.from_numpy(label.astype(np.float64)), "cost": torch.from_numpy(cost)}
        memory.append(new)
        replayed = rng.integers(0, len(memory), settings.replayed_steps)
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * (1 + math.cos(math.pi * step / settings.steps)) / 2
        for batch in (new, *(memory[i] for i in replayed)):
            optimiser.zero_grad()
            torch.autograd.backward(_loss(parameters, settings.rounds, batch))
            optimiser.step()
        on_step()
    told = {**asdict(settings), "critic_evaluations": evaluations, **(about or {})}
    return SetPolicy(
        settings.rounds, settings.hidden, {name: p.detach().numpy() for name, p in parameters.items()}, told
    )


def _initial(settings: SetTraining, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """He's initial weights, zero biases; the last layer small, so that the first scores are near 0."""
    found = {}
    for name, shape in shapes(settings.rounds, settings.hidden).items():
        spread = 0.0 if name.endswith("bias") else math.sqrt(2 / shape[0]) * (0.1 if ".out." in name else 1.0)
        found[name] = torch.tensor(rng.normal(0, 1, shape) * spread, requires_grad=True)
    return found


def _judge(gains: Floats, weights: Floats, scores: Floats) -> tuple[Modes, Floats, int]:
    """The best mode found for each sample, what each device's wrong bit costs as a share of the rate, evaluations."""
    samples, devices = gains.shape
    modes, rates = pick(gains, weights, order_preserving(scores, devices + 1))
    evaluations = samples * (devices + 1)
    flips = np.eye(devices, dtype=np.bool_)
    cost = np.zeros_like(gains)
    active = np.arange(samples)
    for left in reversed(range(_TRIES)):
        neighbours = modes[active, None] ^ flips
        found = computation_rate(gains[active, None], neighbours, weights)
        evaluations += found.size
        cost[active] = 1 - found / rates[active, None]
        best = found.argmax(1)
        better = found.max(1) > rates[active]
        if not left or not better.any():
            break
        chosen = active[better]
        modes[chosen], rates[chosen] = neighbours[better, best[better]], found.max(1)[better]
        active = chosen
    return modes, np.maximum(cost, 0.0), evaluations


def _loss(parameters: Mapping[str, torch.Tensor], rounds: int, batch: Mapping[str, Any]) -> torch.Tensor:
    """Cross-entropy of every round's scores, each device weighed by what its wrong mode costs."""
    scores = round_scores(torch, parameters, rounds, batch["terms"])
    losses = [
        torch.nn.functional.binary_cross_entropy_with_logits(each, batch["label"], weight=batch["cost"] * _COST_SCALE)
        for each in scores
    ]
    return torch.stack(losses).mean()
