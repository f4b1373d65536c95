"""Where a Triton repository is written, what stands there already, and the commands that write one."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.errors import ExportError
from aecnn_deploy.exporters.triton_repository import RepositoryWriter, write_repository
from aecnn_deploy.exporters.triton_settings import TritonSettings
from tests.bundles import COMMAND, VARIANTS, environment, make_bundle, one_line
from tests.in_process import command_here
from tests.triton_models import check_model, config_of, tree

MODELS = [*(variant.id for variant in VARIANTS), "full"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle. Not to be changed."""
    out = tmp_path_factory.mktemp("triton") / "bundle"
    make_bundle(out)
    return out


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

    def test_with_a_prefix_two_bundles_stand_side_by_side(self, tmp_path: Path) -> None:
        out, names = tmp_path / "models", set[str]()
        for seed in (0, 1):
            make_bundle(tmp_path / str(seed), seed=seed, variants=VARIANTS)
            bundle = open_bundle(tmp_path / str(seed))
            settings = TritonSettings(prefix="edge-{bundle}-")
            written = write_repository(bundle, out, settings, replace=True)
            assert (written.replaced, written.left) == ((), tuple(sorted(names)))
            for name in MODELS:
                served = f"edge-{bundle.id[:12]}-{name}"
                names.add(served)
                config = check_model(out / served)
                assert config.name == served
                assert config.parameters["aecnn_variant"].string_value == name
                assert config.parameters["aecnn_bundle_id"].string_value == bundle.id
        assert {path.name for path in out.iterdir()} == names

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
