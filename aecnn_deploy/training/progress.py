"""What a long piece of work tells its caller."""

from typing import Protocol


class Progress(Protocol):
    """What a caller is told: a stage begins with its number of steps, then each step; ``note`` moves nothing."""

    def stage(self, title: str, steps: int) -> None: ...

    def step(self, note: str = "") -> None: ...

    def note(self, text: str) -> None: ...


class SilentProgress:
    """Tells nobody."""

    def stage(self, title: str, steps: int) -> None:
        """Nothing to show."""

    def step(self, note: str = "") -> None:
        """Nothing to show."""

    def note(self, text: str) -> None:
        """Nothing to show."""


SILENT = SilentProgress()


def tell(progress: Progress, title: str, note: str) -> None:
    """``note`` as a stage of one step: no bar of another stage moves."""
    progress.stage(title, 1)
    progress.step(note)
