"""What the cuts of an unsplit model would send, JPEG-coded as in Ko et al. (AVSS 2018), and how its answers change.

The tensor at a cut is stretched to 8 bits between its own least and greatest value, tiled into a mosaic and coded as a
greyscale JPEG file (``codec.feature_jpeg``); the rest of the model runs on what comes back.
"""

import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import PIL

from aecnn_deploy import __version__
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.calibration.model_graph import ModelGraph, read_graph
from aecnn_deploy.codec.feature_jpeg import decode_planes, encode_planes
from aecnn_deploy.errors import AecnnError, PlanError, RunnerError, SettingsError
from aecnn_deploy.optional import require
from aecnn_deploy.planning.machine import this_machine
from aecnn_deploy.planning.profiles import CutFeatures, FeatureProfile

Frames = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_WHY = "measuring features"
_BITS = 8
_REPEATED = 5.0  # a cut of the size of the one before it is chosen as late as one so many times as large
_RANGE_BYTES = 8  # the two float32 between which the values were stretched


@dataclass(frozen=True, slots=True)
class FeatureSettings:
    """``qualities`` of JPEG, 1 to 100. ``max_cuts``: that photographs are run through. ``threads`` 0: every core.

    Raises SettingsError: one of them is out of range.
    """

    qualities: tuple[int, ...] = (30, 60, 90)
    max_cuts: int = 12
    threads: int = 0

    def __post_init__(self) -> None:
        if not self.qualities or any(not 1 <= quality <= 100 for quality in self.qualities):
            raise SettingsError(f"JPEG has the qualities 1 to 100, got {self.qualities}")
        if len(set(self.qualities)) != len(self.qualities):
            raise SettingsError(f"each JPEG quality is measured once, got {self.qualities}")
        if self.max_cuts < 1 or self.threads < 0:
            raise SettingsError(
                f"at least 1 cut and 0 threads or more are needed, got {self.max_cuts} and {self.threads}"
            )


@dataclass(frozen=True, slots=True)
class _Coded:
    """One photograph's tensor at one cut: its 8-bit planes, their range, and JPEG quality -> file."""

    planes: npt.NDArray[np.uint8]
    low: float
    step: float
    files: dict[int, bytes]


def measure_features(
    bundle: Bundle,
    frames: Frames,
    settings: FeatureSettings | None = None,
    *,
    advance: Callable[[], None] = lambda: None,
) -> FeatureProfile:
    """The cuts of ``bundle``'s unsplit model, with what ``frames`` (N, H, W, 3) measure at those worth sending.

    ``advance`` is called once for each photograph and once for each cut that is measured. Raises MissingExtraError:
    no ``onnx``. PlanError, RunnerError: the model cannot be read, cut or run.
    """
    settings = settings or FeatureSettings()
    if frames.ndim != 4 or len(frames) == 0 or frames.dtype != np.uint8:
        raise PlanError(f"photographs are uint8 (N, H, W, 3), at least one, got {frames.dtype} {frames.shape}")
    began_s = time.perf_counter()
    graph = read_graph(bundle.file(bundle.manifest.full))
    chosen = worth_sending(graph.cuts, settings.max_cuts)
    measured = _measure(graph, chosen, frames, settings, advance) if chosen else {}
    return FeatureProfile(
        bundle_id=bundle.id,
        machine=this_machine(),
        versions={
            "aecnn-deploy": __version__,
            "onnx": require("onnx", why=_WHY, extra="plan").__version__,
            "onnxruntime": require("onnxruntime", why=_WHY).__version__,
            "pillow": PIL.__version__,
            "python": platform.python_version(),
        },
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        took_s=round(time.perf_counter() - began_s, 2),
        images=len(frames),
        layer_macs=graph.macs,
        cuts=[measured.get(cut.tensor, cut) for cut in graph.cuts],
        nodes=graph.nodes,
    )


def worth_sending(cuts: Sequence[CutFeatures], most: int) -> list[CutFeatures]:
    """At most ``most`` of ``cuts``, in their order: those that have few values beside the smallest cut before them.

    A cut with more values than an earlier one costs more on the device, and most likely on the link, too. One of the
    size of its predecessor tells little more than that one. Of equal ones the earlier goes first.
    """
    smallest = math.inf
    before = 0
    rated: list[tuple[float, int]] = []
    for index, cut in enumerate(cuts):
        values = math.prod(cut.shape)
        if len(cut.shape) <= 3:  # more axes than planes have
            rated.append((max(values / smallest, 0.999) * (_REPEATED if values == before else 1.0), index))
            smallest, before = min(smallest, values), values
    return [cuts[index] for index in sorted(index for _, index in sorted(rated)[:most])]


def _measure(
    graph: ModelGraph,
    cuts: Sequence[CutFeatures],
    frames: Frames,
    settings: FeatureSettings,
    advance: Callable[[], None],
) -> dict[str, CutFeatures]:
    """Tensor -> its cut with all that is measured."""
    answers: list[int] = []
    coded: dict[str, list[_Coded]] = {cut.tensor: [] for cut in cuts}
    # Files are kept, not tensors: the first cuts of all photographs together are gigabytes of floats.
    with _session(_with_outputs(graph.proto, cuts), settings.threads) as run:
        for frame in frames:
            logits, *tensors = run(frame[None])
            answers.append(int(logits[0].argmax()))
            for cut, tensor in zip(cuts, tensors, strict=True):
                coded[cut.tensor].append(_encode(tensor[0], settings.qualities))
            advance()
    extractor = require("onnx.utils", why="cutting a model", extra="plan").Extractor(graph.proto)
    found: dict[str, CutFeatures] = {}
    for cut in cuts:
        rest = extractor.extract_model([cut.tensor], [graph.proto.graph.output[0].name])
        with _session(rest, settings.threads) as run:
            found[cut.tensor] = _measured(cut, coded.pop(cut.tensor), answers, run, settings.qualities)
        advance()
    return found


def _measured(
    cut: CutFeatures,
    images: Sequence[_Coded],
    answers: Sequence[int],
    run: Callable[[Floats], list[Floats]],
    qualities: Sequence[int],
) -> CutFeatures:
    def agrees(coded: _Coded, planes: npt.NDArray[np.uint8], answer: int) -> bool:
        values = planes.astype(np.float32) * np.float32(coded.step) + np.float32(coded.low)
        return int(run(values.reshape(1, *cut.shape))[0][0].argmax()) == answer

    pairs = list(zip(images, answers, strict=True))
    same = {
        quality: [
            agrees(coded, decode_planes(coded.files[quality], _as_planes(cut.shape), _BITS), answer)
            for coded, answer in pairs
        ]
        for quality in qualities
    }
    return msgspec.structs.replace(
        cut,
        jpeg_bytes={
            quality: round(_RANGE_BYTES + float(np.mean([len(coded.files[quality]) for coded in images])), 1)
            for quality in qualities
        },
        jpeg_agreement={quality: float(np.mean(hits)) for quality, hits in same.items()},
        quantised_agreement=float(np.mean([agrees(coded, coded.planes, answer) for coded, answer in pairs])),
    )


def _encode(tensor: Floats, qualities: Sequence[int]) -> _Coded:
    low, high = float(tensor.min()), float(tensor.max())
    step = (high - low) / ((1 << _BITS) - 1) or 1.0
    planes = np.rint((tensor - np.float32(low)) / np.float32(step)).clip(0, (1 << _BITS) - 1).astype(np.uint8)
    planes = planes.reshape(_as_planes(tensor.shape))
    return _Coded(planes, low, step, {quality: encode_planes(planes, _BITS, quality) for quality in qualities})


def _as_planes(shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W) of a tensor that may have fewer axes: a vector is a plane of one value for each channel."""
    channels, height, width = (*shape, 1, 1)[:3]
    return channels, height, width


def _with_outputs(proto: Any, cuts: Sequence[CutFeatures]) -> Any:
    """A copy of ``proto`` that gives the tensors of ``cuts``, too."""
    helper = require("onnx.helper", why="cutting a model", extra="plan")
    copy = type(proto)()
    copy.CopyFrom(proto)
    copy.graph.output.extend(helper.make_tensor_value_info(cut.tensor, 1, [1, *cut.shape]) for cut in cuts)
    return copy


@contextmanager
def _session(proto: Any, threads: int) -> Iterator[Callable[[Any], list[Floats]]]:
    """A function that runs the model ``proto`` on its only input."""
    ort = require("onnxruntime", why="running a part of a model")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # ruinous beside other processes
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        yield lambda values: session.run(None, {name: values})
    except AecnnError:
        raise
    except Exception as exc:  # ONNX Runtime raises its own classes, which share no base
        raise RunnerError(f"ONNX Runtime {ort.__version__} cannot run a part of the model: {str(exc)[:300]}") from exc
