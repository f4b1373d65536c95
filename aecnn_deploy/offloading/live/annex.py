"""An edge that is a controller, too: what ``serve-edge --controller`` adds to it."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.offloading.live.advising import Adviser, ControllerSettings
from aecnn_deploy.offloading.live.app import controller_routes
from aecnn_deploy.offloading.live.generations import Advisers
from aecnn_deploy.offloading.live.metrics import AdviserMetrics
from aecnn_deploy.offloading.live.roster import EdgeSeen
from aecnn_deploy.offloading.policy import Policy
from aecnn_deploy.runtimes.edge_view import EdgeState

logger = logging.getLogger("aecnn_deploy.edge")

_LOOK_S = 0.1


class ControllerAnnex:
    """Advises the devices of this edge alone. ``open_policy``: at the start, and at each reload.

    Raises SettingsError: ``bundle`` states no accuracy; and what ``open_policy`` raises.
    """

    def __init__(self, open_policy: Callable[[], Policy], bundle: Bundle, settings: ControllerSettings) -> None:
        def make(bundle: Bundle) -> Adviser:
            return Adviser(open_policy(), bundle, ("this edge",), settings, any_name=True)

        self.advisers = Advisers(make, bundle)

    def routes(self) -> list[Any]:
        """Beside the edge's own."""
        return controller_routes(self.advisers)

    def collector(self) -> Any:
        """Metrics beside the edge's own."""
        return AdviserMetrics(self.advisers)

    async def renew(self, bundle: Bundle) -> None:
        """The edge was told to read its bundle again, and serves this one now."""
        await self.advisers.renew(lambda: bundle)

    async def run(self, look: Callable[[], EdgeState]) -> None:
        """Advise until it is cancelled; ``look`` says how the edge is."""
        advisers = self.advisers
        advising = asyncio.create_task(advisers.run())
        try:
            while not advising.done():
                state = look()
                queued = sum(variant.queued for variant in state.variants)
                advisers.seen[0] = EdgeSeen(state.state == "ready", queued, advisers.present.clock())
                await asyncio.sleep(_LOOK_S)
            advising.result()
        except Exception:  # a defect of ours: the edge serves on, its devices decide themselves
            logger.exception("the controller ended")
        finally:
            advising.cancel()
