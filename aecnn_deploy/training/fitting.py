"""The one training loop: AdamW, a warm-up and a cosine, checkpoints, early stopping."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from aecnn_deploy.errors import TrainingError
from aecnn_deploy.training.checkpoints import Reached, TaskFolder, optimiser_state, restore_optimiser
from aecnn_deploy.training.depthwise import QuickDepthwise
from aecnn_deploy.training.settings import FitSettings

_WARM_UP = 0.1  # share of the steps
_GRADIENT_NORM = 5.0
_WEIGHT_DECAY = 1e-2
_DRAWN = "generator"


@dataclass(frozen=True, slots=True)
class Group:
    """Modules that learn at ``rate`` times the stage's learning rate. ``statistics``: their batch norms learn too."""

    modules: Sequence[nn.Module]
    rate: float = 1.0
    statistics: bool = True


@dataclass(slots=True)
class Fitter:
    """Runs the stages of one task, and goes on where a checkpoint of it stands.

    ``spent_s``: wall-clock of all stages, those before an interruption included; ``epochs``: passes over the data.
    """

    folder: TaskFolder
    device: torch.device
    seed: int
    report: Callable[[str], None]
    spent_s: float = 0.0
    epochs: int = 0
    _reached: tuple[Reached, dict[str, Tensor]] | None = field(default=None, init=False)
    _skipping: bool = field(default=False, init=False)
    _before_s: float = field(default=0.0, init=False)  # of earlier stages, and before an interruption
    _started_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._reached = self.folder.load()
        self._skipping = self._reached is not None

    @contextmanager
    def timed(self) -> Iterator[None]:
        """What is prepared inside, views and teachers, counts as this task's time."""
        start_s = time.perf_counter()
        yield
        self.spent_s += time.perf_counter() - start_s

    def fit(
        self,
        stage: str,
        model: nn.Module,
        groups: Sequence[Group],
        settings: FitSettings,
        images: int,
        loss_of: Callable[[Tensor, torch.Generator, float], Tensor],
        validate: Callable[[], float] | None = None,
    ) -> None:
        """Train ``groups`` of ``model`` for one stage.

        ``loss_of(rows, generator, progress)``: the loss of the images ``rows`` (int64, on the device); ``progress``
        runs from 0 to 1 over the stage. ``validate``: validation accuracy, for early stopping (``patience``): the best
        epoch's weights are kept. Raises TrainingError: the loss is not a number.
        """
        self.epochs += settings.epochs
        if self._skipping:
            assert self._reached is not None
            if self._reached[0].stage != stage:
                return  # an earlier stage of the task: the checkpoint has its result
        if not settings.epochs:
            return
        at = _Place(stage, model, _optimiser(model, groups, settings.learning_rate))
        if self._skipping:
            self._take_up(at)
        self._before_s, self._started_s = self.spent_s, time.perf_counter()
        for epoch in range(at.epoch, settings.epochs):
            if settings.patience and at.waited >= settings.patience:
                self.epochs -= settings.epochs - epoch
                break
            _training_mode(model, groups)
            mean = self._train_epoch(at, settings, images, loss_of)
            model.eval()
            if self.device.type != "cpu":
                self.report(f"{stage} {mean:.3f}")
            if validate is not None and settings.patience:
                at.judge(validate())
            at.epoch, at.steps = epoch + 1, 0
            if self.folder.due() and at.epoch < settings.epochs:
                self._save(at)
        if at.best_state is not None:
            model.load_state_dict(at.best_state)
        model.eval()
        self._clock()

    def _train_epoch(
        self,
        at: "_Place",
        settings: FitSettings,
        images: int,
        loss_of: Callable[[Tensor, torch.Generator, float], Tensor],
    ) -> float:
        """One epoch, or what is left of it; the mean loss. Its order and its draws are the epoch's own."""
        per_epoch = max(1, images // settings.batch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + at.epoch)
        order = torch.randperm(images, generator=generator).to(self.device)
        if at.drawn is not None:
            generator.set_state(at.drawn)
            at.drawn = None
        trained = [parameter for group in at.optimiser.param_groups for parameter in group["params"]]
        running: list[Tensor] = []
        for rows in torch.split(order, settings.batch)[at.steps : per_epoch]:
            progress = (at.epoch * per_epoch + at.steps) / (per_epoch * settings.epochs)
            for group in at.optimiser.param_groups:
                group["lr"] = group["base"] * _factor(progress)
            at.optimiser.zero_grad(set_to_none=True)
            with QuickDepthwise():
                loss = loss_of(rows, generator, progress)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(trained, _GRADIENT_NORM)
            at.optimiser.step()
            running.append(loss.detach())
            if self.device.type == "cpu":
                self.report(f"{at.stage} {loss.item():.3f}")
            at.steps += 1
            if at.steps < per_epoch and self.folder.due():
                _mean_of(running, at, settings)  # a loss that is no number gets no checkpoint
                self._save(at, generator)
        return _mean_of(running, at, settings)

    def _take_up(self, at: "_Place") -> None:
        """Go on where the checkpoint stands."""
        assert self._reached is not None
        reached, tensors = self._reached
        at.epoch, at.steps, at.best, self.spent_s = reached.epoch, reached.steps, reached.best, reached.seconds
        at.model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
        restore_optimiser(at.optimiser, tensors)
        at.best_state = {key[5:]: value for key, value in tensors.items() if key.startswith("best.")} or None
        at.waited = int(reached.notes.get("waited", 0))
        at.drawn = tensors.get(_DRAWN)
        self.epochs = int(reached.notes.get("epochs", self.epochs))
        self._skipping, self._reached = False, None

    def _clock(self) -> None:
        self.spent_s = self._before_s + time.perf_counter() - self._started_s

    def _save(self, at: "_Place", generator: torch.Generator | None = None) -> None:
        """``generator``: the epoch's, in the middle of it."""
        self._clock()
        tensors = {f"model.{key}": value for key, value in at.model.state_dict().items()}
        tensors |= optimiser_state(at.optimiser)
        tensors |= {f"best.{key}": value for key, value in (at.best_state or {}).items()}
        if generator is not None:
            tensors[_DRAWN] = generator.get_state()
        name = f"state-{at.stage}-{at.epoch}-{at.steps}.safetensors"
        notes = {"waited": at.waited, "epochs": self.epochs}
        self.folder.save(Reached(at.stage, at.epoch, name, self.spent_s, at.best, notes, at.steps), tensors)


@dataclass(slots=True)
class _Place:
    """Where a stage stands: epochs that are done, ``steps`` of the next; the best epoch's weights, with patience."""

    stage: str
    model: nn.Module
    optimiser: torch.optim.Optimizer
    epoch: int = 0
    steps: int = 0
    best: float | None = None
    best_state: dict[str, Tensor] | None = None
    waited: int = 0
    drawn: Tensor | None = None  # the generator's state, in the middle of an epoch

    def judge(self, accuracy: float) -> None:
        """Keep the weights if no epoch was better."""
        if self.best is None or accuracy > self.best:
            self.best, self.waited = accuracy, 0
            self.best_state = {key: value.clone() for key, value in self.model.state_dict().items()}
        else:
            self.waited += 1


def _mean_of(losses: Sequence[Tensor], at: _Place, settings: FitSettings) -> float:
    """The mean loss. Raises TrainingError: it is not a number."""
    mean = torch.stack(list(losses)).mean().item()
    if not math.isfinite(mean):
        raise TrainingError(
            f"{at.stage}: the loss is {mean} in epoch {at.epoch + 1}; lower learning_rate ({settings.learning_rate})"
        )
    return mean


def _optimiser(model: nn.Module, groups: Sequence[Group], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices and filters only. Parameters outside of ``groups`` are frozen."""
    model.requires_grad_(False)
    tables: list[dict[str, Any]] = []
    for group in groups:
        parameters = [p for module in group.modules for p in module.parameters()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        base = learning_rate * group.rate
        tables.append({"params": [p for p in parameters if p.ndim > 1], "base": base, "weight_decay": _WEIGHT_DECAY})
        tables.append({"params": [p for p in parameters if p.ndim <= 1], "base": base, "weight_decay": 0.0})
    tables = [table | {"lr": table["base"]} for table in tables if table["params"]]
    return torch.optim.AdamW(tables, fused=True)


def _training_mode(model: nn.Module, groups: Sequence[Group]) -> None:
    model.eval()
    for group in groups:
        for module in group.modules:
            module.train(group.statistics)


def _factor(progress: float) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if progress < _WARM_UP:
        return (progress + 1e-3) / (_WARM_UP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP)))
