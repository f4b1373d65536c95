"""What the edge last told of how busy it is, for each variant that the session uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from aecnn_deploy.wire import Load


@dataclass(frozen=True, slots=True)
class VariantLoad:
    """For a request that arrives now: what it waits for its turn on the edge, and the run of the tail with it."""

    wait_ms: float
    run_ms: float


@dataclass(frozen=True, slots=True)
class EdgeLoad:
    """``variants``: by the variant's index in the bundle, of those that the edge has loaded. ``told_s``: when it came.

    That is by ``time.perf_counter``.
    """

    variants: Mapping[int, VariantLoad]
    told_s: float


def load_told(load: Sequence[Load], told_s: float) -> EdgeLoad | None:
    """What a WELCOME's or a RESULT's ``load`` says; None: nothing.

    A HELLO lists all variants in the manifest's order, so its indexes are the bundle's.
    """
    if not load:
        return None
    return EdgeLoad(MappingProxyType({index: VariantLoad(wait, run) for index, wait, run in load}), told_s)
