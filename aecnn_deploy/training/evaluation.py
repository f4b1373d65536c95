"""What a split network is worth: measured on what the wire carries, in float32, with the exported arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from aecnn_deploy.codec import PlaneEncoder
from aecnn_deploy.models.deploy import DeviceHead, EdgeTail, FullModel
from aecnn_deploy.models.stepped import FusedHead
from aecnn_deploy.training.photographs import Frames

_BATCH = 25


@dataclass(frozen=True, slots=True)
class SplitOutcome:
    """One variant on a set of photographs: ``top1`` int64 (N,), ``payload_bytes`` int64 (N,)."""

    top1: npt.NDArray[np.int64]
    payload_bytes: npt.NDArray[np.int64]


@torch.no_grad()
def full_top1(model: FullModel, frames: Frames, *, on_step: Callable[[], None] = lambda: None) -> npt.NDArray[np.int64]:
    """The unsplit model's classes for ``frames`` (N, H, W, 3): int64 (N,)."""
    parts = []
    for start in range(0, len(frames), _BATCH):
        parts.append(model(torch.from_numpy(frames[start : start + _BATCH])).argmax(dim=1).numpy())
        on_step()
    return np.concatenate(parts)


@torch.no_grad()
def run_split(
    head: DeviceHead | FusedHead,
    tail: EdgeTail,
    bits: int,
    frames: Frames,
    *,
    on_step: Callable[[], None] = lambda: None,
) -> SplitOutcome:
    """Head, codec and tail in torch, with the same quantisation as the exported files."""
    classes, sizes = [], []
    encoder: PlaneEncoder | None = None
    for start in range(0, len(frames), _BATCH):
        planes = head(torch.from_numpy(frames[start : start + _BATCH]))
        classes.append(tail(planes).argmax(dim=1).numpy())
        encoder = encoder or PlaneEncoder(tuple(planes.shape[1:]), bits)
        sizes += [len(encoder.encode(image).payload) for image in planes.numpy()]
        on_step()
    return SplitOutcome(np.concatenate(classes), np.array(sizes, np.int64))


def agreement(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> float:
    """Share of images on which two classifiers name the same class."""
    return float((a == b).mean())
