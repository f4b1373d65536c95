"""What one server can do in a slot, for every set of devices at once: dynamic programming over labels.

The server takes its tasks in an order that no decision changes: by the time when they would be ready, which is known
for each device and option. So its choices are gone through in that order, and what was chosen so far comes down to a
label: the devices that were taken (a bit each), when the access point and the server are free, and what was lost
against each device's best option. Of two labels of the same devices, one that is free no later in both places and has
lost no more leads to everything that the other leads to, and the other is dropped. The sums are those of
``mec.line.serve``, in the same order: a task in time by the labels is in time in the simulator, to the last bit.
"""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_NEIGHBOURS = 6  # how many labels before it in order one is compared with: more finds little more
_GROWTH = 1.4  # labels are sifted when there are so many times more than after the last sifting
_SPARED = 50  # and so few are not sifted at all
_BINS = 1 << 20  # of the loss, where labels are sorted
_SLACK = 1e-12  # of sums of losses, which are added in another order here than elsewhere


class OutOfTimeError(Exception):
    """The time limit, or the limit on labels, was met: what this part would have said is not known."""


@dataclass(frozen=True)
class Effort:
    """When to give up: a time of ``time.perf_counter``, and a number of labels at once."""

    until: float
    most_labels: int

    def check(self, labels: int = 0) -> None:
        """Raises OutOfTimeError: either limit is passed."""
        if labels > self.most_labels or time.perf_counter() > self.until:
            raise OutOfTimeError


@dataclass(frozen=True)
class Lane:
    """One server's K choices in the order in which it would serve them, ties by device. Seconds as in Observation."""

    device: Ints  # [K] which bit of a set
    action: Ints  # [K] as in Observation, 1 + s·V + v
    ready_s: Floats  # [K]
    airtime_s: Floats  # [K]
    service_s: Floats  # [K]
    deadline_s: Floats  # [K] of the task itself
    loss: Floats  # [K] at least 0: the device's best value less this one
    radio_free_s: float
    edge_free_s: float
    hop_s: float
    shared_radio: bool


@dataclass(frozen=True)
class Table:
    """The least loss of each set of devices that one server can do in time, and how."""

    sets: Ints  # [M] each once, the empty one among them
    loss: Floats  # [M]
    label: Ints  # [M]
    parents: Ints  # of each label; -1: the first
    choices: Ints  # of each label, which of the lane's; -1: none

    def chosen(self, row: int) -> list[int]:
        """The lane's choices that do the set of ``row``."""
        label, found = int(self.label[row]), []
        while self.choices[label] >= 0:
            found.append(int(self.choices[label]))
            label = int(self.parents[label])
        return found


@dataclass
class _Labels:
    radio: Floats  # when the access point is free; 0 where each device has its own channel
    edge: Floats  # when the server is free
    taken: Ints
    loss: Floats
    number: Ints

    def pick(self, which: NDArray[np.intp] | NDArray[np.bool_]) -> "_Labels":
        return _Labels(self.radio[which], self.edge[which], self.taken[which], self.loss[which], self.number[which])

    def sifted(self, radio_from: float, edge_after: float, scale: float) -> "_Labels":
        """Without labels that another one covers.

        Nothing to come begins on the air before ``radio_from``, nor arrives sooner than ``edge_after`` later: labels
        that differ only before that do not differ.
        """
        self.radio = np.maximum(self.radio, radio_from)
        self.edge = np.maximum(self.edge, self.radio + edge_after)
        key = self.taken * _BINS + np.minimum(self.loss * scale, _BINS - 1).astype(np.int64)
        ordered = self.pick(np.argsort(key, kind="stable"))
        covered = np.zeros(len(key), bool)
        for apart in range(1, min(_NEIGHBOURS, len(key))):
            covered[apart:] |= (
                (ordered.taken[apart:] == ordered.taken[:-apart])
                & (ordered.radio[apart:] >= ordered.radio[:-apart])
                & (ordered.edge[apart:] >= ordered.edge[:-apart])
                & (ordered.loss[apart:] >= ordered.loss[:-apart])
            )
        return ordered.pick(~covered)


def server_table(lane: Lane, budget: float, effort: Effort) -> Table:
    """Every set of devices that ``lane`` can do in time at a loss of at most ``budget``, each at its least loss.

    Complete: a choice of options that keeps all its tasks in time and to the budget has a row of its devices, with no
    greater loss. Raises OutOfTimeError.
    """
    least_air = np.append(np.minimum.accumulate(lane.airtime_s[::-1])[::-1], 0.0)
    start_s = lane.radio_free_s if lane.shared_radio else 0.0
    zero = np.zeros(1, np.int64)
    labels = _Labels(np.array([start_s]), np.array([lane.edge_free_s]), zero, np.zeros(1), zero)
    parents, choices = [np.full(1, -1)], [np.full(1, -1)]
    count = sifted = 1
    latest = lane.deadline_s - lane.hop_s
    for choice in np.flatnonzero(lane.loss <= budget):
        bit = np.int64(1) << lane.device[choice]
        room = budget + _SLACK - lane.loss[choice]
        free = np.flatnonzero(((labels.taken & bit) == 0) & (labels.loss <= room))
        begin = np.full(len(free), lane.ready_s[choice])
        if lane.shared_radio:
            begin = np.maximum(begin, labels.radio[free])
        arrival = begin + lane.airtime_s[choice]
        begin = np.maximum(arrival, labels.edge[free])
        done = begin + lane.service_s[choice]
        good = (done + lane.hop_s <= lane.deadline_s[choice]) & (begin < latest[choice])
        free = free[good]
        if not len(free):
            continue
        parents.append(labels.number[free])
        choices.append(np.full(len(free), choice))
        radio = arrival[good] if lane.shared_radio else np.zeros(len(free))
        labels = _Labels(
            np.concatenate([labels.radio, radio]),
            np.concatenate([labels.edge, done[good]]),
            np.concatenate([labels.taken, labels.taken[free] | bit]),
            np.concatenate([labels.loss, labels.loss[free] + lane.loss[choice]]),
            np.concatenate([labels.number, np.arange(count, count + len(free))]),
        )
        count += len(free)
        if len(labels.taken) > _GROWTH * sifted + _SPARED:
            if lane.shared_radio:
                labels = labels.sifted(lane.ready_s[choice], least_air[choice + 1], _BINS / (budget + 1e-9) / 2)
            else:
                # sorted by arrival: what comes is there no sooner than this one
                labels = labels.sifted(0.0, lane.ready_s[choice] + lane.airtime_s[choice], _BINS / (budget + 1e-9) / 2)
            sifted = len(labels.taken)
        effort.check(count)
    order = np.lexsort((labels.loss, labels.taken))
    sets, first = np.unique(labels.taken[order], return_index=True)
    best = order[first]
    return Table(sets, labels.loss[best], labels.number[best], np.concatenate(parents), np.concatenate(choices))
