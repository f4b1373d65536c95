"""The link's rate from a device's own messages: calm where the link is, quick where it changes."""

import io
import math
import time
from collections.abc import Iterator
from itertools import cycle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.planning.link import bytes_on_link
from aecnn_deploy.planning.link_rate import FASTEST_MS, GUESS_MS, LinkRate
from aecnn_deploy.runtimes.link_timing import SendTimes
from aecnn_deploy.runtimes.sources import SourceImage
from tests.bundles import Edge, TinyVariant, make_bundle, serving
from tests.device_runs import run
from tests.link_model import LinkModel, Seen
from tests.link_proxy import LinkProxy, LinkSettings

CHANGE_S = 5.03
MEGABIT_MS = 0.008  # a byte at 1 Mbit/s


def off(seen: Seen, rate_bps: float) -> float:
    """By what factor the device is wrong."""
    return max(seen.rate_bps / rate_bps, rate_bps / seen.rate_bps)


def changing(before_bps: float, after_bps: float, *, until_s: float, **link: float) -> list[Seen]:
    """What a device thinks from the change of the rate on."""
    model = LinkModel(rate_bps=lambda at_s: before_bps if at_s < CHANGE_S else after_bps, **link)  # type: ignore[arg-type]
    return [seen for seen in model.run(until_s) if seen.at_s >= CHANGE_S]


@pytest.mark.parametrize("lose_one_in", [0, 60])
@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("message_bytes", [650, 1300, 4000, 12_000])
@pytest.mark.parametrize("frames_per_s", [5, 10, 30])
class TestATenfoldChange:
    def test_a_drop_is_known_within_5_frames_or_a_second(
        self, frames_per_s: int, message_bytes: int, in_flight: int, lose_one_in: int
    ) -> None:
        link = {"frames_per_s": frames_per_s, "message_bytes": message_bytes, "in_flight": in_flight}
        for before_bps in (1e6, 1e7):
            after_bps = before_bps / 10
            seen = changing(before_bps, after_bps, until_s=16.0, lose_one_in=lose_one_in, **link)
            known = next(number for number, frame in enumerate(seen) if off(frame, after_bps) < 1.5)
            assert known <= 5 or seen[known].at_s <= CHANGE_S + 1
            assert off(seen[-1], after_bps) < 1.5 or lose_one_in

    def test_a_rise_is_known_within_3_s(
        self, frames_per_s: int, message_bytes: int, in_flight: int, lose_one_in: int
    ) -> None:
        link = {"frames_per_s": frames_per_s, "message_bytes": message_bytes, "in_flight": in_flight}
        seen = changing(1e5, 1e6, until_s=CHANGE_S + 6, lose_one_in=lose_one_in, **link)
        jitter = 2.2 / (bytes_on_link(message_bytes) * 8e3 / 1e6)  # of what a message takes
        later = [off(frame, 1e6) < 1.2 + jitter for frame in seen if frame.at_s > CHANGE_S + 3]
        # While a message is lost, the link may as well be slow.
        assert all(later) if not lose_one_in else sum(later) > 0.7 * len(later)


class TestASteadyLink:
    @pytest.mark.parametrize("in_flight", [1, 4])
    @pytest.mark.parametrize("message_bytes", [1300, 12_000])
    def test_the_rate_is_right_to_15_per_cent_where_jitter_is_less_than_a_message(
        self, message_bytes: int, in_flight: int
    ) -> None:
        for seed in range(5):
            model = LinkModel(
                rate_bps=lambda _: 1e6,
                frames_per_s=30,
                message_bytes=message_bytes,
                in_flight=in_flight,
                seed=seed,
            )
            assert all(off(seen, 1e6) < 1.15 for seen in model.run(8.0)[10:])

    @settings(deadline=None, max_examples=60)
    @given(
        rate_bps=st.floats(1e5, 2e7),
        message_bytes=st.integers(600, 20_000),
        frames_per_s=st.sampled_from([5, 10, 30, 60]),
        in_flight=st.integers(1, 6),
        seed=st.integers(0, 1000),
    )
    def test_no_estimate_is_off_by_a_factor_of_2_after_ten_frames(
        self, rate_bps: float, message_bytes: int, frames_per_s: int, in_flight: int, seed: int
    ) -> None:
        takes_ms = bytes_on_link(message_bytes) * 8e3 / rate_bps
        model = LinkModel(
            rate_bps=lambda _: rate_bps,
            frames_per_s=frames_per_s,
            message_bytes=message_bytes,
            in_flight=in_flight,
            jitter_ms=min(1.0, takes_ms / 5),
            seed=seed,
        )
        assert all(off(seen, rate_bps) < 2 for seen in model.run(4.0)[10:])

    def test_a_lost_packet_now_and_then_changes_nothing_but_while_it_is_waited_for(self) -> None:
        for in_flight in (1, 4):
            model = LinkModel(
                rate_bps=lambda _: 1e6,
                frames_per_s=10,
                message_bytes=1300,
                in_flight=in_flight,
                lose_one_in=30,
            )
            right = [off(seen, 1e6) < 1.25 for seen in model.run(30.0)[10:]]
            assert sum(right) > (0.9 if in_flight == 4 else 0.99) * len(right)

    def test_batches_of_the_edge_are_no_part_of_the_rate(self) -> None:
        model = LinkModel(rate_bps=lambda _: 1e6, frames_per_s=30, message_bytes=4000, in_flight=4, batch_s=0.1)
        assert all(off(seen, 1e6) < 1.15 for seen in model.run(8.0)[10:])


def steady(*, ms_per_byte: float = MEGABIT_MS) -> LinkRate:
    """After 40 messages of 1000 bytes, ten a second from 0 s on, over a link without jitter."""
    rate = LinkRate()
    rate.pinged(10.0, 0.0)
    for number in range(40):
        rate.heard(1000, 10.0 + bytes_on_link(1000) * ms_per_byte, number / 10)
    return rate


class TestWaiting:
    def test_a_message_without_an_answer_bounds_the_rate_until_one_was_measured(self) -> None:
        rate = steady()
        rate.waiting(1000, 300.0, 4.2)
        assert rate.ms_per_byte == pytest.approx(288 / bytes_on_link(1000))
        rate.heard(1000, 10.0 + bytes_on_link(1000) * MEGABIT_MS, 4.3)
        assert rate.ms_per_byte == pytest.approx(MEGABIT_MS)

    def test_a_wait_that_the_rate_explains_says_nothing(self) -> None:
        rate = steady()
        rate.waiting(1000, 10.0 + 1.7 * bytes_on_link(1000) * MEGABIT_MS, 4.2)
        assert rate.ms_per_byte == pytest.approx(MEGABIT_MS)
        rate.waiting(1000, 300.0, 4.2)
        rate.waiting(0, 0.0, 4.3)
        assert rate.ms_per_byte == pytest.approx(MEGABIT_MS)

    def test_what_the_edge_or_an_earlier_message_has_is_not_waited_for_on_the_link(self) -> None:
        times = SendTimes()
        times.sent(1, 1000, 0.0)
        assert times.waiting(5.0, 0.01) is None  # nobody knows what the edge takes
        times.sent(2, 2000, 0.1)
        times.answered(1, 1.0, 0.2, 0.01)  # through at 0.8
        assert times.waiting(2.0, 0.01) == (2000, pytest.approx((2.0 - 0.79 - 0.3) * 1e3))
        times.sent(3, 3000, 0.2)
        times.answered(3, 2.0, 0.2, 0.01)
        assert times.waiting(5.0, 0.01) is None  # the third has passed the link, and so has the second
        times.answered(2, 5.0, 0.2, 0.01)
        assert times.waiting(6.0, 0.01) is None


class TestWhatIsKnown:
    def test_before_anything_was_measured_it_is_10_megabits(self) -> None:
        rate = LinkRate()
        rate.waiting(1000, 300.0, 1.0)
        rate.heard(1000, 300.0, 1.0)  # nothing is known of an empty message
        assert (rate.ms_per_byte, rate.frames, rate.fixed_ms) == (GUESS_MS, 0, None)
        assert (rate.rate_bps, rate.spread_ms_per_byte, rate.silent_s(1.0)) == (1e7, 0.0, math.inf)

    def test_a_link_too_fast_to_measure_has_a_finite_rate(self) -> None:
        rate = steady(ms_per_byte=0.0)
        assert rate.ms_per_byte == FASTEST_MS
        assert rate.rate_bps == pytest.approx(1e10)

    def test_the_spread_is_between_the_quartiles(self) -> None:
        rate = LinkRate()
        rate.pinged(10.0, 0.0)
        for number in range(32):
            rate.heard(1000, 20.0 + number % 4, number / 30)
        assert rate.spread_ms_per_byte == pytest.approx(2 / bytes_on_link(1000))
        assert rate.silent_s(32 / 30) == pytest.approx(1 / 30)

    def test_an_empty_message_counts_for_minutes_and_never_more_than_one_with_content(self) -> None:
        rate = LinkRate()
        for took_ms, at_s in ((10.0, 0.0), (30.0, 100.0)):
            rate.pinged(took_ms, at_s)
        assert rate.fixed_ms == 10.0
        rate.pinged(31.0, 200.0)  # over another route, since the first one is forgotten
        assert rate.fixed_ms == 30.0
        rate.heard(1000, 25.0, 201.0)
        assert rate.fixed_ms == 25.0

    def test_after_a_silence_the_first_message_that_differs_is_believed(self) -> None:
        rate = steady()
        slow_ms = 10.0 + bytes_on_link(1000) * MEGABIT_MS * 10
        rate.heard(1000, slow_ms, 4.0)
        assert rate.ms_per_byte == pytest.approx(MEGABIT_MS)
        rate = steady()
        rate.heard(1000, slow_ms, 40.0)
        assert rate.ms_per_byte == pytest.approx(MEGABIT_MS * 10)

    def test_after_an_unsteady_time_four_far_slower_messages_are_believed_all_the_same(self) -> None:
        rate = LinkRate()
        rate.pinged(0.2, 0.0)
        for number, link_ms in enumerate([2.5, 21.6, 6.2, 2.5, 17.8, 2.8, 11.4, 18.6] * 3):
            rate.heard(700, link_ms, 0.1 * number)
        before_bps = rate.rate_bps
        for number in range(4):
            rate.heard(1700, 74.0, 2.4 + 0.1 * number)
        assert before_bps > 1.5e6
        assert rate.rate_bps == pytest.approx(bytes_on_link(1700) * 8e3 / 73.8, rel=0.02)

    def test_a_steady_link_that_becomes_half_as_fast_is_known_after_four_messages(self) -> None:
        rate = LinkRate()
        rate.pinged(0.2, 0.0)
        for number in range(20):
            rate.heard(1339, 32.0 + number % 3, 0.1 * number)
        for number in range(4):
            rate.heard(1339, 56.0, 2.0 + 0.1 * number)
        assert rate.rate_bps == pytest.approx(bytes_on_link(1339) * 8e3 / 55.8, rel=0.02)

    def test_answers_in_a_burst_after_one_that_was_held_up_are_no_rise(self) -> None:
        rate = steady()
        for held_ms in (10.0 + 4 * bytes_on_link(1000) * MEGABIT_MS, 10.0, 10.0, 10.0):
            rate.heard(1000, held_ms, 4.1, queued=True)
            assert rate.ms_per_byte == pytest.approx(MEGABIT_MS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("rate") / "bundle"
    make_bundle(path, variants=(TinyVariant("tiny-wide", 16, 4, 8),))
    return open_bundle(path)


@pytest.fixture(scope="module")
def edge(bundle: Bundle) -> Iterator[Edge]:
    with serving(bundle.path) as edge:
        yield edge


@pytest.fixture(scope="module")
def noise() -> list[bytes]:
    """Pictures whose planes no coder makes much smaller, nor the difference between two of them."""
    pictures = []
    for pixels in np.random.default_rng(0).integers(0, 256, (16, 72, 72, 3), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        pictures.append(file.getvalue())
    return pictures


class TestOverALinkThatChanges:
    """A real edge behind a proxy; what the device thinks when the last frame is encoded stands in its report."""

    def measured(self, bundle: Bundle, edge: Edge, noise: list[bytes], after_bps: float | None, **ends: float) -> float:
        """Mbit/s, ``ends["frames"]`` frames or ``ends["seconds"]`` after the rate was changed, of 2 Mbit/s before."""
        with LinkProxy(edge.port, LinkSettings(rate_bps=ends.get("before_bps", 2e6))) as proxy:
            pictures = cycle(noise)

            def frames() -> Iterator[SourceImage]:
                for number in range(20):
                    yield SourceImage(f"steady{number}", next(pictures))
                if after_bps is None:
                    return
                proxy.rate_bps = after_bps
                end_s, number = time.perf_counter() + ends.get("seconds", math.inf), 0
                while number < ends.get("frames", math.inf) and time.perf_counter() < end_s:
                    yield SourceImage(f"after{number}", next(pictures))
                    number += 1

            report = run(bundle, proxy.url, frames(), in_flight=int(ends.get("in_flight", 1)))
        assert {image.status for image in report.images} == {"ok"}
        assert report.coders is not None
        assert min(image.wire_bytes or 0 for image in report.images) > 3000
        rate: float = report.coders["link"]["megabits_per_s"]
        return rate

    @pytest.mark.parametrize("in_flight", [1, 4])
    def test_a_steady_rate_is_measured(self, bundle: Bundle, edge: Edge, noise: list[bytes], in_flight: int) -> None:
        assert self.measured(bundle, edge, noise, None, in_flight=in_flight) == pytest.approx(2.0, rel=0.3)

    @pytest.mark.parametrize("in_flight", [1, 4])
    def test_a_tenfold_drop_is_known_five_frames_later(
        self, bundle: Bundle, edge: Edge, noise: list[bytes], in_flight: int
    ) -> None:
        # Of frames in flight at the change, and of the last that are sent, the device has no answer yet.
        rate = self.measured(bundle, edge, noise, 2e5, frames=5 + in_flight, in_flight=in_flight)
        assert rate == pytest.approx(0.2, rel=0.3)

    def test_a_rise_is_known_within_three_seconds(self, bundle: Bundle, edge: Edge, noise: list[bytes]) -> None:
        # Jitter is in it: a message takes 7 ms then, and other processes want their time, too.
        assert self.measured(bundle, edge, noise, 5e6, before_bps=5e5, seconds=2.0, in_flight=4) > 1.5
