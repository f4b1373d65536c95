"""What tests of a controller share: a bundle of two variants, and what a device with two edges says of itself."""

from pathlib import Path
from typing import Any

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.runtimes.controller_messages import EdgeTold, Hello, State, WayTold
from tests.bundles import TinyVariant, make_bundle

GOOD = TinyVariant("good", 4, 4, 8, accuracy=0.9)
SMALL = TinyVariant("small", 2, 8, 8, accuracy=0.5)
VARIANTS = ("good", "small")


def two_variants(path: Path) -> Bundle:
    """A bundle of ``VARIANTS``, written to ``path``."""
    make_bundle(path, variants=(GOOD, SMALL))
    return open_bundle(path)


def hello(bundle: Bundle, **changes: Any) -> Hello:
    fields: dict[str, Any] = {
        "protocol": 1, "device": "camera", "software": "test", "bundle_id": bundle.id, "edges": ["a", "b"],
        "variants": list(VARIANTS),
    }  # fmt: skip
    return Hello(**(fields | changes))


def state(**changes: Any) -> State:
    """A device with two edges of two variants, in round numbers."""
    ways = [
        WayTold(variant=0, message_bytes=1000, air_ms=20, decode_ms=2, wait_ms=6, tail_ms=10),
        WayTold(variant=1, message_bytes=500, air_ms=10, decode_ms=1, wait_ms=4, tail_ms=5),
    ]
    edges = [
        EdgeTold(edge=index, up=True, rate_bps=1e6, fixed_ms=3 + index, load_age_ms=0, in_flight=0, ways=ways)
        for index in range(2)
    ]
    fields: dict[str, Any] = {
        "slot": 0, "frame_in_ms": 0.0, "deadline_ms": 100.0, "backlog_ms": 7.0, "local_ms": 50.0,
        "device_ms": [8.0, 4.0], "edges": edges,
    }  # fmt: skip
    return State(**(fields | changes))
