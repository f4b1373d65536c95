"""The run that an export reads, from the tasks that are done."""

import platform
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch

import aecnn_deploy
from aecnn_deploy.errors import TrainingError
from aecnn_deploy.models.results import ResultRow
from aecnn_deploy.models.run import RUN_FORMAT, RunRecord, VariantRecord, describe_variant, write_run_files
from aecnn_deploy.models.split import SplitModel
from aecnn_deploy.training.algorithm1 import device_name
from aecnn_deploy.training.designs import design_of
from aecnn_deploy.training.tasks import Task
from aecnn_deploy.training.workshop import Workshop

_FRAMES_KEPT = 8
_EXPORTED = ("aecnn", "fast", "strided", "bottlenetpp", "late-split")


def assemble_run(shop: Workshop, tasks: Sequence[Task], rows: Sequence[ResultRow]) -> RunRecord:
    """Write run.json, the backbone, the variants of the first seed and a few frames into the run's folder.

    The variants' accuracies and bytes are those of the test split. Raises TrainingError: a task's files are missing, or
    the disk refuses.
    """
    seed = min(task.seed for task in tasks)
    backbone = shop.unsplit(seed)
    by_task = {row.task: row for row in rows}
    models: dict[str, SplitModel] = {}
    records: list[VariantRecord] = []
    for task in tasks:
        if task.kind not in _EXPORTED or task.seed != seed:
            continue
        row = by_task.get(task.id)
        if row is None:
            raise TrainingError(
                f"{shop.run}/results/{task.id}.json is missing; remove {shop.folder(task.id).path} and go on with "
                "--resume: only this task is trained again"
            )
        if row.ablation or row.variant is None or row.variant in models:
            continue
        state = shop.folder(task.id).model_state()
        model = SplitModel(backbone, design_of(shop.settings, task, len(state["kept"])), state["kept"])
        model.load_state_dict(state)
        record = describe_variant(
            backbone,
            model.eval(),
            row.ratio or 1,
            accuracy=row.accuracy,
            wire_bytes=row.wire_bytes,
            tail_trained=task.kind != "late-split",
        )
        models[row.variant] = model
        records.append(msgspec.structs.replace(record, id=row.variant))
    parts: dict[str, Any] = {name: len(getattr(shop.split, name)) for name in ("train", "validation", "test")}
    unsplit = by_task[f"unsplit-s{shop.unsplit_seed(seed)}"]
    run = RunRecord(
        format=RUN_FORMAT,
        backbone=backbone.name,
        labels=shop.photographs.categories,
        input=shop.pretrained().input,
        variants=tuple(records),
        settings=msgspec.to_builtins(shop.settings),
        measurements={
            "photographs": parts | {"skipped": len(shop.photographs.skipped)},
            "unsplit_accuracy": unsplit.accuracy,
            "device": device_name(shop.device),
        },
        tools={
            "aecnn-deploy": aecnn_deploy.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    )
    frames = np.ascontiguousarray(shop.frames("test")[:: max(1, parts["test"] // _FRAMES_KEPT)][:_FRAMES_KEPT])
    write_run_files(shop.run, run, backbone, models, frames)
    return run
