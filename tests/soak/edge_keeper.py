"""The edge of a soak: killed when the harness says so, and started again at once on the same port, as systemd would."""

import json
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bundles import COMMAND, environment
from tests.soak.judges import Life, rss_bytes

_READY_S = 60.0
_STOP_S = 30.0


class EdgeKeeper:
    """Keeps a ``serve-edge`` process of ``bundle`` alive; a context manager. Its log goes to a file in ``folder``.

    ``lives`` are those that have ended. ``problems``: ends that nobody wanted. ``memory``: of each life the looks at
    its resident memory, (seconds by ``time.perf_counter``, bytes).
    """

    def __init__(self, bundle: Path, folder: Path, options: Sequence[str] = ()) -> None:
        self.lives: list[Life] = []
        self.problems: list[str] = []
        self.memory: list[list[tuple[float, int]]] = []
        self.kills, self.port = 0, 0
        self._bundle, self._options = bundle, options
        self._log = folder / "edge.log"
        self._process: subprocess.Popen[str] | None = None
        self._ready = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._keep, name="edge keeper")

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(_READY_S):
            self._stopping = True
            raise AssertionError(f"no edge was ready within {_READY_S:g} s: {self.log()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    def kill(self) -> None:
        """SIGKILL, once it is ready: it has no time to say anything."""
        self._ready.wait(_READY_S)
        process = self._process
        if process is not None:
            self.kills += 1
            self._ready.clear()
            process.kill()

    def stop(self) -> None:
        """SIGTERM, and no other edge after it; its exit status must be 0."""
        if self._stopping:
            return
        self._ready.wait(_READY_S)
        self._stopping = True
        if self._process is not None:
            self._process.terminate()
        self._thread.join(_STOP_S)
        if self._thread.is_alive() and self._process is not None:
            self.problems.append(f"the edge did not end within {_STOP_S:g} s of SIGTERM")
            self._process.kill()
            self._thread.join()

    def look_at_memory(self) -> int | None:
        """Its resident memory now, kept; None while there is no edge that is ready."""
        process = self._process
        size = rss_bytes(process.pid) if process is not None and self._ready.is_set() else None
        if size is not None:
            self.memory[-1].append((time.perf_counter(), size))
        return size

    def longest_memory(self) -> list[tuple[float, int]]:
        """The looks of the life that has most of them."""
        return max(self.memory, key=len, default=[])

    def log(self) -> str:
        """The end of what the edges wrote to stderr."""
        return self._log.read_text(errors="replace")[-2000:] if self._log.is_file() else ""

    def _keep(self) -> None:
        while not self._stopping:
            down_s = time.perf_counter()
            kills = self.kills
            with self._log.open("a") as log:
                serve = ["serve-edge", str(self._bundle), "--port", str(self.port), "--json", "--no-build"]
                process = self._process = subprocess.Popen(
                    [*COMMAND, *serve, "--threads", "1", *self._options],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=environment(),
                )
            assert process.stdout is not None
            with process.stdout:
                line = process.stdout.readline()
                ready_s = time.perf_counter()
                if line:
                    self.port = json.loads(line)["port"]
                    self.memory.append([])
                    self._ready.set()
                status = process.wait()
            self._ready.clear()
            if line:
                self.lives.append(Life(down_s, ready_s, time.perf_counter()))
            wanted = status == 0 if self._stopping else self.kills > kills
            if not wanted:
                self.problems.append(f"an edge ended by itself with exit status {status}: {self.log()[-300:]!r}")
                time.sleep(0.5)  # as systemd's RestartSec: an edge that cannot start must not spin
