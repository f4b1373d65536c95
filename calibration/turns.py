"""Timing by turns: whatever is measured is measured again and again, round after round, so that a slow spell of the
machine falls on everything alike, and so that each thing starts as cold as in a real run, after others."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from aecnn_deploy.errors import PlanError, SettingsError
from aecnn_deploy.planning.profiles import Timing, timing

T = TypeVar("T")
Key = tuple[str, ...]
Progress = Callable[[float], None]  # gets the share that is done, 0 to 1

WARM_UP = 1  # rounds whose times do not count


def no_progress(_: float) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long is measured. Raises SettingsError: a number is out of its range."""

    wanted: int = 9  # measurements of what is measured least often
    least: int = 3  # as many are made however long they take
    longest_s: float = 8.0  # for those beyond ``least``
    pause_ms: float = 3.0  # of this machine where a real run waits for the other half

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.wanted <= 1000:
            raise SettingsError(f"effort wants {self.least} to {self.wanted} measurements, expected 1 to 1000")
        if not 0 < self.longest_s <= 3600:
            raise SettingsError(f"longest_s is {self.longest_s}, expected a positive number of seconds up to 3600")
        if not 0 <= self.pause_ms <= 1000:
            raise SettingsError(f"pause_ms is {self.pause_ms}, expected 0 to 1000 milliseconds")


class Clock:
    """Milliseconds of everything that is measured, by key."""

    def __init__(self) -> None:
        self._ms: dict[Key, list[float]] = {}
        self.counts = True  # else what is timed is forgotten at once

    def of(self, *key: str) -> "_Stretch":
        """A context manager: what is done within counts under ``key``."""
        return _Stretch(self, key)

    def add(self, key: Key, took_ms: float) -> None:
        """Count a time that was measured elsewhere."""
        if self.counts:
            self._ms.setdefault(key, []).append(took_ms)

    def timing(self, *key: str) -> Timing:
        """Percentiles of what was counted under ``key``."""
        return timing(self._ms[key])

    def take_over(self, other: "Clock") -> None:
        """Count what ``other`` has counted, too."""
        for key, times in other._ms.items():
            self._ms.setdefault(key, []).extend(times)

    def forget(self) -> None:
        """Count anew."""
        self._ms.clear()


class _Stretch:
    """One time that is being taken."""

    __slots__ = ("_began_s", "_clock", "_key")

    def __init__(self, clock: Clock, key: Key) -> None:
        self._clock, self._key, self._began_s = clock, key, 0.0

    def __enter__(self) -> None:
        self._began_s = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        took_s = time.perf_counter() - self._began_s
        if kind is None:
            self._clock.add(self._key, took_s * 1e3)


def repeats(clock: Clock, number: int, count: int) -> Iterator[int]:
    """For a turn that does the same ``count`` times: the numbers of these times over all rounds, ``number`` * count on.

    Before them it is done once more, uncounted: after another model's turn the memory of this one is not in the caches,
    where it is in a run of nothing else.
    """
    clock.counts = False
    yield number * count
    clock.counts = True
    yield from range(number * count, (number + 1) * count)


def share(items: Sequence[T], number: int, cycle: int) -> Sequence[T]:
    """Those of ``items`` whose turn it is in round ``number``: each once in ``cycle`` rounds."""
    return items[number % cycle :: cycle]


def in_turns(
    turns: Sequence[Callable[[int], None]],
    clock: Clock,
    effort: Effort,
    *,
    cycle: int,
    progress: Progress = no_progress,
    stop: threading.Event | None = None,
) -> None:
    """Call all ``turns`` with 0, 1, 2, …; after ``cycle`` rounds each has measured everything that it goes through.

    The first round is not counted by ``clock``. Raises PlanError: ``stop`` was set.
    """
    wanted, least = effort.wanted * cycle, effort.least * cycle
    end_s = time.perf_counter() + effort.longest_s
    for number in range(-WARM_UP, wanted):
        if number == 0:
            clock.forget()
        if number >= least and time.perf_counter() > end_s:
            break
        for turn in turns:
            if stop is not None and stop.is_set():
                raise PlanError("the measurement was broken off")
            turn(max(0, number))
        progress(max(0, number + 1) / wanted)
    progress(1.0)
