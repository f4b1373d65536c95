"""The network that a task trains: built from its design when it is trained, and again when its run is assembled."""

from collections.abc import Sequence

import torch
from msgspec.structs import replace

from aecnn_deploy.errors import ModelError
from aecnn_deploy.models.backbones import build_backbone
from aecnn_deploy.models.split import SplitDesign, SplitModel
from aecnn_deploy.training.settings import Algorithm1Settings, StridedSettings
from aecnn_deploy.training.tasks import Task


def design_of(settings: Algorithm1Settings, task: Task, planes: int) -> SplitDesign:
    """The design of ``task``, which sends ``planes`` channels (a purpose-made head has its own number)."""
    if task.kind == "strided":
        item = strided_settings(settings, task)
        return SplitDesign(
            kind="strided",
            split=item.split,
            planes=item.planes,
            bits=item.bits,
            hidden=item.hidden,
            depth=item.depth,
            reuse=item.reuse,
            drop=item.drop,
            layers=item.layers,
        )
    base = SplitDesign(split=task.split, planes=planes, bits=task.bits)
    match task.kind:
        case "pruned":
            return replace(base, kind="ca-pruned")
        case "fast":
            recovery = replace(base, hidden=settings.hidden, kernel=settings.kernel)
            return replace(recovery, depth=settings.recovery_depth, repack=True)
        case "bottlenetpp":
            return replace(base, kind="bottlenetpp", linear=settings.bottlenet_linear)
        case "late-split":
            return replace(base, kind="late")
        case _:  # AECNN, and its planes coded as JPEG
            return replace(base, hidden=settings.hidden, kernel=settings.kernel)


def check_designs(settings: Algorithm1Settings, tasks: Sequence[Task]) -> None:
    """Build every purpose-made head without its numbers, before hours go into what they need.

    Raises ModelError: one of them fits neither the frame nor the tensor that it feeds.
    """
    heads = {task.name: task for task in tasks if task.kind == "strided"}
    if not heads:
        return
    with torch.device("meta"):
        backbone = build_backbone(settings.backbone)
        for name, task in heads.items():
            try:
                SplitModel(backbone, design_of(settings, task, strided_settings(settings, task).planes))
            except (ModelError, RuntimeError, ValueError) as exc:  # torch's own, of a layer that takes no such tensor
                said = str(exc).strip().partition("\n")[0]
                raise ModelError(f"the strided head {name!r} cannot be built: {said}") from None


def strided_settings(settings: Algorithm1Settings, task: Task) -> StridedSettings:
    """The [[strided]] table that ``task`` trains."""
    return next(item for item in settings.strided if item.name == task.name)
