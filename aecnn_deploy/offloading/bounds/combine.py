"""Who goes to which server: the cheapest way to share the devices out among the servers' tables."""

from collections.abc import Sequence

import numpy as np

from aecnn_deploy.offloading.bounds.labels import Effort, Floats, Ints, Table

_CHUNK = 1 << 21  # pairs of sets that are looked at together


def shared_out(tables: Sequence[Table], left_alone: Floats, budget: float, effort: Effort) -> tuple[float, list[int]]:
    """The least loss of disjoint sets, one of each table, and the row of each table that makes it.

    ``left_alone`` [n]: what is lost where no server takes a device. Exact if that least loss is at most ``budget``,
    else a loss that can be had. Raises OutOfTimeError. Memory of order 2^n.
    """
    size = 1 << len(left_alone)
    sets, loss = tables[0].sets, tables[0].loss
    trail: list[tuple[Ints, Ints]] = []  # for each server but the first and the last: row before, row of its table
    for table in tables[1:-1]:
        best = np.full(size, np.inf)
        before, own = np.zeros(size, np.int64), np.zeros(size, np.int64)
        step = max(1, _CHUNK // len(table.sets))
        for start in range(0, len(sets), step):
            effort.check()
            rows = slice(start, start + step)
            total = loss[rows, None] + table.loss
            fits = ((sets[rows, None] & table.sets) == 0) & (total <= budget + 1e-12)
            left, right = np.nonzero(fits)
            union, cost = sets[start + left] | table.sets[right], total[left, right]
            order = np.lexsort((cost, union))
            union, first = np.unique(union[order], return_index=True)
            pick = order[first]
            better = cost[pick] < best[union]
            union, pick = union[better], pick[better]
            best[union], before[union], own[union] = cost[pick], start + left[pick], right[pick]
        sets = np.flatnonzero(np.isfinite(best))
        trail.append((before[sets], own[sets]))
        loss = best[sets]
    rows_back: list[int] = []
    if len(tables) == 1:
        total = loss + _alone(sets, left_alone)
        row = int(total.argmin())
        return float(total[row]), [row]
    rest, how = _covering(tables[-1], left_alone)
    total = loss + rest[size - 1 - sets]
    row = int(total.argmin())
    least = float(total[row])
    rows_back.append(int(how[size - 1 - sets[row]]))
    for before, own in reversed(trail):
        rows_back.append(int(own[row]))
        row = int(before[row])
    rows_back.append(row)
    return least, rows_back[::-1]


def _alone(sets: Ints, left_alone: Floats) -> Floats:
    """[M]: what is lost by the devices outside of each set."""
    outside = (sets[:, None] >> np.arange(len(left_alone)) & 1) == 0
    lost: Floats = outside @ left_alone
    return lost


def _covering(table: Table, left_alone: Floats) -> tuple[Floats, Ints]:
    """[2^n]: the least loss of each set if the table's server does any part of it and the rest is left alone."""
    loss = np.full(1 << len(left_alone), np.inf)
    how = np.full(len(loss), -1, np.int64)
    loss[table.sets], how[table.sets] = table.loss, np.arange(len(table.sets))
    for device, lost in enumerate(left_alone):
        # [.., with or without this device, ..]
        by_bit, how_by_bit = loss.reshape(-1, 2, 1 << device), how.reshape(-1, 2, 1 << device)
        without = by_bit[:, 0] + lost
        better = without < by_bit[:, 1]
        by_bit[:, 1] = np.where(better, without, by_bit[:, 1])
        how_by_bit[:, 1] = np.where(better, how_by_bit[:, 0], how_by_bit[:, 1])
    return loss, how
