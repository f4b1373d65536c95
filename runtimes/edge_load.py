"""What an edge tells a device of how busy it is, in sessions that switch between variants."""

import time
from collections.abc import Callable, Iterable, Mapping

from aecnn_deploy.runtimes.edge_lane import Lane, LaneState
from aecnn_deploy.runtimes.edge_service import Caller
from aecnn_deploy.wire import Load


class LoadTold:
    """For one stream: what a request of each variant that it uses would meet now.

    ``lanes`` by the HELLO's variant index. ``loaded``: all lanes whose models are in memory; they share a processor.
    """

    def __init__(self, lanes: Mapping[int, Lane], loaded: Callable[[], Iterable[Lane]], caller: Caller) -> None:
        self._lanes, self._loaded, self._caller = lanes, loaded, caller

    def now(self) -> list[Load]:
        """(variant index, wait in ms, run of the tail in ms) of those that are loaded.

        The wait is that of the variant's own queue in its turns, and of the batches that other models run just now: of
        each its rest, but no more than the request's own run, since both share the processor. What waits for other
        models is not in it, and neither is decoding. Where models have run side by side for a while, their times have
        grown by that already, and the wait is too long rather than too short.
        """
        if not self._lanes:
            return []
        now_s = time.perf_counter()
        rests = {lane: rest_s for lane in self._loaded() if (rest_s := lane.rest_s(now_s)) > 0}
        load: list[Load] = []
        for index, lane in self._lanes.items():
            if lane.state is LaneState.LOADED:
                wait_s, run_s = lane.expected_s(self._caller.peer, self._caller.stream, now_s)
                if rests:
                    wait_s += sum(min(rest_s, run_s) for other, rest_s in rests.items() if other is not lane)
                load.append((index, round(wait_s * 1e3, 2), round(run_s * 1e3, 2)))
        return load
