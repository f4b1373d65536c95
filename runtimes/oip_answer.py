"""The answer to an inference request of the Open Inference Protocol, as a body's bytes. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from aecnn_deploy.errors import RequestFailedError
from aecnn_deploy.runtimes.base import Array
from aecnn_deploy.runtimes.oip_models import BUNDLE_KEY, BYTES, FP32, LOGITS, VERSION, Document, TensorModel
from aecnn_deploy.runtimes.oip_request import InferRequest
from aecnn_deploy.wire import FailureCode


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """A body, and how many bytes of it are JSON; None: all."""

    body: bytes
    json_bytes: int | None


def answer_of(request: InferRequest, model: TensorModel, rows: Sequence[Array]) -> InferAnswer:
    """The answer to ``request``; ``rows`` are the logits (classes,) of each of its rows.

    Raises RequestFailedError: JSON was asked for, and has no word for one of the values.
    """
    logits = (np.stack(rows) if len(rows) > 1 else rows[0][np.newaxis]).astype("<f4", copy=False)
    asked, output = request.output, Document(name=LOGITS)
    tail = b""
    if asked.classes:
        best = _best(logits, min(asked.classes, len(model.labels)), model.labels)
        output |= {"datatype": BYTES, "shape": [len(best), len(best[0])]}
        strings = [text for row in best for text in row]
        if asked.binary:
            tail = b"".join(_counted(text.encode()) for text in strings)
        else:
            output["data"] = strings
    else:
        output |= {"datatype": FP32, "shape": list(logits.shape)}
        if asked.binary:
            tail = logits.tobytes()
        elif np.isfinite(logits).all():
            output["data"] = logits.ravel().tolist()
        else:
            why = "JSON has no word for infinite logits; ask for binary data, and verify the bundle's export"
            raise RequestFailedError(FailureCode.INTERNAL, why)
    if asked.binary:
        output["parameters"] = {"binary_data_size": len(tail)}
    document: Document = {"model_name": model.name, "model_version": VERSION}
    if request.id:
        document["id"] = request.id
    document |= {"parameters": {BUNDLE_KEY: model.bundle_id}, "outputs": [output]}
    head = msgspec.json.encode(document)
    return InferAnswer(head + tail, len(head)) if asked.binary else InferAnswer(head, None)


def _best(logits: Array, count: int, labels: Sequence[str]) -> list[list[str]]:
    """Of each row the ``count`` best classes as "logit:index:label", best first."""
    order = (-logits).argsort(axis=1, kind="stable")[:, :count]
    values = np.take_along_axis(logits, order, axis=1)
    return [
        [f"{value:f}:{index}:{labels[index]}" for value, index in zip(row, indices, strict=True)]
        for row, indices in zip(values.tolist(), order.tolist(), strict=True)
    ]


def _counted(text: bytes) -> bytes:
    """One element of a BYTES tensor."""
    return len(text).to_bytes(4, "little") + text
