"""What the tests of the Open Inference Protocol ask an edge, by tritonclient and by hand."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferResult
from tritonclient.utils import InferenceServerException

from aecnn_deploy.bundle.reader import Bundle
from tests.bundles import Edge, TinyVariant

# A batch of the slow one takes some tenths of a second, whatever its size.
VARIANTS = (
    TinyVariant("quick-l1-u8", 4, 4, 8),
    TinyVariant("quick-l1-u4", 2, 4, 4),
    TinyVariant("slow-l1-u8", 4, 4, 8, tail_loops=15),
)
QUICK, FOUR_BITS, SLOW = (variant.id for variant in VARIANTS)


def client_of(edge: Edge, **options: Any) -> InferenceServerClient:
    return InferenceServerClient(f"127.0.0.1:{edge.port}", **options)


def rows_for(bundle: Bundle, model: str, count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    if model == "full":
        spec = bundle.manifest.input
        return rng.integers(0, 256, (count, spec.height, spec.width, 3), dtype=np.uint8)
    variant = bundle.variant(model)
    return rng.integers(0, 1 << variant.bits, (count, *variant.planes), dtype=np.uint8)


def input_of(model: str, rows: np.ndarray[Any, Any], *, binary: bool = True) -> list[InferInput]:
    asked = InferInput("frames" if model == "full" else "planes", list(rows.shape), "UINT8")
    return [asked.set_data_from_numpy(rows, binary_data=binary)]


def directly(bundle: Bundle, model: str, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits by ONNX Runtime alone, of the bundle's file, by the names that stand in it."""
    name = bundle.manifest.full if model == "full" else bundle.variant(model).tails["onnxruntime"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(bundle.file(name)), options, providers=["CPUExecutionProvider"])
    logits: np.ndarray[Any, Any] = session.run(["logits"], {"frames" if model == "full" else "planes": rows})[0]
    return logits


def same(got: np.ndarray[Any, Any] | None, wanted: np.ndarray[Any, Any]) -> bool:
    """To six digits: a batch of another size may be summed in another order."""
    return got is not None and got.dtype == np.float32 and np.allclose(got, wanted, rtol=1e-6, atol=1e-6)


def raw(edge: Edge, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return (
        answer.status,
        json.loads(content) if content else None,
        {key.lower(): value for key, value in answer.headers.items()},
    )


def refused(asking: Any) -> tuple[int, str]:
    """The HTTP status and the words of what tritonclient raises."""
    with pytest.raises(InferenceServerException) as caught:
        asking()
    return int(caught.value.status()), str(caught.value.message())


@contextmanager
def asking(edge: Edge, model: str, rows: np.ndarray[Any, Any]) -> Iterator[list[InferResult]]:
    """Ask for ``rows`` in the background; the result is there at the end."""
    results: list[InferResult] = []

    def ask() -> None:
        with client_of(edge) as client:
            results.append(client.infer(model, input_of(model, rows)))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield results
    finally:
        thread.join(30)


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
