"""The peers as processes: how each is started at its best, when it is ready, what it takes, and that it is gone after.

Every process that a peer starts counts as the peer's, daemons that leave their parent included: this process adopts
them (``PR_SET_CHILD_SUBREAPER``), so that whatever descends from it and was not there before the peer is the peer's.
"""

import ctypes
import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import psutil

from aecnn_deploy.errors import AecnnError
from benchmarks.peer_clients import Target, Way
from benchmarks.peer_model import PeerSettings

ROOT = Path(__file__).resolve().parents[1]
SPLIT, IMAGE, PLANES = "split", "image", "planes"  # names of what clients send

TRITON_PYTHON = "AECNN_TRITON_PYTHON"
_TRITON_NEEDS = ("pytriton", "onnxruntime", "zstandard", "jpeg_ls", "msgspec", "PIL")
# Beside what tools/triton_python.sh installs; what they need must not replace its numpy.
_TRITON_PACKAGES = ("zstandard", "pyjpegls", "msgspec", "pillow", "numpy<2")

# Triton's server runs models in a process that loads libpython, which a virtual environment leaves where it was.
_WITH_LIBPYTHON = """
import os, runpy, sysconfig
paths = [sysconfig.get_config_var("LIBDIR"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
runpy.run_module("benchmarks.peer_pytriton", run_name="__main__")
"""

_READY_S = 120.0
_END_S = 8.0
_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class PeerMissingError(AecnnError):
    """A peer cannot be run here; the message says what to do."""


class PeerFailedError(AecnnError):
    """A peer's process ended, did not get ready, or answers wrongly; the message says which."""


@dataclass(frozen=True, slots=True)
class Front:
    """One way to ask a peer: ``port_offset`` from the peer's own, ``body`` names the work's bodies."""

    way: Way
    path: str
    body: str
    port_offset: int = 0

    def target(self, port: int) -> Target:
        return Target(self.way, port + self.port_offset, self.path)


@dataclass(frozen=True, slots=True)
class Peer:
    """One server of the comparison. ``fronts``: by what is sent; of several the one that takes it least CPU is used.

    ``command`` gives the words to start it; it, and ``environment``, may raise PeerMissingError.
    """

    title: str
    fronts: Mapping[str, tuple[Front, ...]]
    ready_path: str
    command: Callable[[PeerSettings, Path | None], list[str]]
    environment: Callable[[Path], dict[str, str]] = field(default=lambda _: {})


def _ours(settings: PeerSettings, _: Path | None) -> list[str]:
    return [
        *(sys.executable, "-m", "aecnn_deploy", "serve-edge", str(settings.bundle), "--port", str(settings.port)),
        *("--runner", "onnxruntime", "--preload", settings.variant, "--threads", str(settings.threads)),
        *("--max-batch", str(settings.max_batch), "--batch-wait-ms", str(settings.batch_wait_ms)),
    ]


def _module(name: str, *needs: str) -> Callable[[PeerSettings, Path | None], list[str]]:
    def command(settings: PeerSettings, _: Path | None) -> list[str]:
        missing = [each for each in needs if find_spec(each) is None]
        if missing:
            raise PeerMissingError(f"no {', '.join(missing)} here; install the extras dev and scale")
        return [sys.executable, "-m", f"benchmarks.{name}", *settings.arguments()]

    return command


def _triton(settings: PeerSettings, python: Path | None) -> list[str]:
    if python is None:
        raise PeerMissingError(f"no Python for Triton; name one by --triton-python or ${TRITON_PYTHON}")
    # -P: the folder that it starts in has an aecnn_deploy without the layers that are installed beside it.
    return [str(python), "-P", "-c", _WITH_LIBPYTHON, *settings.arguments()]


def _ray_environment(folder: Path) -> dict[str, str]:
    """Ray Serve's own settings for throughput: HAProxy in front of replicas that speak HTTP themselves.

    Its front by default, a proxy actor, takes several milliseconds of CPU an image more.
    """
    return {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
    }


def _triton_environment(folder: Path) -> dict[str, str]:
    """Our package by its links: it is not installed in Triton's Python. What Triton writes goes with ``folder``."""
    paths = (str(ROOT / "build" / "linktree"), str(ROOT))
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTRITON_HOME": str(folder), "TMPDIR": str(folder)}


_TRITON_FRONTS = (Front("triton-http", "body", "tagged"), Front("triton-grpc", "body", "tagged", 1))
_HTTP_BODY = (Front("http", "/predict", "tagged"),)

PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "ours": Peer(
            "aecnn-deploy serve-edge",
            {SPLIT: (Front("stream", "", "tagged"),), IMAGE: (Front("classify", "/v1/classify", "file"),)},
            "/readyz",
            _ours,
        ),
        "triton": Peer(
            "Triton (nvidia-pytriton)",
            {SPLIT: _TRITON_FRONTS, IMAGE: _TRITON_FRONTS, PLANES: (Front("triton-http", "planes", "planes"),)},
            "/v2/models/planes/ready",
            _triton,
            _triton_environment,
        ),
        "litserve": Peer(
            "LitServe",
            {SPLIT: _HTTP_BODY, IMAGE: _HTTP_BODY},
            "/health",
            _module("peer_litserve", "litserve"),
        ),
        "ray": Peer(
            "Ray Serve",
            {SPLIT: _HTTP_BODY, IMAGE: _HTTP_BODY},
            "/-/healthz",
            _module("peer_ray", "ray"),
            _ray_environment,
        ),
    }
)


class RunningPeer:
    """A peer that serves."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, strangers: set[int], started_s: float) -> None:
        self.process, self.port, self.started_s = process, port, started_s
        self._strangers = strangers

    def cpu_s(self) -> float:
        """CPU seconds that all threads of its processes have taken, those that have ended left out.

        By the scheduler's count: that of a process is in steps of 10 ms, and a peer may have twenty processes.
        """
        total_ns = 0
        for process in descendants(self._strangers):
            for times in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
                with suppress(OSError, ValueError):  # it ended just now
                    total_ns += int(times.read_text().split()[0])
        return total_ns / 1e9

    def memory_bytes(self) -> int:
        """Of all its processes, what is theirs alone or their share of it."""
        total = 0
        for process in descendants(self._strangers):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        return total


@contextmanager
def running(peer: Peer, settings: PeerSettings, cores: set[int], triton_python: Path | None) -> Iterator[RunningPeer]:
    """``peer`` as fresh processes on ``cores`` and nowhere else; all of them are ended after.

    Raises PeerMissingError; PeerFailedError: it ended, or was not ready within two minutes.
    """
    adopt_orphans()
    strangers = {process.pid for process in descendants(set())}
    with tempfile.TemporaryDirectory(prefix="aecnn-peer-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        command = peer.command(settings, triton_python)
        environment = os.environ | {"OMP_NUM_THREADS": str(settings.threads)} | peer.environment(Path(folder))
        began_s = time.perf_counter()
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us, who then end it
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
        try:
            _await(f"http://127.0.0.1:{settings.port}{peer.ready_path}", process, log)
            yield RunningPeer(process, settings.port, strangers, time.perf_counter() - began_s)
        finally:
            _end(process, strangers)


def descendants(strangers: set[int]) -> list[psutil.Process]:
    """All processes below this one but ``strangers``."""
    return [each for each in psutil.Process().children(recursive=True) if each.pid not in strangers]


def adopt_orphans() -> None:
    """Processes below this one whose parent ends become this one's children. Raises OSError: not on Linux."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def free_port() -> int:
    """A port that is free, and the next one too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def find_triton_python(named: Path | None) -> Path:
    """A Python with nvidia-pytriton and what our decoders need: ``named``, $AECNN_TRITON_PYTHON, or one that is made.

    Raises PeerMissingError: there is none, or it lacks something.
    """
    given = named or (Path(os.environ[TRITON_PYTHON]) if os.environ.get(TRITON_PYTHON) else None)
    python = given or _made_triton_python()
    needed = [str(python), "-P", "-c", "import " + ", ".join(_TRITON_NEEDS)]
    try:
        done = subprocess.run(needed, capture_output=True, text=True, check=False)
    except OSError as exc:
        raise PeerMissingError(f"{python} cannot be started: {exc.strerror}; name another by --triton-python") from None
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it does not start"])[-1]
        raise PeerMissingError(
            f"{python} cannot run Triton's peer: {why}; {python} -m pip install nvidia-pytriton onnxruntime "
            + shlex.join(_TRITON_PACKAGES)
        )
    subprocess.run([sys.executable, str(ROOT / "tools" / "linktree.py")], check=True)  # our package, by its links
    return python


def _made_triton_python() -> Path:
    script = ROOT / "tools" / "triton_python.sh"
    if not script.is_file():
        raise PeerMissingError(f"no Python for Triton; name one by --triton-python or ${TRITON_PYTHON}")
    made = subprocess.run([str(script), str(ROOT / "build" / "triton")], stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        raise PeerMissingError("tools/triton_python.sh failed, see above")
    python = Path(made.stdout.strip().splitlines()[-1])
    needed = [str(python), "-P", "-c", "import " + ", ".join(_TRITON_NEEDS)]
    if subprocess.run(needed, capture_output=True, check=False).returncode:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *_TRITON_PACKAGES], check=False)
    return python


def _await(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end_s = time.monotonic() + _READY_S
    while time.monotonic() < end_s:
        if process.poll() is not None:
            raise PeerFailedError(f"it ended with exit status {process.returncode}: {_last_words(log)}")
        with suppress(OSError, http.client.HTTPException), urllib.request.urlopen(url, timeout=2.0) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise PeerFailedError(f"it was not ready within {_READY_S:g} s: {_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-500:]


def _end(process: "subprocess.Popen[bytes]", strangers: set[int]) -> None:
    """SIGTERM to the first process, SIGKILL to all that is left of it."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    end_s = time.monotonic() + _END_S
    while (left := descendants(strangers)) and time.monotonic() < end_s:
        for each in left:
            try:
                each.kill()
                each.wait(1.0)
            except psutil.Error:
                continue
    process.wait(_END_S)
    for memory in Path("/dev/shm").glob(f"pytrtion{process.pid}-*"):  # so spelt; Triton leaves it when it is killed
        memory.unlink(missing_ok=True)
