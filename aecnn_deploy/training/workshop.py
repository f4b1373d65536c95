"""What the tasks of one run share in a process: settings, data, the split, networks, teachers."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from aecnn_deploy.errors import TrainingError
from aecnn_deploy.models.backbones import Backbone, build_backbone
from aecnn_deploy.models.macs import count_macs
from aecnn_deploy.models.weights import load_backbone
from aecnn_deploy.training.checkpoints import TaskFolder
from aecnn_deploy.training.dataset import DataSplit, LabelledPhotographs
from aecnn_deploy.training.fitting import Fitter
from aecnn_deploy.training.images import Images, Views
from aecnn_deploy.training.label_free import best_device, has_bfloat16
from aecnn_deploy.training.photographs import Frames
from aecnn_deploy.training.settings import Algorithm1Settings, seeds_of
from aecnn_deploy.training.views import Teacher, ViewBank


def no_report(_note: str) -> None:
    """Tells nobody."""


def library_backbone(settings: Algorithm1Settings) -> Backbone:
    """The backbone with its library's weights; random ones are the same in every process. Raises ModelError."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(min(seeds_of(settings)))
        return load_backbone(settings.backbone, settings.weights)


@dataclass(slots=True)
class Workshop:
    """The shared parts of one run in one process; ``report`` is called at each step with a note for a person."""

    run: Path
    settings: Algorithm1Settings
    photographs: LabelledPhotographs
    split: DataSplit
    report: Callable[[str], None] = no_report
    device: torch.device = field(default_factory=best_device)
    library: Backbone | None = None  # what ``library_backbone`` gave, where that is known already
    _images: dict[str, Images] = field(default_factory=dict, init=False)
    _pretrained: Backbone | None = field(default=None, init=False)
    _banks: dict[tuple[int, int], ViewBank] = field(default_factory=dict, init=False)
    _teachers: dict[tuple[int, ...], Teacher] = field(default_factory=dict, init=False)
    _full_macs: int | None = field(default=None, init=False)

    @property
    def classes(self) -> int:
        return len(self.photographs.categories)

    def frames(self, part: str) -> Frames:
        """Frames of "train", "validation" or "test": uint8 (n, H, W, 3)."""
        chosen: Frames = self.photographs.frames[getattr(self.split, part)]
        return chosen

    def test_set(self) -> str:
        """Names the test photographs and their order; runs of equal ones are compared image by image."""
        names = "\n".join(self.photographs.files[index] for index in self.split.test)
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def images(self, part: str) -> Images:
        """The same with labels, on the device that trains; kept."""
        if part not in self._images:
            labels = self.photographs.labels[getattr(self.split, part)]
            self._images[part] = Images.of(self.frames(part), labels.astype(np.int64), self.device)
        return self._images[part]

    def pretrained(self) -> Backbone:
        """The backbone with its library's weights and their own classes. Not to be changed."""
        if self._pretrained is None:
            self._pretrained = self.library or library_backbone(self.settings)
            self._pretrained.input = self.settings.input_spec(self._pretrained.input)
        return self._pretrained

    def untrained_classes(self, seed: int) -> Backbone:
        """The pretrained backbone with a new last layer for the data set's categories."""
        backbone = copy.deepcopy(self.pretrained())
        torch.manual_seed(seed)
        backbone.new_classifier(self.classes)
        return backbone.eval()

    def unsplit(self, seed: int) -> Backbone:
        """The fine-tuned unsplit network of ``seed``.

        Raises TrainingError: its task is not done, or it was brought from a run that froze fewer stages: what those put
        out is taken from the library's weights.
        """
        backbone = build_backbone(self.settings.backbone, self.classes)
        task = f"unsplit-s{self.unsplit_seed(seed)}"
        backbone.load_state_dict(self.folder(task).model_state())
        backbone.input = self.pretrained().input
        for number in range(1, self.settings.freeze + 1):
            own, library = (net.stages[number - 1].state_dict() for net in (backbone, self.pretrained()))
            if not all(torch.equal(own[key], library[key]) for key in library):
                raise TrainingError(
                    f"{task} has trained its stage {number}, the settings freeze {self.settings.freeze}; set freeze to "
                    f"{number - 1} at most, or train the unsplit network anew"
                )
        return backbone.eval()

    def folder(self, task: str) -> TaskFolder:
        """The files of one task."""
        return TaskFolder(self.run / "tasks" / task)

    def fitter(self, task: str, seed: int) -> Fitter:
        """The training loop of one task; its order and its draws are those of ``seed``."""
        return Fitter(self.folder(task), self.device, seed, self.report)

    def autocast(self) -> torch.autocast:
        """bfloat16 where the device multiplies it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=has_bfloat16(self.device))

    def views(self) -> Views:
        """Random views as the settings say."""
        return Views(self.pretrained().input, self.settings.augment, self.device)

    def full_macs(self) -> int:
        """Multiply-adds of the unsplit network, with the data set's classes; counted once, for every row asks."""
        if self._full_macs is None:
            with torch.device("meta"):  # no weights: they would be drawn to be thrown away
                self._full_macs = self._count(build_backbone(self.settings.backbone, self.classes))
        return self._full_macs

    def macs(self, module: nn.Module) -> int:
        """Multiply-adds of ``module`` for one frame."""
        return self._count(module.cpu())

    def _count(self, module: nn.Module) -> int:
        spec = self.pretrained().input
        return count_macs(module.eval(), (1, 3, spec.height, spec.width))

    def bank(self, frozen: int, count: int | None = None) -> ViewBank:
        """Views of the training images behind ``frozen`` stages; ``count`` None: as many as the settings keep."""
        key = (self.settings.views if count is None else count, frozen)
        if key not in self._banks:
            if key[0]:  # kept views take gigabytes
                self._banks = {old: bank for old, bank in self._banks.items() if not old[0]}
                self._teachers.clear()
            self._banks[key] = ViewBank(self, *key)
        return self._banks[key]

    def teacher(self, seed: int, split: int, bank: ViewBank) -> Teacher:
        """The unsplit network of ``seed`` as the faster path's teacher at ``split``; the last one is kept."""
        key = (seed, split, bank.count, bank.frozen)
        if key not in self._teachers:
            self._teachers.clear()
            self._teachers[key] = Teacher(self, seed, split, bank)
        return self._teachers[key]

    def unsplit_seed(self, seed: int) -> int:
        """Whose unsplit network the tasks of ``seed`` begin with: its own, or the first seed's for all."""
        return min(seeds_of(self.settings)) if self.settings.shared_unsplit else seed
