"""Label-free training: from unlabelled photographs to a pruned head and feature recovery, in minutes on a CPU.

Rank the channels at the split (eq. 8) and prune; then train the head's last stages, the quantiser and feature recovery
so that the tensor at the split matches the original's (no tail is run); then, by option, distil the unsplit model's
logits through the frozen tail. The stages before the trained ones are frozen, so their output is computed once and
kept. Algorithm 1 of the paper, with labels, belongs beside this module.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aecnn_deploy.errors import TrainingError
from aecnn_deploy.models.attention import channel_importance, kept_channels
from aecnn_deploy.models.backbones import Backbone
from aecnn_deploy.models.deploy import Normalise
from aecnn_deploy.models.split import SplitModel, pruned_split
from aecnn_deploy.training.depthwise import QuickDepthwise
from aecnn_deploy.training.losses import distil_loss, match_loss
from aecnn_deploy.training.photographs import Frames
from aecnn_deploy.training.settings import LabelFreeSettings

_FORWARD_BATCH = 32
_GRADIENT_NORM = 1.0

Progress = Callable[[str], None]  # called once for each step with a note for a person


def best_device() -> torch.device:
    """A CUDA GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True, slots=True)
class TeacherTensors:
    """What the frozen parts of the unsplit model make of the photographs, kept in half precision.

    ``entering``: what enters the trained stages, (N, c, h, w); ``at_split``: the original tensor at the split,
    (N, C, H, W); ``logits``: (N, classes), only where they are distilled.
    """

    entering: Tensor
    at_split: Tensor
    logits: Tensor | None


@dataclass(slots=True)
class LabelFreeTraining:
    """One training: ``prepare`` once, then ``train`` for each ratio.

    Raises TrainingError: too few photographs for a batch.
    """

    backbone: Backbone
    settings: LabelFreeSettings
    frames: Frames
    report: Progress = lambda _note: None
    device: torch.device = field(default_factory=best_device)
    importance: Tensor = field(init=False)
    _teacher: TeacherTensors = field(init=False)

    def __post_init__(self) -> None:
        self.backbone.split_point(self.settings.split)
        for ratio in self.settings.ratios:  # all refusals before the work
            self.backbone.split_point(self.settings.split).kept_channels(ratio)
        if len(self.frames) < 8:
            raise TrainingError(f"label-free training needs at least 8 photographs, got {len(self.frames)}")

    def prepare_steps(self) -> int:
        """How often ``prepare`` reports."""
        return -(-len(self.frames) // _FORWARD_BATCH)

    def train_steps(self) -> int:
        """How often ``train`` reports for one ratio."""
        match, distil = self.settings.match, self.settings.distil
        return match.epochs * self._batches(match.batch) + distil.epochs * self._batches(distil.batch)

    def _batches(self, batch: int) -> int:
        return max(1, len(self.frames) // batch)

    @torch.no_grad()
    def prepare(self) -> None:
        """Run the frozen parts over all photographs and rank the channels."""
        backbone, split = self.backbone.eval().to(self.device), self.settings.split
        normalise = Normalise(backbone.input).to(self.device)
        first = split - self.settings.trainable_stages
        prefix, rest = backbone.stages[:first], backbone.stages[first:split]
        tail = backbone.tail(split)
        distils = self.settings.distil.epochs > 0
        entering, at_split, logits = [], [], []
        for batch in _frame_batches(self.frames):
            with self._autocast():
                x = prefix(normalise(batch.to(self.device)).contiguous(memory_format=torch.channels_last))
                y = rest(x)
                if distils:
                    logits.append(tail(y).float())
            entering.append(x.half())
            at_split.append(y.half())
            self.report("")
        self._teacher = TeacherTensors(torch.cat(entering), torch.cat(at_split), torch.cat(logits) if distils else None)
        self.importance = channel_importance(torch.split(self._teacher.at_split, _FORWARD_BATCH)).cpu()
        backbone.cpu()

    def train(self, ratio: int) -> SplitModel:
        """The trained network for one ratio, in eval mode. The same settings and photographs give the same network."""
        settings = self.settings
        point = self.backbone.split_point(settings.split)
        torch.manual_seed(settings.seed)
        model = pruned_split(
            self.backbone,
            settings.split,
            kept_channels(self.importance, point.kept_channels(ratio)),
            settings.bits,
            hidden=settings.hidden,
            kernel=settings.kernel,
            repack=settings.repack,
        )
        model.to(self.device).to(memory_format=torch.channels_last)
        student = Student(model, settings.split - settings.trainable_stages, settings.projection_only)
        student.calibrate(self._teacher.entering)
        scale = self._teacher.at_split[:512].float().var(dim=(0, 2, 3)).clamp_min(1e-6).rsqrt()
        self._match(student, scale)
        if settings.distil.epochs:
            self._distil(student, scale)
        model.cpu().eval()
        return model

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=has_bfloat16(self.device))

    def _match(self, student: "Student", scale: Tensor) -> None:
        match, teacher = self.settings.match, self._teacher

        def loss_of(rows: Tensor) -> Tensor:
            with self._autocast():
                recovered = student.recover(teacher.entering[rows])
            return match_loss(recovered, teacher.at_split[rows], scale)

        self._loop(student, match.epochs, match.batch, match.learning_rate, loss_of, "match")

    def _distil(self, student: "Student", scale: Tensor) -> None:
        distil, teacher = self.settings.distil, self._teacher
        tail = student.model.tail.requires_grad_(False)
        assert teacher.logits is not None
        logits = teacher.logits

        def loss_of(rows: Tensor) -> Tensor:
            with self._autocast():
                recovered = student.recover(teacher.entering[rows])
                got = tail(recovered).float()
            return distil_loss(got, logits[rows], distil.temperature) + distil.match_weight * match_loss(
                recovered, teacher.at_split[rows], scale
            )

        self._loop(student, distil.epochs, distil.batch, distil.learning_rate, loss_of, "distil")

    def _loop(
        self,
        student: "Student",
        epochs: int,
        batch: int,
        learning_rate: float,
        loss_of: Callable[[Tensor], Tensor],
        name: str,
    ) -> None:
        """Adam with a one-cycle learning rate over shuffled batches."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        steps = epochs * self._batches(batch)
        groups = student.parameter_groups(learning_rate)
        optimiser = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, [group["lr"] for group in groups], total_steps=steps + 1, pct_start=0.15
        )
        parameters = [parameter for group in groups for parameter in group["params"]]
        student.training_mode(True)
        for _ in range(epochs):
            order = torch.randperm(len(self.frames), generator=generator)
            for rows in torch.split(order, batch)[: self._batches(batch)]:
                optimiser.zero_grad(set_to_none=True)
                with QuickDepthwise():
                    loss = loss_of(rows)
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
                optimiser.step()
                schedule.step()
                self.report(f"{name} {loss.item():.3f}")
        student.training_mode(False)


class Student:
    """The parts of a SplitModel that learn: the head's stages from ``first`` on, the quantiser, recovery.

    ``projection_only`` leaves out all of those stages but the last convolution and its batch norm: a cheaper step.
    """

    def __init__(self, model: SplitModel, first: int, projection_only: bool) -> None:
        self.model = model
        self.stages = model.head[first:]
        model.requires_grad_(False)
        for part in (self.stages, model.quantiser, model.recovery):
            part.requires_grad_(True)
        if projection_only:
            self.stages.requires_grad_(False)
            for layer in _projection(self.stages[-1]):
                layer.requires_grad_(True)

    def recover(self, entering: Tensor) -> Tensor:
        sent = self.stages(entering.float().contiguous(memory_format=torch.channels_last))
        recovered: Tensor = self.model.recovery(self.model.quantiser(sent))
        return recovered

    @torch.no_grad()
    def calibrate(self, entering: Tensor) -> None:
        self.model.quantiser.calibrate(self.stages(entering[:256].float()))

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        model = self.model
        head = [parameter for parameter in self.stages.parameters() if parameter.requires_grad]
        slow = [*head, *model.quantiser.parameters()]  # trained already, or a range
        groups = [
            {"params": slow, "lr": learning_rate / 3},
            {"params": list(model.recovery.parameters()), "lr": learning_rate},
        ]
        return [group for group in groups if group["params"]]

    def training_mode(self, on: bool) -> None:
        """Batch norm of the head keeps the backbone's statistics; recovery's is new and learns its own."""
        self.model.recovery.train(on)


def _projection(stage: nn.Module) -> "list[nn.Conv2d | nn.BatchNorm2d]":
    """The convolution that makes a stage's output, and the batch norm after it; not those of its shortcut."""
    layers = [
        layer
        for name, layer in stage.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)) and "downsample" not in name
    ]
    return layers[-2:]


def _frame_batches(frames: Frames) -> Iterator[Tensor]:
    for start in range(0, len(frames), _FORWARD_BATCH):
        yield torch.from_numpy(np.ascontiguousarray(frames[start : start + _FORWARD_BATCH]))
