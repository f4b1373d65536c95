"""The bookkeeping of a device's run, without threads and sockets: one outcome a frame, whatever is tried."""

import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as Frames
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aecnn_deploy.runtimes.backoff import Backoff
from aecnn_deploy.runtimes.frame_ledger import FrameLedger, LedgerError, Stage
from aecnn_deploy.runtimes.link_timing import SendTimes
from aecnn_deploy.runtimes.run_report import ImageReport, Percentiles, RunTotals


class LedgerMachine(RuleBasedStateMachine):
    """Any calls in any order, beside a model of dicts: what the model forbids raises, and nothing else does."""

    frames = Frames("frames")

    @initialize()
    def begin(self) -> None:
        self.ledger: FrameLedger[str] = FrameLedger()
        self.outcomes: dict[int, str] = {}
        self.flying: set[int] = set()
        self.told: list[int] = []
        self.captured = 0

    @rule(target=frames)
    def capture(self) -> int:
        self.captured += 1
        assert self.ledger.capture() == self.captured
        return self.captured

    @rule(number=frames)
    def send(self, number: int) -> None:
        if number in self.outcomes or number in self.flying:
            with pytest.raises(LedgerError):
                self.ledger.send(number)
        else:
            before = self.ledger.sends(number)
            assert self.ledger.send(number) == before + 1
            self.flying.add(number)

    @rule(number=frames)
    def return_(self, number: int) -> None:
        if number in self.flying and number not in self.outcomes:
            self.ledger.return_(number)
            self.flying.discard(number)
        else:
            with pytest.raises(LedgerError):
                self.ledger.return_(number)

    @rule(number=frames, outcome=st.sampled_from(["result", "failure"]))
    def settle(self, number: int, outcome: str) -> None:
        if number in self.outcomes:
            with pytest.raises(LedgerError, match="outcome already"):
                self.ledger.settle(number, outcome)
        else:
            self.ledger.settle(number, outcome)
            self.outcomes[number] = outcome

    @rule(number=st.integers(-2, 200))
    def tell(self, number: int) -> None:
        turn = len(self.told) + 1
        if number == turn and turn in self.outcomes:
            self.ledger.tell(number)
            self.told.append(number)
        else:
            with pytest.raises(LedgerError):
                self.ledger.tell(number)

    @rule()
    def tell_the_next(self) -> None:
        following = self.ledger.next_told()
        turn = len(self.told) + 1
        assert following == ((turn, self.outcomes[turn]) if turn in self.outcomes else None)
        if following is not None:
            self.ledger.tell(following[0])
            self.told.append(following[0])

    @rule(number=st.sampled_from([0, -1, 10_000]))
    def a_frame_that_was_never_captured_is_no_frame(self, number: int) -> None:
        with pytest.raises(LedgerError, match="never captured"):
            self.ledger.settle(number, "result")

    @invariant()
    def what_it_says_is_what_happened(self) -> None:
        if not hasattr(self, "ledger"):
            return
        open_ = [number for number in range(1, self.captured + 1) if number not in self.outcomes]
        assert list(self.ledger.open) == open_
        assert self.ledger.all_settled == (not open_)
        assert (self.ledger.captured, self.ledger.told) == (self.captured, len(self.told))
        assert self.ledger.untold == self.captured - len(self.told)
        assert self.told == list(range(1, len(self.told) + 1))
        for number in open_:
            assert self.ledger.is_open(number)
            assert self.ledger.stage(number) is (Stage.IN_FLIGHT if number in self.flying else Stage.WAITING)


TestLedger = LedgerMachine.TestCase


def test_a_ledger_keeps_nothing_of_what_was_told() -> None:
    ledger: FrameLedger[str] = FrameLedger()
    for _ in range(1000):
        number = ledger.capture()
        ledger.settle(number, "result")
        ledger.tell(number)
    assert (ledger.captured, ledger.told, ledger.untold) == (1000, 1000, 0)
    assert not ledger._lines


class TestBackoff:
    def test_pauses_grow_to_the_longest_and_are_drawn_from_the_whole_range(self) -> None:
        drawn = []
        for seed in range(200):
            backoff = Backoff(random.Random(seed))
            drawn.append([backoff.pause_s() for _ in range(9)])
        ceilings = [min(0.25 * 2**attempt, 15.0) for attempt in range(9)]
        for attempt, ceiling in enumerate(ceilings):
            pauses = [pauses[attempt] for pauses in drawn]
            assert 0 <= min(pauses) < 0.1 * ceiling
            assert 0.9 * ceiling < max(pauses) <= ceiling

    def test_the_same_seed_gives_the_same_pauses_and_another_one_others(self) -> None:
        one, same, other = (Backoff(random.Random(seed)) for seed in (1, 1, 2))
        assert [one.pause_s() for _ in range(5)] == [same.pause_s() for _ in range(5)]
        assert one.pause_s() != other.pause_s()

    def test_what_the_edge_asks_for_is_a_floor(self) -> None:
        backoff = Backoff(random.Random(3))
        assert all(7.0 <= backoff.pause_s(at_least_s=7.0) <= 7.0 + 15.0 for _ in range(20))

    def test_a_final_refusal_goes_straight_to_the_longest(self) -> None:
        assert all(7.5 <= Backoff(random.Random(seed)).pause_s(final=True) <= 15.0 for seed in range(50))

    def test_it_begins_anew_when_the_edge_was_there(self) -> None:
        backoff = Backoff()
        assert [backoff.pause_s() for _ in range(3)] == [0.25, 0.5, 1.0]
        backoff.reset()
        assert backoff.pause_s() == 0.25


class TestSendTimes:
    FIXED_S = 0.01
    PER_BYTE_S = 1e-5  # 0.8 Mbit/s

    def link(self, sends: list[tuple[float, int]], edge_s: float = 0.02) -> list[tuple[int, int, float, float]]:
        """(id, bytes, sent, answered) over a link that is a queue."""
        free_s, out = 0.0, []
        for number, (began_s, size) in enumerate(sends, 1):
            free_s = max(free_s, began_s) + size * self.PER_BYTE_S
            out.append((number, size, began_s, free_s + self.FIXED_S + edge_s))
        return out

    def rates(self, traffic: list[tuple[int, int, float, float]], edge_s: float = 0.02) -> list[float]:
        """Milliseconds a byte that the samples say, the events being told in their order."""
        times, samples = SendTimes(), []
        events = sorted(
            [(began_s, 0, number, size) for number, size, began_s, _ in traffic]
            + [(answered_s, 1, number, size) for number, size, _, answered_s in traffic]
        )
        for at_s, answered, number, size in events:
            if answered:
                samples += times.answered(number, at_s, edge_s, self.FIXED_S)
            else:
                times.sent(number, size, at_s)
        return [(link_ms - self.FIXED_S * 1e3) / size for size, link_ms, _ in samples]

    def test_one_after_the_other_each_is_measured_alone(self) -> None:
        rates = self.rates(self.link([(number * 1.0, 1000 + number) for number in range(10)]))
        assert rates == pytest.approx([self.PER_BYTE_S * 1e3] * 10)

    def test_waiting_behind_earlier_messages_is_no_part_of_the_rate(self) -> None:
        rates = self.rates(self.link([(number * 0.001, 2000) for number in range(30)]))
        assert len(rates) == 30
        assert rates == pytest.approx([self.PER_BYTE_S * 1e3] * 30)

    def test_answers_out_of_order_change_nothing(self) -> None:
        traffic = self.link([(number * 0.001, 2000) for number in range(12)])
        times, samples = SendTimes(), []
        for number, size, began_s, _ in traffic:
            times.sent(number, size, began_s)
        for number, _, _, answered_s in reversed(traffic):
            samples += times.answered(number, answered_s, 0.02, self.FIXED_S)
        assert [round((ms - self.FIXED_S * 1e3) / size, 6) for size, ms, _ in samples] == [0.01] * 12

    def test_after_a_failure_there_is_no_sample_until_a_time_is_known_again(self) -> None:
        traffic = self.link([(number * 0.001, 2000) for number in range(6)])
        times, found = SendTimes(), []
        for number, size, began_s, _ in traffic:
            times.sent(number, size, began_s)
        for number, _, _, answered_s in traffic:
            found.append(len(times.answered(number, answered_s, None if number == 3 else 0.02, self.FIXED_S)))
        assert found == [1, 1, 0, 0, 1, 1]

    def test_an_answer_to_what_was_never_sent_is_no_sample(self) -> None:
        assert SendTimes().answered(5, 1.0, 0.1, 0.0) == []


class TestTotals:
    def test_percentiles_of_many_are_right_to_half_a_per_cent_in_bounded_memory(self) -> None:
        rng = random.Random(1)
        values = [rng.lognormvariate(3, 1) for _ in range(50_000)]
        percentiles = Percentiles()
        for value in values:
            percentiles.add(value)
        for percent in (1, 50, 99):
            exact = sorted(values)[int(percent / 100 * (len(values) - 1))]
            assert percentiles.at(percent) == pytest.approx(exact, rel=0.006)
        assert len(percentiles._buckets) < 3000
        assert not percentiles._values

    def test_percentiles_of_few_are_exact(self) -> None:
        percentiles = Percentiles()
        assert percentiles.at(50) is None
        for value in (3.0, 1.0, 2.0):
            percentiles.add(value)
        assert percentiles.at(50) == 2.0

    def test_what_a_policy_dropped_is_failed_and_no_fault(self) -> None:
        totals = RunTotals(ImageReport("f", "failed", "v", "why", code) for code in ("dropped", "interrupted"))
        assert (totals.summary()["failed"], totals.summary()["dropped"], totals.faults) == (2, 1, 0)
        totals.add(ImageReport("f", "failed", "v", "why", "timeout"))
        assert totals.faults == 1
        assert totals.summary()["failures"] == {"dropped": 1, "interrupted": 1, "timeout": 1}
