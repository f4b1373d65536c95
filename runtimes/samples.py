"""The photographs in a bundle, with what its models should make of them: written at export, run again anywhere."""

import io
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aecnn_deploy.bundle.manifest import ENGINE_SOURCES, FP32, EngineSpec, SamplesSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.errors import AecnnError, BundleError, EngineMismatchError, VerificationError
from aecnn_deploy.runtimes.base import Array
from aecnn_deploy.runtimes.edge_runners import engine_runner
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.tensorrt_probe import usable
from aecnn_deploy.runtimes.verification import (
    REFERENCE,
    Verified,
    verify_exact_planes,
    verify_logits,
    verify_planes,
)

OK, FAILED, NOT_RUN = "ok", "failed", "not run"
_PRECISIONS = {target: precision for precision, target in ENGINE_SOURCES.items()}
_MOST_BYTES = 64 << 20  # of one array


@dataclass(frozen=True, slots=True)
class VariantSamples:
    """The fp32 head's ``planes`` uint8 (N, C', h, w); the tail's ``logits`` of them, float32 (N, classes)."""

    planes: Array
    logits: Array
    int8: Array | None = None  # the int8 head's planes, where there is one


@dataclass(frozen=True, slots=True)
class BundleSamples:
    """``frames`` uint8 (N, H, W, 3); ``full``: the unsplit model's logits float32 (N, classes)."""

    frames: Array
    full: Array
    variants: Mapping[str, VariantSamples]


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What became of one file. ``verdict``: "ok", "failed", or "not run" where this machine cannot; then ``reason``."""

    file: str
    verdict: str
    seconds: float
    verified: Verified | None = None
    reason: str | None = None


def write_samples(writer: BundleWriter, samples: BundleSamples) -> SamplesSpec:
    """Put the samples into the bundle: some hundred kilobytes, most of them the frames as PNG."""
    count, height, width, _ = samples.frames.shape
    tall = Image.fromarray(np.ascontiguousarray(samples.frames).reshape(count * height, width, 3))
    frames = "samples/frames.png"
    tall.save(writer.path(frames), "PNG", optimize=True)
    full = _write(writer, "samples/full.logits.npy", samples.full)
    planes, logits, small = {}, {}, {}
    for name, item in samples.variants.items():
        planes[name] = _write(writer, f"samples/{name}.planes.npy", item.planes)
        logits[name] = _write(writer, f"samples/{name}.logits.npy", item.logits)
        if item.int8 is not None:
            small[name] = _write(writer, f"samples/{name}.int8.planes.npy", item.int8)
    return SamplesSpec(
        frames=frames, count=count, full=full, planes=planes, logits=logits, reference=REFERENCE, int8=small
    )


def read_samples(bundle: Bundle) -> BundleSamples:
    """The bundle's samples. Raises BundleError: it has none, or they are of another kind than its models."""
    manifest, spec = bundle.manifest, bundle.manifest.samples
    if spec is None:
        raise BundleError(f"{bundle.path} keeps no samples to run; export it again, without --no-samples")
    frame = (manifest.input.height, manifest.input.width, 3)
    logits = (spec.count, len(manifest.labels))
    return BundleSamples(
        _read_frames(bundle, spec, frame),
        _read(bundle, spec.full, np.float32, logits),
        {
            variant.id: VariantSamples(
                _read(bundle, spec.planes[variant.id], np.uint8, (spec.count, *variant.planes)),
                _read(bundle, spec.logits[variant.id], np.float32, logits),
                _read(bundle, spec.int8[variant.id], np.uint8, (spec.count, *variant.planes))
                if variant.id in spec.int8
                else None,
            )
            for variant in manifest.variants
        },
    )


def verify_bundle(bundle: Bundle, begin: Callable[[str], None] = lambda file: None) -> Iterator[FileCheck]:
    """Run every model file of the bundle on its samples, on this machine; ``begin`` hears of each before it is run.

    Engines for another GPU, or without TensorRT here, are "not run". Raises BundleError: no samples.
    """
    samples = read_samples(bundle)
    manifest = bundle.manifest
    for variant in manifest.variants:
        own = samples.variants[variant.id]
        for precision, file in variant.head_files.items():
            begin(file)
            head = bundle.file(file)
            if precision == FP32:
                yield _check(file, partial(verify_planes, head, file, samples.frames, own.planes))
            elif own.int8 is not None:
                yield _check(file, partial(verify_exact_planes, head, file, samples.frames, own.int8))
            else:
                yield FileCheck(file, NOT_RUN, 0.0, reason="the bundle keeps no planes of this head; export it again")
        for target, file in variant.tails.items():
            if target not in variant.engines:
                begin(file)
                precision = _PRECISIONS.get(target, "fp16")
                runner = OnnxRuntimeRunner(bundle.file(file))
                yield _check(file, partial(verify_logits, runner, file, own.planes, own.logits, precision))
        for spec in variant.engines.values():
            begin(spec.file)
            if reason := usable(spec.product):
                yield FileCheck(spec.file, NOT_RUN, 0.0, reason=reason)
            else:
                yield _check(spec.file, partial(_verify_engine, bundle, spec, own))
    begin(manifest.full)
    full = OnnxRuntimeRunner(bundle.file(manifest.full))
    yield _check(manifest.full, partial(verify_logits, full, manifest.full, samples.frames, samples.full, "fp32"))


def _verify_engine(bundle: Bundle, spec: EngineSpec, samples: VariantSamples) -> Verified:
    return verify_logits(engine_runner(bundle, spec), spec.file, samples.planes, samples.logits, spec.precision)


def _check(file: str, verify: Callable[[], Verified]) -> FileCheck:
    began_s = time.perf_counter()
    try:
        verified = verify()
    except EngineMismatchError as exc:  # built for another GPU or release: nothing is wrong with the file
        return FileCheck(file, NOT_RUN, round(time.perf_counter() - began_s, 3), reason=str(exc))
    except VerificationError as exc:
        return FileCheck(file, FAILED, round(time.perf_counter() - began_s, 3), reason=exc.finding)
    except AecnnError as exc:
        return FileCheck(file, FAILED, round(time.perf_counter() - began_s, 3), reason=str(exc))
    return FileCheck(file, OK, verified.seconds, verified)


def _write(writer: BundleWriter, name: str, array: Array) -> str:
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(array), allow_pickle=False)
    writer.path(name).write_bytes(content.getvalue())
    return name


def _read(bundle: Bundle, name: str, dtype: Any, shape: tuple[int, ...]) -> Array:
    path = bundle.file(name)
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.nbytes <= _MOST_BYTES and (array.dtype, array.shape) == (np.dtype(dtype), shape):
            return np.array(array)
        found = f"{array.dtype} {array.shape}"
    except (OSError, ValueError, EOFError, AttributeError) as exc:
        found = f"no array ({exc})"
    raise BundleError(f"{path} holds {found}, the manifest's models give {np.dtype(dtype)} {shape}; export again")


def _read_frames(bundle: Bundle, spec: SamplesSpec, frame: tuple[int, int, int]) -> Array:
    path: Path = bundle.file(spec.frames)
    height, width, _ = frame
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.size == (width, spec.count * height) and picture.mode == "RGB":
                return np.asarray(picture).reshape(spec.count, *frame)
            found = f"a picture of {picture.size} {picture.mode}"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        found = f"no picture ({exc})"
    raise BundleError(f"{path} holds {found}, expected {spec.count} frames of {width}×{height}; export again")
