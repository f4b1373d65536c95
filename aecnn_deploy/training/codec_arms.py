"""The arms that send an image or nothing: full offloading of coded frames, JPEG-coded planes, the int8 network."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aecnn_deploy.codec.feature_jpeg import decode_planes, encode_planes
from aecnn_deploy.models.deploy import FullModel
from aecnn_deploy.models.results import FRAMING_BYTES, ResultRow, pack_correct, write_result
from aecnn_deploy.models.split import SplitModel
from aecnn_deploy.training.algorithm1 import device_name, validation_accuracy
from aecnn_deploy.training.designs import design_of
from aecnn_deploy.training.fitting import Group
from aecnn_deploy.training.frame_codecs import GRID, FrameCodec, coded
from aecnn_deploy.training.images import Images
from aecnn_deploy.training.losses import label_loss
from aecnn_deploy.training.measure import accuracy_of, classify_planes, correct_of, sent_planes, top1
from aecnn_deploy.training.tasks import Task
from aecnn_deploy.training.workshop import Workshop

_CALIBRATION_IMAGES = 128
_FEATURE_QUALITIES = (5, 10, 20, 40, 60, 80)


def train_codec(shop: Workshop, task: Task) -> None:
    """Fine-tune the unsplit network on frames of one codec and side, at all of its qualities; a row for each quality.

    Each epoch takes every training frame at a random quality; the frames of all qualities are coded once. Validation,
    for early stopping too, is on coded frames of all of them.
    """
    codecs = [FrameCodec(task.method, quality, side) for side, quality in GRID[task.method] if side == task.side]
    model = shop.unsplit(task.seed).to(shop.device).to(memory_format=torch.channels_last)
    images, views = shop.images("train"), shop.views()
    frames = np.ascontiguousarray(shop.frames("train"))
    # They stay on the host: a few qualities of a data set are gigabytes, a batch is megabytes.
    trained = np.stack([coded(frames, codec)[0] for codec in codecs])
    validating = [_coded_images(shop, "validation", codec)[0] for codec in codecs]
    fitter = shop.fitter(task.id, task.seed)

    def loss_of(rows: Tensor, generator: torch.Generator, _progress: float) -> Tensor:
        which = torch.randint(len(codecs), (len(rows),), generator=generator)
        x = torch.from_numpy(trained[which.numpy(), rows.cpu().numpy()]).to(shop.device)
        with shop.autocast():
            logits = model(views.random(x, generator))
        return label_loss(logits, images.labels[rows], shop.settings.label_smoothing)

    fitter.fit(
        "codec",
        model,
        [Group([model])],
        shop.settings.codec,
        len(images),
        loss_of,
        lambda: float(np.mean([validation_accuracy(shop, model, seen) for seen in validating])),
    )
    full = FullModel(model.cpu())
    for codec, validation in zip(codecs, validating, strict=True):
        seen, sizes = _coded_images(shop, "test", codec)
        correct = correct_of(top1(full, seen), seen)
        row = ResultRow(
            task=f"{task.id}-q{codec.quality}",
            arm=codec.name,
            seed=task.seed,
            accuracy=float(correct.mean()),
            validation_accuracy=accuracy_of(top1(full, validation), validation),
            test_images=len(seen),
            test_set=shop.test_set(),
            correct=pack_correct(correct),
            quality=codec.quality,
            side=codec.side,
            payload_bytes=float(sizes.mean()),
            wire_bytes=float(sizes.mean()) + FRAMING_BYTES,
            full_macs=shop.full_macs(),
            epochs=fitter.epochs,
            train_s=round(fitter.spent_s, 1),
            device=device_name(shop.device),
        )
        write_result(shop.run, row)
    shop.folder(task.id).finish(None, {"epochs": fitter.epochs, "train_s": round(fitter.spent_s, 1)})


def _coded_images(shop: Workshop, part: str, codec: FrameCodec) -> tuple[Images, npt.NDArray[np.int64]]:
    """What arrives of the frames of one part of the split, and the bytes of each."""
    decoded, sizes = coded(np.ascontiguousarray(shop.frames(part)), codec)
    return Images(torch.from_numpy(decoded).to(shop.device), shop.images(part).labels), sizes


def measure_feature_jpeg(shop: Workshop, task: Task) -> None:
    """AECNN's planes coded as a JPEG image (Ko et al., AVSS 2018), at several qualities; nothing more is trained."""
    before = shop.folder(f"aecnn-l{task.split}-v{task.ratio}-u{task.bits}-s{task.seed}")
    state = before.model_state()
    backbone, done = shop.unsplit(task.seed), before.done()
    model = SplitModel(backbone, design_of(shop.settings, task, len(state["kept"])), state["kept"])
    model.load_state_dict(state)
    images = shop.images("test")
    point = backbone.split_point(task.split)
    planes = sent_planes(model.to(shop.device), backbone.input, images)
    for quality in _FEATURE_QUALITIES:
        contents = [encode_planes(item, task.bits, quality) for item in planes]
        decoded = np.stack([decode_planes(content, model.planes_shape, task.bits) for content in contents])
        mean_bytes = float(np.mean([len(content) for content in contents]))
        correct = correct_of(classify_planes(model, decoded, shop.device), images)
        row = ResultRow(
            task=f"{task.id}-q{quality}",
            arm="jpeg-features",
            seed=task.seed,
            accuracy=float(correct.mean()),
            test_images=len(images),
            test_set=shop.test_set(),
            correct=pack_correct(correct),
            split=task.split,
            split_shape=(point.channels, point.height, point.width),
            ratio=task.ratio,
            bits=task.bits,
            planes=model.planes_shape,
            quality=quality,
            payload_bytes=mean_bytes,
            wire_bytes=mean_bytes + FRAMING_BYTES,
            head_macs=shop.macs(model.head.cpu()),
            full_macs=shop.full_macs(),
            epochs=float(done["epochs"]),
            train_s=float(done["train_s"]),
            device=device_name(shop.device),
        )
        write_result(shop.run, row)
    shop.folder(task.id).finish(None, done)


def measure_local_int8(shop: Workshop, task: Task) -> None:
    """The unsplit network in int8, run by ONNX Runtime: what a device does without a link."""
    from aecnn_deploy.exporters.onnx_export import export_onnx
    from aecnn_deploy.training.local_int8 import int8_model
    from aecnn_deploy.training.local_int8 import top1 as int8_top1

    backbone = shop.unsplit(task.seed)
    spec = backbone.input
    folder = shop.folder(task.id).path
    folder.mkdir(parents=True, exist_ok=True)
    full, quantised = folder / "full.onnx", folder / "int8.onnx"
    export_onnx(
        FullModel(backbone),
        "full",
        full,
        input_shape=(spec.height, spec.width, 3),
        output_shape=(shop.classes,),
        properties={"aecnn.backbone": backbone.name},
    )
    frames = shop.frames("train")
    step = max(1, len(frames) // _CALIBRATION_IMAGES)
    int8_model(full, np.ascontiguousarray(frames[::step][:_CALIBRATION_IMAGES]), quantised)
    images = shop.images("test")
    correct = correct_of(int8_top1(quantised, np.ascontiguousarray(shop.frames("test"))), images)
    row = ResultRow(
        task=task.id,
        arm="local-int8",
        seed=task.seed,
        accuracy=float(correct.mean()),
        test_images=len(images),
        test_set=shop.test_set(),
        correct=pack_correct(correct),
        bits=8,
        head_macs=shop.full_macs(),
        full_macs=shop.full_macs(),
    )
    write_result(shop.run, row)
    for file in (full, quantised):
        file.unlink(missing_ok=True)
    shop.folder(task.id).finish(None, {"epochs": 0, "train_s": 0.0})
