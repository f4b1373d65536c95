"""Tiny real bundles for tests: ONNX graphs of a few kilobytes that ONNX Runtime runs, and photographs for them."""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from aecnn_deploy.bundle.manifest import CodingSpec, InputSpec, Manifest, VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.bundle.writer import BundleWriter
from tests.planes import DICTIONARY

SIZE = 64
LABELS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu, a large antelope")
COMMAND = [sys.executable, "-c", "from aecnn_deploy.cli.main import main; main()"]


@dataclass(frozen=True)
class TinyVariant:
    """One variant of a tiny bundle: planes (channels, SIZE / stride, SIZE / stride)."""

    id: str
    channels: int
    stride: int
    bits: int
    tail_loops: int = 0  # 512x512 matrix products in the tail: 100 of them take a good part of a second
    head_loops: int = 0  # the same in the head
    accuracy: float | None = None  # as the bundle states it


VARIANTS = (TinyVariant("tiny-l1-v2-u8", 4, 4, 8), TinyVariant("tiny-l1-v4-u4", 2, 4, 4))
SLOW = (TinyVariant("tiny-slow", 4, 4, 8, tail_loops=150), TinyVariant("tiny-fast", 4, 4, 8))


def make_bundle(
    out: Path,
    *,
    variants: tuple[TinyVariant, ...] = VARIANTS,
    seed: int = 0,
    size: int = SIZE,
    dictionary: bool = False,
    tail_of_first: Path | None = None,
    agreement: float | None = 0.5,
) -> Manifest:
    """Write a bundle to ``out``; another ``seed`` gives other weights and so another bundle id.

    ``tail_of_first``: a file to take for the first variant's tail, whatever it is. ``agreement``: as it states of all.
    """
    rng = np.random.default_rng(seed)
    spec = InputSpec(size, size, size * 9 // 8, "bicubic", (127.0,) * 3, (128.0,) * 3)
    with BundleWriter(out) as writer:
        specs = []
        coding = None
        if dictionary:
            coding = CodingSpec(DICTIONARY.predictor, "dictionaries/all.zdict")
            writer.path("dictionaries/all.zdict").write_bytes(DICTIONARY.content)
        for variant in variants:
            planes = (variant.channels, size // variant.stride, size // variant.stride)
            head, tail = f"heads/{variant.id}.onnx", f"tails/{variant.id}.onnx"
            _save(_head(variant, planes, size, rng), writer.path(head))
            _save(_tail(planes, rng, variant.tail_loops), writer.path(tail))
            if tail_of_first is not None and variant is variants[0]:
                writer.path(tail).write_bytes(tail_of_first.read_bytes())
            specs.append(
                VariantSpec(
                    id=variant.id,
                    split=1,
                    split_name="stem",
                    ratio=2,
                    bits=variant.bits,
                    planes=planes,
                    head=head,
                    head_macs=1000,
                    full_macs=9000,
                    tails={"onnxruntime": tail},
                    accuracy=variant.accuracy,
                    agreement=agreement,
                    coding=coding,
                )
            )
        _save(_full(size, rng), writer.path("full.onnx"))
        return writer.commit(
            backbone="tiny",
            labels=LABELS,
            input_spec=spec,
            full="full.onnx",
            variants=tuple(specs),
            measurements={},
            tools={"onnx": onnx.__version__},
        )


def make_photos(folder: Path, count: int = 4, *, seed: int = 0) -> list[Path]:
    """``count`` JPEG files of smooth colours, each of another size."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((120 + 17 * number, 100 + 9 * number), Image.Resampling.BICUBIC)
        paths.append(folder / f"photo{number}.jpg")
        picture.save(paths[-1], quality=92)
    return paths


def run_directly(bundle: Bundle, frame: np.ndarray[Any, Any], variant: str) -> np.ndarray[Any, Any]:
    """Logits of head and tail without codec, link or our runners."""
    spec = bundle.variant(variant)
    planes = _session(bundle.file(spec.head)).run(None, {"frames": frame[None]})[0]
    logits: np.ndarray[Any, Any] = _session(bundle.file(spec.tails["onnxruntime"])).run(None, {"planes": planes})[0][0]
    return logits


def run_full(bundle: Bundle, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits of the unsplit model."""
    logits: np.ndarray[Any, Any] = _session(bundle.file(bundle.manifest.full)).run(None, {"frames": frame[None]})[0][0]
    return logits


class Edge:
    """A running ``serve-edge`` process."""

    def __init__(self, process: "subprocess.Popen[str]", ready: dict[str, Any]) -> None:
        self.process, self.ready = process, ready
        self.url, self.port = ready["url"], ready["port"]
        self.http = f"http://127.0.0.1:{self.port}"

    def stop(self, number: int = signal.SIGINT, *, timeout_s: float = 20.0) -> tuple[int, str]:
        """Signal it; its exit status and its stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, errors


@contextmanager
def serving(bundle: Path, *options: str, script: str | None = None) -> Iterator[Edge]:
    """A ``serve-edge`` process (or ``script``, which gets the bundle) on a free port; killed if it still runs."""
    serve = [*COMMAND, "serve-edge", str(bundle), "--port", "0", "--json", "--no-build", "--threads", "1", *options]
    process = subprocess.Popen(
        serve if script is None else [sys.executable, "-c", script, str(bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        yield Edge(process, json.loads(_first_line(process)))
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def command(*arguments: str, stdin: bytes = b"", timeout_s: float = 60.0) -> "subprocess.CompletedProcess[bytes]":
    """Run ``aecnn-deploy`` with ``arguments``."""
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, timeout=timeout_s, check=False, env=environment()
    )


def one_line(errors: bytes) -> str:
    """What a command said on stderr, which must be one line and no traceback."""
    text = errors.decode().strip()
    assert "Traceback" not in text, text
    assert "\n" not in text, text
    return text


def environment() -> dict[str, str]:
    """The environment of a child: warnings in it are errors, as they are in this process."""
    rest = {key: value for key, value in os.environ.items() if not re.fullmatch(r"(?i).*_proxy|COLUMNS", key)}
    return rest | {"PYTHONWARNINGS": "error::DeprecationWarning:aecnn_deploy"}


def _first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if selector.select(timeout=1.0):
                line = process.stdout.readline()
                if not line:
                    raise AssertionError(f"serve-edge ended: {process.stderr.read()}")
                return line
    raise AssertionError("serve-edge did not get ready within 60 s")


def _session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _save(graph: onnx.GraphProto, path: Path) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _constant(name: str, value: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype=dtype), name)


def _head(variant: TinyVariant, planes: tuple[int, int, int], size: int, rng: np.random.Generator) -> onnx.GraphProto:
    weight = rng.normal(0.0, 0.25, (variant.channels, 3, variant.stride, variant.stride))
    top = (1 << variant.bits) - 1
    constants = [
        _constant("weight", weight),
        _constant("scale", top / 255 / 4),
        _constant("middle", top / 2),
        _constant("low", 0.0),
        _constant("high", float(top)),
    ]
    nodes = [
        helper.make_node("Cast", ["frames"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "weight"], ["fast"], strides=[variant.stride] * 2),
        *(_busy(constants, variant.head_loops) if variant.head_loops else []),
        helper.make_node("Mul", ["logits" if variant.head_loops else "fast", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "middle"], ["shifted"]),
        helper.make_node("Round", ["shifted"], ["rounded"]),
        helper.make_node("Clip", ["rounded", "low", "high"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["planes"], to=TensorProto.UINT8),
    ]
    return helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["n", size, size, 3])],
        [helper.make_tensor_value_info("planes", TensorProto.UINT8, ["n", *planes])],
        constants,
    )


def _tail(planes: tuple[int, int, int], rng: np.random.Generator, loops: int) -> onnx.GraphProto:
    width = int(np.prod(planes))
    nodes = [
        helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["fast" if loops else "logits"]),
    ]
    weight = rng.normal(0.0, 0.05 / width**0.5, (width, len(LABELS)))
    constants = [_constant("weight", weight - weight.mean(axis=0))]  # else every photograph is of one class
    if loops:
        nodes += _busy(constants, loops)
    return helper.make_graph(
        nodes,
        "tail",
        [helper.make_tensor_value_info("planes", TensorProto.UINT8, ["n", *planes])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(LABELS)])],
        constants,
    )


def _busy(constants: list[onnx.TensorProto], loops: int) -> list[onnx.NodeProto]:
    """``logits`` = ``fast`` + almost nothing, after ``loops`` products with a permutation matrix."""
    side = 512
    constants += [
        _constant("permutation", np.eye(side)[np.random.default_rng(0).permutation(side)]),
        _constant("loops", loops, np.int64),
        _constant("go", True, np.bool_),
        _constant("nothing", 1e-30),
    ]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["matrix", "permutation"], ["next_matrix"]),
            helper.make_node("Identity", ["condition"], ["next_condition"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("matrix", TensorProto.FLOAT, [side, side]),
        ],
        [
            helper.make_tensor_value_info("next_condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_matrix", TensorProto.FLOAT, [side, side]),
        ],
    )
    return [
        helper.make_node("ReduceMean", ["floats"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["permutation", "mean"], ["start"]),
        helper.make_node("Loop", ["loops", "go", "start"], ["end"], body=body),
        helper.make_node("ReduceMean", ["end"], ["end_mean"], keepdims=0),
        helper.make_node("Mul", ["end_mean", "nothing"], ["little"]),
        helper.make_node("Add", ["fast", "little"], ["logits"]),
    ]


def _full(size: int, rng: np.random.Generator) -> onnx.GraphProto:
    nodes = [
        helper.make_node("Cast", ["frames"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["nchw"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    width = 3 * (size // 8) ** 2
    weight = rng.normal(0.0, 0.05 / width**0.5, (width, len(LABELS)))
    return helper.make_graph(
        nodes,
        "full",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["n", size, size, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(LABELS)])],
        [_constant("weight", weight - weight.mean(axis=0))],
    )
