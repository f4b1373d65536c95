"""A lane under everything at once: no request is lost, answered twice or mixed up, whatever ends when."""

import asyncio
import random
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.codec import PlaneEncoder
from aecnn_deploy.errors import RequestFailedError, RunnerError
from aecnn_deploy.runtimes.base import Array, Runner
from aecnn_deploy.runtimes.batch_times import BatchTimes
from aecnn_deploy.runtimes.edge_jobs import Answer, Job, Stage
from aecnn_deploy.runtimes.edge_lane import Lane, LaneState
from aecnn_deploy.runtimes.edge_models import Asked, EdgeModel, PlanesAsked, TailModel, TensorAsked
from aecnn_deploy.runtimes.edge_runners import RunnerOptions
from aecnn_deploy.wire import InferReceived
from tests.bundles import TinyVariant, make_bundle

MAX_BATCH = 6


class Echo(EdgeModel):
    """A model of no time: its answer names the request's number as the class. Some numbers fail on purpose."""

    name = "echo"
    file_bytes = 1

    def __init__(self, seed: int, slots: int = 1) -> None:
        super().__init__()
        self._random, self._slots = random.Random(seed), slots
        self.batches: list[int] = []
        self.told: Counter[int] = Counter()

    @property
    def slots(self) -> int:
        return self._slots

    def load(self, times: BatchTimes, max_batch: int) -> None:
        times.ran(1, 1e-4)

    def decode(self, asked: Asked) -> Array:
        assert isinstance(asked, bytes)
        number = int(asked)
        if number % 17 == 3:
            raise RequestFailedError("bad-payload", "on purpose")
        if number % 17 == 4:
            raise ZeroDivisionError
        if number % 5 == 0:
            time.sleep(0.0005)
        return np.array(number)

    def run(self, items: list[Array]) -> Array:
        self.batches.append(len(items))
        if self._random.random() < 0.3:
            time.sleep(self._random.random() * 0.003)
        if any(int(item) % 97 == 5 for item in items):
            raise RunnerError("the whole batch, on purpose")
        if any(int(item) % 97 == 6 for item in items):
            raise IndexError
        logits = np.full((len(items), 1600), -1000.0, np.float32)
        for row, item in zip(logits, items, strict=True):
            row[int(item)] = np.nan if int(item) % 17 == 7 else 0.0
        return logits

    def answered(self, asked: Asked, item: Array) -> None:
        self.told[int(item)] += 1

    def _activate(self) -> Runner:
        raise AssertionError("there is no file to load: load() is its own")


class NoEvents:
    def batch_ran(self, variant: str, size: int, seconds: float) -> None:
        pass


def lane_of(model: EdgeModel, max_queue: int = 10_000) -> Lane:
    return Lane(model, max_batch=MAX_BATCH, batch_wait_ms=0.0, max_queue=max_queue, events=NoEvents())


def job(number: int, peer: int = 0, deadline_s: float | None = None) -> Job:
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    if number % 4 == 1:  # it came decoded
        item = np.array(number)
        asked = TensorAsked(item)
        return Job(asked, peer, number % 3, time.perf_counter(), deadline_s, future, Stage.DECODED, item)
    return Job(str(number).encode(), peer, number % 3, time.perf_counter(), deadline_s, future)


async def ended(lane: Lane) -> None:
    lane.stop()
    assert await asyncio.to_thread(lane.join, 10.0)
    assert lane.state is LaneState.UNLOADED


@pytest.mark.parametrize(("seed", "slots"), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 3), (5, 3), (6, 8)])
def test_every_request_has_one_outcome_whatever_fails_leaves_or_is_evicted(seed: int, slots: int) -> None:
    model, outcomes = Echo(seed, slots), Counter[str]()

    async def ask(lane: Lane, number: int, rng: random.Random) -> None:
        deadline_s = time.perf_counter() + rng.choice((0.0001, 0.01, 1.0)) if rng.random() < 0.3 else None
        request = job(number, peer=rng.randrange(5), deadline_s=deadline_s)
        try:
            lane.submit(request)
            if rng.random() < 0.1:
                await asyncio.sleep(rng.random() * 0.004)
                request.future.cancel()
            answer = await asyncio.wait_for(request.future, 20)
        except RequestFailedError as exc:
            outcomes[exc.code] += 1
        except asyncio.CancelledError:
            outcomes["left"] += 1
        else:
            outcomes["answered"] += 1
            assert answer.top[0] == (number, 1.0)
            assert (answer.logits is not None) == isinstance(request.asked, TensorAsked)
            assert answer.logits is None or answer.logits.argmax() == number
            assert 1 <= answer.batch <= MAX_BATCH

    async def all_of_them() -> None:
        rng = random.Random(seed)
        lane = lane_of(model, max_queue=60)
        tasks = []
        for number in range(1500):
            if lane.state is LaneState.UNLOADED:
                await lane.start()
            tasks.append(asyncio.create_task(ask(lane, number, rng)))
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.002)
            if number in (400, 900):  # evicted in the midst of it: what waits is run after the next start
                await ended(lane)
        if lane.state is LaneState.UNLOADED:
            await lane.start()
        await asyncio.gather(*tasks)
        # One that was cancelled last waits until it is taken; one that the helper answered is still in its hands.
        end_s = time.monotonic() + 10
        while lane.busy and time.monotonic() < end_s:
            await asyncio.sleep(0.001)
        assert not lane.busy
        await ended(lane)

    asyncio.run(all_of_them())
    assert sum(outcomes.values()) == 1500
    assert outcomes["answered"] > 300
    assert {"bad-payload", "internal", "deadline", "left"} <= outcomes.keys()
    assert max(model.told.values()) == 1  # none was run twice
    assert outcomes["answered"] <= sum(model.told.values()) <= outcomes["answered"] + outcomes["left"]
    assert max(model.batches) <= MAX_BATCH


def test_what_waits_fails_by_name_when_the_model_cannot_be_loaded() -> None:
    class Broken(Echo):
        def load(self, times: BatchTimes, max_batch: int) -> None:
            raise MemoryError("none left")

    async def main() -> None:
        lane = lane_of(Broken(0))
        waiting = job(1)
        lane.submit(waiting)
        with pytest.raises(RunnerError, match="echo cannot be loaded: MemoryError: none left"):
            await lane.start()
        lane.fail_waiting(RequestFailedError("internal", "no model"))
        with pytest.raises(RequestFailedError, match="no model"):
            await waiting.future
        await ended(lane)

    asyncio.run(main())


def test_a_model_of_several_slots_runs_as_many_batches_at_once_and_a_deadline_counts_on_the_free_ones() -> None:
    class Meeting(Echo):
        def __init__(self, together: int) -> None:
            super().__init__(0, slots=3)
            self._meet = threading.Barrier(together)
            self.threads: set[int] = set()

        def load(self, times: BatchTimes, max_batch: int) -> None:
            times.ran(1, 0.2)
            times.ran(MAX_BATCH, 0.2)

        def run(self, items: list[Array]) -> Array:
            self.threads.add(threading.get_ident())
            self._meet.wait(30)  # broken, and so a failure, if there are fewer
            return super().run(items)

    async def main() -> None:
        model = Meeting(3)
        lane = lane_of(model)
        await lane.start()
        requests = []
        for number in (60, 61, 62):
            if len(requests) == 2:  # two run, a third is free: no wait for them
                assert lane.rest_s(time.perf_counter()) == 0.0
            requests.append(job(number, deadline_s=time.perf_counter() + 20))
            lane.submit(requests[-1])
            while lane.queued:
                await asyncio.sleep(0.001)
        assert [(await request.future).top[0][0] for request in requests] == [60, 61, 62]
        assert len(model.threads) == 3
        await ended(lane)

    asyncio.run(main())


def test_waiting_batches_are_shared_by_the_slots() -> None:
    times = BatchTimes()
    times.ran(4, 0.1)
    assert times.wait_s(16, 4, 0.05) == pytest.approx(0.45)
    assert times.wait_s(16, 4, 0.05, slots=4) == pytest.approx(0.15)


def test_a_lane_that_stops_while_it_loads_frees_what_it_loaded() -> None:
    class Slow(Echo):
        unloaded = False

        def load(self, times: BatchTimes, max_batch: int) -> None:
            time.sleep(0.2)

        def unload(self) -> None:
            self.unloaded = True

    async def main() -> None:
        model = Slow(0)
        lane = lane_of(model)
        started = lane.start()
        await ended(lane)
        assert model.unloaded
        await asyncio.wait_for(started, 5)

    asyncio.run(main())


def test_a_peer_with_little_takes_the_place_of_the_newest_of_who_has_most() -> None:
    async def main() -> None:
        lane = lane_of(Echo(0), max_queue=3)
        greedy = [job(number * 3, peer=1) for number in (20, 21, 22)]
        for request in greedy:
            lane.submit(request)
        with pytest.raises(RequestFailedError, match="--max-queue") as refused:
            lane.submit(job(69, peer=1))  # of the same stream
        assert (refused.value.code, refused.value.retry_after_s) == ("overloaded", 0.05)
        modest = job(25, peer=2)
        lane.submit(modest)
        with pytest.raises(RequestFailedError, match="--max-queue"):
            await greedy[-1].future
        await lane.start()
        assert (await modest.future).top[0] == (25, 1.0)
        assert [(await request.future).top[0][0] for request in greedy[:2]] == [60, 63]
        await ended(lane)

    asyncio.run(main())


def test_two_threads_decode_side_by_side_and_each_gets_its_own_planes(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", variants=(TinyVariant("wide", 16, 2, 8),))
    bundle = open_bundle(tmp_path / "bundle")
    (spec,) = bundle.manifest.variants
    model = TailModel(bundle, spec, RunnerOptions("onnxruntime", threads=1))
    rows = np.arange(np.prod(spec.planes), dtype=np.int64).reshape(spec.planes)
    sent = [(rows // step % 251).astype(np.uint8) for step in (7, 11, 13, 17)]  # what zstd has some work with
    coded = [PlaneEncoder(spec.planes, spec.bits, coder="zstd").encode(planes) for planes in sent]
    wrong: list[int] = []

    def decode(offset: int) -> None:
        for number in range(600):
            which = (number + offset) % len(sent)
            one = coded[which]
            asked = PlanesAsked(InferReceived(1, 0, one.coder_id, one.payload, one.raw_bytes, 0), None)
            try:
                good = np.array_equal(model.decode(asked), sent[which])
            except RequestFailedError:
                good = False
            if not good:
                wrong.append(number)

    threads = [threading.Thread(target=decode, args=(offset,)) for offset in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
