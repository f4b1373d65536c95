"""Greedy by model: admit every task at its smallest size, then upgrade while the slot's value rises.

What a decision would bring is computed, not estimated: the queues of ``mec.line`` are run with the times that are seen.
Every task is tried at every server beside the tasks that are there already, and an upgrade is the best of all changes
of one task: its option, its server, or back to its device.
"""

from collections.abc import Mapping
from types import MappingProxyType

import msgspec
import numpy as np

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.agent.search import Critic
from aecnn_deploy.offloading.baselines.lines import Ints, Lines, members_of
from aecnn_deploy.offloading.mec.observation import Actions, Floats, Observation, unpacked

ORDERS: Mapping[str, str] = MappingProxyType(
    {
        "slack": "least time to spare first, were it alone",
        "ready": "first ready first, the order of the line itself",
        "load": "least time of air and server first",
        "patient": "most time to spare first",
        "best": "all of these, in each slot the one that admits the most value",
    }
)
_TRIED = tuple(name for name in ORDERS if name != "best")
_MOST_CHANGES = 8192  # of one world and round; where there are more, upgrades keep a task at its server
_GAIN = 1e-9  # less is none


class GreedySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``margin``: a factor on every estimated time. ``doubt``: the share of a deadline over which a task's chance of
    being in time goes from 0 to 1, half of it on either side; 0: the model is believed. ``price``: accuracy that a
    second of queue is worth which a slot leaves to the next one. The plain rule is (1, 0, 0)."""

    order: str = "best"
    margin: float = 1.0
    doubt: float = 0.0
    price: float = 0.0
    rounds: int = 1000  # of upgrades at most

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise SettingsError(f"greedy knows no order {self.order!r}; it knows {', '.join(ORDERS)}")
        if not (
            0 < self.margin < np.inf and 0 <= self.doubt < np.inf and 0 <= self.price < np.inf and self.rounds >= 0
        ):
            raise SettingsError(
                f"greedy with margin {self.margin}, doubt {self.doubt}, price {self.price} and {self.rounds} rounds; "
                "expected a positive margin, the others at least 0"
            )


class Greedy:
    """Admit at the smallest size, then upgrade. Remembers nothing between slots."""

    def __init__(self, settings: GreedySettings | None = None, *, name: str = "greedy") -> None:
        self.settings, self._name = settings or GreedySettings(), name

    @property
    def name(self) -> str:
        return self._name

    def reset(self, batch: int) -> None:
        """Nothing is remembered from slot to slot."""

    def decide(self, seen: Observation) -> Actions:
        """[B, N]. Whoever has no chance of being in time stays local."""
        if not seen.active.any():
            return np.zeros(seen.active.shape, np.int64)
        settings = self.settings
        packed, places = seen.packed()
        lines = Lines.of(packed, settings.margin, settings.doubt, settings.price)
        plan = admit(lines, _TRIED if settings.order == "best" else (settings.order,))
        return unpacked(lines.actions(upgrade(lines, plan, settings.rounds)), places, seen.devices)


class CriticGreedy:
    """The same admission, but upgrades are what ``critic`` finds best: with the critic by model over drawn futures, the
    strongest rule there is here, and the slowest."""

    def __init__(self, critic: Critic, settings: GreedySettings | None = None, *, name: str = "greedy-futures") -> None:
        self.critic, self.settings, self._name = critic, settings or GreedySettings(), name

    @property
    def name(self) -> str:
        return self._name

    def reset(self, batch: int) -> None:
        """Nothing is remembered from slot to slot."""

    def decide(self, seen: Observation) -> Actions:
        """[B, N]."""
        packed, places = seen.packed()
        actions = Greedy(self.settings).decide(packed)
        single = np.arange(packed.devices * packed.choices)
        rows = np.arange(packed.batch)
        for _ in range(self.settings.rounds):
            changed = np.repeat(actions[:, None], 1 + len(single), axis=1)
            changed[:, 1 + single, single // packed.choices] = single % packed.choices
            worth = self.critic.score(packed, changed)
            best = np.where(worth.max(axis=1) > worth[:, 0] + _GAIN, worth.argmax(axis=1), 0)
            actions = changed[rows, best]
            if not best.any():
                break
        return unpacked(actions, places, seen.devices)


def admit(lines: Lines, orders: tuple[str, ...]) -> Ints:
    """[B, S, N]: the option of each admitted task at its server, -1 elsewhere; of several orders the best one.

    A task that its device computes in time stays there. Any other goes where it is done first, among the servers where
    it and all that are there already are in time; where there is none, it stays out.
    """
    small = lines.smallest()
    worlds, servers, tasks = small.shape
    wanted = lines.active & (lines.local == 0)
    keys = _keys(lines, small)
    sequence = np.stack([np.argsort(np.where(wanted, keys[name], np.inf), axis=1) for name in orders], axis=1)
    world, attempt = (index.ravel() for index in np.indices((worlds, len(orders))))
    rows, each = np.arange(len(world)), np.arange(servers)
    line_world, line_server = world.repeat(servers), np.tile(each, len(world))
    plan = np.full((len(world), servers, tasks), -1)
    for place in range(int(wanted.sum(axis=1).max(initial=0))):
        task = sequence[world, attempt, place]
        size = small[world[:, None], each, task[:, None]]
        member, option = members_of(plan.reshape(-1, tasks))
        member = np.concatenate([member, task.repeat(servers)[:, None]], axis=1)
        option = np.concatenate([option, size.reshape(-1, 1)], axis=1)
        finish, _ = lines.run(line_world, line_server, member, option)
        in_time = (finish <= lines.due_s[line_world[:, None], member]) | (option < 0)
        done = np.where(in_time.all(axis=1), finish[:, -1], np.inf).reshape(-1, servers)
        done = np.where(wanted[world, task][:, None], done, np.inf)
        first = done.argmin(axis=1)
        fits = np.isfinite(done[rows, first])
        plan[rows[fits], first[fits], task[fits]] = size[fits, first[fits]]
    if len(orders) == 1:
        return plan
    value = lines.values(plan, world).reshape(worlds, len(orders), servers).sum(axis=2)
    chosen: Ints = plan.reshape(worlds, len(orders), servers, tasks)[np.arange(worlds), value.argmax(axis=1)]
    return chosen


def upgrade(lines: Lines, plan: Ints, rounds: int) -> Ints:
    """``plan`` [B, S, N] after as many changes of one task as raise the model's value, at most ``rounds``."""
    _, servers, tasks = plan.shape
    plan = plan.copy()
    across = servers * tasks * (1 + len(lines.accuracy)) <= _MOST_CHANGES
    for _ in range(rounds):
        if not (_change_anywhere(lines, plan) if across else _change_sizes(lines, plan)):
            break
    return plan


def _change_anywhere(lines: Lines, plan: Ints) -> bool:
    """Make the best change of one task of each world, to any option of any server or to its device."""
    worlds, servers, tasks = plan.shape
    kinds = 1 + len(lines.accuracy)  # not there, or there by one of the options
    world, server, task, kind = (index.ravel() for index in np.indices((worlds, servers, tasks, kinds)))
    there = plan >= 0
    base = lines.values(plan)
    member, option = members_of(plan.reshape(-1, tasks))
    line = world * servers + server
    trial = np.where(member[line] == task[:, None], kind[:, None] - 1, option[line])
    trial = np.where(option[line] < 0, -1, trial)
    joins = np.where(there[world, server, task], -1, kind - 1)
    trial = np.concatenate([trial, joins[:, None]], axis=1)
    columns = np.concatenate([member[line], task[:, None]], axis=1)
    value = lines.worth(world, server, columns, trial).reshape(worlds, servers, tasks, kinds)
    change = value - base[..., None, None]
    local = np.where(there.any(axis=1), 0.0, lines.local)  # [B, N] what is lost by leaving the device
    leaving = np.where(there, change[..., 0], 0.0).sum(axis=1)  # [B, N] what the old line gains
    join = change[..., 1:] + np.where(there, 0.0, (leaving - local)[:, None])[..., None]  # [B, S, N, V]
    home = np.where(there.any(axis=1), leaving + lines.local, 0.0)
    gain = np.concatenate([home[:, None], join.transpose(0, 1, 3, 2).reshape(worlds, -1, tasks)], axis=1)
    gain = np.where(lines.active[:, None], gain, 0.0).reshape(worlds, -1)
    best = gain.argmax(axis=1)
    better = gain[np.arange(worlds), best] > _GAIN
    choice, moved = np.divmod(best[better], tasks)
    row = np.flatnonzero(better)
    plan[row, :, moved] = -1
    off = choice > 0
    to, by = np.divmod(choice[off] - 1, kinds - 1)
    plan[row[off], to, moved[off]] = by
    return bool(better.any())


def _change_sizes(lines: Lines, plan: Ints) -> bool:
    """Make the best change of one task of each line, to another option there or to its device."""
    _, servers, tasks = plan.shape
    kinds = 1 + len(lines.accuracy)
    member, option = members_of(plan.reshape(-1, tasks))
    line, column, kind = (index.ravel() for index in np.indices((*member.shape, kinds)))
    trial = option[line]
    taken = trial[np.arange(len(line)), column] >= 0
    trial[np.arange(len(line)), column] = np.where(taken, kind - 1, -1)
    world, server = np.divmod(line, servers)
    gain = lines.worth(world, server, member[line], trial) - lines.values(plan).ravel()[line]
    gain += np.where(kind == 0, lines.local[world, member[line, column]], 0.0)
    gain = np.where(taken, gain, 0.0).reshape(len(member), -1)
    best = gain.argmax(axis=1)
    better = gain[np.arange(len(gain)), best] > _GAIN
    column, kind = np.divmod(best[better], kinds)
    rows = np.flatnonzero(better)
    plan.reshape(-1, tasks)[rows, member[rows, column]] = kind - 1
    return bool(better.any())


def _keys(lines: Lines, small: Ints) -> dict[str, Floats]:
    """[B, N] for each order: tasks are admitted from the least to the greatest."""
    alone, load, ready = lines.alone(small)
    due = lines.due_s
    spare = np.where(np.isfinite(alone), due - alone, np.inf)
    return {"slack": spare, "ready": ready, "load": load, "patient": np.where(np.isfinite(alone), alone - due, np.inf)}
