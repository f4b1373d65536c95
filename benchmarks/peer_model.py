"""What every peer runs behind its own front: our decoders, the same session, the five best classes.

A body is one byte that says what follows, and that: a coder's wire id (docs/wire-format.md, section 3) and the coded
planes of one image, or 255 and an image file. So each peer needs one endpoint, one queue and one worker for both kinds.
This module is imported in Triton's Python, too, which has numpy 1 and little else.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.codec import PlaneDecoder
from aecnn_deploy.errors import RunnerError, SettingsError
from aecnn_deploy.runtimes.base import Array
from aecnn_deploy.runtimes.edge_models import TOP_K, Top, batch_sizes, top_classes
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

WHOLE_IMAGE = 255  # no coder's wire id
_MOST_BATCH, _MOST_WAIT_MS = 1024, 1000.0


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """What a peer serves, and the settings that all peers share. Raises SettingsError: one is out of its range."""

    bundle: Path
    variant: str
    port: int
    threads: int = 1  # of ONNX Runtime's sessions
    max_batch: int = 8
    batch_wait_ms: float = 1.0  # longest wait of a request for others to run with it

    def __post_init__(self) -> None:
        if not 1 <= self.port < 1 << 16:
            raise SettingsError(f"port is {self.port}, expected 1 to 65535")
        if self.threads < 1 or not 1 <= self.max_batch <= _MOST_BATCH:
            raise SettingsError(
                f"threads is {self.threads} and max_batch {self.max_batch}, expected 1 or more and 1 to {_MOST_BATCH}"
            )
        if not 0 <= self.batch_wait_ms <= _MOST_WAIT_MS:
            raise SettingsError(f"batch_wait_ms is {self.batch_wait_ms}, expected 0 to {_MOST_WAIT_MS:g}")

    def arguments(self) -> list[str]:
        """The words of a command line that ``settings_from`` reads."""
        return [
            *("--bundle", str(self.bundle), "--variant", self.variant, "--port", str(self.port)),
            *("--threads", str(self.threads), "--max-batch", str(self.max_batch)),
            *("--batch-wait-ms", str(self.batch_wait_ms)),
        ]


def settings_from(arguments: Sequence[str] | None = None) -> PeerSettings:
    """The settings in a peer's command line (None: this process's)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-batch", type=int, required=True)
    parser.add_argument("--batch-wait-ms", type=float, required=True)
    return PeerSettings(**vars(parser.parse_args(arguments)))


def planes_body(coder_id: int, payload: bytes) -> bytes:
    """The body for coded planes."""
    return bytes((coder_id,)) + payload


def image_body(image: bytes) -> bytes:
    """The body for an image file."""
    return bytes((WHOLE_IMAGE,)) + image


class PeerModel:
    """The tail of one variant and the unsplit model, loaded and warm. Belongs to one thread.

    Raises BundleError: the bundle cannot be used. RunnerError: a model cannot be loaded.
    """

    def __init__(self, settings: PeerSettings) -> None:
        bundle = open_bundle(settings.bundle)
        spec = bundle.variant(settings.variant)
        self.planes = spec.planes
        self._input = bundle.manifest.input
        self._decoder = PlaneDecoder(spec.planes, spec.bits)
        self._tail = OnnxRuntimeRunner(bundle.file(spec.tails["onnxruntime"]), threads=settings.threads)
        self._full = OnnxRuntimeRunner(bundle.file(bundle.manifest.full), threads=settings.threads)
        for runner in (self._tail.activate(), self._full.activate()):
            for size in batch_sizes(settings.max_batch):
                runner.infer(np.zeros((size, *runner.input_shape), runner.input_dtype))

    def run(self, bodies: Sequence[bytes]) -> list[Top]:
        """The five best classes of each body, in their order; bodies of one kind run as one batch.

        Raises CodecError, ImageError: a body cannot be decoded. RunnerError: a model failed.
        """
        found: dict[int, Top] = {}
        whole = [i for i, body in enumerate(bodies) if body[0] == WHOLE_IMAGE]
        coded = [i for i, body in enumerate(bodies) if body[0] != WHOLE_IMAGE]
        if whole:
            frames = [read_frame(bodies[i][1:], self._input, name="the body") for i in whole]
            found |= zip(whole, best_classes(self._full.infer(np.stack(frames))), strict=True)
        if coded:
            planes = [self._decoder.decode(bodies[i][0], bodies[i][1:]) for i in coded]
            found |= zip(coded, self.run_planes(np.stack(planes)), strict=True)
        return [found[i] for i in range(len(bodies))]

    def run_planes(self, planes: Array) -> list[Top]:
        """The five best classes of each of ``planes`` (N, C, H, W), uint8. Raises RunnerError."""
        return best_classes(self._tail.infer(planes))


def best_classes(logits: Array) -> list[Top]:
    """The five best classes of each row (N, classes). Raises RunnerError: a row is not finite."""
    found: list[Top] = []
    for top in top_classes(logits, TOP_K):
        if isinstance(top, RunnerError):
            raise top
        found.append(top)
    return found


def json_answer(top: Top) -> bytes:
    """What a peer with HTTP and JSON answers."""
    return json.dumps({"top": top}, separators=(",", ":")).encode()
