"""A trained run for frames of another size: same weights; shapes, multiply-adds and photographs follow."""

import dataclasses
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import ModelError, SettingsError
from aecnn_deploy.models.backbones import Backbone
from aecnn_deploy.models.macs import count_macs, on_meta
from aecnn_deploy.models.run import Run, TrainedVariant
from aecnn_deploy.models.split import SplitModel

SMALLEST, LARGEST = 32, 4096  # pixels of a side

Frames = npt.NDArray[np.uint8]


def resized_run(run: Run, height: int, width: int) -> Run:
    """``run`` for frames of ``height`` × ``width`` pixels; ``run`` itself where that is its size.

    What was measured with frames of the trained size (accuracy, agreement, bytes and the run's measurements) holds no
    longer and is left out; the measurements name both sizes. Raises SettingsError: a side is out of range, or the
    network cannot take such frames.
    """
    trained = run.input
    if (height, width) == (trained.height, trained.width):
        return run
    if not all(SMALLEST <= side <= LARGEST for side in (height, width)):
        raise SettingsError(f"input size is {height}x{width}, each side must be {SMALLEST} to {LARGEST} pixels")
    spec = scaled_input(trained, height, width)
    try:
        backbone = run.backbone.resized(spec)
        full_macs = count_macs(backbone, (1, 3, height, width))
        variants = tuple(_variant(backbone, variant, spec, full_macs) for variant in run.variants)
    except (ModelError, RuntimeError, ValueError) as exc:  # torch's own for layers that a tensor does not fit
        why = str(exc).strip().partition("\n")[0][:200]
        raise SettingsError(
            f"{run.backbone_name} of {run.path} cannot take frames of {height}x{width}, trained with "
            f"{trained.height}x{trained.width}: {why}; choose another --input-size"
        ) from exc
    sizes = {"trained": [trained.height, trained.width], "exported": [height, width]}
    left_out = sorted({"accuracy", "agreement", "wire_bytes", *run.measurements})
    record = msgspec.structs.replace(
        run.record,
        input=spec,
        variants=tuple(variant.record for variant in variants),
        measurements={"input_size": {**sizes, "left_out": left_out}},
    )
    return dataclasses.replace(
        run, record=record, backbone=backbone, variants=variants, frames=resized_frames(run.frames, spec)
    )


def scaled_input(spec: InputSpec, height: int, width: int) -> InputSpec:
    """``spec`` for frames of ``height`` × ``width``: the short side before the crop grows in proportion."""
    scale = max(height / spec.height, width / spec.width)
    short = max(round(spec.resize_short * scale), height, width)
    return msgspec.structs.replace(spec, height=height, width=width, resize_short=short)


def resized_frames(frames: Frames, spec: InputSpec) -> Frames:
    """uint8 (n, h, w, 3) → (n, height, width, 3): the largest middle part of that shape, resized by Pillow."""
    _, height, width, _ = frames.shape
    scale = min(height / spec.height, width / spec.width)
    across, down = spec.width * scale, spec.height * scale
    left, top = (width - across) / 2, (height - down) / 2
    method = Image.Resampling[spec.interpolation.upper()]
    box = (left, top, left + across, top + down)
    size = (spec.width, spec.height)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, method, box=box)) for frame in frames])


def _variant(backbone: Backbone, trained: TrainedVariant, spec: InputSpec, full_macs: int) -> TrainedVariant:
    old = trained.model
    model = SplitModel(backbone, old.design, old.kept)
    _check_same_layers(old, model)
    model.load_state_dict(old.state_dict())
    shape = (1, 3, spec.height, spec.width)
    on_meta(model.eval(), torch.empty(shape, device="meta"))  # recovery must give what the tail takes
    measured: dict[str, Any] = {"accuracy": None, "agreement": None, "wire_bytes": None}
    record = msgspec.structs.replace(
        trained.record,
        planes=model.planes_shape,
        head_macs=count_macs(model.head, shape),
        full_macs=full_macs,
        **measured,
    )
    return TrainedVariant(record, model, spec)


def _check_same_layers(old: SplitModel, new: SplitModel) -> None:
    """Raises ModelError: the new size needs a recovery of other layers than the trained one."""
    before, after = ({name: tuple(value.shape) for name, value in model.state_dict().items()} for model in (old, new))
    if before != after:
        planes = "×".join(map(str, new.planes_shape[1:]))
        raise ModelError(f"planes of {planes} need another recovery than the one that was trained")
