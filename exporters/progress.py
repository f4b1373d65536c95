"""How far an export is."""

from typing import Protocol


class Progress(Protocol):
    """Told of each stage before it begins, and of each of its steps."""

    def stage(self, title: str, steps: int) -> None: ...

    def note(self, text: str) -> None:
        """What goes on within a step."""

    def step(self) -> None: ...


class Silent:
    """A Progress that nobody watches."""

    def stage(self, title: str, steps: int) -> None: ...

    def note(self, text: str) -> None: ...

    def step(self) -> None: ...
