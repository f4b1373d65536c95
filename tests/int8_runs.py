"""Split networks and runs for tests of int8 heads: real backbones, their planes calibrated on real photographs."""

from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from aecnn_deploy.calibration.ranges import gather_activations
from aecnn_deploy.exporters.int8_calibration import SteppedFile
from aecnn_deploy.exporters.int8_head import int8_head
from aecnn_deploy.models.backbones import Backbone, build_backbone
from aecnn_deploy.models.run import Run, RunRecord, TrainedVariant, describe_variant, load_run, save_run
from aecnn_deploy.models.split import SplitDesign, SplitModel
from aecnn_deploy.models.weights import load_backbone
from tests.small_models import photographs

STRIDED = SplitDesign(
    kind="strided",
    split=7,
    planes=6,
    bits=4,
    layers=((8, 7, 4), (12, 3, 2, 3), (12, 3, 1, 3), (16, 3, 2, 4)),
    hidden=16,
    depth=1,
)


@cache
def backbone_of(name: str) -> Backbone:
    """Lite0 with trained weights, a ResNet with weights and batch norm statistics by chance."""
    if name == "efficientnet_lite0":
        return load_backbone(name)
    torch.manual_seed(0)
    backbone = build_backbone(name)
    with torch.no_grad():
        _settle(backbone)
    return backbone


@lru_cache(maxsize=2)  # each holds a whole tail
def network(name: str, design: SplitDesign, *, low: float = 0.0) -> SplitModel:
    """A split network, not to be changed; ``low`` is added to where the planes' ranges begin."""
    backbone = backbone_of(name)
    torch.manual_seed(1)
    channels = backbone.split_point(design.split).channels
    kept = torch.arange(0, channels, channels // design.planes)[: design.planes] if design.kind == "aecnn" else None
    model = SplitModel(backbone, design, kept)
    with torch.no_grad():
        if design.kind == "strided":
            _settle(model.head)
        model.quantiser.calibrate(model.head(normalised(backbone)))
        model.quantiser.low.add_(low)
    return model


def normalised(backbone: Backbone) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.input.mean, backbone.input.std))
    return (torch.from_numpy(photographs(224)).permute(0, 3, 1, 2).float() - mean) / std


def _settle(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.uniform_(-0.3, 0.3)


def variant_of(name: str, model: SplitModel) -> TrainedVariant:
    backbone = backbone_of(name)
    return TrainedVariant(describe_variant(backbone, model, 4), model, backbone.input)


def run_of(folder: Path, name: str, *models: SplitModel) -> Run:
    """A run on disk with these networks and five photographs."""
    backbone = backbone_of(name)
    variants = tuple(describe_variant(backbone, model, 4) for model in models)
    labels = tuple(f"class {index}" for index in range(1000))
    record = RunRecord(format=1, backbone=name, labels=labels, input=backbone.input, variants=variants)
    save_run(
        folder,
        record,
        backbone,
        {variant.id: model for variant, model in zip(variants, models, strict=True)},
        photographs(224),
    )
    return load_run(folder)


def int8_head_of(variant: TrainedVariant, folder: Path, stepped: SteppedFile | None = None) -> Path:
    """The variant's int8 head in ``folder``, calibrated on the five photographs; ``stepped``: what it is made from."""
    stepped = stepped or SteppedFile(variant, folder)
    found = gather_activations(stepped.path, partial(stepped.batches, photographs(224)), "minmax")
    out = folder / "int8.onnx"
    int8_head(stepped.path, out, stepped.ends, found)
    return out


def many_photographs(count: int) -> np.ndarray[Any, Any]:
    """``count`` frames: the five photographs, mirrored, shifted and dimmed."""
    frames = photographs(224)
    made = []
    for index in range(count):
        frame = frames[index % len(frames)]
        if index // len(frames) % 2:
            frame = frame[:, ::-1]
        frame = np.roll(frame, 9 * index, axis=1)
        made.append((frame * (0.7 + 0.3 * np.cos(index))).astype(np.uint8))
    return np.stack(made)
