"""Predicted times and break-even rates: what must hold for any measured numbers, and for those of the paper."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecnn_deploy.errors import PlanError, SettingsError
from aecnn_deploy.planning.break_even import break_even, say_rate
from aecnn_deploy.planning.link import HTTP_BYTES, Link, bytes_on_link
from aecnn_deploy.planning.plan import PlanSettings
from aecnn_deploy.planning.predict import LinkSpread, Predictor, link_of
from aecnn_deploy.planning.prediction import Prediction
from aecnn_deploy.planning.profiles import DeviceProfile, EdgeProfile, ImageCoding, ImageRead, LinkProfile
from tests.plan_examples import (
    DEVICE,
    EDGE,
    LINK,
    MANIFEST,
    PREDICTOR,
    plan,
    predictions,
    rates,
    reason,
)
from tests.plan_profiles import around, link_profile, make_manifest


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
