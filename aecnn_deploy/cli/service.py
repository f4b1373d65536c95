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


def log_warnings(name: str) -> None:
    """Warnings of the logger ``name``, but not of those below it, are lines on stderr."""
    logger = logging.getLogger(name)
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        lines = _Lines(logging.WARNING)
        lines.addFilter(lambda record: record.name == name)
        logger.addHandler(lines)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        say("".join(mark if mark.isprintable() else "?" for mark in text))
