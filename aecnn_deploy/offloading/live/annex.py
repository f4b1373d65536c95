"""An edge that is a controller, too: what ``serve-edge --controller`` adds to it."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.offloading.live.advising import Adviser, ControllerSettings
from aecnn_deploy.offloading.live.app import controller_routes
from aecnn_deploy.offloading.live.metrics import AdviserMetrics
from aecnn_deploy.offloading.live.roster import EdgeSeen
from aecnn_deploy.offloading.policy import Policy
from aecnn_deploy.runtimes.edge_view import EdgeState

logger = logging.getLogger("aecnn_deploy.edge")

_LOOK_S = 0.1


class ControllerAnnex:
    """Advises the devices of this edge alone. Raises SettingsError: ``bundle`` states no accuracy."""

    def __init__(self, policy: Policy, bundle: Bundle, settings: ControllerSettings) -> None:
        self.adviser = Adviser(policy, bundle, ("this edge",), settings, any_name=True)

    def routes(self) -> list[Any]:
        """Beside the edge's own."""
        return controller_routes(self.adviser)

    def collector(self) -> Any:
        """Metrics beside the edge's own."""
        return AdviserMetrics(self.adviser)

    async def run(self, look: Callable[[], EdgeState]) -> None:
        """Advise until it is cancelled; ``look`` says how the edge is."""
        advising = asyncio.create_task(self.adviser.run())
        try:
            while not advising.done():
                state = look()
                queued = sum(variant.queued for variant in state.variants)
                seen = EdgeSeen(state.state == "ready", queued, self.adviser.clock())
                self.adviser.roster.seen[0] = seen
                await asyncio.sleep(_LOOK_S)
            advising.result()
        except Exception:  # a defect of ours: the edge serves on, its devices decide themselves
            logger.exception("the controller ended")
        finally:
            advising.cancel()
