"""What every command shares: one JSON document on stdout, all else on stderr, errors as one line."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

stderr = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """Write one JSON document to stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line for a person: on stderr, so that stdout stays the result's."""
    stderr.print(text, markup=False)


@contextmanager
def progress(title: str, total: int | None = None) -> Iterator["Bar"]:
    """A progress bar on a terminal; elsewhere one line at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=stderr, transient=False, disable=not stderr.is_terminal) as bars:
        yield Bar(bars, title, total)


class Bar:
    """One bar; ``advance`` moves it, ``note`` is shown at its right."""

    def __init__(self, bars: Progress, title: str, total: int | None) -> None:
        self._bars = bars
        self._task = bars.add_task(title, total=total, note="")

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        self._bars.advance(self._task, steps)
        if note is not None:
            self._bars.update(self._task, note=note)
