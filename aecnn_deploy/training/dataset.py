"""Labelled photographs: a folder whose sub-folders are the categories, decoded as the device decodes, and its split."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np
import numpy.typing as npt

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import RunFormatError, SettingsError, SourceError, TrainingError
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.source import printable, shown
from aecnn_deploy.runtimes.sources import SUFFIXES, image_files
from aecnn_deploy.training.dataset_cache import ImageFile, decode_files
from aecnn_deploy.training.photographs import Frames
from aecnn_deploy.training.progress import SILENT, Progress, tell

Indices = npt.NDArray[np.int64]

CALTECH101 = "caltech101"

_TORCHVISION_FOLDER = "101_ObjectCategories"
_BY_HAND = (
    'get "caltech-101.zip" by hand from https://data.caltech.edu/records/mzrjq-6wc02, unpack it and the '
    f"{_TORCHVISION_FOLDER}.tar.gz inside, and put the folder {_TORCHVISION_FOLDER} into "
)
# No category but pictures of anything. The plain names mean it only where the folder's own name is Caltech-101's.
_CLUTTER = "BACKGROUND_Google"
_CLUTTER_OF_CALTECH101 = frozenset({"background", "background_google", "clutter"})
_NAMED = 5  # at most so many in one message


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPhotographs:
    """Decoded photographs with their categories.

    ``frames`` uint8 (N, H, W, 3), mapped from the cache where there is one; ``labels`` (N,), indices of
    ``categories``, which are sorted; ``files``, the N paths below the root; ``skipped``, what did not decode, and why.
    """

    frames: Frames
    labels: Indices
    categories: tuple[str, ...]
    files: tuple[str, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class DataSplit:
    """Sorted indices of the photographs of each part; no photograph is in two of them."""

    train: Indices
    validation: Indices
    test: Indices


class _SplitRecord(msgspec.Struct, frozen=True, kw_only=True):
    categories: tuple[str, ...]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def default_data() -> Path:
    """Where data sets are looked for and downloaded to: ``$AECNN_DATA``, or ``data`` in this package's cache."""
    folder = os.environ.get("AECNN_DATA")
    return Path(folder) if folder else _cache_home() / "data"


def default_cache() -> Path:
    """Where decoded frames are kept: ``$XDG_CACHE_HOME/aecnn-deploy/frames``, or the same under ``~/.cache``."""
    return _cache_home() / "frames"


def resolve_data(data: str, data_dir: Path | None, *, download: bool = True, progress: Progress = SILENT) -> Path:
    """The folder whose sub-folders are the categories of ``data``: a folder's path, or the name ``caltech101``.

    The name is looked for under ``data_dir`` (``default_data()`` when None) as ``caltech101/CATEGORY``, in
    torchvision's layout, or as ``data_dir`` itself; where it is missing it is downloaded by torchvision. A folder of
    that name is given as ``./caltech101``. Raises SourceError: there is no such folder, or the download fails.
    """
    if data == CALTECH101:
        return _caltech101(data_dir if data_dir is not None else default_data(), download, progress)
    root, is_there = Path(data), False
    with suppress(OSError):  # a name that is too long
        is_there = bool(data) and root.is_dir()
    if not is_there:
        raise SourceError(
            f"there is no folder {data or repr(data)}; give a folder whose sub-folders are the categories, or the name "
            f"{CALTECH101}"
        )
    inner = root / _TORCHVISION_FOLDER
    return inner if inner.is_dir() else root


def load_labelled(
    root: Path, spec: InputSpec, *, cache: Path | None, progress: Progress = SILENT
) -> LabelledPhotographs:
    """Decode the photographs of every category under ``root``; ``cache`` is a folder that keeps the frames.

    Files without an image's suffix and hidden ones are ignored, an image that does not decode is skipped and named,
    and Caltech-101's folder of clutter is no category. Raises SourceError: a category without any image that
    decodes, fewer than two categories.
    """
    folders = _category_folders(root)
    if len(folders) < 2:
        raise SourceError(
            f"{root} holds {len(folders)} categories, two are the least; each of its sub-folders is one category, "
            "with its images inside"
        )
    found = {name: _images(root, folder) for name, folder in folders.items()}
    suffixes = ", ".join(sorted(SUFFIXES))
    _refuse_empty(root, [name for name, files in found.items() if not files], f" (known suffixes are {suffixes})")
    decoded = decode_files([file for files in found.values() for file in files], spec, cache, progress)
    categories = tuple(found)
    index = {name: label for label, name in enumerate(categories)}
    labels = np.array([index[name.partition("/")[0]] for name in decoded.names], np.int64)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(categories)) == 0)
    if len(empty):
        first = categories[empty[0]]
        why = next((reason for reason in decoded.skipped if reason.startswith(f"{printable(first)}/")), "not one")
        _refuse_empty(root, [categories[label] for label in empty], f" that decodes ({why})")
    return LabelledPhotographs(decoded.frames, labels, categories, decoded.names, decoded.skipped)


def stratified_split(
    labels: Indices, *, validation: float, test: float, seed: int, categories: Sequence[str] = ()
) -> DataSplit:
    """Part the photographs of each category by the shares ``validation`` and ``test``; the rest is for training.

    Each category is shuffled by a generator of its own, made of ``seed`` and its label, so that its parts depend on
    no other category; shares are rounded, and each part has one image of each category at the least. ``categories``
    names the labels in messages. Raises SettingsError: the shares or the seed are impossible. Raises TrainingError:
    a category has too few images.
    """
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise SettingsError(
            f"the shares validation {validation:g} and test {test:g} leave a part empty; "
            "both must be above 0, and their sum below 1"
        )
    if seed < 0:
        raise SettingsError(f"the seed {seed} is negative; use 0 or above")
    parts: tuple[list[Indices], list[Indices], list[Indices]] = ([], [], [])
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=len(categories))
    for label, members in enumerate(np.split(order, np.cumsum(counts)[:-1])):
        tests = max(1, round(len(members) * test))
        validations = max(1, round(len(members) * validation))
        if tests + validations >= len(members):
            raise TrainingError(
                f"category {categories[label] if categories else label} has {len(members)} images: {validations} for "
                f"validation and {tests} for testing leave none for training; add images, remove the category or "
                "lower the shares"
            )
        shuffled = np.random.default_rng([seed, label]).permutation(members)
        for part, chosen in zip(parts, np.split(shuffled, [len(members) - tests - validations, -tests]), strict=True):
            part.append(chosen)
    train, validating, testing = (np.sort(np.concatenate(part)).astype(np.int64) for part in parts)
    return DataSplit(train, validating, testing)


def limit_training(split: DataSplit, labels: Indices, limit: int, seed: int) -> DataSplit:
    """The same split with about ``limit`` training photographs at most: of each category its share, at least one."""
    if not limit or limit >= len(split.train):
        return split
    kept: list[Indices] = []
    for label in np.unique(labels[split.train]):
        members = split.train[labels[split.train] == label]
        count = max(1, round(len(members) * limit / len(split.train)))
        kept.append(np.random.default_rng([seed, int(label)]).permutation(members)[:count])
    return DataSplit(np.sort(np.concatenate(kept)), split.validation, split.test)


def split_record(photographs: LabelledPhotographs, split: DataSplit) -> dict[str, Any]:
    """The split as a run's ``data.json`` holds it: categories, counts, the files of each part, what was skipped."""
    parts = {
        "train": [photographs.files[index] for index in split.train],
        "validation": [photographs.files[index] for index in split.validation],
        "test": [photographs.files[index] for index in split.test],
    }
    counts = {name: len(files) for name, files in parts.items()} | {"skipped": len(photographs.skipped)}
    return {
        "categories": list(photographs.categories),
        "counts": counts,
        **parts,
        "skipped": list(photographs.skipped),
    }


def read_split(path: Path, photographs: LabelledPhotographs) -> DataSplit:
    """The split that ``path`` recorded, as indices of ``photographs``; photographs that it does not name are left out.

    Raises RunFormatError: it cannot be read, or names a file twice. Raises TrainingError: the categories differ, or a
    file is missing.
    """
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_SplitRecord)
    except (OSError, msgspec.DecodeError) as exc:
        raise RunFormatError(f"{path} is not the record of a split: {exc}; start a new run") from None
    differing = sorted({*record.categories} ^ {*photographs.categories})
    if differing:
        where = "the data lacks" if differing[0] in record.categories else "the data has besides"
        raise TrainingError(
            f"the categories differ from those of {path}: {where} {_names(differing)}; "
            "give the data that the run began with, or start a new run"
        )
    rows = {name: row for row, name in enumerate(photographs.files)}
    listed = (*record.train, *record.validation, *record.test)
    missing = [name for name in listed if name not in rows]
    if missing:
        raise TrainingError(
            f"{len(missing)} images of {path} are missing or no longer decode, the first: {missing[0]}; "
            "give the data that the run began with, or start a new run"
        )
    if len({*listed}) != len(listed):
        twice = next(name for place, name in enumerate(listed) if name in listed[:place])
        raise RunFormatError(f"{path} names {twice} twice; start a new run")
    train, validation, test = (
        np.sort(np.array([rows[name] for name in part], np.int64))
        for part in (record.train, record.validation, record.test)
    )
    return DataSplit(train, validation, test)


def training_names(run: Path) -> frozenset[str]:
    """The photographs that the run in this folder was trained on, as it names them; none where it does not say."""
    try:
        record = msgspec.json.decode((run / "data.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return frozenset()
    names = record.get("train") if isinstance(record, dict) else None
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "aecnn-deploy"


def _caltech101(data_dir: Path, download: bool, progress: Progress) -> Path:
    place = data_dir / CALTECH101
    candidates = [
        place / _TORCHVISION_FOLDER,
        place / "caltech-101" / _TORCHVISION_FOLDER,  # the archive unpacked by hand
        place,
        data_dir / "caltech-101" / _TORCHVISION_FOLDER,
    ]
    if data_dir.absolute().name in (CALTECH101, _TORCHVISION_FOLDER):
        candidates += [data_dir / _TORCHVISION_FOLDER, data_dir]
    for candidate in candidates:
        if _holds_categories(candidate):
            return candidate
    if not download:
        raise SourceError(f"Caltech-101 is not under {data_dir}; {_BY_HAND}{place}")
    if place.is_dir() and _listing(place):
        raise SourceError(f"{place} exists but holds no categories; remove it, or {_BY_HAND}it")
    return _download(place, progress)


def _download(place: Path, progress: Progress) -> Path:
    """Fetch the archive beside ``place`` and rename it when it is whole."""
    datasets = require("torchvision.datasets", why="the download of Caltech-101")
    tell(progress, "download Caltech-101", f"132 MB into {place}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{CALTECH101}.", dir=place.parent) as partial:
            datasets.Caltech101(partial, download=True)
            (Path(partial) / CALTECH101).rename(place)
    except Exception as exc:  # a network and an archive fail in any way: URLError, RuntimeError, BadZipFile, …
        raise SourceError(f"Caltech-101 cannot be downloaded ({exc}); {_BY_HAND}{place}") from None
    return place / _TORCHVISION_FOLDER


def _holds_categories(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    folders = (child for child in _listing(folder) if child.is_dir())
    return sum(any(file.suffix.lower() in SUFFIXES for file in _listing(child)) for child in folders) >= 2


def _category_folders(root: Path) -> dict[str, Path]:
    """The visible sub-folders of ``root`` but clutter, by name, sorted."""
    of_caltech101 = root.absolute().name in (CALTECH101, _TORCHVISION_FOLDER)
    folders = {_shown(path.name): path for path in _listing(root) if path.is_dir()}
    return {
        name: folders[name]
        for name in sorted(folders)
        if name != _CLUTTER and not (of_caltech101 and name.lower() in _CLUTTER_OF_CALTECH101)
    }


def _images(root: Path, folder: Path) -> list[ImageFile]:
    """The image files of one category, sorted, at any depth; hidden ones are ignored.

    Raises SourceError: a folder cannot be read, whose images would be missing without a word.
    """
    for place, inner, _ in os.walk(folder, onerror=_refuse_folder):
        inner[:] = [name for name in inner if not _hidden([name]) and not Path(place, name).is_symlink()]
    try:
        found = image_files(folder)
    except SourceError:
        return []
    paths = [path for path in found if not _hidden(path.relative_to(folder).parts)]
    try:
        return [_image_file(root, path) for path in paths]
    except OSError as exc:
        raise SourceError(f"the images of {folder} change while they are read: {exc}; try again") from None


def _image_file(root: Path, path: Path) -> ImageFile:
    stat = path.stat()
    return ImageFile(_shown(path.relative_to(root).as_posix()), path, stat.st_size, stat.st_mtime_ns)


def _listing(folder: Path) -> list[Path]:
    """What is in ``folder`` and not hidden. Raises SourceError: it cannot be read."""
    try:
        return [path for path in folder.iterdir() if not _hidden([path.name])]
    except OSError as exc:
        _refuse_folder(exc)


def _refuse_folder(exc: OSError) -> NoReturn:
    raise SourceError(
        f"the folder {shown(exc.filename)} cannot be read: {exc.strerror}; give a folder that can be"
    ) from None


def _hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") for part in parts)


def _refuse_empty(root: Path, names: Sequence[str], kind: str) -> None:
    if names:
        raise SourceError(
            f"category {_names(names)} of {root} holds no image{kind}; remove the folder or add images to it"
        )


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(map(printable, names[:_NAMED])) + (f" and {more} more" if more > 0 else "")


def _shown(name: str) -> str:
    """``name`` as text that JSON can hold: a file name may hold bytes that are no UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")
