"""The photographs that LoadGen draws samples from, with their labels: files that nothing was trained on."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import SettingsError
from benchmarks.traffic import ZOO, photograph_frames

SPLIT = Path(__file__).parents[1] / "results" / "caltech101-lite0" / "h100" / "data.json"  # of the zoo's bundle
SUFFIXES = (".jpg", ".jpeg")
TEST_SPLIT = "the test split"
WHOLE_FOLDER = "the whole folder: some may have been trained on"
PATCHES = "patches of sample pictures"
_QUALITY = 90


@dataclass(frozen=True, slots=True)
class Photographs:
    """Image files, and of each its label's index; no labels where nobody knows what the pictures show."""

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    origin: str  # what they are, for a reader of the results


def find_photographs(name: str, data: Path, split: Path | None, count: int) -> list[Path]:
    """``count`` photographs (0: all) below ``data``, spread evenly over those that nothing was trained on.

    ``split``: a run's data.json, whose "test" they are; without one that of the zoo's bundle, if ``name`` is the
    bundle's, or else every photograph of the folder. Raises SettingsError: there are none, or fewer than ``count``.
    """
    named = split or (SPLIT if name == ZOO else None)
    if named is None:
        files = sorted(path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES)
    else:
        test = _test_part(named)
        files = [data / each for each in test if (data / each).is_file()]
        if len(files) != len(test):
            raise SettingsError(
                f"{data} has {len(files)} of the {len(test)} test photographs that {named.name} names; "
                "give the folder whose sub-folders are the categories"
            )
    if len(files) < max(1, count):
        raise SettingsError(
            f"{data} has {len(files)} photographs, expected {max(1, count)} or more; lower --photographs"
        )
    chosen = np.linspace(0, len(files) - 1, count or len(files)).round().astype(int)
    return [files[index] for index in chosen]


def open_photographs(
    bundle: Bundle, name: str, data: Path | None, split: Path | None, count: int, folder: Path
) -> Photographs:
    """The photographs below ``data``, labelled by their folder's name; without ``data`` patches of sample pictures.

    The patches are written to ``folder`` as JPEG files. Raises SettingsError, as ``find_photographs``.
    """
    if data is None:
        if split is not None:
            raise SettingsError(f"--split {split} names photographs, and there is no --data to find them in")
        return Photographs(tuple(_write_patches(bundle, count or 100, folder)), None, PATCHES)
    files = find_photographs(name, data, split, count)
    numbers = {label: number for number, label in enumerate(bundle.manifest.labels)}
    labels = [numbers.get(file.parent.name) for file in files]
    known = tuple(label for label in labels if label is not None)
    if known and len(known) < len(files):
        odd = next(file for file, label in zip(files, labels, strict=True) if label is None)
        raise SettingsError(f"{odd.parent.name!r} of {odd} is no label of the bundle; move it out of {data}")
    held_out = split is not None or name == ZOO
    return Photographs(tuple(files), known or None, TEST_SPLIT if held_out else WHOLE_FOLDER)


def _test_part(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_text())["test"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SettingsError(f"{path} is no data.json of a training run: {type(exc).__name__}: {exc}") from None
    return [str(name) for name in names]


def _write_patches(bundle: Bundle, count: int, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, frame in enumerate(photograph_frames(bundle.manifest.input, None, count)):
        out = io.BytesIO()
        Image.fromarray(frame).save(out, "JPEG", quality=_QUALITY)
        files.append(folder / f"patch{number:04}.jpg")
        files[-1].write_bytes(out.getvalue())
    return files
