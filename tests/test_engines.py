"""TensorRT-RTX engines, really built, and what is checked before one is loaded. None of this needs a GPU."""

import os
import signal
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aecnn_deploy.errors import EngineMismatchError, ExportError, RunnerError, SettingsError
from aecnn_deploy.exporters.engines import EngineRequest, Target, build_engine, known_architectures, targets
from aecnn_deploy.runtimes.cuda_worker import OwnerThread
from aecnn_deploy.runtimes.engine_header import ARCHITECTURE_BITS, read_engine_header
from aecnn_deploy.runtimes.tensorrt_probe import usable
from aecnn_deploy.runtimes.tensorrt_runner import TensorRTRtxRunner, check_engine

rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
HAS_GPU = Path("/dev/nvidiactl").exists()


def write_tail(path: Path, *, half: bool = True, batch: int | str = "batch", operator: str = "Relu") -> Path:
    """A tail in small: uint8 planes (N, 3, 16, 16) -> Cast, Mul, Conv, ``operator``, mean, MatMul -> logits (N, 10)."""
    rng = np.random.default_rng(7)
    real, number = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    weights = {
        "step": np.asarray(1 / 64, number),
        "kernel": (rng.standard_normal((8, 3, 3, 3)) * 0.2).astype(number),
        "axes": np.array([2, 3], np.int64),
        "matrix": (rng.standard_normal((8, 10)) * 0.5).astype(number),
    }
    nodes = [
        helper.make_node("Cast", ["planes"], ["cast"], to=real),
        helper.make_node("Mul", ["cast", "step"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "kernel"], ["convolved"], pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["convolved"], ["active"], name="activation"),
        helper.make_node("ReduceMean", ["active", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "matrix"], ["product"], name="classifier"),
        helper.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "tail",
        [helper.make_tensor_value_info("planes", TensorProto.UINT8, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def build(folder: Path, architecture: str, **tail: object) -> Path:
    out = folder / f"{architecture}.engine"
    source = write_tail(folder / "tail.onnx", **tail)  # type: ignore[arg-type]
    build_engine(source, out, Target("tensorrt-rtx", architecture), name=out.name, precision="fp16")
    return out


def test_engines_for_sm75_and_sm86_are_built_without_a_gpu_and_say_so_in_their_headers(tmp_path: Path) -> None:
    source = write_tail(tmp_path / "tail.onnx")
    for architecture in ("sm75", "sm86"):
        out, phases = tmp_path / f"{architecture}.engine", list[str]()
        spec = build_engine(
            source,
            out,
            Target("tensorrt-rtx", architecture),
            name=f"tails/{out.name}",
            precision="fp16",
            batch=(1, 2, 16),
            note=phases.append,
        )
        header = read_engine_header(out)
        assert header.architectures == spec.architectures == (architecture,)
        assert header.version == spec.version == rtx.__version__
        assert (spec.product, spec.precision, spec.batch) == ("tensorrt-rtx", "fp16", (1, 2, 16))
        assert spec.file == f"tails/{architecture}.engine"
        assert "Building engine" in phases


def test_every_architecture_that_tensorrt_rtx_knows_has_its_own_header_bit(tmp_path: Path) -> None:
    assert set(known_architectures()) == set(ARCHITECTURE_BITS.values())
    for architecture in known_architectures():
        assert read_engine_header(build(tmp_path, architecture)).architectures == (architecture,)


def test_an_fp32_matrix_product_for_sm75_is_refused_in_tensorrts_own_words(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="FP32 GEMM is not supported") as caught:
        build(tmp_path, "sm75", half=False)
    assert "tail.onnx for sm75" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sm75.engine").exists()
    assert build(tmp_path, "sm86", half=False).is_file()


def test_an_operator_that_the_parser_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="NoSuchOperator"):
        build(tmp_path, "sm86", operator="NoSuchOperator")


def test_a_file_that_is_no_onnx_is_refused_with_the_parsers_reason(tmp_path: Path) -> None:
    source = tmp_path / "tail.onnx"
    source.write_bytes(b"junk")
    with pytest.raises(ExportError, match="Failed to parse the ONNX model"):
        build_engine(source, tmp_path / "x", Target("tensorrt-rtx", "sm86"), name="x", precision="fp16")


def test_an_onnx_file_with_a_frozen_batch_gets_no_profile_from_1_to_8(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"sm86: .*profile"):
        build(tmp_path, "sm86", batch=2)


def test_an_interrupt_cancels_the_build_and_writes_no_engine(tmp_path: Path) -> None:
    source, out, phases = write_tail(tmp_path / "tail.onnx"), tmp_path / "x.engine", list[str]()

    def interrupt(phase: str) -> None:
        phases.append(phase)
        if len(phases) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(2.0)  # the main thread hears it now, TensorRT asks whether to go on afterwards

    with pytest.raises(KeyboardInterrupt):
        build_engine(source, out, Target("tensorrt-rtx", "sm75"), name="x", precision="fp16", note=interrupt)
    assert not out.exists()
    assert "Computing profile costs" not in phases
    for thread in threading.enumerate():  # of this test or an earlier one: none goes on building
        if thread.name == "engine-builder":
            thread.join(20.0)
    assert "engine-builder" not in {thread.name for thread in threading.enumerate()}


def test_targets_are_each_once_and_named_after_product_and_architecture() -> None:
    found = targets(EngineRequest("tensorrt-rtx", ("sm86", "sm75", "sm86")))
    assert [target.name for target in found] == ["tensorrt-rtx-sm86", "tensorrt-rtx-sm75"]


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"'sm61'; known: sm75, sm80, sm86, sm89, sm120, sm121"):
        targets(EngineRequest("tensorrt-rtx", ("sm61",)))


def test_each_precision_is_a_target_of_its_own_and_fp16_keeps_the_short_name() -> None:
    found = targets(EngineRequest("tensorrt-rtx", ("sm75", "sm86"), precisions=("int8", "fp16", "int8")))
    assert [(target.name, target.precision) for target in found] == [
        ("tensorrt-rtx-sm75-int8", "int8"),
        ("tensorrt-rtx-sm75", "fp16"),
        ("tensorrt-rtx-sm86-int8", "int8"),
        ("tensorrt-rtx-sm86", "fp16"),
    ]


def test_fp32_for_turing_is_refused_with_what_to_choose() -> None:
    with pytest.raises(SettingsError, match=r"sm75 \(Turing\); choose --precision fp16 or int8"):
        targets(EngineRequest("tensorrt-rtx", ("sm86", "sm75"), precisions=("fp16", "fp32")))
    assert targets(EngineRequest("tensorrt-rtx", ("sm86",), precisions=("fp32",)))[0].name == "tensorrt-rtx-sm86-fp32"


def test_a_build_keeps_to_the_workspace_and_leaves_a_timing_cache(tmp_path: Path) -> None:
    """TensorRT-RTX offers the calls of full TensorRT, and an empty cache behind them."""
    source, out, kept = write_tail(tmp_path / "tail.onnx"), tmp_path / "x.engine", tmp_path / "kernels.cache"
    target = Target("tensorrt-rtx", "sm75")
    for _ in range(2):  # the second build reads what the first one left
        with pytest.warns(DeprecationWarning, match="Timing cache"):
            build_engine(source, out, target, name="x", precision="fp16", workspace_mib=64, timing_cache=kept)
        assert kept.stat().st_size > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernels.cache", "tail.onnx", "x.engine"]
    kept.unlink()
    kept.mkdir()
    with pytest.raises(ExportError, match=r"cannot read the timing cache .*kernels"):
        build_engine(source, out, target, name="x", precision="fp16", timing_cache=kept)


def test_a_build_that_is_told_to_stop_ends_and_writes_nothing(tmp_path: Path) -> None:
    source, out = write_tail(tmp_path / "tail.onnx"), tmp_path / "x.engine"
    with pytest.raises(ExportError, match=r"tail\.onnx for sm75: it was cancelled"):
        build_engine(source, out, Target("tensorrt-rtx", "sm75"), name="x", precision="fp16", cancelled=lambda: True)
    assert not out.exists()


def test_requests_that_make_no_sense_are_refused_when_made() -> None:
    with pytest.raises(SettingsError, match="'fp8'; choose one of fp16, int8, fp32"):
        EngineRequest("tensorrt-rtx", precisions=("fp16", "fp8"))
    with pytest.raises(SettingsError, match="workspace is 0 MiB"):
        EngineRequest("tensorrt-rtx", workspace_mib=0)
    with pytest.raises(SettingsError, match="does nothing for tensorrt-rtx"):
        EngineRequest("tensorrt-rtx", timing_cache=Path("kernels.cache"))
    assert EngineRequest("tensorrt", timing_cache=Path("kernels.cache")).timing_cache
    with pytest.raises(SettingsError, match="known: tensorrt, tensorrt-rtx"):
        EngineRequest("tensorflow")
    with pytest.raises(SettingsError, match=r"\(1, 4, 2\)"):
        EngineRequest("tensorrt-rtx", batch=(1, 4, 2))


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_the_gpu_of_this_machine_cannot_be_built_for_where_there_is_none() -> None:
    with pytest.raises(ExportError, match="name an architecture: sm75"):
        targets(EngineRequest("tensorrt-rtx"))


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
@pytest.mark.parametrize("product", ["tensorrt", "tensorrt-rtx"])
def test_a_machine_without_a_gpu_says_why_an_engine_cannot_run(product: str) -> None:
    reason = usable(product)
    assert reason is not None
    assert "pycuda" in reason or "tensorrt" in reason


def test_an_unknown_product_is_no_reason_but_a_mistake() -> None:
    assert "known: tensorrt, tensorrt-rtx" in (usable("openvino") or "")


@pytest.mark.parametrize("content", [b"", b"vtrt", b"ptrt" + bytes(200), b"\x08\x0a" * 100])
def test_a_file_that_is_no_engine_has_no_header(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(content)
    with pytest.raises(RunnerError, match=r"is no TensorRT-RTX engine"):
        read_engine_header(path)


def test_a_missing_engine_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match=r"absent\.engine"):
        read_engine_header(tmp_path / "absent.engine")


def test_an_engine_for_another_product_version_or_gpu_is_refused_with_both_sides(tmp_path: Path) -> None:
    source, path = write_tail(tmp_path / "tail.onnx"), tmp_path / "tail.engine"
    spec = build_engine(source, path, Target("tensorrt-rtx", "sm75"), name=path.name, precision="fp16")
    here = {"product": "tensorrt-rtx", "version": rtx.__version__, "architecture": "sm75", "gpu": "RTX 2080 Ti"}
    check_engine(path, spec, **here)
    for other in ({"product": "tensorrt"}, {"version": "1.3.0.35"}, {"architecture": "sm86"}):
        with pytest.raises(EngineMismatchError) as caught:
            check_engine(path, spec, **here | other)
        assert f"built for tensorrt-rtx {rtx.__version__} on sm75" in str(caught.value)
        assert next(iter(other.values())) in caught.value.here
        assert "RTX 2080 Ti" in str(caught.value)
    changed = bytearray(path.read_bytes())
    changed[0x19] += 1
    path.write_bytes(changed)
    with pytest.raises(EngineMismatchError, match="so says its header"):
        check_engine(path, spec, **here)


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_a_runner_without_a_gpu_fails_to_activate_and_can_still_be_deactivated(tmp_path: Path) -> None:
    source, path = write_tail(tmp_path / "tail.onnx"), tmp_path / "tail.engine"
    spec = build_engine(source, path, Target("tensorrt-rtx", "sm75"), name=path.name, precision="fp16")
    runner = TensorRTRtxRunner(path, spec)
    with pytest.raises((RunnerError, ImportError), match="pycuda"):
        runner.activate()
    runner.deactivate()
    with pytest.raises(RunnerError, match="not active"):
        runner.infer(np.zeros((1, 3, 16, 16), np.uint8))


def test_the_engine_spec_survives_the_manifest(tmp_path: Path) -> None:
    source, path = write_tail(tmp_path / "tail.onnx"), tmp_path / "tail.engine"
    spec = build_engine(source, path, Target("tensorrt-rtx", "sm86"), name=path.name, precision="fp16")
    assert msgspec.convert(msgspec.to_builtins(spec), type(spec)) == spec


class TestOwnerThread:
    def test_all_jobs_and_both_ends_run_on_one_thread(self) -> None:
        seen: list[int] = []
        owner = OwnerThread("owner", lambda: seen.append(threading.get_ident()), lambda: seen.append(owner.call(here)))
        here = threading.get_ident
        callers = [threading.Thread(target=lambda: seen.append(owner.call(here))) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        owner.close()
        assert len(seen) == 10
        assert len(set(seen)) == 1
        assert seen[0] != threading.get_ident()

    def test_an_error_of_a_job_reaches_its_caller_and_the_thread_lives_on(self) -> None:
        owner = OwnerThread("owner", lambda: None, lambda: None)
        with pytest.raises(ZeroDivisionError):
            owner.call(lambda: 1 // 0)
        assert owner.call(lambda: 42) == 42
        owner.close()

    def test_an_error_on_entering_reaches_the_maker(self) -> None:
        def enter() -> None:
            raise RunnerError("there is no GPU 3")

        with pytest.raises(RunnerError, match="no GPU 3"):
            OwnerThread("owner", enter, lambda: None)

    def test_closing_finishes_the_queue_and_refuses_more(self) -> None:
        done: list[int] = []
        owner = OwnerThread("owner", lambda: None, lambda: done.append(-1))
        gate = threading.Event()
        owner.submit(gate.wait)
        for number in range(3):
            owner.submit(lambda number=number: done.append(number))
        threading.Timer(0.05, gate.set).start()
        owner.close()
        owner.close()
        assert done == [0, 1, 2, -1]
        with pytest.raises(RunnerError, match="owner is closed"):
            owner.submit(lambda: None)

    def test_a_cancelled_job_is_not_run(self) -> None:
        owner, ran, gate = OwnerThread("owner", lambda: None, lambda: None), [], threading.Event()
        owner.submit(gate.wait)
        waiting = owner.submit(lambda: ran.append(1))
        assert waiting.cancel()
        gate.set()
        owner.close()
        assert not ran
