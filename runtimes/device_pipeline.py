"""A device's run as a pipeline: capture and decoding, the head, the link and the unsplit model overlap in threads.

    capture ─► [to head] ─► head ─► [to link] ─► link ─► in flight ─► receiver ─┐
                                       ▲  again │                               ├─► told, in order
                                       └────────┼── lost ◄──────────────────────┤
                                                └─► [to local] ─► unsplit model ┘

Every frame that is captured gets exactly one outcome: ``FrameLedger`` counts, and refuses a second one. One lock guards
all queues and states; models, coders and sockets run without it. Queues hold a frame or two, so that a stage that is
slow holds up the ones before it, and not memory.
"""

import random
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from threading import Event

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.planning.link_rate import LinkRate
from aecnn_deploy.runtimes.advised_run import advised, open_first
from aecnn_deploy.runtimes.backoff import Backoff
from aecnn_deploy.runtimes.controller_advice import AdviceBox
from aecnn_deploy.runtimes.device_head import hello_of
from aecnn_deploy.runtimes.device_heads import DeviceHeads
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.runtimes.device_settings import DeviceSettings
from aecnn_deploy.runtimes.edge_names import named_edges
from aecnn_deploy.runtimes.edge_sessions import EdgeSessions
from aecnn_deploy.runtimes.frame_desk import FrameDesk
from aecnn_deploy.runtimes.live_variants import LiveVariants, live_ranking
from aecnn_deploy.runtimes.local_model import LocalModel
from aecnn_deploy.runtimes.pipeline_stages import PipelineStages, close_source
from aecnn_deploy.runtimes.plane_coder import AUTO, SMALLEST, PlaneCoder
from aecnn_deploy.runtimes.plane_coders import PlaneCoders
from aecnn_deploy.runtimes.run_report import ImageReport, RunReport, RunTotals
from aecnn_deploy.runtimes.source import SourceImage
from aecnn_deploy.runtimes.tracing import DeviceTracer
from aecnn_deploy.runtimes.way_choice import EdgeSide, WayChoice

_SWITCH_INTERVAL_S = 0.0005  # Python's own 5 ms is what the head would wait for a thread that encodes or receives


def run_frames(
    bundle: Bundle,
    settings: DeviceSettings,
    frames: Iterable[SourceImage],
    *,
    live: bool | None = False,
    on_image: Callable[[ImageReport], None] = lambda _: None,
    stop: Event | None = None,
    keep: bool = True,
    limit: int | None = None,
) -> RunReport:
    """Classify ``frames`` (at most ``limit``); ``on_image`` hears of each from this thread, in the order of capture.

    ``live``: frames are of now, and the newest counts (``settings.policy``); None: what ``frames.live`` says, which is
    asked by the thread that reads them, since a pipe may have to be waited for. ``stop``, when set, ends the capture:
    what is in flight may end, the rest fails by ``interrupted``; so does Ctrl-C, and a second one abandons what is in
    flight. Without ``keep`` the report has no images, and nothing grows with their number. ``frames`` is read, and
    closed if it has a ``close``, by a thread of its own; one that is being read at the end is left to itself.

    A SourceError while reading ends the run and stands in the report, as long as any frame was captured. Raises, before
    anything is read: SettingsError, BundleError, RunnerError, CodecError, MissingExtraError; without a fallback
    EdgeUnreachableError and SessionRefusedError; PlanError: no head is fast enough for the deadline. SourceError: no
    frame came.
    """
    with ExitStack() as stack:
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(min(_SWITCH_INTERVAL_S, sys.getswitchinterval()))
        closing = stack.enter_context(ExitStack())
        closing.callback(close_source, frames)
        edges = named_edges((settings.edge, *settings.other_edges))
        rates = [LinkRate() for _ in edges]
        found = live_ranking(bundle, settings)
        lives = () if found is None else tuple(LiveVariants(found, settings, rate) for rate in rates)
        ids = () if found is None else tuple(candidate.variant for candidate in found.candidates)
        heads = DeviceHeads(bundle, settings, ids or (bundle.variant(settings.variant).id,))
        way = settings.coder or (AUTO if lives else SMALLEST)

        def make_coders(rate: LinkRate) -> PlaneCoders:
            own = {
                index: PlaneCoder(bundle, heads[index].variant, rate, coder=way, level=settings.zstd_level)
                for index in heads
            }
            return PlaneCoders(own, rate, live=bool(lives))

        coders = [make_coders(rate) for rate in rates]
        local = LocalModel(bundle, settings) if settings.fallback == "local" else None
        hello = hello_of(bundle, settings, uses=tuple(heads) if lives else ())
        tracer = DeviceTracer()
        stack.callback(tracer.close)

        def make_link(url: str, rate: LinkRate) -> EdgeLink:
            return EdgeLink(
                url,
                hello,
                timeout_s=settings.timeout_s,
                limits=settings.limits,
                rate=rate,
                session_trace=tracer.session,
                credentials=settings.credentials,
            )

        urls = [make_link(edge.url, rate).url for edge, rate in zip(edges, rates, strict=True)]
        desk = FrameDesk(
            settings,
            url=urls[0],
            variant=heads.first,
            labels=tuple(bundle.manifest.labels),
            local=local,
            latest=(settings.policy or ("latest" if live else "all")) == "latest",
            tracer=tracer,
            lives=lives,
        )

        def make_side(index: int) -> EdgeSide:
            edge, rate, own = edges[index], rates[index], coders[index]
            sessions = EdgeSessions(
                desk.lock,
                partial(make_link, edge.url, rate),
                own,
                desk,
                in_flight=settings.in_flight,
                timeout_s=settings.timeout_s,
                backoff=Backoff(random.Random(settings.seed), longest_s=settings.longest_pause_s),
            )
            stack.callback(sessions.close)
            return EdgeSide(index, edge.name, urls[index], own, sessions, lives[index] if lives else None)

        sides = tuple(make_side(index) for index in range(len(edges)))
        open_first(sides, needed=local is None)
        stack.enter_context(heads)
        if local is not None:
            stack.enter_context(local)
        for side in sides:
            if side.live is not None:
                side.live.begin(bundle, heads, side.coders, local_s=local.cost_s if local is not None else None)
        box = None
        if settings.controller is not None:
            box = AdviceBox(tuple(spec.id for spec in bundle.manifest.variants), len(edges))
        ways = WayChoice(desk, sides, box)
        if box is not None:
            stack.enter_context(advised(bundle, settings, ways, box, local))
        pipeline = PipelineStages(bundle, settings, ways, heads, local)
        stack.callback(pipeline.close)
        closing.pop_all()  # the thread that reads them closes them
        pipeline.start(frames, limit, live)
        images: list[ImageReport] = []
        totals = RunTotals()

        def tell(image: ImageReport) -> None:
            totals.add(image)
            if keep:
                images.append(image)
            on_image(image)

        interrupted = pipeline.tell_all(tell, stop)
        error = pipeline.source_error()
    return RunReport(bundle.id, images, interrupted, ways.last_used.coders.explain(), totals, error)
