"""A run in small: real torch modules of a few hundred weights on real photographs, which export in a second."""

import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor, nn

from aecnn_deploy.bundle.manifest import InputSpec, Manifest
from aecnn_deploy.exporters.export import export_run

SMALL_INPUT = InputSpec(16, 16, 16, "bicubic", (0.0, 0.0, 0.0), (128.0, 128.0, 128.0))
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


def photographs(size: int) -> np.ndarray[Any, Any]:
    """Five real photographs, uint8 (5, size, size, 3)."""
    folder, frames = Path(skimage.data.__file__).parent, []
    for name in PHOTOGRAPHS:
        with Image.open(folder / name) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side))
            frames.append(np.asarray(square.resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(frames)


class Head(nn.Module):
    """A small head: uint8 (N, 16, 16, 3) -> uint8 planes (N, 4, 8, 8). ``shift`` is added by the exported graph only,
    as if the exporter had got it wrong."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shift = shift
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)
        self.act = nn.ReLU6(inplace=True)
        self.eval().requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(frames.permute(0, 3, 1, 2).float() / 128)))
        x = torch.round(x * 40)
        if torch.compiler.is_exporting():
            x = x + self.shift
        return torch.clamp(x, 0, 255).to(torch.uint8)


class Tail(nn.Module):
    """A small tail: uint8 planes (N, 4, 8, 8) -> float32 logits (N, 3); ``scale`` multiplies in the exported graph."""

    def __init__(self, scale: float = 1.0, *, half: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.scale = scale
        self.net = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        )
        self.eval().requires_grad_(False)
        if half:
            self.half()

    def forward(self, planes: Tensor) -> Tensor:
        logits: Tensor = self.net(planes.to(self.net[0].weight.dtype) * (1 / 64)).float()
        return logits * self.scale if torch.compiler.is_exporting() else logits


class Full(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = Head(), Tail()

    def forward(self, frames: Tensor) -> Tensor:
        logits: Tensor = self.tail(self.head(frames))
        return logits


@dataclass
class SmallVariant:
    """Signature of a TrainedVariant, over the small modules."""

    shift: float = 0.0
    scale: float = 1.0
    id: str = "small-l1-v1-u8"
    split: int = 1
    split_name: str = "conv"
    ratio: int = 1
    bits: int = 8
    planes: tuple[int, int, int] = (4, 8, 8)
    head_macs: int = 6912
    full_macs: int = 25368
    accuracy: float | None = None
    agreement: float | None = 1.0

    def head(self, *, fold: bool = True) -> nn.Module:
        return Head(self.shift)

    def tail(self, *, half: bool = False, fold: bool = True) -> nn.Module:
        return Tail(self.scale, half=half)


@dataclass
class SmallRun:
    """Signature of a Run."""

    variants: tuple[SmallVariant, ...] = (SmallVariant(),)
    frames: np.ndarray[Any, Any] = field(default_factory=lambda: photographs(16))
    path: Path = Path("small-run")
    backbone_name: str = "small"
    labels: tuple[str, ...] = ("cat", "coffee", "rocket")
    measurements: dict[str, Any] = field(default_factory=lambda: {"agreement": {"small-l1-v1-u8": 1.0}})
    input: InputSpec = SMALL_INPUT

    def full(self, *, fold: bool = True) -> nn.Module:
        return Full()


def export_small(run: SmallRun, out: Path, **options: Any) -> Manifest:
    return export_run(run, out, **options)  # type: ignore[arg-type]


@cache
def usual_small(**options: Any) -> Path:
    """The small run's bundle as ``options`` make it, exported once for all tests of this process: not to be changed."""
    out = Path(_folder().name) / str(len(list(Path(_folder().name).iterdir())))
    export_small(SmallRun(), out, **options)
    return out


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="aecnn-small-")  # removed with its last reference, as the process ends
