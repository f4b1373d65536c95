"""Int8 heads as a user meets them: calibrate a run, export both heads, and let the device take the faster one."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.errors import ExportError, NotABundleError, RunFormatError, SettingsError, VerificationError
from aecnn_deploy.exporters.export import export_run
from aecnn_deploy.exporters.int8_calibration import (
    CALIBRATION_FILE,
    calibrate_heads,
    calibrated_head,
    read_calibration,
)
from aecnn_deploy.exporters.onnx_options import OnnxOptions
from aecnn_deploy.models.run import Run, load_run
from aecnn_deploy.models.split import SplitDesign
from aecnn_deploy.planning.machine import this_machine
from aecnn_deploy.planning.profile_store import profile_folder, write_profile
from aecnn_deploy.planning.profiles import DeviceProfile, Machine, timing
from aecnn_deploy.runtimes.device_client import DeviceSettings, run_device
from aecnn_deploy.runtimes.head_choice import choose_head, profile_here
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.samples import verify_bundle
from tests.bundles import command, one_line, serving
from tests.in_process import command_here
from tests.int8_runs import many_photographs, network, run_of

NAME = "efficientnet_lite0"
FIRST, SECOND = f"{NAME}-l2-v4-u8", f"{NAME}-l1-v4-u6"  # short heads: finding ranges takes its time for each tensor
BOTH = ("fp32", "int8")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two variants, the first of them calibrated."""
    folder = tmp_path_factory.mktemp("int8")
    run = run_of(
        folder / "run",
        NAME,
        network(NAME, SplitDesign(split=2, planes=4, bits=8)),
        network(NAME, SplitDesign(split=1, planes=8, bits=6)),
    )
    calibrate_heads(run, many_photographs(10), variants=[FIRST])
    return run


@pytest.fixture(scope="module")
def bundle(calibrated: Run) -> Bundle:
    out = calibrated.path.with_name("bundle")
    export_run(calibrated, out, variants=[FIRST], head_precisions=BOTH)
    return open_bundle(out)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_calibration_says_what_it_found_and_stays_in_the_run(calibrated: Run) -> None:
    record = read_calibration(calibrated.path)
    assert record.variants.keys() == {FIRST}
    item = record.variants[FIRST]
    assert item.images == 10
    assert item.mean_difference.keys() == {"minmax", "percentile", "entropy"}
    assert item.mean_difference[item.method] == min(item.mean_difference.values()) < 0.02 * 255
    assert item.agreement >= 0.75
    assert min(item.fp32_ms, item.int8_ms) > 0
    assert (calibrated.path / "run.json").is_file()


def test_the_command_calibrates_a_folder_of_photographs(calibrated: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(calibrated.path, run)
    for index, frame in enumerate(many_photographs(4)):
        (tmp_path / "photos" / str(index % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(tmp_path / "photos" / str(index % 2) / f"{index}.png")
    (run / "data.json").write_text(json.dumps({"train": ["0/0.png", "1/1.png", "1/3.png"], "test": ["0/2.png"]}))
    words = ("calibrate", "ranges", str(run), "--data", str(tmp_path / "photos"), "--variant", SECOND)
    done = command_here(*words, "--method", "minmax", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (row,) = document["variants"]
    assert (document["images"], row["variant"], row["method"]) == (3, SECOND, "minmax")  # of the test split none
    assert row["default"] == ("int8" if row["int8_ms"] < row["fp32_ms"] else "fp32")
    assert read_calibration(run).variants.keys() == {FIRST, SECOND}


def test_both_heads_stand_in_the_bundle_and_the_faster_is_the_default(calibrated: Run, bundle: Bundle) -> None:
    spec = bundle.manifest.variant(FIRST)
    assert spec.heads == {"fp32": f"heads/{FIRST}.onnx", "int8": f"heads/{FIRST}.int8.onnx"}
    item = read_calibration(calibrated.path).variants[FIRST]
    assert spec.head == spec.heads[item.faster]
    measured = bundle.manifest.measurements["int8"][FIRST]
    assert measured["agreement"] == item.agreement
    verified = bundle.manifest.measurements["verification"][spec.heads["int8"]]
    assert verified["precision"] == "int8"
    assert 0 < verified["mean_difference"] < verified["tolerance"]
    done = command("bundle", "show", str(bundle.path), "--json")
    (variant,) = json.loads(done.stdout)["variants"]
    assert variant["heads"] == spec.heads


def test_an_int8_head_alone_is_the_variants_head_and_the_same_run_gives_the_same_bytes_again(
    calibrated: Run, bundle: Bundle, tmp_path: Path
) -> None:
    export_run(calibrated, tmp_path / "b", variants=[FIRST], head_precisions=["int8"])
    opened = open_bundle(tmp_path / "b")
    spec = opened.manifest.variant(FIRST)
    assert spec.head_files == {"int8": spec.head}
    files, before = opened.manifest.files, bundle.manifest.files
    assert before[bundle.manifest.variant(FIRST).heads["int8"]].sha256 == files[spec.head].sha256
    assert {name for name in files if name.endswith(".onnx")} - before.keys() <= {spec.head}
    assert all(before[name] == files[name] for name in files if name.endswith(".onnx") and name in before)
    assert {check.verdict for check in verify_bundle(opened)} == {"ok"}
    with pytest.raises(SettingsError, match=r"has no fp32 head of .*, it has int8; export it again with --head-pre"):
        choose_head(opened, spec, "fp32")


def test_deep_verification_knows_the_planes_to_the_bit(bundle: Bundle, tmp_path: Path) -> None:
    name = bundle.manifest.variant(FIRST).heads["int8"]
    checks = {check.file: check for check in verify_bundle(bundle)}
    assert {check.verdict for check in checks.values()} == {"ok"}
    verified = checks[name].verified
    assert verified is not None
    assert (verified.largest_difference, verified.reference) == (0, "int8 head")
    samples = bundle.manifest.samples
    assert samples is not None
    broken = tmp_path / "broken"
    with BundleWriter(broken) as writer:
        for file in bundle.manifest.files:
            writer.copy(bundle.file(file), file)
        path = writer.path(samples.int8[FIRST])
        planes = np.load(path)
        planes[0, 0, 0, 0] ^= 1
        np.save(path, planes)
        writer.commit_changed(bundle.manifest, variants=bundle.manifest.variants)
    failed = [check for check in verify_bundle(open_bundle(broken)) if check.verdict != "ok"]
    assert [check.file for check in failed] == [name]
    assert "share of values that differ" in str(failed[0].reason)


def test_a_device_runs_the_head_that_it_is_told_to(bundle: Bundle, tmp_path: Path) -> None:
    for index, frame in enumerate(many_photographs(3)):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    spec = bundle.manifest.variant(FIRST)
    with serving(bundle.path) as edge:
        reports = {
            head: run_device(bundle, DeviceSettings(edge.url, head=head), str(tmp_path), stdin=io.BytesIO())
            for head in (*BOTH, "auto")
        }
        done = command(
            "run-device", str(bundle.path), "--edge", edge.url, "--source", str(tmp_path), "--json", "--head", "int8"
        )
    for head in BOTH:
        assert {image.head for image in reports[head].images} == {head}
    default = next(precision for precision, file in spec.heads.items() if file == spec.head)
    assert {image.head for image in reports["auto"].images} == {default}
    fp32, int8 = ([image.index for image in reports[head].images] for head in BOTH)
    assert sum(a == b for a, b in zip(fp32, int8, strict=True)) >= 2
    document = json.loads(done.stdout)
    assert [image["index"] for image in document["images"]] == int8
    assert {image["head"] for image in document["images"]} == {"int8"}


@pytest.fixture
def nothing_kept(bundle: Bundle) -> Iterator[None]:
    """Profiles stand beside the bundle, which all tests here share."""
    yield
    shutil.rmtree(profile_folder(bundle), ignore_errors=True)


def profile(bundle: Bundle, **times: float) -> DeviceProfile:
    return DeviceProfile(
        bundle_id=bundle.id,
        machine=this_machine(),
        versions={"onnxruntime": ort_version()},
        measured_at="2026-01-01T00:00:00Z",
        took_s=1.0,
        threads=0,
        images=0,
        heads={FIRST: {precision: timing([ms]) for precision, ms in times.items()}},
    )


def ort_version() -> str:
    import onnxruntime

    return onnxruntime.__version__


@pytest.mark.usefixtures("nothing_kept")
def test_a_device_takes_the_head_that_was_faster_on_it(bundle: Bundle) -> None:
    spec = bundle.manifest.variant(FIRST)
    for times, faster in (({"fp32": 2.0, "int8": 1.0}, "int8"), ({"fp32": 1.0, "int8": 2.0}, "fp32")):
        write_profile(bundle, profile(bundle, **times))
        assert choose_head(bundle, spec) == (faster, spec.heads[faster])
        assert choose_head(bundle, spec, "fp32")[0] == "fp32"  # what is named wins
    default = next(precision for precision, file in spec.heads.items() if file == spec.head)
    assert choose_head(bundle, spec, threads=3)[0] == default  # timed with other threads: not known


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize(
    "change",
    [
        {"machine": Machine("another processor", this_machine().host)},
        {"machine": Machine(this_machine().processor, "another host")},
        {"versions": {"onnxruntime": "0.1"}},
        {"format": 9},
        {"bundle_id": "0" * 64},
    ],
)
def test_a_profile_of_something_else_is_not_believed(
    bundle: Bundle, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    slow = "fp32" if bundle.manifest.variant(FIRST).head.endswith("int8.onnx") else "int8"
    path = write_profile(bundle, profile(bundle, **dict.fromkeys(BOTH, 9.0) | {slow: 1.0}))
    assert choose_head(bundle, bundle.manifest.variant(FIRST))[0] == slow
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(profile(bundle, **{slow: 1.0}), **change)))
    assert profile_here(bundle, 0) is None
    assert choose_head(bundle, bundle.manifest.variant(FIRST))[0] != slow
    path.write_bytes(b"{")
    caplog.clear()
    assert choose_head(bundle, bundle.manifest.variant(FIRST))[0] != slow
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{path} is no profile" in caplog.text


@pytest.mark.usefixtures("nothing_kept")
def test_calibrate_device_times_both_heads_and_says_which_is_taken(bundle: Bundle) -> None:
    words = ("calibrate", "device", str(bundle.path), "--threads", "1", "--no-layers")
    done = command(*words, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (row,) = document["variants"]
    assert row["head_ms"].keys() == set(BOTH)
    assert row["head"] == min(row["head_ms"], key=row["head_ms"].__getitem__)
    assert Path(document["profile"]).parent == profile_folder(bundle)
    kept = profile_here(bundle, 1)
    assert kept is not None
    assert {precision: each.p50_ms for precision, each in kept.heads[FIRST].items()} == row["head_ms"]
    assert choose_head(bundle, bundle.manifest.variant(FIRST), threads=1)[0] == row["head"]


@pytest.mark.parametrize(
    ("frames", "method", "variants", "why"),
    [
        (
            np.zeros((0, 224, 224, 3), np.uint8),
            "auto",
            None,
            r"needs uint8 frames \(N, 224, 224, 3\) with N at least 1",
        ),
        (np.zeros((2, 96, 96, 3), np.uint8), "auto", None, r"got uint8 \(2, 96, 96, 3\); take training photographs"),
        (np.zeros((2, 224, 224, 3), np.float32), "auto", None, "got float32"),
        (
            np.zeros((2, 224, 224, 3), np.uint8),
            "best",
            None,
            "no calibration method 'best'; choose one of auto, minmax",
        ),
        (np.zeros((2, 224, 224, 3), np.uint8), "auto", ["x"], f"has no variant 'x'; it has {FIRST}"),
    ],
)
def test_a_calibration_set_of_the_wrong_kind_is_refused(
    calibrated: Run, frames: np.ndarray[Any, Any], method: str, variants: list[str] | None, why: str
) -> None:
    before = (calibrated.path / CALIBRATION_FILE).read_bytes()
    with pytest.raises(SettingsError, match=why):
        calibrate_heads(calibrated, frames, method=method, variants=variants)
    assert (calibrated.path / CALIBRATION_FILE).read_bytes() == before


def test_what_was_not_calibrated_is_not_exported(calibrated: Run, tmp_path: Path) -> None:
    with pytest.raises(RunFormatError, match=f"{SECOND} is not calibrated for an int8 head; run: aecnn-deploy cal"):
        export_run(calibrated, tmp_path / "b", head_precisions=BOTH)
    bare = tmp_path / "bare"
    shutil.copytree(calibrated.path, bare)
    (bare / CALIBRATION_FILE).unlink()
    done = command_here("export", str(bare), "--out", str(tmp_path / "b"), "--head-precision", "int8")
    assert done.returncode == 1
    assert "is not calibrated for int8 heads; run: aecnn-deploy calibrate ranges" in one_line(done.stderr)
    (bare / CALIBRATION_FILE).write_text('{"format": 1}')
    with pytest.raises(RunFormatError, match=r"int8.json is not valid: .*; run: aecnn-deploy calibrate ranges"):
        export_run(load_run(bare), tmp_path / "b", head_precisions=BOTH)
    (bare / CALIBRATION_FILE).write_text('{"format": 2, "variants": {}}')
    with pytest.raises(RunFormatError, match="has format 2, this version reads 1"):
        export_run(load_run(bare), tmp_path / "b", head_precisions=BOTH)
    with pytest.raises(SettingsError, match="no head precision 'fp8'; choose one or more of fp32, int8"):
        export_run(calibrated, tmp_path / "b", head_precisions=["fp8"])
    assert not (tmp_path / "b").exists()


def test_a_calibration_of_other_weights_is_refused(calibrated: Run, tmp_path: Path) -> None:
    other = run_of(tmp_path / "run", NAME, network(NAME, SplitDesign(split=2, planes=4, bits=8), low=0.3))
    shutil.copy(calibrated.path / CALIBRATION_FILE, other.path)
    with pytest.raises(ExportError, match=f"{FIRST} was calibrated with other weights"):
        export_run(other, tmp_path / "b", head_precisions=["int8"])
    assert not (tmp_path / "b").exists()


def test_ranges_of_something_else_make_no_head(calibrated: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(calibrated.path, run)
    record = read_calibration(run)
    narrow = {name: (low / 30, high / 30) for name, (low, high) in record.variants[FIRST].ranges.items()}
    other = msgspec.structs.replace(record.variants[FIRST], ranges=narrow)
    content = msgspec.json.encode(msgspec.structs.replace(record, variants={FIRST: other}))
    (run / CALIBRATION_FILE).write_bytes(content)
    with pytest.raises(VerificationError, match=r"int8.onnx differs .* mean difference .*; calibrate ranges again, on"):
        export_run(load_run(run), tmp_path / "b", variants=[FIRST], head_precisions=["int8"])
    assert not (tmp_path / "b").exists()


def test_a_manifest_whose_heads_contradict_each_other_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    spec = bundle.manifest.variant(FIRST)
    for number, heads in enumerate(({"int8": spec.heads["int8"]}, {"fp64": spec.heads["fp32"]})):
        with BundleWriter(tmp_path / str(number)) as writer:
            for file in bundle.manifest.files:
                writer.copy(bundle.file(file), file)
            head = spec.heads["fp32"]
            writer.commit_changed(bundle.manifest, variants=(msgspec.structs.replace(spec, heads=heads, head=head),))
        with pytest.raises(NotABundleError, match="has the head"):
            open_bundle(tmp_path / str(number))


def test_the_two_heads_see_nearly_the_same(bundle: Bundle) -> None:
    frames, planes = many_photographs(6), []
    for precision in BOTH:
        with OnnxRuntimeRunner(bundle.file(bundle.manifest.variant(FIRST).heads[precision]), variant=FIRST) as head:
            planes.append(head.infer(frames).astype(int))
    assert 0 < np.abs(planes[0] - planes[1]).mean() < 0.02 * 255


def test_the_options_of_onnx_files_hold_for_int8_heads_too(calibrated: Run, tmp_path: Path) -> None:
    options = OnnxOptions(opset=17, ir_version=8, batch=1, simplify=True)
    export_run(calibrated, tmp_path / "b", variants=[FIRST], head_precisions=["int8"], onnx=options)
    opened = open_bundle(tmp_path / "b")
    model = onnx.load(str(opened.file(opened.manifest.variant(FIRST).head)))
    assert ({item.version for item in model.opset_import}, model.ir_version) == ({17}, 8)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert {check.verdict for check in verify_bundle(opened)} == {"ok"}
    record, newest = read_calibration(calibrated.path).variants[FIRST], tmp_path / "newest.onnx"
    calibrated_head(calibrated.variants[0], record, newest, {}, OnnxOptions(opset=21, ir_version=10))
    model = onnx.load(str(newest))
    assert {item.version for item in model.opset_import} == {21}
