"""First come, first served: what becomes of the tasks of one slot at the access points and at the servers.

Each server stands behind one access point. Tasks that are sent to it take the air one after another in the order in
which their devices are ready (or each has a channel of its own), and then the server one after another in the order
in which they arrive. A task that could only begin after its deadline is dropped there and takes no time, as our edge
and our device do.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_FEW_ROWS = 20  # up to here plain numbers are faster than arrays of so few


@dataclass(frozen=True)
class Served:
    """R rows, each one slot of one world under one decision."""

    finish_s: Floats  # [R, N] when the server has the answer; inf: not offloaded, or dropped
    sent: Flags  # [R, N] it took the air
    radio_free_s: Floats  # [R, S]
    edge_free_s: Floats  # [R, S]


def serve(
    server: Ints,
    ready_s: Floats,
    airtime_s: Floats,
    service_s: Floats,
    deadline_s: Floats,
    radio_free_s: Floats,
    edge_free_s: Floats,
    *,
    shared_radio: bool,
) -> Served:
    """What becomes of N tasks in each of R rows. All [R, N] but ``radio_free_s`` and ``edge_free_s``, [R, S].

    ``server``: -1 where a task is not offloaded. ``deadline_s``: when the server must have begun at the latest to
    bother, the answer's way back taken off. ``airtime_s`` or ``service_s`` of inf: never arrives, never done.
    """
    rows, devices = server.shape
    servers = radio_free_s.shape[1]
    offloaded = server >= 0
    reached = ready_s if shared_radio else ready_s + airtime_s
    order = np.argsort(np.where(offloaded, reached, np.inf), axis=1, kind="stable")
    offloads = offloaded.sum(axis=1)
    if rows <= _FEW_ROWS:
        return _serve_few(
            order,
            offloads.tolist(),
            server,
            ready_s.tolist(),
            airtime_s.tolist(),
            service_s.tolist(),
            deadline_s.tolist(),
            radio_free_s.tolist(),
            edge_free_s.tolist(),
            shared_radio,
        )
    longest = int(offloads.max(initial=0))
    base = np.arange(rows) * devices
    lane_base = np.arange(rows) * servers
    radio, edge = radio_free_s.ravel().copy(), edge_free_s.ravel().copy()
    finish = np.full(rows * devices, np.inf)
    sent = np.zeros(rows * devices, bool)
    flat_server, flat_ready = server.ravel(), ready_s.ravel()
    flat_air, flat_service, flat_deadline = airtime_s.ravel(), service_s.ravel(), deadline_s.ravel()
    for place in range(longest):
        task = base + order[:, place]
        lane = lane_base + np.maximum(flat_server[task], 0)
        deadline = np.where(flat_server[task] >= 0, flat_deadline[task], -np.inf)
        start = flat_ready[task]
        if shared_radio:
            free = radio[lane]
            start = np.maximum(start, free)
        goes = start < deadline
        arrival = start + flat_air[task]
        goes &= np.isfinite(arrival)
        if shared_radio:
            radio[lane] = np.where(goes, arrival, free)
        sent[task] = goes
        busy = edge[lane]
        begin = np.maximum(arrival, busy)
        done = begin + flat_service[task]
        served = goes & (begin < deadline) & np.isfinite(done)
        edge[lane] = np.where(served, done, busy)
        finish[task] = np.where(served, done, np.inf)
    shape = (rows, devices)
    return Served(finish.reshape(shape), sent.reshape(shape), radio.reshape(rows, servers), edge.reshape(rows, servers))


_Table = list[list[float]]


def _serve_few(
    order: Ints,
    offloads: list[int],
    server: Ints,
    ready_s: _Table,
    airtime_s: _Table,
    service_s: _Table,
    deadline_s: _Table,
    radio_free_s: _Table,
    edge_free_s: _Table,
    shared_radio: bool,
) -> Served:
    """``serve`` of few rows, task by task: the same numbers to the bit. ``offloads``: of each row."""
    finish = np.full(server.shape, np.inf)
    sent = np.zeros(server.shape, bool)
    for row, (tasks, lanes) in enumerate(zip(order.tolist(), server.tolist(), strict=True)):
        ready, airtime, service, deadlines = ready_s[row], airtime_s[row], service_s[row], deadline_s[row]
        radio, edge = radio_free_s[row], edge_free_s[row]
        for task in tasks[: offloads[row]]:
            lane, deadline = lanes[task], deadlines[task]
            start = max(ready[task], radio[lane]) if shared_radio else ready[task]
            arrival = start + airtime[task]
            if lane < 0 or not (start < deadline and arrival < inf):
                continue
            sent[row, task] = True
            if shared_radio:
                radio[lane] = arrival
            begin = max(arrival, edge[lane])
            done = begin + service[task]
            if begin < deadline and done < inf:
                edge[lane] = done
                finish[row, task] = done
    return Served(finish, sent, np.array(radio_free_s), np.array(edge_free_s))
