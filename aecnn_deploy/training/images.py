"""Decoded photographs on the device that trains, and random views of them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.models.deploy import Normalise

Augment = Literal["none", "flip", "crop"]

_SMALLEST_CROP = 0.5  # of the area
_ASPECT = 0.25  # the sides of a crop differ by at most exp(±this)
_LIGHT = 0.2  # contrast and brightness change by at most this share


@dataclass(frozen=True, slots=True)
class Images:
    """``frames`` uint8 (N, H, W, 3) and ``labels`` int64 (N,), both on the device that trains."""

    frames: Tensor
    labels: Tensor

    @classmethod
    def of(cls, frames: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], device: torch.device) -> "Images":
        """A copy on ``device``."""
        return cls(torch.tensor(frames, device=device), torch.tensor(labels, device=device))

    def __len__(self) -> int:
        return len(self.labels)


class Views:
    """Network inputs made from frames: normalised float (N, 3, H, W), channels last, randomly changed.

    ``flip``: half of them mirrored. ``crop``: also a random rectangle of half the area or more, and other light.
    """

    def __init__(self, spec: InputSpec, mode: Augment, device: torch.device) -> None:
        self.mode, self.device = mode, device
        self._normalise = Normalise(spec).to(device)
        self._mean = torch.tensor(spec.mean, device=device)[:, None, None]
        self._deviation = torch.tensor(spec.std, device=device)[:, None, None]

    def plain(self, frames: Tensor) -> Tensor:
        """The frames as they are."""
        x: Tensor = self._normalise(frames)
        return x.contiguous(memory_format=torch.channels_last)

    def picture(self, x: Tensor) -> Tensor:
        """The reverse of ``plain``, but for the order of the axes: uint8 (N, 3, H, W)."""
        return (x * self._deviation + self._mean).round().clamp(0, 255).to(torch.uint8)

    def random(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """One random view of each frame; ``generator`` lives on the CPU, so that every device draws the same."""
        x: Tensor = self._normalise(frames)
        if self.mode == "crop":
            x = self._crop(x, generator)
        elif self.mode == "flip":
            mirrored = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(mirrored.to(self.device)[:, None, None, None], x.flip(3), x)
        return x.contiguous(memory_format=torch.channels_last)

    def _crop(self, x: Tensor, generator: torch.Generator) -> Tensor:
        draw = torch.rand(7, len(x), generator=generator)
        side = torch.sqrt(_SMALLEST_CROP + (1 - _SMALLEST_CROP) * draw[0])
        stretch = torch.exp(_ASPECT * (draw[1] - 0.5))
        width, height = (side * stretch).clamp_max(1), (side / stretch).clamp_max(1)
        theta = torch.zeros(len(x), 2, 3)
        theta[:, 0, 0] = torch.where(draw[4] < 0.5, width, -width)
        theta[:, 1, 1] = height
        theta[:, 0, 2] = (1 - width) * (2 * draw[2] - 1)
        theta[:, 1, 2] = (1 - height) * (2 * draw[3] - 1)
        grid = F.affine_grid(theta.to(self.device), list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        light = (1 + _LIGHT * (2 * draw[5:] - 1)).to(self.device)
        return x * light[0][:, None, None, None] + (light[1] - 1)[:, None, None, None]
