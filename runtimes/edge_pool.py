"""Which models are in memory: loaded when they are first asked for, freed when others need the room."""

import asyncio
import ctypes
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from aecnn_deploy.errors import AecnnError, RequestFailedError, ServeError
from aecnn_deploy.runtimes.edge_lane import Lane, LaneState
from aecnn_deploy.wire import FailureCode

logger = logging.getLogger("aecnn_deploy.edge")

_RESIDENCE_S = 1.0  # how long a model that was loaded stays at least, however many others are asked for
_RETRY_S = 5.0  # after a model could not be loaded, before it is tried again
_STATM = Path("/proc/self/statm")


class PoolEvents(Protocol):
    """Whom the pool tells of its models."""

    def loaded(self, variant: str, seconds: float) -> None:
        """A model was loaded and is warm."""

    def evicted(self, variant: str) -> None:
        """A model was freed for another one."""


class ModelPool:
    """Loads and frees the lanes' models, one at a time; lives on the event loop.

    ``limit_bytes``: of all loaded models together; None: no limit. A model's size is what the process grew by while
    it was loaded and warmed, at least its file's size: an estimate, since other requests run meanwhile.
    """

    def __init__(self, limit_bytes: int | None, events: PoolEvents) -> None:
        self._limit_bytes, self._events = limit_bytes, events
        self._sizes: dict[Lane, int] = {}  # of those that are loaded; in the order in which they were
        self._known: dict[Lane, int] = {}  # also of those that were
        self._loaded_s: dict[Lane, float] = {}
        self._failed: dict[Lane, tuple[float, AecnnError]] = {}
        self._wanted: dict[Lane, asyncio.Task[None]] = {}
        self._ahead: dict[Lane, asyncio.Task[None]] = {}  # that were not asked for yet
        self._turn = asyncio.Lock()

    @property
    def loaded(self) -> list[Lane]:
        """The lanes whose models are in memory."""
        return list(self._sizes)

    @property
    def used_bytes(self) -> int:
        """Estimated memory of all of them."""
        return sum(self._sizes.values())

    def failed_lately(self, lane: Lane) -> AecnnError | None:
        """Why ``lane`` could not be loaded a moment ago, if so."""
        failed_s, error = self._failed.get(lane, (-_RETRY_S, None))
        return error if time.monotonic() - failed_s < _RETRY_S else None

    def want(self, lane: Lane) -> None:
        """See to it that ``lane`` is loaded soon; what waits there fails if it cannot be.

        Raises RequestFailedError: it could not be loaded a moment ago.
        """
        if lane.state is LaneState.LOADED or lane in self._wanted:
            return
        failed_s, error = self._failed.get(lane, (-_RETRY_S, None))
        left_s = failed_s + _RETRY_S - time.monotonic()
        if error is not None and left_s > 0:
            raise RequestFailedError(FailureCode.INTERNAL, str(error), round(left_s, 3))
        task = asyncio.create_task(self._load_for_requests(lane))
        self._wanted[lane] = task
        task.add_done_callback(lambda _: self._wanted.pop(lane, None))

    def want_ahead(self, lane: Lane, still: Callable[[], bool]) -> None:
        """Load ``lane`` in the background where there is room for it beside what is loaded; if not, the log says so.

        ``still``: whether somebody wants it when its turn has come.
        """
        failed_s, _ = self._failed.get(lane, (-_RETRY_S, None))
        recently = time.monotonic() - failed_s < _RETRY_S
        if lane.state is LaneState.LOADED or lane in self._wanted or lane in self._ahead or recently:
            return
        task = asyncio.create_task(self._load_ahead(lane, still))
        self._ahead[lane] = task
        task.add_done_callback(lambda _: self._ahead.pop(lane, None))

    async def load(self, lane: Lane) -> None:
        """Load ``lane`` and wait for it. Raises what its model raises; ServeError: it alone is over the limit."""
        async with self._turn:
            if lane.state is LaneState.LOADED:
                return
            await self._make_room(lane)
            await self._start(lane)
            await self._make_room(None, keep=lane)  # it may have turned out larger than its file

    async def free(self, lanes: Iterable[Lane]) -> None:
        """Free the models of ``lanes``, each after the batch that runs."""
        for lane in lanes:
            async with self._turn:
                await self._free(lane)
        _give_back_memory()

    async def _start(self, lane: Lane) -> None:
        before_bytes, began_s = _resident_bytes(), time.monotonic()
        try:
            await lane.start()
        except AecnnError as exc:
            await _end(lane)
            self._failed[lane] = time.monotonic(), exc
            raise
        self._failed.pop(lane, None)
        grown = _resident_bytes() - before_bytes
        self._sizes[lane] = self._known[lane] = max(grown, lane.model.file_bytes)
        self._loaded_s[lane] = time.monotonic()
        seconds = self._loaded_s[lane] - began_s
        self._events.loaded(lane.model.name, seconds)
        logger.info(
            "loaded %s on %s in %.2f s: about %d MB, batches of %d, or %d where much waits",
            lane.model.name,
            lane.model.runner_name,
            seconds,
            self._sizes[lane] / 1e6,
            lane.batch_size,
            lane.busy_size,
        )

    async def _load_ahead(self, lane: Lane, still: Callable[[], bool]) -> None:
        name, limit = lane.model.name, self._limit_bytes
        async with self._turn:
            if lane.state is LaneState.LOADED or not still():
                return
            wanted = max(self._known.get(lane, 0), lane.model.file_bytes)
            if limit is not None and self.used_bytes + wanted > limit:
                logger.info("%s is not loaded ahead: the limit of %.1f MB leaves no room for it", name, limit / 1e6)
                return
            try:
                await self._start(lane)
            except AecnnError as exc:
                logger.error("%s cannot be loaded ahead: %s", name, exc)
                return
            if limit is None or self.used_bytes <= limit:
                return
            if lane.busy:  # asked for meanwhile, which frees others
                await self._make_room(None, keep=lane)
                return
            logger.info("freed %s: it turned out larger than the room beside what was loaded", name)
            await self._free(lane)
        _give_back_memory()

    async def _load_for_requests(self, lane: Lane) -> None:
        try:
            await self.load(lane)
        except AecnnError as exc:
            logger.error("%s cannot be served: %s", lane.model.name, exc)
            lane.fail_waiting(RequestFailedError(FailureCode.INTERNAL, str(exc), _RETRY_S))

    async def _make_room(self, lane: Lane | None, keep: Lane | None = None) -> None:
        """Free others until ``lane`` fits. Raises ServeError: it alone does not."""
        limit = self._limit_bytes
        if limit is None:
            return
        wanted = 0
        if lane is not None:
            if lane.model.file_bytes > limit:
                error = ServeError(
                    f"{lane.model.name} takes at least {lane.model.file_bytes / 1e6:.1f} MB, over the limit of "
                    f"{limit / 1e6:.1f} MB for all models; raise --memory-limit-mb"
                )
                self._failed[lane] = time.monotonic(), error
                raise error
            # What it grew to last time is an estimate: one that alone was over the limit is loaded all the same.
            wanted = min(max(self._known.get(lane, 0), lane.model.file_bytes), limit)
        while self.used_bytes + wanted > limit:
            others = [other for other in self._sizes if other is not keep]
            if not others:
                return  # it is larger than was thought, and the next one that is loaded frees it
            # Idle ones first, of these the one that was used longest ago.
            victim = min(others, key=lambda other: (other.busy, other.last_used_s))
            stays_s = self._loaded_s[victim] + _RESIDENCE_S - time.monotonic()
            if victim.busy and stays_s > 0:
                await asyncio.sleep(min(stays_s, 0.05))
                continue
            logger.info("freed %s for %s", victim.model.name, (lane or keep or victim).model.name)
            await self._free(victim)
            self._events.evicted(victim.model.name)
            if victim.queued:
                self.want(victim)  # its turn comes again, after the others that wait
        _give_back_memory()

    async def _free(self, lane: Lane) -> None:
        await _end(lane)
        self._sizes.pop(lane, None)


async def _end(lane: Lane) -> None:
    lane.stop()
    while not await asyncio.to_thread(lane.join, 60.0):
        logger.warning("%s still runs a batch", lane.model.name)


def _resident_bytes() -> int:
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0  # no Linux: the files' sizes are all that is known


def _give_back_memory() -> None:
    """Have the C library return what was freed to the system, where it can."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # no glibc
        return
    trim(0)
