"""The coders of all variants that a run may use, on one link."""

from collections.abc import Mapping
from typing import Any

from aecnn_deploy.planning.link_rate import LinkRate
from aecnn_deploy.runtimes.plane_coder import PlaneCoder, Terms
from aecnn_deploy.wire import Welcome


class PlaneCoders:
    """A ``PlaneCoder`` for each variant, by its index in the manifest; all stand on one ``rate``.

    ``live``: the variant is chosen by what the link takes, which must be measured then.
    """

    def __init__(self, coders: Mapping[int, PlaneCoder], rate: LinkRate, *, live: bool = False) -> None:
        self._coders, self.rate, self._live = dict(coders), rate, live
        self._used = next(iter(self._coders))

    def __getitem__(self, index: int) -> PlaneCoder:
        return self._coders[index]

    @property
    def wants_rate(self) -> bool:
        """Whether the link must be measured before the next frames."""
        return self._live or any(coder.wants_rate for coder in self._coders.values())

    def terms(self, welcome: Welcome) -> dict[int, Terms]:
        """What a session may use, by variant. From any thread. Raises CodecError: the edge decodes no coder of one."""
        return {index: coder.terms(welcome) for index, coder in self._coders.items()}

    def use(self, terms: Mapping[int, Terms]) -> None:
        """What follows is for a session of these terms."""
        for index, coder in self._coders.items():
            coder.use(terms[index])

    def take(self, index: int) -> PlaneCoder:
        """The coder for a frame of this variant."""
        self._used = index
        return self._coders[index]

    def decoded(self, index: int, coder: str, took_ms: float) -> None:
        """The edge decoded a frame of a variant by ``coder`` in ``took_ms``."""
        self._coders[index].decoded(coder, took_ms)

    def explain(self) -> dict[str, Any] | None:
        """Of the variant that was used last: as ``PlaneCoder.explain``; of several also which it is."""
        told = self._coders[self._used].explain()
        if told is not None and self._live:
            told = {"variant": self._coders[self._used].variant, **told}
        return told
