"""A controller's slots: observe, decide, advise. docs/controller.md."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from aecnn_deploy import __version__
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import PolicyError, SettingsError
from aecnn_deploy.offloading.live.observing import Catalogue, observe
from aecnn_deploy.offloading.live.roster import Member, Roster
from aecnn_deploy.offloading.mec.observation import Actions, Observation
from aecnn_deploy.offloading.policy import Policy
from aecnn_deploy.planning.live_candidates import ranking
from aecnn_deploy.runtimes.controller_messages import Advice

logger = logging.getLogger("aecnn_deploy.edge")  # a controller's log is that of the process that serves it

VALID_SLOTS = 2.0  # advice holds for so many: one slot of silence, and devices decide themselves
STALE_SLOTS = 3.0  # a device's word holds for so many
_UNUSED_S = 6.0  # for so long no word of an edge by one device, and it may be tried
_TIMES = 512  # decisions that the percentiles are of


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """How a controller advises. Raises SettingsError: a number is out of its range."""

    slot_ms: float = 100.0
    max_devices: int = 512
    hello_timeout_s: float = 10.0
    probe_s: float = 2.0  # one frame in so long tries an edge that its device has not used for a while; 0: none does

    def __post_init__(self) -> None:
        if not 10 <= self.slot_ms <= 60_000:
            raise SettingsError(f"slot_ms is {self.slot_ms:g}, expected 10 to 60000 milliseconds")
        if not 0 <= self.probe_s < 1e6:
            raise SettingsError(f"probe_s is {self.probe_s:g}, expected 0 (never) or a number of seconds")
        if not 1 <= self.max_devices <= 65536:
            raise SettingsError(f"max_devices is {self.max_devices}, expected 1 to 65536")


@dataclass(slots=True)
class Counts:
    """What happened since the start."""

    slots: int = 0
    decisions: int = 0  # slots that the policy decided
    advice: int = 0  # messages to devices
    idle: int = 0  # of them those to devices that expected no frame
    local: int = 0  # of them those that say: compute there
    by_edge: dict[str, int] = field(default_factory=dict)
    probes: int = 0  # frames that tried an edge
    failed: int = 0  # decisions that the policy failed at
    late: int = 0  # slots that began late because a decision took longer than a slot
    refused: dict[str, int] = field(default_factory=dict)  # devices, by code
    broken: int = 0  # devices that broke the protocol
    decide_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES))


def catalogue_of(bundle: Bundle, edges: tuple[str, ...], slot_s: float) -> Catalogue:
    """What a controller knows of a bundle. Raises SettingsError: it states no accuracy of its variants."""
    found = ranking(bundle.manifest)
    if found is None:
        raise SettingsError(
            f"{bundle.path} states neither accuracy nor agreement for all of its variants, so no policy can weigh "
            "them; export it with measurements"
        )
    by_index = {candidate.index: candidate.accuracy for candidate in found.candidates}
    variants = tuple(spec.id for spec in bundle.manifest.variants)
    accuracy = tuple(by_index[index] for index in range(len(variants)))
    local = found.unsplit if found.unsplit is not None else max(accuracy)
    return Catalogue(edges, variants, accuracy, min(1.0, max(0.0, local)), slot_s)


class Adviser:
    """Lives on one event loop; the policy decides on a thread of its own, one slot after the other.

    ``edges``: their names, in the order of a policy's servers. ``any_name``: there is one, whatever devices call it.
    Raises SettingsError: ``bundle`` states no accuracy.
    """

    def __init__(
        self,
        policy: Policy,
        bundle: Bundle,
        edges: tuple[str, ...],
        settings: ControllerSettings,
        clock: Callable[[], float] = time.monotonic,
        *,
        any_name: bool = False,
    ) -> None:
        self.policy, self.bundle_id, self.settings, self.clock = policy, bundle.id, settings, clock
        slot_s = settings.slot_ms / 1e3
        self.catalogue = catalogue_of(bundle, edges, slot_s)
        variants, stale_s = self.catalogue.variants, STALE_SLOTS * slot_s
        self.roster = Roster(edges, variants, stale_s=stale_s, most=settings.max_devices, any_name=any_name)
        self.counts = Counts(by_edge=dict.fromkeys(edges, 0))
        self.slot = 0
        self.wake: dict[Member, asyncio.Event] = {}
        self._last: list[Member] = []
        self._probed_s = dict.fromkeys(range(len(edges)), clock())
        self._failing = False
        self._began_s = clock()
        self._thread = ThreadPoolExecutor(1, "controller-policy")  # its own: nobody else's work makes a slot late
        self.closed = False

    def take(self, policy: Policy) -> None:
        """Decide by another policy from the next slot on."""
        self.policy, self._last = policy, []

    def follow(self, before: "Adviser") -> None:
        """Go on with the counts of the adviser of another bundle, and with what is known of the edges."""
        self.counts, self.slot, self._began_s = before.counts, before.slot, before._began_s
        self.roster.seen = before.roster.seen

    def close(self) -> None:
        """Advise nobody any more: the devices that are connected are told to leave."""
        self.closed = True
        self._thread.shutdown(wait=False)
        for wake in self.wake.values():
            wake.set()

    async def run(self) -> None:
        """Advise slot after slot until it is cancelled or closed; then there is no thread left."""
        try:
            await self._run()
        finally:
            self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        slot_s = self.catalogue.slot_s
        next_s = self.clock()
        while True:
            await asyncio.sleep(max(0.0, next_s - self.clock()))
            if self.closed:
                return
            await self.advise()
            next_s += slot_s
            if self.clock() > next_s + slot_s:
                self.counts.late += 1
                next_s = self.clock()

    async def advise(self) -> None:
        """One slot: every device that told its state lately gets its advice, unless the policy fails."""
        self.slot += 1
        self.counts.slots += 1
        now_s = self.clock()
        members = self.roster.fresh(now_s)
        if not members:
            return
        anew, self._last = members != self._last, members
        seen = observe(self.catalogue, members, now_s, self.roster.seen)
        began_s = time.perf_counter()
        try:
            actions = await asyncio.get_running_loop().run_in_executor(self._thread, self._decide, seen, anew)
        except Exception as exc:  # a policy is somebody's file: devices decide themselves, the edge serves on
            self.counts.failed += 1
            if not self._failing:
                logger.error("the policy %s failed, no advice until it works again: %s", self.policy.name, exc)
            self._failing = True
            return
        if self._failing:
            self._failing = False
            logger.warning("the policy %s works again", self.policy.name)
        self.counts.decide_ms.append((time.perf_counter() - began_s) * 1e3)
        self.counts.decisions += 1
        self._probe(members, seen, actions, now_s)
        for number, member in enumerate(members):
            action, idle = int(actions[0, number]), not seen.active[0, number]
            if action and not idle:
                member.used_s[(action - 1) // seen.options] = now_s
            self._post(member, self._advice(member, action, idle=idle))

    def status(self) -> dict[str, object]:
        """What ``GET /v1/controller`` answers. Milliseconds, and counts since the start."""
        counts, now_s = self.counts, self.clock()
        times = np.array(counts.decide_ms)
        return {
            "version": __version__,
            "policy": self.policy.name,
            "bundle_id": self.bundle_id,
            "slot_ms": self.settings.slot_ms,
            "uptime_s": round(now_s - self._began_s, 1),
            "slots": counts.slots,
            "decisions": counts.decisions,
            "decisions_per_s": round(counts.decisions / max(1e-9, now_s - self._began_s), 2),
            "decide_ms_p50": round(float(np.median(times)), 3) if times.size else None,
            "decide_ms_p99": round(float(np.percentile(times, 99)), 3) if times.size else None,
            "advice": counts.advice,
            "advice_idle": counts.idle,
            "advice_local": counts.local,
            "probes": counts.probes,
            "failed": counts.failed,
            "late": counts.late,
            "refused": dict(sorted(counts.refused.items())),
            "broken": counts.broken,
            "stale": self.roster.stale(now_s),
            "edges": [
                {
                    "name": name,
                    "advice": counts.by_edge[name],
                    "reachable": seen.reachable if (seen := self.roster.seen.get(index)) is not None else None,
                    "queued": seen.queued if seen is not None else None,
                }
                for index, name in enumerate(self.roster.edges)
            ],
            "devices": [
                {
                    "name": "".join(mark if mark.isprintable() else "?" for mark in member.hello.device),
                    "states": member.states,
                    "advised": member.advised,
                    "state_age_ms": round((now_s - member.told_s) * 1e3, 1) if member.state is not None else None,
                    "edges_up": sum(told.up for told in member.state.edges) if member.state is not None else 0,
                }
                for member in self.roster.members[:100]
            ],
            "devices_not_listed": max(0, len(self.roster.members) - 100),
        }

    def _decide(self, seen: Observation, anew: bool) -> Actions:
        """[1, N]; ``anew``: of other devices than before, of which a policy remembers nothing.

        Raises PolicyError: what the policy gives is no decision; and whatever the policy raises.
        """
        policy = self.policy  # another one may be taken while this one decides
        if anew:
            policy.reset(1)
        actions = np.array(policy.decide(seen))
        if actions.shape != seen.active.shape or not np.issubdtype(actions.dtype, np.integer):
            expected = f"expected integers of {seen.active.shape}"
            raise PolicyError(f"it decided {actions.shape} of {actions.dtype}, {expected}")
        if actions.size and (actions.min() < 0 or actions.max() >= seen.choices):
            raise PolicyError(f"it decided {actions.min()} to {actions.max()}, expected 0 to {seen.choices - 1}")
        return actions

    def _probe(self, members: list[Member], seen: Observation, actions: Actions, now_s: float) -> None:
        """Now and then send one frame to an edge that its device has not used for long, by its fastest variant.

        What a device knows of a link and of an edge is from its own requests: an edge that was slow when all left it
        would never be found to be well again.
        """
        if not self.settings.probe_s:
            return
        for edge, probed_s in self._probed_s.items():
            status = self.roster.seen.get(edge)
            if now_s - probed_s < self.settings.probe_s or (status is not None and not status.reachable):
                continue
            took_s = seen.device_s[0] + seen.airtime_s[0, :, edge] + seen.edge_s[0, edge]  # [N, V]
            unused_s = np.array([now_s - member.used_s.get(edge, member.joined_s) for member in members])
            elsewhere = (actions[0] - 1) // seen.options != edge
            may = seen.active[0] & elsewhere & (unused_s >= _UNUSED_S) & np.isfinite(took_s).any(axis=1)
            if may.any():
                number = int(np.where(may, unused_s, -1.0).argmax())
                actions[0, number] = 1 + edge * seen.options + int(took_s[number].argmin())
                self._probed_s[edge] = now_s
                self.counts.probes += 1

    def _advice(self, member: Member, action: int, *, idle: bool) -> Advice:
        counts, valid_ms = self.counts, VALID_SLOTS * self.settings.slot_ms
        counts.advice += 1
        member.advised += 1
        if idle:
            counts.idle += 1
            return Advice(slot=self.slot, edge=None, variant=None, valid_for_ms=valid_ms, idle=True)
        if action:
            edge, option = divmod(action - 1, len(self.catalogue.variants))
            index = member.edges[edge]
            if index is not None and member.variants[option] is not None:
                counts.by_edge[self.roster.edges[edge]] += 1
                variant = self.catalogue.variants[option]
                return Advice(slot=self.slot, edge=index, variant=variant, valid_for_ms=valid_ms)
        counts.local += 1
        return Advice(slot=self.slot, edge=None, variant=None, valid_for_ms=valid_ms)

    def _post(self, member: Member, advice: Advice) -> None:
        member.mailbox[:] = [advice]
        if (wake := self.wake.get(member)) is not None:
            wake.set()
