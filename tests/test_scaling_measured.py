"""The simulation of a fleet beside a real lane and a real edge, and what is measured for it."""

import asyncio
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.errors import PlanError
from aecnn_deploy.runtimes.base import Array, Runner
from aecnn_deploy.runtimes.batch_times import BatchTimes
from aecnn_deploy.runtimes.edge_jobs import Answer, Job
from aecnn_deploy.runtimes.edge_lane import Lane
from aecnn_deploy.runtimes.edge_models import EdgeModel, PlanesAsked
from benchmarks import scaling
from benchmarks.scaling_cell import Arrivals, CellShape, Fate, simulate
from benchmarks.scaling_check import CheckSettings, check, edge_shape, poisson_of_generator
from benchmarks.scaling_connections import measure_connections
from benchmarks.scaling_front import front_only, measure_front
from benchmarks.traffic import make_traffic
from tests.bundles import TinyVariant, make_bundle
from tests.certificates import Authority
from tests.scaling_inputs import INPUTS

pytestmark = pytest.mark.bench

ANY = 10**9


class Slow(EdgeModel):
    """A model that sleeps as long as its batch is: 20 ms, and 4 ms for each image."""

    name, file_bytes = "slow", 1
    batch_s = ((1, 0.024), (2, 0.028), (4, 0.036), (8, 0.052))

    def load(self, times: BatchTimes, max_batch: int) -> None:
        for size, seconds in self.batch_s:
            times.ran(size, seconds)

    def decode(self, asked: PlanesAsked | bytes) -> Array:
        return np.zeros(1, np.float32)

    def run(self, items: list[Array]) -> Array:
        time.sleep(0.02 + 0.004 * len(items))
        return np.zeros((len(items), 5), np.float32)

    def answered(self, asked: PlanesAsked | bytes, item: Array) -> None:
        pass

    def _activate(self) -> Runner:
        raise AssertionError("there is no file to load")


class Nobody:
    def batch_ran(self, variant: str, size: int, seconds: float) -> None:
        pass


async def through_a_lane(at_s: list[float]) -> list[Answer]:
    """The answers of a real lane to requests at these seconds after its start."""
    lane = Lane(Slow(), max_batch=8, batch_wait_ms=0.0, max_queue=ANY, events=Nobody())
    await lane.start()
    loop, futures = asyncio.get_running_loop(), []
    begin_s = time.perf_counter() + 0.05
    for number, each_s in enumerate(at_s):
        await asyncio.sleep(max(0.0, begin_s + each_s - time.perf_counter()))
        futures.append(loop.create_future())
        lane.submit(Job(b"", "", number % 8, begin_s + each_s, None, futures[-1]))
    answers = await asyncio.gather(*futures)
    lane.stop()
    assert await asyncio.to_thread(lane.join, 10.0)
    return answers


class TestBesideTheRealThing:
    # Stated: on a tail of fixed times the median wait is within 25 % or 6 ms, the mean batch within 25 %.
    def test_a_real_lane_waits_and_batches_as_the_simulation_says(self) -> None:
        rng = np.random.default_rng(3)
        at_s = np.cumsum(rng.exponential(1 / 90, 150))  # of the 154 images a second that batches of 8 do
        shape = CellShape(batch_s=Slow.batch_s, max_batch=8, window=ANY, max_queue=ANY, max_in_flight=ANY)
        ours = simulate(shape, Arrivals(at_s, np.arange(150) % 8, np.zeros(8, np.int64)))
        for _ in range(3):  # a machine that stands still for a while is no fault of either
            answers = asyncio.run(through_a_lane(at_s.tolist()))
            wait_s = float(np.median([answer.queue_ms for answer in answers])) / 1e3
            batch = float(np.mean([answer.batch for answer in answers]))
            close = wait_s == pytest.approx(float(np.median(ours.queue_s)), rel=0.25, abs=6e-3)
            if close and batch == pytest.approx(float(ours.batch.mean()), rel=0.25):
                return
        raise AssertionError(f"three times: waited {wait_s} s in {batch}, simulated {np.median(ours.queue_s)}")

    def test_a_saturated_edge_was_as_fast_as_its_bare_tail_lets_the_simulation_be(self) -> None:
        results = Path(scaling.RESULTS)
        bare = json.loads((results / "edge_throughput.json").read_text())
        loaded = json.loads((results / "edge_overhead_p99.json").read_text())["saturated"]
        batch_s = tuple((int(size), int(size) / rate) for size, rate in bare["bare_by_batch"].items())
        rng = np.random.default_rng(0)
        at_s = np.sort(rng.uniform(0, 10, 10_000))  # far more than it takes: 16 devices with 4 in flight each
        arrivals = Arrivals(at_s, rng.integers(0, 16, 10_000), np.zeros(16, np.int64))
        found = simulate(dataclasses.replace(edge_shape(INPUTS, batch_s, (1.0,)), window=4), arrivals)
        answered = found.fate == Fate.OK
        assert answered.sum() / 10 == pytest.approx(loaded["images_per_s"], rel=0.05)
        queue_ms = float(np.median(found.queue_s[answered])) * 1e3
        assert queue_ms == pytest.approx(loaded["edge"]["queue_ms"]["p50"], rel=0.1)

    def test_the_hop_is_the_one_that_was_measured_where_there_is_one(self, tmp_path: Path) -> None:
        found = tmp_path / "ray.json"
        assert scaling.measured_hop_ms(found) is None
        found.write_text('{"hop": {"1": {"socket_hop_ms": {"p50": 1.5}}, "16": {"socket_hop_ms": {"p50": 2.5}}}}')
        assert scaling.measured_hop_ms(found) == 2.5
        found.write_text('{"hop": 3}')
        with pytest.raises(PlanError, match="--hop-ms"):
            scaling.measured_hop_ms(found)

    def test_the_arrivals_of_the_load_generator_are_drawn_again(self) -> None:
        begun = list(poisson_of_generator(200.0, 8, 0.5, 2.0, seed=0))
        assert len(begun) == pytest.approx(500, rel=0.2)
        assert begun == sorted(begun)
        assert {who for _, who in begun} == set(range(8))
        assert not [at for at, _ in begun if at >= 2.5]

    def test_a_real_edge_and_the_simulation_answer_the_same_load(self, tmp_path: Path) -> None:
        make_bundle(tmp_path / "bundle", variants=(TinyVariant("loops", 4, 4, 8, tail_loops=20),))
        bundle = open_bundle(tmp_path / "bundle")
        planes = np.random.default_rng(0).integers(0, 256, (4, 4, 16, 16), dtype=np.uint8)
        settings = CheckSettings(
            devices=4, seconds=0.8, saturate_seconds=0.4, tail_seconds=0.05, threads=1, loads=(0.5,)
        )
        found = check(bundle, "loops", planes, INPUTS, settings)
        (row,) = found["loads"]
        assert row["wrong"] == 0
        assert row["simulated"]["images_per_s"] == pytest.approx(row["measured"]["images_per_s"], rel=0.3)
        assert 1 <= found["batches"][0] <= found["batches"][1] <= 16
        assert set(row["error"]) == set(row["measured"])
        assert scaling.problems_of({"loads": [row | {"error": dict.fromkeys(row["error"], 9.0)}]})


class TestMeasurements:
    def test_a_front_and_its_connections_are_measured_on_a_real_edge(self, tmp_path: Path) -> None:
        planes = np.random.default_rng(0).integers(0, 16, (4, 4, 8, 8), dtype=np.uint8)
        bundle = front_only(tmp_path / "bundle", planes, 4)
        authority = Authority(tmp_path / "ca")
        costs = measure_front(bundle, make_traffic(bundle, "front", planes), 0.4, window=1, authority=authority)
        assert 10e-6 < costs.loop_s < 20e-3
        assert costs.received_bytes > 36
        assert costs.sent_bytes > 100
        found = measure_connections(bundle, 80, authority)  # more than 64 of one address
        assert found.sockets == pytest.approx(1.0, abs=0.1)
        assert found.edge_cpu_s > 0
        assert found.memory_bytes > 1000
