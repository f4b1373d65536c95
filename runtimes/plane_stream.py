"""One variant's planes to the edge: choose a coder, send, remember what the edge has; again where a link was lost."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import CODERS, DELTA_CODERS, MAX_DISTANCE, EncodedPlanes, coder_names, delta_names
from aecnn_deploy.errors import CodecError, LinkLostError, RequestFailedError, SettingsError
from aecnn_deploy.runtimes.coder_choice import CoderChoice, Objective, Reference
from aecnn_deploy.runtimes.device_link import EdgeLink, Reply
from aecnn_deploy.runtimes.plane_memory import plane_dictionary, useful_coders
from aecnn_deploy.wire import FailureCode

AUTO, SMALLEST = "auto", "smallest"
_OBJECTIVE: dict[str, Objective] = {AUTO: "time", SMALLEST: "bytes"}


def check_coder(name: str) -> None:
    """Raises SettingsError: ``name`` is neither a coder nor a way to choose one."""
    known = (SMALLEST, AUTO, *CODERS, *DELTA_CODERS)
    if name not in known:
        raise SettingsError(f"unknown coder {name!r}; choose {SMALLEST}, {AUTO} or one of {', '.join(known[2:])}")


@dataclass(frozen=True, slots=True)
class Asked:
    """One frame that was answered. ``away_ms``: spent on link and edge, connecting again included."""

    encoded: EncodedPlanes
    reply: Reply
    encode_ms: float
    away_ms: float


class PlaneStream:
    """Asks the edge for the planes of one variant, one frame at a time, from one thread.

    ``coder``: a coder of the codec, "auto" for the fastest of each frame, "smallest" for the fewest bytes. Differences
    refer to the last frame that the edge answered in this session; the first of each session stands alone. Raises
    CodecError: the coder cannot take these planes. MissingExtraError: its library is not installed. BundleError: a
    dictionary cannot be read.
    """

    def __init__(self, bundle: Bundle, variant: VariantSpec, link: EdgeLink, *, coder: str, level: int) -> None:
        self._variant, self._link, self._coder, self._level = variant, link, coder, level
        self._index = [spec.id for spec in bundle.manifest.variants].index(variant.id)
        self._dictionary = plane_dictionary(bundle, variant)
        self._last: tuple[int, npt.NDArray[np.uint8]] | None = None  # request id and planes of the last answer
        self._references = 0
        self._choice = self._choose(self._wanted((*coder_names(), *delta_names())))

    def open(self) -> None:
        """Connect and greet. Raises what ``EdgeLink.open`` does; CodecError: the edge does not decode the coder."""
        welcome = self._link.open()
        self._last, self._references = None, min(welcome.references, MAX_DISTANCE)
        if self._coder == AUTO or (self._coder == SMALLEST and self._link.rate.fixed_ms is None):
            self._link.measure()  # the fewest bytes need no rate: once, for what is told of the choice
        coders = self._wanted((*welcome.coders, "raw"))  # raw is always allowed
        if coders != self._choice.offered:  # another edge may answer there now
            self._choice = self._choose(coders)

    def ask(self, planes: npt.NDArray[np.uint8], time_left_ms: Callable[[], int], *, may_reconnect: bool) -> Asked:
        """Code the planes, send them, wait for the answer. ``time_left_ms`` is what the request is given.

        A connection that turns out to be lost is made again once if ``may_reconnect``; a difference that the edge has
        nothing for is sent again as a frame of its own. Raises EdgeUnreachableError, SessionRefusedError;
        RequestFailedError: the edge says no.
        """
        began_s = time.perf_counter()
        chosen, encoded = self._encode(planes)
        encode_s = time.perf_counter() - began_s
        try:
            reply = self._request(encoded, time_left_ms())
        except (LinkLostError, RequestFailedError) as exc:
            if isinstance(exc, RequestFailedError):
                if exc.code != FailureCode.NO_REFERENCE or self._last is None:
                    raise
            elif not may_reconnect:
                raise
            else:
                self.open()
            self._last = None
            again_s = time.perf_counter()
            chosen, encoded = self._encode(planes)
            encode_s += time.perf_counter() - again_s
            reply = self._request(encoded, time_left_ms())
        away_s = time.perf_counter() - began_s - encode_s
        self._last = reply.request_id, planes
        self._choice.decoded(chosen, reply.result.decode_ms)
        return Asked(encoded, reply, encode_s * 1e3, away_s * 1e3)

    def explain(self) -> dict[str, Any] | None:
        """What ``--explain`` shows: the link's rate and every coder's expected cost; None where the coder is fixed."""
        if self._coder not in _OBJECTIVE:
            return None
        rate = self._link.rate
        return {
            "objective": self._choice.objective,
            "link": {
                "megabits_per_s": round(0.008 / rate.ms_per_byte, 3) if rate.ms_per_byte else None,
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

    def _encode(self, planes: npt.NDArray[np.uint8]) -> tuple[str, EncodedPlanes]:
        reference = None
        if self._last is not None:
            distance = self._link.next_request_id - self._last[0]
            if distance <= self._references:
                reference = Reference(self._last[1], distance)
        return self._choice.encode(planes, self._link.rate.ms_per_byte, reference)

    def _request(self, encoded: EncodedPlanes, deadline_ms: int) -> Reply:
        return self._link.request(self._index, encoded, deadline_ms=deadline_ms)

    def _wanted(self, decoded: tuple[str, ...]) -> tuple[str, ...]:
        """Of the coders here those that the setting allows and the other half decodes.

        Raises CodecError: it does not decode the one that was asked for.
        """
        mine = (*coder_names(), *delta_names())
        if self._coder in _OBJECTIVE:
            return useful_coders(self._variant, tuple(name for name in mine if name in decoded))
        if self._coder not in decoded and self._coder in mine:
            self._link.close()
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
