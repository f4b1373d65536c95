"""Real photographs that PyPI packages ship, and patches cut from photographs: training data without a download."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import ImageError, SourceError
from aecnn_deploy.optional import require
from aecnn_deploy.training.photographs import Frames, Photographs

_SCIKIT_IMAGE = ("astronaut", "camera", "chelsea", "coffee", "coins", "hubble_deep_field", "rocket")
_SCIKIT_LEARN = ("china", "flower")

_SMALLEST_PATCH = 0.35  # of the picture's shorter side
_MAX_SIDE = 1024  # a larger picture is made smaller first: a patch has the detail of a photograph of a thing


def write_sample_photographs(folder: Path) -> list[Path]:
    """Write the sample pictures of scikit-image and scikit-learn into ``folder``. Raises MissingExtraError."""
    data = require("skimage.data", why="the demo's photographs")
    datasets = require("sklearn.datasets", why="the demo's photographs")
    pictures = {name: getattr(data, name)() for name in _SCIKIT_IMAGE}
    pictures["motorcycle"] = data.stereo_motorcycle()[0]
    pictures |= {name: datasets.load_sample_image(f"{name}.jpg") for name in _SCIKIT_LEARN}
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, pixels in sorted(pictures.items()):
        files.append(folder / f"{name}.png")
        Image.fromarray(pixels).convert("RGB").save(files[-1], compress_level=3)
    return files


def cut_patches(
    files: Sequence[Path], count: int, spec: InputSpec, seed: int, *, on_step: Callable[[], None] = lambda: None
) -> Photographs:
    """``count`` frames cut from the pictures ``files``: squares of random size and place, half of them mirrored.

    A picture that does not decode is skipped and named. Raises SourceError: none decodes.
    """
    rng = np.random.default_rng(seed)
    pictures: list[Image.Image] = []
    skipped: list[str] = []
    for file in files:
        try:
            pictures.append(_open(file))
        except ImageError as exc:
            skipped.append(str(exc))
    if not pictures:
        raise SourceError(
            f"none of the {len(files)} pictures decodes; the first: {skipped[0]}" if files else "no picture"
        )
    frames: Frames = np.empty((count, spec.height, spec.width, 3), np.uint8)
    for index in range(count):
        frames[index] = _patch(pictures[index % len(pictures)], spec, rng)
        on_step()
    return Photographs(frames, tuple(str(file) for file in files), tuple(skipped))


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    except Exception as exc:  # a damaged file raises anything
        raise ImageError(str(file), str(exc).partition("\n")[0][:200]) from None
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return picture


def _patch(picture: Image.Image, spec: InputSpec, rng: np.random.Generator) -> Frames:
    short = min(picture.size)
    side = rng.uniform(_SMALLEST_PATCH, 1.0) * short
    left, top = rng.uniform(0, picture.width - side), rng.uniform(0, picture.height - side)
    patch = picture.resize((spec.width, spec.height), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    pixels = np.asarray(patch)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels
