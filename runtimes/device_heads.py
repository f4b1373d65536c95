"""The heads of all variants that a run may use: loaded, warm and timed before the first frame."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import BundleError
from aecnn_deploy.runtimes.device_head import DeviceHead
from aecnn_deploy.runtimes.device_settings import DeviceSettings
from aecnn_deploy.runtimes.frames import Frame
from aecnn_deploy.runtimes.moving_frame import FrameVariant

_ROUNDS = 5  # of all heads in turns


class DeviceHeads:
    """Heads by their variant's index in the manifest; entering it enters all of them, and raises what they raise.

    ``variants``: by id, at least one; the first is what frames have that no other was chosen for.
    """

    def __init__(self, bundle: Bundle, settings: DeviceSettings, variants: Sequence[str]) -> None:
        ids = [spec.id for spec in bundle.manifest.variants]
        self._bundle = bundle
        self._heads = {ids.index(name): DeviceHead(bundle, settings, name) for name in variants}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            for head in self._heads.values():
                self._stack.enter_context(head)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __getitem__(self, index: int) -> DeviceHead:
        return self._heads[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._heads)

    def variant(self, index: int) -> FrameVariant:
        """What a frame of this variant is reported as."""
        head = self._heads[index]
        return FrameVariant(head.variant.id, index, head.precision)

    @property
    def first(self) -> FrameVariant:
        """The variant of frames that none was chosen for."""
        return self.variant(next(iter(self._heads)))

    def times(self, frame: Frame) -> dict[int, list[float]]:
        """Milliseconds of some runs of each head on ``frame`` (height, width, 3), in turns. Raises RunnerError."""
        took_ms: dict[int, list[float]] = {index: [] for index in self._heads}
        for _ in range(_ROUNDS):
            for index, head in self._heads.items():
                began_s = time.perf_counter()
                head.planes(frame)
                took_ms[index].append((time.perf_counter() - began_s) * 1e3)
        return took_ms


def sample_frame(bundle: Bundle) -> Frame:
    """The first of the bundle's photographs, or a made-up one where it has none: (height, width, 3), uint8 RGB.

    Raises BundleError: its file cannot be read.
    """
    spec, samples = bundle.manifest.input, bundle.manifest.samples
    if samples is None:
        y, x = np.mgrid[0 : spec.height, 0 : spec.width]
        waves = 127 + 100 * np.sin(x / 9)[..., np.newaxis] * np.cos(y[..., np.newaxis] / 7 + np.arange(3))
        made_up: Frame = (waves + np.random.default_rng(0).normal(0, 8, waves.shape)).clip(0, 255).astype(np.uint8)
        return made_up
    file = bundle.file(samples.frames)
    try:
        with Image.open(file) as tall:
            return np.asarray(tall.convert("RGB").crop((0, 0, spec.width, spec.height)))
    except (OSError, ValueError, Image.DecompressionBombError) as exc:
        raise BundleError(f"cannot read {file}: {exc}; export the bundle again") from None
