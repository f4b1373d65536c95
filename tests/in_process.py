"""The command line within this process: what it refuses and how, where starting Python would take most of the time."""

import contextlib
import io
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator

from aecnn_deploy.cli.main import run


def command_here(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """What ``tests.bundles.command`` gives, without a process: for commands that end before they run or serve."""
    out, errors = io.StringIO(), io.StringIO()
    with _process_kept(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = run(list(arguments))
    return subprocess.CompletedProcess(arguments, status, out.getvalue().encode(), errors.getvalue().encode())


@contextlib.contextmanager
def _process_kept() -> Iterator[None]:
    """What a command sets for its process - logging, signals, the switch interval - is afterwards as it was before."""
    loggers = {logger: (logger.level, logger.propagate, logger.handlers[:]) for logger in _loggers()}
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    interval_s, excepthook = sys.getswitchinterval(), sys.excepthook
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        sys.excepthook = excepthook
        for number, handler in handlers.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)
        for logger in _loggers():
            # One that is new is a library's that was imported meanwhile: of its import it keeps what says nothing.
            silent = [handler for handler in logger.handlers if isinstance(handler, logging.NullHandler)]
            level, logger.propagate, logger.handlers[:] = loggers.get(logger, (logging.NOTSET, True, silent))
            logger.setLevel(level)


def _loggers() -> list[logging.Logger]:
    named = logging.getLogger().manager.loggerDict.values()
    return [logging.getLogger(), *(each for each in named if isinstance(each, logging.Logger))]
