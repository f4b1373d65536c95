"""Tiny bundles that keep samples, right ones or wrong ones."""

from pathlib import Path

import numpy as np
import onnxruntime

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.runtimes.samples import BundleSamples, VariantSamples, write_samples
from tests.bundles import SIZE, make_bundle, run_directly, run_full


def with_samples(folder: Path, *, change: dict[str, float] | None = None) -> Path:
    """A tiny bundle that keeps samples; ``change`` adds to the expected logits of a variant, or of "full"."""
    make_bundle(folder / "plain")
    plain = open_bundle(folder / "plain")
    frames = np.random.default_rng(5).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    change = change or {}
    variants = {}
    for spec in plain.manifest.variants:
        head = onnxruntime.InferenceSession(str(plain.file(spec.head)), providers=["CPUExecutionProvider"])
        planes = head.run(None, {"frames": frames})[0]
        logits = np.stack([run_directly(plain, frame, spec.id) for frame in frames]).astype(np.float32)
        logits[:, 0] += change.get(spec.id, 0.0)
        variants[spec.id] = VariantSamples(planes, logits)
    full = np.stack([run_full(plain, frame) for frame in frames]).astype(np.float32)
    full[:, 0] += change.get("full", 0.0)
    manifest = plain.manifest
    with BundleWriter(folder / "bundle") as writer:
        for name in manifest.files:
            writer.copy(plain.file(name), name)
        writer.commit(
            backbone=manifest.backbone,
            labels=manifest.labels,
            input_spec=manifest.input,
            full=manifest.full,
            variants=manifest.variants,
            measurements={},
            tools={},
            samples=write_samples(writer, BundleSamples(frames, full, variants)),
        )
    return folder / "bundle"
