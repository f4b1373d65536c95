"""A log line for each image of a device, for what reads logs and not tables."""

import logging

from aecnn_deploy.runtimes.device_client import ImageReport
from aecnn_deploy.runtimes.log_lines import fields

logger = logging.getLogger("aecnn_deploy.device.images")


def log_image(image: ImageReport) -> None:
    """Log what became of one image: at INFO, one that failed at WARNING."""
    more = fields(
        source=image.source,
        status=image.status,
        path=image.path,
        variant=image.variant,
        error=image.error,
        label=image.label,
        score=image.score,
        coder=image.coder,
        wire_bytes=image.wire_bytes,
        device_ms=image.device_ms,
        link_ms=image.link_ms,
        edge_ms=image.edge_ms,
        total_ms=image.total_ms,
        stages_ms=image.stages_ms,
    )
    if image.status == "failed":
        logger.warning("%s failed: %s", image.source, image.error, extra=more)
    else:
        logger.info("%s: %s (%.3f), %s ms", image.source, image.label, image.score, image.total_ms, extra=more)
