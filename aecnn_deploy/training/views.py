"""Random views of the training images, made once and kept, or anew for each batch; and what frozen stages make of them.

The first stages of the backbone keep their pretrained weights where the settings freeze them. With a fixed number of
views of each image their output is computed once: most of a training step's time goes away, since the first stages work
on the largest tensors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from aecnn_deploy.errors import TrainingError
from aecnn_deploy.models.deploy import fold_batch_norm

if TYPE_CHECKING:
    from aecnn_deploy.training.workshop import Workshop

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of views: ``x`` is the input of stage ``frozen`` + 1 (0: the network's own input), channels last.

    ``rows`` int64 (n,): the images; ``view`` int64 (n,): which of the kept views, None where views are made anew.
    """

    x: Tensor
    rows: Tensor
    frozen: int
    view: Tensor | None


class ViewBank:
    """Views of the training images as inputs of the first stage that is not frozen.

    ``count`` views of each image are kept; 0: each batch gets new ones. ``frozen``: so many stages are.
    """

    def __init__(self, shop: "Workshop", count: int, frozen: int) -> None:
        self._shop, self.count, self.frozen = shop, count, frozen
        backbone = shop.pretrained()
        stages = fold_batch_norm(backbone.stages[:frozen]) if frozen else nn.Identity()
        self._prefix = _frozen(stages, shop.device)
        self._views = shop.views()
        self._images = shop.images("train")
        self._kept = self._make() if count else None

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """One random view of each image in ``rows``; ``generator`` lives on the CPU."""
        if self._kept is None:
            return Batch(self._enter(rows, generator), rows, self.frozen, None)
        view = torch.randint(self.count, (len(rows),), generator=generator).to(rows.device)
        x = self._kept[view, rows]
        x = x.permute(0, 3, 1, 2).float() if self.frozen else self._views.plain(x)
        return Batch(x.contiguous(memory_format=torch.channels_last), rows, self.frozen, view)

    def sequence(self, view: int) -> "list[Batch]":
        """All images in order, at the kept view ``view``. Raises TrainingError: none are kept."""
        if self._kept is None:
            raise TrainingError("views that are made anew have no order; set views to 1 or more")
        batches = []
        for rows in torch.split(torch.arange(len(self._images), device=self._shop.device), _BATCH):
            stored = self._kept[view, rows]
            x = stored.permute(0, 3, 1, 2).float() if self.frozen else self._views.plain(stored)
            batches.append(Batch(x.contiguous(memory_format=torch.channels_last), rows, self.frozen, None))
        return batches

    @torch.no_grad()
    def _enter(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        x = self._views.random(self._images.frames[rows], generator)
        if not self.frozen:
            return x
        with self._shop.autocast():
            entered: Tensor = self._prefix(x)
        return entered.float()

    def _make(self) -> Tensor:
        """(views, N, h, w, c): bfloat16 tensors of the frozen stages, or uint8 pictures where none is frozen."""
        generator = torch.Generator().manual_seed(self._shop.settings.data.seed)
        rows = torch.split(torch.arange(len(self._images), device=self._shop.device), _BATCH)
        kept: Tensor | None = None
        for view in range(self.count):
            for part in rows:
                x = self._enter(part, generator)
                stored = (x if self.frozen else self._views.picture(x)).permute(0, 2, 3, 1)
                if kept is None:
                    shape = (self.count, len(self._images), *stored.shape[1:])
                    kind = torch.bfloat16 if self.frozen else torch.uint8
                    kept = torch.empty(shape, dtype=kind, device=self._shop.device)
                kept[view, part] = stored.to(kept.dtype)
        assert kept is not None
        return kept


def _frozen(module: nn.Module, device: torch.device) -> nn.Module:
    return module.requires_grad_(False).to(device).to(memory_format=torch.channels_last)


class Teacher:
    """The unsplit network as a teacher at one split point: the tensor there and the logits, for batches of a bank.

    For kept views both are computed once, the tensors in bfloat16, unless they would take more than ``_MOST_BYTES``.
    """

    _MOST_BYTES = 6 << 30

    def __init__(self, shop: "Workshop", seed: int, split: int, bank: ViewBank) -> None:
        self._shop, self.split = shop, split
        backbone = shop.unsplit(seed)
        point = backbone.split_point(split)
        self._head = _frozen(fold_batch_norm(backbone.head(split)[bank.frozen :]), shop.device)
        self._backbone = backbone
        self._tail = _frozen(fold_batch_norm(backbone.tail(split)), shop.device)
        images = len(shop.images("train"))
        size = 2 * bank.count * images * point.channels * point.height * point.width
        self._kept: tuple[Tensor, Tensor] | None = None
        if bank.count and size <= self._MOST_BYTES:
            self._kept = self._all(bank)
        self.scale = self._scale(bank)

    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(tensor at the split (n, C, H, W), logits (n, classes)), float32."""
        if self._kept is not None and batch.view is not None:
            at_split = self._kept[0][batch.view, batch.rows].permute(0, 3, 1, 2)
            return at_split.float(), self._kept[1][batch.view, batch.rows]
        return self._run(batch.x)

    def plain(self) -> Iterator[Tensor]:
        """The tensor at the split of every training image as it is, in batches: float32."""
        images, views = self._shop.images("train"), self._shop.views()
        head = _frozen(fold_batch_norm(self._backbone.head(self.split)), self._shop.device)
        for frames in torch.split(images.frames, _BATCH):
            with torch.no_grad(), self._shop.autocast():
                at_split = head(views.plain(frames))
            yield at_split.float()

    @torch.no_grad()
    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with self._shop.autocast():
            at_split = self._head(x)
            logits = self._tail(at_split)
        return at_split.float(), logits.float()

    def _all(self, bank: ViewBank) -> tuple[Tensor, Tensor]:
        tensors: Tensor | None = None
        logits: list[Tensor] = []
        for view in range(bank.count):
            for batch in bank.sequence(view):
                at_split, out = self._run(batch.x)
                stored = at_split.permute(0, 2, 3, 1)
                if tensors is None:
                    shape = (bank.count, len(self._shop.images("train")), *stored.shape[1:])
                    tensors = torch.empty(shape, dtype=torch.bfloat16, device=stored.device)
                tensors[view, batch.rows] = stored.to(torch.bfloat16)
                logits.append(out)
        assert tensors is not None
        return tensors, torch.cat(logits).reshape(bank.count, -1, logits[0].shape[1])

    def _scale(self, bank: ViewBank) -> Tensor:
        """One over the standard deviation of each channel at the split, from 512 images at most: (C,)."""
        rows = torch.arange(min(512, len(self._shop.images("train"))), device=self._shop.device)
        generator = torch.Generator().manual_seed(0)
        parts = [self.of(bank.batch(part, generator))[0] for part in torch.split(rows, _BATCH)]
        return torch.cat(parts).var(dim=(0, 2, 3)).clamp_min(1e-6).rsqrt()
