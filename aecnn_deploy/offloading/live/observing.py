"""The observation of a slot, from what devices and edges told: the arrays that a policy sees in the simulator.

Devices tell milliseconds, as of when they told; observations have seconds, as of the slot's start. A frame that is
expected within the slot counts as if it came at the slot's start, as tasks do in the simulator. What the simulator
calls airtime is here all that passes between the end of coding and the arrival at the edge, waiting for the device's
own messages included, since every device has a link of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aecnn_deploy.offloading.live.roster import EdgeSeen, Member
from aecnn_deploy.offloading.mec.observation import Floats, Observation
from aecnn_deploy.runtimes.controller_messages import EdgeTold, State, WayTold

_EARLY = 0.25  # of a slot: a frame may come so much earlier than is expected
_MOST_S = 1e6  # anything longer is never


@dataclass(frozen=True)
class Catalogue:
    """What is known beforehand. ``accuracy``: [V], 0 to 1, of the bundle's variants in the manifest's order."""

    edges: tuple[str, ...]
    variants: tuple[str, ...]
    accuracy: tuple[float, ...]
    local_accuracy: float
    slot_s: float


@dataclass(frozen=True, slots=True)
class _Told:
    """What one device said of one edge, by the controller's indexes."""

    device: int
    edge: int
    age_s: float
    told: EdgeTold
    ways: dict[int, WayTold]  # by the bundle's variant


def observe(
    catalogue: Catalogue, members: Sequence[Member], now_s: float, seen: dict[int, EdgeSeen] | None = None
) -> Observation:
    """The slot that begins at ``now_s``: 1 world, N = the members, S edges, V variants. Each member has a state.

    ``seen``: what edges say themselves, by index: for those that no device has spoken to lately.
    """
    devices, servers, options = len(members), len(catalogue.edges), len(catalogue.variants)
    active = np.zeros((1, devices), bool)
    deadline_s, backlog_s, local_s = (np.zeros((1, devices)) for _ in range(3))
    device_s = np.full((1, devices, options), np.inf)
    airtime_s = np.full((1, devices, servers, options), np.inf)
    every = list(_all_told(members, now_s))
    hop_s = min((each.told.fixed_ms / 1e3 for each in every if each.told.up), default=0.0)
    for number, member in enumerate(members):
        state, age_s = member.state, now_s - member.told_s
        assert state is not None
        waits_s = _seconds(state.frame_in_ms) - age_s
        active[0, number] = state.frame_in_ms is not None and waits_s < catalogue.slot_s * (1 + _EARLY)
        deadline_s[0, number] = max(0.0, _seconds(state.deadline_ms) - (age_s if state.frame_in_ms == 0 else 0.0))
        backlog_s[0, number] = max(0.0, _seconds(state.backlog_ms) - age_s)
        local_s[0, number] = _seconds(state.local_ms)
        device_s[0, number] = _device_s(member, state)
    for each in every:
        if each.told.up:
            extra_s = each.told.fixed_ms / 1e3 - hop_s
            for option, way in each.ways.items():
                airtime_s[0, each.device, each.edge, option] = way.air_ms / 1e3 + extra_s
    # A head that was not timed is none that the device can run.
    airtime_s = np.where(np.isfinite(device_s)[:, :, None, :], airtime_s, np.inf)
    device_s = np.where(np.isfinite(device_s), device_s, 0.0)
    edge_s, edge_backlog_s = _edges(every, servers, options, seen or {}, now_s)
    return Observation(
        active=active,
        deadline_s=deadline_s,
        device_backlog_s=backlog_s,
        local_s=local_s,
        device_s=device_s,
        airtime_s=np.where(airtime_s < _MOST_S, airtime_s, np.inf),
        edge_s=edge_s,
        radio_backlog_s=np.zeros((1, servers)),
        edge_backlog_s=edge_backlog_s,
        accuracy=np.array(catalogue.accuracy),
        local_accuracy=catalogue.local_accuracy,
        hop_s=hop_s,
        slot_s=catalogue.slot_s,
        shared_radio=False,
    )


def _seconds(milliseconds: float | None) -> float:
    """Infinite where there is none."""
    return np.inf if milliseconds is None else milliseconds / 1e3


def _device_s(member: Member, state: State) -> NDArray[np.float64]:
    """[V] seconds of reading, head and coding; infinite: the device cannot run it."""
    told = [None if index is None else state.device_ms[index] for index in member.variants]
    return np.array([_seconds(each) for each in told])


def _all_told(members: Sequence[Member], now_s: float) -> Iterator[_Told]:
    for number, member in enumerate(members):
        assert member.state is not None
        by_edge = {told.edge: told for told in member.state.edges}
        own = {index: option for option, index in enumerate(member.variants) if index is not None}
        for edge, index in enumerate(member.edges):
            if index is not None and (told := by_edge.get(index)) is not None:
                ways = {own[way.variant]: way for way in told.ways if way.variant in own}
                yield _Told(number, edge, now_s - member.told_s, told, ways)


def _edges(
    every: Sequence[_Told], servers: int, options: int, seen: dict[int, EdgeSeen], now_s: float
) -> tuple[Floats, Floats]:
    """[1, S, V] seconds of one request alone, [1, S] seconds until what waits is done: by the freshest word of each."""
    edge_s, backlog_s = np.full((1, servers, options), np.inf), np.zeros((1, servers))
    for edge in range(servers):
        here = [each for each in every if each.edge == edge and each.told.up]
        told = sorted((each for each in here if each.told.load_age_ms is not None), key=_load_age_s)
        for each in reversed(told or here):  # the freshest last, so that its word stands
            for option, way in each.ways.items():
                edge_s[0, edge, option] = max(1e-6, (way.decode_ms + way.tail_ms) / 1e3)
        if told:
            age_s = _load_age_s(told[0])
            waits_ms = [way.wait_ms for way in told[0].ways.values()]
            backlog_s[0, edge] = max(0.0, max(waits_ms, default=0.0) / 1e3 - age_s)
        status = seen.get(edge)
        if status is None or not status.reachable:
            continue
        fastest_s = edge_s[0, edge].min(initial=np.inf)
        # What the edge's own page says counts where it is newer than what devices know.
        if np.isfinite(fastest_s) and (not told or now_s - status.seen_s < _load_age_s(told[0])):
            backlog_s[0, edge] = max(0.0, status.queued * fastest_s - (now_s - status.seen_s))
    return edge_s, backlog_s


def _load_age_s(each: _Told) -> float:
    return each.age_s + (each.told.load_age_ms or 0.0) / 1e3
