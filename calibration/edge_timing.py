"""An edge's half of the latency model, measured here: tails by batch size, decoding, and the service around them."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.calibration.layer_timing import layer_times
from aecnn_deploy.calibration.pictures import coded_images, coding_of, gather
from aecnn_deploy.calibration.profile_facts import now, seconds_since, versions
from aecnn_deploy.calibration.service_timing import precision_of, time_service
from aecnn_deploy.calibration.turns import Clock, Effort, Key, Progress, in_turns, no_progress
from aecnn_deploy.codec import EncodedPlanes, PlaneEncoder, coder_names
from aecnn_deploy.errors import CodecError, SettingsError
from aecnn_deploy.planning.machine import this_machine
from aecnn_deploy.planning.profiles import EdgeProfile, LayerTime
from aecnn_deploy.runtimes.base import Array
from aecnn_deploy.runtimes.batch_times import BatchTimes
from aecnn_deploy.runtimes.edge_models import EdgeModel, FullModel, TailModel
from aecnn_deploy.runtimes.edge_runners import RunnerOptions
from aecnn_deploy.runtimes.frames import Frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.plane_memory import plane_dictionary, useful_coders
from aecnn_deploy.runtimes.thread_priority import let_others_first

EDGE_EFFORT = Effort(wanted=7, longest_s=5.0)  # of the service, and half as long of larger batches
BATCHES = (1, 2, 4, 8)

_MAX_BATCH = 64
_PAYLOADS = 4  # frames whose planes and images are decoded
_SERVICE_SHARE = 0.6  # of the whole measurement's time, for its progress


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
    payloads = {spec.id: _payloads(bundle, spec, pictures.frames) for spec in specs}
    coded = coded_images(pictures)
    served = time_service(
        bundle,
        payloads,
        coded,
        options,
        clock=clock,
        effort=effort,
        progress=lambda done: progress(_SERVICE_SHARE * done),
    )
    if sizes[1:]:
        _time_batches(
            bundle,
            specs,
            options,
            sizes[1:],
            clock=clock,
            effort=replace(effort, longest_s=effort.longest_s / 2),
            progress=lambda done: progress(_SERVICE_SHARE + (1 - _SERVICE_SHARE) * done),
        )
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
        runner=served.runner,
        precision="+".join(sorted({precision_of(served.targets[spec.id]) for spec in specs})),
        tails={spec.id: {size: clock.timing("tail", spec.id, str(size)) for size in sizes} for spec in specs},
        full={size: clock.timing("full", str(size)) for size in sizes},
        coders={name: {coder: clock.timing("decode", name, coder) for coder in payloads[name]} for name in payloads},
        image_codings=[coding_of(item, decode=clock.timing("image", *item.key)) for item in coded],
        overhead=clock.timing("overhead"),
        loopback=clock.timing("loopback"),
        layers=nodes,
    )


def _payloads(bundle: Bundle, spec: VariantSpec, frames: Sequence[Frame]) -> dict[str, list[EncodedPlanes]]:
    """What each coder that may be chosen makes of a few frames' planes."""
    dictionary = plane_dictionary(bundle, spec)
    with OnnxRuntimeRunner(bundle.file(spec.head), variant=spec.id) as head:
        planes = [head.infer(frame[np.newaxis])[0] for frame in frames[:_PAYLOADS]]
    found = {}
    for name in useful_coders(spec, coder_names()):
        try:
            encoder = PlaneEncoder(spec.planes, spec.bits, coder=name, dictionary=dictionary)
        except CodecError:  # it cannot take planes of this shape, or has no dictionary
            continue
        found[name] = [encoder.encode(each) for each in planes]
    return found


def _time_batches(
    bundle: Bundle,
    specs: Sequence[VariantSpec],
    options: RunnerOptions,
    sizes: Sequence[int],
    *,
    clock: Clock,
    effort: Effort,
    progress: Progress,
) -> None:
    """Time batches of ``sizes``, which no single device can ask for, as the service runs them: on a thread that yields.

    Counts ("tail", variant, size) and ("full", size).
    """
    batches, stop = Clock(), threading.Event()
    frame = (bundle.manifest.input.height, bundle.manifest.input.width, 3)
    models: list[tuple[EdgeModel, Key, tuple[int, ...]]] = [
        *((TailModel(bundle, spec, options), ("tail", spec.id), tuple(spec.planes)) for spec in specs),
        (FullModel(bundle, options), ("full",), frame),
    ]

    def measure() -> None:
        with ExitStack() as stack:
            turns = []
            for model, key, shape in models:
                stack.callback(model.unload)
                model.load(BatchTimes(), 1)
                item = np.zeros(shape, np.uint8)  # a time depends on no value of it
                turns.append(_Batches(batches, key, model, sizes, item))
            in_turns(turns, batches, effort, cycle=1, progress=progress, stop=stop)

    # A model belongs to one thread.
    with ThreadPoolExecutor(1, "aecnn-calibrate", initializer=let_others_first) as pool:
        measuring = pool.submit(measure)
        try:
            measuring.result()
        except BaseException:
            stop.set()
            raise
    clock.take_over(batches)


class _Batches:
    """Batches of one model, one of each size."""

    def __init__(self, clock: Clock, key: Key, model: EdgeModel, sizes: Sequence[int], item: Array) -> None:
        self._clock, self._key, self._model, self._sizes, self._item = clock, key, model, sizes, item

    def __call__(self, number: int) -> None:
        for size in self._sizes:
            with self._clock.of(*self._key, str(size)):
                self._model.run([self._item] * size)
