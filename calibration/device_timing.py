"""A device's half of the latency model, measured here: reading, heads, the unsplit model, coders of planes and images.

Each frame goes the way that it goes in a real run: read, head, encode, a request and the wait for its answer. In a loop
of nothing else an encoder is up to ten times as fast, its code and tables being still in the caches.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from aecnn_deploy.bundle.manifest import InputSpec, VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.calibration.layer_timing import layer_times
from aecnn_deploy.calibration.loopback import TINY, loopback_link
from aecnn_deploy.calibration.pictures import (
    CAMERA_SIZES,
    FILE_SIZE,
    CodedImages,
    ImageFiles,
    Pictures,
    coded_images,
    coding_of,
    encode_image,
    gather,
    photograph_files,
    write_files,
)
from aecnn_deploy.calibration.profile_facts import now, seconds_since, versions
from aecnn_deploy.calibration.turns import Clock, Effort, Progress, in_turns, no_progress, repeats, share
from aecnn_deploy.codec import PlaneDecoder, PlaneEncoder, coder_names
from aecnn_deploy.errors import CodecError, SettingsError
from aecnn_deploy.planning.machine import this_machine
from aecnn_deploy.planning.profiles import DeviceProfile, ImageRead, LayerTime, PlaneCoding, Timing
from aecnn_deploy.runtimes.base import Runner
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.runtimes.frames import Frame, read_frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.plane_memory import plane_dictionary, useful_coders

DEVICE_EFFORT = Effort()
MAX_THREADS = 1024

_REPEATS = 2  # frames of one head in its turn


def time_device(
    bundle: Bundle,
    *,
    threads: int = 0,
    spinning: bool = False,
    images: Sequence[Path] = (),
    variants: Sequence[str] = (),
    layers: bool = True,
    effort: Effort = DEVICE_EFFORT,
    progress: Progress = no_progress,
) -> DeviceProfile:
    """Measure this machine as a device of ``bundle``: some seconds, most of them a share of ``effort``.

    ``threads`` and ``spinning``: of each model, as ``run-device`` has them. ``images``: photograph files; without any
    the bundle's samples or made-up pictures. ``variants``: none stands for all. ``layers``: time each node of the
    unsplit model, too. Raises RunnerError: a model does not load. BundleError: no such variant. SourceError: none of
    the photographs decodes. SettingsError: threads. MissingExtraError.
    """
    if not 0 <= threads <= MAX_THREADS:
        raise SettingsError(f"threads is {threads}, expected 0 (every core) to {MAX_THREADS}")
    began_s = time.perf_counter()
    specs = [bundle.variant(name) for name in variants] or list(bundle.manifest.variants)
    pictures = gather(bundle, images)
    clock = Clock()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="aecnn-calibrate-")))
        given = photograph_files(pictures)
        files = given if given is not None else write_files(pictures, folder, *FILE_SIZE)
        sized = [write_files(pictures, folder, *size) for size in CAMERA_SIZES]
        coded = coded_images(pictures)

        def loaded(name: str, variant: str | None = None) -> Runner:
            runner = OnnxRuntimeRunner(bundle.file(name), threads=threads, spinning=spinning, variant=variant)
            stack.callback(runner.deactivate)
            return runner.activate()

        heads = {spec.id: {kind: loaded(file, spec.id) for kind, file in spec.head_files.items()} for spec in specs}
        full = loaded(bundle.manifest.full)
        link = stack.enter_context(loopback_link(bundle, effort.pause_ms))
        codings = {spec.id: _Coding(bundle, spec, heads[spec.id], pictures) for spec in specs}
        cycle = ceil(max(len(coding.names) for coding in codings.values()) / _REPEATS)
        scene = _Scene(clock, bundle.manifest.input, files.paths, effort.pause_ms / 1e3, cycle)
        in_turns(
            [
                *(
                    _SplitFrame(scene, precision, head, codings[name], link)
                    for name, each in heads.items()
                    for precision, head in each.items()
                ),
                _LocalFrame(scene, full),
                _Reads(scene, sized),
                _WholeImages(scene, coded),
            ],
            clock,
            effort,
            cycle=cycle,
            progress=progress,
        )
    local = clock.timing("local")
    nodes: dict[str, LayerTime] = {}
    if layers:
        nodes = layer_times(bundle.file(bundle.manifest.full), threads=threads, whole_ms=local.p50_ms)
    return DeviceProfile(
        bundle_id=bundle.id,
        machine=this_machine(),
        versions=versions(),
        measured_at=now(),
        took_s=seconds_since(began_s),
        threads=threads,
        images=pictures.count,
        heads={
            name: {precision: clock.timing("head", name, precision) for precision in each}
            for name, each in heads.items()
        },
        local=local,
        coders={name: coding.measured(clock) for name, coding in codings.items()},
        reads=[
            *([_image_read(given, clock.timing("read"))] if given is not None else []),
            *(_image_read(each, clock.timing("read", f"{each.width}x{each.height}")) for each in sized),
        ],
        image_codings=[coding_of(item, encode=clock.timing("image", *item.key)) for item in coded],
        loopback=clock.timing("loopback"),
        layers=nodes,
    )


def _image_read(files: ImageFiles, read: Timing) -> ImageRead:
    return ImageRead(files.width, files.height, files.bytes_mean, read)


class _Coding:
    """The coders of one variant that may be chosen for its planes, and the bytes that they make of them.

    Differences are no part of it: what they save depends on a stream, not on a variant.
    """

    def __init__(self, bundle: Bundle, spec: VariantSpec, heads: Mapping[str, Runner], pictures: Pictures) -> None:
        default = next(precision for precision, file in spec.head_files.items() if file == spec.head)
        planes = [heads[default].infer(frame[np.newaxis])[0] for frame in pictures.frames]
        dictionary = plane_dictionary(bundle, spec)
        self.variant = spec.id
        self.encoders: dict[str, PlaneEncoder] = {}
        self._sizes: dict[str, list[int]] = {}
        for name in useful_coders(spec, coder_names()):
            try:
                encoder = PlaneEncoder(spec.planes, spec.bits, coder=name, dictionary=dictionary)
            except CodecError:  # it cannot take planes of this shape, or has no dictionary
                continue
            self.encoders[name] = encoder
            self._sizes[name] = [len(encoder.encode(each).payload) for each in planes]
        self.names = list(self.encoders)
        self.decoder = PlaneDecoder(spec.planes, spec.bits, dictionary=dictionary)

    def measured(self, clock: Clock) -> dict[str, PlaneCoding]:
        return {
            name: PlaneCoding(
                bytes_mean=round(float(np.mean(sizes)), 1),
                bytes_p90=round(float(np.percentile(sizes, 90)), 1),
                encode=clock.timing("encode", self.variant, name),
                decode=clock.timing("decode", self.variant, name),
            )
            for name, sizes in self._sizes.items()
        }


@dataclass(frozen=True, slots=True)
class _Scene:
    """What all turns share. ``files``: what a device reads; ``cycle``: rounds in which everything had its turn."""

    clock: Clock
    spec: InputSpec
    files: Sequence[Path]
    pause_s: float
    cycle: int

    def frame(self, number: int) -> Frame:
        """Read a file. Coders take turns, too: the shift by seven keeps each from always having the same files."""
        with self.clock.of("read"):
            return read_frame(self.files[(number + number // 7) % len(self.files)], self.spec)


class _SplitFrame:
    """A frame through one head: read, head, encode by the coder whose turn it is, a request; then decoded here."""

    def __init__(self, scene: _Scene, precision: str, head: Runner, coding: _Coding, link: EdgeLink) -> None:
        self._scene, self._precision, self._head, self._coding, self._link = scene, precision, head, coding, link

    def __call__(self, number: int) -> None:
        for each in repeats(self._scene.clock, number, _REPEATS):
            self._run(each)

    def _run(self, number: int) -> None:
        clock, coding = self._scene.clock, self._coding
        name = coding.names[number % len(coding.names)]
        frame = self._scene.frame(number)
        with clock.of("head", coding.variant, self._precision):
            planes = self._head.infer(frame[np.newaxis])[0]
        with clock.of("encode", coding.variant, name):
            encoded = coding.encoders[name].encode(planes)
        reply = self._link.request(0, TINY, deadline_ms=0)
        clock.add(("loopback",), reply.round_trip_ms - reply.result.total_ms)
        with clock.of("decode", coding.variant, name):
            coding.decoder.decode(encoded.coder_id, encoded.payload)


class _LocalFrame:
    """A frame through the unsplit model."""

    def __init__(self, scene: _Scene, full: Runner) -> None:
        self._scene, self._full = scene, full

    def __call__(self, number: int) -> None:
        for each in repeats(self._scene.clock, number, 1):
            frame = self._scene.frame(each)
            with self._scene.clock.of("local"):
                self._full.infer(frame[np.newaxis])
            time.sleep(self._scene.pause_s)


class _Reads:
    """Image files of cameras' sizes, read; each size once a cycle."""

    def __init__(self, scene: _Scene, reads: Sequence[ImageFiles]) -> None:
        self._scene, self._reads = scene, reads

    def __call__(self, number: int) -> None:
        scene = self._scene
        for files in share(self._reads, number, scene.cycle):
            with scene.clock.of("read", f"{files.width}x{files.height}"):
                read_frame(files.paths[number % len(files.paths)], scene.spec)
            time.sleep(scene.pause_s)


class _WholeImages:
    """Whole images, coded to be sent after a frame was read; each coding once a cycle."""

    def __init__(self, scene: _Scene, coded: Sequence[CodedImages]) -> None:
        self._scene, self._coded = scene, coded

    def __call__(self, number: int) -> None:
        scene = self._scene
        for item in share(self._coded, number, scene.cycle):
            scene.frame(number)
            pixels = item.pixels[number % len(item.pixels)]
            with scene.clock.of("image", *item.key):
                encode_image(pixels, item.coding)
            time.sleep(scene.pause_s)
