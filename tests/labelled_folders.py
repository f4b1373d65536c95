"""Folders of labelled photographs for tests, and what a caller is told of them."""

from pathlib import Path

import numpy as np
from PIL import Image

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.training.dataset import (
    LabelledPhotographs,
    load_labelled,
)
from aecnn_deploy.training.progress import SilentProgress

SPEC = InputSpec(32, 32, 36, "bicubic", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))


class Told(SilentProgress):
    """What a caller is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.notes: list[str] = []
        self.steps: list[int] = []

    def stage(self, title: str, steps: int) -> None:
        self.stages.append((title, steps))
        self.steps.append(0)

    def step(self, note: str = "") -> None:
        self.steps[-1] += 1
        self.notes.append(note)

    def has(self, *words: str) -> bool:
        return any(all(word in note for word in words) for note in self.notes)


def write_images(folder: Path, count: int, seed: int = 0, side: int = 40) -> list[Path]:
    """``count`` JPEG files of noise on one colour each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *folder.name.encode()])
    files = [folder / f"image_{index:04}.jpg" for index in range(1, count + 1)]
    for file in files:
        pixels = rng.integers(0, 200, 3) + rng.integers(0, 56, (side, side, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    return files


def three_categories(folder: Path) -> Path:
    """Three categories of 5, 4 and 3 images, with what else lies in such folders."""
    for name, count in (("dog", 4), ("cat", 5), ("Ant", 3)):
        write_images(folder / name, count)
    (folder / "README.txt").write_text("no category")
    (folder / "cat/notes.txt").write_text("no image")
    (folder / "cat/._image_0001.jpg").write_bytes(b"what a Mac leaves")
    write_images(folder / ".thumbnails", 2)
    write_images(folder / "dog/.hidden", 1)
    return folder


def load(root: Path, cache: Path | None = None, told: Told | None = None) -> LabelledPhotographs:
    return load_labelled(root, SPEC, cache=cache, progress=told or Told())


def entries(cache: Path, suffix: str) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.name.endswith(suffix))


def same(left: LabelledPhotographs, right: LabelledPhotographs) -> bool:
    return (
        np.array_equal(left.frames, right.frames)
        and np.array_equal(left.labels, right.labels)
        and (left.categories, left.files, left.skipped) == (right.categories, right.files, right.skipped)
    )


def truncate(path: Path) -> None:
    """Leave all of a file but its last two bytes."""
    path.write_bytes(path.read_bytes()[:-2])


def empty(path: Path) -> None:
    """Leave nothing of a file."""
    path.write_bytes(b"")
