"""A real Triton server reads and serves the repositories that are written here, asked by Triton's own client.

The server is nvidia-pytriton's. It has no ONNX Runtime backend: a stand-in runs the sessions, all else is Triton.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from aecnn_deploy.bundle.manifest import EngineSpec
from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.exporters.triton_repository import write_repository
from aecnn_deploy.exporters.triton_settings import TritonSettings
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from tests.bundles import LABELS, SIZE, VARIANTS, make_bundle, make_photos, run_directly, run_full
from tests.triton_models import config_of, with_engines
from tests.triton_servers import PYTHON, Installed, Triton, install, refusal, triton

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        not PYTHON,
        reason="no real Triton here: AECNN_TRITON_PYTHON names no Python with nvidia-pytriton and onnxruntime",
    ),
]
client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")

DOCS = Path(__file__).parents[1] / "docs" / "triton.md"
MODELS = [*(variant.id for variant in VARIANTS), "full"]
SETTINGS = TritonSettings(max_batch=4, queue_delay_us=300_000, max_queue=64, threads=1)


@dataclass(frozen=True)
class Served:
    bundle: Bundle
    repository: Path
    server: Triton
    client: Any


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def served(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    make_bundle(folder / "bundle")
    bundle = open_bundle(folder / "bundle")
    write_repository(bundle, folder / "models", SETTINGS)
    with triton(installed, folder / "models", folder / "log") as server:
        asking = client.InferenceServerClient(server.url, concurrency=12)
        yield Served(bundle, folder / "models", server, asking)
        asking.close()


@pytest.fixture
def frames() -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).integers(0, 256, (12, SIZE, SIZE, 3), np.uint8)


def tensor(name: str, batch: np.ndarray[Any, Any]) -> Any:
    found = client.InferInput(name, list(batch.shape), "UINT8")
    found.set_data_from_numpy(batch)
    return found


def test_every_model_is_ready_and_described_as_the_files_are(served: Served) -> None:
    assert {model["name"] for model in served.client.get_model_repository_index()} == set(MODELS)
    for spec in served.bundle.manifest.variants:
        assert served.client.is_model_ready(spec.id)
        metadata = served.client.get_model_metadata(spec.id)
        assert (metadata["versions"], metadata["platform"]) == (["1"], "onnxruntime_onnx")
        assert metadata["inputs"] == [{"name": "planes", "datatype": "UINT8", "shape": [-1, *spec.planes]}]
        assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, len(LABELS)]}]
    metadata = served.client.get_model_metadata("full")
    assert metadata["inputs"] == [{"name": "frames", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]


def test_triton_took_every_field_as_it_was_written(served: Served) -> None:
    for name in MODELS:
        written = config_of(served.repository / name)
        taken = json_format.ParseDict(served.client.get_model_config(name), ModelConfig(), ignore_unknown_fields=True)
        merged = ModelConfig()
        merged.CopyFrom(taken)
        for field, _ in written.ListFields():
            merged.ClearField(field.name)
        merged.MergeFrom(written)
        # Triton names the instances and fills in the preferred batch; it changes nothing that was said.
        merged.instance_group[0].name = taken.instance_group[0].name
        merged.dynamic_batching.preferred_batch_size[:] = taken.dynamic_batching.preferred_batch_size
        assert merged == taken


def test_logits_are_those_of_the_bundles_files(served: Served, frames: np.ndarray[Any, Any]) -> None:
    for spec in served.bundle.manifest.variants:
        for frame in frames[:2]:
            planes = _planes(served.bundle, spec.id, frame)
            answer = served.client.infer(spec.id, [tensor("planes", planes[np.newaxis])])
            expected = run_directly(served.bundle, frame, spec.id)
            np.testing.assert_allclose(answer.as_numpy("logits")[0], expected, rtol=1e-4, atol=1e-4)
    answer = served.client.infer("full", [tensor("frames", frames[:3])])
    expected = [run_full(served.bundle, frame) for frame in frames[:3]]
    np.testing.assert_allclose(answer.as_numpy("logits"), expected, rtol=1e-4, atol=1e-4)


def test_triton_names_the_best_classes_by_the_label_file(served: Served, frames: np.ndarray[Any, Any]) -> None:
    wanted = client.InferRequestedOutput("logits", class_count=len(LABELS))
    answer = served.client.infer("full", [tensor("frames", frames[:1])], outputs=[wanted]).as_numpy("logits")
    order = np.argsort(-run_full(served.bundle, frames[0]), kind="stable")
    named = [text.decode().split(":", 2)[1:] for text in answer[0]]
    assert named == [[str(index), LABELS[index]] for index in order]


def test_requests_of_several_clients_run_as_one_batch(served: Served, frames: np.ndarray[Any, Any]) -> None:
    before = len(served.server.batches("full"))
    waiting = [served.client.async_infer("full", [tensor("frames", frame[np.newaxis])]) for frame in frames]
    for one, frame in zip(waiting, frames, strict=True):
        found = one.get_result().as_numpy("logits")[0]
        np.testing.assert_allclose(found, run_full(served.bundle, frame), rtol=1e-4, atol=1e-4)
    sizes = served.server.batches("full")[before:]
    assert sum(sizes) == len(frames)
    assert max(sizes) == SETTINGS.max_batch  # and no larger one


def test_the_documented_query_prints_the_best_classes(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (photo,) = make_photos(tmp_path, 1)
    photo.rename(tmp_path / "photo.jpg")
    (tmp_path / "bundle").symlink_to(served.bundle.root)
    monkeypatch.chdir(tmp_path)
    assert "localhost:8000" in code
    exec(code.replace("localhost:8000", served.server.url), {})
    frame = read_frame((tmp_path / "photo.jpg").read_bytes(), served.bundle.manifest.input, name="photo")
    order = np.argsort(-run_directly(served.bundle, frame, MODELS[0]), kind="stable")[:5]
    printed = [line.rpartition(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert printed == [LABELS[index] for index in order]


def test_each_model_is_warm_at_one_image_and_at_the_largest_batch(served: Served) -> None:
    for name in MODELS:
        assert served.server.batches(name)[:2] == [1, SETTINGS.max_batch]


@pytest.mark.parametrize(
    ("model", "name", "shape", "why"),
    [
        ("full", "frames", (5, SIZE, SIZE, 3), "batch-size must be <= 4"),
        ("full", "image", (1, SIZE, SIZE, 3), "unexpected inference input 'image'"),
        (MODELS[0], "planes", (1, 3, 16, 16), "unexpected shape for input 'planes'"),
        (MODELS[0], "planes", (4, 16, 16), "unexpected shape for input 'planes'"),
    ],
)
def test_what_the_file_does_not_take_triton_refuses(
    served: Served, model: str, name: str, shape: tuple[int, ...], why: str
) -> None:
    with pytest.raises(client.InferenceServerException, match=why):
        served.client.infer(model, [tensor(name, np.zeros(shape, np.uint8))])


def test_a_repository_that_is_replaced_under_a_server_is_served_when_it_is_asked_to(
    installed: Installed, tmp_path: Path, frames: np.ndarray[Any, Any]
) -> None:
    names = ("one", "two")
    for seed, name in enumerate(names):
        make_bundle(tmp_path / name, seed=seed)
    write_repository(open_bundle(tmp_path / "one"), tmp_path / "models", SETTINGS, variants=[])
    with (
        triton(installed, tmp_path / "models", tmp_path / "log", "--model-control-mode=explicit") as server,
        client.InferenceServerClient(server.url) as asking,
    ):
        for name in names:
            bundle = open_bundle(tmp_path / name)
            write_repository(bundle, tmp_path / "models", SETTINGS, variants=[], replace=True)
            asking.load_model("full")
            parameters = asking.get_model_config("full")["parameters"]
            assert parameters["aecnn_bundle_id"]["string_value"] == bundle.id
            logits = asking.infer("full", [tensor("frames", frames[:1])]).as_numpy("logits")[0]
            np.testing.assert_allclose(logits, run_full(bundle, frames[0]), rtol=1e-4, atol=1e-4)


def test_a_configuration_that_is_wrong_would_be_noticed(installed: Installed, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    write_repository(open_bundle(tmp_path / "bundle"), tmp_path / "models", SETTINGS, variants=[])
    config = tmp_path / "models" / "full" / "config.pbtxt"
    good = config.read_text()
    for change, why in (
        (("max_batch_size: 4", "max_batch_size: 4\nmaximum: 4"), 'has no field named "maximum"'),
        (("dynamic_batching {", "dynamic_batching {\n  preferred_batch_size: [8]"), "must be <= max batch size"),
        (("labels.txt", "missing.txt"), "missing.txt"),
    ):
        config.write_text(good.replace(*change))
        assert why in refusal(installed, tmp_path / "models", tmp_path / "log")


def test_a_configuration_of_plans_is_accepted_up_to_the_backend_that_is_not_there(
    installed: Installed, tmp_path: Path
) -> None:
    engines = tuple(
        EngineSpec(f"tails/{name}.engine", "tensorrt", "10.9.0", (name,), "fp16", (1, 1, 8))
        for name in ("sm75", "sm90")
    )
    opened = with_engines(tmp_path, engines)
    first = opened.manifest.variants[0].id
    write_repository(opened, tmp_path / "models", variants=[first])
    log = refusal(installed, tmp_path / "models", tmp_path / "log")
    assert f"failed to load '{first}'" in log
    assert "unable to find backend library for backend 'tensorrt'" in log
    assert "Poll failed" not in log  # which is what a configuration that is refused is called


def _planes(bundle: Bundle, variant: str, frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The device's half: planes (C', h, w)."""
    with OnnxRuntimeRunner(bundle.file(bundle.variant(variant).head), threads=1) as head:
        planes: np.ndarray[Any, Any] = head.infer(frame[np.newaxis])[0]
    return planes
