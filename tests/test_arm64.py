"""Every coder on a Raspberry Pi's processor: what one machine codes the other decodes to the same bits.

AECNN_ARM64_PYTHON names a Python of an arm64 system that starts here, with numpy, zstandard, msgspec, pyjpegls and
pillow (an emulated one serves: qemu-user); without it the tests are skipped.
"""

import os
import subprocess
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from aecnn_deploy.codec import CODERS, DELTA_CODERS, DeltaEncoder, PlaneDecoder, PlaneEncoder, coder_names
from tests.planes import DICTIONARY

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
