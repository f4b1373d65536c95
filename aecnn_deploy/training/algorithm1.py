"""Algorithm 1 of the paper, stage by stage, each a task: rank, prune and fine-tune, recover and fine-tune.

For a split point l: channel attention is inserted after l in the fine-tuned unsplit network, which is trained with it;
the channels are ranked by eq. 8; the attention is removed. For a ratio V the original network is pruned by that ranking
and fine-tuned through the quantiser (CA_Pruned); then feature recovery is inserted, silent at first, and the whole is
fine-tuned again (AECNN). BottleNet++ takes the same numbers of epochs for its module and for the joint phase.
"""

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aecnn_deploy.models.attention import channel_importance, kept_channels
from aecnn_deploy.models.backbones import Backbone
from aecnn_deploy.models.deploy import FullModel
from aecnn_deploy.models.rankers import ATTENTIONS, l1_importance, random_importance
from aecnn_deploy.models.results import Ranking, ResultRow, pack_correct, read_ranking, write_result
from aecnn_deploy.models.split import SplitModel, design_id
from aecnn_deploy.training.designs import design_of
from aecnn_deploy.training.fitting import Fitter, Group
from aecnn_deploy.training.images import Images
from aecnn_deploy.training.losses import label_loss
from aecnn_deploy.training.measure import accuracy_of, correct_of, measure_wire, top1
from aecnn_deploy.training.settings import FitSettings
from aecnn_deploy.training.tasks import Task
from aecnn_deploy.training.workshop import Workshop

_CALIBRATION_IMAGES = 256
_NEW = 3.0  # what begins untrained learns faster by this factor
_RANDOM_BATCHES, _BATCH_IMAGES = 3, 128  # Fig. 4's


def train_unsplit(shop: Workshop, task: Task) -> None:
    """Fine-tune the whole network on the data set's categories."""
    backbone = shop.untrained_classes(task.seed).to(shop.device).to(memory_format=torch.channels_last)
    fitter = shop.fitter(task.id, task.seed)
    last = list(backbone.classifier.children())[-1]
    frozen = shop.settings.freeze
    rest = [backbone.stages[frozen:], *list(backbone.classifier.children())[:-1]]
    run = nn.Sequential(*backbone.stages[frozen:], backbone.classifier)
    groups = [Group(rest), Group([last], _NEW)]
    fit_labels(shop, fitter, "unsplit", backbone, run, frozen, groups, shop.settings.unsplit)
    row = _unsplit_row(shop, task, backbone, fitter.epochs, round(fitter.spent_s, 1))
    finish(shop, task, row, backbone)


def measure_unsplit(shop: Workshop, task: Task) -> None:
    """Write the row of an unsplit network that is done: one that was brought from another run may come without it."""
    done = shop.folder(task.id).done()
    row = _unsplit_row(shop, task, shop.unsplit(task.seed), done.get("epochs", 0), done.get("train_s", 0.0))
    write_result(shop.run, row)


def _unsplit_row(shop: Workshop, task: Task, backbone: Backbone, epochs: int, train_s: float) -> ResultRow:
    images = shop.images("test")
    full = FullModel(backbone.cpu())
    correct = correct_of(top1(full, images), images)
    return ResultRow(
        task=task.id,
        arm="unsplit",
        seed=task.seed,
        accuracy=float(correct.mean()),
        validation_accuracy=accuracy_of(top1(full, shop.images("validation")), shop.images("validation")),
        test_images=len(images),
        test_set=shop.test_set(),
        correct=pack_correct(correct),
        head_macs=shop.full_macs(),
        full_macs=shop.full_macs(),
        epochs=epochs,
        train_s=train_s,
        device=device_name(shop.device),
    )


def rank_channels(shop: Workshop, task: Task) -> None:
    """Insert attention, train, and rank by eq. 8; the L1 norm and a random order need no training."""
    fitter = shop.fitter(task.id, task.seed)
    backbone = shop.unsplit(task.seed)
    channels = backbone.split_point(task.split).channels
    batches: list[Tensor] = []
    if task.method == "random":
        importance = random_importance(channels, task.seed)
    elif task.method == "l1":
        importance = l1_importance(backbone, task.split)
    else:
        torch.manual_seed(task.seed)  # whatever this process has drawn before
        attention = ATTENTIONS[task.method](channels)
        head, tail = backbone.head(task.split), backbone.tail(task.split)
        net = nn.Sequential(OrderedDict(head=head, attention=attention, tail=tail))
        net = net.to(shop.device).to(memory_format=torch.channels_last)
        frozen = frozen_stages(shop, task.split)
        run = nn.Sequential(*head[frozen:], attention, tail)
        groups = [Group([head[frozen:], tail]), Group([attention], _NEW)]
        fit_labels(shop, fitter, "attention", net, run, frozen, groups, shop.settings.attention)
        with fitter.timed():
            importance, batches = _importance(shop, net, task.seed)
    ranking = Ranking(
        task=task.id,
        method=task.method,
        split=task.split,
        seed=task.seed,
        importance=tuple(round(float(value), 6) for value in importance),
        batches=tuple(tuple(round(float(value), 6) for value in batch) for batch in batches),
        batch_images=_BATCH_IMAGES if batches else 0,
    )
    write_result(shop.run, ranking)
    shop.folder(task.id).finish(None, {"epochs": fitter.epochs, "train_s": round(fitter.spent_s, 1)})


@torch.no_grad()
def _importance(shop: Workshop, net: Any, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Importance over the training split, and from three random batches of it."""
    images, views = shop.images("train"), shop.views()

    def of(rows: Tensor) -> Tensor:
        with shop.autocast():
            tensors = (net.head(views.plain(images.frames[part])).float() for part in torch.split(rows, 64))
            return channel_importance(tensors, net.attention).cpu()

    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).to(shop.device)
    random = list(torch.split(order, _BATCH_IMAGES))[:_RANDOM_BATCHES]
    return of(torch.arange(len(images), device=shop.device)), [of(rows) for rows in random]


def train_pruned(shop: Workshop, task: Task) -> None:
    """CA_Pruned: prune the head by the ranking and fine-tune the whole through the quantiser."""
    backbone = shop.unsplit(task.seed)
    kept = kept_of(shop, task)
    model = new_model(shop, task, backbone, len(kept), kept)
    calibrate(shop, model)
    fitter = shop.fitter(task.id, task.seed)
    frozen = frozen_stages(shop, task.split)
    groups = [Group([model.head[frozen:], model.tail]), Group([model.quantiser])]
    fit_labels(shop, fitter, "prune", model, from_stage(model, frozen), frozen, groups, shop.settings.prune)
    before = shop.folder(f"rank-{task.method}-l{task.split}-s{task.seed}").done()
    arm = "ca-pruned" if task.method == "ca" else task.method
    finish(shop, task, split_row(shop, task, model, arm, fitter, before), model)


def train_recovery(shop: Workshop, task: Task) -> None:
    """AECNN: insert feature recovery into CA_Pruned and fine-tune the whole."""
    before = shop.folder(f"pruned-ca-l{task.split}-v{task.ratio}-u{task.base_bits}-s{task.seed}")
    backbone = shop.unsplit(task.seed)
    state = before.model_state()
    model = new_model(shop, task, backbone, len(state["kept"]), state["kept"])
    take_over(model, state)
    fitter = shop.fitter(task.id, task.seed)
    if task.base_bits != task.bits:  # CA_Pruned was fine-tuned once, at more bits
        calibrate(shop, model)
    frozen = frozen_stages(shop, task.split)
    groups = [Group([model.head[frozen:], model.tail]), Group([model.quantiser]), Group([model.recovery], _NEW)]
    fit_labels(shop, fitter, "recover", model, from_stage(model, frozen), frozen, groups, shop.settings.recover)
    finish(shop, task, split_row(shop, task, model, "aecnn", fitter, before.done()), model)


def train_bottlenet(shop: Workshop, task: Task) -> None:
    """BottleNet++: its module with a frozen base, then all jointly; 2^bits levels of the sigmoid's range."""
    backbone = shop.unsplit(task.seed)
    model = new_model(shop, task, backbone, backbone.split_point(task.split).kept_channels(task.ratio))
    with torch.no_grad():  # the sigmoid's range
        model.quantiser.low.zero_()
        model.quantiser.log_step.fill_(float(np.log(1 / model.quantiser.levels)))
    fitter = shop.fitter(task.id, task.seed)
    frozen = frozen_stages(shop, task.split)
    encoder, base, run = model.head[-3:], model.head[frozen:-3], from_stage(model, frozen)
    module = [Group([encoder, model.recovery], _NEW)]
    fit_labels(shop, fitter, "module", model, run, frozen, module, shop.settings.prune)
    joint = [Group([base, model.tail]), Group([encoder, model.recovery])]
    fit_labels(shop, fitter, "joint", model, run, frozen, joint, shop.settings.recover)
    finish(shop, task, split_row(shop, task, model, "bottlenetpp", fitter), model)


def measure_late(shop: Workshop, task: Task) -> None:
    """A late split: every channel is sent, quantised; nothing is trained."""
    backbone = shop.unsplit(task.seed)
    model = new_model(shop, task, backbone, backbone.split_point(task.split).channels)
    calibrate(shop, model)
    fitter = shop.fitter(task.id, task.seed)
    finish(shop, task, split_row(shop, task, model, "late-split", fitter), model)


def frozen_stages(shop: Workshop, split: int) -> int:
    """How many first stages keep their weights in a network that is split after ``split``: never the last of a head."""
    return min(shop.settings.freeze, split - 1)


def from_stage(model: SplitModel, frozen: int) -> nn.Module:
    """The network without its first ``frozen`` stages; the parts are the model's own."""
    return nn.Sequential(*model.head[frozen:], model.quantiser, model.recovery, model.tail)


def fit_labels(
    shop: Workshop,
    fitter: Fitter,
    stage: str,
    model: nn.Module,
    run: nn.Module,
    frozen: int,
    groups: list[Group],
    settings: FitSettings,
) -> None:
    """One stage on the labels alone; ``run`` is ``model`` without its first ``frozen`` stages."""
    images = shop.images("train")
    with fitter.timed():
        bank = shop.bank(frozen)

    def loss_of(rows: Tensor, generator: torch.Generator, _progress: float) -> Tensor:
        batch = bank.batch(rows, generator)
        with shop.autocast():
            logits = run(batch.x)
        return label_loss(logits, images.labels[rows], shop.settings.label_smoothing)

    fitter.fit(stage, model, groups, settings, len(images), loss_of, lambda: validation_accuracy(shop, model))


@torch.no_grad()
def validation_accuracy(shop: Workshop, model: nn.Module, images: Images | None = None) -> float:
    """Top-1 on the validation split, or on ``images`` made of it; through the quantiser where the model has one."""
    images, views = shop.images("validation") if images is None else images, shop.views()
    correct = torch.zeros((), device=shop.device)
    for rows in torch.split(torch.arange(len(images), device=shop.device), 64):
        with shop.autocast():
            classes = model(views.plain(images.frames[rows])).argmax(dim=1)
        correct += (classes == images.labels[rows]).sum()
    return float(correct) / len(images)


def kept_of(shop: Workshop, task: Task) -> Tensor:
    """The channels that the ranking keeps: int64 (C',), ascending."""
    ranking = read_ranking(shop.run, f"rank-{task.method}-l{task.split}-s{task.seed}")
    point = shop.pretrained().split_point(task.split)
    return kept_channels(torch.tensor(ranking.importance, dtype=torch.float64), point.kept_channels(task.ratio))


def take_over(model: SplitModel, state: dict[str, Tensor]) -> None:
    """Head, quantiser and tail of a trained network; recovery stays as it is."""
    own = model.state_dict()
    taken = {key: value for key, value in state.items() if not key.startswith("recovery.")}
    model.load_state_dict(own | taken)


def new_model(shop: Workshop, task: Task, backbone: Backbone, planes: int, kept: Tensor | None = None) -> SplitModel:
    """The network of ``task``, which sends ``planes`` channels, on the device that trains, channels last.

    What begins untrained is drawn from the task's seed alone, whatever this process has drawn before.
    """
    torch.manual_seed(task.seed)
    model = SplitModel(backbone, design_of(shop.settings, task, planes), kept)
    return model.to(shop.device).to(memory_format=torch.channels_last)


@torch.no_grad()
def calibrate(shop: Workshop, model: SplitModel, new: nn.Module | None = None) -> None:
    """Set the quantiser's ranges from training images; batch norms of ``new`` stages have no statistics yet."""
    images, views = shop.images("train"), shop.views()
    frames = images.frames[:: max(1, len(images) // _CALIBRATION_IMAGES)][:_CALIBRATION_IMAGES]
    if new is not None:
        new.train()
    sent = [model.head(views.plain(part)).float() for part in torch.split(frames, 64)]
    model.eval()
    model.quantiser.calibrate(torch.cat(sent))


def split_row(
    shop: Workshop, task: Task, model: SplitModel, arm: str, fitter: Fitter, before: dict[str, Any] | None = None
) -> ResultRow:
    """The result of a split network on the test split; ``before``: the task that it began from."""
    point = shop.pretrained().split_point(model.split)
    spec = shop.pretrained().input
    model.eval()
    validation = measure_wire(model, spec, shop.images("validation"))
    wire = measure_wire(model, spec, shop.images("test"))
    channels, height, width = model.planes_shape
    before = before or {}
    ratio = task.ratio or max(1, round(point.channels * point.height * point.width / (channels * height * width)))
    return ResultRow(
        task=task.id,
        arm=arm,
        seed=task.seed,
        accuracy=wire.accuracy,
        validation_accuracy=validation.accuracy,
        test_images=len(wire.correct),
        test_set=shop.test_set(),
        correct=pack_correct(wire.correct),
        variant=_variant(shop, task, model, ratio),
        split=model.split,
        split_shape=(point.channels, point.height, point.width),
        ratio=ratio,
        bits=model.bits,
        planes=model.planes_shape,
        wire_bytes=wire.wire_bytes,
        payload_bytes=float(wire.payload_bytes.mean()),
        entropy_bits=round(wire.entropy_bits, 4),
        encode_ms=round(wire.encode_ms, 4),
        decode_ms=round(wire.decode_ms, 4),
        head_macs=shop.macs(model.head),
        full_macs=shop.full_macs(),
        epochs=fitter.epochs + float(before.get("epochs", 0)),
        train_s=round(fitter.spent_s + float(before.get("train_s", 0)), 1),
        device=device_name(shop.device),
        label=task.name,
    )


def _variant(shop: Workshop, task: Task, model: SplitModel, ratio: int) -> str:
    name = shop.settings.backbone
    if task.kind == "strided":
        return f"{name}-l{model.split}-strided-{task.name}-u{model.bits}"
    return design_id(name, model.design, ratio) + ("-fast" if task.kind == "fast" else "")


def finish(shop: Workshop, task: Task, row: ResultRow, model: nn.Module | None) -> None:
    """Write what the task measured, then its network, then that it is done."""
    write_result(shop.run, row)
    shop.folder(task.id).finish(model, {"epochs": row.epochs, "train_s": row.train_s})


def device_name(device: torch.device) -> str:
    """What a person calls the device, e.g. "NVIDIA H100 80GB HBM3" or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
