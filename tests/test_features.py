"""Layers that are timed, graphs that are cut, and what the cuts send: with real ONNX files and ONNX Runtime."""

import json
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.calibration.features import FeatureSettings, measure_features, worth_sending
from aecnn_deploy.calibration.layer_timing import layer_times
from aecnn_deploy.calibration.model_graph import ModelGraph, read_graph
from aecnn_deploy.errors import PlanError, RunnerError, SettingsError
from aecnn_deploy.planning.layers import LayerTable
from aecnn_deploy.planning.machine import this_machine
from aecnn_deploy.planning.profile_store import read_profile, the_profile
from aecnn_deploy.planning.profiles import CutFeatures, FeatureProfile
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.zoo import zoo_bundle
from tests.bundles import TinyVariant, make_bundle, make_photos, one_line
from tests.in_process import command_here

SIDE = 16


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Archives are unpacked here and not into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("tiny") / "bundle"
    make_bundle(path)
    return open_bundle(path)


@pytest.fixture(scope="module")
def zoo() -> Bundle:
    return open_bundle(zoo_bundle("caltech101-lite0"))


@pytest.fixture(scope="module")
def zoo_graph(zoo: Bundle) -> ModelGraph:
    return read_graph(zoo.file(zoo.manifest.full))


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stem and a pool, two convolutions with a connection around them, a depthwise one, a classifier."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)

    node = helper.make_node
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        node("Cast", ["frames"], ["floats"], "cast", to=TensorProto.FLOAT),
        node("Transpose", ["floats"], ["nchw"], "transpose", perm=[0, 3, 1, 2]),
        node("Conv", ["nchw", "w0"], ["c0"], "stem", **pads),
        node("Relu", ["c0"], ["r0"], "stem_relu"),
        node("MaxPool", ["r0"], ["p0"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p0", "w1"], ["c1"], "inner1", **pads),
        node("Relu", ["c1"], ["r1"], "inner_relu"),
        node("Conv", ["r1", "w2"], ["c2"], "inner2", **pads),
        node("Add", ["c2", "p0"], ["a"], "around"),
        node("Relu", ["a"], ["r2"], "block_relu"),
        node("Conv", ["r2", "w3"], ["c3"], "depthwise", **pads, group=8, strides=[2, 2]),
        node("GlobalAveragePool", ["c3"], ["g"], "mean"),
        node("Flatten", ["g"], ["flat"], "flatten"),
        node("Gemm", ["flat", "w4"], ["logits"], "classify", transB=1),
    ]
    constants = [weight("w0", 8, 3, 3, 3), weight("w1", 8, 8, 3, 3), weight("w2", 8, 8, 3, 3), weight("w3", 8, 1, 3, 3)]
    graph = helper.make_graph(
        nodes,
        "full",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])],
        [*constants, weight("w4", 5, 8)],
    )
    path = tmp_path_factory.mktemp("residual") / "full.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def photographs(bundle: Bundle, folder: Path, count: int) -> np.ndarray:
    return np.stack([read_frame(path, bundle.manifest.input) for path in make_photos(folder, count)])


def cpu_ms(models: list[onnx.ModelProto]) -> list[float]:
    """Median milliseconds of the processor for each of ``models``, in turns on one thread: others do not disturb it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(model.SerializeToString(), options) for model in models]
    times: list[list[float]] = [[] for _ in models]
    for _ in range(15):
        for session, taken in zip(sessions, times, strict=True):
            (given,) = session.get_inputs()
            values = np.full([size if isinstance(size, int) else 1 for size in given.shape], 7)
            values = values.astype(np.uint8 if given.type == "tensor(uint8)" else np.float32)
            start_s = time.thread_time()
            session.run(None, {given.name: values})
            taken.append(time.thread_time() - start_s)
    return [float(np.median(taken)) * 1e3 for taken in times]


def profile_of(graph: ModelGraph) -> FeatureProfile:
    return FeatureProfile(
        bundle_id="b" * 64,
        machine=this_machine(),
        versions={},
        measured_at="2026-01-01T00:00:00Z",
        took_s=0.0,
        images=1,
        layer_macs=graph.macs,
        cuts=graph.cuts,
        nodes=graph.nodes,
    )


class TestGraph:
    def test_multiply_adds_are_those_of_the_manifest(self, zoo: Bundle, zoo_graph: ModelGraph) -> None:
        assert zoo_graph.total_macs == pytest.approx(zoo.manifest.variants[0].full_macs, rel=0.02)

    def test_multiply_adds_of_each_node_are_counted(self, residual: Path) -> None:
        macs = read_graph(residual).macs
        half = SIDE // 2
        assert {name: count for name, count in macs.items() if count} == {
            "stem": SIDE * SIDE * 8 * 27,
            "inner1": half * half * 8 * 72,
            "inner2": half * half * 8 * 72,
            "depthwise": half * half // 4 * 8 * 9,
            "classify": 5 * 8,
        }

    def test_no_cut_lies_inside_a_residual_block_nor_before_an_activation(self, residual: Path) -> None:
        cuts = [(cut.after, cut.shape) for cut in read_graph(residual).cuts]
        assert cuts == [
            ("stem_relu", [8, 16, 16]),
            ("pool", [8, 8, 8]),
            ("block_relu", [8, 8, 8]),
            ("depthwise", [8, 4, 4]),
            ("mean", [8, 1, 1]),
        ]

    def test_a_cut_tells_the_multiply_adds_before_it(self, residual: Path) -> None:
        graph = read_graph(residual)
        before = {cut.after: cut.macs for cut in graph.cuts}
        assert before["pool"] == before["stem_relu"] == graph.macs["stem"]
        assert before["mean"] == graph.total_macs - graph.macs["classify"]

    def test_kinds_and_bytes_of_nodes_are_told(self, residual: Path) -> None:
        nodes = read_graph(residual).nodes
        assert (nodes["depthwise"].op, nodes["stem"].op) == ("depthwise Conv", "Conv")
        assert (nodes["cast"].output_bytes, nodes["pool"].tensor) == (4 * SIDE * SIDE * 3, "p0")

    def test_every_cut_of_the_zoo_stands_between_whole_blocks(self, zoo_graph: ModelGraph) -> None:
        adds = [name for name, node in zoo_graph.nodes.items() if node.op == "Add"]
        cuts = [cut.after for cut in zoo_graph.cuts]
        assert set(adds) < set(cuts)
        assert len(cuts) < 40
        assert all(
            earlier.macs <= later.macs for earlier, later in zip(zoo_graph.cuts, zoo_graph.cuts[1:], strict=False)
        )

    def test_what_is_no_model_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "full.onnx").write_bytes(b"no model")
        with pytest.raises(PlanError, match="cannot be read as an ONNX model"):
            read_graph(tmp_path / "full.onnx")
        with pytest.raises(RunnerError, match="cannot profile"):
            layer_times(tmp_path / "full.onnx", threads=1, whole_ms=1.0)


class TestLayerTimes:
    def test_they_sum_to_the_whole_and_stand_for_every_node(self, zoo: Bundle, zoo_graph: ModelGraph) -> None:
        layers = layer_times(zoo.file(zoo.manifest.full), threads=1, whole_ms=20.0)
        assert sum(layer.ms for layer in layers.values()) == pytest.approx(20.0)
        table = LayerTable.of(layers, profile_of(zoo_graph), "device")
        assert sum(layer.macs for layer in table.layers) == zoo_graph.total_macs
        halves = [(table.up_to_ms(cut), table.after_ms(cut)) for cut in zoo_graph.cuts]
        assert halves == sorted(halves)
        assert all(before + after == pytest.approx(20.0) for before, after in halves)
        assert 0 < halves[0][0] < 5 < 15 < halves[-1][0] < 20

    def test_a_half_that_is_really_cut_out_takes_what_its_layers_do(self, zoo: Bundle, zoo_graph: ModelGraph) -> None:
        (cut,) = (cut for cut in zoo_graph.cuts if cut.after == "node_add_166")
        frames, logits = zoo_graph.proto.graph.input[0].name, zoo_graph.proto.graph.output[0].name
        extractor = Extractor(zoo_graph.proto)
        halves = [extractor.extract_model([frames], [cut.tensor]), extractor.extract_model([cut.tensor], [logits])]
        whole_ms, head_ms, tail_ms = cpu_ms([zoo_graph.proto, *halves])
        layers = layer_times(zoo.file(zoo.manifest.full), threads=1, whole_ms=whole_ms)
        table = LayerTable.of(layers, profile_of(zoo_graph), "device")
        assert table.up_to_ms(cut) == pytest.approx(head_ms, rel=0.25)
        assert table.after_ms(cut) == pytest.approx(tail_ms, rel=0.25)

    def test_nodes_without_a_name_have_the_same_one_in_both(self, tiny: Bundle) -> None:
        full = tiny.file(tiny.manifest.full)
        layers = layer_times(full, threads=1)  # the whole is measured
        names = ["Cast_0", "Transpose_1", "AveragePool_2", "Flatten_3", "MatMul_4"]
        assert list(layers) == list(read_graph(full).nodes) == names
        assert 0 < sum(layer.ms for layer in layers.values()) < 1000

    def test_a_block_with_a_connection_around_it_is_placed_whole(self, residual: Path) -> None:
        graph = read_graph(residual)
        table = LayerTable.of(layer_times(residual, threads=1, whole_ms=1.0), profile_of(graph), "edge")
        assert sum(layer.macs for layer in table.layers) == graph.total_macs
        kinds = {layer.kind for layer in table.layers}
        assert {"Conv", "depthwise Conv", "Gemm"} <= kinds

    def test_a_loop_is_one_layer_and_its_body_is_not_counted_again(self, tmp_path: Path) -> None:
        make_bundle(tmp_path / "bundle", variants=(TinyVariant("tiny-loops", 4, 4, 8, tail_loops=3),))
        bundle = open_bundle(tmp_path / "bundle")
        layers = layer_times(bundle.file(bundle.manifest.variants[0].tails["onnxruntime"]), threads=1, whole_ms=10.0)
        operators = [layer.op for layer in layers.values()]
        assert operators.count("Loop") == 1
        assert operators.count("MatMul") == 1  # the tail's own
        loop = next(layer for layer in layers.values() if layer.op == "Loop")
        assert 5.0 < loop.ms < 10.0


class TestMeasuring:
    def test_agreement_is_that_of_the_rest_run_on_the_8_bit_tensor(self, tiny: Bundle, tmp_path: Path) -> None:
        frames = photographs(tiny, tmp_path, 12)
        profile = measure_features(tiny, frames, FeatureSettings((5, 100), threads=1))
        (cut,) = profile.cuts
        assert (cut.after, cut.shape, cut.macs) == ("AveragePool_2", [3, 8, 8], 0)
        weights = numpy_helper.to_array(onnx.load(str(tiny.file(tiny.manifest.full))).graph.initializer[0])
        pooled = frames.transpose(0, 3, 1, 2).reshape(12, 3, 8, 8, 8, 8).mean(axis=(3, 5))
        low, high = (edge(pooled, axis=(1, 2, 3), keepdims=True) for edge in (np.min, np.max))
        step = (high - low) / 255
        coarse = np.rint((pooled - low) / step) * step + low
        answers, changed = ((values.reshape(12, -1) @ weights).argmax(axis=1) for values in (pooled, coarse))
        assert cut.quantised_agreement == pytest.approx(np.mean(answers == changed))
        assert cut.jpeg_agreement[5] <= cut.jpeg_agreement[100]
        assert cut.jpeg_agreement[100] >= 0.75
        assert cut.jpeg_bytes[5] < cut.jpeg_bytes[100]
        assert profile.images == 12

    def test_cuts_with_more_values_than_an_earlier_one_are_measured_last(self) -> None:
        def cut(name: str, *shape: int) -> CutFeatures:
            return CutFeatures(name, name, list(shape), 1)

        cuts = [cut("a", 8, 4, 4), cut("b", 32, 4, 4), cut("c", 4, 4, 4), cut("d", 4, 4, 4), cut("e", 9, 3, 3)]
        assert [each.after for each in worth_sending(cuts, 2)] == ["a", "c"]
        assert [each.after for each in worth_sending(cuts, 3)] == ["a", "c", "e"]
        assert [each.after for each in worth_sending(cuts, 4)] == ["a", "b", "c", "e"]
        assert worth_sending(cuts, 9) == cuts
        assert worth_sending([cut("f", 2, 2, 2, 2)], 9) == []

    def test_settings_and_photographs_that_cannot_be_are_refused(self, tiny: Bundle) -> None:
        for qualities in ((), (0,), (101,), (50, 50)):
            with pytest.raises(SettingsError, match="qualit"):
                FeatureSettings(qualities)
        with pytest.raises(SettingsError, match="at least 1 cut"):
            FeatureSettings(max_cuts=0)
        with pytest.raises(PlanError, match="photographs are uint8"):
            measure_features(tiny, np.zeros((0, 64, 64, 3), np.uint8))


class TestCommand:
    def test_it_keeps_a_profile_beside_the_bundle_and_prints_it(self, tiny: Bundle, tmp_path: Path) -> None:
        make_photos(tmp_path / "photos", 5)
        words = ("calibrate", "features", str(tiny.path), "--images", str(tmp_path / "photos"), "--limit", "3")
        done = command_here(*words, "--quality", "40", "--quality", "80", "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        profile = the_profile(tiny, FeatureProfile)
        assert read_profile(Path(document["profile"])) == profile
        assert (document["bundle_id"], document["images"]) == (tiny.id, profile.images) == (tiny.id, 3)
        (row,) = document["cuts"]
        assert [each["quality"] for each in row["jpeg"]] == [40, 80]
        assert row["float32_bytes"] == 4 * 3 * 8 * 8
        # The tiny bundle's manifest tells a made-up number.
        assert "the graph has 1,344 multiply-adds, the manifest says 9,000" in done.stderr.decode()

    def test_its_text_fits_80_columns(self, tiny: Bundle, tmp_path: Path) -> None:
        make_photos(tmp_path / "photos", 2)
        words = ("calibrate", "features", str(tiny.path), "--images", str(tmp_path / "photos"))
        done = command_here(*words, "--profiles", str(tmp_path / "kept"))
        assert done.returncode == 0, done.stderr
        *rows, last = done.stdout.decode().splitlines()
        assert rows[0] == "3×8×8: 0 M of 0 M multiply-adds, after AveragePool_2"
        assert all(len(row) <= 80 for row in rows)
        assert last.startswith("1 cuts, 1 of them measured with 2 photographs: ")
        assert len(list((tmp_path / "kept").iterdir())) == 1

    def test_a_quality_that_jpeg_has_not_is_wrong_use(self, tiny: Bundle, tmp_path: Path) -> None:
        done = command_here("calibrate", "features", str(tiny.path), "--images", str(tmp_path), "--quality", "0")
        assert done.returncode == 2
        assert "JPEG has the qualities 1 to 100" in one_line(done.stderr)
