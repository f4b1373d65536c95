"""Photographs that a command measures or calibrates with, as a device would see them."""

from pathlib import Path
from typing import TYPE_CHECKING

from aecnn_deploy.cli.console import say
from aecnn_deploy.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy as np
    import numpy.typing as npt

    from aecnn_deploy.bundle.manifest import InputSpec, VariantSpec
    from aecnn_deploy.bundle.reader import Bundle


def read_frames(
    images: Path, spec: "InputSpec", limit: int, *, prefer: "Collection[str]" = ()
) -> "npt.NDArray[np.uint8]":
    """At most ``limit`` photographs of a folder or file, evenly chosen, uint8 (N, H, W, 3).

    Of a folder that holds some of ``prefer`` (paths in it) only those. One that does not decode is named and left out.
    Raises SourceError: none decodes.
    """
    import numpy as np

    from aecnn_deploy.errors import ImageError
    from aecnn_deploy.runtimes.frames import read_frame
    from aecnn_deploy.runtimes.source import shown
    from aecnn_deploy.runtimes.sources import image_files

    found, frames = image_files(images), []
    preferred = {images / name for name in prefer}
    found = [file for file in found if file in preferred] or found
    count = min(limit, len(found))
    for file in (found[index * len(found) // count] for index in range(count)):
        try:
            frames.append(read_frame(file, spec, name=shown(file)))
        except ImageError as exc:
            say(f"skipped: {exc}")
    if not frames:
        raise SourceError(f"no photograph of {images} decodes")
    return np.stack(frames)


def head_planes(bundle: "Bundle", variant: "VariantSpec", frames: "npt.NDArray[np.uint8]") -> "npt.NDArray[np.uint8]":
    """The planes that the variant's head makes of ``frames``, uint8 (N, C', h, w). Raises RunnerError."""
    import numpy as np

    from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

    with OnnxRuntimeRunner(bundle.file(variant.head)) as head:
        return np.concatenate([head.infer(frame[None]) for frame in frames])
