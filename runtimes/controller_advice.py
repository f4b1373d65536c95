"""What a controller last advised a device, and for how long that holds."""

import logging
from dataclasses import dataclass

logger = logging.getLogger("aecnn_deploy.device")

# Why a frame went by the device's own planner: the words of reports and of docs/controller.md.
SILENT = "silent"  # no advice came within the time that the last one held for
UNEXPECTED = "unexpected"  # the device had said that no frame would come in this slot
EDGE_AWAY = "edge-away"  # the edge that was advised
EDGE_BUSY = "edge-busy"  # the edge that was advised has as many requests as it may, without answers
UNKNOWN_VARIANT = "unknown-variant"  # none of this bundle's
NOT_LOADED = "not-loaded"  # a variant that the edge has not loaded, or whose head is too slow here
NO_LOCAL = "no-local"  # the unsplit model was advised, and is not there or would be late

_LONGEST_S = 10.0  # whatever a controller says


@dataclass(frozen=True, slots=True)
class Advice:
    """For the frames of one slot. ``edge``: index among the device's edges; None with ``variant`` None: compute here.

    ``until_s``: when it ends, by ``time.perf_counter``. ``idle``: no frame was expected, so nothing is advised.
    """

    slot: int
    edge: int | None
    variant: str | None
    until_s: float
    idle: bool = False


class AdviceBox:
    """The newest advice. The pipeline's lock guards it."""

    def __init__(self, variants: tuple[str, ...], edges: int) -> None:
        self._indexes = {name: index for index, name in enumerate(variants)}
        self._edges = edges
        self._advice: Advice | None = None
        self._warned: set[str] = set()
        self.heard = 0  # how many came

    def put(
        self, slot: int, edge: int | None, variant: str | None, valid_for_ms: float, now_s: float, *, idle: bool = False
    ) -> None:
        """An advice came. One that names no edge of this device, or one half of a way only, is no advice."""
        self.heard += 1
        if (edge is None) != (variant is None) or (edge is not None and edge >= self._edges):
            self._warn("edge", f"the controller advises edge {edge} with variant {variant}; this is not followed")
            self._advice = None
            return
        self._advice = Advice(slot, edge, variant, now_s + min(valid_for_ms / 1e3, _LONGEST_S), idle)

    def now(self, now_s: float) -> Advice | None:
        """The advice that holds now."""
        return self._advice if self._advice is not None and now_s < self._advice.until_s else None

    def index(self, advice: Advice) -> int | None:
        """The index of the variant; None, and said once: this bundle has none of that name."""
        assert advice.variant is not None
        index = self._indexes.get(advice.variant)
        if index is None:
            printable = "".join(mark if mark.isprintable() else "?" for mark in advice.variant)
            self._warn("variant", f"the controller advises variant {printable}, which this bundle lacks; not followed")
        return index

    @property
    def slot(self) -> int:
        """Of the last advice; 0 before the first."""
        return self._advice.slot if self._advice is not None else 0

    def _warn(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("%s", text)
