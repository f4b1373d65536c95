"""Planes and a dictionary that several modules code."""

from pathlib import Path

import numpy as np

from aecnn_deploy.codec import PlaneDictionary

# Of what the median prediction leaves of one plane of 14×14 at 8 bits; it serves any planes, some better than others.
DICTIONARY = PlaneDictionary(
    "median", bytes.fromhex((Path(__file__).parent / "vectors" / "dictionary.hex").read_text())
)


def waves(channels: int, side: int, bits: int, *, seed: int = 1, noise: float = 0.01) -> np.ndarray:
    """Smooth planes with a little noise, uint8 (C, side, side); planes of other seeds are of other waves."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side]
    shift = np.arange(channels)[:, None, None] + seed
    wave = 0.5 + 0.4 * np.sin(x / (4 + seed % 3) + shift) * np.cos(y / 7 - shift)
    noisy = wave + rng.normal(0, noise, wave.shape)
    return (noisy.clip(0, 1) * ((1 << bits) - 1)).astype(np.uint8)
