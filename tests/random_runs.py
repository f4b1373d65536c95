"""Runs of a ResNet-18 with random weights: nothing trained, every shape real."""

from pathlib import Path

import torch

from aecnn_deploy.models.backbones import Backbone, build_backbone
from aecnn_deploy.models.run import Run, RunRecord, TrainedVariant, describe_variant, save_run
from aecnn_deploy.models.split import SplitDesign, SplitModel, pruned_split
from tests.small_models import photographs

CLASSES = 10
VARIANT = "resnet18-l1-v8-u8"


def random_run(folder: Path | None = None) -> Run:
    """Split after the stem, 8 of 64 channels; with ``folder`` it is saved there too."""
    backbone = _backbone()
    return _run(backbone, pruned_split(backbone, 1, torch.arange(0, 64, 8), 8), 8, folder)


def strided_run() -> Run:
    """A purpose-made head: planes of an eighth of the frame's side feed a tensor of a sixteenth."""
    backbone = _backbone()
    design = SplitDesign(kind="strided", split=6, planes=4, bits=8, layers=((8, 7, 4), (16, 3, 2)), hidden=16)
    return _run(backbone, SplitModel(backbone, design), 64, None)


def _backbone() -> Backbone:
    torch.manual_seed(0)
    return build_backbone("resnet18", CLASSES)


def _run(backbone: Backbone, model: SplitModel, ratio: int, folder: Path | None) -> Run:
    frames = photographs(224)
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.input.mean, backbone.input.std))
    with torch.no_grad():
        model.quantiser.calibrate(model.head((torch.from_numpy(frames).permute(0, 3, 1, 2).float() - mean) / std))
    variant = describe_variant(backbone, model, ratio, accuracy=0.5, agreement=0.5)
    record = RunRecord(
        format=1,
        backbone=backbone.name,
        labels=tuple(f"class {index}" for index in range(CLASSES)),
        input=backbone.input,
        variants=(variant,),
        measurements={"photographs": len(frames)},
    )
    if folder is not None:
        save_run(folder, record, backbone, {variant.id: model}, frames)
    return Run(
        folder or Path("random-run"), record, backbone, (TrainedVariant(variant, model, backbone.input),), frames
    )
