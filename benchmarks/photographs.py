"""The photographs that the benchmarks hold out, and those that remain for training."""

from pathlib import Path

import numpy as np

HELD_OUT = 300
_SEED = 0


def split_photographs(data: Path) -> tuple[list[Path], list[Path]]:
    """(held out, training): 300 of the JPEGs under ``data`` drawn with a fixed seed, and all others."""
    files = sorted(data.rglob("*.jpg"))
    order = np.random.default_rng(_SEED).permutation(len(files))
    held_out = {int(index) for index in order[:HELD_OUT]}
    return [files[i] for i in sorted(held_out)], [file for i, file in enumerate(files) if i not in held_out]


def link_folder(files: list[Path], data: Path, folder: Path) -> Path:
    """A flat folder of links to ``files``, each named after its category and number."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        link = folder / "__".join(file.relative_to(data).parts)
        if not link.exists():
            link.symlink_to(file.resolve())
    return folder
