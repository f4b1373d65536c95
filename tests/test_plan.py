"""Choices and their reasons: what must hold for any measured numbers, and for those of the paper."""

import re
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aecnn_deploy.bundle.manifest import Manifest
from aecnn_deploy.planning.accuracy import accuracies
from aecnn_deploy.planning.link import Link
from aecnn_deploy.planning.plan import TIE, Candidate, PlanSettings, choose, nearest
from aecnn_deploy.planning.plan_document import plan_document
from aecnn_deploy.planning.predict import Predictor
from aecnn_deploy.planning.rate_sweep import bands, crossings, curve, sweep
from aecnn_deploy.planning.reasons import why_none, why_not
from tests.plan_examples import DEVICE, EDGE, LINK, MANIFEST, PREDICTOR, candidates, plan, reason, settings_drawn
from tests.plan_profiles import UNSPLIT


class TestChoice:
    @settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
    @given(st.lists(candidates(), max_size=12), settings_drawn)
    def test_it_meets_what_is_asked_and_none_that_does_is_more_accurate(
        self, given_ones: list[Candidate], asked: PlanSettings
    ) -> None:
        chosen = choose(given_ones, asked)
        fitting = [item for item in given_ones if item.competes and item.fits(asked)]
        assert (chosen is None) == (not fitting)
        if chosen is None:
            return
        assert chosen.competes
        assert chosen.in_time(asked)
        assert chosen.accurate_enough(asked)
        known = [item for item in fitting if item.accuracy is not None]
        assert (chosen.accuracy is None) == (not known)
        if asked.deadline_ms is None:
            assert all(chosen.prediction.total_ms <= item.prediction.total_ms for item in known or fitting)
            return
        for item in known:
            assert item.accuracy is not None
            assert chosen.accuracy is not None
            assert item.accuracy <= chosen.accuracy + TIE
            if abs(item.accuracy - max(other.accuracy or 0.0 for other in known)) <= TIE:
                assert chosen.prediction.total_ms <= item.prediction.total_ms

    @settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
    @given(st.lists(candidates(), min_size=1, max_size=8), settings_drawn)
    def test_where_nothing_fits_the_nearest_competes(self, given_ones: list[Candidate], asked: PlanSettings) -> None:
        near = nearest(given_ones, asked)
        assert (near is None) == (not any(item.competes for item in given_ones))
        assert near is None or near.competes

    def test_the_paper_s_choice_at_10_mbit_and_100_ms(self) -> None:
        """Sec. V.C: the most accurate ratio within 100 ms. With 8-bit planes that is V = 2 and no longer V = 4."""
        made = plan(deadline_ms=100.0)
        assert made.choice is not None
        assert made.choice.prediction.variant == "resnet50-l1-v2-u8"
        tight = plan(deadline_ms=50.0)
        assert tight.choice is not None
        assert tight.choice.prediction.variant == "resnet50-l1-v4-u8"

    def test_what_is_equally_accurate_gives_way_to_the_faster(self) -> None:
        near = [
            msgspec.structs.replace(spec, accuracy=0.95 - 0.0004 * (spec.ratio == 64)) for spec in MANIFEST.variants
        ]
        manifest = msgspec.structs.replace(MANIFEST, variants=tuple(near))
        made = plan(manifest, Predictor(manifest, DEVICE, EDGE), deadline_ms=100.0)
        assert made.choice is not None
        assert made.choice.prediction.variant == "resnet50-l1-v64-u8"
        assert "0.04 points more accurate than the choice" in reason(made, "resnet50-l1-v4-u8, zstd") or (
            "zstd: " in reason(made, "resnet50-l1-v4-u8, zstd")
        )

    def test_without_a_deadline_it_is_the_fastest_that_is_accurate_enough(self) -> None:
        assert plan().choice == plan().candidates[0]
        made = plan(min_accuracy=0.9468)
        assert made.choice is not None
        assert made.choice.prediction.variant == "resnet50-l1-v8-u8"

    def test_local_computing_is_chosen_where_there_is_time_for_it_unless_it_is_excluded(self) -> None:
        made = plan(deadline_ms=400.0)
        assert made.choice is not None
        assert (made.choice.prediction.path, made.choice.accuracy) == ("local", UNSPLIT)
        split = plan(deadline_ms=400.0, local=False)
        assert split.choice is not None
        assert split.choice.prediction.path == "split"
        assert reason(split, "local computing").startswith("competes only without --no-local; ")

    def test_full_offloading_is_predicted_always_and_chosen_only_if_asked_for(self) -> None:
        fast = Link(150e6, 4.0)
        made = plan(link=fast, deadline_ms=100.0)
        assert made.choice is not None
        assert made.choice.prediction.path == "split"
        assert reason(made, "full offloading, file@640x480").startswith("competes only with --full; 0.2 points more")
        whole = plan(link=fast, deadline_ms=100.0, full=True)
        assert whole.choice is not None
        assert whole.choice.label == "full offloading, file@640x480"
        assert whole.choice.accuracy == UNSPLIT

    def test_lossy_images_have_no_known_accuracy_and_are_the_last_resort(self) -> None:
        made = plan(link=Link(150e6, 4.0), deadline_ms=100.0, full=True)
        item = next(item for item in made.candidates if item.prediction.image_coding == "jpeg-q75")
        assert (item.accuracy, item.known.at_most) == (None, UNSPLIT)
        assert reason(made, item.label).startswith("its accuracy is not known, at most 95.8 %; ")
        only = [candidate for candidate in made.candidates if candidate.prediction.image_coding == "jpeg-q75"]
        assert choose(only, PlanSettings(100.0, full=True)) == item
        assert choose(only, PlanSettings(100.0, 0.5, full=True)) is None

    def test_a_safe_plan_holds_the_deadline_for_a_slow_image(self) -> None:
        deadline_ms = plan().best_of_variants()["resnet50-l1-v4-u8"].prediction.total_ms + 0.1
        loose = plan(deadline_ms=deadline_ms)
        safe = plan(deadline_ms=deadline_ms, safe=True)
        assert loose.choice is not None
        assert safe.choice is not None
        assert loose.choice.prediction.high_ms > deadline_ms
        assert safe.choice.prediction.high_ms <= deadline_ms

    def test_each_variant_s_least_rate_is_where_its_time_is_the_deadline(self) -> None:
        made = plan(deadline_ms=60.0)
        assert set(made.least_rates()) == {spec.id for spec in MANIFEST.variants}
        for item, rate in made.least_rates().values():
            assert rate is not None
            assert item.prediction.at_ms(rate) == pytest.approx(60.0)
        assert plan().least_rates() == {}


class TestAccuracy:
    def replaced(self, **changes: Sequence[float | None]) -> Manifest:
        specs = [
            msgspec.structs.replace(spec, **{name: values[number] for name, values in changes.items()})
            for number, spec in enumerate(MANIFEST.variants)
        ]
        return msgspec.structs.replace(MANIFEST, variants=tuple(specs))

    def test_labels_come_before_agreement(self) -> None:
        known = accuracies(self.replaced(agreement=[0.5] * 6))
        assert (known.measure, known.unsplit) == ("accuracy", UNSPLIT)

    def test_with_agreement_the_unsplit_model_agrees_with_itself(self) -> None:
        known = accuracies(self.replaced(accuracy=[None] * 6, agreement=[0.9] * 6))
        assert (known.measure, known.unsplit, known.of_variant("resnet50-l1-v2-u8").accuracy) == ("agreement", 1.0, 0.9)

    def test_the_two_are_never_mixed(self) -> None:
        manifest = self.replaced(accuracy=[0.9] + [None] * 5, agreement=[None] + [0.99] * 5)
        known = accuracies(manifest)
        assert known.measure == "accuracy"
        assert [known.of_variant(spec.id).accuracy for spec in manifest.variants] == [0.9] + [None] * 5
        made = plan(manifest, Predictor(manifest, DEVICE, EDGE), deadline_ms=100.0)
        assert made.choice is not None
        assert made.choice.accuracy == 0.9
        assert any("no accuracy is known of resnet50-l1-v4-u8, " in note for note in made.notes)

    def test_without_any_the_choice_is_by_time_alone_and_says_so(self) -> None:
        manifest = self.replaced(accuracy=[None] * 6)
        made = plan(manifest, Predictor(manifest, DEVICE, EDGE), deadline_ms=100.0)
        assert made.choice == made.candidates[0]
        assert "the bundle knows no accuracy of any variant: the choice is by time alone" in made.notes
        asked = plan(manifest, Predictor(manifest, DEVICE, EDGE), min_accuracy=0.9)
        assert why_none(asked).endswith("none is known; leave --min-accuracy out")

    @pytest.mark.parametrize("value", ["0.96", 96.0, True, None, [0.96]])
    def test_an_unsplit_accuracy_that_is_none_is_not_taken_for_one(self, value: object) -> None:
        assert accuracies(msgspec.structs.replace(MANIFEST, measurements={"unsplit_accuracy": value})).unsplit is None


class TestNothingFits:
    def test_the_nearest_is_named_with_what_it_would_take(self) -> None:
        said = why_none(plan(link=Link(1e6, 4.0), deadline_ms=25.0))
        assert said.startswith("nothing meets the deadline of 25.0 ms: the nearest, resnet50-l1-v64-u8, jpegls, takes ")
        told = re.search(
            r"takes 31\.1 ms, .* deadline of (31\.2) ms, or (2\.\d\d) Mbit/s for resnet50-l1-v64-u8, jpegls$", said
        )
        assert told is not None
        assert plan(link=Link(1e6, 4.0), deadline_ms=float(told[1])).choice is not None
        assert plan(link=Link(float(told[2]) * 1e6, 4.0), deadline_ms=25.0).choice is not None
        assert plan(link=Link((float(told[2]) - 0.02) * 1e6, 4.0), deadline_ms=25.0).choice is None

    def test_a_deadline_below_any_head_s_time_is_said_as_that(self) -> None:
        said = why_none(plan(deadline_ms=2.0))
        assert "no rate helps" in said
        assert said.endswith(
            "the deadline is below any head's time: the fastest, of resnet50-l1-v64-u8 in int8, takes 2.1 ms alone"
        )

    def test_an_accuracy_that_nothing_has_names_the_most_accurate(self) -> None:
        made = plan(min_accuracy=0.99)
        assert made.choice is None
        assert why_none(made) == (
            "nothing has an accuracy of 99.0 % or more: the nearest is local computing with 95.8 %"
        )

    def test_full_offloading_that_would_fit_is_offered(self) -> None:
        said = why_none(plan(link=Link(200e6, 0.5), deadline_ms=10.0))
        assert said.endswith("full offloading, file@640x480 would take 8.0 ms: --full lets it compete")

    def test_the_document_has_no_choice_and_the_nearest(self) -> None:
        document = plan_document(plan(deadline_ms=2.0))
        assert document["choice"] is None
        assert document["nearest"]["variant"] == "resnet50-l1-v64-u8"
        assert document["cannot"].startswith("nothing meets the deadline")
        assert not any(item["fits"] for item in document["alternatives"] if item["competes"])


class TestReasons:
    def test_every_loser_has_one_and_the_choice_has_none(self) -> None:
        for link in (Link(0.3e6, 4.0), LINK, Link(150e6, 1.0)):
            for asked in ({}, {"deadline_ms": 60.0}, {"deadline_ms": 60.0, "min_accuracy": 0.94}, {"full": True}):
                made = plan(link=link, **asked)
                for item in made.candidates:
                    assert bool(why_not(item, made)) == (item is not made.choice)

    def test_too_late_says_how_late_and_how_much_of_it_is_the_link(self) -> None:
        made = plan(link=Link(2e6, 4.0), deadline_ms=100.0)
        assert reason(made, "resnet50-l1-v2-u8, jpegls") == (
            "104.8 ms over the deadline: 84 % of it is the link; in time from 5.32 Mbit/s"
        )

    def test_not_accurate_enough_says_by_how_much(self) -> None:
        made = plan(deadline_ms=100.0, min_accuracy=0.93)
        assert reason(made, "resnet50-l1-v64-u8, zstd").startswith("1.5 points below the least accuracy")


class TestSweep:
    RATES = sweep()

    def test_the_bands_are_the_choices_and_leave_no_gap(self) -> None:
        made = plan(deadline_ms=60.0)
        found = bands(made.candidates, made.settings, self.RATES)
        assert found[0].low_bps == self.RATES[0]
        assert found[-1].high_bps == pytest.approx(self.RATES[-1])
        for before, after in pairwise(found):
            assert before.high_bps == after.low_bps
            assert before.what != after.what
        for band in found:
            middle = (band.low_bps * band.high_bps) ** 0.5
            chosen = choose([item.at(middle) for item in made.candidates], made.settings)
            assert (chosen.prediction.variant or chosen.label if chosen else None) == band.what

    def test_a_band_begins_where_its_variant_comes_in_time(self) -> None:
        made = plan(deadline_ms=60.0)
        least = {name: rate for name, (_, rate) in made.least_rates().items()}
        for band in bands(made.candidates, made.settings, self.RATES)[1:]:
            assert band.what is not None
            assert band.low_bps == pytest.approx(least[band.what], rel=1e-4)

    def test_curves_meet_at_their_crossings(self) -> None:
        splits = [PREDICTOR.split("resnet50-l1-v8-u8", coder, LINK) for coder in ("raw", "zstd", "jpegls")]
        whole = [PREDICTOR.full("file@640x480", LINK)]
        places = crossings(splits, whole)
        assert len(places) == 1
        for rate, ms_there in places:
            assert curve(splits, [rate])[0] == pytest.approx(ms_there)
            assert curve(whole, [rate])[0] == pytest.approx(ms_there)
