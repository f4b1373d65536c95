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
        per_epoch = max(1, images // settings.batch)
        total = per_epoch * settings.epochs
        optimiser = _optimiser(model, groups, settings.learning_rate)
        first, best, best_state, waited = 0, None, None, 0
        if self._skipping:
            assert self._reached is not None
            reached, tensors = self._reached
            first, best, self.spent_s = reached.epoch, reached.best, reached.seconds
            model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
            restore_optimiser(optimiser, tensors)
            best_state = {key[5:]: value for key, value in tensors.items() if key.startswith("best.")} or None
            waited = int(reached.notes.get("waited", 0))
            self.epochs = int(reached.notes.get("epochs", self.epochs))
            self._skipping, self._reached = False, None
        trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        started_s, before_s = time.perf_counter(), self.spent_s
        for epoch in range(first, settings.epochs):
            if settings.patience and waited >= settings.patience:
                self.epochs -= settings.epochs - epoch
                break
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            _training_mode(model, groups)
            order = torch.randperm(images, generator=generator).to(self.device)
            running: list[Tensor] = []
            for index, rows in enumerate(torch.split(order, settings.batch)[:per_epoch]):
                step = epoch * per_epoch + index
                for group in optimiser.param_groups:
                    group["lr"] = group["base"] * _factor(step / total)
                optimiser.zero_grad(set_to_none=True)
                with QuickDepthwise():
                    loss = loss_of(rows, generator, step / total)
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(trained, _GRADIENT_NORM)
                optimiser.step()
                running.append(loss.detach())
                if self.device.type == "cpu":
                    self.report(f"{stage} {loss.item():.3f}")
            mean = torch.stack(running).mean().item()
            if not math.isfinite(mean):
                raise TrainingError(
                    f"{stage}: the loss is {mean} in epoch {epoch + 1}; lower learning_rate ({settings.learning_rate})"
                )
            model.eval()
            if self.device.type != "cpu":
                self.report(f"{stage} {mean:.3f}")
            if validate is not None and settings.patience:
                accuracy = validate()
                if best is None or accuracy > best:
                    best, waited = accuracy, 0
                    best_state = {key: value.clone() for key, value in model.state_dict().items()}
                else:
                    waited += 1
            self.spent_s = before_s + time.perf_counter() - started_s
            if self.folder.due() and epoch + 1 < settings.epochs:
                self._save(stage, epoch + 1, model, optimiser, best, best_state, waited)
        if best_state is not None:
            model.load_state_dict(best_state)
        model.eval()
        self.spent_s = before_s + time.perf_counter() - started_s

    def _save(
        self,
        stage: str,
        epoch: int,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        best: float | None,
        best_state: dict[str, Tensor] | None,
        waited: int,
    ) -> None:
        tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
        tensors |= optimiser_state(optimiser)
        tensors |= {f"best.{key}": value for key, value in (best_state or {}).items()}
        name = f"state-{stage}-{epoch}.safetensors"
        self.folder.save(
            Reached(stage, epoch, name, self.spent_s, best, {"waited": waited, "epochs": self.epochs}), tensors
        )


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
