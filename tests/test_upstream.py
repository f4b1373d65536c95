"""Tails on an inference server: what is compared with the bundle, and what is refused at the start."""

import dataclasses
import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.cli.upstream_options import upstream_tails
from aecnn_deploy.errors import (
    CredentialsError,
    RunnerError,
    SettingsError,
)
from aecnn_deploy.runtimes.edge_remote import WatchedRemote
from aecnn_deploy.runtimes.edge_runners import RunnerOptions, activate_full, activate_tail
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.triton_settings import TritonAddress, UpstreamSettings, parse_address
from aecnn_deploy.runtimes.triton_tails import TritonTails
from tests.bundles import make_bundle
from tests.certificates import Authority
from tests.inference_server import (
    answering_garbage,
    free_port,
    inference_server,
    malformed_messages,
    models_of,
)
from tests.upstream_tails import PATIENT_S, batch_of, counted, first_runner, locally, tails_of, until


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    make_bundle(folder)
    return open_bundle(folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "other"
    make_bundle(folder, seed=1)
    return open_bundle(folder)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("triton://edge-gpu:8001", TritonAddress("edge-gpu", 8001, tls=False)),
        ("triton://127.0.0.1", TritonAddress("127.0.0.1", 8001, tls=False)),
        ("tritons://gpu.example:443/", TritonAddress("gpu.example", 443, tls=True)),
        ("triton://[::1]:9000", TritonAddress("::1", 9000, tls=False)),
    ],
)
def test_an_address_is_host_and_port_with_or_without_tls(url: str, address: TritonAddress) -> None:
    assert parse_address(url) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://gpu:8000", "HTTP port is not used"),
        ("grpc://gpu:8001", "give triton://HOST:PORT"),
        ("gpu:8001", "give triton://HOST:PORT"),
        ("triton://", "names no host"),
        ("triton://gpu:0", "names no port"),
        ("triton://gpu:70000", "Port out of range"),
        ("triton://gpu:x", "Port could not be cast"),
        ("triton://gpu:8001/models", "more than a host and a port"),
        ("triton://me:secret@gpu:8001", "more than a host and a port"),
        ("triton://gp u:8001", "whose host is none"),
        ("triton://[::1:8001", "Invalid IPv6 URL"),
    ],
)
def test_what_is_no_address_is_refused_with_the_form_of_one(url: str, why: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(why)) as caught:
        parse_address(url)
    assert "triton://HOST:PORT" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"ca": Path("ca.pem")}, "--upstream-ca"),
        ({"prefix": "a/b"}, "--upstream-prefix"),
        ({"prefix": "{variant}"}, "--upstream-prefix"),
        ({"parallel": 0}, "--upstream-parallel"),
        ({"parallel": 65}, "--upstream-parallel"),
        ({"call_s": 0.0}, "--upstream-timeout-s"),
        ({"retry_s": -1.0}, "--upstream-retry-s"),
        ({"wait_s": float("nan")}, "--upstream-wait-s"),
    ],
)
def test_a_setting_out_of_its_range_names_its_option(change: dict[str, Any], option: str) -> None:
    with pytest.raises(SettingsError, match=option):
        UpstreamSettings("triton://gpu:8001", **change)


def test_options_of_an_upstream_that_is_not_given_are_refused_and_so_is_a_second_place_for_the_tails() -> None:
    assert upstream_tails(None, None, None, None, (None, None, None)) is None
    with pytest.raises(SettingsError, match="go with --upstream URL"):
        upstream_tails(None, None, None, 8, (None, None, None))
    with pytest.raises(SettingsError, match="--upstream and --ray"):
        upstream_tails("triton://gpu", None, None, None, (None, None, None), ray="auto")
    tails = upstream_tails("triton://gpu", None, None, 2, (None, 0.0, None))
    assert isinstance(tails, WatchedRemote)
    for change in ({"name": "onnxruntime"}, {"precision": "fp16"}):
        with pytest.raises(SettingsError, match="triton://gpu:8001 take neither a runner nor a precision"):
            RunnerOptions(**change, remote=tails)
    tails.close()


def test_answers_are_the_local_tails_and_a_batch_over_the_models_limit_goes_in_pieces(bundle: Bundle) -> None:
    models = models_of(bundle)
    spec = bundle.manifest.variants[0]
    with inference_server(models) as url, tails_of(url) as tails:
        active = activate_tail(bundle, spec, RunnerOptions(remote=tails))
        assert (active.target, active.runner.name, active.runner.concurrency) == (url, "triton", 4)
        batch = batch_of(spec, 19)
        for count in (1, 8, 19):
            assert np.array_equal(active.runner.infer(batch[:count]), locally(bundle, batch[:count]))
        assert models[spec.id].batches == [1, 8, 8, 8, 3]
        assert counted(tails, "aecnn_upstream_seconds_count", variant=spec.id) == 5
        full = activate_full(bundle, RunnerOptions(remote=tails))
        assert full.target == url
        frame = np.zeros((1, bundle.manifest.input.height, bundle.manifest.input.width, 3), np.uint8)
        with OnnxRuntimeRunner(bundle.file(bundle.manifest.full), threads=1) as runner:
            assert np.array_equal(full.runner.infer(frame), runner.infer(frame))


def test_the_unsplit_model_runs_here_where_the_server_has_none(bundle: Bundle) -> None:
    with inference_server(models_of(bundle, full=False)) as url, tails_of(url) as tails:
        assert activate_full(bundle, RunnerOptions(remote=tails)).target == "onnxruntime"


def test_a_model_without_a_batch_limit_takes_any_batch(bundle: Bundle) -> None:
    models = models_of(bundle)
    spec = bundle.manifest.variants[0]
    models[spec.id].max_batch = 0
    with inference_server(models) as url, tails_of(url) as tails, first_runner(tails, bundle) as runner:
        runner.infer(batch_of(spec, 40))
    assert models[spec.id].batches == [40]


def test_a_prefix_with_the_bundles_id_keeps_two_bundles_apart(bundle: Bundle, other: Bundle) -> None:
    models = {
        name: model for each in (bundle, other) for name, model in models_of(each, prefix=f"{each.id[:12]}-").items()
    }
    with inference_server(models) as url, tails_of(url, prefix="{bundle}-") as tails:
        batch = batch_of(bundle.manifest.variants[0], 2)
        for each in (bundle, other):
            with first_runner(tails, each) as runner:
                assert np.array_equal(runner.infer(batch), locally(each, batch))


DISAGREEMENTS: list[tuple[dict[str, Any], str]] = [
    ({"input": ("frames", "UINT8", (-1, 4, 16, 16))}, "takes frames UINT8 [-1, 4, 16, 16], tiny-l1-v2-u8 needs planes"),
    ({"input": ("planes", "FP32", (-1, 4, 16, 16))}, "takes planes FP32 [-1, 4, 16, 16]"),
    ({"input": ("planes", "UINT8", (-1, 2, 16, 16))}, "needs planes UINT8 [-1, 4, 16, 16]"),
    ({"input": ("planes", "UINT8", (1, 4, 16, 16))}, "takes planes UINT8 [1, 4, 16, 16]"),
    ({"output": ("logits", "FP32", (-1, 9))}, "gives logits FP32 [-1, 9], tiny-l1-v2-u8 needs logits FP32 [-1, 7]"),
    ({"output": ("scores", "FP32", (-1, 7))}, "gives scores"),
    ({"parameters": {"aecnn_bundle_id": "f" * 64}}, "is of bundle ffffffffffff, this edge serves bundle"),
    ({"parameters": {"aecnn_variant": "tiny-l1-v4-u4"}}, "is the bundle's tiny-l1-v4-u4, expected tiny-l1-v2-u8"),
]


@pytest.mark.parametrize(("change", "why"), DISAGREEMENTS)
def test_a_model_that_is_not_the_bundles_is_refused_at_once_by_both_sides(
    bundle: Bundle, change: dict[str, Any], why: str
) -> None:
    models = models_of(bundle)
    models["tiny-l1-v2-u8"] = dataclasses.replace(models["tiny-l1-v2-u8"], **change)
    with inference_server(models) as url, tails_of(url) as tails:
        began_s = time.monotonic()
        with pytest.raises(RunnerError, match=re.escape(why)) as caught:
            first_runner(tails, bundle).activate()
        assert time.monotonic() - began_s < PATIENT_S / 2
        assert "aecnn-deploy bundle triton" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert url in str(caught.value)


def test_a_server_that_does_not_say_whose_models_it_has_is_warned_of_once(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with inference_server(models_of(bundle, says_bundle=False)) as url, tails_of(url) as tails:
        for variant in bundle.manifest.variants:
            runner = tails.runner(bundle, variant)
            assert runner is not None
            runner.activate()
    assert sum("does not say which bundle" in record.message for record in caplog.records) == 1


def test_a_missing_model_is_waited_for_as_long_as_the_settings_say(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    models = models_of(bundle)
    missing = models.pop("tiny-l1-v2-u8")
    with inference_server(models) as url:
        with (
            tails_of(url, wait_s=0.2) as tails,
            pytest.raises(RunnerError, match="no model tiny-l1-v2-u8 that is ready"),
        ):
            first_runner(tails, bundle).activate()
        with tails_of(url) as tails, ThreadPoolExecutor(1) as pool:
            caplog.clear()
            arriving = pool.submit(first_runner(tails, bundle).activate)
            until(lambda: any("waiting for tiny-l1-v2-u8" in record.message for record in caplog.records))
            models["tiny-l1-v2-u8"] = missing
            arriving.result(PATIENT_S)
    assert sum("waiting for" in record.message for record in caplog.records) == 1


def test_nothing_listening_is_said_within_the_wait_and_closing_ends_it(bundle: Bundle) -> None:
    url = f"triton://127.0.0.1:{free_port()}"
    with tails_of(url, wait_s=0.1) as tails, pytest.raises(RunnerError, match="is the server running there"):
        first_runner(tails, bundle).activate()
    with tails_of(url, wait_s=600.0) as tails, ThreadPoolExecutor(1) as pool:
        arriving = pool.submit(first_runner(tails, bundle).activate)
        time.sleep(0.05)
        tails.close()
        with pytest.raises(RunnerError):
            arriving.result(PATIENT_S)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(range(256)) * 8, b""])
def test_what_is_no_grpc_server_is_refused_in_one_line(bundle: Bundle, answer: bytes) -> None:
    with answering_garbage(answer) as url, tails_of(url, wait_s=0.3) as tails:
        with pytest.raises(RunnerError, match=re.escape(url)) as caught:
            first_runner(tails, bundle).activate()
        assert str(caught.value).isprintable()


def test_answers_that_are_no_protobuf_are_refused_in_one_line(bundle: Bundle) -> None:
    with malformed_messages() as url, tails_of(url) as tails:
        with pytest.raises(RunnerError, match="internal") as caught:
            first_runner(tails, bundle).activate()
        assert str(caught.value).isprintable()


def test_a_certificate_of_the_named_ca_is_taken_and_another_is_not(bundle: Bundle, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    with inference_server(models_of(bundle), tls=authority.issue("gpu")) as url:
        batch = batch_of(bundle.manifest.variants[0], 1)
        with tails_of(url, ca=authority.ca) as tails, first_runner(tails, bundle) as runner:
            assert np.array_equal(runner.infer(batch), locally(bundle, batch))
        for ca in (stranger.ca, None):
            with (
                tails_of(url, ca=ca, wait_s=0.2) as tails,
                pytest.raises(RunnerError, match="CERTIFICATE_VERIFY_FAILED"),
            ):
                first_runner(tails, bundle).activate()
    (tmp_path / "empty.pem").write_text("nothing")
    for ca, why in ((tmp_path / "none.pem", "cannot read --upstream-ca"), (tmp_path / "empty.pem", "holds no CA")):
        with pytest.raises(CredentialsError, match=why):
            TritonTails(UpstreamSettings(url, ca=ca))
