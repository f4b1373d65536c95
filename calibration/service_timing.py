"""What single requests take in a real service: each is sent alone, after a pause, and the edge's own times count.

Within a program of its own the same decoder takes twice as long: in a service it runs on a thread that has just been
woken by a process at work.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from math import ceil

from aecnn_deploy.bundle.manifest import ENGINE_SOURCES, FP32, ONNXRUNTIME
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.calibration.classify_client import ClassifyClient
from aecnn_deploy.calibration.loopback import hello_for
from aecnn_deploy.calibration.pictures import CodedImages, encode_image
from aecnn_deploy.calibration.served_edge import served_edge
from aecnn_deploy.calibration.turns import Clock, Effort, Progress, in_turns, repeats, share
from aecnn_deploy.codec import EncodedPlanes
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.runtimes.edge_runners import RunnerOptions
from aecnn_deploy.runtimes.edge_server import ReadyEdge
from aecnn_deploy.wire import WireLimits

Payloads = Mapping[str, Sequence[EncodedPlanes]]  # coder -> a few frames' planes by it

_REPEATS = 3  # requests to one tail in its turn
_TIMEOUT_S = 60.0


def time_service(
    bundle: Bundle,
    payloads: Mapping[str, Payloads],
    coded: Sequence[CodedImages],
    options: RunnerOptions,
    *,
    clock: Clock,
    effort: Effort,
    progress: Progress,
) -> ReadyEdge:
    """Serve the variants of ``payloads`` in a process, ask for all of these and for ``coded``; what that process said.

    Counts ("tail", variant, "1"), ("decode", variant, coder), ("full", "1"), ("image", coding, size), ("overhead",)
    and ("loopback",). Raises ServeError: the service does not start.
    """
    names = [spec.id for spec in bundle.manifest.variants]
    pause_s = effort.pause_ms / 1e3
    with ExitStack() as stack:
        edge = stack.enter_context(served_edge(bundle, list(payloads), options))
        link = EdgeLink(edge.url, hello_for(bundle, "calibrate"), timeout_s=_TIMEOUT_S, limits=WireLimits())
        stack.callback(link.close)
        link.open()
        client = stack.enter_context(ClassifyClient(edge.url, Credentials(), timeout_s=_TIMEOUT_S))
        cycle = ceil(max(len(coders) for coders in payloads.values()) / _REPEATS)
        tails = [
            _TailRequests(clock, link, names.index(name), name, coders, pause_s) for name, coders in payloads.items()
        ]
        images = _ImageRequests(clock, client, coded, cycle, pause_s)
        in_turns([*tails, images], clock, effort, cycle=cycle, progress=progress)
    return edge


def precision_of(target: str) -> str:
    """Of what runs. A target names its precision at its end, unless it is fp16."""
    if target == ONNXRUNTIME:
        return FP32
    last = target.rpartition("-")[2]
    return last if last in ENGINE_SOURCES else next(iter(ENGINE_SOURCES))


class _TailRequests:
    """Requests of one variant, by the coder whose turn it is."""

    def __init__(self, clock: Clock, link: EdgeLink, index: int, name: str, payloads: Payloads, pause_s: float) -> None:
        self._clock, self._link, self._index, self._name, self._pause_s = clock, link, index, name, pause_s
        self._payloads = list(payloads.items())

    def __call__(self, number: int) -> None:
        clock = self._clock
        for each in repeats(clock, number, _REPEATS):
            coder, encoded = self._payloads[each % len(self._payloads)]
            time.sleep(self._pause_s)
            reply = self._link.request(self._index, encoded[each % len(encoded)], deadline_ms=0)
            result = reply.result
            clock.add(("tail", self._name, "1"), result.tail_ms)
            clock.add(("decode", self._name, coder), result.decode_ms)
            clock.add(("overhead",), result.total_ms - result.decode_ms - result.tail_ms)
            clock.add(("loopback",), reply.round_trip_ms - result.total_ms)


class _ImageRequests:
    """Whole images that are posted, each coding once a cycle."""

    def __init__(
        self, clock: Clock, client: ClassifyClient, coded: Sequence[CodedImages], cycle: int, pause_s: float
    ) -> None:
        self._clock, self._client, self._cycle, self._pause_s = clock, client, cycle, pause_s
        self._images = [(item.key, [encode_image(pixels, item.coding) for pixels in item.pixels]) for item in coded]

    def __call__(self, number: int) -> None:
        mine = share(self._images, number, self._cycle)
        for turn, (key, images) in enumerate((*mine[:1], *mine)):
            self._clock.counts = turn > 0  # as ``repeats``: the first time is for the caches
            time.sleep(self._pause_s)
            answer = self._client.classify(images[number % len(images)])
            self._clock.add(("image", *key), answer.decode_ms)
            self._clock.add(("full", "1"), answer.full_ms)
