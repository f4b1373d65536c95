"""The TensorRT runners on a real GPU, against ONNX Runtime. Each product that can run here is tested.

pytest -m gpu tests/test_tensorrt_gpu.py
"""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aecnn_deploy.bundle.manifest import EngineSpec
from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.errors import AecnnError, EngineMismatchError, ExportError, RunnerError
from aecnn_deploy.exporters.edge_engines import EdgeEngines
from aecnn_deploy.exporters.engines import EngineRequest, build_engine, known_architectures, targets
from aecnn_deploy.exporters.int8_tail import int8_tail
from aecnn_deploy.runtimes.cuda_worker import acquire, gpu_architecture, release
from aecnn_deploy.runtimes.edge_runners import RunnerOptions, activate_tail
from aecnn_deploy.runtimes.engine_header import read_engine_header
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.tensorrt_probe import PRODUCTS, usable
from aecnn_deploy.runtimes.tensorrt_runner import TensorRTRtxRunner, TensorRTRunner
from aecnn_deploy.runtimes.verification import LOGIT_TOLERANCE, verify_logits
from tests.bundles import SIZE, run_directly
from tests.sampled_bundles import with_samples

pytestmark = pytest.mark.gpu

RUNNERS = {"tensorrt": TensorRTRunner, "tensorrt-rtx": TensorRTRtxRunner}
MAX_BATCH = 8
SHAPE = (4, 28, 28)


def write_tail(path: Path) -> None:
    """A tail in small, fp16 inside: uint8 planes (N, 4, 28, 28) -> two convolutions, mean, Gemm -> logits (N, 10)."""
    rng = np.random.default_rng(3)
    half = np.float16
    weights = {
        "step": np.full((4, 1, 1), 1 / 64, half),
        "kernel1": (rng.standard_normal((16, 4, 3, 3)) * 0.2).astype(half),
        "kernel2": (rng.standard_normal((32, 16, 3, 3)) * 0.1).astype(half),
        "axes": np.array([2, 3], np.int64),
        "matrix": (rng.standard_normal((10, 32)) * 0.5).astype(half),
        "bias": rng.standard_normal(10).astype(half),
    }
    nodes = [
        helper.make_node("Cast", ["planes"], ["cast"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["cast", "step"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "kernel1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "kernel2"], ["c2"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("ReduceMean", ["r2", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "matrix", "bias"], ["product"], transB=1),
        helper.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "tail",
        [helper.make_tensor_value_info("planes", TensorProto.UINT8, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))


@dataclass(frozen=True)
class Built:
    """An engine for the GPU of this machine, and what ONNX Runtime computes."""

    product: str
    path: Path
    spec: EngineSpec
    planes: np.ndarray[Any, Any]
    logits: np.ndarray[Any, Any]

    def runner(self, **changed: Any) -> TensorRTRunner | TensorRTRtxRunner:
        return RUNNERS[self.product](self.path, msgspec.structs.replace(self.spec, **changed))


@pytest.fixture(scope="module", params=list(PRODUCTS))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    product = request.param
    if (reason := usable(product)) is not None:
        pytest.skip(f"{product} does not run here: {reason}")
    folder = tmp_path_factory.mktemp(product)
    source, path = folder / "tail.onnx", folder / "tail.engine"
    write_tail(source)
    (target,) = targets(EngineRequest(product))
    assert target.architecture == gpu_architecture()
    spec = build_engine(source, path, target, name=path.name, precision="fp16", batch=(1, 1, MAX_BATCH))
    planes = np.random.default_rng(5).integers(0, 256, (21, *SHAPE), np.uint8)
    with OnnxRuntimeRunner(source) as runner:
        logits = runner.infer(planes)
    return Built(product, path, spec, planes, logits)


def assert_close(got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() <= LOGIT_TOLERANCE["fp16"] * np.abs(expected).max()


def test_the_engine_is_bound_to_this_gpu(built: Built) -> None:
    assert built.spec.architectures == (gpu_architecture(),)
    if built.product == "tensorrt-rtx":
        header = read_engine_header(built.path)
        assert header.version == built.spec.version
        assert len(header.architectures) == 1
        if gpu_architecture() in known_architectures():
            assert header.architectures == built.spec.architectures


@pytest.mark.parametrize("count", [1, 3, MAX_BATCH, MAX_BATCH + 1, 21])
def test_every_batch_size_agrees_with_onnx_runtime_also_above_the_profile(built: Built, count: int) -> None:
    with built.runner() as runner:
        assert (runner.input_shape, runner.input_dtype) == (SHAPE, np.dtype(np.uint8))
        assert (runner.output_shape, runner.output_dtype) == ((10,), np.dtype(np.float32))
        assert_close(runner.infer(built.planes[:count]), built.logits[:count])


def test_batch_sizes_may_change_from_call_to_call_and_results_stay_the_callers(built: Built) -> None:
    with built.runner() as runner:
        kept = {count: runner.infer(built.planes[:count]) for count in (5, 1, 8, 2, 13, 1)}
    for count, result in kept.items():
        assert_close(result, built.logits[:count])


def test_an_input_that_is_not_contiguous_is_taken_as_it_looks(built: Built) -> None:
    with built.runner() as runner:
        assert_close(runner.infer(built.planes[::-2]), built.logits[::-2])


def test_many_threads_get_each_its_own_answer(built: Built) -> None:
    order = np.random.default_rng(0).integers(0, len(built.planes), 400)
    with built.runner() as runner, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda index: runner.infer(built.planes[index : index + 1]), order))
    assert_close(np.concatenate(results), built.logits[order])


def test_verification_accepts_the_engine_and_refuses_other_logits(built: Built) -> None:
    planes, logits = built.planes[:5], built.logits[:5]
    verified = verify_logits(built.runner(), "tail.engine", planes, logits, "fp16")
    assert verified.runner == built.product
    with pytest.raises(Exception, match=r"tail\.engine differs from torch"):
        verify_logits(built.runner(), "tail.engine", planes, -logits, "fp16")


def test_two_runners_share_the_one_thread_that_owns_the_context(built: Built) -> None:
    def owners() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("cuda-worker")]

    with built.runner() as first:
        with built.runner() as second:
            assert owners() == ["cuda-worker-0"]
            assert_close(second.infer(built.planes[:2]), built.logits[:2])
        assert owners() == ["cuda-worker-0"]
        assert_close(first.infer(built.planes[:2]), built.logits[:2])
    assert owners() == []


def test_a_runner_can_be_activated_again_and_gives_its_memory_back(built: Built) -> None:
    runner = built.runner()
    worker = acquire(0)
    try:
        free_bytes = []
        for _ in range(6):
            with runner:
                assert_close(runner.infer(built.planes[:1]), built.logits[:1])
            runner.deactivate()
            free_bytes.append(worker.call(worker.cuda.mem_get_info)[0])
        assert free_bytes[-1] >= free_bytes[1] - (1 << 20)
    finally:
        release(worker)
    with pytest.raises(RunnerError, match="not active"):
        runner.infer(built.planes[:1])


@pytest.mark.parametrize(
    "changed", [{"architectures": ("sm50",)}, {"version": "1.0.0.1"}, {"product": "another"}], ids=str
)
def test_a_manifest_for_another_gpu_version_or_product_names_both_sides(built: Built, changed: dict[str, Any]) -> None:
    with pytest.raises(EngineMismatchError) as caught:
        built.runner(**changed).activate()
    value = next(iter(changed.values()))
    assert (value if isinstance(value, str) else value[0]) in caught.value.built_for
    assert gpu_architecture() in caught.value.here
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cuda-worker")]


def test_a_damaged_engine_is_refused_in_tensorrts_own_words(built: Built, tmp_path: Path) -> None:
    broken = tmp_path / "broken.engine"
    broken.write_bytes(built.path.read_bytes()[: built.path.stat().st_size // 2])
    with pytest.raises(RunnerError, match=r"cannot load broken\.engine: ") as caught:
        RUNNERS[built.product](broken, built.spec).activate()
    assert "no reason" not in str(caught.value)
    with built.runner() as runner:
        assert_close(runner.infer(built.planes[:1]), built.logits[:1])


def test_a_wrong_shape_or_dtype_is_refused_before_the_gpu_is_asked(built: Built) -> None:
    with built.runner() as runner:
        for batch in (built.planes[:1].astype(np.float32), built.planes[:1, :3], built.planes[0], built.planes[:0]):
            with pytest.raises(RunnerError, match="expects uint8"):
                runner.infer(batch)


def test_a_gpu_that_is_not_there_is_named(built: Built) -> None:
    with pytest.raises(RunnerError, match="there is no GPU 64"):
        RUNNERS[built.product](built.path, built.spec, device=64).activate()


@pytest.mark.parametrize("product", list(PRODUCTS))
def test_an_edge_builds_what_its_bundle_lacks_and_loads_it_at_the_next_start(
    product: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if (reason := usable(product)) is not None:
        pytest.skip(f"{product} does not run here: {reason}")
    caplog.set_level(logging.INFO, "aecnn_deploy.edge")
    bundle = open_bundle(with_samples(tmp_path))
    frame = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    for start in ("building", "from"):
        caplog.clear()
        for variant in bundle.manifest.variants:
            with OnnxRuntimeRunner(bundle.file(variant.head)) as head:
                planes = head.infer(frame[None])
            options = RunnerOptions(product, engines=EdgeEngines(tmp_path / "cache"))
            tail = activate_tail(bundle, variant, options)
            assert tail.target == f"{product}-{gpu_architecture()}"
            assert_close(tail.runner.infer(planes), run_directly(bundle, frame, variant.id)[None])
            tail.runner.deactivate()
        assert [start in message for message in caplog.messages].count(True) == len(bundle.manifest.variants)


@pytest.mark.parametrize("product", list(PRODUCTS))
def test_an_int8_engine_agrees_with_its_tail_in_onnx_runtime(product: str, tmp_path: Path) -> None:
    if (reason := usable(product)) is not None:
        pytest.skip(f"{product} does not run here: {reason}")
    write_tail(tmp_path / "fp16.onnx")
    model = onnx.load(str(tmp_path / "fp16.onnx"))
    to_float32(model)
    onnx.save(model, str(tmp_path / "fp32.onnx"))
    planes = np.random.default_rng(5).integers(0, 256, (5, *SHAPE), np.uint8)
    int8_tail(tmp_path / "fp32.onnx", planes, tmp_path / "int8.onnx")
    with OnnxRuntimeRunner(tmp_path / "int8.onnx") as runner:
        expected = runner.infer(planes)
    (target,) = targets(EngineRequest(product, precisions=("int8",)))
    path = tmp_path / "int8.engine"
    spec = build_engine(tmp_path / "int8.onnx", path, target, name=path.name, precision="int8")
    assert target.name == f"{product}-{gpu_architecture()}-int8"
    verify_logits(RUNNERS[product](path, spec), path.name, planes, expected, "int8")


def to_float32(model: onnx.ModelProto) -> None:
    """``write_tail``'s model with float32 inside."""
    for item in model.graph.initializer:
        array = numpy_helper.to_array(item)
        if array.dtype == np.float16:
            item.CopyFrom(numpy_helper.from_array(array.astype(np.float32), item.name))
    model.graph.node[0].attribute[0].i = TensorProto.FLOAT


def test_the_owner_thread_moves_pinned_memory_to_the_gpu_and_back_for_any_caller() -> None:
    """Needs a GPU and pycuda only: TensorRT-RTX does not run on every GPU."""
    try:
        architecture = gpu_architecture()
    except AecnnError as exc:
        pytest.skip(str(exc))
    worker = acquire(0)

    def round_trip(seed: int) -> bool:
        def job() -> bool:
            cuda = worker.cuda
            host = cuda.pagelocked_empty((8, *SHAPE), np.uint8)
            back = cuda.pagelocked_empty_like(host)
            host[:] = np.random.default_rng(seed).integers(0, 256, host.shape, np.uint8)
            stream, device = cuda.Stream(), cuda.mem_alloc(host.nbytes)
            cuda.memcpy_htod_async(device, host, stream)
            cuda.memcpy_dtoh_async(back, device, stream)
            stream.synchronize()
            return bool((host == back).all())

        return worker.call(job)

    try:
        assert worker.architecture == architecture
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(round_trip, range(200)))
    finally:
        release(worker)


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_named_before_anything_is_loaded() -> None:
    if (reason := usable("tensorrt-rtx")) is None or "this GPU is" not in reason:
        pytest.skip("TensorRT-RTX is missing, or knows this GPU")
    assert gpu_architecture() in reason
    with pytest.raises(ExportError, match="name an architecture: sm75"):
        targets(EngineRequest("tensorrt-rtx"))
