"""An edge process at the far end of a shaped link."""

import json
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.namespaces import ADDRESSES, Link
from benchmarks.processes import ProcessFailedError

_START_S = 60.0


@contextmanager
def serving_at(link: Link, bundle: str, *options: str) -> Iterator[str]:
    """The URL of a ``serve-edge`` process in the edge's namespace, one thread a model, all variants loaded.

    Raises ProcessFailedError: it does not get ready.
    """
    serve = [sys.executable, "-m", "aecnn_deploy", "serve-edge", bundle, "--host", ADDRESSES["edge"], "--json"]
    with tempfile.TemporaryFile("w+") as errors:
        process = link.process(
            "edge",
            [*serve, "--no-build", "--threads", "1", "--preload", "all", *options],
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            line = _first_line(process)
            if not line:
                errors.seek(0)
                raise ProcessFailedError(f"serve-edge did not get ready: {errors.read()}")
            yield json.loads(line)["url"]
        finally:
            process.kill()
            process.communicate()


def _first_line(process: "subprocess.Popen[str]") -> str:
    """What it prints first; nothing, where it ends or takes too long."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        end_s = time.monotonic() + _START_S
        while (left_s := end_s - time.monotonic()) > 0:
            if selector.select(left_s):
                return process.stdout.readline()
    return ""
