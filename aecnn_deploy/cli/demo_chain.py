"""The whole chain on one machine: train, export, serve, run. What ``aecnn-deploy demo`` calls."""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from aecnn_deploy.bundle.manifest import Manifest
from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.cli.stages import StageBars
from aecnn_deploy.errors import AecnnError, ImageError, ServeError, SourceError
from aecnn_deploy.exporters.export import export_run
from aecnn_deploy.models.run import load_run
from aecnn_deploy.models.weights import load_backbone
from aecnn_deploy.runtimes.frames import jpeg_bytes, read_frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.sources import open_source
from aecnn_deploy.training.pipeline import train_on_frames
from aecnn_deploy.training.samples import cut_patches, write_sample_photographs
from aecnn_deploy.training.settings import LabelFreeSettings, MatchSettings

SETTINGS = LabelFreeSettings(split=6, ratios=(2, 4), bits=4, hidden=96, match=MatchSettings(epochs=6, batch=16))
PATCHES = 720
JPEG_QUALITY = 75
MAX_PHOTOGRAPHS = 100

_COMMAND = (sys.executable, "-m", "aecnn_deploy")
_START_S = 60.0
_RUN_S = 300.0
_STOP_S = 15.0


@dataclass(frozen=True, slots=True)
class Photograph:
    """One photograph: what the unsplit model says, what its frame costs as a JPEG, and each variant's report."""

    name: str
    full_label: str
    full_score: float
    jpeg_bytes: int
    split: dict[str, dict[str, Any]]  # by variant id: one entry of run-device's "images"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """All that the demo shows."""

    bundle: Path
    source: Path
    manifest: Manifest
    photographs: tuple[Photograph, ...]
    tensor_bytes: int  # the float32 tensor at the split

    def median(self, variant: str, stage: str) -> float:
        """Median milliseconds of a stage over the photographs; ``stage`` is a key of stages_ms, or "link"."""
        reports = [photo.split[variant] for photo in self.photographs]
        return float(statistics.median(r["link_ms"] if stage == "link" else r["stages_ms"][stage] for r in reports))


def run_demo(
    images: Path | None,
    out: Path,
    *,
    bars: StageBars,
    settings: LabelFreeSettings = SETTINGS,
    patch_count: int = PATCHES,
) -> DemoResult:
    """Train on patches of the photographs, export, and classify them over loopback by two processes.

    ``images``: a folder of photographs; None takes those that scikit-image and scikit-learn ship. ``out`` receives the
    run, the bundle and the sample photographs. Raises the parts' own errors.
    """
    backbone = load_backbone(settings.backbone)
    source = images or out / "photographs"
    files = _image_files(images) if images else write_sample_photographs(source)
    bars.stage("cut patches", patch_count)
    patches = cut_patches(files, patch_count, backbone.input, settings.seed, on_step=bars.step)
    run, bundle_path = out / "run", out / "bundle"
    train_on_frames(settings, backbone, patches, run, replace=True, progress=bars)
    manifest = export_run(load_run(run), bundle_path, engine=None, variants=None, replace=True, progress=bars)
    bundle = open_bundle(bundle_path)
    bars.stage("unsplit model", len(files))
    full, readable = _full(bundle, files, bars)
    variants = [spec.id for spec in manifest.variants]
    bars.stage("edge and device", len(variants))
    reports = {}
    with _edge(bundle_path) as url, tempfile.TemporaryDirectory() as folder:
        for name in variants:
            reports[name] = _device(bundle_path, url, name, _linked(readable, Path(folder) / name))
            bars.step()
    photographs = tuple(
        Photograph(file.name, label, score, size, {name: reports[name][index] for name in variants})
        for index, (file, (label, score, size)) in enumerate(zip(readable, full, strict=True))
    )
    point = backbone.split_point(settings.split)
    return DemoResult(bundle_path, source, manifest, photographs, point.float32_bytes)


def _image_files(folder: Path) -> list[Path]:
    images = open_source(str(folder), BytesIO())
    files = [image.content for image in images if isinstance(image.content, Path)]
    return files[:MAX_PHOTOGRAPHS]


def _linked(files: Sequence[Path], folder: Path) -> Path:
    """A folder of links in the order of ``files``: what the device is given as its source."""
    folder.mkdir()
    for index, file in enumerate(files):
        (folder / f"{index:04}{file.suffix}").symlink_to(file.resolve())
    return folder


def _full(bundle: Bundle, files: Sequence[Path], bars: StageBars) -> tuple[list[tuple[str, float, int]], list[Path]]:
    """Label, score and JPEG bytes of every photograph that decodes, by the unsplit model; and those photographs."""
    rows, readable = [], []
    spec = bundle.manifest.input
    with OnnxRuntimeRunner(bundle.file(bundle.manifest.full)) as runner:
        for file in files:
            bars.step()
            try:
                frame = read_frame(file, spec)
            except ImageError:
                continue
            logits = runner.infer(frame[None])[0].astype(np.float64)
            scores = np.exp(logits - logits.max())
            best = int(scores.argmax())
            label, score = bundle.manifest.labels[best], float(scores[best] / scores.sum())
            rows.append((label, score, len(jpeg_bytes(frame, JPEG_QUALITY))))
            readable.append(file)
    if not readable:
        raise SourceError("none of the photographs decodes")
    return rows, readable


@contextmanager
def _edge(bundle: Path) -> Iterator[str]:
    """An edge process on a free port of the loopback interface: its URL. It is stopped at the end."""
    with tempfile.TemporaryFile("w+") as log:
        command = [*_COMMAND, "serve-edge", str(bundle), "--port", "0", "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            # A timer ends a process that never gets ready, and so this wait for its line.
            timer = threading.Timer(_START_S, process.kill)
            timer.start()
            line = process.stdout.readline()
            timer.cancel()
            if not line:
                log.seek(0)
                raise ServeError(f"the edge process did not start: {log.read().strip()[-300:]}")
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _device(bundle: Path, url: str, variant: str, source: Path) -> list[dict[str, Any]]:
    """A device process over all photographs: its report's images."""
    command = [*_COMMAND, "run-device", str(bundle), "--edge", url, "--source", str(source)]
    done = subprocess.run(
        [*command, "--variant", variant, "--json"], capture_output=True, text=True, timeout=_RUN_S, check=False
    )
    if done.returncode != 0:
        raise AecnnError(f"the device process ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    images: list[dict[str, Any]] = json.loads(done.stdout)["images"]
    return images


def clear(out: Path) -> None:
    """Remove what an earlier demo left at ``out``. Raises SourceError: ``out`` is something else."""
    if not out.exists():
        return
    known = {"run", "bundle", "photographs"}
    if not out.is_dir() or {entry.name for entry in out.iterdir()} - known:
        raise SourceError(f"{out} exists and is not an earlier demo's folder; choose another --out")
    shutil.rmtree(out)
