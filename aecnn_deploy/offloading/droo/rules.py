"""Rules without training: thresholds in h√w, coordinate descent, random modes."""

import numpy as np

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.droo.physics import Floats, Modes, computation_rate


def threshold_modes(gains: Floats, weights: Floats) -> Modes:
    """The N + 1 modes in which the strongest 0 to N devices by h√w offload: (…, N + 1, N)."""
    strength = gains * np.sqrt(weights)
    rank = np.argsort(np.argsort(-strength, axis=-1, kind="stable"), axis=-1)
    return np.asarray(rank[..., None, :] < np.arange(gains.shape[-1] + 1)[:, None])


def order_preserving(scores: Floats, candidates: int) -> Modes:
    """DROO's order-preserving quantiser (equations 8 and 9): (…, candidates, N) of ``scores`` (…, N).

    A score is a logit: above 0 offloads. The first candidate rounds; each other one takes the score of one device as
    its threshold, those nearest to 0 first. Raises SettingsError: candidates below 1 or over N + 1.
    """
    devices = scores.shape[-1]
    if not 1 <= candidates <= devices + 1:
        raise SettingsError(
            f"{candidates} candidates: order-preserving ones are 1 to {devices + 1} for {devices} devices"
        )
    order = np.argsort(np.abs(scores), axis=-1, kind="stable")[..., : candidates - 1]
    limit = np.take_along_axis(scores, order, axis=-1)[..., None]
    row = scores[..., None, :]
    others = np.where(limit > 0, row > limit, row >= limit)
    return np.concatenate([row > 0, others], axis=-2)


def pick(gains: Floats, weights: Floats, candidates: Modes) -> tuple[Modes, Floats]:
    """The best of the candidates (S, K, N) by K evaluations of the critic: modes (S, N) and rates (S,)."""
    rates = computation_rate(gains[:, None], candidates, weights)
    best = rates.argmax(1)
    rows = np.arange(len(gains))
    return candidates[rows, best], rates[rows, best]


def random_modes(rng: np.random.Generator, samples: int, candidates: int, devices: int) -> Modes:
    """Modes of fair coins, (samples, candidates, devices)."""
    return rng.random((samples, candidates, devices)) < 0.5


def coordinate_descent(gains: Floats, weights: Floats, start: Modes) -> tuple[Modes, Floats, Floats]:
    """Bi and Zhang's CD (IEEE TWC 2018): of all modes that differ in one device the best, until none is better.

    ``gains``, ``start`` (S, N). Returns modes (S, N), rates (S,) and evaluations of the critic (S,).
    """
    samples, devices = gains.shape
    modes, rates = start.copy(), computation_rate(gains, start, weights)
    evaluations = np.ones(samples)
    flips = np.eye(devices, dtype=np.bool_)
    active = np.arange(samples)
    while active.size:
        neighbours = modes[active, None] ^ flips
        found, value = pick(gains[active], weights, neighbours)
        evaluations[active] += devices
        better = value > rates[active]
        active, found, value = active[better], found[better], value[better]
        modes[active], rates[active] = found, value
    return modes, rates, evaluations
