"""The live choice of a device's run: what its stages measure goes in, a variant for each frame comes out.

Everything here wants the pipeline's lock held, but for what is called before the first frame.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.errors import PlanError, RequestFailedError, SettingsError
from aecnn_deploy.planning.link import bytes_on_link
from aecnn_deploy.planning.link_rate import LinkRate
from aecnn_deploy.planning.live_candidates import Ranking, ranking
from aecnn_deploy.planning.live_choice import Choice, LiveChoice
from aecnn_deploy.planning.live_forecast import CoderEstimate, EdgeNow, Forecast
from aecnn_deploy.planning.live_link import LinkNow, SlowerFirst, UnderWay, drained_in_ms
from aecnn_deploy.runtimes.device_heads import DeviceHeads, sample_frame
from aecnn_deploy.runtimes.device_settings import DeviceSettings
from aecnn_deploy.runtimes.edge_load_told import EdgeLoad
from aecnn_deploy.runtimes.frame_failure import Failure
from aecnn_deploy.runtimes.moving_frame import MovingFrame, Sent
from aecnn_deploy.runtimes.plane_coders import PlaneCoders
from aecnn_deploy.wire import Result

_FIRST_ANSWER_MS = 20.0  # that an edge may take for the first one

logger = logging.getLogger("aecnn_deploy.device")


@dataclass(frozen=True, slots=True)
class Flow:
    """What is on its way to the edge, and what that says of itself. ``most``: requests that may be in flight."""

    sents: Sequence[Sent]
    most: int
    unsent: Sequence[MovingFrame]
    load: EdgeLoad | None


def live_ranking(bundle: Bundle, settings: DeviceSettings) -> Ranking | None:
    """What the variant of each frame is chosen from; None: there is one variant for all of them.

    Raises SettingsError: no variant is as accurate as is asked for, or the bundle does not say.
    """
    variants = bundle.manifest.variants
    if settings.deadline_ms is None or settings.variant is not None:
        return None
    if len(variants) == 1 and settings.min_accuracy is None and not settings.several_ways:
        return None
    found = ranking(bundle.manifest, settings.min_accuracy, local=settings.fallback == "local")
    if found is None and settings.several_ways:
        raise SettingsError(
            f"{bundle.path} states no accuracy of its variants, by which one of several edges could be chosen, or a "
            "controller decide; export it with measurements, or give one --edge and no --controller"
        )
    if found is None:
        logger.warning(
            "%s states no accuracy of its variants, so none is chosen live; %s runs, choose another with --variant",
            bundle.path,
            variants[0].id,
        )
    return found


def nothing_fits(frame: MovingFrame) -> RequestFailedError:
    """Why a frame for which no variant was chosen has none."""
    assert frame.choice is not None
    return RequestFailedError(Failure.NOTHING_FITS, frame.choice.why_nothing())


class LiveVariants:
    """Chooses among ``found``; ``rate`` is the link's."""

    def __init__(self, found: Ranking, settings: DeviceSettings, rate: LinkRate) -> None:
        assert settings.deadline_ms is not None
        self._found, self._deadline_ms, self._explain, self._rate = found, settings.deadline_ms, settings.explain, rate
        self._live = LiveChoice(found.candidates, self._deadline_ms)
        self._through_s = float("-inf")  # when the last answered message had passed the link
        self._seen, self._answers = SlowerFirst(), 0
        self._heads: DeviceHeads | None = None

    def begin(self, bundle: Bundle, heads: DeviceHeads, coders: PlaneCoders, *, local_s: float | None) -> None:
        """Time the heads, which are entered, and see what their planes take; ``local_s``: the unsplit model's run.

        Raises PlanError: no way is fast enough for the deadline. RunnerError, BundleError, CodecError.
        """
        self._heads, frame = heads, sample_frame(bundle)
        took_ms = heads.times(frame)
        fast = [one for one in self._found.candidates if min(took_ms[one.index]) < self._deadline_ms]
        if not fast and (local_s is None or local_s * 1e3 > self._deadline_ms):
            ways = {one.variant: min(took_ms[one.index]) for one in self._found.candidates}
            if local_s is not None:
                ways["the unsplit model"] = local_s * 1e3
            name = min(ways, key=ways.__getitem__)
            raise PlanError(
                f"the fastest head here, of {name}, takes {ways[name]:.3g} ms, and the deadline is "
                f"{self._deadline_ms:g} ms; raise --deadline-ms"
            )
        for one in self._found.candidates:
            if one not in fast:
                logger.warning("%s is left out: its head takes %.1f ms here", one.variant, min(took_ms[one.index]))
        self._live = LiveChoice(fast, self._deadline_ms)
        for one in fast:
            for ms in took_ms[one.index]:
                self._live.forecaster.ran_head(one.index, ms)
            coder = coders[one.index]
            coder.encode(heads[one.index].planes(frame), request_id=1, last=None)
            self._live.forecaster.coded(one.index, coder.estimates(), of_a_frame=False)

    def flow(self, sents: Sequence[Sent], most: int, unsent: Sequence[MovingFrame], load: EdgeLoad | None) -> Flow:
        """What is under way now, in the order of sending."""
        return Flow(sents, most, unsent, load)

    def waits_for_the_first_answer(self, flow: Flow) -> bool:
        """Whether nothing is known of the link yet, and a message is under way that will tell."""
        return bool(flow.sents or flow.unsent) and self._rate.frames == 0 and self._answers == 0

    def looks_good(self, frame: MovingFrame, flow: Flow, now_s: float) -> bool:
        """Whether any variant fits for a frame that cannot have one yet."""
        return self.look(frame, flow, now_s).forecast is not None

    def look(self, frame: MovingFrame, flow: Flow, now_s: float) -> Choice:
        """The best that fits for the frame; changes nothing."""
        return self._live.look(_spent_ms(frame, now_s), self._link(flow, now_s), self._edge(flow, now_s), now_s)

    def forecasts(self, flow: Flow, now_s: float) -> tuple[Forecast, ...]:
        """What a frame whose head starts now would take by each variant that the edge has loaded."""
        return self._live.forecaster.forecasts(self._link(flow, now_s), self._edge(flow, now_s), now_s)

    def follow(self, frame: MovingFrame, flow: Flow, now_s: float, index: int) -> bool:
        """The variant ``index`` for the frame, as a controller advised; False: it cannot be run here or there now."""
        link, edge = self._link(flow, now_s), self._edge(flow, now_s)
        choice = self._live.take(index, _spent_ms(frame, now_s), link, edge, now_s)
        if choice is not None:
            self._chosen(frame, choice)
        return choice is not None

    def choose(self, frame: MovingFrame, flow: Flow, now_s: float) -> Choice:
        """Choose for the frame, whose head starts now: its variant, or none."""
        choice = self._live.choose(
            _spent_ms(frame, now_s),
            self._link(flow, now_s),
            self._edge(flow, now_s),
            now_s,
            idle=not flow.sents and not flow.unsent,
        )
        self._chosen(frame, choice)
        return choice

    def _chosen(self, frame: MovingFrame, choice: Choice) -> None:
        assert self._heads is not None
        frame.choice = choice
        if choice.forecast is not None:
            frame.variant = self._heads.variant(choice.forecast.candidate.index)
        if self._explain:
            frame.told_choice = choice.document()

    def ran_head_locked(self, frame: MovingFrame) -> None:
        """The frame's head is done."""
        self._live.forecaster.ran_head(frame.variant.index, frame.head_s * 1e3)

    def coded(self, index: int, coders: Sequence[CoderEstimate]) -> None:
        """A frame of a variant was coded; what its coders are expected to take now."""
        self._live.forecaster.coded(index, coders)

    def answered_locked(self, sent: Sent, result: Result, now_s: float) -> None:
        """The edge answered, in time or not."""
        self._answers += 1
        fixed_s = (self._rate.fixed_ms or 0.0) / 1e3
        self._through_s = max(self._through_s, now_s - result.total_ms / 1e3 - fixed_s)
        self._live.forecaster.answered(sent.variant, queue_ms=result.queue_ms, tail_ms=result.tail_ms)
        frame = sent.frame
        if frame.sent is sent and frame.choice is not None and not frame.choice.trial and not frame.key_frame:
            late_ms = (now_s - frame.captured_s) * 1e3 - frame.choice.expected_ms
            self._live.forecaster.error.was(late_ms, now_s)

    def _link(self, flow: Flow, now_s: float) -> LinkNow:
        rate = self._rate
        under_way = [UnderWay(sent.wire_bytes, sent.began_s) for sent in flow.sents]
        under_way += [UnderWay(_message_bytes(frame), None) for frame in flow.unsent]
        estimate, measured = rate.ms_per_byte, rate.frames > 0
        if flow.sents and not measured:  # no faster than the oldest message has been without an answer
            oldest = flow.sents[0]
            waited_ms = (now_s - oldest.began_s) * 1e3 - (rate.fixed_ms or 0.0) - _FIRST_ANSWER_MS
            estimate = max(estimate, waited_ms / bytes_on_link(oldest.wire_bytes))
        ms_per_byte = self._seen.ms_per_byte(estimate, self._answers, idle=not flow.sents)
        free_ms = drained_in_ms(under_way, ms_per_byte, now_s, self._through_s)
        # Where as many are in flight as may be, the next one waits for an answer.
        over = len(flow.sents) + len(flow.unsent) - flow.most
        if flow.most and over >= 0:
            expected_s = sorted(_expected_s(sent.frame) for sent in flow.sents)
            if expected_s:
                free_ms = max(free_ms, (expected_s[min(over, len(expected_s) - 1)] - now_s) * 1e3)
        return LinkNow(ms_per_byte, rate.spread_ms_per_byte, rate.fixed_ms or 0.0, free_ms, measured)

    def _edge(self, flow: Flow, now_s: float) -> EdgeNow:
        busy_ms: dict[int, float] = {}
        for sent in flow.sents:
            busy_ms[sent.variant] = max(busy_ms.get(sent.variant, 0.0), (_expected_s(sent.frame) - now_s) * 1e3)
        if flow.load is None:
            return EdgeNow(busy_in_ms=busy_ms)
        return EdgeNow(flow.load.variants, max(0.0, now_s - flow.load.told_s), busy_ms)


def _spent_ms(frame: MovingFrame, now_s: float) -> float:
    return (now_s - frame.captured_s) * 1e3


def _expected_s(frame: MovingFrame) -> float:
    return frame.captured_s + (frame.choice.expected_ms / 1e3 if frame.choice is not None else 0.0)


def _message_bytes(frame: MovingFrame) -> float:
    assert frame.choice is not None
    assert frame.choice.forecast is not None
    return frame.choice.forecast.message_bytes
