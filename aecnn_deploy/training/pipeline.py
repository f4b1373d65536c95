"""A whole label-free run: photographs in, a training run on disk out."""

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

import aecnn_deploy
from aecnn_deploy.errors import SettingsError, TrainingError
from aecnn_deploy.models.backbones import Backbone
from aecnn_deploy.models.deploy import DeviceHead, EdgeTail, FullModel
from aecnn_deploy.models.run import RUN_FORMAT, RunRecord, VariantRecord, check_run_target, describe_variant, save_run
from aecnn_deploy.models.split import SplitModel
from aecnn_deploy.models.stepped import FusedHead
from aecnn_deploy.models.weights import imagenet_labels, load_backbone
from aecnn_deploy.training.evaluation import agreement, full_top1, run_split
from aecnn_deploy.training.label_free import LabelFreeTraining, best_device
from aecnn_deploy.training.photographs import Frames, Photographs, choose_files, load_photographs
from aecnn_deploy.training.progress import Progress
from aecnn_deploy.training.settings import LabelFreeSettings

HELD_OUT_SHARE = 0.1
_MAX_HELD_OUT = 100
_FRAMES_KEPT = 8


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run measured: the record that was written and the photographs that were left out."""

    record: RunRecord
    skipped: tuple[str, ...]


def train_label_free(
    settings: LabelFreeSettings, data: Path, out: Path, *, replace: bool = False, progress: Progress
) -> Trained:
    """Train every ratio of ``settings`` on the photographs under ``data`` and write the run ``out``.

    One photograph in ten (100 at most) is held out to measure agreement. Raises SourceError, TrainingError,
    ModelError; nothing is written unless all of it is.
    """
    check_run_target(out, replace=replace)
    backbone = load_backbone(settings.backbone, settings.weights)
    files = choose_files(data, settings.photos, settings.seed)
    progress.stage("read photographs", len(files))
    photographs = load_photographs(files, backbone.input, on_step=progress.step)
    return train_on_frames(settings, backbone, photographs, out, replace=replace, progress=progress)


def train_on_frames(
    settings: LabelFreeSettings,
    backbone: Backbone,
    photographs: Photographs,
    out: Path,
    *,
    replace: bool = False,
    progress: Progress,
) -> Trained:
    """The same from decoded photographs."""
    check_run_target(out, replace=replace)
    frames = photographs.frames
    train, held_out = _hold_out(frames, settings.seed)
    training = LabelFreeTraining(backbone, settings, train, progress.step)
    start_s = time.perf_counter()
    progress.stage("rank channels", training.prepare_steps())
    training.prepare()
    prepare_s = time.perf_counter() - start_s
    models: dict[str, SplitModel] = {}
    seconds: dict[str, float] = {}
    records: list[VariantRecord] = []
    top1 = None
    for ratio in settings.ratios:
        progress.stage(f"train ratio {ratio}", training.train_steps())
        start_s = time.perf_counter()
        model = training.train(ratio)
        train_s = time.perf_counter() - start_s
        if top1 is None:
            top1 = full_top1(FullModel(backbone), held_out)
        outcome = run_split(DeviceHead(model, backbone.input), EdgeTail(model), settings.bits, held_out)
        record = describe_variant(backbone, model, ratio, agreement=agreement(outcome.top1, top1))
        models[record.id], seconds[record.id] = model, round(train_s, 1)
        records.append(record)
    run = RunRecord(
        format=RUN_FORMAT,
        backbone=backbone.name,
        labels=_labels(backbone),
        input=backbone.input,
        variants=tuple(records),
        settings=msgspec.to_builtins(settings),
        measurements={
            "photographs": {"trained": len(train), "held_out": len(held_out), "skipped": len(photographs.skipped)},
            "importance": [round(value, 6) for value in training.importance.tolist()],
            "prepare_s": round(prepare_s, 1),
            "train_s": seconds,
            "device": str(best_device()),
        },
        tools={
            "aecnn-deploy": aecnn_deploy.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    )
    save_run(out, run, backbone, models, _verification_frames(held_out, train), replace=replace)
    return Trained(run, photographs.skipped)


def _hold_out(frames: Frames, seed: int) -> tuple[Frames, Frames]:
    count = min(_MAX_HELD_OUT, round(len(frames) * HELD_OUT_SHARE))
    if len(frames) < 10 or count < 1:
        raise TrainingError(f"training needs at least 10 photographs, got {len(frames)}")
    order = np.random.default_rng(seed).permutation(len(frames))
    return frames[np.sort(order[count:])], frames[np.sort(order[:count])]


def _verification_frames(held_out: Frames, train: Frames) -> Frames:
    """A few photographs to verify exports with: held-out ones first."""
    return np.concatenate([held_out[:_FRAMES_KEPT], train[: max(0, _FRAMES_KEPT - len(held_out))]])


def _labels(backbone: Backbone) -> tuple[str, ...]:
    labels = imagenet_labels()
    classes = list(backbone.classifier.parameters())[-1].shape[0]
    if classes != len(labels):
        raise SettingsError(f"{backbone.name} has {classes} classes, the ImageNet labels are {len(labels)}")
    return labels


def evaluate_run(
    variants: dict[str, tuple[DeviceHead | FusedHead, EdgeTail, int]],
    full: FullModel,
    frames: Frames,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Agreement with the unsplit model and payload bytes of each variant on ``frames``."""
    steps = -(-len(frames) // 25)
    progress.stage("unsplit model", steps)
    top1 = full_top1(full, frames, on_step=progress.step)
    rows: dict[str, dict[str, Any]] = {}
    for name, (head, tail, bits) in variants.items():
        progress.stage(name, steps)
        outcome = run_split(head, tail, bits, frames, on_step=progress.step)
        rows[name] = {
            "agreement": agreement(outcome.top1, top1),
            "payload_bytes_mean": float(outcome.payload_bytes.mean()),
            "top1": outcome.top1.tolist(),
        }
    return rows
