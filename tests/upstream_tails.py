"""What the tests of tails on an inference server share."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from aecnn_deploy.bundle.manifest import VariantSpec
from aecnn_deploy.bundle.reader import Bundle
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from aecnn_deploy.runtimes.triton_runner import TritonRunner
from aecnn_deploy.runtimes.triton_settings import UpstreamSettings
from aecnn_deploy.runtimes.triton_tails import TritonTails
from tests.edge_client import planes_of
from tests.inference_server import (
    Array,
)

PATIENT_S = 30.0  # what a loaded machine may take for what is done at once


@contextmanager
def tails_of(url: str, **settings: Any) -> Iterator[TritonTails]:
    tails = TritonTails(UpstreamSettings(url, **{"wait_s": PATIENT_S, "retry_s": PATIENT_S} | settings))
    try:
        yield tails
    finally:
        tails.close()


def first_runner(tails: TritonTails, bundle: Bundle) -> TritonRunner:
    runner = tails.runner(bundle, bundle.manifest.variants[0])
    assert isinstance(runner, TritonRunner)
    return runner


def batch_of(spec: VariantSpec, count: int) -> Array:
    return np.stack([planes_of(spec, seed) for seed in range(count)])


def locally(bundle: Bundle, batch: Array) -> Array:
    with OnnxRuntimeRunner(bundle.file(bundle.manifest.variants[0].tails["onnxruntime"]), threads=1) as runner:
        return runner.infer(batch)


def counted(tails: TritonTails, sample: str, **labels: str) -> float:
    for family in tails.metrics.collect():
        for found in family.samples:
            if found.name == sample and found.labels == labels:
                return float(found.value)
    return 0.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
