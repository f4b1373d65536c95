"""The adviser of the present bundle and, while devices have it, that of the bundle before it. docs/controller.md."""

import asyncio
import logging
from collections.abc import Callable

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import AecnnError
from aecnn_deploy.offloading.live.advising import Adviser
from aecnn_deploy.offloading.live.roster import EdgeSeen

logger = logging.getLogger("aecnn_deploy.edge")

_LOOK_S = 0.1
UNUSED_S = 60.0  # for so long no device has the bundle before: it is not advised any more


class Advisers:
    """Lives on one event loop. ``make``: an adviser of a bundle, with its policy read anew; used on a thread."""

    def __init__(self, make: Callable[[Bundle], Adviser], bundle: Bundle) -> None:
        self._make = make
        self.present = make(bundle)
        self.before: Adviser | None = None
        self._unused_since_s = 0.0
        self._renewing = asyncio.Lock()

    @property
    def all(self) -> list[Adviser]:
        """The present one first."""
        return [self.present] if self.before is None else [self.present, self.before]

    @property
    def seen(self) -> dict[int, EdgeSeen]:
        """What edges say of themselves, by index; both advisers have it."""
        return self.present.roster.seen

    def of(self, bundle_id: str) -> Adviser:
        """Who advises devices with that bundle; the present adviser, which refuses them, where nobody does."""
        return next((one for one in self.all if one.bundle_id == bundle_id), self.present)

    async def renew(self, open_bundle: Callable[[], Bundle]) -> bool:
        """Read bundle and policy again; devices with that bundle are advised beside those with the present one.

        Whether that is done: what cannot be used leaves everything as it was, and the log says why.
        """
        async with self._renewing:
            try:
                fresh = await asyncio.to_thread(lambda: self._make(open_bundle()))
            except AecnnError as exc:
                logger.error("the controller still advises by bundle %s: %s", self.present.bundle_id[:12], exc)
                return False
            present, before = self.present, self.before
            if fresh.bundle_id == present.bundle_id:
                present.take(fresh.policy)
                fresh.close()
                logger.info("the policy %s is read again, for bundle %s", fresh.policy.name, fresh.bundle_id[:12])
                return True
            if before is not None and fresh.bundle_id == before.bundle_id:  # back again: its devices stay
                before.take(fresh.policy)
                fresh.close()
                fresh = before
            else:
                fresh.follow(present)
                if before is not None:
                    before.close()
            self.present, self.before = fresh, present
            self._unused_since_s = fresh.clock()
            logger.info(
                "the controller advises by bundle %s, and by %s while devices have it",
                fresh.bundle_id[:12],
                present.bundle_id[:12],
            )
            return True

    def status(self) -> dict[str, object]:
        """What ``GET /v1/controller`` answers: the present adviser's, and who has the bundle before."""
        before = None
        if self.before is not None:
            before = {"bundle_id": self.before.bundle_id, "devices": len(self.before.roster.members)}
        return self.present.status() | {"previous": before}

    async def run(self) -> None:
        """Advise until it is cancelled. Raises what an adviser raises: a defect."""
        running: dict[Adviser, asyncio.Task[None]] = {}
        try:
            while True:
                self._retire()
                for adviser in self.all:
                    if adviser not in running:
                        running[adviser] = asyncio.create_task(adviser.run())
                for adviser in [one for one in running if one not in self.all]:
                    running.pop(adviser).cancel()
                done, _ = await asyncio.wait(running.values(), timeout=_LOOK_S)
                for task in done:
                    task.result()
        finally:
            for task in running.values():
                task.cancel()

    def _retire(self) -> None:
        if self.before is None:
            return
        now_s = self.before.clock()
        if self.before.roster.members:
            self._unused_since_s = now_s
        elif now_s - self._unused_since_s >= UNUSED_S:
            logger.info("the controller advises nobody by bundle %s any more", self.before.bundle_id[:12])
            self.before.close()
            self.before = None
