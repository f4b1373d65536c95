"""What a device tells its controller of itself, once a slot. The pipeline's lock guards it."""

from aecnn_deploy.runtimes.controller_messages import EdgeTold, State, WayTold
from aecnn_deploy.runtimes.edge_sessions import Way
from aecnn_deploy.runtimes.local_model import LocalModel
from aecnn_deploy.runtimes.way_choice import EdgeSide, WayChoice

_MOST_MS = 1e8  # of any time that is told
_MOST_BYTES = 1e11


class StateTeller:
    """Puts together what ``ways`` knows. ``variants``: how many the bundle has. ``local``: None: no fallback here."""

    def __init__(self, ways: WayChoice, *, variants: int, deadline_ms: float, local: LocalModel | None) -> None:
        self._ways, self._variants, self._deadline_ms, self._local = ways, variants, deadline_ms, local

    def state_locked(self, slot: int, now_s: float) -> State:
        """As it is now."""
        desk, rhythm = self._ways.desk, self._ways.rhythm
        read_ms = rhythm.read_s * 1e3
        device_ms: list[float | None] = [None] * self._variants
        edges = [self._edge(side, now_s, device_ms, read_ms) for side in self._ways.sides]
        frame_in_ms: float | None
        if desk.to_head:
            frame_in_ms, left_ms = 0.0, self._deadline_ms - (now_s - desk.to_head[0].captured_s) * 1e3
        else:
            frame_in_ms = None if desk.captured_all else _ms(rhythm.next_in_s(now_s) * 1e3)
            left_ms = self._deadline_ms
        return State(
            slot=slot,
            frame_in_ms=frame_in_ms,
            deadline_ms=_ms(left_ms),
            backlog_ms=_ms(self._ways.busy_s(now_s) * 1e3),
            local_ms=None if self._local is None else _ms(read_ms + self._local.cost_s * 1e3),
            device_ms=device_ms,
            edges=edges,
        )

    def _edge(self, side: EdgeSide, now_s: float, device_ms: list[float | None], read_ms: float) -> EdgeTold:
        """One edge; also fills in ``device_ms``, of which the slowest counts: each link has its own coder."""
        assert side.live is not None  # a run with a controller chooses variants
        if side.sessions.route_locked(now_s).way is not Way.OPEN:
            return EdgeTold(edge=side.index, up=False)
        flow = self._ways.flow_locked(side)
        ways = []
        told = {} if flow.load is None else flow.load.variants
        for forecast in side.live.forecasts(flow, now_s):
            index = forecast.candidate.index
            device_ms[index] = max(device_ms[index] or 0.0, _ms(read_ms + forecast.device_ms))
            ways.append(
                WayTold(
                    variant=index,
                    message_bytes=min(forecast.message_bytes, _MOST_BYTES),
                    air_ms=_ms(forecast.backlog_ms + forecast.send_ms),
                    decode_ms=_ms(forecast.decode_ms),
                    wait_ms=_ms(told[index].wait_ms if index in told else forecast.wait_ms),
                    tail_ms=_ms(forecast.tail_ms),
                )
            )
        rate = side.coders.rate
        return EdgeTold(
            edge=side.index,
            up=True,
            rate_bps=round(rate.rate_bps),
            fixed_ms=_ms(rate.fixed_ms or 0.0),
            load_age_ms=None if flow.load is None else _ms((now_s - flow.load.told_s) * 1e3),
            in_flight=len(flow.sents),
            ways=ways,
        )


def _ms(value: float) -> float:
    return round(min(max(value, 0.0), _MOST_MS), 3)
