"""How long each layer of the unsplit model takes: ONNX Runtime's own profile of it. Needs no ``onnx`` package."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from aecnn_deploy.errors import RunnerError
from aecnn_deploy.optional import require
from aecnn_deploy.planning.profiles import LayerTime
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner

_RUNS = 15  # after the first one, which is left out: it finds memory and kernels
_LONGEST_S = 3.0  # of all runs of a slow model, of which there are three at least
_SUFFIX = "_kernel_time"


class _Event(msgspec.Struct, frozen=True):
    """One entry of ONNX Runtime's profile; microseconds."""

    name: str
    cat: str = ""
    ts: int = 0
    dur: int = 0
    args: dict[str, Any] = {}


def layer_times(full: Path, *, threads: int, whole_ms: float | None = None) -> dict[str, LayerTime]:
    """Milliseconds of each layer of the model ``full``, in the order in which they run; they add up to ``whole_ms``.

    The model is optimised as ``OnnxRuntimeRunner`` runs it. What ONNX Runtime fuses is one layer, which has the name of
    one of the nodes, or that of its output and ``_nchwc``: ``planning.layers.LayerTable`` finds its place in the graph.
    With fewer optimisations every node would keep its name, and the shares would be wrong: a depthwise convolution
    takes ten times as long without the blocked layout on x86. ``whole_ms``: the model's measured time; None: it is
    measured here. Raises RunnerError: the model does not load or run.
    """
    if whole_ms is None:
        whole_ms = _whole_ms(full, threads)
    with tempfile.TemporaryDirectory(prefix="aecnn-layers-") as folder:
        events = _profile(full, threads, Path(folder))
    times: dict[str, list[int]] = {}
    operators: dict[str, str] = {}
    for event in _outermost(events):
        name = event.name.removesuffix(_SUFFIX)
        times.setdefault(name, []).append(event.dur)
        operators[name] = str(event.args.get("op_name", ""))
    if not times:
        raise RunnerError(f"ONNX Runtime's profile of {full} names no layer; try another release of onnxruntime")
    # Half a microsecond stands for what is below the profile's resolution.
    medians = {name: max(float(np.median(values[1:] or values)), 0.5) for name, values in times.items()}
    scale = whole_ms / sum(medians.values())
    return {name: LayerTime(operators[name], median * scale) for name, median in medians.items()}


def _profile(full: Path, threads: int, folder: Path) -> list[_Event]:
    ort = require("onnxruntime", why="timing layers")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    try:
        session = ort.InferenceSession(str(full), options, providers=["CPUExecutionProvider"])
        taken = session.get_inputs()[0]
        shape = [size if isinstance(size, int) else 1 for size in taken.shape]
        dtype = np.uint8 if taken.type == "tensor(uint8)" else np.float32
        frame = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
        began_s = time.perf_counter()
        for run in range(1 + _RUNS):
            session.run(None, {taken.name: frame})
            if run >= 3 and time.perf_counter() - began_s > _LONGEST_S:
                break
        written = Path(session.end_profiling())
    except Exception as exc:  # ONNX Runtime raises its own classes, which share no base
        raise RunnerError(f"ONNX Runtime {ort.__version__} cannot profile {full}: {str(exc)[:300]}") from exc
    return msgspec.json.decode(written.read_bytes(), type=list[_Event])


def _outermost(events: list[_Event]) -> Iterator[_Event]:
    """The layers' events in the order of time, without those of a loop's or a branch's own body."""
    end_us = -1
    layers = (event for event in events if event.cat == "Node" and event.name.endswith(_SUFFIX))
    for event in sorted(layers, key=lambda event: (event.ts, -event.dur)):
        if event.ts + event.dur > end_us or event.dur == 0:
            yield event
            end_us = max(end_us, event.ts + event.dur)


def _whole_ms(full: Path, threads: int) -> float:
    with OnnxRuntimeRunner(full, threads=threads) as runner:
        shape = (1, *runner.input_shape)
        frame = np.random.default_rng(0).integers(0, 256, shape).astype(runner.input_dtype)
        runner.infer(frame)
        times_s = []
        for _ in range(_RUNS):
            start_s = time.perf_counter()
            runner.infer(frame)
            times_s.append(time.perf_counter() - start_s)
    return float(np.median(times_s)) * 1e3
