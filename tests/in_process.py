"""The command line within this process: what it refuses and how, where starting Python would take most of the time."""

import contextlib
import io
import logging
import subprocess
from collections.abc import Iterator

from aecnn_deploy.cli.main import run


def command_here(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """What ``tests.bundles.command`` gives, without a process: for commands that end before they run or serve."""
    out, errors = io.StringIO(), io.StringIO()
    with _logging_kept(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = run(list(arguments))
    return subprocess.CompletedProcess(arguments, status, out.getvalue().encode(), errors.getvalue().encode())


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """What a command sets of logging is for its process: the tests after it log as if it had never run."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
