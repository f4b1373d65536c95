"""The soak's own verdicts: what they must find in made-up data, and the bad link that they are made over."""

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import SettingsError
from benchmarks.stream_client import StreamClient
from benchmarks.traffic import Traffic, make_traffic
from tests.bundles import make_bundle
from tests.link_proxy import LinkProxy, LinkSettings
from tests.soak.devices import FrameSource
from tests.soak.edge_keeper import EdgeKeeper
from tests.soak.hostile import GARBAGE, NO_EDGE, OTHER_BUNDLE, SERVED, SILENT, WRONG_TOKEN, Hostiles
from tests.soak.judges import Life, judge_memory, judge_shares
from tests.soak.ledger import Ended, Expected, Ledger, Outcome, answered_within
from tests.soak.settings import SoakSettings

MB = 1_000_000
EXPECTED = Expected(split=[frozenset({1}), frozenset({2, 3})], full=[frozenset({5}), frozenset({6})])


def outcome(frame: int, index: int | None = None, *, path: str = "split") -> Outcome:
    right = ({0: 1, 1: 2} if path == "split" else {0: 5, 1: 6})[frame % 2]
    return Outcome(0, frame, "ok", path, right if index is None else index, "", 0.0)


def ledger_of(*outcomes: Outcome, frames: int) -> Ledger:
    ledger = Ledger(EXPECTED)
    for each in outcomes:
        ledger.add(each)
    ledger.end(Ended(0, frames))
    return ledger


class TestLedger:
    def test_one_right_outcome_for_each_frame_is_no_problem(self) -> None:
        failed = Outcome(0, 2, "failed", "split", None, "link-lost: it is gone", 0.0)
        ledger = ledger_of(outcome(1, 3), outcome(0), failed, outcome(3, path="local"), frames=4)
        assert ledger.problems([0]) == []
        assert ledger.kinds == {"split": 2, "failed: link-lost": 1, "local": 1}

    def test_a_doubled_outcome_is_found(self) -> None:
        (problem,) = ledger_of(outcome(0), outcome(1), outcome(0), frames=2).problems([0])
        assert problem == "device 0, frame 0 has a second outcome: split"

    def test_a_missing_outcome_is_found(self) -> None:
        (problem,) = ledger_of(outcome(0), outcome(2), frames=4).problems([0])
        assert problem == "device 0: 2 frames have no outcome, the first is 1"

    def test_an_outcome_of_no_frame_is_found(self) -> None:
        (problem,) = ledger_of(outcome(0), outcome(7), frames=1).problems([0])
        assert "was not given: 7" in problem

    @pytest.mark.parametrize(("path", "index"), [("split", 5), ("local", 1), ("split", -1)])
    def test_a_wrong_class_is_found_on_either_path(self, path: str, index: int) -> None:
        (problem,) = ledger_of(outcome(0, index, path=path), frames=1).problems([0])
        assert f"class {index} by {path}, which is wrong" in problem

    def test_a_failure_without_a_name_is_found(self) -> None:
        (problem,) = ledger_of(Outcome(0, 0, "failed", "split", None, "", 0.0), frames=1).problems([0])
        assert "neither a result nor a named failure" in problem

    def test_a_device_that_never_ended_and_one_without_frames_are_found(self) -> None:
        assert ledger_of(frames=0).problems([0, 1]) == [
            "device 0 was given no frame",
            "device 1 never said that it was done",
        ]

    def test_many_wrong_outcomes_do_not_fill_the_screen(self) -> None:
        ledger = ledger_of(*[outcome(0)] * 100, frames=1)
        assert ledger.problems([0])[-1] == "… and 91 more wrong outcomes"


class TestShares:
    def test_equal_devices_are_fair(self) -> None:
        assert judge_shares(dict.fromkeys(range(32), 100), 0.8, asked=110).problems == []

    def test_a_starved_device_is_found(self) -> None:
        shares = judge_shares(dict.fromkeys(range(31), 100) | {31: 70}, 0.8, asked=100)
        assert [problem[:9] for problem in shares.problems] == ["device 31"]
        assert shares.smallest == pytest.approx(70 / (3170 / 32))

    def test_a_device_that_takes_it_all_makes_every_other_one_starved(self) -> None:
        assert len(judge_shares(dict.fromkeys(range(31), 10) | {31: 300}, 0.8, asked=20).problems) == 31

    def test_no_answer_at_all_is_a_problem(self) -> None:
        assert judge_shares({0: 0, 1: 0}, 0.8, asked=0).problems == ["no device was answered while the edge was up"]
        assert judge_shares({}, 0.8, asked=0).problems

    def test_few_answers_for_everybody_are_a_problem(self) -> None:
        (problem,) = judge_shares(dict.fromkeys(range(32), 100), 0.8, asked=210).problems
        assert problem == "while the edge was up, devices had 100 answers for 210 frames each"

    def test_only_answers_while_the_edge_was_up_and_settled_count(self) -> None:
        life = Life(down_s=10.0, ready_s=12.0, end_s=30.0)
        assert life.settled(0.0, 100.0) == (17.0, 30.0)
        assert life.settled(20.0, 25.0) == (21.0, 25.0)
        assert life.settled(40.0, 50.0) is None
        answered = {0: [11.0, 16.9, 17.0, 29.9, 30.0], 1: [20.0]}
        assert answered_within(answered, range(3), [(17.0, 30.0), (31.0, 40.0)]) == {0: 2, 1: 1, 2: 0}


class TestMemory:
    def judge(self, sizes: Sequence[float]) -> str | None:
        samples = [(0.5 * number, int(size)) for number, size in enumerate(sizes)]
        return judge_memory("it", samples, largest_growth=0.05).problem

    def test_flat_memory_with_noise_and_peaks_is_flat(self) -> None:
        noise = random.Random(0)
        sizes = [100 * MB * (1 + noise.uniform(-0.03, 0.03)) for _ in range(100)]
        sizes[60] = sizes[90] = 180 * MB
        assert self.judge(sizes) is None

    def test_a_leak_of_a_tenth_is_found(self) -> None:
        problem = self.judge([100 * MB * (1 + 0.13 * number / 99) for number in range(100)])
        assert problem is not None
        assert "grew by" in problem

    def test_growth_in_the_warm_up_does_not_count(self) -> None:
        assert self.judge([50 * MB + 2 * MB * min(number, 25) for number in range(100)]) is None

    def test_a_step_in_the_middle_is_found(self) -> None:
        assert self.judge([100 * MB] * 60 + [110 * MB] * 40) is not None

    def test_memory_that_is_given_back_is_no_problem(self) -> None:
        assert self.judge([100 * MB] * 50 + [80 * MB] * 50) is None

    @pytest.mark.parametrize("count", [0, 1, 12])
    def test_too_few_looks_are_no_verdict(self, count: int) -> None:
        problem = self.judge([100 * MB] * count)
        assert problem is not None
        assert "too few" in problem


class TestFrames:
    def test_a_source_hands_over_what_is_due_and_skips_what_nobody_took(self) -> None:
        begin_s = time.perf_counter()
        source = FrameSource([b"a", b"b"], frame_hz=50.0, begin_s=begin_s, end_s=begin_s + 0.4)
        names = []
        for frame in source:
            names.append((frame.name, frame.content))
            if len(names) == 3:
                time.sleep(0.2)  # ten frames long
        assert names[:3] == [("0", b"a"), ("1", b"b"), ("2", b"a")]
        assert source.handed_over == len(names) <= 12

    @pytest.mark.parametrize("wrong", [{"seconds": 39}, {"processes": 33}, {"frame_hz": 0}, {"kills": -1}])
    def test_a_soak_that_makes_no_sense_is_refused(self, wrong: dict[str, float]) -> None:
        with pytest.raises(SettingsError):
            SoakSettings(**wrong)  # type: ignore[arg-type]

    def test_the_last_life_of_the_edge_is_the_longest(self) -> None:
        times = SoakSettings(seconds=60).kill_times_s
        assert times == pytest.approx((4.8, 9.6, 14.4, 19.2, 24.0))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("soak")
    make_bundle(folder / "bundle")
    return open_bundle(folder / "bundle")


class TestEdgeKeeper:
    def test_an_edge_that_is_killed_is_started_again_on_its_port_and_one_that_ends_by_itself_is_a_problem(
        self, bundle: Bundle, tmp_path: Path
    ) -> None:
        with EdgeKeeper(bundle.path, tmp_path) as edge:
            port = edge.port
            edge.kill()
            wait_for(lambda: len(edge.lives) == 1 and edge.is_ready)
            assert (edge.problems, edge.port) == ([], port)
            assert edge.look_at_memory() == edge.longest_memory()[0][1] > 10 * MB
            with StreamClient(edge.url, traffic_of(bundle)).socket:
                pass
            assert edge.pid is not None
            os.kill(edge.pid, signal.SIGKILL)  # not by the keeper
            wait_for(lambda: len(edge.lives) == 2 and edge.is_ready)
        assert len(edge.lives) == 3
        (problem,) = edge.problems
        assert "ended by itself with exit status -9" in problem


class TestHostiles:
    def test_each_of_them_is_turned_away_by_a_real_edge(self, bundle: Bundle, tmp_path: Path) -> None:
        with (
            EdgeKeeper(bundle.path, tmp_path) as edge,
            Hostiles(edge.url, traffic_of(bundle), token=None, seed=0) as hostiles,
        ):
            wait_for(lambda: hostiles.tally[GARBAGE]["closed"] > 3 and hostiles.tally[OTHER_BUNDLE].total() > 1)
        assert set(hostiles.tally[OTHER_BUNDLE]) == {"refused: bundle-mismatch"}
        assert hostiles.tally[SILENT].total() >= 1
        assert hostiles.problems() == []
        assert edge.problems == []

    def test_one_that_was_served_or_never_came_is_a_problem(self, bundle: Bundle) -> None:
        hostiles = Hostiles("ws://127.0.0.1:1", traffic_of(bundle), token="a token", seed=0)
        hostiles.tally[GARBAGE].update({"closed": 3, NO_EDGE: 1})
        hostiles.tally[SILENT].update({NO_EDGE: 5})
        hostiles.tally[OTHER_BUNDLE].update({"refused: bundle-mismatch": 3, SERVED: 1})
        hostiles.tally[WRONG_TOKEN].update({"HTTP 401": 3})
        assert hostiles.problems() == [f"{SILENT}: never reached the edge", f"{OTHER_BUNDLE}: was served 1 times"]


def traffic_of(bundle: Bundle) -> Traffic:
    spec = bundle.manifest.variants[0]
    return make_traffic(bundle, spec.id, np.zeros((1, *spec.planes), np.uint8))


def wait_for(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


@pytest.fixture
def echo() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def connected(proxy: LinkProxy, far: socket.socket) -> tuple[socket.socket, socket.socket]:
    near = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    far.settimeout(10)
    accepted, _ = far.accept()
    accepted.settimeout(10)
    return near, accepted


def read(stream: socket.socket, size: int) -> bytes:
    with stream.makefile("rb") as file:
        return file.read(size)


def talk(near: socket.socket, far: socket.socket, *, for_s: float) -> None:
    end_s = time.monotonic() + for_s
    while time.monotonic() < end_s:
        near.sendall(bytes(1000))
        far.recv(1000)
        time.sleep(0.005)


class TestLinkProxy:
    def test_what_is_sent_arrives_whole_and_in_order(self, echo: socket.socket) -> None:
        data = random.Random(0).randbytes(200_000)
        with closing(echo), LinkProxy(echo.getsockname()[1], LinkSettings(delay_s=(0, 0.002))) as proxy:
            near, far = connected(proxy, echo)
            with near, far:
                far.sendall(b"welcome")
                assert read(near, 7) == b"welcome"
                near.sendall(data)
                assert read(far, len(data)) == data

    def test_a_rate_is_kept(self, echo: socket.socket) -> None:
        with closing(echo), LinkProxy(echo.getsockname()[1], LinkSettings(rate_bps=1e6)) as proxy:
            near, far = connected(proxy, echo)
            with near, far:
                start_s = time.perf_counter()
                near.sendall(bytes(50_000))
                assert len(read(far, 50_000)) == 50_000
                assert time.perf_counter() - start_s > 0.38

    def test_connections_are_cut(self, echo: socket.socket) -> None:
        settings = LinkSettings(cut_every_s=0.05)
        with closing(echo), LinkProxy(echo.getsockname()[1], settings) as proxy:
            near, far = connected(proxy, echo)
            with near, far, pytest.raises((ConnectionResetError, BrokenPipeError)):
                talk(near, far, for_s=20.0)
            assert proxy.cuts >= 1

    def test_nobody_behind_it_is_a_closed_connection(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        with LinkProxy(port, LinkSettings()) as proxy:
            near = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
            with near, suppress(ConnectionResetError):
                assert near.recv(1) == b""
