"""What became of every frame of every honest device: exactly one outcome each, and the right one."""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

_SHOWN = 8  # problems of one kind that are told in full


class Outcome(msgspec.Struct, frozen=True, tag="outcome"):
    """One line of a device process: what its client reported of one frame."""

    device: int
    frame: int  # counted from 0 by the frame's source
    status: str  # "ok" or "failed"
    path: str  # which half made the result: "split", or the unsplit model here
    index: int | None  # of the best class
    failure: str  # one line, for "failed"
    at_s: float  # time.perf_counter, which all processes share

    @property
    def kind(self) -> str:
        """For counting: the path of a result, or the failure's first words."""
        return self.path if self.status == "ok" else f"failed: {self.failure.partition(':')[0][:60]}"


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The last line of one device: how many frames its source handed over."""

    device: int
    frames: int


@dataclass(frozen=True, slots=True)
class Expected:
    """The classes of the photographs, taken in turn: frame n is photograph n modulo their number."""

    split: Sequence[frozenset[int]]  # that may come first, through head and tail
    full: Sequence[frozenset[int]]  # by the unsplit model

    def right(self, outcome: Outcome) -> bool:
        classes = self.split if outcome.path == "split" else self.full
        return outcome.index in classes[outcome.frame % len(classes)]


class Ledger:
    """Keeps, of each device, which frames have an outcome. Written from several threads."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._told: dict[int, set[int]] = {}
        self._handed_over: dict[int, int] = {}
        self._wrong: list[str] = []
        self._lock = threading.Lock()
        self.kinds: Counter[str] = Counter()
        self.answered: dict[int, list[float]] = {}  # by device: when a result of the edge came

    def add(self, outcome: Outcome) -> None:
        """Write one outcome down."""
        with self._lock:
            self._add(outcome)

    def counts(self) -> Counter[str]:
        """How many outcomes of each kind there are now."""
        with self._lock:
            return self.kinds.copy()

    def end(self, ended: Ended) -> None:
        """A device is done; so many frames it was given."""
        with self._lock:
            self._handed_over[ended.device] = ended.frames

    def problems(self, devices: Iterable[int]) -> list[str]:
        """All that is wrong: a frame without or with a second outcome, a wrong result, a device that never ended."""
        found = _shortened(self._wrong)
        for device in devices:
            if device not in self._handed_over:
                found.append(f"device {device} never said that it was done")
                continue
            frames, told = range(self._handed_over[device]), self._told.get(device, set())
            if not frames:
                found.append(f"device {device} was given no frame")
            missing = sorted(set(frames) - told)
            if missing:
                found.append(f"device {device}: {len(missing)} frames have no outcome, the first is {missing[0]}")
            unknown = sorted(told - set(frames))
            if unknown:
                found.append(f"device {device}: outcomes of {len(unknown)} frames that it was not given: {unknown[0]}…")
        return found

    def _add(self, outcome: Outcome) -> None:
        told = self._told.setdefault(outcome.device, set())
        where = f"device {outcome.device}, frame {outcome.frame}"
        if outcome.frame in told:
            self._wrong.append(f"{where} has a second outcome: {outcome.kind}")
        told.add(outcome.frame)
        self.kinds[outcome.kind] += 1
        if outcome.status == "ok":
            if not self._expected.right(outcome):
                self._wrong.append(f"{where} is of class {outcome.index} by {outcome.path}, which is wrong")
            if outcome.path == "split":
                self.answered.setdefault(outcome.device, []).append(outcome.at_s)
        elif outcome.status != "failed" or not outcome.failure:
            self._wrong.append(f"{where} has neither a result nor a named failure: {outcome}")


def answered_within(
    answered: Mapping[int, Sequence[float]], devices: Iterable[int], windows: Sequence[tuple[float, float]]
) -> dict[int, int]:
    """Of each device, how many answers came within one of the ``windows`` (from, until)."""
    return {
        device: sum(any(begin <= at_s < end for begin, end in windows) for at_s in answered.get(device, ()))
        for device in devices
    }


def _shortened(problems: list[str]) -> list[str]:
    more = len(problems) - _SHOWN
    return problems[:_SHOWN] + ([f"… and {more} more wrong outcomes"] if more > 0 else [])
