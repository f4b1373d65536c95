"""The demo from trained weights on: heads trained without labels, exported, then run as any bundle is."""

import shutil
from pathlib import Path

from aecnn_deploy.cli.demo_chain import DemoResult, check_folder, classify, demo_photographs
from aecnn_deploy.cli.stages import StageBars
from aecnn_deploy.exporters.export import export_run
from aecnn_deploy.models.run import load_run
from aecnn_deploy.models.weights import load_backbone
from aecnn_deploy.training.pipeline import train_on_frames
from aecnn_deploy.training.samples import cut_patches
from aecnn_deploy.training.settings import LabelFreeSettings, MatchSettings

SETTINGS = LabelFreeSettings(split=6, ratios=(2, 4), bits=4, hidden=96, match=MatchSettings(epochs=6, batch=16))
PATCHES = 720


def train_demo(
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
    source, files = demo_photographs(images, out)
    bars.stage("cut patches", patch_count)
    patches = cut_patches(files, patch_count, backbone.input, settings.seed, on_step=bars.step)
    run, bundle = out / "run", out / "bundle"
    train_on_frames(settings, backbone, patches, run, replace=True, progress=bars)
    manifest = export_run(load_run(run), bundle, engine=None, variants=None, replace=True, progress=bars)
    photographs = classify(bundle, files, bars=bars)
    point = backbone.split_point(settings.split)
    return DemoResult(bundle, source, manifest, photographs, tensor_bytes=point.float32_bytes)


def clear(out: Path) -> None:
    """Remove what an earlier demo left at ``out``. Raises SourceError: ``out`` is something else."""
    check_folder(out)
    if out.exists():
        shutil.rmtree(out)
