"""What an edge remembers for its status page: bounded, and right."""

import tracemalloc

import msgspec
import pytest

from aecnn_deploy.errors import SettingsError
from aecnn_deploy.runtimes.edge_status import EdgeStatus, StatusDocument, StatusSettings
from aecnn_deploy.runtimes.edge_view import FULL, SPLIT, EdgeState, Peer, VariantState
from aecnn_deploy.runtimes.recent import LastAnswers, SecondSums, percentile

STATE = EdgeState("ready", "b" * 64, "onnxruntime", 2, 3, (VariantState("v", True, "onnxruntime", 1),))


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def status(clock: Clock) -> EdgeStatus:
    return EdgeStatus(lambda: STATE, StatusSettings(max_devices=4, max_listed=3, max_refusals=5, sample=8), clock)


def device(number: int, name: str = "", **known: bool) -> Peer:
    peer = Peer(number, f"10.0.0.{number % 250}:{40000 + number}")
    peer.introduce(name, verified=known.get("verified", False), software="s", trace=None)
    return peer


def answer(status: EdgeStatus, peer: Peer, total_ms: float = 4.0, size_bytes: int = 100) -> None:
    stages_ms = {"queue": 1.0, "decode": 0.5, "tail": 2.0, "total": total_ms}
    status.answered(SPLIT, "v", peer, stages_ms, received_bytes=size_bytes, sent_bytes=50)


def test_stages_of_a_path_add_up_to_its_mean(status: EdgeStatus, clock: Clock) -> None:
    peer = device(1, "door")
    status.welcomed(peer)
    for total_ms in (4.0, 6.0):
        answer(status, peer, total_ms)
    clock.now_s += 1
    answer(status, peer, 100.0)  # of a second that goes on
    (split, full) = status.document().paths
    assert {stage.name: stage.mean_ms for stage in split.stages} == {
        "queue": 1.0,
        "decode": 0.5,
        "tail": 2.0,
        "other": 1.5,
    }
    assert split.answered == 2
    assert split.stages[2].by_second_ms[-1] == 2.0
    assert split.stages[2].by_second_ms[:-1] == [None] * 59
    assert (full.answered, full.stages[0].mean_ms, full.p50_ms) == (0, None, None)


def test_a_minute_later_nothing_of_it_is_shown_but_the_totals(status: EdgeStatus, clock: Clock) -> None:
    peer = device(1, "door")
    status.welcomed(peer)
    answer(status, peer)
    status.batch_ran("v", 4)
    status.failed(SPLIT, "deadline", peer, "late")
    clock.now_s += 1
    document = status.document()
    assert (document.ok_by_second[-1], document.failed_by_second[-1]) == (1, 1)
    assert document.variants[0].batch_mean == 4.0
    clock.now_s += 60
    document = status.document()
    assert sum(document.ok_by_second) == sum(document.failed_by_second) == 0
    assert document.variants[0].batch_mean is None
    assert document.paths[0].p50_ms is None
    (row,) = document.devices
    assert (row.p50_ms, row.images_per_s, row.ok, row.failed, row.seen_s) == (None, 0.0, 1, 1, 61.0)
    assert (document.ok, document.failed, document.received_bytes, document.sent_bytes) == (1, 1, 0, 50)


def test_rates_are_of_the_last_ten_seconds(status: EdgeStatus, clock: Clock) -> None:
    peer = device(1)
    status.welcomed(peer)
    clock.now_s += 60
    for _ in range(20):
        for _ in range(5):
            answer(status, peer)
        clock.now_s += 1
    document = status.document()
    assert document.images_per_s == document.devices[0].images_per_s == 5.0


def test_devices_are_as_many_as_the_settings_say_whoever_comes(status: EdgeStatus, clock: Clock) -> None:
    honest = device(1, "door")
    status.welcomed(honest)
    for number in range(2, 500):
        clock.now_s += 0.01
        answer(status, honest)
        stranger = device(number)
        status.welcomed(stranger)
        status.left(stranger)
    document = status.document()
    assert len(document.devices) == 3
    assert document.devices_not_listed == 1
    assert [row.ok for row in document.devices if row.name == "door"] == [498]


def test_a_device_that_was_dropped_comes_back_when_it_is_seen(status: EdgeStatus) -> None:
    quiet = device(1, "quiet")
    status.welcomed(quiet)
    for number in range(2, 20):
        status.welcomed(device(number))
    assert "quiet" not in {row.name for row in status.document().devices}
    answer(status, quiet)
    row = status.document().devices[0]
    assert (row.name, row.ok, row.streams) == ("quiet", 1, 1)
    status.left(quiet)
    assert status.document().devices[0].streams == 0


def test_a_name_is_a_row_of_its_own_on_each_host_unless_it_is_verified(status: EdgeStatus) -> None:
    for peer in (device(1, "door"), device(2, "door"), device(251, "door")):  # 251 is on the first one's host
        status.welcomed(peer)
    assert sorted(row.streams for row in status.document().devices) == [1, 2]
    for peer in (device(3, "door", verified=True), device(4, "door", verified=True)):
        status.welcomed(peer)
    assert status.document().devices[0].streams == 2
    assert status.document().devices[0].verified


def test_refusals_are_counted_by_code_with_the_last_reason(status: EdgeStatus, clock: Clock) -> None:
    for number in range(3):
        clock.now_s += 1
        status.connection_refused("unauthorized", f"reason {number}", Peer(number, f"h:{number}"))
    status.failed(FULL, "bad-image", Peer(0, "10.0.0.9"), "x" * 10000)
    clock.now_s += 5
    last, first = status.document().refusals
    assert (last.what, last.code, len(last.reason), last.peer) == ("request", "bad-image", 500, "10.0.0.9")
    assert (first.what, first.code, first.count, first.reason, first.last_s) == (
        "connection",
        "unauthorized",
        3,
        "reason 2",
        5.0,
    )
    for number in range(100):
        status.connection_refused(f"code-{number}", "", None)
    assert [row.code for row in status.document().refusals] == [f"code-{number}" for number in range(99, 94, -1)]


def test_strangers_do_not_become_devices_by_being_refused(status: EdgeStatus) -> None:
    stranger = Peer(1, "10.0.0.1:5")
    status.connection_refused("protocol", "garbage", stranger)
    status.failed(SPLIT, "bad-payload", stranger, "garbage")
    assert status.document().devices == []


def test_memory_does_not_grow_with_requests_or_peers() -> None:
    status = EdgeStatus(lambda: STATE)

    def load(first: int) -> None:
        for number in range(first, first + 1500):
            peer = device(number, f"name {number}")
            status.welcomed(peer)
            answer(status, peer)
            status.left(peer)
            status.connection_refused(f"code {number}", "reason " * 100, peer)

    tracemalloc.start()
    try:
        load(0)
        before = tracemalloc.get_traced_memory()[0]
        load(1500)
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
        assert before < 4_000_000
    finally:
        tracemalloc.stop()


def test_the_document_is_made_at_most_once_a_second(status: EdgeStatus, clock: Clock) -> None:
    first = status.encoded()
    answer(status, device(1))
    assert status.encoded() is first
    clock.now_s += 1.1
    document = msgspec.json.decode(status.encoded(), type=StatusDocument)
    assert (document.ok, document.state, document.in_flight, document.streams) == (1, "ready", 2, 3)


def test_variants_that_are_no_longer_served_are_forgotten(clock: Clock) -> None:
    served = ["v"]
    status = EdgeStatus(
        lambda: EdgeState("ready", "", "", 0, 0, tuple(VariantState(name, False, "", 0) for name in served)),
        now_s=clock,
    )
    status.batch_ran("v", 2)
    clock.now_s += 1
    assert status.document().variants[0].batch_mean == 2.0
    served[:] = ["w"]
    assert status.document().variants[0].batch_mean is None
    served[:] = ["v"]
    assert status.document().variants[0].batch_mean is None


@pytest.mark.parametrize("changes", [{"max_devices": 0}, {"sample": 65537}, {"max_refusals": -1}])
def test_settings_out_of_range_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=next(iter(changes))):
        StatusSettings(**changes)


def test_sums_of_seconds_forget_what_is_over_a_minute_old() -> None:
    sums = SecondSums(2)
    sums.add(1000, (1.0, 10.0))
    sums.add(1000, (1.0, 10.0))
    sums.add(1030, (5.0, 0.0))
    assert sums.sums(1060) == [7.0, 20.0]
    assert sums.sums(1061) == [5.0, 0.0]
    assert sums.sums(1061, 10) == [0.0, 0.0]
    assert sums.rows(1061)[29] == [5.0, 0.0]
    assert sums.sums(10**9) == [0.0, 0.0]
    sums.add(10**9, (1.0, 1.0))
    assert sums.sums(10**9) == [0.0, 0.0]  # it goes on
    assert sums.sums(10**9 + 1) == [1.0, 1.0]


def test_last_answers_keep_the_newest() -> None:
    answers = LastAnswers(3)
    for number in range(5):
        answers.add(float(number), 10.0 - number, number)
    totals_ms, sizes = answers.since(3.0)
    assert (totals_ms, sorted(sizes)) == ([6.0, 7.0], [3, 4])
    assert answers.since(0.0)[0] == [6.0, 7.0, 8.0]


@pytest.mark.parametrize(
    ("numbers", "share", "expected"),
    [([], 0.5, None), ([7.0], 0.95, 7.0), ([1.0, 2.0, 3.0], 0.5, 2.0), ([*range(100)], 0.95, 95), ([1, 2], 1.0, 2)],
)
def test_percentiles_are_of_the_nearest_rank(numbers: list[float], share: float, expected: float | None) -> None:
    assert percentile(numbers, share) == expected
