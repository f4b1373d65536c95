"""One variant's planes as payloads: the coders that both halves have, the choice among them, what it stands on."""

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import CODERS, DELTA_CODERS, MAX_DISTANCE, EncodedPlanes, coder_names, delta_names
from aecnn_deploy.errors import CodecError, SettingsError
from aecnn_deploy.planning.link_rate import FASTEST_MS, LinkRate
from aecnn_deploy.planning.live_forecast import CoderEstimate
from aecnn_deploy.runtimes.coder_choice import CoderChoice, Objective, Reference
from aecnn_deploy.runtimes.plane_memory import plane_dictionary, useful_coders
from aecnn_deploy.wire import HEADER_BYTES, Welcome

AUTO, SMALLEST = "auto", "smallest"
_NEW = 0.25  # weight of a new measurement against the mean of those before
_OBJECTIVE: dict[str, Objective] = {AUTO: "time", SMALLEST: "bytes"}


def check_coder(name: str) -> None:
    """Raises SettingsError: ``name`` is neither a coder nor a way to choose one."""
    known = (SMALLEST, AUTO, *CODERS, *DELTA_CODERS)
    if name not in known:
        raise SettingsError(f"unknown coder {name!r}; choose {SMALLEST}, {AUTO} or one of {', '.join(known[2:])}")


@dataclass(frozen=True, slots=True)
class Terms:
    """What one session allows: the coders of both halves, and how far back a difference may refer."""

    coders: tuple[str, ...]
    references: int


@dataclass(frozen=True, slots=True)
class Answered:
    """Planes (C, H, W) that the edge has: those of a request of this session that it answered by RESULT."""

    request_id: int
    planes: npt.NDArray[np.uint8]


class PlaneCoder:
    """Encodes the planes of one variant by a coder of the setting's choice. For one thread, but for ``terms``.

    ``coder``: a coder of the codec, "auto" for the fastest of each frame, "smallest" for the fewest bytes. ``rate`` is
    the link's. Raises CodecError: the coder cannot take these planes. MissingExtraError: its library is not installed.
    BundleError: no such dictionary.
    """

    def __init__(self, bundle: Bundle, variant: VariantSpec, rate: LinkRate, *, coder: str, level: int) -> None:
        self._variant, self._coder, self._level, self.rate = variant, coder, level, rate
        self.variant_index = [spec.id for spec in bundle.manifest.variants].index(variant.id)
        self._alone: CoderEstimate | None = None  # of the only coder, which the choice does not measure
        self._referred = False  # the last frame could have been a difference
        self._dictionary = plane_dictionary(bundle, variant)
        self._references = 0
        self._choice = self._choose(self._wanted((*coder_names(), *delta_names())))

    @property
    def variant(self) -> str:
        return self._variant.id

    @property
    def wants_rate(self) -> bool:
        """Whether the link must be measured before the next frames: to choose, or once for what is told of it."""
        return self._coder == AUTO or (self._coder == SMALLEST and self.rate.fixed_ms is None)

    def terms(self, welcome: Welcome) -> Terms:
        """What a session may use. From any thread. Raises CodecError: the edge does not decode the coder."""
        # raw is always allowed
        return Terms(self._wanted((*welcome.coders, "raw")), min(welcome.references, MAX_DISTANCE))

    def use(self, terms: Terms) -> None:
        """What follows is for a session of these terms. Another edge may answer there than before."""
        self._references = terms.references
        if terms.coders != self._choice.offered:
            self._choice = self._choose(terms.coders)

    def encode(
        self, planes: npt.NDArray[np.uint8], *, request_id: int, last: Answered | None
    ) -> tuple[str, EncodedPlanes]:
        """The chosen coder, and the frame that will be request ``request_id``; a difference to ``last`` if it may."""
        reference = None
        if last is not None and (distance := request_id - last.request_id) <= self._references:
            reference = Reference(last.planes, distance)
        self._referred = reference is not None
        began_s = time.perf_counter()
        chosen, encoded = self._choice.encode(planes, self.rate.ms_per_byte, reference)
        self._follow(chosen, len(encoded.payload), (time.perf_counter() - began_s) * 1e3)
        return chosen, encoded

    def decoded(self, coder: str, took_ms: float) -> None:
        """The edge decoded a frame of ``coder`` in ``took_ms``."""
        self._choice.decoded(coder, took_ms)
        if (alone := self._alone) is not None:
            self._alone = replace(alone, decode_ms=alone.decode_ms + _NEW * (took_ms - alone.decode_ms))

    def estimates(self) -> tuple[CoderEstimate, ...]:
        """What the next frame is expected to take by each coder that may then be chosen; none before the first."""
        costs = [
            cost
            for cost in self._choice.costs(self.rate.ms_per_byte)
            if self._referred or cost.coder not in DELTA_CODERS
        ]
        if not costs:
            return () if self._alone is None else (self._alone,)
        return tuple(
            CoderEstimate(cost.coder, HEADER_BYTES + cost.bytes, cost.encode_ms, cost.decode_ms)
            for cost in (costs if self._choice.objective == "time" else costs[:1])
        )

    def _follow(self, coder: str, payload_bytes: int, took_ms: float) -> None:
        before = self._alone or CoderEstimate(coder, HEADER_BYTES + payload_bytes, took_ms, took_ms)
        self._alone = replace(
            before,
            message_bytes=before.message_bytes + _NEW * (HEADER_BYTES + payload_bytes - before.message_bytes),
            encode_ms=before.encode_ms + _NEW * (took_ms - before.encode_ms),
        )

    def explain(self) -> dict[str, Any] | None:
        """What ``--explain`` shows: the link's rate and every coder's expected cost; None where the coder is fixed."""
        if self._coder not in _OBJECTIVE:
            return None
        rate = self.rate
        return {
            "objective": self._choice.objective,
            "link": {
                "megabits_per_s": round(rate.rate_bps / 1e6, 3) if rate.ms_per_byte > FASTEST_MS else None,
                "fixed_ms": None if rate.fixed_ms is None else round(rate.fixed_ms, 3),
                "frames": rate.frames,
            },
            "coders": [
                {
                    "coder": cost.coder,
                    "payload_bytes": round(cost.bytes, 1),
                    "encode_ms": round(cost.encode_ms, 4),
                    "send_ms": round(cost.send_ms, 4),
                    "decode_ms": round(cost.decode_ms, 4),
                    "total_ms": round(cost.total_ms, 4),
                }
                for cost in self._choice.costs(rate.ms_per_byte)
            ],
        }

    def _wanted(self, decoded: tuple[str, ...]) -> tuple[str, ...]:
        """Of the coders here those that the setting allows and the other half decodes.

        Raises CodecError: it does not decode the one that was asked for.
        """
        mine = (*coder_names(), *delta_names())
        if self._coder in _OBJECTIVE:
            return useful_coders(self._variant, tuple(name for name in mine if name in decoded))
        if self._coder not in decoded and self._coder in mine:
            raise CodecError(
                f"the edge does not decode coder {self._coder!r}; choose another one (--coder): {', '.join(decoded)}"
            )
        if self._coder in DELTA_CODERS:
            return DELTA_CODERS[self._coder].base, self._coder
        return (self._coder,)

    def _choose(self, coders: tuple[str, ...]) -> CoderChoice:
        return CoderChoice(
            self._variant.planes,
            self._variant.bits,
            coders,
            level=self._level,
            objective=_OBJECTIVE.get(self._coder, "bytes"),
            dictionary=self._dictionary,
        )
