"""The choice of a variant for each frame, in simulated time: in time, accurate, steady, quick where links change."""

import itertools

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aecnn_deploy.bundle.manifest import InputSpec, Manifest, VariantSpec
from aecnn_deploy.errors import SettingsError
from aecnn_deploy.planning.link import bytes_on_link
from aecnn_deploy.planning.live_candidates import ranking
from aecnn_deploy.planning.live_choice import LiveChoice
from aecnn_deploy.planning.live_forecast import CoderEstimate, EdgeNow, Forecaster, PredictionError
from aecnn_deploy.planning.live_link import LinkNow, SlowerFirst, UnderWay, drained_in_ms
from aecnn_deploy.runtimes.edge_load_told import VariantLoad
from tests.live_links import World, candidates

SIZES = (60_000, 20_000, 4_000)  # 48, 16 and 3 ms at 10 Mbit/s
LINK = LinkNow(8 / 10e3, 0.0, 2.0)


def prepared(*accuracies: float, head_ms: float = 10.0, sizes: tuple[int, ...] = SIZES) -> LiveChoice:
    live = LiveChoice(candidates(*(accuracies or (0.9, 0.8, 0.7))), 100.0)
    for index, size in zip(range(len(sizes)), sizes, strict=True):
        live.forecaster.ran_head(index, head_ms)
        live.forecaster.coded(index, (CoderEstimate("raw", size, 0.5, 0.2),), of_a_frame=False)
        live.forecaster.answered(index, queue_ms=0.0, tail_ms=5.0)
    return live


class TestOneFrame:
    @given(
        elapsed_ms=st.lists(st.floats(0, 130), min_size=1, max_size=30),
        megabits=st.lists(st.floats(0.01, 1000), min_size=1, max_size=30),
        backlog_ms=st.floats(0, 200),
        wait_ms=st.floats(0, 200),
        spread=st.floats(0, 0.01),
        step_s=st.floats(0.001, 3),
    )
    @hypothesis_settings(max_examples=150, deadline=None)
    def test_nothing_is_chosen_that_does_not_fit_but_a_trial(
        self,
        elapsed_ms: list[float],
        megabits: list[float],
        backlog_ms: float,
        wait_ms: float,
        spread: float,
        step_s: float,
    ) -> None:
        live, tried_s = prepared(), float("-inf")
        for frame, spent_ms in enumerate(elapsed_ms):
            now_s = 5 + frame * step_s
            link = LinkNow(0.008 / megabits[frame % len(megabits)], spread, 2.0, backlog_ms)
            edge = EdgeNow({index: VariantLoad(wait_ms / (index + 1), 5.0) for index in range(3)})
            choice = live.choose(spent_ms, link, edge, now_s, idle=True)
            fitting = [forecast for forecast in choice.forecasts if forecast.rest_ms <= 100 - spent_ms]
            assert [choice.fits(forecast) for forecast in choice.forecasts].count(True) == len(fitting)
            if choice.trial and "larger" in choice.state:
                assert choice.forecast not in fitting
            elif choice.trial:
                assert not fitting
                assert now_s - tried_s >= 0.5
                tried_s = now_s
            elif choice.forecast is None:
                assert not fitting
                assert "would take" in choice.why_nothing()
            else:
                assert choice.forecast in fitting
            assert choice.document()["variant"] == (choice.forecast.candidate.variant if choice.forecast else None)

    @given(megabits=st.floats(0.5, 500))
    def test_the_most_accurate_that_fits_is_chosen_on_a_steady_link(self, megabits: float) -> None:
        live = prepared()
        link = LinkNow(0.008 / megabits, 0.0, 2.0)
        chosen = [live.choose(1.0, link, EdgeNow(), 1 + 0.1 * frame, idle=True) for frame in range(30)]
        fitting = [forecast for forecast in chosen[-1].forecasts if forecast.rest_ms <= 99.0]
        if fitting:
            assert chosen[-1].forecast == fitting[0]
            assert live.switches <= 2
        else:
            assert chosen[-1].trial or chosen[-1].forecast is None
            assert live.switches == 0

    def test_the_parts_of_a_forecast_add_up(self) -> None:
        link = LinkNow(0.0008, 0.0, 2.0, free_in_ms=20.0)
        edge = EdgeNow({0: VariantLoad(7.0, 6.0)})
        (forecast,) = prepared().forecaster.forecasts(link, edge, 1.0)  # the others are not loaded there
        send_ms = bytes_on_link(60_000) * 0.0008
        assert forecast.backlog_ms == pytest.approx(20 - 10.5)
        assert forecast.send_ms == pytest.approx(send_ms)
        assert forecast.expected_ms == pytest.approx(10 + 0.5 + 9.5 + send_ms + 2.0 + 7.0 + 0.2 + 6.0)
        assert forecast.rest_ms == pytest.approx(forecast.expected_ms + forecast.margin_ms)
        assert forecast.margin_ms == pytest.approx(5.0)

    def test_the_coder_is_the_one_that_is_done_first(self) -> None:
        live = prepared(sizes=(60_000,))
        coders = (CoderEstimate("raw", 60_000, 0.1, 0.1), CoderEstimate("zstd", 30_000, 4.0, 1.0))
        live.forecaster.coded(0, coders, of_a_frame=False)
        for megabits, coder in ((5, "zstd"), (500, "raw")):
            (forecast, *_) = live.forecaster.forecasts(LinkNow(0.008 / megabits, 0.0, 2.0), EdgeNow(), 1.0)
            assert forecast.coder == coder

    def test_a_busy_edge_makes_another_variant_the_one_in_time(self) -> None:
        busy = EdgeNow({0: VariantLoad(60.0, 5.0), 1: VariantLoad(0.0, 5.0)})
        first = prepared().choose(
            1.0, LINK, EdgeNow({0: VariantLoad(0.0, 5.0), 1: VariantLoad(0.0, 5.0)}), 1.0, idle=True
        )
        then = prepared().choose(1.0, LINK, busy, 1.0, idle=True)
        old = prepared().choose(1.0, LINK, EdgeNow(busy.loads, age_s=6.0), 1.0, idle=True)  # long ago: it may be idle
        chosen = [choice.forecast.candidate.variant if choice.forecast else None for choice in (first, then, old)]
        assert chosen == ["a0.9", "a0.8", "a0.9"]


class TestEstimates:
    def test_the_tail_of_a_variant_that_never_ran_is_told_by_multiply_adds(self) -> None:
        forecaster = Forecaster(candidates(0.9, 0.8), 100.0)
        forecaster.ran_head(0, 4.0)
        forecaster.ran_head(1, 4.0)
        guessed = [forecast.tail_ms for forecast in forecaster.forecasts(LINK, EdgeNow(), 1.0)]
        assert guessed == [9.0, 9.0]  # 4 ms for 1000 here, four times as fast there
        forecaster.answered(1, queue_ms=1.0, tail_ms=3.0)
        assert [forecast.tail_ms for forecast in forecaster.forecasts(LINK, EdgeNow(), 1.0)] == [3.0, 3.0]

    def test_harder_frames_are_so_for_the_variants_that_are_not_used(self) -> None:
        live = prepared()
        for size in (60_000, 75_000, 90_000):
            live.forecaster.coded(0, (CoderEstimate("raw", size, 0.5, 0.2),))
        sizes = [forecast.message_bytes for forecast in live.forecaster.forecasts(LINK, EdgeNow(), 1.0)]
        assert sizes == pytest.approx([90_000, 30_000, 6_000])

    def test_a_link_is_free_when_it_has_carried_what_is_under_way(self) -> None:
        one = bytes_on_link(10_000) * 0.0008
        assert drained_in_ms([], 0.0008, 5.0) == 0.0
        assert drained_in_ms([UnderWay(10_000, 5.0)], 0.0008, 5.0) == pytest.approx(one)
        assert drained_in_ms([UnderWay(10_000, 4.996)], 0.0008, 5.0) == pytest.approx(one - 4)
        both = [UnderWay(10_000, 4.996), UnderWay(10_000, None)]
        assert drained_in_ms(both, 0.0008, 5.0) == pytest.approx(one - 4 + one)
        assert drained_in_ms(both, 0.0008, 5.0, through_s=4.999) == pytest.approx(2 * one - 1)
        assert drained_in_ms([UnderWay(10_000, 1.0)], 0.0008, 5.0) == 0.0

    def test_one_answer_alone_does_not_make_a_slow_link_a_fast_one(self) -> None:
        seen = SlowerFirst()
        steps = (
            (0.001, 0, 0.001),
            (0.01, 1, 0.01),
            (0.001, 2, 0.01),
            (0.02, 2, 0.02),
            (0.002, 3, 0.02),
            (0.002, 4, 0.002),
        )
        assert [seen.ms_per_byte(told, answers, idle=False) for told, answers, _ in steps] == [now for *_, now in steps]
        assert seen.ms_per_byte(0.001, 4, idle=True) == 0.001

    @given(errors=st.lists(st.floats(-1e4, 1e4), max_size=50))
    def test_the_margin_stays_within_its_bounds_and_is_forgotten(self, errors: list[float]) -> None:
        error = PredictionError(100.0)
        for count, late_ms in enumerate(errors):
            error.was(late_ms, count * 0.1)
        now_s = len(errors) * 0.1
        assert 2.0 <= error.margin_ms(now_s) <= 25.0
        assert error.margin_ms(now_s + 60.0) == pytest.approx(5.0, abs=0.1)

    def test_predictions_that_are_wrong_get_a_larger_margin(self) -> None:
        good, bad, late = (PredictionError(100.0) for _ in range(3))
        for count in range(40):
            good.was(0.1, count * 0.1)
            bad.was(8.0 if count % 2 else -8.0, count * 0.1)
            late.was(10.0, count * 0.1)
        assert good.margin_ms(4.0) < 3.0
        assert bad.margin_ms(4.0) > 12.0
        assert late.margin_ms(4.0) == pytest.approx(10.0, abs=1.0)


class TestOverTime:
    @pytest.mark.parametrize("every_s", [0.1, 0.04])
    @pytest.mark.parametrize("megabits", [1.5, 2.4, 6.4, 6.9, 7.3, 40.0])
    def test_a_noisy_link_of_one_rate_does_not_make_it_flap(self, megabits: float, every_s: float) -> None:
        world = World(SIZES, lambda _: megabits * 1e6, noise=0.2, every_s=every_s, seed=int(megabits))
        world.run(8.0)
        before = world.live.switches
        told = world.run(68.0)
        assert world.live.switches - before <= 10
        late = [one for one in told[int(7 / every_s) :] if not one.in_time(100.0)]
        assert len(late) <= 0.03 * len(told)

    @pytest.mark.parametrize("every_s", [0.1, 0.04])
    def test_after_a_tenfold_drop_no_frame_is_predicted_on_the_old_rate_after_five(self, every_s: float) -> None:
        world = World(SIZES, lambda now_s: 20e6 if now_s < 5.0 else 2e6, every_s=every_s, seed=3)
        told = world.run(8.0)
        after = [one for one in told if one.captured_s >= 5.0]
        assert all(one.choice.link.ms_per_byte > 0.5 * 0.008 / 2 for one in after[5:])
        assert all(one.in_time(100.0) for one in after if one.captured_s > 6.0)

    def test_a_rise_brings_the_better_variant_back_within_three_seconds(self) -> None:
        world = World(SIZES, lambda now_s: 2e6 if 5 <= now_s < 15 else 20e6, seed=4)
        told = world.run(19.0)
        during = {
            one.choice.forecast.candidate.variant for one in told if 7 < one.captured_s < 15 and one.choice.forecast
        }
        back = {one.choice.forecast.candidate.variant for one in told if one.captured_s > 18 and one.choice.forecast}
        assert during == {"a0.7"}
        assert back == {"a0.9"}

    def test_in_a_tunnel_frames_are_refused_at_once_and_one_in_half_a_second_is_tried(self) -> None:
        world = World(SIZES, lambda now_s: 0.2e6 if 5 <= now_s < 15 else 20e6, seed=5)
        told = world.run(19.0)
        inside = [one for one in told if 8 <= one.captured_s < 15]
        trials = [one.captured_s for one in inside if one.choice.trial]
        assert 7 <= len(trials) <= 14
        assert all(later - earlier >= 0.499 for earlier, later in itertools.pairwise(trials))
        assert all(one.choice.forecast is None for one in inside if not one.choice.trial)
        back = [one for one in told if one.captured_s >= 18]
        assert all(one.in_time(100.0) and not one.choice.trial for one in back)
        assert {one.choice.forecast.candidate.variant for one in back if one.choice.forecast} == {"a0.9"}

    def test_the_choice_is_worth_more_than_any_fixed_variant(self) -> None:
        def rate(now_s: float) -> float:
            return 20e6 if now_s < 6 else 1e6 if now_s < 12 else 20e6

        def worth(world: World) -> float:
            told = world.run(18.0)
            return sum(
                one.choice.forecast.candidate.accuracy
                for one in told
                if one.in_time(100.0) and one.choice.forecast is not None
            ) / len(told)

        live = worth(World(SIZES, rate))
        fixed = [
            worth(World((size,), rate, accuracies=(value,))) for size, value in zip(SIZES, (0.9, 0.8, 0.7), strict=True)
        ]
        assert live > max(fixed) + 0.02

    def test_small_messages_on_a_fast_link_do_not_keep_the_large_variant_out(self) -> None:
        sizes = (15_000, 700)  # 0.7 kB in 0.06 ms: nothing is seen of the rate but jitter
        world = World(sizes, lambda now_s: 0.3e6 if now_s < 4 else 100e6, accuracies=(0.9, 0.8), jitter_ms=1.0, seed=6)
        told = world.run(9.0)
        assert {one.choice.forecast.candidate.variant for one in told[70:] if one.choice.forecast} == {"a0.9"}

    def test_a_way_up_that_fails_makes_the_next_one_wait_longer(self) -> None:
        live = prepared()
        slow, fast = LinkNow(0.008 / 6, 0.0, 2.0), LinkNow(0.008 / 9, 0.0, 2.0)
        ups, now_s, last = [], 1.0, None
        live.choose(1.0, slow, EdgeNow(), now_s, idle=True)
        while now_s < 60:
            now_s += 0.1
            # As soon as the better one is in use, the link looks too slow for it.
            link = slow if live.current == 0 else fast
            live.choose(1.0, link, EdgeNow(), now_s, idle=True)
            if live.current == 0 and last != 0:
                ups.append(now_s)
            last = live.current
        pauses = [later - earlier for earlier, later in itertools.pairwise(ups)]
        assert len(ups) <= 12
        assert pauses == pytest.approx(sorted(pauses))
        assert pauses[-1] > 7


def manifest(*figures: tuple[float | None, float | None], unsplit: float | None = None) -> Manifest:
    """Variants v0, v1 … with (accuracy, agreement)."""
    variants = tuple(
        VariantSpec(
            f"v{index}", 1, "stem", 2, 8, (1, 2, 2), "h", 10, 100, {"onnxruntime": "t"}, {}, accuracy, agreement
        )
        for index, (accuracy, agreement) in enumerate(figures)
    )
    spec = InputSpec(8, 8, 9, "bicubic", (0.0,) * 3, (1.0,) * 3)
    measured = {} if unsplit is None else {"unsplit_accuracy": unsplit}
    return Manifest(1, "0" * 64, "tiny", ("ant",), spec, "full.onnx", variants, {}, measured)


class TestRanking:
    def test_accuracy_counts_before_agreement_and_the_best_is_first(self) -> None:
        found = ranking(manifest((0.8, 0.99), (0.9, 0.5), unsplit=0.95))
        assert found is not None
        assert (found.metric, found.unsplit) == ("accuracy", 0.95)
        assert [(one.variant, one.index, one.accuracy) for one in found.candidates] == [("v1", 1, 0.9), ("v0", 0, 0.8)]
        other = ranking(manifest((None, 0.99), (0.9, 0.5)))
        assert other is not None
        assert (other.metric, [one.variant for one in other.candidates]) == ("agreement", ["v0", "v1"])

    def test_without_figures_there_is_no_ranking_and_no_least_accuracy(self) -> None:
        bare = manifest((None, None), (0.9, 0.5))
        assert ranking(bare) is None
        with pytest.raises(SettingsError, match="fix one of them with --variant: v0, v1"):
            ranking(bare, 0.5)

    def test_less_accurate_variants_are_left_out(self) -> None:
        found = ranking(manifest((0.8, None), (0.9, None)), 0.85)
        assert found is not None
        assert [one.variant for one in found.candidates] == ["v1"]

    def test_more_than_there_is_names_the_best(self) -> None:
        both = manifest((0.8, None), (0.9, None), unsplit=0.95)
        with pytest.raises(SettingsError, match=r"the best, v1, has accuracy 0\.9;"):
            ranking(both, 0.92)
        local = ranking(both, 0.92, local=True)
        assert local is not None
        assert local.candidates == ()
        with pytest.raises(SettingsError, match=r"accuracy 0\.9, and the unsplit model has 0\.95"):
            ranking(both, 0.97, local=True)
