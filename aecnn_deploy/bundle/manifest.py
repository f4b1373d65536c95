"""The manifest: what a bundle holds. ``docs/bundle-format.md`` describes the same in words."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import msgspec

FORMAT = 1
MANIFEST = "manifest.json"

ONNXRUNTIME = "onnxruntime"  # the target that every tail has
ONNX_FP16 = "onnx-fp16"  # the target that fp16 engines are built from
ONNX_INT8 = "onnx-int8"  # the same of int8 engines
FP32, INT8 = "fp32", "int8"  # the precisions of heads

# an engine's precision -> the target that it is built from; in the order in which an edge prefers them
ENGINE_SOURCES: Mapping[str, str] = MappingProxyType({"fp16": ONNX_FP16, "int8": ONNX_INT8, "fp32": ONNXRUNTIME})


class InputSpec(msgspec.Struct, frozen=True):
    """How a photograph becomes the head's input: uint8 RGB, NHWC."""

    height: int
    width: int
    resize_short: int  # pixels of the shorter side before the centre crop
    interpolation: str  # "bicubic" or "bilinear"
    mean: tuple[float, float, float]  # of 0..255 values; inside the ONNX files, here for information
    std: tuple[float, float, float]


class EngineSpec(msgspec.Struct, frozen=True):
    """What a TensorRT engine is bound to; checked before it is loaded."""

    file: str
    product: str  # "tensorrt" or "tensorrt-rtx"
    version: str
    architectures: tuple[str, ...]  # e.g. ("sm75",)
    precision: str  # a key of ENGINE_SOURCES
    batch: tuple[int, int, int]  # minimum, optimum, maximum of the optimisation profile


class CodingSpec(msgspec.Struct, frozen=True):
    """What calibration found best for a variant's planes."""

    predictor: str | None = None  # whose residuals zstd makes the smallest; None: not measured
    dictionary: str | None = None  # file of a zstd dictionary of what the predictor leaves; None: it saves nothing


class VariantSpec(msgspec.Struct, frozen=True):
    """One way to split the backbone: split point, ratio, bits."""

    id: str
    split: int
    split_name: str
    ratio: int
    bits: int
    planes: tuple[int, int, int]  # C', H, W
    head: str  # the file that devices run which have timed none
    head_macs: int  # multiply-adds of one image in the pruned head
    full_macs: int  # multiply-adds of one image in the unsplit model
    tails: dict[str, str]  # target -> file; the target "onnxruntime" is always there
    engines: dict[str, EngineSpec] = {}
    accuracy: float | None = None  # top-1 against labels
    agreement: float | None = None  # top-1 agreement with the unsplit model
    coding: CodingSpec | None = None  # None: never calibrated
    heads: dict[str, str] = {}  # precision -> file; empty: ``head`` alone, in fp32

    @property
    def head_files(self) -> dict[str, str]:
        """Precision -> file of each head."""
        return self.heads or {FP32: self.head}

    @property
    def plane_bytes(self) -> int:
        channels, height, width = self.planes
        return channels * height * width


class FileEntry(msgspec.Struct, frozen=True):
    sha256: str
    bytes: int


class SamplesSpec(msgspec.Struct, frozen=True):
    """Photographs and what the models should make of them: how a bundle is verified on another machine."""

    frames: str  # a PNG of all photographs, one below the other
    count: int
    full: str  # .npy of logits
    planes: dict[str, str]  # variant -> .npy of planes
    logits: dict[str, str]  # variant -> .npy of logits, from these planes
    reference: str  # what computed them
    int8: dict[str, str] = {}  # variant -> .npy of the int8 head's planes, the same to the bit on every processor


class Manifest(msgspec.Struct, frozen=True):
    """All that stands in ``manifest.json``; ``bundle_id`` is the SHA-256 of everything else in it."""

    format: int
    bundle_id: str
    backbone: str
    labels: tuple[str, ...]
    input: InputSpec
    full: str
    variants: tuple[VariantSpec, ...]
    files: dict[str, FileEntry]
    measurements: dict[str, Any] = {}
    tools: dict[str, str] = {}
    samples: SamplesSpec | None = None

    def variant(self, name: str) -> VariantSpec:
        """The variant of this id. Raises KeyError: there is none."""
        for spec in self.variants:
            if spec.id == name:
                return spec
        raise KeyError(name)


def is_inside(name: str) -> bool:
    """Whether ``name`` may be a bundle's file: a relative POSIX path in its shortest form that leads nowhere else."""
    pure = PurePosixPath(name)
    return (
        name.isprintable()
        and "\\" not in name
        and not pure.is_absolute()
        and bool(pure.parts)
        and ".." not in pure.parts
        and str(pure) == name
    )


def canonical(document: dict[str, Any]) -> bytes:
    """The one byte string that stands for ``document``: a manifest file holds exactly this.

    Raises ValueError: a number that is not finite, or half a surrogate pair, for which JSON has no bytes.
    """
    return (json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def bundle_id(document: dict[str, Any]) -> str:
    """SHA-256, in hex, of the canonical manifest without its ``bundle_id``."""
    rest = {key: value for key, value in document.items() if key != "bundle_id"}
    return hashlib.sha256(canonical(rest)).hexdigest()
