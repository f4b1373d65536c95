"""An observation as the numbers that the networks read: of each device, each server, and each path between them.

All of them are ratios to the slot or shares, so that they mean the same in a larger network; their number depends on
nothing but FEATURES, which a policy file states and a reader compares.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecnn_deploy.offloading.mec.observation import Observation

Floats32 = NDArray[np.float32]

FEATURES = 1  # the version of what follows
PATH_FEATURES = 9
LOCAL_FEATURES = 5
SERVER_FEATURES = 4
_MOST = 4.0  # slots; what takes longer is as bad


@dataclass(frozen=True)
class Graph:
    """Features of B worlds."""

    path: Floats32  # [B, N, S, V, PATH_FEATURES]
    local: Floats32  # [B, N, LOCAL_FEATURES]
    server: Floats32  # [B, S, SERVER_FEATURES]
    active: Floats32  # [B, N] 1 where there is a task


def graph_of(seen: Observation) -> Graph:
    """The features of ``seen``."""
    slot = seen.slot_s
    shape = seen.airtime_s.shape
    ready = ((seen.device_backlog_s[..., None] + seen.device_s) / slot)[:, :, None, :]
    slack = (seen.deadline_s[..., None, None] - seen.alone_s()) / slot
    edge = (seen.edge_s / slot)[:, None]
    worth = (seen.accuracy - 0.9) * 10
    deadline = (seen.deadline_s / slot)[..., None, None]
    parts = (seen.airtime_s / slot, ready, edge, slack, np.maximum(slack, -1.0) > 0, worth, deadline)
    path = np.empty((*shape, PATH_FEATURES), np.float32)
    for index, part in enumerate(parts):
        path[..., index] = np.clip(part, -_MOST, _MOST)
    # What the air and the server take, as shares of the time that is left.
    left = np.maximum(deadline - ready, 0.05)
    path[..., 7] = np.clip(seen.airtime_s / slot / left, 0, _MOST)
    path[..., 8] = np.clip(edge / left, 0, _MOST)
    done = seen.device_backlog_s + seen.local_s
    fits = seen.local_fits()
    local = np.stack(
        [
            fits,
            np.clip((seen.deadline_s - done) / slot, -_MOST, _MOST),
            np.clip(seen.local_s / slot, 0, _MOST),
            np.clip(seen.device_backlog_s / slot, 0, _MOST),
            fits * (seen.local_accuracy - 0.9) * 10,
        ],
        axis=-1,
    ).astype(np.float32)
    tasks = seen.active.sum(axis=1, keepdims=True) / seen.servers
    server = np.stack(
        [
            np.clip(seen.radio_backlog_s / slot, 0, _MOST),
            np.clip(seen.edge_backlog_s / slot, 0, _MOST),
            np.clip(seen.edge_s.mean(axis=2) / slot, 0, _MOST),
            np.broadcast_to(tasks / 8, seen.radio_backlog_s.shape),
        ],
        axis=-1,
    ).astype(np.float32)
    return Graph(path, local, server, seen.active.astype(np.float32))
