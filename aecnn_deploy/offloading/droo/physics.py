"""The weighted sum computation rate of wireless powered devices that each compute or offload all of a frame's bits.

Huang, Bi, Zhang, "Deep Reinforcement Learning for Online Offloading in Wireless Powered Mobile-Edge Computing
Networks", IEEE TMC 2019 (arXiv 1808.01977), problem (P2): for given channel gains h, weights w and modes x, over the
share a of a frame in which energy is sent and the shares τ_j in which offloading devices send,

    maximise  Σ_local w_i η₁ (h_i/k)^⅓ a^⅓  +  Σ_offloading w_j ε τ_j ln(1 + η₂ h_j² a / τ_j),   a + Σ τ_j ≤ 1.

The published solution bisects the multiplier v of the time constraint and takes Lambert's W at each step. The same root
is found here by Newton's method in ln v, where the equation is nearly a straight line, and W by Halley's method on

    t − 1 + e^−t = v / (w ε),      t = ln(1 + η₂ h_j² a / τ_j),      W(−e^(−1−v/(wε))) = −e^−t.

t depends on a device by its weight alone: devices of one weight are one term.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from aecnn_deploy.errors import SettingsError

Floats = npt.NDArray[np.float64]
Modes = npt.NDArray[np.bool_]  # true: the device offloads

# The published setting (section VI; names as in the paper where it names them).
TRANSMIT_W: Final = 3.0  # P, of the station that sends energy
HARVEST_SHARE: Final = 0.7  # µ
CYCLES_PER_BIT: Final = 100.0  # φ
SWITCHED_CAPACITANCE: Final = 1e-26  # k of a device's processor
NOISE_W: Final = 1e-10  # N₀
BANDWIDTH_HZ: Final = 2e6  # B
OVERHEAD: Final = 1.1  # v_u: bits sent for one bit of the task

LOCAL_FACTOR: Final = (HARVEST_SHARE * TRANSMIT_W) ** (1 / 3) / CYCLES_PER_BIT  # η₁
SNR_FACTOR: Final = HARVEST_SHARE * TRANSMIT_W / NOISE_W  # η₂
RATE_FACTOR: Final = BANDWIDTH_HZ / (OVERHEAD * math.log(2))  # ε, bits a second

_NEWTON_STEPS: Final = 30  # never needed: 4 to 6 are
_TOLERANCE: Final = 1e-9  # of ln v; the rate's own error is its square


def alternating_weights(devices: int, *, reverse: bool = False) -> Floats:
    """The published weights, (N,): 1, 1.5, 1, 1.5, …; ``reverse``: 1.5, 1, 1.5, …"""
    odd = np.arange(devices) % 2 == (0 if reverse else 1)
    return np.where(odd, 1.5, 1.0)


def local_terms(gains: Floats) -> Floats:
    """η₁ (h/k)^⅓ / ε of each gain: what a device computes itself at a = 1, weight 1, in units of ε."""
    return np.asarray(LOCAL_FACTOR / RATE_FACTOR * np.cbrt(gains / SWITCHED_CAPACITANCE))


def snr_terms(gains: Floats) -> Floats:
    """η₂ h² of each gain."""
    return np.asarray(SNR_FACTOR * np.square(gains))


def computation_rate(gains: Floats, modes: npt.ArrayLike, weights: Floats) -> Floats:
    """Bits a second, weighted, of each pair of gains (…, N) and modes (…, N): the critic, for any batch.

    ``gains``, ``modes`` and ``weights`` broadcast against each other, N last; ``modes`` is true where a device
    offloads. Equal to the optimum of (P2) to about 1e-12. Raises SettingsError: no devices, or shapes that do not fit.
    """
    offloads = np.asarray(modes, np.bool_)
    try:
        shape = np.broadcast_shapes(gains.shape, offloads.shape, weights.shape)
    except ValueError as exc:
        raise SettingsError(
            f"gains {gains.shape}, modes {offloads.shape} and weights {weights.shape} do not fit: "
            "the last axis of each is the devices"
        ) from exc
    if not shape or shape[-1] == 0:
        raise SettingsError("a rate needs at least one device on the last axis of gains and modes")
    local = np.where(offloads, 0.0, local_terms(gains) * weights).sum(-1).reshape(-1)
    snr = np.where(offloads, snr_terms(gains), 0.0)
    if weights.ndim == 1:
        kinds, group = np.unique(np.broadcast_to(weights, shape[-1:]), return_inverse=True)
        snr = snr.reshape(-1, shape[-1]) @ (group[:, None] == np.arange(kinds.size)).astype(np.float64)
        return rate_of_sums(local, snr, kinds).reshape(shape[:-1])
    spread = np.broadcast_to(weights, shape).reshape(-1, shape[-1])
    return rate_of_sums(local, np.broadcast_to(snr, shape).reshape(-1, shape[-1]), spread).reshape(shape[:-1])


def rate_of_sums(local: Floats, snr: Floats, weights: Floats) -> Floats:
    """Bits a second, (B,), where ``local`` (B,) sums :func:`local_terms` times weight over those that compute, and
    ``snr`` (B, G) sums :func:`snr_terms` over those that offload with weight ``weights`` (G,) or (B, G).
    """
    _, t = multiplier(local, snr, weights)
    shares = snr * np.exp(-t) / -np.expm1(-t)  # τ / a
    a = 1 / (1 + shares.sum(-1))
    return np.asarray(RATE_FACTOR * (local * np.cbrt(a) + a * (weights * shares * t).sum(-1)))


def multiplier(local: Floats, snr: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """The multiplier v / ε, (B,), at which a + Σ τ = 1, and t = ln(1 + SNR) of each weight, (B, G).

    The root of ln G(v) − ln v, G(v) = ⅓ local a(v)^−⅔ + Σ w η₂h² e^−t, which falls: by Newton's method, and by halving
    between the nearest values above and below it where that would leave them.
    """
    alone = weights * np.log1p(snr)  # what offloading in a whole frame with energy of a whole frame would give
    high = np.log(local + alone.sum(-1))
    low = np.log(np.maximum(local / 3, alone.max(-1) / 2))
    x = np.clip(np.log(local / 3 + 0.6 * alone.sum(-1)), low, high)
    for _ in range(_NEWTON_STEPS):
        y = np.exp(x)
        u = y[:, None] / weights
        t = log_one_plus_snr(u)
        q, d = np.exp(-t), -np.expm1(-t)  # 1/(1 + SNR), SNR/(1 + SNR): neither overflows
        shares = snr * q / d
        inverse_a = 1 + shares.sum(-1)
        first = local / 3 * np.cbrt(inverse_a * inverse_a)
        terms = weights * snr * q
        value = first + terms.sum(-1)
        dt = u / d  # dt / d ln v
        d_inverse = -(shares / d * dt).sum(-1)
        slope = (first * (2 / 3) * d_inverse / inverse_a - (terms * dt).sum(-1)) / value - 1
        gap = np.log(value) - x
        low, high = np.where(gap > 0, x, low), np.where(gap > 0, high, x)
        following = x - gap / slope
        inside = (low <= following) & (following <= high)
        step = np.where(inside, following, (low + high) / 2) - x
        x = x + step
        if np.abs(step).max(initial=0.0) < _TOLERANCE:
            break
    y = np.exp(x)
    return y, log_one_plus_snr(y[:, None] / weights)


def log_one_plus_snr(u: Floats) -> Floats:
    """The positive t with t − 1 + e^−t = ``u`` (positive): −ln of −W(−e^(−1−u)), by two of Halley's steps."""
    root = np.sqrt(2 * u)
    t = np.where(u < 1.5, root * (1 + root * (1 / 6 + root * (1 / 36 - root / 270))), u + 1 - np.exp(-1 - u))
    for _ in range(2):
        e = np.expm1(-t)  # e^−t − 1
        f = t + e - u
        t = t + 2 * f * e / (2 * e * e - f * (1 + e))
    return np.asarray(t)
