"""A line whenever a run begins to fall back to the unsplit model, and whenever the edge has its frames again."""

import logging

from aecnn_deploy.runtimes.moving_frame import MovingFrame
from aecnn_deploy.runtimes.run_report import LOCAL, ImageReport

logger = logging.getLogger("aecnn_deploy.device")


class FallbackLog:
    """Hears of each frame's outcome. What the unsplit model has as a controller advised is no fallback."""

    def __init__(self) -> None:
        self._on_local = False

    def settled(self, frame: MovingFrame, report: ImageReport) -> None:
        """The frame has its outcome."""
        if report.status != "ok" or frame.local or (report.path == LOCAL) == self._on_local:
            return
        self._on_local = not self._on_local
        if frame.tried is not None:
            logger.warning("the unsplit model runs here from %s on: %s", frame.source, frame.tried[1])
        else:
            logger.warning("back to the edge from %s on", frame.source)
