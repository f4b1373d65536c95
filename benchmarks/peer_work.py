"""What the clients of the comparison send: planes as a device codes them, and the same photographs as JPEG."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.runtimes.frames import jpeg_bytes, read_frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from benchmarks.peer_clients import Work
from benchmarks.peer_model import image_body, planes_body
from benchmarks.traffic import classes_of, make_traffic, photograph_frames, planes_of

JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True)
class Works:
    """By name; a name is a front's ``body`` and what is sent: "split/tagged". ``payload_bytes``: of each kind, mean."""

    by_name: dict[str, Work]
    payload_bytes: dict[str, float]


def make_works(bundle: Bundle, variant: str, data: Path | None, count: int, coder: str) -> Works:
    """``count`` photographs in each form, with the classes that the models give when they are run directly.

    Raises SettingsError: ``data`` has too few photographs. RunnerError.
    """
    spec = bundle.variant(variant)
    frames = photograph_frames(bundle.manifest.input, data, count)
    planes = planes_of(bundle, variant, frames, threads=1)
    traffic = make_traffic(bundle, variant, planes, coder=coder)
    split = [each.classes for each in traffic.requests]
    files = [jpeg_bytes(frame, JPEG_QUALITY) for frame in frames]
    decoded = np.stack([read_frame(file, bundle.manifest.input) for file in files])
    with OnnxRuntimeRunner(bundle.file(bundle.manifest.full), threads=1) as full:
        whole = [classes_of(full.infer(frame[np.newaxis])[0]) for frame in decoded]
    coded = [planes_body(each.coder_id, each.payload) for each in traffic.requests]
    return Works(
        {
            "split/tagged": Work(coded, split, traffic=traffic),
            "image/tagged": Work([image_body(file) for file in files], whole),
            "image/file": Work(files, whole),
            "planes/planes": Work([each.tobytes() for each in planes], split, shape=list(spec.planes)),
        },
        {
            "split": traffic.payload_bytes_mean,
            "image": sum(map(len, files)) / len(files),
            "planes": float(planes[0].nbytes),
        },
    )
