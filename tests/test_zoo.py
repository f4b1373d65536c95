"""The zoo: trained bundles inside the package, by name, whole, small, and as their manifests say."""

import json
from pathlib import Path

import numpy as np
import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import BundleError
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.training.samples import write_sample_photographs
from aecnn_deploy.zoo import zoo_bundle, zoo_bundles
from tests.bundles import command, one_line, run_directly, run_full, serving
from tests.in_process import command_here

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(zoo_bundles())
MAX_BYTES = 12_000_000  # what a device downloads with the package


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Archives are unpacked here and not into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=NAMES)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return open_bundle(zoo_bundle(request.param))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    write_sample_photographs(folder)
    return folder


def test_the_zoo_holds_each_archive_of_its_folder_and_the_demos() -> None:
    assert "caltech101-lite0" in NAMES
    assert {path.name for path in zoo_bundles().values()} == {path.name for path in (ROOT / "zoo").glob("*.tar.zst")}
    with pytest.raises(TypeError):
        zoo_bundles()["more"] = Path()  # type: ignore[index]


def test_the_zoo_is_small() -> None:
    files = [path for path in (ROOT / "zoo").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES


@pytest.mark.parametrize("name", ["", "caltech101", "../zoo/caltech101-lite0", "zoo:zoo:caltech101-lite0"])
def test_an_unknown_name_is_told_with_the_known_ones(name: str) -> None:
    with pytest.raises(BundleError, match=r"the zoo has no bundle .*known are zoo:caltech101-lite0"):
        zoo_bundle(name)


def test_every_variant_runs_and_gives_what_its_manifest_says(bundle: Bundle, photographs: Path) -> None:
    manifest = bundle.manifest
    frame = read_frame(photographs / "motorcycle.png", manifest.input)
    for spec in manifest.variants:
        with OnnxRuntimeRunner(bundle.file(spec.head), threads=1) as head:
            planes = head.infer(frame[None])
        assert planes.shape == (1, *spec.planes)
        assert planes.dtype == np.uint8
        # A head whose planes were all of one level would pass every check of a shape.
        assert 2 < len(np.unique(planes)) <= 2**spec.bits
        assert planes.max() < 2**spec.bits
        with OnnxRuntimeRunner(bundle.file(spec.tails["onnxruntime"]), threads=1) as tail:
            logits = tail.infer(planes)
        assert logits.shape == (1, len(manifest.labels))
        assert np.isfinite(logits).all()


def test_a_motorcycle_is_one_to_the_unsplit_model_and_to_every_variant(photographs: Path) -> None:
    bundle = open_bundle(zoo_bundle("caltech101-lite0"))
    frame = read_frame(photographs / "motorcycle.png", bundle.manifest.input)
    logits = [run_full(bundle, frame), *(run_directly(bundle, frame, spec.id) for spec in bundle.manifest.variants)]
    assert {bundle.manifest.labels[int(each.argmax())] for each in logits} == {"Motorbikes"}


def test_measured_accuracies_come_with_the_bundle(bundle: Bundle) -> None:
    unsplit = bundle.manifest.measurements["unsplit_accuracy"]
    assert 0.9 < unsplit < 1.0
    for spec in bundle.manifest.variants:
        assert spec.accuracy is not None
        assert 0.85 < spec.accuracy < 1.0
        pruned = "strided" not in spec.id  # AECNN's own head at l = 7 is a little heavier than the purpose-made ones
        assert 0 < spec.head_macs < (0.32 if pruned else 0.3) * spec.full_macs
    assert any(spec.head_macs < 0.1 * spec.full_macs for spec in bundle.manifest.variants)


def test_a_name_stands_for_the_path_in_every_command(bundle: Bundle, photographs: Path) -> None:
    name = f"zoo:{bundle.path.name.removesuffix('.tar.zst')}"
    verified = command("bundle", "verify", name, "--json")
    assert json.loads(verified.stdout)["bundle_id"] == bundle.id
    document = json.loads(command("bundle", "show", name, "--json").stdout)
    assert [variant["id"] for variant in document["variants"]] == [spec.id for spec in bundle.manifest.variants]
    with serving(Path(name)) as edge:
        assert edge.ready["bundle_id"] == bundle.id
        source = str(photographs / "coffee.png")
        done = command("run-device", name, "--edge", edge.url, "--source", source, "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["summary"]["ok"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("bundle", "show", "zoo:nothing"),
        ("bundle", "verify", "zoo:nothing"),
        ("serve-edge", "zoo:nothing"),
        ("run-device", "zoo:nothing", "--edge", "ws://127.0.0.1:1", "--source", "photos"),
    ],
)
def test_an_unknown_name_is_one_line_in_every_command(arguments: tuple[str, ...]) -> None:
    done = command_here(*arguments)
    assert (done.returncode, done.stdout) == (1, b"")
    assert one_line(done.stderr).startswith("error: the zoo has no bundle 'nothing'; known are zoo:")
