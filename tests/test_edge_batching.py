"""The edge with many devices: batches, deadlines that cannot be met, fairness, models that come and go."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.runtimes.edge_runners import RunnerOptions, activate_tail
from aecnn_deploy.wire import FailureReceived, ResultReceived
from tests.bundles import Edge, TinyVariant, command, make_bundle, one_line, serving
from tests.edge_client import Client, get, metric, planes_of, wait_until_in_flight

# A batch takes about as long as one request, some tenths of a second.
VARIANTS = (TinyVariant("slow", 4, 4, 8, tail_loops=60), TinyVariant("quick", 4, 4, 8), TinyVariant("third", 4, 4, 8))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("batching") / "bundle"
    make_bundle(path, variants=VARIANTS)
    return open_bundle(path)


@pytest.fixture(scope="module")
def edge(bundle: Bundle) -> Iterator[Edge]:
    with serving(bundle.path, "--max-batch", "4") as running:
        yield running


def greeted(stack: ExitStack, edge: Edge, bundle: Bundle, count: int) -> list[Client]:
    clients = [stack.enter_context(Client(edge, bundle)) for _ in range(count)]
    for client in clients:
        client.event()
    return clients


def test_requests_of_several_devices_run_together_and_each_gets_its_own_answer(edge: Edge, bundle: Bundle) -> None:
    spec = bundle.manifest.variants[0]
    tail = activate_tail(bundle, spec, RunnerOptions("onnxruntime", threads=1)).runner
    with ExitStack() as stack:
        first, *others = greeted(stack, edge, bundle, 4)
        seeds = range(10, 18)
        best = tail.infer(np.stack([planes_of(spec, seed) for seed in seeds])).argmax(axis=1).tolist()
        asked = [(others[seed % 3], seed) for seed in seeds]
        first.ask(spec, 0, planes_of(spec))
        wait_until_in_flight(edge, 1)
        expected = {
            (id(client), client.ask(spec, 0, planes_of(spec, seed))): index
            for (client, seed), index in zip(asked, best, strict=True)
        }
        answers = {(id(client), event.request_id): event.result for client, _ in asked for event in [client.event()]}
        assert first.event().result.batch <= 4
    assert {key: result.top[0][0] for key, result in answers.items()} == expected
    assert len(set(expected.values())) > 1
    batches = [result.batch for result in answers.values()]
    assert max(batches) == 4  # --max-batch
    assert sum(1 / size for size in batches) <= 4  # runs, of 8 requests


def test_a_request_waits_for_others_as_long_as_it_was_told_to(bundle: Bundle) -> None:
    spec = bundle.manifest.variants[0]
    options = ("--batch-wait-ms", "5000", "--max-batch", "2")
    with serving(bundle.path, *options) as edge, ExitStack() as stack:
        one, two = greeted(stack, edge, bundle, 2)
        one.ask(spec, 0, planes_of(spec))
        time.sleep(0.1)
        two.ask(spec, 0, planes_of(spec))
        results = [client.event().result for client in (one, two)]
        assert [result.batch for result in results] == [2, 2]
        assert 100 <= results[0].queue_ms < 4000  # until the second came, not until the time was over
        one.ask(spec, 0, planes_of(spec))
        alone = one.event().result
        assert alone.batch == 1
        assert alone.queue_ms >= 4900


def test_a_deadline_that_cannot_be_met_is_refused_at_once_with_when_it_could(edge: Edge, bundle: Bundle) -> None:
    spec = bundle.manifest.variants[0]
    with ExitStack() as stack:
        first, late = greeted(stack, edge, bundle, 2)
        alone_ms = []
        for _ in range(3):
            first.ask(spec, 0, planes_of(spec))
            alone_ms.append(first.event().result.tail_ms)
        for _ in range(5):  # where a batch was about to end, there was time
            for _ in range(8):
                first.ask(spec, 0, planes_of(spec))
            wait_until_in_flight(edge, 8)
            began_s = time.monotonic()
            # Enough for itself, not for the wait: near the fastest, or one slow spell would make it enough for both.
            late.ask(spec, 0, planes_of(spec), deadline_ms=int(1.1 * min(alone_ms)))
            refused = late.event()
            took_ms = (time.monotonic() - began_s) * 1e3
            if isinstance(refused, FailureReceived):
                break
            for _ in range(8):
                first.event()
        late.ask(spec, 0, planes_of(spec), deadline_ms=1)
        hopeless = late.event()
        late.ask(spec, 0, planes_of(spec), deadline_ms=60_000)
        assert isinstance(late.event(), ResultReceived)
        for _ in range(8):
            first.event()
    assert isinstance(refused, FailureReceived)
    assert refused.failed.code == "deadline"
    assert refused.failed.retry_after_s
    assert took_ms < max(alone_ms)
    assert "cannot be met" in refused.failed.reason
    assert isinstance(hopeless, FailureReceived)
    assert (hopeless.failed.code, hopeless.failed.retry_after_s) == ("deadline", None)
    assert "alone takes" in hopeless.failed.reason


def test_a_device_with_little_does_not_wait_behind_one_with_much(bundle: Bundle) -> None:
    spec = bundle.manifest.variants[0]
    with serving(bundle.path, "--max-batch", "1") as edge, ExitStack() as stack:
        *greedy, modest = greeted(stack, edge, bundle, 3)
        for client in greedy:
            for _ in range(8):
                client.ask(spec, 0, planes_of(spec))
        wait_until_in_flight(edge, 16)
        modest.ask(spec, 0, planes_of(spec))
        result = modest.event().result
        # One runs, and each of the others may have one turn before.
        assert result.queue_ms < 5 * result.tail_ms
        assert metric(edge, "aecnn_in_flight") >= 8


def test_a_full_queue_refuses_those_who_fill_it(bundle: Bundle) -> None:
    spec = bundle.manifest.variants[0]
    with serving(bundle.path, "--max-batch", "1", "--max-queue", "4") as edge, ExitStack() as stack:
        greedy, modest = greeted(stack, edge, bundle, 2)
        for _ in range(8):
            greedy.ask(spec, 0, planes_of(spec))
        refused = [greedy.event() for _ in range(3)]  # one runs, four wait
        assert {type(event) for event in refused} == {FailureReceived}
        modest.ask(spec, 0, planes_of(spec))
        bumped = greedy.event()
        assert isinstance(bumped, FailureReceived)
        for event in (*refused, bumped):
            assert event.failed.code == "overloaded"
            assert event.failed.retry_after_s > 0
            assert "--max-queue" in event.failed.reason
        assert isinstance(modest.event(), ResultReceived)


def test_a_variant_is_loaded_when_it_is_first_asked_for(bundle: Bundle) -> None:
    with serving(bundle.path) as edge, Client(edge, bundle) as client:
        assert list(edge.ready["targets"]) == ["slow"]
        client.event()
        for index in (2, 1, 2):
            spec = bundle.manifest.variants[index]
            client.ask(spec, index, planes_of(spec))
            assert client.event().result.variant == spec.id
        _, errors = edge.stop()
    assert [line.split("loaded ")[1].split()[0] for line in errors.splitlines() if " loaded " in line] == [
        "slow",
        "third",
        "quick",
    ]


def test_models_over_the_memory_limit_make_room_for_each_other(bundle: Bundle) -> None:
    with serving(bundle.path, "--preload", "none", "--memory-limit-mb", "0.05") as edge, ExitStack() as stack:
        assert edge.ready["targets"] == {}
        assert get(edge, "/readyz")[0] == 200
        clients = greeted(stack, edge, bundle, 2)
        for _ in range(2):
            for index in (1, 2):
                spec = bundle.manifest.variants[index]
                for client in clients:
                    client.ask(spec, index, planes_of(spec))
                for client in clients:
                    assert client.event().result.variant == spec.id
        _, errors = edge.stop()
    assert "freed quick for third" in errors
    assert "freed third for quick" in errors


def test_a_model_that_alone_is_over_the_limit_is_named(bundle: Bundle) -> None:
    done = command("serve-edge", str(bundle.path), "--port", "0", "--memory-limit-mb", "0.1")
    assert done.returncode == 1
    assert "slow takes at least 1.1 MB" in one_line(done.stderr)
    assert "--memory-limit-mb" in one_line(done.stderr)
    spec = bundle.manifest.variants[0]
    options = ("--preload", "quick", "--memory-limit-mb", "0.5")
    with serving(bundle.path, *options) as edge, Client(edge, bundle) as client:
        client.event()
        client.ask(spec, 0, planes_of(spec))
        failed = client.event().failed
    assert failed.code == "internal"
    assert "--memory-limit-mb" in failed.reason


def test_a_variant_to_preload_that_the_bundle_lacks_is_refused(bundle: Bundle) -> None:
    done = command("serve-edge", str(bundle.path), "--port", "0", "--preload", "quick,fourth")
    assert done.returncode == 2
    assert "'fourth'" in one_line(done.stderr)
    assert "slow, quick, third" in one_line(done.stderr)
