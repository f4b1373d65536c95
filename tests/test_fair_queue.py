"""The edge's queue and what it knows of its batches' times: fair to every peer, whoever asks for how much."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecnn_deploy.runtimes.batch_times import BatchTimes
from aecnn_deploy.runtimes.fair_queue import FairQueue

NAMES = st.tuples(st.integers(0, 3), st.integers(0, 2))


def filled(names: list[tuple[int, int]]) -> FairQueue[tuple[tuple[int, int], int]]:
    queue: FairQueue[tuple[tuple[int, int], int]] = FairQueue()
    for number, name in enumerate(names):
        queue.push(*name, (name, number))
    return queue


@given(st.lists(NAMES, max_size=40))
def test_everything_comes_out_once_and_each_stream_in_order(names: list[tuple[int, int]]) -> None:
    queue = filled(names)
    assert len(queue) == len(list(queue)) == len(names)
    taken = [queue.pop() for _ in names]
    assert sorted(number for _, number in taken) == list(range(len(names)))
    for name in set(names):
        own = [number for owner, number in taken if owner == name]
        assert own == sorted(own)
    assert not queue
    with pytest.raises(IndexError):
        queue.pop()


@given(st.lists(NAMES, max_size=40))
def test_while_two_wait_neither_gets_over_one_more_than_the_other(names: list[tuple[int, int]]) -> None:
    queue = filled(names)
    left: Counter[int] = Counter(peer for peer, _ in names)
    got: Counter[int] = Counter()
    streams_left, streams_got = Counter(names), Counter[tuple[int, int]]()
    while queue:
        for one in left:
            for other in left:
                if left[one] and left[other]:
                    assert abs(got[one] - got[other]) <= 1
        for name in streams_left:
            for other_name in streams_left:
                if name[0] == other_name[0] and streams_left[name] and streams_left[other_name]:
                    assert abs(streams_got[name] - streams_got[other_name]) <= 1
        name, _ = queue.pop()
        got[name[0]] += 1
        left[name[0]] -= 1
        streams_got[name] += 1
        streams_left[name] -= 1


@given(st.lists(NAMES, max_size=40), NAMES)
def test_ahead_is_never_less_than_what_is_taken_before_a_newcomer(
    names: list[tuple[int, int]], name: tuple[int, int]
) -> None:
    queue = filled(names)
    promised = queue.ahead(*name)
    queue.push(*name, (name, -1))
    before = 0
    while queue.pop()[1] != -1:
        before += 1
    assert before <= promised <= len(names)


@given(st.lists(NAMES, max_size=40), NAMES)
def test_only_who_has_over_one_more_loses_its_newest_to_a_newcomer(
    names: list[tuple[int, int]], name: tuple[int, int]
) -> None:
    queue = filled(names)
    by_peer = Counter(peer for peer, _ in names)
    by_stream = Counter(names)
    lost = queue.crowded(*name)
    crowded_peer = max(by_peer.values(), default=0) > by_peer[name[0]] + 1
    crowded_stream = any(count > by_stream[name] + 1 for owner, count in by_stream.items() if owner[0] == name[0])
    assert (lost is not None) == (crowded_peer or crowded_stream)
    if lost is None:
        assert len(queue) == len(names)
        return
    (peer, stream), number = lost
    assert number == max(number for number, owner in enumerate(names) if owner == (peer, stream))
    assert by_peer[peer] == max(by_peer.values()) if peer != name[0] else by_stream[peer, stream] > by_stream[name] + 1
    assert len(queue) == len(names) - 1
    rest = defaultdict(list)
    while queue:
        owner, number = queue.pop()
        rest[owner].append(number)
    assert sum(map(len, rest.values())) == len(names) - 1


def test_times_between_sizes_are_expected_between_those_that_were_measured() -> None:
    times = BatchTimes()
    assert not times
    assert times.seconds(4) == 0.0
    for size, seconds in ((1, 0.010), (2, 0.012), (8, 0.024)):
        times.ran(size, seconds)
    assert times.seconds(2) == 0.012
    assert times.seconds(5) == pytest.approx(0.018)
    assert times.seconds(16) == pytest.approx(0.048)
    assert times.fastest_s == 0.010
    assert times.wait_s(17, 8, 0.005) == pytest.approx(0.005 + 2 * 0.024)


@pytest.mark.parametrize(
    ("measured", "best"),
    [
        ({}, 16),
        ({1: 0.01}, 16),  # nothing larger is known
        ({1: 0.010, 2: 0.0199, 4: 0.0398, 8: 0.0799, 16: 0.16}, 1),  # no gain: nobody waits for others
        ({1: 0.010, 2: 0.012, 4: 0.015, 8: 0.0299, 16: 0.0597}, 4),
        ({1: 0.010, 2: 0.011, 4: 0.012, 8: 0.013, 16: 0.014}, 16),
        ({1: 0.010, 2: 0.011}, 16),  # the clock ran out before larger ones were tried
        ({1: 0.010, 2: 0.020}, 1),
    ],
)
def test_a_batch_is_as_large_as_pays(measured: dict[int, float], best: int) -> None:
    times = BatchTimes()
    for size, seconds in measured.items():
        times.ran(size, seconds)
    assert times.best_size(16) == best
    assert best <= times.busy_size(16) <= 16


def test_where_much_waits_the_largest_that_is_as_fast_is_taken() -> None:
    times = BatchTimes()
    for size, seconds in ((1, 0.010), (2, 0.0199), (4, 0.0398), (8, 0.079), (16, 0.17)):
        times.ran(size, seconds)
    assert (times.best_size(16), times.busy_size(16)) == (1, 8)


def test_a_slow_spell_fades_from_the_expectation() -> None:
    times = BatchTimes()
    times.ran(1, 0.01)
    times.ran(1, 1.0)
    assert times.seconds(1) > 0.1
    for _ in range(30):
        times.ran(1, 0.01)
    assert times.seconds(1) == pytest.approx(0.01, rel=0.2)
