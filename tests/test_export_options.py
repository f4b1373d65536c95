"""How ONNX files are written: opset, IR version, batch axis, onnxslim; and frames of another size than trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.cli.main import run as aecnn_deploy
from aecnn_deploy.errors import ExportError, SettingsError
from aecnn_deploy.exporters.bundle_engines import add_engines
from aecnn_deploy.exporters.engines import EngineRequest
from aecnn_deploy.exporters.export import export_run
from aecnn_deploy.exporters.onnx_export import IO_NAMES, export_onnx
from aecnn_deploy.exporters.onnx_file import Signature, write_onnx
from aecnn_deploy.exporters.onnx_options import MAX_IR_VERSION, OLDEST_IR, OPSET, OnnxOptions
from aecnn_deploy.models.deploy import DeviceHead
from aecnn_deploy.models.resized_run import resized_frames, resized_run, scaled_input
from aecnn_deploy.models.run import Run, load_run
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.samples import verify_bundle
from aecnn_deploy.runtimes.verification import verify_logits, verify_planes
from tests.bundles import command, make_photos, serving
from tests.random_runs import VARIANT, random_run, strided_run
from tests.small_models import Head, SmallRun, Tail, export_small, photographs, usual_small


def opset_of(path: Path) -> tuple[dict[str, int], int]:
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    return {item.domain: item.version for item in model.opset_import}, model.ir_version


def axes(path: Path) -> list[Any]:
    """The first axis of input and output."""
    graph = onnx.load(str(path)).graph
    firsts = [value.type.tensor_type.shape.dim[0] for value in (*graph.input, *graph.output)]
    return [first.dim_param or first.dim_value for first in firsts]


@pytest.fixture
def usual() -> Path:
    """The small run's bundle, exported without an option. Not to be changed."""
    return usual_small()


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Its bundles with a fixed batch, by batch."""
    folder = tmp_path_factory.mktemp("fixed")
    for batch in (1, 3):
        export_small(SmallRun(), folder / str(batch), onnx=OnnxOptions(batch=batch))
    return {batch: folder / str(batch) for batch in (1, 3)}


class TestOptions:
    def test_the_oldest_ir_of_an_opset_is_that_of_its_onnx_release(self) -> None:
        expected = {opset: helper.find_min_ir_version_for([helper.make_opsetid("", opset)]) for opset in OLDEST_IR}
        assert dict(OLDEST_IR) == expected

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"opset": 13}, "opset is 13, accepted are 14 to 21"),
            ({"opset": 22}, "opset is 22, accepted are 14 to 21"),
            ({"ir_version": 7}, "accepted with opset 18 are 8 to 10"),
            ({"ir_version": 11}, "accepted with opset 18 are 8 to 10"),
            ({"opset": 21, "ir_version": 9}, "accepted with opset 21 are 10 to 10"),
            ({"batch": 0}, "accepted are 1 to 1024"),
            ({"batch": 1025}, "accepted are 1 to 1024"),
        ],
    )
    def test_a_number_out_of_range_is_refused_with_what_is_accepted(self, options: dict[str, int], words: str) -> None:
        with pytest.raises(SettingsError, match=words):
            OnnxOptions(**options)

    @pytest.mark.parametrize(
        ("option", "words"),
        [
            (("--opset", "13"), "accepted are 14 to 21"),
            (("--ir-version", "11"), "accepted with opset 18 are 8 to 10"),
            (("--onnx-batch", "many"), "--onnx-batch is 'many', expected dynamic or a number"),
            (("--onnx-batch", "0"), "accepted are 1 to 1024"),
            (("--input-size", "192x"), "--input-size is '192x', expected pixels"),
        ],
    )
    def test_the_command_line_refuses_before_it_looks_for_the_run(
        self, capsys: pytest.CaptureFixture[str], option: tuple[str, str], words: str
    ) -> None:
        assert aecnn_deploy(["export", "no-such-run", "--out", "bundle", *option]) == 2
        assert words in capsys.readouterr().err


class TestOpsetAndIrVersion:
    def test_every_file_of_a_bundle_has_them_and_runs(self, tmp_path: Path) -> None:
        opset, ir_version = 14, 7
        manifest = export_small(SmallRun(), tmp_path / "b", onnx=OnnxOptions(opset=opset, ir_version=ir_version))
        bundle = open_bundle(tmp_path / "b")
        files = [name for name in manifest.files if name.endswith(".onnx")]
        assert len(files) == 3
        for name in files:
            assert opset_of(bundle.file(name)) == ({"": opset}, ir_version)
            with OnnxRuntimeRunner(bundle.file(name)) as runner:
                assert len(runner.infer(np.zeros((3, *runner.input_shape), np.uint8))) == 3
        assert {check.verdict for check in verify_bundle(bundle)} == {"ok"}
        assert manifest.measurements["onnx"] == {
            "opset": opset,
            "ir_version": ir_version,
            "batch": "dynamic",
            "simplified": {},
        }

    @pytest.mark.parametrize("opset", sorted(OLDEST_IR))
    def test_a_tail_of_any_accepted_opset_gives_the_same_logits(self, tmp_path: Path, usual: Path, opset: int) -> None:
        planes = Head()(torch.from_numpy(photographs(16)))
        path, shapes = tmp_path / "tail.onnx", ((4, 8, 8), (3,))
        options, properties = OnnxOptions(opset=opset, ir_version=OLDEST_IR[opset]), {"a": "b"}
        if opset > OPSET:
            export_onnx(
                Tail(),
                "tail",
                path,
                input_shape=shapes[0],
                output_shape=shapes[1],
                properties=properties,
                options=options,
            )
        else:  # what torch translates is the same for them
            model = onnx.load(str(usual / "tails/small-l1-v1-u8.onnx"))
            write_onnx(model, path, Signature(IO_NAMES["tail"], shapes), options, properties)
        assert opset_of(path) == ({"": opset}, OLDEST_IR[opset])
        verify_logits(OnnxRuntimeRunner(path), "tail.onnx", planes.numpy(), Tail()(planes).numpy(), "fp32")
        assert [(item.key, item.value) for item in onnx.load(str(path)).metadata_props] == [("a", "b")]

    def test_without_options_it_is_opset_18_ir_10_and_an_open_batch(self, usual: Path) -> None:
        for name in ("full.onnx", "heads/small-l1-v1-u8.onnx", "tails/small-l1-v1-u8.onnx"):
            assert opset_of(usual / name) == ({"": OPSET}, MAX_IR_VERSION)
            assert axes(usual / name) == ["batch", "batch"]


class TestFixedBatch:
    @pytest.mark.parametrize("batch", [1, 3])
    def test_a_bundle_of_it_is_verified_served_and_run(
        self, tmp_path: Path, usual: Path, fixed: dict[int, Path], batch: int
    ) -> None:
        bundle, open_one = open_bundle(fixed[batch]), open_bundle(usual)
        manifest = bundle.manifest
        assert manifest.measurements["onnx"]["batch"] == batch
        for name in ("full.onnx", manifest.variants[0].head, manifest.variants[0].tails["onnxruntime"]):
            assert axes(bundle.file(name)) == [batch, batch]
            with OnnxRuntimeRunner(bundle.file(name)) as mine, OnnxRuntimeRunner(open_one.file(name)) as other:
                assert (mine.batch, other.batch) == (batch, None)
                inputs = np.random.default_rng(0).integers(0, 255, (7, *mine.input_shape), np.uint8)
                for count in (1, 2, 3, 4, 7):
                    got, expected = mine.infer(inputs[:count]), other.infer(inputs[:count])
                    assert got.shape == expected.shape
                    np.testing.assert_allclose(got.astype(float), expected.astype(float), atol=1e-4)
        assert command("bundle", "verify", str(bundle.path), "--deep").returncode == 0
        make_photos(tmp_path / "photos", 2)
        with serving(bundle.path) as edge:
            done = command(
                "run-device", str(bundle.path), "--source", str(tmp_path / "photos"), "--edge", edge.url, "--json"
            )
        images = json.loads(done.stdout)["images"]
        assert [(image["status"], image["path"]) for image in images] == [("ok", "split")] * 2

    def test_it_goes_with_no_engine(self, tmp_path: Path, fixed: dict[int, Path]) -> None:
        with pytest.raises(SettingsError, match="fixed batch of 2; leave out --onnx-batch, or the engine"):
            export_small(
                SmallRun(), tmp_path / "b", onnx=OnnxOptions(batch=2), engine=EngineRequest("tensorrt-rtx", ("sm75",))
            )
        pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
        with pytest.raises(ExportError, match="it has a fixed batch of 3"):
            add_engines(open_bundle(fixed[3]), tmp_path / "c", EngineRequest("tensorrt-rtx", ("sm75",)))
        assert not (tmp_path / "c").exists()


class TestSimplify:
    def test_a_real_head_has_fewer_nodes_and_the_same_planes(self, tmp_path: Path) -> None:
        trained = random_run()
        head, path = DeviceHead(trained.variants[0].model, trained.input), tmp_path / "head.onnx"
        planes, frames = trained.variants[0].planes, trained.frames
        written = export_onnx(
            head,
            "head",
            path,
            input_shape=(224, 224, 3),
            output_shape=planes,
            properties={"aecnn.variant": VARIANT},
            options=OnnxOptions(simplify=True),
        )
        model = onnx.load(str(path))
        assert written.nodes == len(model.graph.node) < written.nodes_translated
        assert [(item.key, item.value) for item in model.metadata_props] == [("aecnn.variant", VARIANT)]
        assert (opset_of(path), axes(path)) == (({"": OPSET}, MAX_IR_VERSION), ["batch", "batch"])
        assert not model.graph.value_info
        with torch.no_grad():
            verify_planes(
                path, "head.onnx", frames, trained.variants[0].head(fold=False)(torch.from_numpy(frames)).numpy()
            )

    def test_a_bundle_says_what_it_saved_and_comes_out_the_same_again(self, tmp_path: Path, usual: Path) -> None:
        options = OnnxOptions(simplify=True)
        first, again = (export_small(SmallRun(), tmp_path / name, onnx=options) for name in ("a", "b"))
        assert first.bundle_id == again.bundle_id != open_bundle(usual).id
        simplified = first.measurements["onnx"]["simplified"]
        assert simplified.keys() == {name for name in first.files if name.endswith(".onnx")}
        assert all(0 < item["nodes"] <= item["nodes_before"] for item in simplified.values())
        assert "onnxslim" in first.tools
        assert "onnxslim" not in open_bundle(usual).manifest.tools
        assert first.measurements["verification"].keys() == simplified.keys()


class Frozen(nn.Module):
    """A classifier that knows how many pixels it gets."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(features, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(x)
        return logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sized") / "run"
    random_run(folder)
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Run:
    return load_run(folder)


class TestInputSize:
    @pytest.fixture
    def exported(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Any]:
        arguments = ["--input-size", "64x128", "--opset", "17", "--simplify", "--onnx-batch", "1", "--json"]
        assert aecnn_deploy(["export", str(folder), "--out", str(tmp_path / "bundle"), *arguments]) == 0
        return tmp_path / "bundle", json.loads(capsys.readouterr().out)

    def test_an_export_follows_it_with_every_other_option(self, exported: tuple[Path, Any], trained: Run) -> None:
        bundle, document = open_bundle(exported[0]), exported[1]
        manifest = bundle.manifest
        spec, before = manifest.variants[0], trained.variants[0]
        assert (manifest.input.height, manifest.input.width, manifest.input.resize_short) == (64, 128, 146)
        assert (before.planes, spec.planes) == ((8, 56, 56), (8, 16, 32))
        assert spec.head_macs == 7 * 7 * 3 * 8 * 32 * 64
        assert spec.full_macs < before.full_macs
        assert (before.accuracy, spec.accuracy, spec.agreement) == (0.5, None, None)
        assert manifest.measurements["input_size"] == {
            "trained": [224, 224],
            "exported": [64, 128],
            "left_out": ["accuracy", "agreement", "photographs", "wire_bytes"],
        }
        assert "photographs" not in manifest.measurements
        assert document["onnx"]["batch"] == 1
        head = document["onnx"]["simplified"][spec.head]
        assert head["nodes"] <= head["nodes_before"]  # there is little left to leave out
        assert opset_of(bundle.file(spec.head)) == ({"": 17}, MAX_IR_VERSION)
        assert {check.verdict for check in verify_bundle(bundle)} == {"ok"}

    def test_an_int8_head_was_calibrated_for_the_trained_size(self, trained: Run, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="calibrated with frames of the run's own size; leave out --input-size"):
            export_run(resized_run(trained, 64, 64), tmp_path / "b", head_precisions=["int8"])
        assert list(tmp_path.iterdir()) == []

    def test_the_trained_size_changes_nothing(self, trained: Run) -> None:
        assert resized_run(trained, 224, 224) is trained

    def test_the_trained_run_stays_as_it_was(self, trained: Run) -> None:
        resized = resized_run(trained, 128, 128)
        assert (trained.backbone.input.height, trained.backbone.split_point(1).height) == (224, 56)
        assert (resized.backbone.input.height, resized.backbone.split_point(1).height) == (128, 32)
        assert resized.variants[0].head_macs * 49 == trained.variants[0].head_macs * 16
        state, same = trained.variants[0].model.state_dict(), resized.variants[0].model.state_dict()
        assert all(torch.equal(state[name], same[name]) for name in state)

    @pytest.mark.parametrize("size", [(31, 96), (96, 4097)])
    def test_a_side_out_of_range_is_refused(self, trained: Run, size: tuple[int, int]) -> None:
        with pytest.raises(SettingsError, match="each side must be 32 to 4096 pixels"):
            resized_run(trained, *size)

    def test_planes_that_no_longer_divide_the_tensor_are_refused(self) -> None:
        trained = strided_run()
        assert resized_run(trained, 64, 128).variants[0].planes == (4, 8, 16)
        with pytest.raises(SettingsError, match=r"planes of 13×13 cannot feed a tensor of 7×7; one must divide"):
            resized_run(trained, 100, 100)

    def test_a_classifier_of_a_fixed_size_is_refused(self) -> None:
        trained = random_run()
        trained.backbone.classifier = Frozen(512 * 7 * 7)
        with pytest.raises(
            SettingsError, match=r"cannot take frames of 128x128, trained with 224x224: .*; choose another"
        ):
            resized_run(trained, 128, 128)

    @pytest.mark.parametrize(
        ("size", "short"), [((192, 192), 219), ((256, 256), 293), ((224, 112), 256), ((64, 448), 512)]
    )
    def test_the_short_side_before_the_crop_grows_in_proportion(self, size: tuple[int, int], short: int) -> None:
        from aecnn_deploy.models.backbones import backbone_spec

        spec = scaled_input(backbone_spec("efficientnet_lite0").input, *size)
        assert (spec.height, spec.width, spec.resize_short) == (*size, short)

    def test_photographs_are_cropped_to_the_shape_and_not_squeezed(self) -> None:
        frames = np.zeros((1, 96, 96, 3), np.uint8)
        frames[:, 24:72] = 255  # the middle half of the rows
        wide = resized_frames(frames, scaled_input(random_run().input, 32, 64))
        assert wide.shape == (1, 32, 64, 3)
        assert wide.min() > 200
