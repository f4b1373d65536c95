"""What an edge does with a request, whichever way it came: admit it, give it to its model's lane, time it."""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import AecnnError, RequestFailedError
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.base import Array
from aecnn_deploy.runtimes.edge_generation import DrainableStream, Generation
from aecnn_deploy.runtimes.edge_jobs import Answer, Job, Stage
from aecnn_deploy.runtimes.edge_lane import Lane, LaneState
from aecnn_deploy.runtimes.edge_models import Asked, PlanesAsked, TensorAsked
from aecnn_deploy.runtimes.edge_observer import EdgeObserver
from aecnn_deploy.runtimes.edge_pool import ModelPool
from aecnn_deploy.runtimes.edge_settings import EdgeSettings
from aecnn_deploy.runtimes.edge_view import EdgeState, VariantState
from aecnn_deploy.runtimes.plane_memory import KeptPlanes
from aecnn_deploy.wire import FailureCode, InferReceived, Result

logger = logging.getLogger("aecnn_deploy.edge")

TOO_LARGE, TOO_SLOW = "too-large", "too-slow"  # how POST /v1/classify fails, beside the wire's FailureCodes

_ABANDON_S = 1.0
_DRAINING_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose a request is: ``peer`` shares the edge with others, ``stream`` shares what its peer gets.

    ``account`` is whom the limit of requests in flight is for.
    """

    peer: Hashable
    stream: Hashable
    account: Hashable


class EdgeService:
    """The bundles that are served, what is in flight, and whether the edge is ready or draining.

    Lives on one event loop; only lanes do work on other threads. ``current`` is the bundle that new devices should
    have; ``previous``, after a reload, the one before it, for devices that have not got the new one yet.
    """

    def __init__(self, bundle: Bundle, settings: EdgeSettings) -> None:
        self.settings = settings
        self.in_flight, self.uploads = 0, 0
        self.ready, self.draining = False, False
        self.streams: set[DrainableStream] = set()
        self.observer = EdgeObserver(self.look)
        self.pool = ModelPool(settings.memory_limit_bytes, self.observer)
        self.current = Generation(bundle, settings, self.observer)
        self.previous: Generation | None = None
        self._by_account: dict[Hashable, int] = {}
        self._reloading = asyncio.Lock()

    @property
    def bundle(self) -> Bundle:
        """The one that new devices should have."""
        return self.current.bundle

    def generation(self, bundle_id: str) -> Generation | None:
        """The lanes for devices that were started with ``bundle_id``; None: it is not served."""
        for generation in (self.current, self.previous):
            if generation is not None and generation.bundle.id == bundle_id:
                return generation
        return None

    def look(self) -> EdgeState:
        """The edge as those who watch it see it now."""
        current = self.current
        return EdgeState(
            state="draining" if self.draining else "ready" if self.ready else "loading",
            bundle_id=self.bundle.id,
            runner=current.runner_name,
            in_flight=self.in_flight,
            streams=len(self.streams),
            variants=tuple(
                VariantState(name, lane.state is LaneState.LOADED, lane.model.target, lane.queued)
                for name, lane in current.tails.items()
            ),
        )

    async def load(self) -> None:
        """Load and warm what the settings preload. Raises RunnerError, ServeError: one cannot be loaded."""
        require("onnxruntime", why="serving an edge", extra="edge")  # its own memory is no model's
        for lane in self.current.preloaded():  # one after the other: each takes every core while it loads
            await self.pool.load(lane)
        self.ready = True

    def cancel_loading(self) -> None:
        """End the build of an engine, which would go on for minutes. Does nothing where none is built."""
        if self.settings.runner.engines is not None:
            self.settings.runner.engines.cancel()

    async def reload(self, open_bundle: Callable[[], Bundle]) -> bool:
        """Serve what ``open_bundle`` gives beside the present bundle, which stays for devices that have it.

        Whether that is done: a bundle that cannot be opened, loaded or run leaves everything as it was, and the log
        says why. Nothing that is in flight is touched.
        """
        async with self._reloading:
            fresh: Generation | None = None
            try:
                bundle = await asyncio.to_thread(open_bundle)
                if bundle.id == self.bundle.id:
                    logger.info("reloaded: still bundle %s", bundle.id[:12])
                    self.observer.reloaded(ok=True)
                    return True
                fresh = Generation(bundle, self.settings, self.observer)
                for lane in fresh.preloaded():
                    await self.pool.load(lane)
            except AecnnError as exc:
                logger.error("not reloaded, still serving bundle %s: %s", self.bundle.id[:12], exc)
                self.observer.reloaded(ok=False)
                if fresh is not None:
                    await self.pool.free(lane for lane in fresh.lanes if lane.state is not LaneState.UNLOADED)
                return False
            before, self.previous, self.current = self.previous, self.current, fresh
            self.previous.last_used_s = time.monotonic()
            logger.info(
                "reloaded: serving bundle %s, and bundle %s to devices that have it, for %g s after the last one",
                fresh.bundle.id[:12],
                self.previous.bundle.id[:12],
                self.settings.previous_s,
            )
            self.observer.reloaded(ok=True)
            if before is not None:
                await self._retire(before)
            return True

    async def retire_unused(self) -> None:
        """Drop the bundle before the last reload once no device has used it for ``previous_s``."""
        previous = self.previous
        if previous is None:
            return
        if previous.streams:
            previous.last_used_s = time.monotonic()
        elif time.monotonic() - previous.last_used_s >= self.settings.previous_s:
            self.previous = None
            await self._retire(previous)

    async def infer(
        self,
        lane: Lane,
        request: InferReceived,
        received_s: float,
        caller: Caller,
        kept: KeptPlanes | None = None,
    ) -> Result:
        """Run a device's planes; ``kept`` are the stream's earlier ones of this variant.

        ``received_s`` is ``time.perf_counter`` at its arrival. Raises RequestFailedError.
        """
        deadline_s = received_s + request.deadline_ms / 1e3 if request.deadline_ms else None
        answer = await self._run(lane, PlanesAsked(request, kept), received_s, deadline_s, caller)
        return Result(
            top=answer.top,
            decode_ms=answer.decode_ms,
            queue_ms=answer.queue_ms,
            tail_ms=answer.run_ms,
            total_ms=(time.perf_counter() - received_s) * 1e3,
            in_flight=self.in_flight,
            variant=lane.model.name,
            batch=answer.batch,
        )

    async def classify(self, content: bytes, received_s: float, caller: Caller) -> tuple[Answer, float]:
        """Run the unsplit model on an image file; the answer and its total in ms. Raises RequestFailedError."""
        answer = await self._run(self.current.full, content, received_s, None, caller)
        return answer, (time.perf_counter() - received_s) * 1e3

    async def infer_rows(
        self, lane: Lane, rows: Sequence[Array], received_s: float, deadline_s: float | None, caller: Caller
    ) -> list[Answer]:
        """Run each of ``rows``, items of the lane's model that have been checked; their answers keep the logits.

        They are requests like any others, and run together with them. Raises RequestFailedError: there is no place for
        all of them, or one was refused or failed; those that still wait are taken back.
        """
        if len(rows) > 1:
            self._check_places(lane, len(rows), caller)
        futures: list[asyncio.Future[Answer]] = []
        try:
            for row in rows:
                futures.append(self._submit(lane, TensorAsked(row), received_s, deadline_s, caller))
            return [await futures[0]] if len(futures) == 1 else await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()  # does nothing to one that is done
                self._release(caller)

    def check_caller(self, caller: Caller, lane: Lane) -> None:
        """Raises RequestFailedError: the edge takes nothing of ``caller`` now, however much room there is."""
        settings = self.settings
        if self.draining:
            why = "the edge is shutting down; ask another one"
            raise RequestFailedError(FailureCode.DRAINING, why, _DRAINING_RETRY_S)
        if (own := self._by_account.get(caller.account, 0)) >= settings.guard.limits.in_flight:
            raise RequestFailedError(
                FailureCode.OVERLOADED,
                f"{own} requests of this peer are in flight, the limit is {settings.guard.limits.in_flight}; "
                "try again later, or raise --peer-in-flight",
                lane.retry_after_s(),
            )

    def check_open(self, caller: Caller, lane: Lane) -> None:
        """Raises RequestFailedError: the edge takes no request of ``caller`` for ``lane`` now.

        Where there is no room, the newest request of somebody who has more is refused to make some.
        """
        self.check_caller(caller, lane)
        settings = self.settings
        if self.in_flight >= settings.max_in_flight and not lane.make_room(caller.peer, caller.stream):
            raise RequestFailedError(
                FailureCode.OVERLOADED,
                f"{self.in_flight} requests are in flight, the limit is {settings.max_in_flight}; "
                "try again later, or raise --max-in-flight",
                lane.retry_after_s(),
            )

    def _check_places(self, lane: Lane, count: int, caller: Caller) -> None:
        """Raises RequestFailedError: there are fewer than ``count`` places.

        One request takes the place of somebody's who has more; several do not: those that they had pushed out would be
        lost for nothing if there was none for the last one.
        """
        settings = self.settings
        peer_limit, own = settings.guard.limits.in_flight, self._by_account.get(caller.account, 0)
        for taken, what, limit, option in (
            (own, "requests of this peer are in flight", peer_limit, "--peer-in-flight"),
            (self.in_flight, "requests are in flight", settings.max_in_flight, "--max-in-flight"),
            (lane.queued, f"requests wait for {lane.model.name}", settings.max_queue, "--max-queue"),
        ):
            if taken + count > limit:
                raise RequestFailedError(
                    FailureCode.OVERLOADED,
                    f"{taken} {what}, the limit is {limit}: {count} rows find no place; "
                    f"send fewer, try again later, or raise {option}",
                    lane.retry_after_s(),
                )

    async def _run(
        self, lane: Lane, asked: Asked, received_s: float, deadline_s: float | None, caller: Caller
    ) -> Answer:
        future = self._submit(lane, asked, received_s, deadline_s, caller)
        try:
            return await future
        finally:
            self._release(caller)

    def _submit(
        self, lane: Lane, asked: Asked, received_s: float, deadline_s: float | None, caller: Caller
    ) -> "asyncio.Future[Answer]":
        """Queue a request, which is in flight until ``_release``. Raises RequestFailedError: it is not taken."""
        self.check_open(caller, lane)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if lane.state is not LaneState.LOADED:
            self.pool.want(lane)
        job = Job(asked, caller.peer, caller.stream, received_s, deadline_s, future)
        if isinstance(asked, TensorAsked):  # nothing to decode: it bypasses the lane's helper
            job.stage, job.item = Stage.DECODED, asked.item
        lane.submit(job)
        self.in_flight += 1
        self._by_account[caller.account] = self._by_account.get(caller.account, 0) + 1
        return future

    def _release(self, caller: Caller) -> None:
        self.in_flight -= 1
        self._by_account[caller.account] -= 1
        if not self._by_account[caller.account]:
            del self._by_account[caller.account]

    async def drain(self, hurry: Callable[[], bool]) -> int:
        """Take nothing new and finish what is in flight, for ``drain_s`` at most or until ``hurry`` says so.

        Returns the number of requests that were left unfinished.
        """
        self.draining = True
        finishing = [asyncio.create_task(stream.finish("the edge is shutting down")) for stream in self.streams]
        end_s = time.monotonic() + self.settings.drain_s
        while (self.in_flight or not all(task.done() for task in finishing)) and time.monotonic() < end_s:
            if hurry():
                break
            await asyncio.sleep(0.01)
        left = self.in_flight
        for task in finishing:
            task.cancel()
        # A device that reads nothing must not delay the end.
        ends = (asyncio.wait_for(stream.abandon(), _ABANDON_S) for stream in list(self.streams))
        await asyncio.gather(*finishing, *ends, return_exceptions=True)
        return left

    def close(self, timeout_s: float) -> bool:
        """Free the models and end their threads, waiting at most ``timeout_s`` for all; whether all have ended."""
        self.observer.close()
        generations = [generation for generation in (self.current, self.previous) if generation is not None]
        lanes = {lane for generation in generations for lane in generation.lanes} | set(self.pool.loaded)
        for lane in lanes:
            lane.stop()
        end_s = time.monotonic() + timeout_s
        ended = [lane.join(max(0.0, end_s - time.monotonic())) for lane in lanes]
        return all(ended)

    async def _retire(self, generation: Generation) -> None:
        logger.info("bundle %s is not served any more", generation.bundle.id[:12])
        reason = f"the edge serves bundle {self.bundle.id[:12]} now"
        endings = [asyncio.create_task(stream.finish(reason)) for stream in list(generation.streams)]
        if endings:
            await asyncio.wait(endings, timeout=self.settings.drain_s)
        for task in endings:
            task.cancel()
        error = RequestFailedError(FailureCode.DRAINING, reason)
        for lane in generation.lanes:
            lane.fail_waiting(error)
        await self.pool.free(lane for lane in generation.lanes if lane.state is not LaneState.UNLOADED)
