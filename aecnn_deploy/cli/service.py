"""What a command needs to run unattended: an end by SIGTERM, and warnings as lines on stderr."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aecnn_deploy.cli.console import say


@contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, in place of ending the process."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def log_warnings(*names: str) -> None:
    """Warnings of the loggers ``names``, but not of those below them, are lines on stderr."""
    for name in names:
        logger = logging.getLogger(name)
        if not any(isinstance(handler, _Lines) for handler in logger.handlers):
            lines = _Lines(name)
            logger.addHandler(lines)


class _Lines(logging.Handler):
    def __init__(self, name: str) -> None:
        super().__init__(logging.WARNING)
        self.addFilter(lambda record: record.name == name)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        say("".join(mark if mark.isprintable() else "?" for mark in text))
