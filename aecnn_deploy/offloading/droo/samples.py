"""Samples of DROO's channel model: gains of N devices in one frame, and the best rate that any mode reaches."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.droo.exact import best_modes
from aecnn_deploy.offloading.droo.physics import Floats, Modes, alternating_weights

ANTENNA_GAIN: Final = 3.0
CARRIER_HZ: Final = 915e6
LIGHT_M_S: Final = 3e8
PATH_LOSS_EXPONENT: Final = 2.8
FIRST_M: Final = 2.5  # distance of the first device
STEP_M: Final = 0.3  # from one to the next
TRAINING_SHARE: Final = 0.8
LEAST_SAMPLES: Final = 5  # below, the last fifth is empty
MOST_DEVICES: Final = 1024


@dataclass(frozen=True)
class Samples:
    """``gains`` (S, N), positive; ``weights`` (N,); ``optimum`` (S,), bits a second; ``modes`` (S, N) that reach it.

    Raises SettingsError: shapes that do not fit, fewer than five samples, values that are not finite and positive.
    """

    gains: Floats
    weights: Floats
    optimum: Floats
    modes: Modes | None = None
    source: str = "generated"

    def __post_init__(self) -> None:
        samples, devices = self.gains.shape if self.gains.ndim == 2 else (0, 0)
        if samples < LEAST_SAMPLES or not 1 <= devices <= MOST_DEVICES:
            raise SettingsError(
                f"{self.source}: gains have the shape {self.gains.shape}; needed are at least {LEAST_SAMPLES} samples "
                f"of 1 to {MOST_DEVICES} devices, of which the last fifth is tested"
            )
        modes = self.gains if self.modes is None else self.modes
        if self.weights.shape != (devices,) or self.optimum.shape != (samples,) or modes.shape != (samples, devices):
            raise SettingsError(
                f"{self.source}: {samples} samples of {devices} devices, but weights {self.weights.shape}, optimum "
                f"{self.optimum.shape} and modes {modes.shape}"
            )
        for name in ("gains", "weights", "optimum"):
            values = getattr(self, name)
            if not (np.isfinite(values).all() and (values > 0).all()):
                raise SettingsError(f"{self.source}: {name} hold a value that is not finite and positive")

    def __len__(self) -> int:
        return len(self.gains)

    @property
    def devices(self) -> int:
        return int(self.gains.shape[1])

    @property
    def first_test(self) -> int:
        """Where the last 20 % begin: nothing trained sees what lies there."""
        return int(TRAINING_SHARE * len(self))

    @property
    def training_gains(self) -> Floats:
        return self.gains[: self.first_test]

    @property
    def test_gains(self) -> Floats:
        return self.gains[self.first_test :]

    @property
    def test_optimum(self) -> Floats:
        return self.optimum[self.first_test :]


def mean_gains(devices: int, *, first_m: float = FIRST_M, step_m: float = STEP_M) -> Floats:
    """Mean channel gain of each device, (N,): A (c / (4π f d_i))^2.8, d_i = 2.5 + 0.3 (i − 1) metres."""
    distance = first_m + step_m * np.arange(devices)
    return np.asarray(ANTENNA_GAIN * (LIGHT_M_S / (4 * np.pi * CARRIER_HZ * distance)) ** PATH_LOSS_EXPONENT)


def draw_gains(rng: np.random.Generator, samples: int, means: Floats) -> Floats:
    """Gains under Rayleigh fading, (samples, N): the means times Exp(1). Raises SettingsError: a size below 1."""
    if samples < 1 or means.size < 1:
        raise SettingsError(f"{samples} samples of {means.size} devices: both must be at least 1")
    # Never zero, as a draw in floating point may be: such a device would have no rate in either mode.
    return np.asarray(np.maximum(rng.exponential(size=(samples, means.size)), 1e-12) * means)


def generate_samples(samples: int, devices: int, *, seed: int, weights: Floats | None = None) -> Samples:
    """Samples as those of the published files, each with its proven optimum.

    ``weights``: (N,), default 1, 1.5, 1, …. Raises SettingsError: sizes below 1, or more devices than are enumerated.
    """
    if weights is None:
        weights = alternating_weights(max(devices, 0))
    gains = draw_gains(np.random.default_rng(seed), samples, mean_gains(max(devices, 0)))
    modes, optimum = best_modes(gains, weights)
    return Samples(gains, weights, optimum, modes)
