"""A Raspberry Pi's processor: coders exact to the bit, heads to a step, and the device half against an edge here.

AECNN_ARM64_PYTHON names a Python of an arm64 system that starts here, with this project's wheel and its extra "device"
(an emulated one serves: qemu-user); without it the tests are skipped. ARM_CPU in its environment names the processor
that an emulator plays: a Raspberry Pi 4's or 5's.
"""

import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.codec import CODERS, DELTA_CODERS, DeltaEncoder, PlaneDecoder, PlaneEncoder, coder_names
from aecnn_deploy.models.split import SplitDesign
from aecnn_deploy.runtimes.device_client import DeviceSettings, run_device
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.training.samples import write_sample_photographs
from aecnn_deploy.zoo import zoo_bundle
from tests.bundles import serving
from tests.int8_runs import STRIDED, int8_head_of, network, variant_of
from tests.planes import DICTIONARY
from tests.small_models import photographs

PYTHON = os.environ.get("AECNN_ARM64_PYTHON")
ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.arm64,
    pytest.mark.timeout(900),  # an emulated processor is some hundred times slower
    pytest.mark.skipif(not PYTHON, reason="AECNN_ARM64_PYTHON names no Python of an arm64 system"),
]

THERE = """
import platform
import sys
from types import ModuleType

import numpy as np

package = ModuleType("aecnn_deploy")  # the codec alone: a device needs no more for this
package.__path__ = [sys.argv[1]]
sys.modules["aecnn_deploy"] = package
from aecnn_deploy.codec import (
    CODERS, DELTA_CODERS, DeltaEncoder, PlaneDecoder, PlaneDictionary, PlaneEncoder, coder_names
)

assert platform.machine() == "aarch64", platform.machine()
given = dict(np.load(sys.argv[2]))
dictionary = PlaneDictionary("median", given["dictionary"].tobytes())
made = {}
for key in [key for key in given if key.startswith("planes-")]:
    planes, bits = given[key], int(key.split("-")[1])
    decoder = PlaneDecoder(planes.shape, bits, dictionary=dictionary)
    earlier = planes ^ (np.arange(planes.size).reshape(planes.shape) % 9 == 0)
    for name in (*CODERS, *DELTA_CODERS):
        payload = given[key.replace("planes", name, 1)].tobytes()
        decoded = decoder.decode(int(given[key.replace("planes", name, 1) + "-id"]), payload, lambda _: earlier)
        assert np.array_equal(decoded, planes), (key, name)
        if name in CODERS:
            encoded = PlaneEncoder(planes.shape, bits, coder=name, dictionary=dictionary).encode(planes)
        else:
            encoded = DeltaEncoder(planes.shape, bits, coder=name).encode(planes, earlier, 1)
        made[key.replace("planes", name, 1)] = np.frombuffer(encoded.payload, np.uint8)
        made[key.replace("planes", name, 1) + "-id"] = encoded.coder_id
np.savez(sys.argv[3], **made)
print(*coder_names())
"""


def coded(planes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The payloads of this machine, by coder and name of the planes, and the wire ids of what was sent."""
    made: dict[str, np.ndarray] = {}
    for key, values in planes.items():
        bits = int(key.split("-")[1])
        for name in (*CODERS, *DELTA_CODERS):
            if name in CODERS:
                encoded = PlaneEncoder(values.shape, bits, coder=name, dictionary=DICTIONARY).encode(values)
            else:
                encoded = DeltaEncoder(values.shape, bits, coder=name).encode(values, before(values), 1)
            made[key.replace("planes", name, 1)] = np.frombuffer(encoded.payload, np.uint8)
            made[key.replace("planes", name, 1) + "-id"] = np.asarray(encoded.coder_id)
    return made


def before(planes: np.ndarray) -> np.ndarray:
    """Planes of which every ninth value differs by one bit."""
    return planes ^ (np.arange(planes.size).reshape(planes.shape) % 9 == 0)


def test_every_coder_is_exact_between_this_machine_and_an_arm64_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    planes: dict[str, np.ndarray] = {}
    for bits in range(1, 9):
        y, x = np.mgrid[0:14, 0:14]
        wave = 0.5 + 0.4 * np.sin(x / 3 + np.arange(4)[:, None, None]) * np.cos(y / 4)
        smooth = (wave + rng.normal(0, 0.02, wave.shape)).clip(0, 1) * ((1 << bits) - 1)
        planes[f"planes-{bits}-smooth"] = smooth.astype(np.uint8)
        planes[f"planes-{bits}-noise"] = rng.integers(0, 1 << bits, (3, 5, 7), np.uint8)
    here = coded(planes)
    np.savez(tmp_path / "here.npz", **planes, **here, dictionary=np.frombuffer(DICTIONARY.content, np.uint8))
    assert PYTHON is not None
    script = tmp_path / "there.py"
    script.write_text(textwrap.dedent(THERE))
    done = subprocess.run(
        [PYTHON, str(script), str(ROOT / "aecnn_deploy"), str(tmp_path / "here.npz"), str(tmp_path / "there.npz")],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == list(coder_names()) == list(CODERS)
    there = dict(np.load(tmp_path / "there.npz"))
    assert there.keys() == here.keys()
    for key, values in planes.items():
        decoder = PlaneDecoder(values.shape, int(key.split("-")[1]), dictionary=DICTIONARY)
        for name in (*CODERS, *DELTA_CODERS):
            own = key.replace("planes", name, 1)
            payload = there[own].tobytes()
            decoded = decoder.decode(int(there[own + "-id"]), payload, lambda _, planes=values: before(planes))
            np.testing.assert_array_equal(decoded, values)
            if name in ("raw", "packed", "jpegls", "delta-jpegls"):  # zstd's bytes change with its release
                assert payload == here[own].tobytes(), own


HEADS = """
import platform
import sys
from pathlib import Path

import numpy as np

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.zoo import zoo_bundle

assert platform.machine() == "aarch64", platform.machine()
bundle = open_bundle(zoo_bundle("caltech101-lite0"))
files = sorted(Path(sys.argv[1]).iterdir())
frames = np.stack([read_frame(file, bundle.manifest.input, name=file.name) for file in files])
made = {"frames": frames}
for variant in bundle.manifest.variants:
    with OnnxRuntimeRunner(bundle.file(variant.head), threads=1, variant=variant.id) as head:
        made[variant.id] = np.concatenate([head.infer(frame[None]) for frame in frames])
np.savez(sys.argv[2], **made)
"""
CORES = ("cortex-a72", "cortex-a76")  # Raspberry Pi 4 and 5


def on_arm64(folder: Path, *words: str | Path, core: str = "cortex-a72") -> "subprocess.CompletedProcess[str]":
    assert PYTHON is not None
    environment = {"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1", "ARM_CPU": core, "HOME": str(folder)}
    return subprocess.run(
        [PYTHON, *words], capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=600
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two photographs and a home, where the wheel with its extra is installed on that Python."""
    folder = tmp_path_factory.mktemp("arm64")
    done = on_arm64(folder, "-c", "import aecnn_deploy.zoo, onnxruntime, websockets")
    assert done.returncode == 0, f"install this project's wheel with its extra 'device' there: {done.stderr[-500:]}"
    write_sample_photographs(folder / "all")
    (folder / "photos").mkdir()
    for file in sorted((folder / "all").iterdir())[::5]:
        with Image.open(file) as picture:
            picture.save((folder / "photos" / file.name).with_suffix(".jpg"), quality=92)
    return folder


@pytest.mark.parametrize("core", CORES)
def test_every_head_of_the_zoo_gives_the_planes_of_this_machine(installed: Path, core: str) -> None:
    (installed / "heads.py").write_text(HEADS)
    done = on_arm64(installed, "heads.py", "photos", f"{core}.npz", core=core)
    assert done.returncode == 0, done.stderr[-2000:]
    there = dict(np.load(installed / f"{core}.npz"))
    bundle = open_bundle(zoo_bundle("caltech101-lite0"))
    files = sorted((installed / "photos").iterdir())
    frames = np.stack([read_frame(file, bundle.manifest.input, name=file.name) for file in files])
    np.testing.assert_array_equal(there["frames"], frames)  # decoded and resized to the same bits
    for variant in bundle.manifest.variants:
        with OnnxRuntimeRunner(bundle.file(variant.head), threads=1) as head:
            here = np.concatenate([head.infer(frame[None]) for frame in frames])
        difference = np.abs(there[variant.id].astype(int) - here)
        assert difference.max() <= 1, variant.id
        assert (difference > 0).mean() <= 1e-3, variant.id


INTEGERS = """
import sys

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
frames = np.load(sys.argv[1])
made = {}
for path in sys.argv[3:]:
    head = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    made[path.rpartition("/")[2]] = np.concatenate([head.run(None, {"frames": frame[None]})[0] for frame in frames])
np.savez(sys.argv[2], **made)
"""
INT8_HEADS = {
    "projection": ("efficientnet_lite0", SplitDesign(split=5, planes=10, bits=8)),
    "skip": ("efficientnet_lite0", SplitDesign(split=4, planes=6, bits=8)),
    "strided": ("efficientnet_lite0", STRIDED),
    "stem": ("resnet18", SplitDesign(split=1, planes=16, bits=8)),
    "basic": ("resnet18", SplitDesign(split=2, planes=16, bits=8)),
    "bottleneck": ("resnet50", SplitDesign(split=2, planes=16, bits=8)),
}


def test_int8_heads_give_the_same_planes_to_the_bit_on_every_processor(installed: Path) -> None:
    """Here, on a Raspberry Pi 4's and 5's cores, and on an x86 processor that adds pairs of products in 16 bits."""
    assert PYTHON is not None
    (installed / "integers.py").write_text(INTEGERS)
    np.save(installed / "frames.npy", photographs(224)[:1])
    files = []
    for kind, (name, design) in INT8_HEADS.items():
        folder = installed / kind
        folder.mkdir()
        files.append(int8_head_of(variant_of(name, network(name, design)), folder).rename(folder / f"{kind}.onnx"))
    words = [str(installed / "integers.py"), str(installed / "frames.npy")]
    subprocess.run([sys.executable, *words, str(installed / "here.npz"), *map(str, files)], check=True)
    for core in CORES:
        done = on_arm64(installed, *words, f"{core}.int8.npz", *files, core=core)
        assert done.returncode == 0, done.stderr[-2000:]
    emulator = Path(PYTHON).parent / "bin" / "qemu-x86_64-static"
    python, packages = Path(sys.executable).resolve(), Path(onnxruntime.__file__).parents[1]
    done = subprocess.run(
        [emulator, "-cpu", "Haswell", python, *words, "haswell.int8.npz", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        cwd=installed,
        env={"PYTHONPATH": str(packages), "OPENBLAS_NUM_THREADS": "1", "PATH": os.environ["PATH"]},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    here = dict(np.load(installed / "here.npz"))
    assert here.keys() == {file.name for file in files}
    for other in (*CORES, "haswell"):
        there = np.load(installed / f"{other}.int8.npz")
        for name, planes in here.items():
            np.testing.assert_array_equal(there[name], planes, err_msg=f"{name} on {other}")


def test_doctor_finds_a_device_and_its_way_to_an_edge_here(installed: Path) -> None:
    name = "zoo:caltech101-lite0"
    with serving(open_bundle(zoo_bundle(name)).path) as edge:
        words = ("-m", "aecnn_deploy", "doctor", name, "--edge", edge.url, "--json")
        done = on_arm64(installed, *words)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["userland"]["found"] == "64-bit Python on aarch64"
    assert "NEON" in found["cpu"]["found"]
    assert {found[check]["level"] for check in ("onnxruntime", "onnxruntime run", "bundle", "edge service")} == {"ok"}
    assert found["edge session"]["found"].startswith("open: 4 of 4 variants")  # the ping of an emulator may be slow


def test_a_device_there_and_an_edge_here_name_what_two_halves_here_name(installed: Path) -> None:
    bundle = open_bundle(zoo_bundle("caltech101-lite0"))
    words = (
        "-m",
        "aecnn_deploy",
        "run-device",
        "zoo:caltech101-lite0",
        "--source",
        "photos",
        "--threads",
        "1",
        "--json",
    )
    with serving(bundle.path) as edge:
        done = on_arm64(installed, *words, "--edge", edge.url)
        assert done.returncode == 0, done.stderr[-2000:]
        here = run_device(bundle, DeviceSettings(edge.url), str(installed / "photos"), stdin=io.BytesIO())
    there = json.loads(done.stdout)
    assert there["bundle_id"] == here.bundle_id
    assert [image["label"] for image in there["images"]] == [image.label for image in here.images]
    for image, own in zip(there["images"], here.images, strict=True):
        assert image["score"] == pytest.approx(own.score, abs=0.02)
