"""What load generators send: real photographs' planes, coded, with the classes that the bare tail names for them."""

import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.codec import PlaneEncoder
from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.training.samples import cut_patches, write_sample_photographs
from aecnn_deploy.zoo import PREFIX, zoo_bundle
from benchmarks.photographs import split_photographs

ZOO = f"{PREFIX}caltech101-lite0"

# Logits closer than this share of the largest are a tie: a batch sums in another order than one image does.
_TIE = 1e-4

Bytes = npt.NDArray[np.uint8]


class Planned(msgspec.Struct, frozen=True):
    """One request: the INFER's coder, payload and raw size, and the classes that may be the answer's first."""

    coder_id: int
    payload: bytes
    raw_bytes: int
    classes: list[int]


class Traffic(msgspec.Struct, frozen=True):
    """What a generator process is given: the HELLO's words, the variant's index in them, and the requests in turn."""

    bundle_id: str
    variants: list[str]
    variant: int
    requests: list[Planned]

    @property
    def payload_bytes_mean(self) -> float:
        return sum(len(each.payload) for each in self.requests) / len(self.requests)


def named_bundle(name: str) -> Bundle:
    """The bundle at a path, or zoo:NAME. Raises BundleError."""
    return open_bundle(zoo_bundle(name) if name.startswith(PREFIX) else Path(name))


def photograph_frames(spec: InputSpec, data: Path | None, count: int) -> Bytes:
    """``count`` frames (N, H, W, 3) of photographs: of ``data`` those that are held out, else patches of samples.

    Raises SettingsError: ``data`` has too few.
    """
    if data is None:
        with tempfile.TemporaryDirectory() as folder:
            return cut_patches(write_sample_photographs(Path(folder)), count, spec, seed=0).frames
    held_out, _ = split_photographs(data)
    if len(held_out) < count:
        raise SettingsError(f"{data} has {len(held_out)} photographs to measure with, {count} are needed")
    return np.stack([read_frame(file, spec) for file in held_out[:count]])


def default_data() -> Path | None:
    """The photographs of $AECNN_DATA/caltech101, if they are there."""
    data = os.environ.get("AECNN_DATA")
    folder = Path(data) / "caltech101" if data else None
    return folder if folder is not None and folder.is_dir() else None


def planes_of(bundle: Bundle, variant: str, frames: Bytes, *, threads: int = 0) -> Bytes:
    """The planes (N, C, H, W) that the variant's head makes of ``frames``."""
    with OnnxRuntimeRunner(bundle.file(bundle.variant(variant).head), threads=threads) as head:
        return np.concatenate([head.infer(frame[np.newaxis]) for frame in frames])


def make_traffic(bundle: Bundle, variant: str, planes: Bytes, *, coder: str = "zstd") -> Traffic:
    """``planes`` (N, C, H, W) as requests, each with the class that the bare tail gives (two, where they tie)."""
    spec = bundle.variant(variant)
    encoder = PlaneEncoder(spec.planes, spec.bits, coder=coder)
    requests = []
    with OnnxRuntimeRunner(bundle.file(spec.tails["onnxruntime"])) as tail:
        for each in planes:
            logits = tail.infer(each[np.newaxis])[0]
            encoded = encoder.encode(each)
            requests.append(Planned(encoded.coder_id, encoded.payload, encoded.raw_bytes, classes_of(logits)))
    names = [each.id for each in bundle.manifest.variants]
    return Traffic(bundle.id, names, names.index(spec.id), requests)


def classes_of(logits: "np.ndarray[Any, Any]") -> list[int]:
    """The best class of ``logits`` (classes,), with those that tie with it."""
    best: list[int] = np.flatnonzero(logits >= logits.max() - _TIE * np.abs(logits).max()).tolist()
    return best
