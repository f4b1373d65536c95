"""An upper bound whatever the order of service: each machine has only so much time between two moments.

A machine is a device's processor, an access point or a server; it works on one task at a time. A task that is in time
by one of its alternatives occupies each machine on the way for a known time without a break, within a window: not
before its earliest readiness, and early enough for what must follow. Between any moments R and D a machine has D − R
seconds for what must be done there. These intervals, found as they are needed, bound the value by a linear programme,
and with whole tasks by an integer one. No order, no queue and no drop rule is assumed, so what any policy achieves in
the simulator satisfies them all (docs/bounds.md has the proof).
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecnn_deploy.offloading.mec.observation import LOCAL, Observation
from aecnn_deploy.optional import require

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SLACK_MS = 1e-6  # of every interval, against rounding
_VIOLATED_MS = 1e-4  # an interval is added where it is overfull by this much
_CUTS = 40  # intervals of one machine that are added at once
_ROUNDS = 200
_RELATIVE_GAP = 1e-4  # of the integer programme
_WHY = "a bound by linear programming"


@dataclass(frozen=True)
class Uses:
    """What alternatives ask of machines, U rows; milliseconds."""

    machine: Ints
    alternative: Ints
    release_ms: Floats
    deadline_ms: Floats  # the work is done at the latest
    work_ms: Floats

    @classmethod
    def joined(cls, parts: "list[Uses]") -> "Uses":
        """All rows of ``parts``."""
        names = ("machine", "alternative", "release_ms", "deadline_ms", "work_ms")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Alternatives:
    """K ways to do tasks; at most one of each task. ``task`` counts from 0."""

    task: Ints  # [K]
    value: Floats  # [K] at least 0
    uses: Uses


@dataclass(frozen=True)
class Relaxed:
    """What the relaxation says."""

    bound: float
    lp_bound: float  # of the linear programme
    proven: bool  # ``bound`` is the relaxation's optimum to one part in 10,000: more time would give no less
    intervals: int


def relaxed(alternatives: Alternatives, *, whole: bool, time_limit_s: float) -> Relaxed:
    """The most that tasks can be worth together; ``whole``: none is done by halves. ``bound`` holds at any limit.

    Linear programmes are bounded by their dual multipliers, made feasible, so that no tolerance of the solver counts;
    the integer programme by HiGHS's own dual bound. Raises MissingExtraError: scipy is not installed.
    """
    programme = _Programme(alternatives)
    if not len(programme.value):
        return Relaxed(0.0, 0.0, True, 0)
    until = time.perf_counter() + time_limit_s
    lp_bound, settled = programme.rounds(programme.solve_lp, until)
    bound, proven = lp_bound, settled
    if whole and time.perf_counter() < until:
        whole_bound, proven = programme.rounds(programme.solve_whole, until)
        bound = min(bound, whole_bound)
    elif whole:
        proven = False
    return Relaxed(bound, lp_bound, proven, len(programme.limits))


def lp_bound(seen: Observation, *, time_limit_s: float = 60.0) -> float:
    """No decision in one world (B = 1) is worth more, if everything comes as it is seen: accuracies in time, added.

    Raises MissingExtraError: scipy is not installed.
    """
    return relaxed(slot_alternatives(seen), whole=False, time_limit_s=time_limit_s).bound


def slot_alternatives(seen: Observation) -> Alternatives:
    """The alternatives of one world's slot, as they are seen, behind the queues that are there."""
    local = np.flatnonzero(seen.local_fits()[0])
    feasible = seen.feasible()[0, :, 1:].reshape(seen.devices, seen.servers, seen.options)
    device, server, option = np.nonzero(feasible)
    ready = (seen.device_backlog_s[0, :, None] + seen.device_s[0])[device, option]
    air = seen.airtime_s[0, device, server, option]
    service = seen.edge_s[0, server, option]
    latest = seen.deadline_s[0, device] - seen.hop_s
    if seen.shared_radio:
        ready = np.maximum(ready, seen.radio_backlog_s[0, server])
    number = np.arange(len(device))
    arrival = np.maximum(ready + air, seen.edge_backlog_s[0, server])
    uses = [Uses(server, number, arrival * 1e3, latest * 1e3, service * 1e3)]
    if seen.shared_radio:
        uses.append(Uses(seen.servers + server, number, ready * 1e3, (latest - service) * 1e3, air * 1e3))
    return Alternatives(
        np.concatenate([device, local]),
        np.concatenate([seen.accuracy[option], np.full(len(local), seen.values()[0, local, LOCAL])]),
        Uses.joined(uses),
    )


class _Programme:
    """max value·x, at most one alternative of each task, and the intervals found so far."""

    def __init__(self, alternatives: Alternatives) -> None:
        uses = alternatives.uses
        late = uses.release_ms + uses.work_ms > uses.deadline_ms + _SLACK_MS
        kept = np.ones(len(alternatives.task), bool)
        kept[uses.alternative[late]] = False
        number = np.cumsum(kept) - 1
        rows = kept[uses.alternative]
        self.value = alternatives.value[kept]
        _, self.task = np.unique(alternatives.task[kept], return_inverse=True)
        self.tasks = int(self.task.max(initial=-1)) + 1
        order = np.argsort(uses.machine[rows], kind="stable")
        machine = uses.machine[rows][order]
        self.column = number[uses.alternative[rows]][order]
        self.release, self.deadline = uses.release_ms[rows][order], uses.deadline_ms[rows][order]
        self.work = uses.work_ms[rows][order]
        borders = np.flatnonzero(np.diff(machine)) + 1
        self.machines = [part for part in np.split(np.arange(len(machine)), borders) if len(part)]
        self.columns: list[Ints] = []  # of each interval
        self.needs: list[Floats] = []
        self.limits: list[float] = []
        self._known: set[tuple[int, float, float]] = set()

    def rounds(self, solve: Callable[[float], tuple[float, Floats, bool]], until: float) -> tuple[float, bool]:
        """Solve and add intervals in turn: the best bound, and whether the last solution overfills none."""
        best = float(self._best_alone().sum())
        for _ in range(_ROUNDS):
            bound, x, optimal = solve(max(until - time.perf_counter(), 0.1))
            best = min(best, bound)
            if not optimal:
                return best, False
            if not self._separate(x):
                return best, True
            if time.perf_counter() > until:
                return best, False
        return best, False

    def _best_alone(self) -> Floats:
        best = np.zeros(self.tasks)
        np.maximum.at(best, self.task, self.value)
        return best

    def _matrix(self) -> tuple[object, Floats]:
        """Rows: one for each task, then the intervals; and their right-hand sides."""
        sparse = require("scipy.sparse", why=_WHY)
        rows = [self.task, *(np.full(len(part), self.tasks + i) for i, part in enumerate(self.columns))]
        columns = np.concatenate([np.arange(len(self.task)), *self.columns])
        entries = np.concatenate([np.ones(len(self.task)), *self.needs])
        shape = (self.tasks + len(self.limits), len(self.value))
        matrix = sparse.csr_array((entries, (np.concatenate(rows), columns)), shape=shape)
        return matrix, np.concatenate([np.ones(self.tasks), self.limits])

    def solve_lp(self, time_limit_s: float) -> tuple[float, Floats, bool]:
        """The bound by the multipliers of the intervals, and x."""
        optimize = require("scipy.optimize", why=_WHY)
        matrix, limits = self._matrix()
        done = optimize.linprog(
            -self.value, A_ub=matrix, b_ub=limits, method="highs", options={"time_limit": time_limit_s}
        )
        if done.status != 0:
            return np.inf, np.zeros(len(self.value)), False
        prices = np.maximum(-done.ineqlin.marginals[self.tasks :], 0.0)
        left = self.value.copy()
        for columns, needs, price in zip(self.columns, self.needs, prices, strict=True):
            if price:
                np.subtract.at(left, columns, needs * price)
        best = np.zeros(self.tasks)
        np.maximum.at(best, self.task, left)
        return float(best.sum() + prices @ np.array(self.limits)), done.x, True

    def solve_whole(self, time_limit_s: float) -> tuple[float, Floats, bool]:
        """HiGHS's dual bound, and x."""
        optimize = require("scipy.optimize", why=_WHY)
        matrix, limits = self._matrix()
        with _quiet():
            done = optimize.milp(
                -self.value,
                constraints=optimize.LinearConstraint(matrix, -np.inf, limits),
                bounds=optimize.Bounds(0, 1),
                integrality=np.ones(len(self.value)),
                options={"time_limit": time_limit_s, "mip_rel_gap": _RELATIVE_GAP},
            )
        bound = np.inf if done.mip_dual_bound is None else -float(done.mip_dual_bound)
        x = np.zeros(len(self.value)) if done.x is None else np.round(done.x)
        return bound + 1e-6, x, done.status == 0

    def _separate(self, x: Floats) -> bool:
        """Add the intervals that ``x`` overfills most; whether there were any."""
        added = False
        for rows in self.machines:
            added |= self._separate_machine(rows, x)
        return added

    def _separate_machine(self, rows: Ints, x: Floats) -> bool:
        busy = rows[x[self.column[rows]] > 1e-9]
        if not len(busy):
            return False
        moments_from, at_from = np.unique(self.release[busy], return_inverse=True)
        moments_to, at_to = np.unique(self.deadline[busy], return_inverse=True)
        asked = np.zeros((len(moments_from), len(moments_to)))
        np.add.at(asked, (at_from, at_to), self.work[busy] * x[self.column[busy]])
        asked = np.cumsum(np.cumsum(asked[::-1], axis=0)[::-1], axis=1)  # released at or after, due at or before
        over = asked - np.maximum(moments_to - moments_from[:, None], 0.0)
        worst = over.argmax(axis=0)
        size = over[worst, np.arange(len(moments_to))]
        added = False
        for place in np.argsort(-size)[:_CUTS]:
            if size[place] <= _VIOLATED_MS:
                break
            added |= self._add(rows, float(moments_from[worst[place]]), float(moments_to[place]))
        return added

    def _add(self, rows: Ints, first: float, last: float) -> bool:
        """The interval of one machine: what each alternative must do within it at the least, done early or late."""
        key = (int(rows[0]), first, last)
        if key in self._known or last <= first:
            return False
        self._known.add(key)
        release, deadline, work = self.release[rows], self.deadline[rows], self.work[rows]
        early = np.minimum(last, release + work) - np.maximum(first, release)
        late = np.minimum(last, deadline) - np.maximum(first, deadline - work)
        need = np.maximum(np.minimum(early, late), 0.0)
        some = need > 1e-9
        self.columns.append(self.column[rows[some]])
        self.needs.append(need[some])
        self.limits.append(last - first + _SLACK_MS)
        return True


@contextmanager
def _quiet() -> Iterator[None]:
    """HiGHS prints debugging lines from its heuristics to the process's standard output; they are thrown away."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
