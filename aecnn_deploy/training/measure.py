"""Accuracy and bytes of a trained network on what the wire carries, computed on the device that trains."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.codec import PlaneDecoder, PlaneEncoder
from aecnn_deploy.models.deploy import DeviceHead, EdgeTail
from aecnn_deploy.models.results import FRAMING_BYTES
from aecnn_deploy.models.split import SplitModel
from aecnn_deploy.training.images import Images

_BATCH = 64


@dataclass(frozen=True, slots=True)
class WireMeasure:
    """One split network on a set of images.

    ``correct`` bool (N,); ``payload_bytes`` int64 (N,); ``entropy_bits``: order-0, of all values; times: medians.
    """

    correct: npt.NDArray[np.bool_]
    payload_bytes: npt.NDArray[np.int64]
    entropy_bits: float
    encode_ms: float
    decode_ms: float

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def wire_bytes(self) -> float:
        """Mean bytes of a message, with its header and its WebSocket frame."""
        return float(self.payload_bytes.mean()) + FRAMING_BYTES


@torch.no_grad()
def sent_planes(model: SplitModel, spec: InputSpec, images: Images) -> npt.NDArray[np.uint8]:
    """What the device sends of ``images``: uint8 (N, C', h, w), in float32 arithmetic."""
    head = DeviceHead(model, spec).to(images.frames.device)
    with _exact():
        parts = [head(images.frames[rows]).cpu() for rows in _batches(len(images))]
    return torch.cat(parts).numpy()


@torch.no_grad()
def classify_planes(model: SplitModel, planes: npt.NDArray[np.uint8], device: torch.device) -> npt.NDArray[np.int64]:
    """The classes that the edge gives to ``planes``: int64 (N,), in float32 arithmetic."""
    tail = EdgeTail(model).to(device)
    with _exact():
        parts = [tail(torch.tensor(planes[rows], device=device)).argmax(dim=1).cpu() for rows in _batches(len(planes))]
    return torch.cat(parts).numpy()


def measure_wire(model: SplitModel, spec: InputSpec, images: Images) -> WireMeasure:
    """Head, quantisation, coder, decoder, recovery and tail on every image; what is decoded is checked."""
    planes = sent_planes(model, spec, images)
    encoder = PlaneEncoder(model.planes_shape, model.bits)
    decoder = PlaneDecoder(model.planes_shape, model.bits)
    sizes, encode_s, decode_s = [], [], []
    decoded = np.empty_like(planes)
    for index, image in enumerate(planes):
        start_s = time.perf_counter()
        message = encoder.encode(image)
        encoded_s = time.perf_counter()
        decoded[index] = decoder.decode(message.coder_id, message.payload)
        decode_s.append(time.perf_counter() - encoded_s)
        encode_s.append(encoded_s - start_s)
        sizes.append(len(message.payload))
    assert np.array_equal(decoded, planes)
    classes = classify_planes(model, decoded, images.frames.device)
    return WireMeasure(
        correct_of(classes, images),
        np.array(sizes, np.int64),
        entropy_bits(planes),
        float(np.median(encode_s) * 1e3),
        float(np.median(decode_s) * 1e3),
    )


@torch.no_grad()
def top1(model: nn.Module, images: Images) -> npt.NDArray[np.int64]:
    """Classes of ``images`` by a model that takes uint8 frames: int64 (N,), in float32 arithmetic."""
    model = model.to(images.frames.device)
    with _exact():
        parts = [model(images.frames[rows]).argmax(dim=1).cpu() for rows in _batches(len(images))]
    return torch.cat(parts).numpy()


def entropy_bits(planes: npt.NDArray[np.uint8]) -> float:
    """Order-0 entropy of all values together, bits a value."""
    counts = np.bincount(planes.reshape(-1), minlength=1).astype(np.float64)
    shares = counts[counts > 0] / planes.size
    return float(-(shares * np.log2(shares)).sum() + 0.0)


def _batches(count: int) -> tuple[slice, ...]:
    return tuple(slice(start, start + _BATCH) for start in range(0, count, _BATCH))


def _exact() -> AbstractContextManager[None]:
    """Without TF32: a GPU's convolutions as exact as a CPU's."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=False, allow_tf32=False
    )
    return flags


def correct_of(classes: npt.NDArray[np.int64], images: Images) -> npt.NDArray[np.bool_]:
    """Which of ``classes`` are the labels: bool (N,)."""
    labels: Tensor = images.labels
    return np.asarray(classes == labels.cpu().numpy())


def accuracy_of(classes: npt.NDArray[np.int64], images: Images) -> float:
    """Share of ``classes`` that are the labels."""
    return float(correct_of(classes, images).mean())
