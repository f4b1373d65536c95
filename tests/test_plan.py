"""Predictions and choices: what must hold for any measured numbers, and for those of the paper."""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aecnn_deploy.bundle.manifest import Manifest
from aecnn_deploy.errors import PlanError, SettingsError
from aecnn_deploy.planning.accuracy import Known, accuracies
from aecnn_deploy.planning.break_even import break_even, say_rate
from aecnn_deploy.planning.link import HTTP_BYTES, Link, bytes_on_link
from aecnn_deploy.planning.plan import TIE, Candidate, Plan, PlanSettings, choose, make_plan, nearest
from aecnn_deploy.planning.plan_document import plan_document
from aecnn_deploy.planning.predict import LinkSpread, Predictor, link_of
from aecnn_deploy.planning.prediction import LOCAL, SEND, SPLIT, Part, Prediction
from aecnn_deploy.planning.profiles import DeviceProfile, EdgeProfile, ImageCoding, ImageRead, LinkProfile
from aecnn_deploy.planning.rate_sweep import bands, crossings, curve, sweep
from aecnn_deploy.planning.reasons import why_none, why_not
from tests.plan_profiles import UNSPLIT, around, device_profile, edge_profile, link_profile, make_manifest

MANIFEST = make_manifest()
DEVICE, EDGE = device_profile(MANIFEST), edge_profile(MANIFEST)
PREDICTOR = Predictor(MANIFEST, DEVICE, EDGE)
LINK = Link(10e6, 4.0)

ms = st.floats(0.0, 1e4, allow_subnormal=False)
sizes = st.floats(1.0, 1e7)
rates = st.floats(1e3, 1e10)
shares = st.floats(0.0, 1.0)


@st.composite
def predictions(draw: st.DrawFn) -> Prediction:
    """Any split, or local computing."""
    if draw(st.booleans()) and draw(st.booleans()):
        return Prediction(LOCAL, MappingProxyType({"local": Part(draw(ms))}))
    sent = draw(sizes)
    stages = {"head": Part(draw(ms)), SEND: Part(bytes_on_link(sent) * 8e3 / 1e6), "tail": Part(draw(ms))}
    coder = draw(st.sampled_from(["raw", "zstd"]))
    return Prediction(SPLIT, MappingProxyType(stages), "v", coder, sent_bytes=sent, link_bytes=bytes_on_link(sent))


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    return Candidate(draw(predictions()), Known(draw(st.none() | shares)), draw(st.booleans()))


settings_drawn = st.builds(PlanSettings, st.none() | st.floats(1e-3, 1e5), st.none() | shares)


def plan(manifest: Manifest = MANIFEST, predictor: Predictor = PREDICTOR, link: Link = LINK, **asked: object) -> Plan:
    return make_plan(manifest, predictor, link, PlanSettings(**asked))  # type: ignore[arg-type]


def reason(made: Plan, label: str) -> str:
    return why_not(next(item for item in made.candidates if item.label == label), made)


class TestPrediction:
    def test_a_split_image_is_the_sum_of_what_was_measured(self) -> None:
        found = PREDICTOR.split("resnet50-l1-v64-u8", "zstd", LINK)
        payload = 36 + 0.58 * 3136
        expected = {
            "read": 9.1,
            "head": 2.0 + 118_013_952 // 64 / 17e6,
            "encode": 0.62,
            "send": bytes_on_link(payload) * 8e3 / 10e6,
            "fixed": 4.0,
            "overhead": 0.4,
            "decode": 0.39,
            "tail": 2.6,
        }
        assert list(found.parts) == list(expected)
        assert found.parts == pytest.approx(expected)
        assert found.total_ms == pytest.approx(sum(expected.values()))
        assert found.sent_bytes == pytest.approx(payload)
        assert found.sentence().startswith("read 9.1 + head 2.1 + encode 0.6 + send ")
        assert found.sentence().endswith(f" = {found.total_ms:.1f} ms")

    def test_the_faster_head_is_taken(self) -> None:
        slow = {"resnet50-l1-v64-u8": {"fp32": around(1.0), "int8": around(9.0)}}
        found = Predictor(MANIFEST, msgspec.structs.replace(DEVICE, heads=slow), EDGE)
        assert found.split("resnet50-l1-v64-u8", "raw", LINK).head == "fp32"
        assert PREDICTOR.split("resnet50-l1-v64-u8", "raw", LINK).head == "int8"

    def test_a_head_that_the_bundle_lacks_is_not_taken(self) -> None:
        bare = make_manifest((64,))
        only = msgspec.structs.replace(bare.variants[0], heads={})
        bare = msgspec.structs.replace(bare, variants=(only,))
        assert Predictor(bare, DEVICE, EDGE).split(only.id, "raw", LINK).head == "fp32"

    def test_full_offloading_sends_an_image_by_http(self) -> None:
        found = PREDICTOR.full("jpeg-q75", LINK)
        assert list(found.parts) == ["read", "encode", "send", "fixed", "overhead", "decode", "full"]
        assert found.parts["send"] == pytest.approx(bytes_on_link(9497, HTTP_BYTES) * 8e3 / 10e6)

    def test_a_file_that_is_sent_as_it_is_is_neither_read_nor_encoded(self) -> None:
        found = Predictor(MANIFEST, DEVICE, EDGE, image_size=(1920, 1080)).full("file@1920x1080", LINK)
        assert list(found.parts) == ["send", "fixed", "overhead", "decode", "full"]
        assert (found.sent_bytes, found.parts["decode"]) == (200_000, 9.8)

    def test_local_computing_sends_nothing(self) -> None:
        found = PREDICTOR.local()
        assert found.parts == {"read": 9.1, "local": 335.0}
        assert (found.sent_bytes, found.link_bytes, found.send_ms) == (0, 0, 0)
        assert found.at(1e3) is found

    def test_an_image_size_sets_the_time_of_reading(self) -> None:
        assert Predictor(MANIFEST, DEVICE, EDGE, image_size=(1280, 720)).local().parts["read"] == 22.0
        with pytest.raises(
            PlanError, match="reading an image of 320x240 was not measured on the device, only: 640x480"
        ):
            Predictor(MANIFEST, DEVICE, EDGE, image_size=(320, 240))

    def test_only_whole_images_of_the_size_that_is_read_are_offered(self) -> None:
        assert list(PREDICTOR.images) == ["jpeg-q75", "webp-q50", "raw", "file@640x480"]
        assert list(PREDICTOR.with_image_size((1280, 720)).images)[-1] == "file@1280x720"

    def test_decoding_a_file_of_another_size_is_taken_between_the_measured_ones(self) -> None:
        reads = [
            ImageRead(width, height, 1e5, around(30.0)) for width, height in ((1280, 480), (100, 80), (4000, 3000))
        ]
        between, small, large = (
            Predictor(MANIFEST, msgspec.structs.replace(DEVICE, reads=[read]), EDGE) for read in reads
        )
        share = (1280 * 480 - 640 * 480) / (1280 * 720 - 640 * 480)
        assert between.full("file@1280x480", LINK).parts["decode"] == pytest.approx(1.9 + share * (4.6 - 1.9))
        assert small.full("file@100x80", LINK).parts["decode"] == pytest.approx(0.8)
        assert "file@4000x3000" not in large.images
        assert any("not timed with JPEG files as large as 4000x3000" in gap for gap in large.unknown())

    def test_an_image_coding_of_one_half_is_not_offered(self) -> None:
        device = msgspec.structs.replace(
            DEVICE, image_codings=[ImageCoding("avif", 224, 224, 3e3, encode=around(30.0))]
        )
        assert "avif" not in Predictor(MANIFEST, device, EDGE).images

    def test_a_frame_that_the_edge_resizes_again_is_not_the_same_frame(self) -> None:
        cropped = msgspec.structs.replace(MANIFEST.input, resize_short=256)
        images = Predictor(msgspec.structs.replace(MANIFEST, input=cropped), DEVICE, EDGE).images
        assert not images["raw"].lossless
        assert PREDICTOR.images["raw"].lossless
        assert images["file@640x480"].lossless

    @given(predictions(), rates, rates)
    def test_more_rate_never_makes_it_slower(self, found: Prediction, one: float, other: float) -> None:
        slow, fast = sorted((one, other))
        assert found.at(fast).total_ms <= found.at(slow).total_ms * (1 + 1e-12)
        assert found.at(one).total_ms == pytest.approx(found.at_ms(one))

    @given(predictions(), st.floats(1e-3, 1e6))
    def test_from_its_least_rate_on_it_is_in_time_and_below_it_is_not(self, found: Prediction, deadline: float) -> None:
        rate = found.rate_for(deadline)
        if rate is None:
            assert found.constant_ms >= deadline or found.link_bytes == 0
        elif rate > 0:
            assert found.at_ms(rate) == pytest.approx(deadline)
            assert found.at_ms(rate / 2) > deadline
        else:
            assert found.constant_ms <= deadline

    def test_a_rate_that_is_none_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="expected a positive number"):
            PREDICTOR.local().at(0.0)

    def test_the_spread_is_that_of_the_parts_and_of_the_link(self) -> None:
        profile = link_profile(MANIFEST)
        steady = PREDICTOR.split("resnet50-l1-v64-u8", "zstd", LINK)
        assert steady.low_ms < steady.total_ms < steady.high_ms
        parts = steady.stages
        assert steady.high_ms - steady.total_ms == pytest.approx(
            math.hypot(*(part.above_ms for part in parts.values()))
        )
        more = bytes_on_link(36 + 0.66 * 3136) - bytes_on_link(36 + 0.58 * 3136)
        assert parts["send"].above_ms == pytest.approx(more * 8e3 / 10e6)
        straying = Predictor(MANIFEST, DEVICE, EDGE, spread=LinkSpread.of(profile)).split(
            "resnet50-l1-v64-u8", "zstd", LINK
        )
        assert straying.total_ms == steady.total_ms
        assert straying.high_ms > steady.high_ms
        assert straying.stages["send"].above_ms > parts["send"].above_ms
        assert straying.at(1e6).stages["send"].above_ms > straying.stages["send"].above_ms

    def test_a_spread_of_given_numbers_is_none(self) -> None:
        assert LinkSpread.of(link_profile(MANIFEST), rate=False, fixed=False) == LinkSpread()


class TestRefusals:
    @pytest.mark.parametrize("half", ["device", "edge"])
    def test_a_profile_of_another_bundle_is_refused(self, half: str) -> None:
        halves = {"device": DEVICE, "edge": EDGE}
        halves[half] = msgspec.structs.replace(halves[half], bundle_id="b" * 64)
        with pytest.raises(
            PlanError, match=rf"the {half} profile was measured with bundle b{{16}}…, .*calibrate {half}"
        ):
            Predictor(MANIFEST, **halves)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("device", "edge", "told"),
        [
            ({"heads": {}}, {}, "the device profile has no head of"),
            ({}, {"tails": {}}, "the edge profile has no tail of .* alone"),
            ({}, {"tails": {"resnet50-l1-v64-u8": {4: around(1.0)}}}, "the edge profile has no tail of .* alone"),
            ({"coders": {}}, {}, "the device profile has no coder raw of"),
            ({}, {"coders": {}}, "the edge profile has no coder raw of"),
        ],
    )
    def test_what_was_not_measured_is_named(
        self, device: dict[str, object], edge: dict[str, object], told: str
    ) -> None:
        halves: tuple[DeviceProfile, EdgeProfile] = (
            msgspec.structs.replace(DEVICE, **device),
            msgspec.structs.replace(EDGE, **edge),
        )
        with pytest.raises(PlanError, match=told):
            Predictor(MANIFEST, *halves).split("resnet50-l1-v64-u8", "raw", LINK)

    def test_unknown_names_are_told_with_the_known_ones(self) -> None:
        with pytest.raises(PlanError, match=r"the bundle has no variant 'v3'; it has resnet50-l1-v2-u8, "):
            PREDICTOR.split("v3", "raw", LINK)
        with pytest.raises(PlanError, match=r"no image coding 'gif' was measured on both halves, only: jpeg-q75, "):
            PREDICTOR.full("gif", LINK)

    def test_what_cannot_be_predicted_is_told_and_the_rest_is_planned(self) -> None:
        tails = {name: times for name, times in EDGE.tails.items() if name != "resnet50-l1-v2-u8"}
        edge = msgspec.structs.replace(EDGE, tails=tails, full={})
        made = plan(predictor=Predictor(MANIFEST, DEVICE, edge), deadline_ms=100.0)
        assert made.choice is not None
        assert made.choice.prediction.variant == "resnet50-l1-v4-u8"
        assert {what for what, _ in made.unmeasured} == {
            "resnet50-l1-v2-u8",
            *(f"full offloading, {name}" for name in PREDICTOR.images),
        }

    def test_profiles_with_nothing_in_them_are_refused(self) -> None:
        bare = msgspec.structs.replace(DEVICE, heads={}, local=None, image_codings=[], reads=[])
        with pytest.raises(PlanError, match="nothing can be predicted from these profiles: resnet50-l1-v2-u8: "):
            plan(predictor=Predictor(MANIFEST, bare, EDGE))

    @pytest.mark.parametrize(
        ("asked", "told"),
        [
            ({"deadline_ms": 0.0}, "the deadline is 0 ms, expected a positive number"),
            ({"deadline_ms": -1.0}, "the deadline is -1 ms"),
            ({"deadline_ms": math.inf}, "the deadline is inf ms"),
            ({"min_accuracy": 93.0}, r"the least accuracy is 93, expected 0 to 1; 93 per cent is --min-accuracy 0\.93"),
            ({"min_accuracy": -0.1}, "the least accuracy is -0.1"),
            ({"min_accuracy": math.nan}, "the least accuracy is nan"),
            ({"safe": True}, "--safe says how a deadline is held"),
        ],
    )
    def test_settings_that_cannot_be_are_refused(self, asked: dict[str, float], told: str) -> None:
        with pytest.raises(SettingsError, match=told):
            PlanSettings(**asked)  # type: ignore[arg-type]

    def test_a_link_profile_without_a_rate_is_refused(self) -> None:
        broken: LinkProfile = link_profile(MANIFEST, {"p50": 0.0})
        with pytest.raises(PlanError, match="has no rate; measure again"):
            LinkSpread.of(broken)


class TestLinkOf:
    def test_a_given_round_trip_gets_both_halves_own_code(self) -> None:
        assert link_of(DEVICE, EDGE, rate_bps=1e6, rtt_ms=20.0) == Link(1e6, 20.0 + (1.2 + 0.6) / 2)

    def test_a_measured_one_has_it_inside(self) -> None:
        assert link_of(DEVICE, EDGE, rate_bps=1e6, profile=link_profile(MANIFEST)) == Link(1e6, 4.2)

    @pytest.mark.parametrize(("rate", "rtt"), [(0.0, 0.0), (-1.0, 0.0), (1e6, -5.0), (math.nan, 0.0), (1e6, math.nan)])
    def test_what_no_link_has_is_refused(self, rate: float, rtt: float) -> None:
        with pytest.raises(SettingsError, match="expected"):
            link_of(DEVICE, EDGE, rate_bps=rate, rtt_ms=rtt)


class TestBreakEven:
    @given(predictions(), predictions())
    def test_at_the_rate_both_take_equally_long_and_beside_it_the_named_one_is_faster(
        self, first: Prediction, second: Prediction
    ) -> None:
        found = break_even(first, second)
        if found.rate_bps is not None:
            assert found.below is not None
            assert found.above is not None
            assert first.at_ms(found.rate_bps) == pytest.approx(second.at_ms(found.rate_bps), rel=1e-6, abs=1e-6)
            slower = second if found.below is first else first
            assert found.above is slower
            assert found.below.at_ms(found.rate_bps / 2) <= slower.at_ms(found.rate_bps / 2)
            assert found.above.at_ms(found.rate_bps * 2) <= found.below.at_ms(found.rate_bps * 2)
        elif found.below is not None:
            slower = second if found.below is first else first
            for rate in (1e3, 1e6, 1e9):
                assert found.below.at_ms(rate) <= slower.at_ms(rate) + 1e-6

    def test_the_words_say_which_and_where(self) -> None:
        split, whole = PREDICTOR.split("resnet50-l1-v64-u8", "raw", LINK), PREDICTOR.full("jpeg-q75", LINK)
        always = break_even(split, whole)
        assert always.of_first() == "always"
        assert always.sentence() == "resnet50-l1-v64-u8, raw is faster than full offloading, jpeg-q75 at every rate"
        assert break_even(whole, split).of_first() == "never"
        assert break_even(split, split).of_first() == "equal"
        assert "equally long" in break_even(split, split).sentence()
        big = PREDICTOR.split("resnet50-l1-v2-u8", "zstd", LINK)
        assert break_even(big, PREDICTOR.local()).of_first().startswith("above ")

    @pytest.mark.parametrize(
        ("rate", "words"),
        [
            (147.44e6, "147 Mbit/s"),
            (17.34e6, "17.3 Mbit/s"),
            (2e6, "2 Mbit/s"),
            (999_600.0, "1 Mbit/s"),
            (250e3, "250 kbit/s"),
            (1.5e9, "1.5 Gbit/s"),
            (2e13, "20,000 Gbit/s"),
            (12.0, "12 bit/s"),
        ],
    )
    def test_a_rate_has_three_digits(self, rate: float, words: str) -> None:
        assert say_rate(rate) == words

    @given(st.floats(1.0, 1e12))
    def test_a_rate_that_suffices_is_rounded_up(self, rate: float) -> None:
        words = say_rate(rate, at_least=True)
        value, unit = words.replace(",", "").split()
        said = float(value) * {"bit/s": 1, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}[unit]
        assert rate * (1 - 1e-6) <= said <= rate * 1.0101


class TestCoders:
    def test_coding_is_left_out_where_it_takes_longer_than_it_saves(self) -> None:
        variant = "resnet50-l1-v64-u8"
        assert PREDICTOR.best_coder(variant, Link(1e6, 4.0)) == "jpegls"
        assert PREDICTOR.best_coder(variant, Link(100e6, 4.0)) == "raw"

    @given(st.floats(1e5, 1e9))
    def test_no_other_coder_is_faster_than_the_best(self, rate: float) -> None:
        link = Link(rate, 4.0)
        best = PREDICTOR.split("resnet50-l1-v4-u8", PREDICTOR.best_coder("resnet50-l1-v4-u8", link), link)
        for coder in PREDICTOR.coders("resnet50-l1-v4-u8"):
            assert best.total_ms <= PREDICTOR.split("resnet50-l1-v4-u8", coder, link).total_ms

    def test_the_reason_says_what_coding_takes_and_saves(self) -> None:
        made = plan(link=Link(100e6, 4.0), deadline_ms=50.0)
        assert made.choice is not None
        assert made.choice.label == "resnet50-l1-v2-u8, raw"
        assert reason(made, "resnet50-l1-v2-u8, zstd") == (
            "zstd: coding takes 7.5 ms more than raw and saves 3.5 ms of sending"
        )


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
