"""What an edge asks of those who run its models elsewhere, beside the runners themselves."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable


class Collector(Protocol):
    """Metrics, as prometheus_client asks for them at a scrape."""

    def collect(self) -> Iterator[Any]:
        """All families as they are now."""


@runtime_checkable
class WatchedRemote(Protocol):
    """Remote tails that know whether the other side is there. Any thread may ask."""

    metrics: Collector

    def away(self) -> str | None:
        """Why no model that is loaded can be run, in one line; None: one can, or none is loaded."""

    def close(self) -> None:
        """End all waiting and trying again, and the connection; runners fail from then on. Twice does no harm."""
