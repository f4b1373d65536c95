"""A bundle as a Triton model repository: every file of it, held against Triton's own schema and load-time checks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup, ModelQueuePolicy

from aecnn_deploy.bundle.manifest import EngineSpec
from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.errors import BundleError, ExportError, SettingsError
from aecnn_deploy.exporters.triton_config import labels_text
from aecnn_deploy.exporters.triton_models import compute_capability
from aecnn_deploy.exporters.triton_repository import RepositoryWriter, write_repository
from aecnn_deploy.exporters.triton_settings import TritonSettings
from aecnn_deploy.exporters.triton_text import Message, entry, message, render
from tests.bundles import COMMAND, LABELS, VARIANTS, TinyVariant, environment, make_bundle, one_line
from tests.in_process import command_here
from tests.triton_models import check_model, config_of, with_engines

MODELS = [*(variant.id for variant in VARIANTS), "full"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle. Not to be changed."""
    out = tmp_path_factory.mktemp("triton") / "bundle"
    make_bundle(out)
    return out


def engine(product: str, architecture: str, precision: str = "fp16", most: int = 8) -> EngineSpec:
    name = f"tails/{product}-{architecture}-{precision}.engine"
    return EngineSpec(name, product, "10.9.0", (architecture,), precision, (1, 1, most))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones too."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class TestContent:
    def test_each_tail_and_the_unsplit_model_are_what_triton_loads(self, bundle: Path, tmp_path: Path) -> None:
        opened = open_bundle(bundle)
        written = write_repository(opened, tmp_path / "models")
        assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(MODELS)
        assert [model.name for model in written.models] == MODELS
        for spec in opened.manifest.variants:
            config = check_model(tmp_path / "models" / spec.id)
            assert config.input[0].name == "planes"
            assert tuple(config.input[0].dims) == spec.planes
            values = {key: value.string_value for key, value in config.parameters.items()}
            assert values["aecnn_bundle_id"] == opened.id
            assert (values["aecnn_variant"], values["aecnn_bits"]) == (spec.id, str(spec.bits))
            shipped = (tmp_path / "models" / spec.id / "1" / "model.onnx").read_bytes()
            assert shipped == opened.file(spec.tails["onnxruntime"]).read_bytes()
        full = check_model(tmp_path / "models" / "full")
        assert (full.input[0].name, full.output[0].name) == ("frames", "logits")
        assert full.parameters["aecnn_variant"].string_value == "full"
        assert "aecnn_bits" not in full.parameters
        labels = (tmp_path / "models" / "full" / "labels.txt").read_text()
        assert tuple(labels.splitlines()) == LABELS

    def test_every_setting_stands_in_the_field_that_triton_reads(self, bundle: Path, tmp_path: Path) -> None:
        chosen = TritonSettings(
            max_batch=8,
            preferred_batches=(2, 8),
            queue_delay_us=1500,
            queue_timeout_us=90_000,
            max_queue=64,
            device="gpu",
            gpus=(1, 3),
            instances=2,
            threads=4,
        )
        write_repository(open_bundle(bundle), tmp_path / "models", chosen, variants=[VARIANTS[1].id])
        assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["full", VARIANTS[1].id]
        for name in ("full", VARIANTS[1].id):
            config = check_model(tmp_path / "models" / name)
            batching = config.dynamic_batching
            assert (config.max_batch_size, list(batching.preferred_batch_size)) == (8, [2, 8])
            assert batching.max_queue_delay_microseconds == 1500
            policy = batching.default_queue_policy
            assert (policy.default_timeout_microseconds, policy.max_queue_size) == (90_000, 64)
            assert policy.timeout_action == ModelQueuePolicy.REJECT
            (group,) = config.instance_group
            assert (group.kind, group.count, list(group.gpus)) == (ModelInstanceGroup.KIND_GPU, 2, [1, 3])
            assert config.version_policy.latest.num_versions == 1
            assert config.HasField("response_cache")
            assert not config.response_cache.enable
            assert [sample.batch_size for sample in config.model_warmup] == [1, 8]
            threads = {key: config.parameters[key].string_value for key in config.parameters if "aecnn" not in key}
            assert threads == {"intra_op_thread_count": "4", "inter_op_thread_count": "1", "execution_mode": "0"}

    def test_defaults_send_what_waits_on_the_cpu(self, bundle: Path, tmp_path: Path) -> None:
        write_repository(open_bundle(bundle), tmp_path / "models", TritonSettings(warm_up=False))
        config = check_model(tmp_path / "models" / "full")
        assert (config.max_batch_size, len(config.model_warmup)) == (16, 0)
        assert list(config.dynamic_batching.preferred_batch_size) == []
        assert config.dynamic_batching.default_queue_policy.default_timeout_microseconds == 0
        (group,) = config.instance_group
        assert (group.kind, group.count, list(group.gpus)) == (ModelInstanceGroup.KIND_CPU, 1, [])

    def test_one_image_at_a_time_is_warmed_up_once(self, bundle: Path, tmp_path: Path) -> None:
        write_repository(open_bundle(bundle), tmp_path / "models", TritonSettings(max_batch=1))
        assert [sample.batch_size for sample in config_of(tmp_path / "models" / "full").model_warmup] == [1]

    def test_half_tails_are_served_where_they_are_asked_for(self, tmp_path: Path) -> None:
        opened = with_engines(tmp_path, ())
        spec = opened.manifest.variants[0]
        write_repository(opened, tmp_path / "models", TritonSettings(precision="fp16"), variants=[spec.id])
        model = tmp_path / "models" / spec.id
        assert check_model(model).parameters["aecnn_precision"].string_value == "fp16"
        assert (model / "1" / "model.onnx").read_bytes() == opened.file(spec.tails["onnx-fp16"]).read_bytes()
        assert check_model(tmp_path / "models" / "full").parameters["aecnn_precision"].string_value == "fp32"

    def test_the_same_bundle_and_settings_give_the_same_bytes(self, bundle: Path, tmp_path: Path) -> None:
        for name in ("one", "two"):
            write_repository(open_bundle(bundle), tmp_path / name)
        assert tree(tmp_path / "one") == tree(tmp_path / "two")


class TestEngines:
    def test_one_engine_is_the_plan(self, tmp_path: Path) -> None:
        opened = with_engines(tmp_path, (engine("tensorrt", "sm90", most=4),))
        first, second = opened.manifest.variants
        written = write_repository(opened, tmp_path / "models")
        source = opened.file(first.tails["onnx-fp16"])
        config = check_model(tmp_path / "models" / first.id, source)
        assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 4)
        assert config.instance_group[0].kind == ModelInstanceGroup.KIND_GPU
        assert config.cc_model_filenames == {}
        assert config.parameters["aecnn_tensorrt"].string_value == "10.9.0"
        assert "intra_op_thread_count" not in config.parameters
        plan = tmp_path / "models" / first.id / "1" / "model.plan"
        assert plan.read_text() == "engine tails/tensorrt-sm90-fp16.engine"
        other = check_model(tmp_path / "models" / second.id)
        assert (other.platform, other.max_batch_size) == ("onnxruntime_onnx", 16)
        assert [model.backend for model in written.models] == ["tensorrt", "onnxruntime", "onnxruntime"]

    def test_of_several_engines_each_gpu_finds_its_own_by_its_compute_capability(self, tmp_path: Path) -> None:
        engines = (
            engine("tensorrt", "sm120", "int8"),
            engine("tensorrt", "sm120"),
            engine("tensorrt", "sm75", "int8", 6),
            engine("tensorrt-rtx", "sm86"),
        )
        opened = with_engines(tmp_path, engines)
        first = opened.manifest.variants[0]
        write_repository(opened, tmp_path / "models")
        model = tmp_path / "models" / first.id
        config = check_model(model, opened.file(first.tails["onnx-fp16"]))
        assert dict(config.cc_model_filenames) == {"7.5": "model-sm75.plan", "12.0": "model-sm120.plan"}
        assert config.max_batch_size == 6  # the smallest profile's
        assert (model / "1" / "model-sm120.plan").read_text() == f"engine {engines[1].file}"  # fp16 before int8
        assert sorted(path.name for path in (model / "1").iterdir()) == ["model-sm120.plan", "model-sm75.plan"]

    def test_a_precision_chooses_among_engines(self, tmp_path: Path) -> None:
        opened = with_engines(tmp_path, (engine("tensorrt", "sm90", "int8"), engine("tensorrt", "sm90")))
        first = opened.manifest.variants[0].id
        write_repository(opened, tmp_path / "models", TritonSettings(precision="int8"), variants=[first])
        plan = tmp_path / "models" / first / "1" / "model.plan"
        assert plan.read_text() == "engine tails/tensorrt-sm90-int8.engine"

    def test_engines_of_rtx_stay_behind_and_are_refused_where_engines_are_asked_for(self, tmp_path: Path) -> None:
        opened = with_engines(tmp_path, (engine("tensorrt-rtx", "sm86"),))
        with pytest.raises(ExportError, match="Triton loads none of RTX; on the server's GPU run 'aecnn-deploy bundle"):
            write_repository(opened, tmp_path / "models", TritonSettings(backend="tensorrt"))
        assert not (tmp_path / "models").exists()
        written = write_repository(opened, tmp_path / "models")
        assert written.models[0].backend == "onnxruntime"
        assert written.models[0].note == "its tensorrt-rtx engines stay behind: Triton loads none"

    def test_a_cpu_takes_onnx_files_beside_engines(self, tmp_path: Path) -> None:
        opened = with_engines(tmp_path, (engine("tensorrt", "sm90"),))
        for name, chosen in (("cpu", TritonSettings(device="cpu")), ("ort", TritonSettings(backend="onnxruntime"))):
            write_repository(opened, tmp_path / name, chosen)
            assert check_model(tmp_path / name / opened.manifest.variants[0].id).platform == "onnxruntime_onnx"

    @pytest.mark.parametrize(
        ("chosen", "kind", "why"),
        [
            (TritonSettings(max_batch=16), SettingsError, "engine ends at 8; choose that or less, or build the engine"),
            (TritonSettings(preferred_batches=(16,)), SettingsError, "from 1 to the largest batch, 8"),
            (TritonSettings(backend="tensorrt"), ExportError, "of full TensorRT for tiny-l1-v4-u4: it has none"),
            (TritonSettings(backend="tensorrt", precision="fp32"), ExportError, "no fp32 engine .* it has fp16;"),
            (TritonSettings(precision="int8"), ExportError, "no int8 tail of tiny-l1-v2-u8 for ONNX Runtime"),
        ],
    )
    def test_what_the_files_cannot_do_is_refused(
        self, tmp_path: Path, chosen: TritonSettings, kind: type[Exception], why: str
    ) -> None:
        opened = with_engines(tmp_path, (engine("tensorrt", "sm90"),))
        with pytest.raises(kind, match=why):
            write_repository(opened, tmp_path / "models", chosen)
        assert not (tmp_path / "models").exists()

    @pytest.mark.parametrize(("architecture", "capability"), [("sm75", "7.5"), ("sm90", "9.0"), ("sm121", "12.1")])
    def test_an_architecture_is_a_compute_capability(self, architecture: str, capability: str) -> None:
        assert compute_capability(architecture) == capability

    def test_what_is_no_architecture_is_refused(self) -> None:
        with pytest.raises(ExportError, match="an engine is for 'bit6'"):
            compute_capability("bit6")


class TestBadBundles:
    def test_a_fixed_batch_is_refused(self, bundle: Path, tmp_path: Path) -> None:
        model = onnx.load(str(bundle / "tails" / f"{VARIANTS[0].id}.onnx"))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 2
        onnx.save(model, str(tmp_path / "fixed.onnx"))
        make_bundle(tmp_path / "bundle", tail_of_first=tmp_path / "fixed.onnx")
        with pytest.raises(ExportError, match=r"planes has a fixed batch of 2, .* again without --onnx-batch"):
            write_repository(open_bundle(tmp_path / "bundle"), tmp_path / "models")
        assert not (tmp_path / "models").exists()

    def test_a_tail_that_is_not_what_the_manifest_says_is_refused(self, tmp_path: Path) -> None:
        make_bundle(tmp_path / "other", variants=(TinyVariant("other", 3, 4, 8),))
        wrong = tmp_path / "other" / "tails" / "other.onnx"
        make_bundle(tmp_path / "bundle", tail_of_first=wrong)
        with pytest.raises(ExportError, match=r"has planes TYPE_UINT8 \[-1, 3, 16, 16\], the manifest says planes"):
            write_repository(open_bundle(tmp_path / "bundle"), tmp_path / "models")

    def test_a_file_that_does_not_load_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "broken.onnx").write_bytes(b"no graph")
        make_bundle(tmp_path / "bundle", tail_of_first=tmp_path / "broken.onnx")
        with pytest.raises(ExportError, match=r"ONNX Runtime \S+ cannot load .*export the bundle again"):
            write_repository(open_bundle(tmp_path / "bundle"), tmp_path / "models")

    @pytest.mark.parametrize("name", ["full", "a b", "ä", ".hidden", "a:b"])
    def test_a_variant_whose_name_is_none_for_triton_is_refused(self, tmp_path: Path, name: str) -> None:
        make_bundle(tmp_path / "bundle", variants=(TinyVariant(name, 4, 4, 8),))
        with pytest.raises(ExportError, match="cannot be a model's name in Triton"):
            write_repository(open_bundle(tmp_path / "bundle"), tmp_path / "models")

    def test_an_unknown_variant_is_refused_with_those_that_there_are(self, bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"no variant 'x'; it has tiny-l1-v2-u8, tiny-l1-v4-u4"):
            write_repository(open_bundle(bundle), tmp_path / "models", variants=["x"])


class TestSettings:
    @pytest.mark.parametrize(
        ("chosen", "why"),
        [
            ({"backend": "pytorch"}, "no Triton backend 'pytorch'; choose one of auto, onnxruntime, tensorrt"),
            ({"precision": "fp8"}, "no model file is in 'fp8'; choose one of fp16, int8, fp32"),
            ({"max_batch": 0}, "max_batch is 0, expected 1 to 1024"),
            ({"max_batch": 1025}, "max_batch is 1025"),
            ({"max_batch": 4, "preferred_batches": (8,)}, "expected ascending sizes from 1 to the largest batch, 4"),
            ({"preferred_batches": (4, 2)}, "preferred batches are"),
            ({"preferred_batches": (2, 2)}, "preferred batches are"),
            ({"preferred_batches": (0,)}, "preferred batches are"),
            ({"queue_delay_us": -1}, "queue_delay_us is -1"),
            ({"queue_timeout_us": 3_600_000_001}, "queue_timeout_us is"),
            ({"queue_delay_us": 500, "queue_timeout_us": 500}, "give them a longer time, or a shorter wait"),
            ({"max_queue": -1}, "max_queue is -1"),
            ({"instances": 0}, "instances is 0"),
            ({"threads": -1}, "threads is -1"),
            ({"device": "tpu"}, "no device 'tpu'; choose cpu or gpu"),
            ({"device": "cpu", "backend": "tensorrt"}, "tensorrt plans run on a GPU only"),
            ({"gpus": (0,)}, "go with the device gpu, got none"),
            ({"gpus": (0,), "device": "cpu"}, "go with the device gpu, got cpu"),
            ({"gpus": (1, 1), "device": "gpu"}, "expected different numbers from 0"),
            ({"gpus": (-1,), "device": "gpu"}, "expected different numbers from 0"),
        ],
    )
    def test_a_wrong_one_is_refused_when_it_is_made(self, chosen: dict[str, Any], why: str) -> None:
        with pytest.raises(SettingsError, match=why):
            TritonSettings(**chosen)


class TestText:
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_any_text_comes_back_from_protobufs_parser(self, text: str) -> None:
        config = Message((("name", text), ("parameters", entry(text, message(string_value=text)))))
        read = text_format.Parse(render(config), ModelConfig())
        assert (read.name, read.parameters[text].string_value) == (text, text)

    @given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=5), st.integers(0, (1 << 31) - 1), st.booleans())
    def test_any_sizes_come_back_from_protobufs_parser(self, dims: list[int], batch: int, yes: bool) -> None:
        tensor = message(name="x", dims=tuple(dims), optional=yes)
        read = text_format.Parse(render(message(max_batch_size=batch, input=tensor)), ModelConfig())
        assert (list(read.input[0].dims), read.max_batch_size, read.input[0].optional) == (dims, batch, yes)

    def test_what_the_format_has_no_form_for_is_refused(self) -> None:
        with pytest.raises(ExportError, match="no text that UTF-8 can hold"):
            render(message(name="\ud800"))
        with pytest.raises(ExportError, match="is no 64-bit number"):
            render(message(max_batch_size=1 << 63))

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20))
    def test_every_label_is_one_line_in_its_place(self, labels: list[str]) -> None:
        text = labels_text(tuple(labels))
        lines = text.splitlines()  # which splits at more than Triton's getline does
        assert text.count("\n") == len(lines) == len(labels)
        for line, label in zip(lines, labels, strict=True):
            assert line == label or (line != label and "".join(line.split()) == "".join(label.split()))

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(labels=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=7, max_size=7))
    def test_labels_of_any_kind_get_through_a_bundle_into_a_repository(
        self, labels: list[str], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("labels")
        opened = open_bundle(relabelled(folder, (*labels[:5], 'a "quoted" \\ label', "zwei\nZeilen 日本")))
        write_repository(opened, folder / "models", variants=[VARIANTS[0].id])
        check_model(folder / "models" / VARIANTS[0].id)
        lines = (folder / "models" / "full" / "labels.txt").read_bytes().decode().split("\n")
        assert lines[5:] == ['a "quoted" \\ label', "zwei Zeilen 日本", ""]


def relabelled(folder: Path, labels: tuple[str, ...]) -> Path:
    """A tiny bundle with ``labels``."""
    make_bundle(folder / "plain")
    plain = open_bundle(folder / "plain")
    with BundleWriter(folder / "bundle") as writer:
        for name in plain.manifest.files:
            writer.copy(plain.file(name), name)
        manifest = plain.manifest
        writer.commit(
            backbone=manifest.backbone,
            labels=labels,
            input_spec=manifest.input,
            full=manifest.full,
            variants=manifest.variants,
            measurements={},
            tools={},
        )
    return folder / "bundle"


class TestDestination:
    def test_a_folder_that_holds_anything_is_refused_without_force(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "notes.txt").write_text("mine")
        with pytest.raises(ExportError, match="is not empty; choose another folder, or add --force"):
            write_repository(open_bundle(bundle), tmp_path / "models")
        assert tree(tmp_path) == {"models/notes.txt": b"mine"}

    def test_an_empty_folder_is_filled(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "models").mkdir()
        before = (tmp_path / "models").stat().st_ino
        write_repository(open_bundle(bundle), tmp_path / "models")
        assert (tmp_path / "models").stat().st_ino == before  # a shell that stands in it still does
        assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(MODELS)
        assert [path.name for path in tmp_path.iterdir()] == ["models"]

    def test_with_force_models_of_bundles_are_replaced_and_all_others_stay(self, tmp_path: Path) -> None:
        out = tmp_path / "shared"
        theirs = {"resnet/config.pbtxt": b'name: "resnet"', "resnet/1/model.onnx": b"theirs", "README": b"x"}
        for name, content in theirs.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)
        for seed, variants in ((0, VARIANTS), (1, VARIANTS[:1])):
            make_bundle(tmp_path / str(seed), seed=seed, variants=variants)
            written = write_repository(open_bundle(tmp_path / str(seed)), out, replace=True)
        assert (written.replaced, written.left) == ((VARIANTS[0].id, "full"), (VARIANTS[1].id,))
        files = tree(out)
        assert {name: files[name] for name in theirs} == theirs
        ids = {name: config_of(out / name).parameters["aecnn_bundle_id"].string_value for name in MODELS}
        first, second = (open_bundle(tmp_path / str(seed)).id for seed in (0, 1))
        assert ids == {VARIANTS[0].id: second, VARIANTS[1].id: first, "full": second}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "shared"]

    def test_a_model_of_the_same_name_that_is_not_ours_is_never_replaced(self, bundle: Path, tmp_path: Path) -> None:
        out = tmp_path / "shared"
        (out / "full" / "1").mkdir(parents=True)
        (out / "full" / "config.pbtxt").write_text('name: "full"')
        before = tree(tmp_path)
        with pytest.raises(ExportError, match="full was not written from a bundle: not replaced; move it away"):
            write_repository(open_bundle(bundle), out, replace=True)
        assert tree(tmp_path) == before

    def test_a_link_to_one_of_ours_is_not_replaced(self, bundle: Path, tmp_path: Path) -> None:
        write_repository(open_bundle(bundle), tmp_path / "elsewhere")
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared" / "full").symlink_to(tmp_path / "elsewhere" / "full")
        with pytest.raises(ExportError, match="full was not written from a bundle"):
            write_repository(open_bundle(bundle), tmp_path / "shared", replace=True)

    def test_a_failure_between_two_models_puts_the_old_ones_back(self, bundle: Path, tmp_path: Path) -> None:
        write_repository(open_bundle(bundle), tmp_path / "models")
        before = tree(tmp_path)
        with RepositoryWriter(tmp_path / "models", MODELS, replace=True) as writer:
            for name in MODELS[:2]:  # the third is missing: that is found when two were moved
                (writer.root / name).mkdir()
            with pytest.raises(ExportError, match="cannot move the models to"):
                writer.commit()
        assert tree(tmp_path) == before
        assert [path.name for path in tmp_path.iterdir()] == ["models"]

    def test_a_failure_before_that_leaves_no_trace(self, bundle: Path, tmp_path: Path) -> None:
        def fail() -> None:
            with RepositoryWriter(tmp_path / "new" / "models", MODELS, replace=False) as writer:
                (writer.root / "full").mkdir()
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail()
        assert list(tmp_path.iterdir()) == []

    def test_a_file_and_a_bundle_are_refused(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(ExportError, match="is no folder"):
            write_repository(open_bundle(bundle), tmp_path / "file", replace=True)
        make_bundle(tmp_path / "bundle")
        with pytest.raises(ExportError, match="is a bundle: no model is put into it"):
            write_repository(open_bundle(bundle), tmp_path / "bundle", replace=True)
        assert open_bundle(tmp_path / "bundle").id == open_bundle(bundle).id


class TestCommand:
    def test_the_zoos_bundle_becomes_a_repository(self, tmp_path: Path) -> None:
        out = tmp_path / "models"
        done = command_here("bundle", "triton", "zoo:caltech101-lite0", str(out), "--max-batch", "8", "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        opened = open_bundle(Path(__file__).parents[1] / "zoo" / "caltech101-lite0.tar.zst")
        assert document["bundle_id"] == opened.id
        assert list(document["models"]) == [*(spec.id for spec in opened.manifest.variants), "full"]
        for name, model in document["models"].items():
            config = check_model(out / name)
            assert (model["backend"], model["max_batch_size"], model["files"]) == ("onnxruntime", 8, ["model.onnx"])
            sizes = ", ".join(map(str, config.input[0].dims))
            assert model["input"] == f"{config.input[0].name} TYPE_UINT8 [-1, {sizes}]"
            assert onnx.load(str(out / name / "1" / "model.onnx")).ir_version <= 10

    def test_every_option_reaches_the_configuration(self, bundle: Path, tmp_path: Path) -> None:
        options = "--max-batch 6 --preferred-batch 2 --preferred-batch 6 --queue-delay-us 100 --queue-timeout-us 5000"
        options += " --max-queue 9 --device gpu --gpu 2 --instances 3 --threads 2 --no-warm-up --precision fp32"
        out = tmp_path / "models"
        chosen = ["--variant", VARIANTS[0].id, "--backend", "onnxruntime", *options.split()]
        done = command_here("bundle", "triton", str(bundle), str(out), *chosen)
        assert done.returncode == 0, done.stderr
        assert f"tritonserver --model-repository={out}" in done.stdout.decode()
        config = check_model(out / VARIANTS[0].id)
        assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (6, [2, 6])
        assert config.dynamic_batching.max_queue_delay_microseconds == 100
        policy = config.dynamic_batching.default_queue_policy
        assert (policy.default_timeout_microseconds, policy.max_queue_size) == (5000, 9)
        assert (config.instance_group[0].count, list(config.instance_group[0].gpus)) == (3, [2])
        assert config.parameters["intra_op_thread_count"].string_value == "2"
        assert len(config.model_warmup) == 0
        assert sorted(path.name for path in out.iterdir()) == ["full", VARIANTS[0].id]

    @pytest.mark.parametrize(
        ("options", "status", "why"),
        [
            (["--max-batch", "0"], 2, "max_batch is 0"),
            (["--gpu", "0"], 2, "GPU ids (0,) go with the device gpu"),
            (["--backend", "tensorrt"], 1, "use the backend onnxruntime"),
            (["--variant", "x"], 1, "no variant 'x'"),
        ],
    )
    def test_wrong_use_is_one_line_and_writes_nothing(
        self, bundle: Path, tmp_path: Path, options: list[str], status: int, why: str
    ) -> None:
        done = command_here("bundle", "triton", str(bundle), str(tmp_path / "models"), *options)
        assert (done.returncode, done.stdout) == (status, b"")
        assert why in one_line(done.stderr)
        assert list(tmp_path.iterdir()) == []

    def test_it_needs_neither_torch_nor_onnx_nor_a_triton_client(self, bundle: Path, tmp_path: Path) -> None:
        absent = "import sys; sys.modules |= dict.fromkeys(['torch', 'onnx', 'tritonclient', 'google', 'tensorrt']); "
        done = subprocess.run(
            [sys.executable, "-c", absent + COMMAND[2], "bundle", "triton", bundle, tmp_path / "models"],
            capture_output=True,
            check=False,
            env=environment(),
        )
        assert done.returncode == 0, done.stderr
        check_model(tmp_path / "models" / "full")


class TestExport:
    @pytest.mark.parametrize(
        ("options", "status", "why"),
        [
            (["--triton-backend", "tensorrt"], 2, "needs engines of full TensorRT, got --engine none"),
            (["--triton-backend", "openvino"], 2, "no Triton backend 'openvino'"),
            (["--onnx-batch", "4"], 2, "Triton's batcher needs the open batch axis, got a fixed batch of 4"),
        ],
    )
    def test_what_cannot_be_served_is_refused_before_the_export(
        self, tmp_path: Path, options: list[str], status: int, why: str
    ) -> None:
        out = ["--out", str(tmp_path / "bundle"), "--triton", str(tmp_path / "models")]
        done = command_here("export", "no-such-run", *out, *options)
        assert done.returncode == status
        assert why in one_line(done.stderr)
        assert list(tmp_path.iterdir()) == []

    def test_a_place_that_must_not_be_written_is_found_before_the_export(self, tmp_path: Path) -> None:
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "mine").write_text("x")
        for place, status, why in ((tmp_path / "models", 1, "is not empty"), (tmp_path / "b", 2, "are both")):
            done = command_here("export", "no-such-run", "--out", str(tmp_path / "b"), "--triton", str(place))
            assert done.returncode == status
            assert why in one_line(done.stderr)
