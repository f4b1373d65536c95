"""The lines of one slot as the model sees them: who stands at which server by which option, and what that is worth."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecnn_deploy.offloading.mec.line import serve
from aecnn_deploy.offloading.mec.observation import Actions, Flags, Floats, Observation

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Lines:
    """Estimates of one slot of B worlds, times a margin. A plan is [B, S, N]: each task's option, -1: not there."""

    active: Flags  # [B, N]
    due_s: Floats  # [B, N] deadline less the hop
    ready_s: Floats  # [B, N, V]
    air_s: Floats  # [B, N, S, V]
    edge_s: Floats  # [B, S, V]
    radio_s: Floats  # [B, S] backlog
    queue_s: Floats  # [B, S] backlog
    local: Floats  # [B, N] what a local decision is worth
    accuracy: Floats  # [V]
    slot_s: float
    shared_radio: bool
    doubt_s: Floats  # [B, N] over which a task's chance of being in time goes from 0 to 1
    price: float

    @classmethod
    def of(cls, seen: Observation, margin: float, doubt: float, price: float) -> "Lines":
        """The lines of ``seen``; the parameters are those of ``GreedySettings``."""
        fits = seen.local_fits() & (seen.device_backlog_s + seen.local_s * margin <= seen.deadline_s)
        return cls(
            active=seen.active,
            due_s=seen.deadline_s - seen.hop_s,
            ready_s=seen.device_backlog_s[..., None] + seen.device_s * margin,
            air_s=seen.airtime_s * margin,
            edge_s=seen.edge_s * margin,
            radio_s=seen.radio_backlog_s,
            queue_s=seen.edge_backlog_s,
            local=np.where(fits, seen.local_accuracy, 0.0),
            accuracy=seen.accuracy,
            slot_s=seen.slot_s,
            shared_radio=seen.shared_radio,
            doubt_s=doubt * seen.deadline_s,
            price=price,
        )

    def run(self, world: Ints, server: Ints, member: Ints, option: Ints) -> tuple[Floats, Floats]:
        """R lines, each of one server of one world: ``member`` [R, L] tasks by ``option`` [R, L], -1: not there.

        Returns when each is done [R, L], inf: never, and the seconds beyond the slot that the line leaves behind [R].
        """
        at, of, by = world[:, None], server[:, None], np.maximum(option, 0)
        served = serve(
            np.where(option >= 0, 0, -1),
            self.ready_s[at, member, by],
            self.air_s[at, member, of, by],
            self.edge_s[at, of, by],
            self.due_s[at, member],
            self.radio_s[world, server][:, None],
            self.queue_s[world, server][:, None],
            shared_radio=self.shared_radio,
        )
        left = np.maximum(served.radio_free_s - self.slot_s, 0) + np.maximum(served.edge_free_s - self.slot_s, 0)
        return served.finish_s, left[:, 0]

    def chance(self, world: Ints, member: Ints, finish_s: Floats) -> Floats:
        """[R, L]: the chance of tasks that the model sees done at ``finish_s`` [R, L] to be in time."""
        spare = self.due_s[world[:, None], member] - finish_s
        if not self.doubt_s.any():
            return (spare >= 0).astype(np.float64)
        return np.clip(spare / self.doubt_s[world[:, None], member] + 0.5, 0.0, 1.0)

    def worth(self, world: Ints, server: Ints, member: Ints, option: Ints) -> Floats:
        """[R]: the accuracies of each line's tasks in time, less the price of what it leaves behind."""
        finish, left = self.run(world, server, member, option)
        value = np.where(option >= 0, self.accuracy[np.maximum(option, 0)], 0.0)
        total: Floats = (self.chance(world, member, finish) * value).sum(axis=1)
        return total - self.price * left if self.price else total

    def values(self, plan: Ints, world: Ints | None = None) -> Floats:
        """[P, S]: what each line of ``plan`` [P, S, N] is worth; ``world`` [P]: which world each plan is of."""
        plans, servers, tasks = plan.shape
        world = np.arange(plans) if world is None else world
        member, option = members_of(plan.reshape(-1, tasks))
        server = np.tile(np.arange(servers), plans)
        return self.worth(world.repeat(servers), server, member, option).reshape(plans, servers)

    def smallest(self) -> Ints:
        """[B, S, N]: the option of each task that takes least of air and server together."""
        load = self.air_s + self.edge_s[:, None]
        least: Ints = load.argmin(axis=3).transpose(0, 2, 1)
        return least

    def alone(self, small: Ints) -> tuple[Floats, Floats, Floats]:
        """[B, N] each, at the best server by option ``small`` [B, S, N]: when done alone, its load, when ready."""
        by = small.transpose(0, 2, 1)[..., None]  # [B, N, S, 1]
        ready = np.take_along_axis(self.ready_s, by[..., 0], axis=2)  # [B, N, S]
        air = np.take_along_axis(self.air_s, by, axis=3)[..., 0]
        edge = np.take_along_axis(np.broadcast_to(self.edge_s[:, None], self.air_s.shape), by, axis=3)[..., 0]
        start = np.maximum(ready, self.radio_s[:, None]) if self.shared_radio else ready
        done = np.maximum(start + air, self.queue_s[:, None]) + edge
        return done.min(axis=2), (air + edge).min(axis=2), ready.min(axis=2)

    def actions(self, plan: Ints) -> Actions:
        """[B, N] decisions of a plan; a task without a chance to be in time stays local."""
        plans, servers, tasks = plan.shape
        member, option = members_of(plan.reshape(-1, tasks))
        world, server = np.divmod(np.arange(plans * servers), servers)
        finish, _ = self.run(world, server, member, option)
        good = (option >= 0) & (self.chance(world, member, finish) > 0)
        codes = np.zeros((plans, tasks), np.int64)
        row, column = np.nonzero(good)
        codes[world[row], member[row, column]] = 1 + server[row] * len(self.accuracy) + option[row, column]
        return codes


def members_of(plan: Ints) -> tuple[Ints, Ints]:
    """[R, L] which tasks stand in each of R lines of ``plan`` [R, N], and their options; -1 fills up shorter lines."""
    longest = int((plan >= 0).sum(axis=1).max(initial=0))
    member = np.argsort(plan < 0, axis=1, kind="stable")[:, :longest]
    return member, np.take_along_axis(plan, member, axis=1)
