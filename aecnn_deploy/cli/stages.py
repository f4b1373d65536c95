"""A progress bar for each stage of a long job."""

from contextlib import ExitStack

from aecnn_deploy.cli.console import Bar, progress, say, stderr


class StageBars:
    """What training, export and the demo report to: ``stage`` begins a bar, ``step`` moves it, ``note`` is its text.

    Away from a terminal a stage is one line, so that a log stays readable. ``lines``: what a step says is a line of its
    own, everywhere; for steps that take minutes each.
    """

    def __init__(self, *, lines: bool = False) -> None:
        self._stack = ExitStack()
        self._bar: Bar | None = None
        self._lines = lines

    def __enter__(self) -> "StageBars":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def stage(self, title: str, steps: int) -> None:
        self._stack.close()
        if not stderr.is_terminal:
            say(title)
        self._bar = self._stack.enter_context(progress(f"{title:<22}", steps))

    def note(self, text: str) -> None:
        if self._bar:
            self._bar.advance(0, text)

    def step(self, note: str = "") -> None:
        if self._lines and note:
            say(note)
            note = ""
        if self._bar:
            self._bar.advance(1, note or None)
