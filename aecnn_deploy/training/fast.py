"""The faster path: match the split tensor first, no tail is run; then few epochs end to end, from the unsplit model.

The first stage trains the head, the quantiser and recovery so that the recovered tensor is the unsplit network's. The
second minimises the distillation from the unsplit model's logits, the labels' loss, the matching loss (falling to
zero), and, where a budget is set, a rate term: the estimated entropy of the planes over the budget.
"""

from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor, nn

from aecnn_deploy.models.attention import channel_importance, kept_channels
from aecnn_deploy.models.results import FRAMING_BYTES
from aecnn_deploy.models.split import SplitModel
from aecnn_deploy.training.algorithm1 import (
    calibrate,
    finish,
    frozen_stages,
    new_model,
    split_row,
    validation_accuracy,
)
from aecnn_deploy.training.designs import strided_settings
from aecnn_deploy.training.fitting import Fitter, Group
from aecnn_deploy.training.losses import distil_loss, label_loss, match_loss
from aecnn_deploy.training.settings import FitSettings
from aecnn_deploy.training.tasks import Task
from aecnn_deploy.training.views import Teacher, ViewBank
from aecnn_deploy.training.workshop import Workshop

_TRAINED = 0.3  # what begins trained learns slower by this factor
# What zstd makes of planes, over their order-0 entropy: measured on 4-bit planes of 1,500 to 3,200 values.
_CODER_BYTES = 28
_CODER_FACTOR = 1.02


def train_fast(shop: Workshop, task: Task) -> None:
    """AECNN's own network by the faster path; ranked by eq. 8 on the unsplit network as it is."""
    settings = shop.settings
    backbone = shop.unsplit(task.seed)
    fitter = shop.fitter(task.id, task.seed)
    with fitter.timed():
        bank = shop.bank(frozen_stages(shop, task.split))
        teacher = shop.teacher(task.seed, task.split, bank)
        importance = channel_importance(teacher.plain()).cpu()
    count = backbone.split_point(task.split).kept_channels(task.ratio)
    model = new_model(shop, task, backbone, count, kept_channels(importance, count))
    calibrate(shop, model)
    job = SplitJob(bank, teacher, model, trained=model.head[bank.frozen :], new=None, train_tail=settings.train_tail)
    train_split(shop, fitter, job)
    finish(shop, task, split_row(shop, task, model, "aecnn-fast", fitter), model)


def train_strided(shop: Workshop, task: Task) -> None:
    """A purpose-made strided head."""
    item = strided_settings(shop.settings, task)
    backbone = shop.unsplit(task.seed)
    fitter = shop.fitter(task.id, task.seed)
    with fitter.timed():
        whole = min(item.drop, default=item.reuse + 1) - 1  # stages before the first that is left out
        bank = shop.bank(min(shop.settings.freeze, whole), 0 if item.fresh_views else None)
        teacher = shop.teacher(task.seed, item.split, bank)
    model = new_model(shop, task, backbone, item.planes)
    count = item.reuse - len(item.drop)
    calibrate(shop, model, model.head[count:])
    reused = model.head[bank.frozen : count]
    job = SplitJob(
        bank,
        teacher,
        model,
        trained=reused if len(reused) else None,
        new=model.head[count:],
        train_tail=item.train_tail,
        target_bytes=item.target_bytes,
        match_epochs=item.match_epochs,
        epochs=item.epochs or None,
        distillation=item.distillation,
    )
    train_split(shop, fitter, job)
    row = split_row(shop, task, model, "strided", fitter)
    if item.ablation:
        row = msgspec.structs.replace(row, label=item.ablation, ablation=True)
    finish(shop, task, row, model)


@dataclass(frozen=True, slots=True)
class SplitJob:
    """One network for both stages. ``trained``: head stages that begin trained; ``new``: those that do not."""

    bank: ViewBank
    teacher: Teacher
    model: SplitModel
    trained: nn.Module | None
    new: nn.Module | None
    train_tail: bool = True
    target_bytes: int = 0  # a whole message; 0: no rate term
    match_epochs: int | None = None
    epochs: int | None = None
    distillation: bool = True


def train_split(shop: Workshop, fitter: Fitter, job: SplitJob) -> None:
    """Both stages."""
    settings, weights, images = shop.settings, shop.settings.distil_loss, shop.images("train")
    model, bank, teacher = job.model, job.bank, job.teacher
    rest = nn.Sequential(*model.head[bank.frozen :])
    groups = [Group([model.recovery, model.quantiser, *([job.new] if job.new is not None else [])])]
    if job.trained is not None:
        groups.append(Group([job.trained], _TRAINED, statistics=False))

    def matching(rows: Tensor, generator: torch.Generator, _progress: float) -> Tensor:
        batch = bank.batch(rows, generator)
        at_split, _ = teacher.of(batch)
        with shop.autocast():
            recovered = model.recovery(model.quantiser(rest(batch.x)))
        return match_loss(recovered, at_split, teacher.scale)

    fitter.fit("match", model, groups, _epochs(settings.match, job.match_epochs), len(images), matching)
    if job.train_tail:
        groups.append(Group([model.tail], _TRAINED, statistics=False))
    channels, height, width = model.planes_shape
    values = channels * height * width

    def distilling(rows: Tensor, generator: torch.Generator, progress: float) -> Tensor:
        batch = bank.batch(rows, generator)
        at_split, expected = teacher.of(batch)
        with shop.autocast():
            sent = rest(batch.x)
            recovered = model.recovery(model.quantiser(sent))
            logits = model.tail(recovered)
        smoothing = settings.label_smoothing
        loss = (weights.labels if job.distillation else 1.0) * label_loss(logits, images.labels[rows], smoothing)
        if job.distillation:
            loss = loss + distil_loss(logits, expected, weights.temperature)
            loss = loss + weights.match * (1 - progress) * match_loss(recovered, at_split, teacher.scale)
        if job.target_bytes:
            estimate = model.quantiser.entropy_bits(sent) * (values / 8 * _CODER_FACTOR) + _CODER_BYTES + FRAMING_BYTES
            loss = loss + weights.rate * torch.relu(estimate - job.target_bytes) / 1000
        return loss

    def validate() -> float:
        return validation_accuracy(shop, model)

    fitter.fit("distil", model, groups, _epochs(settings.distil, job.epochs), len(images), distilling, validate)


def _epochs(settings: FitSettings, epochs: int | None) -> FitSettings:
    return settings if epochs is None else msgspec.structs.replace(settings, epochs=epochs)
