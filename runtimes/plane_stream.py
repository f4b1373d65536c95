"""One variant's planes to the edge, one after the other: code, send, remember what the edge has; again where a link
was lost."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.codec import EncodedPlanes
from aecnn_deploy.errors import CodecError, LinkLostError, RequestFailedError
from aecnn_deploy.runtimes.device_link import EdgeLink, Reply
from aecnn_deploy.runtimes.plane_coder import Answered, PlaneCoder
from aecnn_deploy.wire import FailureCode


@dataclass(frozen=True, slots=True)
class Asked:
    """One frame that was answered. ``away_ms``: spent on link and edge, connecting again included."""

    encoded: EncodedPlanes
    reply: Reply
    encode_ms: float
    away_ms: float


class PlaneStream:
    """Asks the edge for the planes of one variant, one frame at a time, from one thread.

    Differences refer to the last frame that the edge answered in this session; the first of each session stands alone.
    ``coder`` and what is raised: as ``PlaneCoder``.
    """

    def __init__(self, bundle: Bundle, variant: VariantSpec, link: EdgeLink, *, coder: str, level: int) -> None:
        self._link = link
        self._coder = PlaneCoder(bundle, variant, link.rate, coder=coder, level=level)
        self._last: Answered | None = None

    def open(self) -> None:
        """Connect and greet. Raises what ``EdgeLink.open`` does; CodecError: the edge does not decode the coder."""
        welcome = self._link.open()
        self._last = None
        try:
            terms = self._coder.terms(welcome)
        except CodecError:
            self._link.close()
            raise
        if self._coder.wants_rate:
            self._link.measure()
        self._coder.use(terms)

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
        self._last = Answered(reply.request_id, planes)
        self._coder.decoded(chosen, reply.result.decode_ms)
        return Asked(encoded, reply, encode_s * 1e3, away_s * 1e3)

    def explain(self) -> dict[str, Any] | None:
        """What ``--explain`` shows: the link's rate and every coder's expected cost; None where the coder is fixed."""
        return self._coder.explain()

    def _encode(self, planes: npt.NDArray[np.uint8]) -> tuple[str, EncodedPlanes]:
        return self._coder.encode(planes, request_id=self._link.next_request_id, last=self._last)

    def _request(self, encoded: EncodedPlanes, deadline_ms: int) -> Reply:
        return self._link.request(self._coder.variant_index, encoded, deadline_ms=deadline_ms)
