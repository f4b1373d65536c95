"""The two verdicts of a soak that are made of numbers: fairness between devices, and memory."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

_FEWEST_SAMPLES = 12
_FEWEST_ANSWERED = 0.5  # of what devices ask while the edge is up
_LONGEST_BACK_OFF_S = 15.0


@dataclass(frozen=True, slots=True)
class Life:
    """One life of the edge, by ``time.perf_counter``: without an edge since ``down_s``, ready, ended."""

    down_s: float
    ready_s: float
    end_s: float

    def settled(self, begin_s: float, end_s: float) -> tuple[float, float] | None:
        """From when every healthy device should be connected again until the end, as far as the load's time goes.

        A device's pauses between attempts double with each that failed, and are drawn by chance: after an outage the
        last one may be twice as long as the outage.
        """
        pause_s = min(2 * (self.ready_s - self.down_s), _LONGEST_BACK_OFF_S)
        from_s, until_s = max(begin_s, self.ready_s + pause_s) + 1.0, min(end_s, self.end_s)
        return (from_s, until_s) if from_s < until_s else None


@dataclass(frozen=True, slots=True)
class Shares:
    """Answers of each device, as shares of the mean of all."""

    by_device: Mapping[int, float]
    problems: list[str]

    @property
    def smallest(self) -> float:
        return min(self.by_device.values(), default=0.0)


def judge_shares(answered: Mapping[int, int], smallest_share: float, *, asked: float) -> Shares:
    """Each device asks for as much as every other, so each should be answered as often: the mean is its fair share.

    ``asked``: frames that each device had for the edge in the same time; that hardly any of them was answered is found
    too, however fairly that was.
    """
    fair = mean(answered.values()) if answered else 0.0
    if not fair:
        return Shares(dict.fromkeys(answered, 0.0), ["no device was answered while the edge was up"])
    shares = {device: count / fair for device, count in answered.items()}
    problems = [
        f"device {device} had {share:.0%} of its fair share, at least {smallest_share:.0%} is due"
        for device, share in shares.items()
        if share < smallest_share
    ]
    if fair < _FEWEST_ANSWERED * asked:
        problems.append(f"while the edge was up, devices had {fair:.0f} answers for {asked:.0f} frames each")
    return Shares(shares, problems)


@dataclass(frozen=True, slots=True)
class MemoryVerdict:
    """Medians of a process's resident memory, bytes: of the first and of the last third after the warm-up."""

    who: str
    begin_bytes: float
    end_bytes: float
    problem: str | None

    @property
    def growth(self) -> float:
        return self.end_bytes / self.begin_bytes - 1 if self.begin_bytes else 0.0


def judge_memory(
    who: str, samples: Sequence[tuple[float, int]], *, warm_up: float = 0.25, largest_growth: float
) -> MemoryVerdict:
    """Whether memory is flat, of ``samples`` (seconds, bytes) in the order of time.

    The first ``warm_up`` of the time does not count: heaps, arenas and caches fill up once. Of the rest the medians of
    the first and the last third are compared, so that neither a moment's peak nor a page given back decides.
    """
    counted = [(at_s, size) for at_s, size in samples if at_s >= _begin_s(samples, warm_up)]
    if len(counted) < _FEWEST_SAMPLES:
        return MemoryVerdict(who, 0, 0, f"{who}: {len(counted)} looks at its memory are too few to tell")
    third = len(counted) // 3
    begin, end = (median(size for _, size in part) for part in (counted[:third], counted[-third:]))
    growth = end / begin - 1
    grew = f"{who}: memory grew by {growth:.1%} after warm-up, from {begin / 1e6:.1f} to {end / 1e6:.1f} MB"
    return MemoryVerdict(who, begin, end, grew if growth > largest_growth else None)


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process; None: it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") or None  # a process that is being taken down has none


def _begin_s(samples: Sequence[tuple[float, int]], warm_up: float) -> float:
    if not samples:
        return 0.0
    first_s, last_s = samples[0][0], samples[-1][0]
    return first_s + warm_up * (last_s - first_s)
