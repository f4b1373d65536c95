"""Which frames were captured and what became of each: exactly one outcome a frame, told in the order of capture.

No threads, no clock, no sockets: the pipeline holds its lock while it calls this.

    capture ──► WAITING ──► IN_FLIGHT ──► settled ──► told
                   ▲            │            ▲
                   └── return_ ─┘            │
                   └─────────────────────────┘
"""

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar


class Stage(Enum):
    """Where a frame stands that has no outcome yet."""

    WAITING = "waiting"  # somewhere in the device
    IN_FLIGHT = "in flight"  # sent to the edge, and not answered


class LedgerError(RuntimeError):
    """A defect of the caller: a frame would get a second outcome, or one that was never captured would get any."""


R = TypeVar("R")


@dataclass(slots=True)
class _Line(Generic[R]):
    stage: Stage = Stage.WAITING
    sends: int = 0
    outcome: R | None = None


class FrameLedger(Generic[R]):
    """Frames by number, counted up from 1 as they are captured. ``R``: what an outcome is; None is no outcome.

    Only frames that were not told are kept: memory does not grow with the frames of a run.
    """

    def __init__(self) -> None:
        self._lines: dict[int, _Line[R]] = {}  # in the order of capture
        self._captured, self._told = 0, 0
        self._settled = 0

    @property
    def captured(self) -> int:
        return self._captured

    @property
    def told(self) -> int:
        return self._told

    @property
    def untold(self) -> int:
        """Frames that were captured and not told, settled ones included."""
        return len(self._lines)

    @property
    def open(self) -> tuple[int, ...]:
        """Frames without an outcome, in the order of capture."""
        return tuple(number for number, line in self._lines.items() if line.outcome is None)

    @property
    def all_settled(self) -> bool:
        return self._settled == self._captured

    def capture(self) -> int:
        """The number of a new frame."""
        self._captured += 1
        self._lines[self._captured] = _Line()
        return self._captured

    def is_open(self, number: int) -> bool:
        """Whether the frame has no outcome yet. Raises LedgerError: it was never captured."""
        self._check(number)
        line = self._lines.get(number)
        return line is not None and line.outcome is None

    def send(self, number: int) -> int:
        """The frame goes to the edge; how often it did now. Raises LedgerError: it is there, or has its outcome."""
        line = self._open(number)
        if line.stage is Stage.IN_FLIGHT:
            raise LedgerError(f"frame {number} is in flight already")
        line.stage = Stage.IN_FLIGHT
        line.sends += 1
        return line.sends

    def return_(self, number: int) -> None:
        """What was in flight is in the device again: its connection was lost. Raises LedgerError: it was not there."""
        line = self._open(number)
        if line.stage is not Stage.IN_FLIGHT:
            raise LedgerError(f"frame {number} is not in flight")
        line.stage = Stage.WAITING

    def stage(self, number: int) -> Stage:
        """Where an open frame stands. Raises LedgerError: it has its outcome."""
        return self._open(number).stage

    def sends(self, number: int) -> int:
        """How often an open frame was sent. Raises LedgerError: it has its outcome."""
        return self._open(number).sends

    def settle(self, number: int, outcome: R) -> None:
        """The frame's one outcome. Raises LedgerError: it has one, or was never captured."""
        if outcome is None:
            raise LedgerError("None is no outcome")
        self._open(number).outcome = outcome
        self._settled += 1

    def next_told(self) -> tuple[int, R] | None:
        """The next frame to tell of, None while the oldest has no outcome. The same until ``tell`` is called."""
        for number, line in self._lines.items():
            return None if line.outcome is None else (number, line.outcome)
        return None

    def tell(self, number: int) -> None:
        """``next_told`` was told. Raises LedgerError: it is not this frame's turn."""
        following = self.next_told()
        if following is None or following[0] != number:
            raise LedgerError(f"it is not frame {number}'s turn")
        del self._lines[number]
        self._told += 1

    def _open(self, number: int) -> _Line[R]:
        self._check(number)
        line = self._lines.get(number)
        if line is None or line.outcome is not None:
            raise LedgerError(f"frame {number} has its outcome already")
        return line

    def _check(self, number: int) -> None:
        if not 1 <= number <= self._captured:
            raise LedgerError(f"frame {number} was never captured")
