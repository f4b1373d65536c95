"""A real ``serve-edge`` process on loopback, for what only a whole service shows: its own time around a tail."""

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import ServeError
from aecnn_deploy.runtimes.edge_runners import RunnerOptions
from aecnn_deploy.runtimes.edge_server import ReadyEdge

_READY_S = 600.0  # an engine may have to be built
_END_S = 5.0
_POLL_S = 0.1


@contextmanager
def served_edge(bundle: Bundle, variants: Sequence[str], options: RunnerOptions) -> Iterator[ReadyEdge]:
    """An edge that has loaded ``variants``, ended afterwards. Raises ServeError: it did not start, and why."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "aecnn_deploy", *_words(bundle, variants, options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            line = _first_line(process)
            if not line:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise ServeError(f"an edge on loopback did not start: {said.removeprefix('error: ') or 'it is silent'}")
            yield msgspec.json.decode(line, type=ReadyEdge)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _words(bundle: Bundle, variants: Sequence[str], options: RunnerOptions) -> list[str]:
    words = ["serve-edge", str(bundle.path), "--port", "0", "--json", "--preload", ",".join(variants)]
    words += ["--max-batch", "1"]  # larger ones are not asked for, and need not be timed at its start
    words += ["--runner", options.name, "--threads", str(options.threads)]
    words += ["--spinning" if options.spinning else "--no-spinning"]
    words += ["--build" if options.engines is not None else "--no-build"]
    return words + (["--precision", options.precision] if options.precision is not None else [])


def _first_line(process: "subprocess.Popen[bytes]") -> bytes:
    """What it says once it serves; nothing where it ended or took too long."""
    assert process.stdout is not None
    said, end_s = b"", time.monotonic() + _READY_S
    while not said.endswith(b"\n") and time.monotonic() < end_s:
        if not select.select([process.stdout], [], [], _POLL_S)[0]:
            continue
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            return b""
        said += piece
    return said
