"""An edge's half of the latency model, measured here: tails by batch size, decoding, and the service around them."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from aecnn_deploy.bundle.manifest import ENGINE_SOURCES, FP32, ONNXRUNTIME, VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.calibration.layer_stub import layer_times
from aecnn_deploy.calibration.loopback import blank_planes, hello_for
from aecnn_deploy.calibration.pictures import CodedImages, Pictures, coded_images, coding_of, encode_image, gather
from aecnn_deploy.calibration.profile_facts import now, seconds_since, versions
from aecnn_deploy.calibration.served_edge import served_edge
from aecnn_deploy.calibration.turns import Clock, Effort, Key, Progress, in_turns, no_progress, share
from aecnn_deploy.codec import EncodedPlanes, PlaneEncoder, coder_names
from aecnn_deploy.errors import CodecError, SettingsError
from aecnn_deploy.planning.machine import this_machine
from aecnn_deploy.planning.profiles import EdgeProfile, LayerTime, Timing
from aecnn_deploy.runtimes.base import Array
from aecnn_deploy.runtimes.batch_times import BatchTimes
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.runtimes.edge_lane import let_others_first
from aecnn_deploy.runtimes.edge_models import EdgeModel, FullModel, PlanesAsked, TailModel
from aecnn_deploy.runtimes.edge_runners import RunnerOptions
from aecnn_deploy.runtimes.frames import Frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.plane_memory import plane_dictionary, useful_coders
from aecnn_deploy.wire import InferReceived, WireLimits

EDGE_EFFORT = Effort(wanted=7, longest_s=6.0)
BATCHES = (1, 2, 4, 8)

_MAX_BATCH = 64
_REQUESTS = 60  # to a whole service
_WARM_UP = 5
_SERVICE_S = 2.0
_TIMEOUT_S = 30.0
_PAYLOADS = 4  # frames whose planes and images are decoded
_SERVICE_SHARE = 0.3  # of the whole measurement's time, for its progress


def time_edge(
    bundle: Bundle,
    *,
    options: RunnerOptions,
    variants: Sequence[str] = (),
    batches: Sequence[int] = BATCHES,
    images: Sequence[Path] = (),
    layers: bool = True,
    effort: Effort = EDGE_EFFORT,
    progress: Progress = no_progress,
) -> EdgeProfile:
    """Measure this machine as an edge of ``bundle``: some ten seconds, and what building an engine takes.

    ``options``: what runs the tails, as ``serve-edge`` chooses it. ``variants``: none stands for all. ``batches`` are
    sizes, 1 always among them. ``images``: photograph files to code and decode; without any the bundle's samples or
    made-up pictures. ``layers``: time each node of the unsplit model, too. Raises RunnerError, ServeError: a model or
    the service does not start. BundleError: no such variant. SourceError: none of the photographs decodes.
    SettingsError: a batch size. MissingExtraError.
    """
    sizes = sorted({1, *batches})
    if sizes[0] < 1 or sizes[-1] > _MAX_BATCH:
        raise SettingsError(f"batches are {', '.join(map(str, batches))}, expected sizes of 1 to {_MAX_BATCH}")
    began_s = time.perf_counter()
    specs = [bundle.variant(name) for name in variants] or list(bundle.manifest.variants)
    pictures = gather(bundle, images)
    clock = Clock()
    overhead, loopback = _time_service(bundle, specs[0], options, effort)
    progress(_SERVICE_SHARE)
    models = _Models(bundle, specs, options, pictures, clock)

    def measure() -> None:
        with models:
            turns = models.turns(sizes, effort.pause_ms / 1e3)
            in_turns(turns, clock, effort, cycle=models.cycle, progress=rest, stop=stop)

    def rest(done: float) -> None:
        progress(_SERVICE_SHARE + (1 - _SERVICE_SHARE) * done)

    stop = threading.Event()
    # As in the service: a model belongs to a thread that yields to those that answer.
    with ThreadPoolExecutor(1, "aecnn-calibrate", initializer=let_others_first) as pool:
        measuring = pool.submit(measure)
        try:
            measuring.result()
        except BaseException:
            stop.set()
            raise
    nodes: dict[str, LayerTime] = {}
    if layers:
        whole_ms = clock.timing("full", "1").p50_ms
        nodes = layer_times(bundle.file(bundle.manifest.full), threads=options.threads, whole_ms=whole_ms)
    return EdgeProfile(
        bundle_id=bundle.id,
        machine=this_machine(),
        versions=versions(),
        measured_at=now(),
        took_s=seconds_since(began_s),
        threads=options.threads,
        runner=models.runner,
        precision=models.precision,
        tails={spec.id: {size: clock.timing("tail", spec.id, str(size)) for size in sizes} for spec in specs},
        full={size: clock.timing("full", str(size)) for size in sizes},
        coders={
            spec.id: {name: clock.timing("decode", spec.id, name) for name in models.payloads[spec.id]}
            for spec in specs
        },
        image_codings=[coding_of(item, decode=clock.timing("image", *item.key)) for item in models.coded],
        overhead=overhead,
        loopback=loopback,
        layers=nodes,
    )


def _time_service(bundle: Bundle, spec: VariantSpec, options: RunnerOptions, effort: Effort) -> tuple[Timing, Timing]:
    """What a whole service takes beside decoding and tail, and an empty request to it there and back."""
    clock, planes = Clock(), blank_planes(spec)
    index = bundle.manifest.variants.index(spec)
    with served_edge(bundle, spec.id, options) as edge:
        link = EdgeLink(edge.url, hello_for(bundle, "calibrate"), timeout_s=_TIMEOUT_S, limits=WireLimits())
        try:
            link.open()
            end_s = time.perf_counter() + _SERVICE_S
            for number in range(-_WARM_UP, _REQUESTS):
                if number > effort.least and time.perf_counter() > end_s:
                    break
                time.sleep(effort.pause_ms / 1e3)
                reply = link.request(index, planes, deadline_ms=0)
                if number >= 0:
                    result = reply.result
                    clock.add(("overhead",), result.total_ms - result.decode_ms - result.tail_ms)
                    clock.add(("loopback",), reply.round_trip_ms - result.total_ms)
        finally:
            link.close()
    return clock.timing("overhead"), clock.timing("loopback")


class _Models:
    """The tails and the unsplit model, loaded while entered; all of it on one thread."""

    def __init__(
        self,
        bundle: Bundle,
        specs: Sequence[VariantSpec],
        options: RunnerOptions,
        pictures: Pictures,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._tails = [TailModel(bundle, spec, options) for spec in specs]
        self._full = FullModel(bundle, options)
        self.payloads = {spec.id: _payloads(bundle, spec, pictures.frames) for spec in specs}
        self.coded = coded_images(pictures)
        self.cycle = max(len(payloads) for payloads in self.payloads.values())
        self.runner = self.precision = ""  # once entered

    def __enter__(self) -> Self:
        try:
            for model in (*self._tails, self._full):
                model.load(BatchTimes(), 1)
        except BaseException:
            self._unload()
            raise
        self.runner = "+".join(sorted({tail.runner_name for tail in self._tails}))
        self.precision = "+".join(sorted({_precision(tail) for tail in self._tails}))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unload()

    def turns(self, sizes: Sequence[int], pause_s: float) -> list[Callable[[int], None]]:
        """What ``in_turns`` calls."""
        clock = self._clock
        tails = [_TailTurn(clock, tail, self.payloads[tail.name], sizes, self.cycle, pause_s) for tail in self._tails]
        return [*tails, _FullTurn(clock, self._full, self.coded, sizes, self.cycle, pause_s)]

    def _unload(self) -> None:
        for model in (*self._tails, self._full):
            model.unload()


def _payloads(bundle: Bundle, spec: VariantSpec, frames: Sequence[Frame]) -> dict[str, list[PlanesAsked]]:
    """What each coder that may be chosen makes of a few frames' planes, as requests."""
    dictionary = plane_dictionary(bundle, spec)
    with OnnxRuntimeRunner(bundle.file(spec.head), variant=spec.id) as head:
        planes = [head.infer(frame[np.newaxis])[0] for frame in frames[:_PAYLOADS]]
    found = {}
    for name in useful_coders(spec, coder_names()):
        try:
            encoder = PlaneEncoder(spec.planes, spec.bits, coder=name, dictionary=dictionary)
        except CodecError:  # it cannot take planes of this shape, or has no dictionary
            continue
        found[name] = [_asked(encoder.encode(each)) for each in planes]
    return found


def _asked(encoded: EncodedPlanes) -> PlanesAsked:
    return PlanesAsked(InferReceived(1, 0, encoded.coder_id, encoded.payload, encoded.raw_bytes, 0), None)


def _precision(tail: TailModel) -> str:
    """Of the file that runs. A target names its precision at its end, unless it is fp16: ``engines.Target.name``."""
    if tail.target == ONNXRUNTIME:
        return FP32
    last = tail.target.rpartition("-")[2]
    return last if last in ENGINE_SOURCES else next(iter(ENGINE_SOURCES))


class _TailTurn:
    """A request after a pause, as a device alone sends them: decoded, run; then a larger batch of it."""

    def __init__(
        self,
        clock: Clock,
        model: TailModel,
        payloads: Mapping[str, Sequence[PlanesAsked]],
        sizes: Sequence[int],
        cycle: int,
        pause_s: float,
    ) -> None:
        self._clock, self._model, self._payloads, self._sizes = clock, model, payloads, sizes
        self._cycle, self._pause_s = cycle, pause_s
        self._names = list(payloads)

    def __call__(self, number: int) -> None:
        name = self._names[number % len(self._names)]
        payloads = self._payloads[name]
        asked = payloads[number % len(payloads)]
        time.sleep(self._pause_s)
        with self._clock.of("decode", self._model.name, name):
            item = self._model.decode(asked)
        _run_batches(self._clock, self._model, ("tail", self._model.name), item, self._sizes, number, self._cycle)


class _FullTurn:
    """Whole images, as they are posted: decoded to the model's frame, each coding once a cycle; then run."""

    def __init__(
        self,
        clock: Clock,
        model: FullModel,
        coded: Sequence[CodedImages],
        sizes: Sequence[int],
        cycle: int,
        pause_s: float,
    ) -> None:
        self._clock, self._model, self._sizes, self._cycle, self._pause_s = clock, model, sizes, cycle, pause_s
        self._images = [
            (item.key, [encode_image(pixels, item.coding) for pixels in item.pixels[:_PAYLOADS]]) for item in coded
        ]

    def __call__(self, number: int) -> None:
        item: Array | None = None
        for key, images in share(self._images, number, self._cycle):
            content = images[number % len(images)]
            time.sleep(self._pause_s)
            with self._clock.of("image", *key):
                item = self._model.decode(content)
        if item is not None:
            _run_batches(self._clock, self._model, ("full",), item, self._sizes, number, self._cycle)


def _run_batches(
    clock: Clock, model: EdgeModel, key: Key, item: Array, sizes: Sequence[int], number: int, cycle: int
) -> None:
    """A batch of one, and of the larger sizes those whose turn it is."""
    with clock.of(*key, "1"):
        model.run([item])
    for size in share(sizes[1:], number, cycle):
        with clock.of(*key, str(size)):
            model.run([item] * size)
