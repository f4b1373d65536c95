"""A request of the Open Inference Protocol from a body's bytes: JSON, and tensors in it or behind it. No I/O.

Whatever the bytes are, a request comes out or a RequestFailedError. Sizes are compared before memory is taken.
"""

from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
import numpy as np

from aecnn_deploy.errors import RequestFailedError
from aecnn_deploy.runtimes.base import Array
from aecnn_deploy.runtimes.edge_service import TOO_LARGE
from aecnn_deploy.runtimes.oip_failures import NOT_IMPLEMENTED, bad_request, shown
from aecnn_deploy.runtimes.oip_limits import OipLimits
from aecnn_deploy.runtimes.oip_models import BUNDLE_KEY, LOGITS, UINT8, TensorModel

Integer = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]  # JSON's own have any number of digits
Parameters = dict[str, str | Integer | float | bool]

_Value = TypeVar("_Value", str, int, bool)

_MAX_TENSORS = 16  # inputs, or outputs, that are looked at; models have one of each


class TensorGiven(msgspec.Struct, frozen=True):
    """One entry of ``inputs``."""

    name: str
    shape: list[Integer]
    datatype: str
    parameters: Parameters = {}
    data: msgspec.Raw = msgspec.Raw()


class TensorWanted(msgspec.Struct, frozen=True):
    """One entry of ``outputs``."""

    name: str
    parameters: Parameters = {}


class InferDocument(msgspec.Struct, frozen=True):
    """A request's JSON."""

    inputs: list[TensorGiven]
    id: str = ""
    parameters: Parameters = {}
    outputs: list[TensorWanted] = []


@dataclass(frozen=True, slots=True)
class Envelope:
    """A body taken apart. Without a ``document`` it is one tensor and nothing else."""

    document: InferDocument | None
    binary: memoryview | None  # what follows the JSON; None: the JSON is all, as far as the header says

    @property
    def bundle_id(self) -> str | None:
        """The bundle that the sender's other half is of. Raises RequestFailedError: it is no text."""
        return None if self.document is None else _parameter(self.document.parameters, BUNDLE_KEY, str)


@dataclass(frozen=True, slots=True)
class OutputAsked:
    """How the logits are to come: behind the JSON or in it; with ``classes``, as so many best classes instead."""

    binary: bool
    classes: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request that suits its model: ``rows`` (N, *item_shape), uint8, shares the body's memory where it can."""

    id: str
    rows: Array
    output: OutputAsked
    timeout_s: float | None


_decoder = msgspec.json.Decoder(InferDocument)
_values = msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=0, le=255)]])


def header_length(text: str | None) -> int | None:
    """The value of ``Inference-Header-Content-Length``: bytes of JSON at the body's beginning. None: all of it.

    Raises RequestFailedError: it is no number.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise bad_request(f"Inference-Header-Content-Length is '{shown(text)}', expected a number of bytes")
    return int(text)


def open_envelope(body: bytes, json_bytes: int | None, limits: OipLimits) -> Envelope:
    """Take ``body`` apart: ``json_bytes`` of JSON, tensors behind it. 0: it is one tensor alone.

    Raises RequestFailedError: so much is not there, or over the limit; no JSON, or none of a request.
    """
    if json_bytes is not None and json_bytes > len(body):
        raise bad_request(
            f"Inference-Header-Content-Length is {json_bytes}, the body has {len(body)} bytes; "
            "give the length of the JSON alone"
        )
    if json_bytes == 0:
        return Envelope(None, memoryview(body))
    view = memoryview(body)
    text = view if json_bytes is None else view[:json_bytes]
    if len(text) > limits.max_json_bytes:
        raise RequestFailedError(
            TOO_LARGE,
            f"the JSON has {len(text)} bytes, over the limit of {limits.max_json_bytes}; "
            "send tensors as binary data, or fewer rows",
        )
    try:
        document = _decoder.decode(text)
    except msgspec.ValidationError as exc:
        raise bad_request(f"the JSON is no inference request: {shown(exc)}") from None
    except RecursionError:
        raise bad_request("the JSON is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        what = "the body is no JSON" if json_bytes is None else "what Inference-Header-Content-Length marks is no JSON"
        raise bad_request(f"{what}: {shown(exc)}") from None
    return Envelope(document, None if json_bytes is None else view[json_bytes:])


def request_of(envelope: Envelope, model: TensorModel) -> InferRequest:
    """The request in ``envelope``, for ``model``. Raises RequestFailedError: it does not suit the model."""
    document = envelope.document
    if document is None:
        assert envelope.binary is not None
        count, rest = divmod(len(envelope.binary), model.item_bytes)
        if rest or not count:
            raise bad_request(
                f"the body has {len(envelope.binary)} bytes, one row of {model.input_name} has {model.item_bytes}; "
                "send whole rows, at least one"
            )
        _check_rows(count, model)
        return InferRequest("", _checked(_of_bytes(envelope.binary, count, model), model), OutputAsked(False), None)
    given = _only_input(document, model)
    count = _rows(given, model)
    in_json = len(memoryview(given.data)) > 0
    rows = _from_json(given, count, model) if in_json else _from_binary(given, count, envelope, model)
    return InferRequest(document.id, _checked(rows, model), _output(document), _timeout_s(document.parameters))


def _only_input(document: InferDocument, model: TensorModel) -> TensorGiven:
    for given in document.inputs[:_MAX_TENSORS]:
        if given.name != model.input_name:
            raise bad_request(
                f"{model.name} has no input '{shown(given.name)}'; its only input is {model.input_name!r}"
            )
    if not document.inputs:
        raise bad_request(f"the input {model.input_name!r} of {model.name} is missing")
    if len(document.inputs) > 1:
        raise bad_request(f"the input {model.input_name!r} comes {len(document.inputs)} times, expected once")
    return document.inputs[0]


def _rows(given: TensorGiven, model: TensorModel) -> int:
    """How many rows the tensor says that it has, once its type and its shape are right."""
    if given.datatype != UINT8:
        raise bad_request(f"the input {model.input_name!r} is '{shown(given.datatype)}', expected {UINT8}")
    if tuple(given.shape[1:]) != model.item_shape or given.shape[0] < 1:
        raise bad_request(
            f"the input {model.input_name!r} has the shape {shown(given.shape[:_MAX_TENSORS])}, "
            f"expected {[-1, *model.item_shape]}"
        )
    _check_rows(given.shape[0], model)
    _refuse_shared_memory(given.parameters)
    return given.shape[0]


def _check_rows(count: int, model: TensorModel) -> None:
    if count > model.max_rows:
        raise bad_request(f"{count} rows, over the limit of {model.max_rows} for one request; send several requests")


def _from_binary(given: TensorGiven, count: int, envelope: Envelope, model: TensorModel) -> Array:
    size = _parameter(given.parameters, "binary_data_size", int)
    if size is None:
        raise bad_request(f"the input {given.name!r} has neither 'data' nor the parameter 'binary_data_size'")
    if envelope.binary is None:
        raise bad_request("'binary_data_size' needs the HTTP header Inference-Header-Content-Length: bytes of JSON")
    expected = count * model.item_bytes
    if size != expected:
        raise bad_request(f"the input {given.name!r} has 'binary_data_size' {size}, its shape has {expected} bytes")
    if size != len(envelope.binary):
        raise bad_request(f"{len(envelope.binary)} bytes follow the JSON, 'binary_data_size' is {size}")
    return _of_bytes(envelope.binary, count, model)


def _from_json(given: TensorGiven, count: int, model: TensorModel) -> Array:
    if "binary_data_size" in given.parameters:
        raise bad_request(f"the input {given.name!r} has 'data' and 'binary_data_size'; send one of them")
    # The elements in row-major order, however they are nested: the shape is told beside them.
    flat = bytes(memoryview(given.data)).translate(None, b"[] \t\r\n")
    try:
        values = _values.decode(b"[" + flat + b"]")
    except (msgspec.DecodeError, RecursionError):
        raise bad_request(f"the 'data' of {given.name!r} are no whole numbers of 0 to 255") from None
    if len(values) != (expected := count * model.item_bytes):
        raise bad_request(f"the 'data' of {given.name!r} are {len(values)} values, its shape has {expected}")
    return _of_bytes(bytes(values), count, model)


def _of_bytes(content: memoryview | bytes, count: int, model: TensorModel) -> Array:
    return np.frombuffer(content, np.uint8).reshape(count, *model.item_shape)


def _checked(rows: Array, model: TensorModel) -> Array:
    if model.largest < 255 and (largest := int(rows.max())) > model.largest:
        raise bad_request(
            f"the input {model.input_name!r} holds the value {largest}, over the limit of {model.largest} for "
            f"{model.largest.bit_length()} bits; use the head of the same variant"
        )
    return rows


def _output(document: InferDocument) -> OutputAsked:
    binary = _parameter(document.parameters, "binary_data_output", bool) or False
    for wanted in document.outputs[:_MAX_TENSORS]:
        if wanted.name != LOGITS:
            raise bad_request(f"there is no output '{shown(wanted.name)}'; the only output is {LOGITS!r}")
        _refuse_shared_memory(wanted.parameters)
    if len(document.outputs) > 1:
        raise bad_request(f"the output {LOGITS!r} is asked for {len(document.outputs)} times, expected once")
    for wanted in document.outputs:
        classes = _parameter(wanted.parameters, "classification", int)
        if classes is not None and classes < 1:
            raise bad_request(f"'classification' is {classes}, expected 1 class or more")
        own = _parameter(wanted.parameters, "binary_data", bool)
        return OutputAsked(binary if own is None else own, classes or 0)
    return OutputAsked(binary)


def _timeout_s(parameters: Parameters) -> float | None:
    timeout_us = _parameter(parameters, "timeout", int)
    if timeout_us is not None and timeout_us < 0:
        raise bad_request(f"'timeout' is {timeout_us}, expected 0 (none) or more microseconds")
    return timeout_us / 1e6 if timeout_us else None


def _parameter(parameters: Parameters, name: str, kind: type[_Value]) -> _Value | None:
    """The parameter ``name``, if it is given. Raises RequestFailedError: it is of another type."""
    value = parameters.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = {str: "text", int: "a whole number", bool: "true or false"}[kind]
        raise bad_request(f"the parameter {name!r} is {shown(value)}, expected {expected}")
    return value


def _refuse_shared_memory(parameters: Parameters) -> None:
    if any(name.startswith("shared_memory_") for name in parameters):
        raise RequestFailedError(
            NOT_IMPLEMENTED, "shared memory is not implemented; send and take tensors as binary data"
        )
