"""Photographs for training: any folder of images, decoded as the device decodes them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import ImageError, SourceError
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.sources import image_files

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Photographs:
    """Decoded photographs: ``frames`` uint8 (N, H, W, 3) and what could not be decoded."""

    frames: Frames
    sources: tuple[str, ...]
    skipped: tuple[str, ...]


def choose_files(folder: Path, limit: int, seed: int) -> list[Path]:
    """At most ``limit`` image files under ``folder``, drawn with ``seed``. Raises SourceError: there are none."""
    files = image_files(folder)
    if len(files) <= limit:
        return files
    chosen = np.random.default_rng(seed).permutation(len(files))[:limit]
    return [files[index] for index in sorted(chosen)]


def load_photographs(
    files: Sequence[Path], spec: InputSpec, *, on_step: Callable[[], None] = lambda: None
) -> Photographs:
    """Decode ``files`` into frames. Raises SourceError: not one of them decodes."""
    frames = np.empty((len(files), spec.height, spec.width, 3), np.uint8)
    sources: list[str] = []
    skipped: list[str] = []

    def decode(file: Path) -> Frames | ImageError:
        try:
            return read_frame(file, spec)
        except ImageError as exc:
            return exc

    with ThreadPoolExecutor() as pool:
        for file, result in zip(files, pool.map(decode, files), strict=True):
            if isinstance(result, ImageError):
                skipped.append(str(result))
            else:
                frames[len(sources)] = result
                sources.append(str(file))
            on_step()
    if not sources:
        raise SourceError(f"none of the {len(files)} images decodes; the first: {skipped[0]}")
    return Photographs(frames[: len(sources)], tuple(sources), tuple(skipped))
