"""Starts and kills real Triton servers: serve.py of this folder in the Python that $AECNN_TRITON_PYTHON names."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from aecnn_deploy.bundle.reader import Bundle

PYTHON = os.environ.get("AECNN_TRITON_PYTHON")

_START_S = 90.0


@dataclass
class Served:
    """One model: an ONNX file, and how the server runs it. ``fails``: what it raises, if it does."""

    file: str
    parameters: dict[str, str] = field(default_factory=dict)
    instances: int = 1
    sleep_s: float = 0.0
    fails: str = ""


def served(bundle: Bundle, *, says_bundle: bool = True) -> dict[str, Served]:
    """All models of ``bundle``, as its repository would have them."""
    files = {spec.id: spec.tails["onnxruntime"] for spec in bundle.manifest.variants} | {"full": bundle.manifest.full}
    return {
        name: Served(
            str(bundle.file(file).resolve()),
            {"aecnn_bundle_id": bundle.id, "aecnn_variant": name} if says_bundle else {},
        )
        for name, file in files.items()
    }


class TritonProcess:
    """A server on ``port``, which may be killed and started again; ``log`` tells of its batches."""

    def __init__(self, folder: Path, port: int, http_port: int, models: dict[str, Served], max_batch: int = 8) -> None:
        self.url, self.log, self.models = f"triton://127.0.0.1:{port}", folder / "batches.log", models
        self._folder, self._port, self._http_port, self._max_batch = folder, port, http_port, max_batch
        self._ready, self._output = folder / "ready", folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._workspace = ""

    def start(self) -> None:
        """Start it and wait until every model is loaded."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it."""
        assert self._process is None
        assert PYTHON is not None
        self._workspace = tempfile.mkdtemp(prefix="tr")  # short: sockets' paths are in it
        plan = {
            "port": self._port,
            "http_port": self._http_port,
            "workspace": f"{self._workspace}/w",  # which it makes itself
            "log": str(self.log),
            "ready": str(self._ready),
            "max_batch": self._max_batch,
            "models": {name: asdict(model) for name, model in self.models.items()},
        }
        path = self._folder / "plan.json"
        path.write_text(json.dumps(plan))
        self._ready.unlink(missing_ok=True)
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [PYTHON, str(Path(__file__).with_name("serve.py")), str(path)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"},
            )

    def wait(self) -> None:
        """Until every model is loaded."""
        assert self._process is not None
        end = time.monotonic() + _START_S
        while not self._ready.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the server is not ready: {self._output.read_text()[-3000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to it and all that it started; what that leaves behind is removed."""
        if self._process is None:
            return
        family = _family(self._process.pid)
        left = {path for pid in family for path in _shared_memory(pid)}
        for number in (signal.SIGSTOP, signal.SIGKILL):  # all at the same time, as when a machine goes
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self._process.wait()
        self._process = None
        for path in left:
            path.unlink(missing_ok=True)
        shutil.rmtree(self._workspace, ignore_errors=True)

    def batches(self, model: str) -> list[tuple[int, int]]:
        """Of each batch of ``model`` its images, and how many ran when it began."""
        rows = (line.split() for line in self.log.read_text().splitlines())
        return [(int(images), int(running)) for name, images, running in rows if name == model]


def _family(pid: int) -> list[int]:
    """``pid`` and all its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def _shared_memory(pid: int) -> set[Path]:
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return set()
    return {Path(line.split()[5]) for line in maps.splitlines() if " /dev/shm/" in line}
