"""The demo from a bundle on: an edge process and a device process on this machine. Needs no torch."""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aecnn_deploy.bundle.manifest import Manifest
from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.cli.stages import StageBars
from aecnn_deploy.errors import AecnnError, ImageError, ServeError, SourceError
from aecnn_deploy.runtimes.frames import jpeg_bytes, read_frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.sources import image_files
from aecnn_deploy.training.samples import write_sample_photographs
from aecnn_deploy.zoo import zoo_bundle

ZOO_NAME = "caltech101-lite0"
JPEG_QUALITY = 75
MAX_PHOTOGRAPHS = 100
KEPT = frozenset({"run", "bundle", "photographs"})  # what a demo writes into its folder

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
    zoo: str | None = None  # the bundle's name in the zoo, if it comes from there
    tensor_bytes: int | None = None  # the float32 tensor at the split, where the training knows it

    def median(self, variant: str, stage: str) -> float:
        """Median milliseconds of a stage over the photographs; ``stage`` is a key of stages_ms, or "link"."""
        reports = [photo.split[variant] for photo in self.photographs]
        return float(statistics.median(r["link_ms"] if stage == "link" else r["stages_ms"][stage] for r in reports))

    def agreeing(self, variant: str) -> int:
        """Photographs on which ``variant`` has the unsplit model's label."""
        return sum(photo.full_label == photo.split[variant]["label"] for photo in self.photographs)


def zoo_demo(images: Path | None, out: Path, *, bars: StageBars) -> DemoResult:
    """Classify photographs over loopback by two processes that run a bundle of the zoo.

    ``images``: a folder of photographs; None writes those that scikit-image and scikit-learn ship into ``out``, where
    nothing is removed. Raises SourceError: no photograph, or ``out`` is not a demo's folder; and the parts' own errors.
    """
    source, files = demo_photographs(images, out)
    bundle = zoo_bundle(ZOO_NAME)
    photographs = classify(bundle, files, bars=bars)
    return DemoResult(bundle, source, open_bundle(bundle).manifest, photographs, zoo=ZOO_NAME)


def demo_photographs(images: Path | None, out: Path) -> tuple[Path, list[Path]]:
    """The folder of the demo's photographs, and at most MAX_PHOTOGRAPHS of them, as for ``zoo_demo``."""
    if images is not None:
        return images, image_files(images)[:MAX_PHOTOGRAPHS]
    check_folder(out)
    source = out / "photographs"
    return source, write_sample_photographs(source)


def check_folder(out: Path) -> None:
    """Raise SourceError: ``out`` exists and is something else than a demo's folder."""
    if out.exists() and (not out.is_dir() or {entry.name for entry in out.iterdir()} - KEPT):
        raise SourceError(f"{out} exists and is not an earlier demo's folder; choose another --out")


def classify(bundle_path: Path, files: Sequence[Path], *, bars: StageBars) -> tuple[Photograph, ...]:
    """What the unsplit model and every variant of a bundle say of each of ``files`` that decodes.

    The unsplit model runs here, the variants in an edge process and a device process over loopback. Raises
    SourceError: not one of ``files`` decodes; ServeError: the edge does not start; AecnnError: the device fails.
    """
    bundle = open_bundle(bundle_path)
    bars.stage("unsplit model", len(files))
    full, readable = _full(bundle, files, bars)
    variants = [spec.id for spec in bundle.manifest.variants]
    bars.stage("edge and device", len(variants))
    reports = {}
    with _edge(bundle_path) as url, tempfile.TemporaryDirectory() as folder:
        for name in variants:
            reports[name] = _device(bundle_path, url, name, _linked(readable, Path(folder) / name))
            bars.step()
    return tuple(
        Photograph(file.name, label, score, size, {name: reports[name][index] for name in variants})
        for index, (file, (label, score, size)) in enumerate(zip(readable, full, strict=True))
    )


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
        command = [*_COMMAND, "serve-edge", str(bundle), "--port", "0", "--json", "--no-build"]
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
        # One after the other: the demo tells what one photograph takes.
        [*command, "--variant", variant, "--json", "--in-flight", "1"],
        capture_output=True,
        text=True,
        timeout=_RUN_S,
        check=False,
    )
    if done.returncode != 0:
        raise AecnnError(f"the device process ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    images: list[dict[str, Any]] = json.loads(done.stdout)["images"]
    return images
