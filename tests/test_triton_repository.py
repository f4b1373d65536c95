"""A bundle as a Triton model repository: every file of it, held against Triton's own schema and load-time checks."""

from pathlib import Path

import onnx
import pytest
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup, ModelQueuePolicy

from aecnn_deploy.bundle.manifest import EngineSpec
from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.errors import BundleError, ExportError, SettingsError
from aecnn_deploy.exporters.triton_models import compute_capability
from aecnn_deploy.exporters.triton_repository import write_repository
from aecnn_deploy.exporters.triton_settings import TritonSettings
from tests.bundles import LABELS, VARIANTS, TinyVariant, make_bundle
from tests.triton_models import check_model, config_of, tree, with_engines

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
