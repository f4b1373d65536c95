"""What each means of making training cheap saves on this machine's CPU: images a second, side by side in one run.

    python -m benchmarks.training_speed --data $AECNN_DATA/caltech101

Measured with EfficientNet-Lite0 and 101 classes, batch 32, all cores, medians of several steps:

* decoding photographs against reading their decoded frames from the cache;
* the unsplit network's outputs (the teacher) computed against kept;
* a training step of AECNN's network at l = 7, V = 4: float32, bfloat16 + channels last, with the gradients of depthwise
  convolutions by fast kernels, with freed memory kept, and with 4 or 6 frozen stages whose output is kept;
* the two gradients of a depthwise convolution that torch has no fast kernel for, by torch and by ours;
* a step of label-free training, l = 6, V = 4, with torch's gradients, with ours, and of the last convolution alone;
* a step of the faster path with a purpose-made head: matching (no tail is run), end to end with a frozen tail, end to
  end with a trained one.

The frozen stages' kept outputs are checked against running them, a step's gradients by fast kernels against torch's.
What it is not: accuracy, or a GPU's speed.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from aecnn_deploy.models.backbones import build_backbone
from aecnn_deploy.models.deploy import fold_batch_norm
from aecnn_deploy.models.split import SplitDesign, SplitModel, pruned_split
from aecnn_deploy.models.weights import load_backbone
from aecnn_deploy.training.dataset import load_labelled
from aecnn_deploy.training.depthwise import QuickDepthwise
from aecnn_deploy.training.freed_memory import keep_freed_memory
from aecnn_deploy.training.label_free import Student, has_bfloat16
from benchmarks.machine import describe_machine, write_result

RESULTS = Path(__file__).parent / "results" / "training_speed.json"
BATCH, STEPS, CATEGORIES, CLASSES = 32, 7, 8, 101
STRIDED = ((96, 3, 2), (96, 3, 1, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder caltech101")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    options = parser.parse_args()
    rows = [*_decoding(options.data), *_teacher(), *_gradients(), *_label_free(), *_steps(), *_faster_path()]
    document = {
        "benchmark": "training_speed",
        "command": ".venv/bin/python -m benchmarks.training_speed --data $AECNN_DATA/caltech101",
        "batch": BATCH,
        "rows": rows,
        **describe_machine(),
    }
    write_result(options.out, document)
    for row in rows:
        print(f"{row['what']:<75} {row['images_per_s']:>9.1f} images/s")
    print(f"written to {options.out}")


def _row(what: str, images: int, seconds: list[float]) -> dict[str, Any]:
    return {"what": what, "images_per_s": round(images / statistics.median(seconds), 2), "steps": len(seconds)}


def _timed(work: Callable[[], object], steps: int = STEPS) -> list[float]:
    work()  # warm-up
    seconds = []
    for _ in range(steps):
        start_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start_s)
    return seconds


def _decoding(data: Path) -> list[dict[str, Any]]:
    """A few categories, decoded and then from the cache."""
    spec = build_backbone("efficientnet_lite0").input
    with tempfile.TemporaryDirectory() as scratch:
        root, cache = Path(scratch) / "data", Path(scratch) / "cache"
        root.mkdir()
        for folder in sorted(path for path in data.iterdir() if path.is_dir())[:CATEGORIES]:
            (root / folder.name).symlink_to(folder.resolve())
        seconds = []
        frames = []
        for _ in range(2):
            start_s = time.perf_counter()
            photographs = load_labelled(root, spec, cache=cache)
            frames.append(np.array(photographs.frames))
            seconds.append(time.perf_counter() - start_s)
    assert np.array_equal(*frames)
    count = len(frames[0])
    return [
        _row("photographs: decode, resize, crop", count, seconds[:1]),
        _row("photographs: decoded frames from the cache", count, seconds[1:]),
    ]


def _autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16(torch.device("cpu")))


def _input(*shape: int) -> Tensor:
    return torch.randn(BATCH, *shape).contiguous(memory_format=torch.channels_last)


def _teacher() -> list[dict[str, Any]]:
    backbone = load_backbone("efficientnet_lite0")
    folded = fold_batch_norm(nn.Sequential(backbone.stages, backbone.classifier)).to(memory_format=torch.channels_last)
    x = _input(3, 224, 224)
    kept = torch.randn(256, CLASSES)
    rows = torch.randint(256, (BATCH,))

    def run() -> None:
        with torch.no_grad(), _autocast():
            folded(x)

    return [
        _row("teacher: the unsplit network run", BATCH, _timed(run)),
        _row("teacher: outputs kept", BATCH, _timed(lambda: kept[rows].clone())),
    ]


def _step(parts: list[nn.Module], model: nn.Module, x: Tensor, *, fast: bool, quick: bool = True) -> Callable[[], None]:
    """Forward, backward and AdamW for the chain ``parts``, of which those with gradients learn."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=1e-5, fused=True)

    def work() -> None:
        optimiser.zero_grad(set_to_none=True)
        y = x
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=fast and has_bfloat16(torch.device("cpu"))),
            QuickDepthwise() if quick else nullcontext(),
        ):
            for part in parts:
                y = part(y)
        torch.autograd.backward(y.float().square().mean())
        optimiser.step()

    return work


def _gradients() -> list[dict[str, Any]]:
    """One layer's backward pass alone, bfloat16 and channels last."""
    rows = []
    for what, side, stride, padding, size, of_input in (
        ("of 5×5 weights, 672×14×14", 5, 1, 2, 14, False),
        ("of the input at stride 2, 672×17×17", 5, 2, 0, 17, True),
    ):
        for whose, context in (("torch's", nullcontext()), ("ours", QuickDepthwise())):
            x = _input(672, size, size).bfloat16().requires_grad_(of_input)
            weight = torch.randn(672, 1, side, side).bfloat16().requires_grad_(not of_input)
            with context:
                y = torch.conv2d(x, weight, None, stride, padding, 1, 672)
            wanted, upstream = (x if of_input else weight), torch.randn_like(y)
            work = functools.partial(torch.autograd.grad, y, wanted, upstream, retain_graph=True)
            rows.append(_row(f"gradient {what}: {whose}", BATCH, _timed(work)))
    return rows


def _label_free() -> list[dict[str, Any]]:
    rows = []
    backbone = build_backbone("efficientnet_lite0")
    kept = torch.arange(backbone.split_point(6).kept_channels(4))
    for what, last_only, quick in (
        ("torch's gradients", False, False),
        ("ours", False, True),
        ("ours, projection_only", True, True),
    ):
        model = pruned_split(backbone, 6, kept, 4).to(memory_format=torch.channels_last)
        student = Student(model, 5, last_only)
        student.training_mode(True)
        parts = [student.stages, model.quantiser, model.recovery]
        work = _step(parts, model, _input(40, 28, 28), fast=True, quick=quick)
        rows.append(_row(f"step of label-free training, l = 6: {what}", BATCH, _timed(work)))
    return rows


def _steps() -> list[dict[str, Any]]:
    rows = []
    split = 7
    backbone = build_backbone("efficientnet_lite0", CLASSES)
    kept = torch.arange(backbone.split_point(split).kept_channels(4))
    points = {0: (3, 224, 224)} | {
        i: (p.channels, p.height, p.width) for i, p in enumerate(backbone.split_points, start=1)
    }
    for what, frozen, fast, quick, keep in (
        ("float32", 0, False, False, False),
        ("bfloat16, channels last", 0, True, False, False),
        ("… and depthwise gradients by fast kernels", 0, True, True, False),
        ("… and freed memory kept", 0, True, True, True),
        ("… and 4 stages frozen, their output kept", 4, True, True, True),
        ("… and 6 stages frozen, their output kept", 6, True, True, True),
    ):
        if keep:
            keep_freed_memory()
        model = pruned_split(backbone, split, kept, 8).train()
        if fast:
            model = model.to(memory_format=torch.channels_last)
        model.head[:frozen].requires_grad_(False)
        x = _input(*points[frozen]) if fast else torch.randn(BATCH, *points[frozen])
        parts = [model.head[frozen:], model.quantiser, model.recovery, model.tail]
        rows.append(
            _row(f"step of Algorithm 1, l = 7: {what}", BATCH, _timed(_step(parts, model, x, fast=fast, quick=quick)))
        )
    _check_frozen(load_backbone("efficientnet_lite0"))
    if has_bfloat16(torch.device("cpu")):
        _check_quick()
    return rows


def _check_frozen(backbone: nn.Module) -> None:
    """What is kept is what running would give: stages cut in two chains equal the whole."""
    with torch.no_grad():
        x = torch.randn(2, 3, 224, 224)
        stages = backbone.get_submodule("stages")
        assert isinstance(stages, nn.Sequential)
        assert torch.equal(stages(x), stages[6:](stages[:6](x)))


def _check_quick() -> None:
    """A step's gradients by fast kernels are those of torch but for the order of bfloat16 sums."""
    torch.manual_seed(0)
    stages = build_backbone("efficientnet_lite0", CLASSES).stages[6:].train().to(memory_format=torch.channels_last)
    x = _input(40, 28, 28)

    def gradients(context: AbstractContextManager[object], *, low: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low), context:
            y = stages(x)
        found = torch.autograd.grad(y.float().square().mean(), list(stages.parameters()))
        return torch.cat([gradient.flatten() for gradient in found])

    exact = gradients(nullcontext(), low=False)
    low, quick = gradients(nullcontext(), low=True), gradients(QuickDepthwise(), low=True)
    assert (quick - exact).norm() < 1.2 * (low - exact).norm()


def _faster_path() -> list[dict[str, Any]]:
    backbone = build_backbone("efficientnet_lite0", CLASSES)
    base = SplitDesign(kind="strided", split=9, planes=16, bits=4, hidden=128, depth=2, reuse=5, layers=STRIDED)
    tiny = msgspec.structs.replace(base, split=7, reuse=0, layers=((32, 7, 4), (64, 3, 2), (72, 3, 2)), depth=3)
    rows = []
    for name, design, shape in (("28 % head, 5 stages kept", base, (40, 28, 28)), ("10 % head", tiny, (3, 224, 224))):
        for what, tail, trained, quick in (
            ("matching", False, False, True),
            ("frozen tail, torch's gradients", True, False, False),
            ("frozen tail", True, False, True),
            ("trained tail", True, True, True),
        ):
            model = SplitModel(backbone, design).to(memory_format=torch.channels_last)
            head = model.head[design.reuse :]
            for part in (head, model.recovery):
                part.train()
            model.tail.requires_grad_(trained)
            model.head[: design.reuse].requires_grad_(False)
            parts = [head, model.quantiser, model.recovery, *([model.tail] if tail else [])]
            rows.append(
                _row(
                    f"faster path, {name}: {what}",
                    BATCH,
                    _timed(_step(parts, model, _input(*shape), fast=True, quick=quick)),
                )
            )
    return rows


if __name__ == "__main__":
    main()
