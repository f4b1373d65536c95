"""The proven optimum over all 2^N modes: every mode is bounded, those that may win are evaluated."""

from typing import Final

import numpy as np

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.droo.physics import (
    RATE_FACTOR,
    Floats,
    Modes,
    computation_rate,
    local_terms,
    log_one_plus_snr,
    multiplier,
    snr_terms,
)
from aecnn_deploy.offloading.droo.rules import threshold_modes

MOST_ENUMERATED: Final = 14  # devices
_CELLS: Final = 1 << 20  # samples × modes at a time


def all_modes(devices: int) -> Modes:
    """Every mode of ``devices``, (2^N, N). Raises SettingsError: more than 14 devices."""
    if not 1 <= devices <= MOST_ENUMERATED:
        raise SettingsError(
            f"enumeration is over 2^N modes, for 1 to {MOST_ENUMERATED} devices; got {devices}: "
            "compare with the file's own optimum"
        )
    return (np.arange(1 << devices)[:, None] >> np.arange(devices) & 1).astype(np.bool_)


def best_modes(gains: Floats, weights: Floats) -> tuple[Modes, Floats]:
    """A mode of the greatest rate for each sample, (S, N), and that rate, (S,), bits a second.

    ``gains`` (S, N), ``weights`` (N,). A mode is evaluated unless its Lagrangian bound at the multiplier of the best
    threshold mode lies below that mode's rate: for every v, by weak duality,
    rate ≤ v + max over a of [local a^⅓ − a (v − Σ_offloading w η₂h² e^−t(v))], in units of ε.
    Raises SettingsError: more devices than are enumerated.
    """
    modes = all_modes(gains.shape[1])
    step = max(1, _CELLS // len(modes))
    parts = [_best(gains[i : i + step], weights, modes) for i in range(0, len(gains), step)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _best(gains: Floats, weights: Floats, modes: Modes) -> tuple[Modes, Floats]:
    thresholds = threshold_modes(gains, weights)
    rates = computation_rate(gains[:, None], thresholds, weights)
    rows = np.arange(len(gains))
    start = thresholds[rows, rates.argmax(1)]
    floor = rates.max(1)
    local, snr = local_terms(gains) * weights, snr_terms(gains)
    v, _ = multiplier((local * ~start).sum(1), np.where(start, snr, 0.0), weights)
    offloaded = weights * snr * np.exp(-log_one_plus_snr(v[:, None] / weights))
    chosen = modes.astype(np.float64)
    own = local @ (1 - chosen.T)
    price = v[:, None] - offloaded @ chosen.T  # of a, energy's share of the frame
    with np.errstate(divide="ignore", over="ignore"):
        root = np.where(price > 0, np.minimum(np.sqrt(own / (3 * np.maximum(price, 1e-300))), 1.0), 1.0)  # a^⅓
    bound = RATE_FACTOR * (v[:, None] + own * root - price * root**3)
    sample, mode = np.nonzero(bound >= floor[:, None] * (1 - 1e-9))
    found = computation_rate(gains[sample], modes[mode], weights)
    # The best of each sample: the last of its run when sorted by sample, then rate.
    order = np.lexsort((found, sample))
    ends = order[np.flatnonzero(np.diff(np.append(sample[order], -1)))]
    best, best_rates = start.copy(), floor.copy()
    better = found[ends] > floor[sample[ends]]
    taken = ends[better]
    best[sample[taken]], best_rates[sample[taken]] = modes[mode[taken]], found[taken]
    return best, best_rates
