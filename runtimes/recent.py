"""What was so lately, in memory that does not grow: sums for each second, and a sample of the last answers."""

from array import array
from collections.abc import Sequence

WINDOW_S = 60
RATE_S = 10  # seconds over which "now" is meant
_CELLS = WINDOW_S + 1  # the second that goes on, beside the complete ones


class SecondSums:
    """Sums of ``columns`` numbers for each of the last 60 seconds; adding is O(1)."""

    __slots__ = ("_cells", "_columns", "_second")

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._cells = array("d", bytes(8 * columns * _CELLS))
        self._second = -1  # the latest that has a cell

    def add(self, second: int, numbers: Sequence[float]) -> None:
        """Add ``numbers``, one for each column, to ``second``, which never goes back."""
        self._advance(second)
        begin = second % _CELLS * self._columns
        cells = self._cells
        for column, number in enumerate(numbers, begin):
            cells[column] += number

    def rows(self, second: int, count: int = WINDOW_S) -> list[list[float]]:
        """The ``count`` complete seconds before ``second``, the oldest first, each as its columns."""
        self._advance(second)
        width = self._columns
        begins = [each % _CELLS * width for each in range(second - count, second)]
        return [list(self._cells[begin : begin + width]) for begin in begins]

    def sums(self, second: int, count: int = WINDOW_S) -> list[float]:
        """The columns' sums over the ``count`` complete seconds before ``second``."""
        return [sum(column) for column in zip(*self.rows(second, count), strict=True)]

    def _advance(self, second: int) -> None:
        if second <= self._second:
            return
        width = self._columns
        for each in range(max(self._second + 1, second - _CELLS + 1), second + 1):
            begin = each % _CELLS * width
            self._cells[begin : begin + width] = array("d", bytes(8 * width))
        self._second = second


class LastAnswers:
    """Milliseconds and bytes of the last answers, at most ``size`` of them; adding is O(1)."""

    __slots__ = ("_bytes", "_next", "_seconds", "_size", "_totals_ms")

    def __init__(self, size: int) -> None:
        self._size, self._next = size, 0
        self._seconds, self._totals_ms, self._bytes = array("d"), array("f"), array("L")

    def add(self, second: float, total_ms: float, size_bytes: int) -> None:
        if len(self._seconds) < self._size:
            self._seconds.append(second)
            self._totals_ms.append(total_ms)
            self._bytes.append(size_bytes)
            return
        place = self._next
        self._seconds[place], self._totals_ms[place], self._bytes[place] = second, total_ms, size_bytes
        self._next = (place + 1) % self._size

    def since(self, second: float) -> tuple[list[float], list[int]]:
        """Milliseconds, ascending, and bytes of the answers that are not older than ``second``."""
        kept = [place for place, each in enumerate(self._seconds) if each >= second]
        return sorted(self._totals_ms[place] for place in kept), [self._bytes[place] for place in kept]


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile (``share`` 0 to 1) of sorted numbers; None of none."""
    if not ascending:
        return None
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
