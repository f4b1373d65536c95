"""What no policy exceeds in a run, even one that knows everything beforehand. docs/bounds.md has the proofs.

Both bounds take the draws of the simulator, which no decision changes, and ask how much the tasks can be worth if each
machine does one thing at a time. ``clairvoyant_bound`` asks it of all slots together; ``per_slot_bound`` of each slot
alone, as if all queues were empty when it begins, which is weaker and far cheaper.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.offloading.bounds.relaxation import Alternatives, Ints, Relaxed, Uses, relaxed
from aecnn_deploy.offloading.mec.observation import Floats, Observation
from aecnn_deploy.offloading.mec.scenario import Scenario
from aecnn_deploy.offloading.mec.world import Truth, World


@dataclass(frozen=True)
class ClairvoyantBound:
    """Scores as ``evaluate`` counts them: accuracies of the tasks in time, a second and world."""

    score: float  # no policy's is higher
    lp_score: float  # the same by the linear programme
    proven: bool  # the relaxation was solved in every world, to one part in 10,000: more time would give no less
    worlds: int
    slots: int


@dataclass(frozen=True)
class PerSlotBound:
    """As ClairvoyantBound, of slots with empty queues."""

    score: float
    scores: Floats  # [slots]; no policy's score of a slot is higher
    proven_share: float  # of slots whose relaxation was solved to its optimum
    worlds: int
    slots: int


@dataclass(frozen=True)
class _Slot:
    seen: Observation
    truth: Truth


def clairvoyant_bound(
    scenario: Scenario,
    seed: int,
    *,
    slots: int | None = None,
    batch: int = 1,
    whole: bool = True,
    time_limit_s: float = 60.0,
) -> ClairvoyantBound:
    """No policy's score in the first ``slots`` slots of ``World(scenario, batch=batch, seed=seed)`` is higher.

    ``slots`` of None: the whole episode. ``time_limit_s`` is for each world; ``score`` holds at any limit.
    Raises SettingsError: no slot, more than the episode has, or no time. MissingExtraError: scipy is not installed.
    """
    records = _recorded(scenario, seed, slots, batch, time_limit_s)
    solved = [_all_slots(scenario, records, world, whole, time_limit_s) for world in range(batch)]
    seconds = len(records) * batch * scenario.slot_ms / 1e3
    return ClairvoyantBound(
        score=sum(found.bound for found in solved) / seconds,
        lp_score=sum(found.lp_bound for found in solved) / seconds,
        proven=all(found.proven for found in solved),
        worlds=batch,
        slots=len(records),
    )


def per_slot_bound(
    scenario: Scenario,
    seed: int,
    *,
    slots: int | None = None,
    batch: int = 1,
    whole: bool = True,
    time_limit_s: float = 10.0,
    on_slot: Callable[[], None] | None = None,
) -> PerSlotBound:
    """No policy's score in any slot of ``World(scenario, batch=batch, seed=seed)`` is higher: the truth, empty queues.

    ``whole`` of False: by linear programmes alone. ``time_limit_s`` is for each slot of each world. Errors as in
    ``clairvoyant_bound``.
    """
    records = _recorded(scenario, seed, slots, batch, time_limit_s)
    values, proven = np.zeros(len(records)), 0
    for slot, record in enumerate(records):
        for world in range(batch):
            found: Relaxed = relaxed(_alternatives(scenario, [record], world), whole=whole, time_limit_s=time_limit_s)
            values[slot] += found.bound
            proven += found.proven
        if on_slot is not None:
            on_slot()
    scores = values / (batch * scenario.slot_ms / 1e3)
    return PerSlotBound(float(scores.mean()), scores, proven / (len(records) * batch), batch, len(records))


def _all_slots(scenario: Scenario, records: Sequence[_Slot], world: int, whole: bool, time_limit_s: float) -> Relaxed:
    """All slots together, and slot by slot with a half of the time: what is the lesser of the two."""
    until = time.perf_counter() + time_limit_s / 2
    apart = 0.0
    for left, record in zip(range(len(records), 0, -1), records, strict=True):
        share_s = max(until - time.perf_counter(), 0.1) / left if whole else time_limit_s
        apart += relaxed(_alternatives(scenario, [record], world), whole=whole, time_limit_s=share_s).bound
    rest_s = max(until + time_limit_s / 2 - time.perf_counter(), 0.1)
    together = relaxed(_alternatives(scenario, records, world), whole=whole, time_limit_s=rest_s)
    return replace(together, bound=min(together.bound, apart))


def _recorded(scenario: Scenario, seed: int, slots: int | None, batch: int, time_limit_s: float) -> list[_Slot]:
    """What each slot brings, whatever is decided: the world is run with a decision that does not matter."""
    count = scenario.slots if slots is None else slots
    if not 1 <= count <= scenario.slots:
        raise SettingsError(f"a bound of {count} slots; the episode of {scenario.name} has 1 to {scenario.slots}")
    if batch < 1 or not time_limit_s > 0:
        raise SettingsError(f"a bound of {batch} worlds in {time_limit_s} s; expected at least one, and a time above 0")
    world = World(scenario, batch=batch, seed=seed)
    idle = np.zeros((batch, scenario.devices.count), np.int64)
    records = []
    for _ in range(count):
        records.append(_Slot(world.observe(), world.truth()))
        world.step(idle)
    return records


def _alternatives(scenario: Scenario, records: Sequence[_Slot], world: int) -> Alternatives:
    """Every way to do every task of ``records``, one slot after another, in absolute time."""
    tasks: list[Ints] = []
    values: list[Floats] = []
    uses: list[Uses] = []
    ways = 0
    lives = np.zeros(scenario.servers.count, np.int64)  # of each server: one more with each slot that it was down
    for slot, record in enumerate(records):
        seen, truth = record.seen, record.truth
        begin_ms = slot * scenario.slot_ms
        deadline_ms = begin_ms + seen.deadline_s[world] * 1e3
        first_task = slot * seen.devices
        noise, edge_noise = truth.device_noise[world], truth.edge_noise[world]

        # the device begins only what it expects to do in time, even if nothing else waits
        local = np.flatnonzero(seen.active[world] & (seen.local_s[world] <= seen.deadline_s[world] + 1e-9))
        tasks.append(first_task + local)
        values.append(np.full(len(local), seen.local_accuracy))
        uses.append(_uses(local, ways, begin_ms, deadline_ms[local], (seen.local_s[world] * noise)[local] * 1e3))
        ways += len(local)

        reached = np.isfinite(truth.airtime_s[world]) & np.isfinite(truth.edge_s[world])
        device, server, option = np.nonzero(reached & seen.active[world][:, None, None])
        work_ms = seen.device_s[world, device, option] * noise[device] * 1e3
        air_ms = truth.airtime_s[world, device, server, option] * 1e3
        service_ms = truth.edge_s[world, server, option] * edge_noise[device] * 1e3
        latest_ms = deadline_ms[device] - seen.hop_s * 1e3
        ready_ms = begin_ms + work_ms
        tasks.append(first_task + device)
        values.append(seen.accuracy[option])
        radio, edge = seen.devices + server, seen.devices + seen.servers * (1 + lives[server]) + server
        uses.append(_uses(device, ways, begin_ms, latest_ms - service_ms - air_ms, work_ms))
        if seen.shared_radio:
            uses.append(_uses(radio, ways, ready_ms, latest_ms - service_ms, air_ms))
        uses.append(_uses(edge, ways, ready_ms + air_ms, latest_ms, service_ms))
        ways += len(device)
        for server_down, first, back in scenario.servers.fails:
            lives[server_down] += first <= slot < back
    return Alternatives(np.concatenate(tasks), np.concatenate(values), Uses.joined(uses))


def _uses(machine: Ints, first: int, release_ms: Floats | float, deadline_ms: Floats, work_ms: Floats) -> Uses:
    """Uses of the alternatives that count from ``first``, one of each machine."""
    release = np.broadcast_to(np.asarray(release_ms, float), deadline_ms.shape)
    return Uses(machine, np.arange(first, first + len(machine)), release, deadline_ms, work_ms)


def shortened(scenario: Scenario, slots: int | None) -> Scenario:
    """``scenario`` with an episode of ``slots``, of which no server fails later than it lasts."""
    if slots is None or slots == scenario.slots:
        return scenario
    fails = tuple(fail for fail in scenario.servers.fails if fail[1] < slots)
    return msgspec.structs.replace(
        scenario, slots=slots, servers=msgspec.structs.replace(scenario.servers, fails=fails)
    )
