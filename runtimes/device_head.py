"""A variant's head on this machine, and what device and edge say to each other of the bundle."""

import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from aecnn_deploy import __version__
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import Planes, coder_names, delta_names
from aecnn_deploy.errors import BundleError
from aecnn_deploy.runtimes.device_settings import DeviceSettings
from aecnn_deploy.runtimes.frames import Frame
from aecnn_deploy.runtimes.head_choice import choose_head
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.wire import WIRE_VERSION, Hello


class DeviceHead:
    """The head of ``variant`` (None: of ``settings.variant``): entering it loads it and runs it once, as its first run
    is slow.

    Raises BundleError: no such variant. SettingsError: no head of that precision. When entered, RunnerError: it does
    not load. BundleError: it is not of the manifest's shapes.
    """

    def __init__(self, bundle: Bundle, settings: DeviceSettings, variant: str | None = None) -> None:
        self._bundle = bundle
        self.variant = bundle.variant(settings.variant if variant is None else variant)
        self.precision, file = choose_head(bundle, self.variant, settings.head, threads=settings.threads)
        self._runner = OnnxRuntimeRunner(
            bundle.file(file),
            threads=settings.threads,
            spinning=settings.spinning,
            variant=self.variant.id,
        )

    def __enter__(self) -> Self:
        self._runner.activate()
        spec = self._bundle.manifest.input
        frame, planes = (spec.height, spec.width, 3), tuple(self.variant.planes)
        if self._runner.input_shape != frame or self._runner.output_shape != planes:
            raise BundleError(
                f"{self._bundle.path}: the head of {self.variant.id} takes {self._runner.input_shape} and gives "
                f"{self._runner.output_shape}, the manifest says {frame} and {planes}; export the bundle again"
            )
        self._runner.infer(np.zeros((1, *frame), self._runner.input_dtype))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.deactivate()

    def planes(self, frame: Frame) -> Planes:
        """The quantised planes (C, H, W) of a frame (height, width, 3), uint8 RGB. Raises RunnerError."""
        planes: Planes = self._runner.infer(frame[np.newaxis])[0]
        return planes


def hello_of(bundle: Bundle, settings: DeviceSettings, uses: Sequence[int] = ()) -> Hello:
    """What a device with this bundle says first. ``uses``: the variants that it switches between, by their index."""
    return Hello(
        bundle_id=bundle.id,
        wire_versions=[WIRE_VERSION],
        variants=[spec.id for spec in bundle.manifest.variants],
        coders=[*coder_names(), *delta_names()],
        software=f"aecnn-deploy {__version__}",
        device=settings.name or socket.gethostname() or None,
        uses=list(uses),
    )
