"""Runs of training for tests: pictures, settings, and what a run left or told."""

import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aecnn_deploy.models.backbones import Backbone, backbone_spec, build_backbone
from aecnn_deploy.models.results import ResultRow
from aecnn_deploy.training.dataset import load_labelled, read_split
from aecnn_deploy.training.progress import SILENT, SilentProgress
from aecnn_deploy.training.settings import Algorithm1Settings, read_settings
from aecnn_deploy.training.supervised import Supervised, train_supervised


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    data: Path
    out: Path
    settings: Algorithm1Settings
    result: Supervised

    def go_on(self, out: Path, settings: Algorithm1Settings, **options: Any) -> Supervised:
        defaults = {"resume": True, "replace": False, "progress": SILENT}
        return train_supervised(settings, self.data, out, **(defaults | options))

    def row(self, task: str) -> ResultRow:
        return next(row for row in self.result.rows if row.task == task)


def frames_and_labels(trained: Trained) -> tuple[np.ndarray, np.ndarray]:
    """Frames and labels of the recorded test split."""
    photographs = load_labelled(trained.data, backbone_spec("resnet18").input, cache=None)
    split = read_split(trained.out / "data.json", photographs)
    return photographs.frames[split.test], photographs.labels[split.test]


def settings_of(folder: Path, text: str) -> Algorithm1Settings:
    """Settings as a user writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text('method = "algorithm1"\nbackbone = "resnet18"\n' + text)
    settings = read_settings(folder / "config.toml")
    assert isinstance(settings, Algorithm1Settings)
    return settings


@cache
def resnet18() -> Backbone:
    return build_backbone("resnet18")


def write_pictures(root: Path, count: int = 8) -> Path:
    """Two categories of ``count`` pictures each, reddish and bluish."""
    rng = np.random.default_rng(0)
    for name, colour in (("blue", (40, 40, 200)), ("red", (200, 40, 40))):
        (root / name).mkdir(parents=True)
        for index in range(count):
            coarse = np.clip(rng.integers(-30, 30, (6, 6, 3)) + np.array(colour), 0, 255).astype(np.uint8)
            Image.fromarray(coarse).resize((64, 64)).save(root / name / f"{index}.png")
    return root


def done_at(out: Path) -> dict[str, int]:
    """When each task of the run was done."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (out / "tasks").glob("*/done.json")}


def tree(folder: Path) -> dict[Path, bytes | tuple[int, ...]]:
    """Each file: what it holds, of a network which file it is and when it was written. To be compared."""
    return {path.relative_to(folder): _state(path) for path in folder.rglob("*") if path.is_file()}


def _state(path: Path) -> bytes | tuple[int, ...]:
    if path.suffix != ".safetensors":
        return path.read_bytes()
    stat = path.stat()
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns)


def copy_run(run: Path, to: Path) -> Path:
    """A copy to be changed. Networks of its tasks, half a gigabyte, are the same files: none is written in place."""

    def copy(source: str, target: str) -> None:
        if Path(source).suffix == ".safetensors" and "tasks" in Path(source).relative_to(run).parts:
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    shutil.copytree(run, to, copy_function=copy)
    return to


class Steps(SilentProgress):
    """Counts what a caller is told."""

    def __init__(self) -> None:
        self.planned: list[tuple[str, int]] = []
        self.done: list[int] = []

    def stage(self, title: str, steps: int) -> None:
        self.planned.append((title, steps))
        self.done.append(0)

    def step(self, note: str = "") -> None:
        self.done[-1] += 1
