"""``bundle engines``: a finished bundle gets engines that are really built; what it had stays as it was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aecnn_deploy.bundle.manifest import ONNX_FP16, ONNX_INT8
from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.errors import BundleError
from aecnn_deploy.exporters.bundle_engines import add_engines
from aecnn_deploy.exporters.engines import EngineRequest
from aecnn_deploy.runtimes.engine_header import read_engine_header
from aecnn_deploy.runtimes.samples import verify_bundle
from tests.bundles import COMMAND, command, environment, make_bundle, make_photos, one_line
from tests.in_process import command_here
from tests.sampled_bundles import with_samples
from tests.small_models import SmallRun, export_small, usual_small

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


def test_engines_are_added_for_each_architecture_and_all_else_stays(tmp_path: Path) -> None:
    bundle = with_samples(tmp_path)
    done = command(
        "bundle", "engines", str(bundle), "--sm", "75", "--sm", "86", "--out", str(tmp_path / "new"), "--json"
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    old, new = open_bundle(bundle), open_bundle(tmp_path / "new")
    assert document["bundle_id"] == new.id != old.id
    names = ["tensorrt-rtx-sm75", "tensorrt-rtx-sm86"]
    assert document["engines"] == {spec.id: names for spec in old.manifest.variants}
    for name, entry in old.manifest.files.items():
        assert new.manifest.files[name] == entry
    for spec in new.manifest.variants:
        assert spec.tails[ONNX_FP16] == f"tails/{spec.id}.fp16.onnx"
        for target, architecture in zip(names, ("sm75", "sm86"), strict=True):
            header = read_engine_header(new.file(spec.engines[target].file))
            assert header.architectures == spec.engines[target].architectures == (architecture,)
            assert (spec.engines[target].precision, spec.engines[target].batch) == ("fp16", (1, 1, 8))
    assert "tensorrt-rtx" in new.manifest.tools
    checks = {check.file: check.verdict for check in verify_bundle(new)}
    assert sum(verdict == "ok" for verdict in checks.values()) == 7
    assert all(verdict == "ok" or file.endswith(".engine") for file, verdict in checks.items())


def test_more_engines_come_to_those_that_are_there_and_the_same_one_is_built_anew(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    first = add_engines(open_bundle(tmp_path / "bundle"), tmp_path / "one", EngineRequest("tensorrt-rtx", ("sm75",)))
    again = EngineRequest("tensorrt-rtx", ("sm75", "sm89"), (1, 2, 4))
    second = add_engines(open_bundle(tmp_path / "one"), tmp_path / "two.tar.zst", again)
    for spec in second.variants:
        assert sorted(spec.engines) == ["tensorrt-rtx-sm75", "tensorrt-rtx-sm89"]
        assert {engine.batch for engine in spec.engines.values()} == {(1, 2, 4)}
        half = spec.tails[ONNX_FP16]
        assert second.files[half] == first.files[half]  # made once
    assert open_bundle(tmp_path / "two.tar.zst").id == second.bundle_id


def test_engines_of_two_precisions_stand_side_by_side_each_from_its_own_tail(tmp_path: Path) -> None:
    request = EngineRequest("tensorrt-rtx", ("sm75",), (1, 2, 4), ("int8", "fp16"))
    add_engines(open_bundle(usual_small()), tmp_path / "new", request)
    new = open_bundle(tmp_path / "new")
    (spec,) = new.manifest.variants
    assert {name: engine.precision for name, engine in spec.engines.items()} == {
        "tensorrt-rtx-sm75": "fp16",
        "tensorrt-rtx-sm75-int8": "int8",
    }
    assert spec.tails.keys() == {"onnxruntime", ONNX_FP16, ONNX_INT8, *spec.engines}
    checks = {check.file: check.verdict for check in verify_bundle(new)}
    assert [checks[spec.tails[target]] for target in (ONNX_FP16, ONNX_INT8)] == ["ok", "ok"]


def test_photographs_calibrate_int8_where_a_bundle_keeps_no_samples_and_anew_where_it_has_a_tail(
    tmp_path: Path,
) -> None:
    export_small(SmallRun(), tmp_path / "bundle", samples=False)
    tails = []
    for given, made in (("bundle", "one"), ("one", "two")):
        make_photos(tmp_path / f"{made}-photos", seed=len(tails))
        options = ["--sm", "75", "--precision", "int8", "--images", str(tmp_path / f"{made}-photos")]
        options += ["--batch-min", "1", "--batch-opt", "2", "--batch-max", "4", "--workspace", "64"]
        done = command("bundle", "engines", str(tmp_path / given), *options, "--out", str(tmp_path / made))
        assert done.returncode == 0, done.stderr
        manifest = open_bundle(tmp_path / made).manifest
        (spec,) = manifest.variants
        assert {name: engine.batch for name, engine in spec.engines.items()} == {"tensorrt-rtx-sm75-int8": (1, 2, 4)}
        tails.append(manifest.files[spec.tails[ONNX_INT8]])
    assert tails[0] != tails[1]


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        (["--sm", "12"], 2, "does not build for 'sm12'; known: sm75"),
        (["--engine", "none"], 2, "--engine none builds nothing; choose tensorrt-rtx or tensorrt"),
        (["--engine", "openvino"], 2, "unknown --engine 'openvino'"),
        (["--engine", "tensorrt", "--sm", "75"], 2, "--sm goes with --engine tensorrt-rtx only"),
        (["--sm", "75", "--precision", "fp8"], 2, "no engine is built in 'fp8'; choose one of fp16, int8, fp32"),
        (["--sm", "75", "--precision", "fp32"], 2, "choose --precision fp16 or int8"),
        (["--sm", "75", "--precision", "int8"], 1, "give photographs by --images, or choose --precision fp16"),
        (["--sm", "75", "--images", "."], 2, "--images calibrates int8 engines; add --precision int8"),
        (["--sm", "75", "--batch-min", "2", "--batch-opt", "2"], 2, "an edge runs single images too"),
        (["--sm", "75", "--batch-opt", "9"], 2, "got (1, 9, 8)"),
        (["--sm", "75", "--timing-cache", "x"], 2, "does nothing for tensorrt-rtx"),
        (["--engine", "tensorrt", "--workspace", "0"], 2, "the workspace is 0 MiB"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_written(
    tmp_path: Path, options: list[str], status: int, why: str
) -> None:
    make_bundle(tmp_path / "bundle")
    done = command_here("bundle", "engines", str(tmp_path / "bundle"), "--out", str(tmp_path / "new"), *options)
    assert (done.returncode, done.stdout) == (status, b"")
    assert why in one_line(done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="--force"):
        add_engines(bundle, tmp_path / "bundle", EngineRequest("tensorrt-rtx", ("sm75",)))
    assert open_bundle(tmp_path / "bundle").id == bundle.id


def test_it_needs_no_torch(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    script = "import sys; sys.modules['torch'] = None; " + COMMAND[2]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            "bundle",
            "engines",
            tmp_path / "bundle",
            "--sm",
            "75",
            "--out",
            tmp_path / "new",
        ],
        capture_output=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert len(open_bundle(tmp_path / "new").manifest.variants[0].engines) == 1
