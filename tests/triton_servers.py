"""A real Triton server (nvidia-pytriton's) over a model repository, in a process of its own, on loopback."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bundles import environment

PYTHON = os.environ.get("AECNN_TRITON_PYTHON", "")
BACKEND = Path(__file__).with_name("triton_onnxruntime.py")

_PLACES = """
import json, os, pathlib, sys, onnxruntime, pytriton
print(json.dumps({
    "home": str(pathlib.Path(pytriton.__file__).parent / "tritonserver"),
    "site": str(pathlib.Path(pytriton.__file__).parents[1]),
    "libraries": os.environ.get("LD_LIBRARY_PATH", ""),
    "version": "{}.{}".format(*sys.version_info),
}))
"""


@dataclass(frozen=True)
class Installed:
    """Where a server and what it needs lie."""

    program: Path
    backends: Path
    libraries: str


@dataclass(frozen=True)
class Triton:
    """A server that is ready."""

    url: str  # host:port of its HTTP
    log: Path

    def batches(self, model: str) -> list[int]:
        """Sizes of the batches that ``model`` ran, in order."""
        found = re.findall(rf"^{re.escape(model)} ran \S+ \((\d+),", self.log.read_text(), re.MULTILINE)
        return [int(size) for size in found]


def install(folder: Path) -> Installed:
    """Put a backend folder together in ``folder``: Triton's Python backend, and the stand-in for ``onnxruntime``."""
    asked = subprocess.run([PYTHON, "-c", _PLACES], capture_output=True, text=True, check=True, timeout=60)
    places = json.loads(asked.stdout)
    home, backends = Path(places["home"]), folder / "backends"
    shutil.copytree(home / "backends" / "python", backends / "python")  # Triton follows no link out of a backend
    stub = home / "python_backend_stubs" / places["version"] / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    (backends / "onnxruntime").mkdir()
    path = f"import sys; sys.path.insert(0, {places['site']!r})\n"  # Triton's Python knows no virtual environment
    (backends / "onnxruntime" / "model.py").write_text(path + BACKEND.read_text())
    libraries = f"{places['site']}/nvidia_pytriton.libs:{places['libraries']}".rstrip(":")
    return Installed(home / "bin" / "tritonserver", backends, libraries)


@contextmanager
def triton(installed: Installed, repository: Path, log: Path, *options: str) -> Iterator[Triton]:
    """Serve ``repository`` until the block ends. Raises AssertionError, with the log: it does not get ready."""
    port = _free_port()
    process = _start(installed, repository, log, "--http-address=127.0.0.1", f"--http-port={port}", *options)
    try:
        _wait(f"http://127.0.0.1:{port}/v2/health/ready", process, log)
        yield Triton(f"127.0.0.1:{port}", log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def refusal(installed: Installed, repository: Path, log: Path) -> str:
    """What a server says that does not start."""
    process = _start(installed, repository, log, "--allow-http=false")
    assert process.wait(60) != 0
    return log.read_text()


def _start(installed: Installed, repository: Path, log: Path, *options: str) -> "subprocess.Popen[bytes]":
    command = [installed.program, f"--model-repository={repository}", f"--backend-directory={installed.backends}"]
    command += ["--allow-grpc=false", "--allow-metrics=false", "--disable-auto-complete-config", *options]
    with log.open("wb") as stream:
        return subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment() | {"LD_LIBRARY_PATH": installed.libraries},
        )


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise AssertionError(f"the server is not ready within 60 s: {log.read_text()}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
