"""One slot as an integer programme for HiGHS: what the labels of ``offloading.bounds`` are compared with.

Binary x for each choice; at each server, in the order of readiness, when access point (F) and server (G) are free:
F_k >= F_(k-1) + a_k x_k, F_k >= (r_k + a_k) x_k, G_k >= G_(k-1) + c_k x_k, G_k >= F_k + c_k x_k, and G_k within the
deadline where x_k = 1, with the latest deadline so far instead where it is 0.
"""

import time
from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

from aecnn_deploy.offloading.mec.observation import LOCAL, Observation


@dataclass(frozen=True)
class Solved:
    value: float
    bound: float
    seconds: float


class _Rows:
    def __init__(self) -> None:
        self.row: list[int] = []
        self.column: list[int] = []
        self.entry: list[float] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, entries: dict[int, float], low: float, high: float) -> None:
        self.row += [len(self.low)] * len(entries)
        self.column += entries
        self.entry += entries.values()
        self.low.append(low)
        self.high.append(high)


def solve_slot(seen: Observation, *, time_limit_s: float) -> Solved:
    """One world (B = 1) with a shared radio. Milliseconds inside: HiGHS's tolerances are absolute."""
    base = seen.values()[0, :, LOCAL]
    gain = seen.accuracy - base[:, None, None]
    good = seen.feasible()[0, :, 1:].reshape(seen.devices, seen.servers, seen.options) & (gain > 0)
    choices = np.argwhere(good)
    ready = (seen.device_backlog_s[0, :, None] + seen.device_s[0]) * 1e3
    rows, upper = _Rows(), [1.0] * len(choices)
    for device in range(seen.devices):
        mine = np.flatnonzero(choices[:, 0] == device)
        if len(mine) > 1:
            rows.add({int(choice): 1.0 for choice in mine}, -np.inf, 1.0)
    for server in range(seen.servers):
        here = np.flatnonzero(choices[:, 1] == server)
        here = here[np.lexsort((choices[here, 0], ready[choices[here, 0], choices[here, 2]]))]
        latest, before = 0.0, -1
        for choice in map(int, here):
            device, _, option = choices[choice]
            air, work = seen.airtime_s[0, device, server, option] * 1e3, seen.edge_s[0, server, option] * 1e3
            deadline = (seen.deadline_s[0, device] - seen.hop_s) * 1e3
            latest = max(latest, deadline)
            radio, edge = len(upper), len(upper) + 1
            upper += [latest, latest]
            if before < 0:
                rows.add({radio: 1.0, choice: -air}, seen.radio_backlog_s[0, server] * 1e3, np.inf)
                rows.add({edge: 1.0, choice: -work}, seen.edge_backlog_s[0, server] * 1e3, np.inf)
            else:
                rows.add({radio: 1.0, before: -1.0, choice: -air}, 0.0, np.inf)
                rows.add({edge: 1.0, before + 1: -1.0, choice: -work}, 0.0, np.inf)
            rows.add({radio: 1.0, choice: -(ready[device, option] + air)}, 0.0, np.inf)
            rows.add({edge: 1.0, radio: -1.0, choice: -work}, 0.0, np.inf)
            rows.add({edge: 1.0, choice: latest - deadline}, -np.inf, latest)
            before = radio
    if not len(choices):
        return Solved(float(base.sum()), float(base.sum()), 0.0)
    cost = np.zeros(len(upper))
    cost[: len(choices)] = -gain[choices[:, 0], 0, choices[:, 2]]
    matrix = sparse.csr_array((rows.entry, (rows.row, rows.column)), shape=(len(rows.low), len(upper)))
    start = time.perf_counter()
    done = optimize.milp(
        cost,
        constraints=optimize.LinearConstraint(matrix, rows.low, rows.high),
        bounds=optimize.Bounds(0, np.array(upper)),
        integrality=np.arange(len(upper)) < len(choices),
        options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
    )
    seconds = time.perf_counter() - start
    found = 0.0 if done.x is None else -done.fun
    return Solved(float(base.sum() + found), float(base.sum() - done.mip_dual_bound), seconds)
