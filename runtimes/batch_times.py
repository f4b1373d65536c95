"""How long batches of each size take on a tail: what is known of it, and what follows for a queue."""

from collections.abc import Callable

_WEIGHT = 0.2  # of the newest batch in the running mean
_LONGEST_RETRY_S, _SHORTEST_RETRY_S = 60.0, 0.05
_NEARLY = 1.015  # times the fastest, an image: what a smaller batch may take


class BatchTimes:
    """Seconds of batches by their size, as measured; a running mean of each size. Not thread safe."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._fastest: dict[int, float] = {}  # of each size: what others do on the machine only adds to it
        self.fastest_s = 0.0  # of a batch of any size; 0 before the first

    def __bool__(self) -> bool:
        return bool(self._seconds)

    def ran(self, size: int, seconds: float) -> None:
        """A batch of ``size`` took ``seconds``."""
        known = self._seconds.get(size)
        self._seconds[size] = seconds if known is None else known + _WEIGHT * (seconds - known)
        self._fastest[size] = min(self._fastest.get(size, seconds), seconds)
        self.fastest_s = min(self.fastest_s or seconds, seconds)

    def seconds(self, size: int) -> float:
        """Expected time of a batch of ``size``: measured, or between its neighbours. 0 before anything was measured."""
        if not self._seconds or size in self._seconds:
            return self._seconds.get(size, 0.0)
        below = max((known for known in self._seconds if known < size), default=None)
        above = min((known for known in self._seconds if known > size), default=None)
        if below is None or above is None:
            nearest = below if below is not None else above
            assert nearest is not None
            # A larger batch takes longer in proportion, a smaller one is as long as the smallest that is known.
            return self._seconds[nearest] * (size / nearest if below is not None else 1.0)
        share = (size - below) / (above - below)
        return self._seconds[below] + share * (self._seconds[above] - self._seconds[below])

    def best_size(self, most: int) -> int:
        """The smallest size up to ``most`` that is nearly as fast an image as any that was measured; else ``most``."""
        return self._chosen(most, min)

    def busy_size(self, most: int) -> int:
        """The largest of them."""
        return self._chosen(most, max)

    def _chosen(self, most: int, choose: Callable[[list[int]], int]) -> int:
        each_s = {size: seconds / size for size, seconds in self._fastest.items() if size <= most}
        if not each_s:
            return most
        bound_s = _NEARLY * min(each_s.values())
        chosen = choose([size for size, seconds in each_s.items() if seconds <= bound_s])
        # If the largest that was measured is the best, still larger ones may be better.
        return most if chosen == max(each_s) else chosen

    def wait_s(self, ahead: int, size: int, running_s: float, slots: int = 1) -> float:
        """Seconds until ``ahead`` items have been taken in batches of ``size``, ``slots`` of them at once.

        The first is taken after ``running_s``, the rest of those that run.
        """
        return running_s + (ahead // size) * self.seconds(size) / slots


def retry_s(seconds: float) -> float:
    """What a device is told to wait that should come again in ``seconds``."""
    return round(min(max(seconds, _SHORTEST_RETRY_S), _LONGEST_RETRY_S), 3)
