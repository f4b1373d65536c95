"""What a check found, how bad it is, and what to do about it."""

from enum import StrEnum

import msgspec

_MOST_CHARACTERS = 600


class Level(StrEnum):
    """How bad a finding is: ``PROBLEM`` stops the program here, ``WARNING`` makes it slow or may stop it later."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(msgspec.Struct, frozen=True):
    """One line of a diagnosis. Raises ValueError: a warning or a problem without a remedy."""

    check: str
    level: Level
    found: str
    remedy: str | None = None  # a command or a sentence; never None for a warning or a problem

    def __post_init__(self) -> None:
        if self.level is not Level.OK and not self.remedy:
            raise ValueError(f"the {self.level} of {self.check!r} has no remedy")


def ok(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(check, Level.OK, _line(found))


def warning(check: str, found: str, remedy: str) -> Finding:
    """It runs, but slowly, or not for long."""
    return Finding(check, Level.WARNING, _line(found), _line(remedy))


def problem(check: str, found: str, remedy: str) -> Finding:
    """It does not run."""
    return Finding(check, Level.PROBLEM, _line(found), _line(remedy))


def _line(text: str) -> str:
    """One printable line: findings quote files and peers, which may hold anything."""
    printable = "".join(mark if mark.isprintable() else " " for mark in text)
    return " ".join(printable.split())[:_MOST_CHARACTERS]
