"""One bundle that an edge serves: a lane for each variant and one for the unsplit model."""

import time
from collections.abc import Sequence
from typing import Protocol

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import MAX_DISTANCE
from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.edge_lane import Lane, LaneEvents, LaneState
from aecnn_deploy.runtimes.edge_models import FullModel, TailModel
from aecnn_deploy.runtimes.edge_settings import ALL, FIRST, NONE, EdgeSettings


class DrainableStream(Protocol):
    """What the service asks of an open stream when it has to end."""

    async def finish(self, reason: str) -> None:
        """Say GOODBYE, answer what is in flight, then close."""

    async def abandon(self) -> None:
        """Fail what is in flight and close."""


class Generation:
    """The lanes of one bundle and the streams that use them. After a reload two of these are served side by side."""

    def __init__(self, bundle: Bundle, settings: EdgeSettings, events: LaneEvents) -> None:
        self.bundle = bundle
        self._settings = settings
        self.streams: set[DrainableStream] = set()
        self.last_used_s = time.monotonic()

        def lane(model: TailModel | FullModel) -> Lane:
            return Lane(
                model,
                max_batch=settings.max_batch,
                batch_wait_ms=settings.batch_wait_ms,
                max_queue=settings.max_queue,
                events=events,
            )

        self.tails = {
            variant.id: lane(TailModel(bundle, variant, settings.runner)) for variant in bundle.manifest.variants
        }
        self.full = lane(FullModel(bundle, settings.runner))

    @property
    def lanes(self) -> list[Lane]:
        """Of every variant, and the unsplit model's."""
        return [*self.tails.values(), self.full]

    @property
    def runner_name(self) -> str:
        """The runner of the tails that are loaded; joined by ``+`` where variants have different ones."""
        names = {lane.model.runner_name for lane in self.tails.values() if lane.state is LaneState.LOADED}
        return "+".join(sorted(names))

    @property
    def targets(self) -> dict[str, str]:
        """The manifest's target that runs each variant which is loaded."""
        return {name: lane.model.target for name, lane in self.tails.items() if lane.state is LaneState.LOADED}

    def preloaded(self) -> list[Lane]:
        """What the settings load before the edge is ready. Raises SettingsError: they name no variant of the bundle."""
        wanted = self._settings.preload
        if wanted == NONE:
            return []
        names = list(self.tails)
        if wanted not in (FIRST, ALL):
            chosen = [name.strip() for name in wanted.split(",")]
            if unknown := [name for name in chosen if name not in self.tails]:
                raise SettingsError(
                    f"--preload names {unknown[0]!r}; give {FIRST}, {ALL}, {NONE} or some of {', '.join(names)}"
                )
            return [self.tails[name] for name in dict.fromkeys(chosen)]
        return [self.tails[name] for name in (names if wanted == ALL else names[:1])]

    def references(self, variants: Sequence[VariantSpec], max_in_flight: int) -> int:
        """How many answered requests' planes a stream of these variants may have kept for each of them.

        One more than it may have in flight is of use: so many may be answered between a RESULT and its difference.
        """
        each = sum(variant.plane_bytes for variant in variants)
        return min(max_in_flight + 1, MAX_DISTANCE, self._settings.max_reference_bytes // each)
