"""A fleet: devices with their links, who goes to which process, and all cells of it simulated, one after the other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.scaling_cell import Arrivals, CellResult, CellShape, Fate, Floats, Ints, simulate
from benchmarks.scaling_settings import FleetSettings, Inputs, on_link_bytes


@dataclass(frozen=True, slots=True)
class FleetShape:
    """How many cells of what shape, and on how many boxes."""

    cell: CellShape
    cells: int
    boxes: int

    @property
    def fronts(self) -> int:
        """Processes with an event loop, in the whole fleet."""
        return self.cells * self.cell.fronts


@dataclass(frozen=True, slots=True)
class Frames:
    """Every frame of every device. ``device`` and times (N) in seconds, in order of ``at_s``."""

    device: Ints
    captured_s: Floats
    at_s: Floats  # at the edge
    back_s: Floats  # by device: the way of the answer


def fleet_shape(settings: FleetSettings, inputs: Inputs) -> FleetShape:
    """As many boxes as were asked for, or as the load takes at ``utilisation``; the rest follows from the layout."""
    load, most = settings.images_per_s, settings.utilisation
    # Room for the streams of a box that died, too.
    by_streams = math.ceil(settings.devices / settings.max_streams / most) if settings.streams_limited else 1
    common = cell_shape(settings, inputs)
    if settings.layout == "cpu":
        each = settings.cores // inputs.tail_cores  # processes of a box
        wanted = max(math.ceil(load / (process_images_per_s(inputs) * most)), by_streams)
        boxes = settings.boxes or math.ceil(wanted / each)
        return FleetShape(common, boxes * each, boxes)
    front_most = most / front_s(inputs)  # images a second of one front
    if settings.layout == "gpu":
        # Of one GPU: as many processes as it takes to keep it busy, or for the streams.
        gpus = (
            settings.boxes * settings.gpus
            if settings.boxes
            else max(math.ceil(load / (settings.gpu_images_per_s * most)), 1)
        )
        boxes = settings.boxes or math.ceil(gpus / settings.gpus)
        gpus = boxes * settings.gpus
        fronts = max(math.ceil(load / gpus / front_most), math.ceil(by_streams / gpus))
        return FleetShape(replace(common, fronts=fronts), gpus, boxes)
    tails = max(1, math.ceil(load / (settings.gpu_images_per_s * most)))
    fronts = max(math.ceil(load / front_most), by_streams)
    boxes = settings.boxes or math.ceil(fronts / settings.cores)
    fronts = max(fronts, boxes)
    # So many at once that the tails need not wait for a front's only batch.
    slots = max(2, math.ceil(2 * tails / fronts))
    return FleetShape(replace(common, fronts=fronts, tails=tails, slots=slots), 1, boxes)


def cell_shape(settings: FleetSettings, inputs: Inputs) -> CellShape:
    """One process of the layout, as measured; its number of fronts and tails is not decided yet."""
    common = CellShape(
        batch_s=tuple((size, seconds) for size, seconds in inputs.batch_s),
        receive_s=inputs.tls_receive_answer_s / 2,
        answer_s=inputs.tls_receive_answer_s / 2,
        decode_s=inputs.decode_s,
        beside_s=inputs.beside_s,
        contention=1.0,
        noise=tuple(inputs.noise),
        connect_s=inputs.tls_connect_s,
        max_streams=settings.max_streams if settings.streams_limited else settings.devices,
        max_queue=settings.max_queue,
        max_in_flight=settings.max_in_flight,
        window=settings.window,
        deadline_s=settings.deadline_ms / 1e3 if settings.deadline_ms is not None else None,
    )
    if settings.layout == "cpu":
        return common
    launch_s, each_s = settings.gpu_launch_ms / 1e3, 1 / settings.gpu_images_per_s
    # Whole batches go at the stated rate, the launch included.
    run_s = max(settings.gpu_batch * each_s - launch_s, 0.0) / settings.gpu_batch
    sizes = [1 << power for power in range((settings.gpu_batch - 1).bit_length())] + [settings.gpu_batch]
    return replace(
        common,
        batch_s=tuple((size, launch_s + size * run_s) for size in sizes),
        max_batch=settings.gpu_batch,
        noise=(1.0,),
        # One interpreter lock for all threads of a process: what the others work, the event loop waits for.
        receive_s=front_s(inputs) / 2,
        answer_s=front_s(inputs) / 2,
        contention=0.0,
        hop_s=settings.hop_ms / 1e3 if settings.layout == "split" else 0.0,
    )


def front_s(inputs: Inputs) -> float:
    """CPU seconds of a process an image, the tail's run apart, with TLS: what a core of a front is taken for."""
    return inputs.tls_receive_answer_s + inputs.beside_s


def process_images_per_s(inputs: Inputs) -> float:
    """Of a process that shares its ``tail_cores`` between tail and front: each run waits for what the front does."""
    return max(size / (seconds + size * front_s(inputs)) for size, seconds in inputs.batch_s)


def place(settings: FleetSettings, fronts: int, *, seed: int = 0) -> Ints:
    """The front of each device (devices,)."""
    rng = np.random.default_rng([settings.seed, seed, 1])
    if settings.placement == "hash":
        return rng.integers(0, fronts, settings.devices)
    return rng.permutation(np.arange(settings.devices) % fronts)


def make_frames(settings: FleetSettings, inputs: Inputs) -> Frames:
    """Frames of ``settings.seconds``, over each device's own link: one message waits for the one before it."""
    rng = np.random.default_rng([settings.seed, 2])
    devices, period_s = settings.devices, 1 / settings.fps
    count = max(1, int(settings.seconds * settings.fps))
    shares = np.array([link.share for link in settings.links])
    kind = rng.choice(len(settings.links), devices, p=shares / shares.sum())
    rate_bps = np.array([link.rate_mbps for link in settings.links])[kind] * 1e6
    delay_s = np.array([link.delay_ms for link in settings.links])[kind] / 1e3
    if settings.capture == "poisson":
        captured = np.cumsum(rng.exponential(period_s, (count, devices)), axis=0)
    else:
        phase = np.zeros(devices) if settings.capture == "together" else rng.uniform(0, period_s, devices)
        captured = phase + np.arange(count)[:, np.newaxis] * period_s
    send_s = on_link_bytes(inputs.received_bytes_per_image) * 8 / rate_bps
    at = np.empty_like(captured)
    through = np.zeros(devices)
    for number in range(count):
        through = np.maximum(captured[number], through) + send_s
        at[number] = through + delay_s
    order = np.argsort(at, axis=None, kind="stable")
    device = np.tile(np.arange(devices), count)[order]
    return Frames(device, captured.ravel()[order], at.ravel()[order], delay_s)


@dataclass(frozen=True, slots=True)
class FleetResult:
    """What became of every frame, over all cells. Seconds (N); NaN where there was no answer."""

    frames: Frames
    fate: Ints
    latency_s: Floats  # from capture to the answer at the device; the head's time is not in it
    queue_s: Floats
    edge_s: Floats  # from the frame's coming to the edge to its answer's leaving it
    batch_mean: float
    front_share: Floats  # of a second that each front works
    tail_share: Floats
    cells: list[CellResult]

    def share(self, *fates: Fate) -> float:
        """Of all frames, those that ended so."""
        return float(np.isin(self.fate, fates).mean()) if len(self.fate) else 0.0

    def document(self) -> dict[str, object]:
        """For a result file."""
        return {
            "frames": len(self.fate),
            "ok": round(self.share(Fate.OK), 5),
            "fates": {fate.name.lower(): int((self.fate == fate).sum()) for fate in Fate},
            "queue_ms": spread_ms(self.queue_s),
            "edge_ms": spread_ms(self.edge_s),
            "latency_ms": spread_ms(self.latency_s),
            "batch_mean": round(self.batch_mean, 2),
            "front_share": _mean_and_most(self.front_share),
            "tail_share": _mean_and_most(self.tail_share),
        }


def run_fleet(
    settings: FleetSettings,
    shape: FleetShape,
    frames: Frames,
    front_of: Ints,
    *,
    connects: Sequence[tuple[float, int]] = (),
    reachable_s: float = 0.0,
) -> FleetResult:
    """Simulate every cell. ``front_of``: by device; ``connects``, ``reachable_s``: as ``simulate`` has them."""
    each = shape.cell.fronts
    cell_of = (front_of // each)[frames.device]
    order = np.argsort(cell_of, kind="stable")  # in each cell still in order of time
    ends = np.searchsorted(cell_of[order], np.arange(shape.cells + 1))
    count = len(frames.at_s)
    fate = np.zeros(count, np.int64)
    latency_s, queue_s, edge_s = (np.full(count, np.nan) for _ in range(3))
    results, batches = [], 0.0
    members = np.argsort(front_of // each, kind="stable")  # devices by cell, in each of them in order
    first = np.searchsorted((front_of // each)[members], np.arange(shape.cells + 1))
    joining: list[list[tuple[float, int]]] = [[] for _ in range(shape.cells)]
    for when_s, who in connects:
        joining[front_of[who] // each].append((when_s, who))
    for number in range(shape.cells):
        mine = order[ends[number] : ends[number + 1]]
        devices = members[first[number] : first[number + 1]]
        arrivals = Arrivals(frames.at_s[mine], np.searchsorted(devices, frames.device[mine]), front_of[devices] % each)
        found = simulate(
            shape.cell,
            arrivals,
            seed=settings.seed * 65_537 + number,
            connects=tuple((when_s, int(np.searchsorted(devices, who))) for when_s, who in joining[number]),
            reachable_s=reachable_s,
        )
        fate[mine], queue_s[mine] = found.fate, found.queue_s
        edge_s[mine] = found.answered_s - arrivals.at_s
        latency_s[mine] = found.answered_s + frames.back_s[frames.device[mine]] - frames.captured_s[mine]
        batches += float((1 / found.batch[found.batch > 0]).sum())
        results.append(found)
    lasted_s = settings.seconds
    return FleetResult(
        frames,
        fate,
        latency_s,
        queue_s,
        edge_s,
        batch_mean=float((fate == Fate.OK).sum()) / batches if batches else 0.0,
        front_share=np.concatenate([found.front_busy_s for found in results]) / lasted_s,
        tail_share=np.concatenate([found.tail_busy_s for found in results]) / lasted_s,
        cells=results,
    )


def _mean_and_most(shares: Floats) -> dict[str, float]:
    return {"mean": round(float(shares.mean()), 3), "most": round(float(shares.max()), 3)}


def spread_ms(seconds: Floats) -> dict[str, float]:
    """Median, 99th percentile and largest of what is no NaN, in ms; empty for nothing."""
    found = seconds[~np.isnan(seconds)]
    if not len(found):
        return {}
    p50, p99, most = np.percentile(found, (50, 99, 100)) * 1e3
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(float(most), 2)}
