"""Order-preserving candidates of categorical choices.

DROO (Huang, Bi, Zhang, eq. 8 and 9) moves the threshold of a binary decision to the scores that are nearest to it: the
k-th candidate flips every device between the old threshold and the new, and so keeps the order of the scores. Here a
device has many choices. For each *group* of choices, local, one server, one option, the margin of a device is its best
score within the group less its best without; candidates move that group's threshold as DROO does.
"""

import numpy as np
from numpy.typing import NDArray

from aecnn_deploy.offloading.mec.observation import Actions

Floats = NDArray[np.float64]

_NEVER = -1e9


def groups_of(servers: int, options: int) -> NDArray[np.bool_]:
    """[G, 1 + S·V]: local, then each server (where there are several), then each option (where there are several)."""
    grid = np.arange(servers * options)
    rows = [np.zeros(servers * options, bool)]
    if servers > 1:
        rows += [grid // options == s for s in range(servers)]
    if options > 1:
        rows += [grid % options == v for v in range(options)]
    offloading = np.array(rows)
    local = np.zeros((len(rows), 1), bool)
    local[0] = True
    return np.concatenate([local, offloading], axis=1)


def order_preserving(scores: Floats, groups: NDArray[np.bool_], moves: int) -> Actions:
    """[B, 1 + G·moves, N] candidates of ``scores`` [B, N, C]: the best choice of each device, then moved thresholds."""
    batch, devices, _ = scores.shape
    moves = min(moves, devices)
    base = scores.argmax(axis=2)
    within = np.where(groups[:, None, None], scores, _NEVER)  # [G, B, N, C]
    without = np.where(groups[:, None, None], _NEVER, scores)
    best_in, best_out = within.argmax(axis=3), without.argmax(axis=3)
    margin = within.max(axis=3) - without.max(axis=3)  # [G, B, N]
    nearest = np.argsort(np.abs(margin), axis=2)[:, :, :moves]
    threshold = np.take_along_axis(margin, nearest, axis=2)[..., None]  # [G, B, moves, 1]
    spread = margin[:, :, None]
    member = np.where(threshold > 0, spread > threshold, spread >= threshold)
    made = np.where(member, best_in[:, :, None], best_out[:, :, None])  # [G, B, moves, N]
    moved = made.transpose(1, 0, 2, 3).reshape(batch, -1, devices)
    candidates: Actions = np.concatenate([base[:, None], moved], axis=1)
    return candidates


def single_changes(scores: Floats, around: Actions, changes: int) -> Actions:
    """[B, changes, N]: ``around`` [B, N] with one device changed to another choice, the best-scored changes first."""
    batch, devices, choices = scores.shape
    changes = min(changes, devices * (choices - 1))
    current = np.take_along_axis(scores, around[..., None], axis=2)
    loss = current - scores  # what the change costs in score
    np.put_along_axis(loss, around[..., None], np.inf, axis=2)
    flat = loss.reshape(batch, -1)
    chosen = np.argpartition(flat, changes - 1, axis=1)[:, :changes]
    made = np.repeat(around[:, None], changes, axis=1)
    np.put_along_axis(made, (chosen // choices)[..., None], (chosen % choices)[..., None], axis=2)
    return made


def joined_changes(around: Actions, changed: Actions, gains: Floats, joins: int) -> Actions:
    """[B, joins, N]: the best change of each device that gains, together with those that gain more: 2, 3, … at once.

    ``changed`` [B, K, N] are single changes of ``around`` [B, N], ``gains`` [B, K] what each is worth more.
    """
    batch, count, devices = changed.shape
    rows = np.arange(batch)[:, None]
    device = (changed != around[:, None]).argmax(axis=2)  # [B, K]
    order = np.argsort(-gains, axis=1, kind="stable")
    ordered_device = device[rows, order]
    gained = gains[rows, order] > 0
    # The first change of each device in this order is its best.
    first = np.full((batch, devices), count)
    np.minimum.at(first, (np.broadcast_to(rows, order.shape), ordered_device), np.arange(count))
    mine = first[rows, ordered_device] == np.arange(count)
    taken = mine & gained
    rank = np.where(taken, np.cumsum(taken, axis=1), 0)  # 1, 2, 3 … of those taken
    # of each device: which rank its change has, and what it changes to
    rank_of = np.zeros((batch, devices), np.int64)
    to = around.copy()
    world, place = np.nonzero(taken)
    who = ordered_device[world, place]
    rank_of[world, who] = rank[world, place]
    to[world, who] = changed[world, order[world, place], who]
    upto = np.arange(2, joins + 2)[None, :, None]
    made: Actions = np.where((rank_of[:, None] > 0) & (rank_of[:, None] <= upto), to[:, None], around[:, None])
    return made
