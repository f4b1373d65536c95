"""One trace an image: the device's span ``image`` with its stages, and inside of its link the edge's with its own.

Both halves derive the ids from the HELLO's ``trace`` and the request's id (wire/tracing.py). The hot path keeps
numbers; spans are made of them afterwards, on the writer's thread. Without an endpoint in the environment all of this
costs a comparison with None.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aecnn_deploy.runtimes.log_lines import MAX_FIELD_CHARACTERS, one_line
from aecnn_deploy.runtimes.span_writer import HalfTrace, StageTime, open_writer
from aecnn_deploy.wire import new_trace, request_trace

DEVICE_SERVICE, EDGE_SERVICE = "aecnn-device", "aecnn-edge"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of an image on the device, between two readings of ``time.perf_counter``."""

    name: str  # read, head, encode or link
    start_s: float
    end_s: float


class DeviceTracer:
    """The device's half. Any thread may call it."""

    def __init__(self) -> None:
        self._writer = open_writer(DEVICE_SERVICE)

    @property
    def active(self) -> bool:
        return self._writer is not None

    def session(self) -> str | None:
        """For the HELLO of a new session: its random trace; None where nothing is traced."""
        return new_trace() if self._writer is not None else None

    def finished(
        self,
        source: str,
        start_s: float,
        end_s: float,
        stages: Sequence[Stage],
        *,
        sent: tuple[str, int] | None,
        attributes: Mapping[str, str | int | float] | None = None,
        error: str | None = None,
    ) -> None:
        """One image has its result or its ``error``. ``start_s`` and ``end_s`` are ``time.perf_counter``'s.

        ``sent``: the trace of the session and the id of the request that it was last sent as; None: never sent.
        """
        if self._writer is None:
            return
        zero_ns = _wall_zero_ns()
        self._writer.write(
            HalfTrace(
                name="image",
                start_ns=zero_ns + round(start_s * 1e9),
                end_ns=zero_ns + round(end_s * 1e9),
                stages=tuple(
                    StageTime(stage.name, zero_ns + round(stage.start_s * 1e9), zero_ns + round(stage.end_s * 1e9))
                    for stage in stages
                ),
                ids=request_trace(*sent) if sent is not None else None,
                remote=False,
                attributes={"aecnn.source": one_line(source, MAX_FIELD_CHARACTERS), **(attributes or {})},
                error=None if error is None else one_line(error, MAX_FIELD_CHARACTERS),
            )
        )

    def close(self) -> None:
        """Send what is left, for 2 s at most."""
        if self._writer is not None:
            self._writer.close()


class EdgeTracer:
    """The edge's half."""

    def __init__(self) -> None:
        self._writer = open_writer(EDGE_SERVICE)

    @property
    def active(self) -> bool:
        return self._writer is not None

    def finished(
        self,
        trace: str,
        request_id: int,
        stages_ms: Mapping[str, float],
        *,
        attributes: Mapping[str, str | int | float],
        error: str | None = None,
    ) -> None:
        """A request of a session with ``trace`` gets its answer now, ``stages_ms["total"]`` after it came.

        The other stages follow each other from its arrival on, in the order in which they stand there.
        """
        if self._writer is None:
            return
        end_ns = time.time_ns()
        start_ns = moment_ns = end_ns - round(stages_ms.get("total", 0.0) * 1e6)
        stages = []
        for name, milliseconds in stages_ms.items():
            if name != "total":
                stages.append(StageTime(name, moment_ns, moment_ns + round(milliseconds * 1e6)))
                moment_ns = stages[-1].end_ns
        self._writer.write(
            HalfTrace(
                name="edge",
                start_ns=start_ns,
                end_ns=end_ns,
                stages=tuple(stages),
                ids=request_trace(trace, request_id),
                remote=True,
                attributes=attributes,
                error=None if error is None else one_line(error, MAX_FIELD_CHARACTERS),
            )
        )

    def close(self) -> None:
        """Send what is left, for 2 s at most."""
        if self._writer is not None:
            self._writer.close()


def _wall_zero_ns() -> int:
    """The wall clock's nanoseconds when ``time.perf_counter`` was 0.

    Of three readings the one that was interrupted the least: what the scheduler takes between two clocks would shift
    every span of the image.
    """
    readings = []
    for _ in range(3):
        before_ns, wall_ns, after_ns = time.perf_counter_ns(), time.time_ns(), time.perf_counter_ns()
        readings.append((after_ns - before_ns, wall_ns - (before_ns + after_ns) // 2))
    return min(readings)[1]
