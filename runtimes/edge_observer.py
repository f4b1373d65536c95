"""Where an edge says what happens, once: metrics, the status page, the log of requests and traces follow from it."""

import logging
from collections.abc import Callable, Mapping

from aecnn_deploy.runtimes.edge_metrics import EdgeMetrics
from aecnn_deploy.runtimes.edge_status import EdgeStatus
from aecnn_deploy.runtimes.edge_view import FULL, OK, TOTAL, EdgeState, Peer
from aecnn_deploy.runtimes.log_lines import REQUESTS, fields
from aecnn_deploy.runtimes.tracing import EdgeTracer

request_logger = logging.getLogger(REQUESTS)

_NO_STAGES: Mapping[str, float] = {}


class EdgeObserver:
    """Told on the event loop what happens; each call is a few microseconds. ``look``: the edge's state when asked."""

    def __init__(self, look: Callable[[], EdgeState]) -> None:
        self.metrics, self.status, self.tracer = EdgeMetrics(look), EdgeStatus(look), EdgeTracer()
        self._streams = 0

    def connected(self, address: str) -> Peer:
        """A WebSocket was opened from ``address`` (host:port); hand what comes back to the other calls."""
        self._streams += 1
        return Peer(self._streams, address)

    def visitor(self, host: str) -> Peer:
        """A client of HTTP, for one request."""
        return Peer(0, host)

    def welcomed(
        self, peer: Peer, *, name: str | None, software: str, trace: str | None, verified: bool = False
    ) -> None:
        """The edge says WELCOME. ``verified``: the name is that of its credentials, not its own word."""
        peer.introduce(name or "", verified=verified, software=software, trace=trace)
        self.status.welcomed(peer)

    def left(self, peer: Peer) -> None:
        """The stream of ``peer`` has ended."""
        if peer.welcomed:
            self.status.left(peer)

    def received(self, path: str, size_bytes: int) -> None:
        """Bytes of a request came, whatever becomes of it."""
        self.metrics.received(path, size_bytes)
        self.status.received(size_bytes)

    def answered(
        self,
        path: str,
        variant: str,
        peer: Peer,
        stages_ms: Mapping[str, float],
        batch: int,
        sent_bytes: int,
        *,
        request_id: int = 0,
        received_bytes: int = 0,
    ) -> None:
        """A request succeeded. ``stages_ms``: queue, decode, and tail or full, in the order in which they were, and
        ``total``, from its last byte to its answer; ``batch``: images that ran together with it, itself included."""
        self.metrics.answered(path, variant, stages_ms, sent_bytes)
        self.status.answered(path, variant, peer, stages_ms, received_bytes=received_bytes, sent_bytes=sent_bytes)
        if request_logger.isEnabledFor(logging.DEBUG):
            self._log(path, OK, peer, variant, request_id, stages_ms, received_bytes, sent_bytes, batch, "")
        if peer.trace is not None and self.tracer.active:
            self._trace(peer, request_id, stages_ms, None, variant, batch=batch, received_bytes=received_bytes)

    def failed(
        self,
        path: str,
        outcome: str,
        peer: Peer | None = None,
        reason: str = "",
        *,
        variant: str = "",
        request_id: int = 0,
        total_ms: float = 0.0,
    ) -> None:
        """A request failed. ``outcome`` is a code of ours; ``reason`` one line, which may quote a stranger."""
        self.metrics.failed(path, outcome)
        self.status.failed(path, outcome, peer, reason)
        if request_logger.isEnabledFor(logging.DEBUG):
            stages_ms = {TOTAL: total_ms} if total_ms else _NO_STAGES
            self._log(path, outcome, peer, variant, request_id, stages_ms, 0, 0, 0, reason)
        if peer is not None and peer.trace is not None and request_id and self.tracer.active:
            self._trace(peer, request_id, {TOTAL: total_ms}, f"{outcome}: {reason}", variant, outcome=outcome)

    def connection_refused(self, code: str, reason: str = "", peer: Peer | None = None) -> None:
        """Somebody was not let in, or lost the stream by breaking the rules; ``code`` is one of ours."""
        self.metrics.connection_refused(code)
        self.status.connection_refused(code, reason, peer)

    def batch_ran(self, variant: str, size: int, seconds: float) -> None:
        """A model ran once on ``size`` images."""
        self.metrics.batch_ran(variant, size, seconds)
        self.status.batch_ran(variant, size)

    def loaded(self, variant: str, seconds: float) -> None:
        """A tail was loaded and warmed."""
        self.metrics.loaded(variant, seconds)

    def evicted(self, variant: str) -> None:
        """A tail was unloaded to make room."""
        self.metrics.evicted(variant)

    def reloaded(self, ok: bool) -> None:
        """A bundle was taken on while serving, or left because it is a bad one."""
        self.metrics.reloaded(ok)

    def close(self) -> None:
        """Send the last spans, for 2 s at most."""
        self.tracer.close()

    def _trace(
        self,
        peer: Peer,
        request_id: int,
        stages_ms: Mapping[str, float],
        error: str | None,
        variant: str,
        **more: str | int,
    ) -> None:
        assert peer.trace is not None
        attributes: dict[str, str | int | float] = {f"aecnn.{name}": value for name, value in more.items()}
        attributes |= {"aecnn.variant": variant, "aecnn.device": peer.name, "network.peer.address": peer.host}
        self.tracer.finished(peer.trace, request_id, stages_ms, attributes=attributes, error=error)

    def _log(
        self,
        path: str,
        outcome: str,
        peer: Peer | None,
        variant: str,
        request_id: int,
        stages_ms: Mapping[str, float],
        received_bytes: int,
        sent_bytes: int,
        batch: int,
        reason: str,
    ) -> None:
        address = peer.address if peer is not None else ""
        request = f"{peer.stream}-{request_id}" if peer is not None and peer.stream else path
        rounded_ms = {stage: round(value, 3) for stage, value in stages_ms.items()}
        times = ", ".join(f"{stage} {value:.1f}" for stage, value in stages_ms.items())
        request_logger.debug(
            "%s %s of %s: %s%s",
            request,
            variant or path,
            address,
            outcome if outcome == OK else f"{outcome}: {reason}",
            f" ({times} ms; batch {batch}; {received_bytes} B)" if outcome == OK else "",
            extra=fields(
                request=request,
                path=path,
                peer=address,
                device=peer.name if peer is not None else "",
                variant=variant if path != FULL else FULL,
                outcome=outcome,
                reason=reason,
                stages_ms=rounded_ms,
                received_bytes=received_bytes,
                sent_bytes=sent_bytes,
                batch=batch,
            ),
        )
