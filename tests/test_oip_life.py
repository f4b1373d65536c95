"""The Open Inference Protocol beside streams, at an edge's limits and at its end."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import gevent.ssl
import numpy as np
import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import RequestFailedError
from aecnn_deploy.runtimes.edge_runners import RunnerOptions
from aecnn_deploy.runtimes.edge_service import Caller, EdgeService
from aecnn_deploy.runtimes.edge_settings import EdgeSettings
from aecnn_deploy.wire import ResultReceived
from tests.bundles import Edge, make_bundle, serving
from tests.certificates import Authority
from tests.edge_client import Client, get, metric, planes_of, wait_until_in_flight
from tests.oip_client import (
    QUICK,
    SLOW,
    VARIANTS,
    asking,
    client_of,
    directly,
    input_of,
    raw,
    refused,
    rows_for,
    same,
    wait_until,
)

SECRET = "a-token-for-the-tests"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("oip")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    make_bundle(folder / "bundle", variants=VARIANTS)
    return open_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def edge(bundle: Bundle) -> Iterator[Edge]:
    with serving(bundle.path, "--preload", f"{QUICK},{SLOW}", "--max-batch", "8") as running:
        yield running


class TestSharedLanes:
    def test_it_runs_together_with_streams_and_both_get_their_own(self, edge: Edge, bundle: Bundle) -> None:
        spec, rows = bundle.variant(SLOW), rows_for(bundle, SLOW, 24, seed=5)
        with Client(edge, bundle) as device, asking(edge, SLOW, rows) as results:
            device.event()
            wait_until_in_flight(edge, len(rows))
            device.ask(spec, 2, planes_of(spec))  # its turn comes before most of the rows that were there first
            answer = device.event()
        assert isinstance(answer, ResultReceived)
        assert answer.result.batch > 1  # with rows of the other protocol: it has no request but this one
        assert answer.result.top[0][0] == directly(bundle, SLOW, planes_of(spec)[None]).argmax()
        assert same(results[0].as_numpy("logits"), directly(bundle, SLOW, rows))

    def test_each_row_counts_as_a_request_and_each_request_once_more(self, edge: Edge, bundle: Bundle) -> None:
        lines = (
            'aecnn_requests_total{outcome="ok",path="split"}',
            f'aecnn_open_inference_requests_total{{model="{QUICK}",outcome="ok"}}',
            'aecnn_requests_total{outcome="bad-request",path="split"}',
        )
        before = [metric(edge, line) for line in lines]
        with client_of(edge) as client:
            client.infer(QUICK, input_of(QUICK, rows_for(bundle, QUICK, 5)))
            refused(lambda: client.infer(QUICK, input_of("full", rows_for(bundle, QUICK, 1))))
            stats = client.get_inference_statistics(QUICK)["model_stats"][0]
        assert [metric(edge, line) - old for line, old in zip(lines, before, strict=True)] == [5, 1, 1]
        assert stats["inference_count"] == metric(edge, f'aecnn_batch_size_sum{{variant="{QUICK}"}}')
        assert stats["execution_count"] == metric(edge, f'aecnn_batch_size_count{{variant="{QUICK}"}}')
        asked = stats["inference_stats"]
        assert asked["success"]["count"] == before[1] + 1
        assert asked["success"]["ns"] > asked["compute_infer"]["ns"] > 0
        assert asked["fail"]["count"] > 0

    def test_a_timeout_that_cannot_be_met_is_504_and_one_that_can_is_kept(self, edge: Edge, bundle: Bundle) -> None:
        rows = rows_for(bundle, SLOW, 1)
        with client_of(edge) as client:
            status, words = refused(lambda: client.infer(SLOW, input_of(SLOW, rows), timeout=1000))
            assert (status, "its 1 ms cannot be met" in words) == (504, True)
            assert client.infer(SLOW, input_of(SLOW, rows), timeout=20_000_000).as_numpy("logits") is not None

    def test_a_request_of_which_one_row_finds_no_place_fails_whole_and_holds_none(self, bundle: Bundle) -> None:
        rows = rows_for(bundle, SLOW, 8)
        with serving(bundle.path, "--preload", SLOW, "--max-queue", "8", "--max-batch", "1") as edge:
            with asking(edge, SLOW, rows) as results:
                wait_until_in_flight(edge, 8)
                status, told, headers = raw(
                    edge, "POST", f"/v2/models/{SLOW}/infer", rows.tobytes(), Inference_Header_Content_Length="0"
                )
                assert (status, "wait for slow-l1-u8, the limit is 8" in told["error"]) == (503, True)
                assert int(headers["retry-after"]) >= 1
                assert metric(edge, "aecnn_in_flight") <= 8
            assert same(results[0].as_numpy("logits"), directly(bundle, SLOW, rows))
            assert metric(edge, "aecnn_in_flight") == 0
            with client_of(edge) as client:
                status, words = refused(lambda: client.infer(SLOW, input_of(SLOW, rows_for(bundle, SLOW, 9))))
                assert (status, "9 rows, over the limit of 8" in words) == (400, True)  # they would never find a place

    def test_several_rows_take_nobody_s_place_in_a_full_queue_and_one_row_does(self, bundle: Bundle) -> None:
        rows = rows_for(bundle, QUICK, 4)
        wanted = directly(bundle, QUICK, rows)

        async def ask() -> None:
            options = RunnerOptions("onnxruntime", threads=1)
            service = EdgeService(bundle, EdgeSettings(runner=options, max_queue=4))
            lane, now_s = service.current.tails[QUICK], time.perf_counter()  # not loaded yet: all of them wait
            greedy, modest = Caller("greedy", "a", "greedy"), Caller("modest", "b", "modest")
            waiting = [asyncio.create_task(service.infer_rows(lane, [row], now_s, None, greedy)) for row in rows]
            await asyncio.sleep(0)
            with pytest.raises(RequestFailedError, match="the limit is 4: 2 rows find no place"):
                await service.infer_rows(lane, list(rows[:2]), now_s, None, modest)
            (answer,) = await service.infer_rows(lane, list(rows[:1]), now_s, None, modest)
            assert same(answer.logits, wanted[0])
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert [isinstance(outcome, RequestFailedError) for outcome in outcomes] == [False, False, False, True]
            assert service.in_flight == 0
            assert await asyncio.to_thread(service.close, 10.0)

        asyncio.run(ask())


class TestLife:
    def test_a_signal_lets_it_finish_and_refuses_what_is_new(self, bundle: Bundle) -> None:
        rows = rows_for(bundle, SLOW, 16)
        with serving(bundle.path, "--preload", SLOW, "--max-batch", "1", "--drain-s", "30") as edge:
            with asking(edge, SLOW, rows) as results, client_of(edge) as client:
                wait_until_in_flight(edge, 16)
                os.kill(edge.process.pid, signal.SIGTERM)
                wait_until(lambda: not client.is_server_ready())
                assert client.is_server_live()
                assert not client.is_model_ready(SLOW)
                status, words = refused(lambda: client.infer(SLOW, input_of(SLOW, rows)))
                assert (status, "shutting down" in words) == (503, True)
            assert same(results[0].as_numpy("logits"), directly(bundle, SLOW, rows))
            assert edge.process.wait(20) == 0

    def test_after_a_reload_it_serves_the_new_bundle_and_the_old_one_to_who_names_it(
        self, bundle: Bundle, folder: Path
    ) -> None:
        make_bundle(folder / "fresh", variants=VARIANTS, seed=1)
        fresh, link = open_bundle(folder / "fresh"), folder / "link"
        link.symlink_to(bundle.path)
        rows = rows_for(bundle, QUICK, 1)
        with serving(link, "--preload", QUICK) as edge, client_of(edge) as client:
            assert same(client.infer(QUICK, input_of(QUICK, rows)).as_numpy("logits"), directly(bundle, QUICK, rows))
            (folder / "next").symlink_to(fresh.path)
            (folder / "next").rename(link)
            os.kill(edge.process.pid, signal.SIGHUP)
            wait_until(lambda: client.get_server_metadata()["parameters"]["aecnn_bundle_id"] == fresh.id)
            for named, served in ((None, fresh), (bundle.id, bundle), (fresh.id, fresh)):
                named_too = {"aecnn_bundle_id": named} if named else None
                result = client.infer(QUICK, input_of(QUICK, rows), parameters=named_too)
                assert same(result.as_numpy("logits"), directly(served, QUICK, rows))
                assert result.get_response()["parameters"]["aecnn_bundle_id"] == served.id
            status, words = refused(
                lambda: client.infer(QUICK, input_of(QUICK, rows), parameters={"aecnn_bundle_id": "0" * 64})
            )
            assert (status, "no bundle '000" in words) == (404, True)

    def test_a_client_that_leaves_in_its_body_is_counted_and_holds_no_place(self, edge: Edge) -> None:
        line = f'aecnn_open_inference_requests_total{{model="{QUICK}",outcome="gone"}}'
        for _ in range(20):  # more than the edge reads at a time
            with socket.create_connection(("127.0.0.1", edge.port), timeout=10) as leaving:
                head = f"POST /v2/models/{QUICK}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
                leaving.sendall(head.encode() + b"{")
        wait_until(lambda: metric(edge, line) == 20)
        status, told, _ = raw(edge, "POST", f"/v2/models/{QUICK}/infer", b"{")
        assert (status, "the body is no JSON" in told["error"]) == (400, True)

    def test_tokens_and_tls_are_the_edge_s(self, bundle: Bundle, folder: Path) -> None:
        site, tokens = Authority(folder / "site"), folder / "tokens"
        pair = site.issue("edge", hosts=("127.0.0.1",))
        tokens.write_text(f"grafana {SECRET}\n")
        tokens.chmod(0o600)
        options = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--token-file", str(tokens))
        rows = rows_for(bundle, QUICK, 1)
        with serving(bundle.path, *options, "--open-status") as edge, ExitStack() as stack:
            client = stack.enter_context(
                client_of(
                    edge,
                    ssl=True,
                    ssl_options={"ca_certs": str(site.ca)},
                    ssl_context_factory=gevent.ssl.create_default_context,
                )
            )
            assert client.is_server_live()
            assert client.is_server_ready()
            for asking in (
                client.get_server_metadata,
                lambda: client.infer(QUICK, input_of(QUICK, rows)),
                lambda: client.infer(
                    QUICK, input_of(QUICK, rows), headers={"Authorization": "Bearer not-this-one-at-all"}
                ),
            ):
                status, words = refused(asking)
                assert (status, "token" in words) == (401, True)
            shown = {"Authorization": f"Bearer {SECRET}"}
            result = client.infer(QUICK, input_of(QUICK, rows), headers=shown)
            assert np.array_equal(result.as_numpy("logits"), directly(bundle, QUICK, rows))
            assert client.get_server_metadata(headers=shown)["name"] == "aecnn-deploy"


def test_the_status_page_shows_who_asked(edge: Edge, bundle: Bundle) -> None:
    with client_of(edge) as client:
        client.infer(QUICK, input_of(QUICK, rows_for(bundle, QUICK, 2)))
    time.sleep(1.1)  # the document is made at most once a second
    devices = json.loads(get(edge, "/v1/status")[1])["devices"]
    row = next(device for device in devices if device["address"] == "127.0.0.1")
    assert row["ok"] >= 2
    assert (row["path"], row["variant"]) == ("split", QUICK)
