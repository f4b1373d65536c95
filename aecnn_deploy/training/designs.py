"""The network that a task trains: built from its design when it is trained, and again when its run is assembled."""

from msgspec.structs import replace

from aecnn_deploy.models.split import SplitDesign
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


def strided_settings(settings: Algorithm1Settings, task: Task) -> StridedSettings:
    """The [[strided]] table that ``task`` trains."""
    return next(item for item in settings.strided if item.name == task.name)
