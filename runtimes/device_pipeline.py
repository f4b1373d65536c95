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
from threading import Event

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import AecnnError
from aecnn_deploy.planning.link_rate import LinkRate
from aecnn_deploy.runtimes.backoff import Backoff
from aecnn_deploy.runtimes.device_head import hello_of
from aecnn_deploy.runtimes.device_heads import DeviceHeads
from aecnn_deploy.runtimes.device_link import EdgeLink
from aecnn_deploy.runtimes.device_settings import DeviceSettings
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
        rate = LinkRate()
        found = live_ranking(bundle, settings)
        chooser = None if found is None else LiveVariants(found, settings, rate)
        ids = () if found is None else tuple(candidate.variant for candidate in found.candidates)
        heads = DeviceHeads(bundle, settings, ids or (bundle.variant(settings.variant).id,))
        way = settings.coder or (SMALLEST if chooser is None else AUTO)
        coders = PlaneCoders(
            {
                index: PlaneCoder(bundle, heads[index].variant, rate, coder=way, level=settings.zstd_level)
                for index in heads
            },
            rate,
            live=chooser is not None,
        )
        local = LocalModel(bundle, settings) if settings.fallback == "local" else None
        hello = hello_of(bundle, settings, uses=() if chooser is None else tuple(heads))
        tracer = DeviceTracer()
        stack.callback(tracer.close)

        def make_link() -> EdgeLink:
            return EdgeLink(
                settings.edge,
                hello,
                timeout_s=settings.timeout_s,
                limits=settings.limits,
                rate=rate,
                session_trace=tracer.session,
                credentials=settings.credentials,
            )

        desk = FrameDesk(
            settings,
            url=make_link().url,
            variant=heads.first,
            labels=tuple(bundle.manifest.labels),
            local=local,
            latest=(settings.policy or ("latest" if live else "all")) == "latest",
            tracer=tracer,
            live=chooser,
        )
        sessions = EdgeSessions(
            desk.lock,
            make_link,
            coders,
            desk,
            in_flight=settings.in_flight,
            timeout_s=settings.timeout_s,
            backoff=Backoff(random.Random(settings.seed), longest_s=settings.longest_pause_s),
        )
        stack.callback(sessions.close)
        try:
            sessions.open_first()
        except AecnnError:
            if local is None:
                raise
        stack.enter_context(heads)
        if local is not None:
            stack.enter_context(local)
        if chooser is not None:
            chooser.begin(bundle, heads, coders, local_s=local.cost_s if local is not None else None)
        pipeline = PipelineStages(bundle, settings, desk, sessions, coders, heads, local, chooser)
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
    return RunReport(bundle.id, images, interrupted, coders.explain(), totals, error)
