"""Engines that an edge builds for itself: really built for Turing, kept, checked, and shared by starts at one time."""

import json
import logging
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from aecnn_deploy.bundle.manifest import ONNX_INT8
from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import AecnnError, ExportError, RunnerError, SettingsError
from aecnn_deploy.exporters.bundle_engines import add_engines
from aecnn_deploy.exporters.edge_engines import EdgeEngines
from aecnn_deploy.exporters.engines import EngineRequest, Target
from aecnn_deploy.runtimes import edge_runners
from aecnn_deploy.runtimes.edge_runners import BuiltEngine, RunnerOptions, activate_tail
from aecnn_deploy.runtimes.engine_header import read_engine_header
from aecnn_deploy.runtimes.tensorrt_runner import check_engine
from tests.bundles import TinyVariant, environment, make_bundle, one_line, run_directly
from tests.in_process import command_here
from tests.small_models import usual_small

rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
HAS_GPU = Path("/dev/nvidiactl").exists()
PRODUCT = "tensorrt-rtx"


class Start:
    """One start of an edge that has, so it is told, a GPU of ``architecture``."""

    def __init__(self, root: Path, architecture: str = "sm75") -> None:
        self._architecture = architecture
        self.engines = EdgeEngines(root, find=self._find)

    def _find(self, request: EngineRequest) -> tuple[Target, ...]:
        return tuple(Target(PRODUCT, self._architecture, precision=precision) for precision in request.precisions)

    def engine(self, bundle: Bundle, precision: str | None = None) -> BuiltEngine:
        return self.engines.engine(bundle, bundle.manifest.variants[0], PRODUCT, precision)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    make_bundle(tmp_path / "bundle", variants=(TinyVariant("tiny", 4, 8, 8),))
    return open_bundle(tmp_path / "bundle")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "aecnn_deploy.edge")
    return caplog


def state(path: Path) -> tuple[int, int, bytes]:
    return path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()


def content(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_the_first_start_builds_from_the_bundle_and_says_how_long_it_took(
    bundle: Bundle, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    built = Start(tmp_path / "cache").engine(bundle)
    assert built.path == tmp_path / "cache" / bundle.id / f"{PRODUCT}-{rtx.__version__}-sm75" / "tiny.fp16.engine"
    assert content(built.path.parent) == {"tiny.fp16.engine", "tiny.fp16.engine.json"}
    assert read_engine_header(built.path).architectures == ("sm75",)
    check_engine(built.path, built.spec, product=PRODUCT, version=rtx.__version__, architecture="sm75", gpu="")
    assert (built.target, built.spec.precision, built.spec.batch) == ("tensorrt-rtx-sm75", "fp16", (1, 1, 8))
    began, ended = log.messages
    assert began == f"building tiny.fp16.engine for sm75 with {PRODUCT} {rtx.__version__}: this may take minutes"
    assert ended.startswith("built tiny.fp16.engine in ")
    assert ended.endswith(f" s, kept in {built.path.parent}")


def test_the_next_start_takes_what_is_kept_and_touches_nothing(
    bundle: Bundle, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    first = Start(tmp_path / "cache").engine(bundle)
    files = sorted(first.path.parent.iterdir())
    before = [state(file) for file in files]
    log.clear()
    assert Start(tmp_path / "cache").engine(bundle) == first
    assert [state(file) for file in files] == before
    assert log.messages == [f"tiny.fp16.engine from {first.path.parent}"]


def test_another_gpu_precision_or_bundle_has_an_engine_of_its_own(bundle: Bundle, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    quantised = open_bundle(usual_small(tails=("int8",)))
    built = [
        Start(cache).engine(bundle),
        Start(cache, "sm86").engine(bundle),
        Start(cache).engine(quantised),
        Start(cache).engine(quantised, "int8"),
    ]
    assert len({item.path for item in built}) == 4
    assert [item.target for item in built[1:]] == ["tensorrt-rtx-sm86", "tensorrt-rtx-sm75", "tensorrt-rtx-sm75-int8"]
    assert read_engine_header(built[1].path).architectures == ("sm86",)
    assert built[2].path.parent == built[3].path.parent
    assert content(cache) == {bundle.id, quantised.id}


def truncate(engine: Path) -> None:
    engine.write_bytes(engine.read_bytes()[:-1])


def flip(engine: Path) -> None:
    raw = bytearray(engine.read_bytes())
    raw[len(raw) // 2] ^= 1
    engine.write_bytes(raw)


def drop(engine: Path) -> None:
    engine.unlink()


def record(engine: Path) -> Path:
    return engine.with_name(f"{engine.name}.json")


def drop_record(engine: Path) -> None:
    record(engine).unlink()


def spoil_record(engine: Path) -> None:
    record(engine).write_bytes(b'{"engine": \xff')


def claim_another_version(engine: Path) -> None:
    document = json.loads(record(engine).read_bytes())
    document["engine"]["version"] = "1.0.0.1"
    record(engine).write_text(json.dumps(document))


@pytest.mark.parametrize("harm", [truncate, flip, drop, drop_record, spoil_record, claim_another_version])
def test_an_engine_that_is_not_as_it_was_built_is_built_anew(
    bundle: Bundle, tmp_path: Path, harm: object, log: pytest.LogCaptureFixture
) -> None:
    first = Start(tmp_path / "cache").engine(bundle)
    assert callable(harm)
    harm(first.path)
    log.clear()
    again = Start(tmp_path / "cache").engine(bundle)
    assert again == first
    assert any(message.startswith("building") for message in log.messages)
    log.clear()
    Start(tmp_path / "cache").engine(bundle)
    assert log.messages == [f"tiny.fp16.engine from {first.path.parent}"]


def test_a_cancelled_build_leaves_nothing_and_the_next_start_builds(bundle: Bundle, tmp_path: Path) -> None:
    start = Start(tmp_path / "cache")
    start.engines.cancel()
    with pytest.raises(ExportError, match="it was cancelled"):
        start.engine(bundle)
    (folder,) = (tmp_path / "cache" / bundle.id).iterdir()
    assert content(folder) == set()
    assert Start(tmp_path / "cache").engine(bundle).path.is_file()


def test_what_a_killed_start_left_is_cleared_away(bundle: Bundle, tmp_path: Path) -> None:
    """Killed within the build: the log's line stands between the lock and TensorRT."""
    script = (
        "import logging, os, signal, sys, pathlib, tempfile\n"
        "from aecnn_deploy.bundle.reader import open_bundle\n"
        "from aecnn_deploy.exporters import edge_engines\n"
        "from aecnn_deploy.exporters.engines import Target\n"
        "def note(what):\n"
        "    return lambda phase: os.kill(os.getpid(), signal.SIGKILL)\n"
        "edge_engines._Notes = note\n"
        "bundle = open_bundle(pathlib.Path(sys.argv[1]))\n"
        "find = lambda request: (Target('tensorrt-rtx', 'sm75'),)\n"
        "engines = edge_engines.EdgeEngines(pathlib.Path(sys.argv[2]), find=find)\n"
        "engines.engine(bundle, bundle.manifest.variants[0], 'tensorrt-rtx', None)\n"
    )
    arguments = [sys.executable, "-c", script, str(bundle.path), str(tmp_path / "cache")]
    done = subprocess.run(arguments, check=False, env=environment(), timeout=60)
    assert done.returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "cache" / bundle.id).iterdir()
    assert len(list(folder.glob(".partial-*"))) == 1
    assert not list(folder.glob("*.engine"))
    built = Start(tmp_path / "cache").engine(bundle)
    assert content(folder) == {built.path.name, record(built.path).name}


def test_of_starts_at_the_same_time_one_builds_and_the_others_wait(
    bundle: Bundle, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda _: Start(tmp_path / "cache").engine(bundle), range(4)))
    assert len({item.path for item in built}) == 1
    assert sum(message.startswith("building ") for message in log.messages) == 1
    assert sum("waiting for it" in message for message in log.messages) >= 1


def test_a_precision_whose_tail_the_bundle_lacks_names_the_command_that_adds_it(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds no int8 tail of tiny; add one with: aecnn-deploy bundle engines"):
        Start(tmp_path / "cache").engine(bundle, "int8")


def test_a_cache_that_cannot_be_written_says_so(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(ExportError, match=r"cannot keep engines in .*; set XDG_CACHE_HOME"):
        Start(tmp_path / "cache").engine(bundle)


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
class TestChoice:
    """Which engine an edge takes. Nothing can be run here: a machine with a GPU is feigned up to that point."""

    @pytest.fixture(autouse=True)
    def feign_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(edge_runners, "usable", lambda product: None if product == PRODUCT else "not installed")

    def test_auto_builds_and_falls_back_to_onnx_runtime_with_the_reason(
        self, bundle: Bundle, tmp_path: Path, log: pytest.LogCaptureFixture
    ) -> None:
        variant = bundle.manifest.variants[0]
        tail = activate_tail(bundle, variant, RunnerOptions(engines=Start(tmp_path / "cache").engines))
        assert tail.target == "onnxruntime"
        assert len(list((tmp_path / "cache").rglob("*.engine"))) == 1
        assert "pycuda" in log.messages[-1]
        assert log.messages[-1].startswith("tiny: not on tensorrt-rtx: ")
        frame = np.zeros((64, 64, 3), np.uint8)
        assert run_directly(bundle, frame, "tiny").shape == tail.runner.output_shape

    def test_auto_falls_back_when_nothing_can_be_built(
        self, bundle: Bundle, tmp_path: Path, log: pytest.LogCaptureFixture
    ) -> None:
        options = RunnerOptions(precision="int8", engines=Start(tmp_path / "cache").engines)
        assert activate_tail(bundle, bundle.manifest.variants[0], options).target == "onnxruntime"
        assert "holds no int8 tail of tiny" in log.messages[-1]

    def test_a_runner_that_was_named_ends_the_start(self, bundle: Bundle, tmp_path: Path) -> None:
        options = RunnerOptions(PRODUCT, precision="int8", engines=Start(tmp_path / "cache").engines)
        with pytest.raises(ExportError, match="holds no int8 tail"):
            activate_tail(bundle, bundle.manifest.variants[0], options)

    def test_without_a_builder_the_bundle_has_to_hold_the_engine(self, bundle: Bundle) -> None:
        with pytest.raises(RunnerError, match="holds no int8 tensorrt-rtx engine for tiny"):
            activate_tail(bundle, bundle.manifest.variants[0], RunnerOptions(PRODUCT, precision="int8"))

    def test_the_bundles_own_engine_comes_first_fp16_before_int8_unless_told_otherwise(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without pycuda none activates: which one is tried tells."""
        request = EngineRequest(PRODUCT, ("sm75",), precisions=("int8", "fp16"))
        add_engines(open_bundle(usual_small(tails=("int8",))), tmp_path / "bundle", request)
        bundle = open_bundle(tmp_path / "bundle")
        (variant,) = bundle.manifest.variants
        assert ONNX_INT8 in variant.tails
        tried: list[str] = []
        made = edge_runners.engine_of
        monkeypatch.setattr(
            edge_runners, "engine_of", lambda path, spec: tried.append(spec.precision) or made(path, spec)
        )
        for precision in (None, "int8"):
            engines = Start(tmp_path / "cache").engines
            with pytest.raises(AecnnError, match="pycuda"):
                activate_tail(bundle, variant, RunnerOptions(PRODUCT, precision=precision, engines=engines))
        assert tried == ["fp16", "int8"]
        assert not (tmp_path / "cache").exists()


def test_options_that_make_no_sense_are_refused_when_made() -> None:
    with pytest.raises(SettingsError, match="'fp8'; choose one of fp16, int8, fp32"):
        RunnerOptions(precision="fp8")
    with pytest.raises(SettingsError, match="not with the runner onnxruntime"):
        RunnerOptions("onnxruntime", precision="int8")


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_serve_edge_without_a_gpu_names_why_and_with_no_build_what_is_missing(bundle: Bundle) -> None:
    done = command_here("serve-edge", str(bundle.path), "--runner", PRODUCT, "--port", "0")
    assert done.returncode == 1
    assert "the runner tensorrt-rtx cannot run here: " in one_line(done.stderr)
    done = command_here("serve-edge", str(bundle.path), "--runner", PRODUCT, "--port", "0", "--no-build")
    assert done.returncode == 1
    assert "holds no tensorrt-rtx engine for tiny" in one_line(done.stderr)
    done = command_here("serve-edge", str(bundle.path), "--precision", "fp8", "--port", "0")
    assert done.returncode == 2
    assert "choose one of fp16, int8, fp32" in one_line(done.stderr)


def test_a_signal_ends_a_build_and_the_start_with_it(bundle: Bundle) -> None:
    """The build is one that ends only when it is told to."""
    script = (
        "import pathlib, sys, threading\n"
        "from aecnn_deploy.bundle.reader import open_bundle\n"
        "from aecnn_deploy.errors import ExportError\n"
        "from aecnn_deploy.runtimes import edge_runners\n"
        "from aecnn_deploy.runtimes.edge_server import serve\n"
        "from aecnn_deploy.runtimes.edge_settings import EdgeSettings\n"
        "edge_runners.usable = lambda product: None\n"
        "class Source:\n"
        "    def __init__(self): self.told = threading.Event()\n"
        "    def cancel(self): self.told.set()\n"
        "    def engine(self, *request):\n"
        "        print('building', flush=True)\n"
        "        self.told.wait(60)\n"
        "        raise ExportError('cancelled')\n"
        "options = edge_runners.RunnerOptions('tensorrt-rtx', engines=Source())\n"
        "settings = EdgeSettings(port=0, runner=options)\n"
        "end = serve(open_bundle(pathlib.Path(sys.argv[1])), settings, lambda ready: None)\n"
        "print(end.forced, end.models_idle)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(bundle.path)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "building\n"
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, rest) == (0, "False True\n")


def test_the_record_holds_the_engines_spec_and_hash(bundle: Bundle, tmp_path: Path) -> None:
    built = Start(tmp_path / "cache").engine(bundle)
    document = json.loads(record(built.path).read_bytes())
    assert document["engine"] == json.loads(msgspec.json.encode(built.spec))
    assert len(document["sha256"]) == 64
