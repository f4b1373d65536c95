"""A gRPC inference server made by hand, over a real socket: ONNX Runtime behind the protocol that Triton speaks."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc

from aecnn_deploy.bundle.reader import Bundle
from tests.certificates import Pair

Array = np.ndarray[Any, Any]
Tensor = tuple[str, str, tuple[int, ...]]  # name, datatype, shape


@dataclass
class Model:
    """What the server says of a model, and what runs it; a test changes what it likes."""

    run: Callable[[Array], Array]
    input: Tensor
    output: Tensor
    max_batch: int = 8
    parameters: dict[str, str] = field(default_factory=dict)
    ready: bool = True
    config_fails: list[grpc.StatusCode] = field(default_factory=list)  # the next questions for its configuration
    batches: list[int] = field(default_factory=list)  # sizes of those that came


class RefusedError(Exception):
    """Raised by a model's ``run``: the call ends with this status."""

    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        super().__init__(words)
        self.code, self.words = code, words


@dataclass
class Raw:
    """What ``run`` may give in place of an array: an answer as it stands."""

    outputs: list[Tensor]
    contents: list[bytes]


def models_of(bundle: Bundle, *, says_bundle: bool = True, prefix: str = "", full: bool = True) -> dict[str, Model]:
    """Every model of ``bundle`` as a server has it that was given its repository."""
    files = {spec.id: spec.tails["onnxruntime"] for spec in bundle.manifest.variants}
    if full:
        files["full"] = bundle.manifest.full
    return {prefix + name: _model(bundle, name, bundle.file(file), says_bundle) for name, file in files.items()}


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers for ``models``, which a test may change while it runs."""

    def __init__(self, models: dict[str, Model]) -> None:
        self.models = models

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802 (the protocol's name)
        return messages.ServerLiveResponse(live=True)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        model = self.models.get(request.name)
        return messages.ModelReadyResponse(ready=model is not None and model.ready)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        model = self._model(request.name, context)
        answer = messages.ModelMetadataResponse(name=request.name, versions=["1"])
        for tensors, (name, datatype, shape) in ((answer.inputs, model.input), (answer.outputs, model.output)):
            tensors.add(name=name, datatype=datatype, shape=shape)
        return answer

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        model = self._model(request.name, context)
        if model.config_fails:
            context.abort(model.config_fails.pop(), "not now")
        answer = messages.ModelConfigResponse()
        answer.config.max_batch_size = model.max_batch
        for key, value in model.parameters.items():
            answer.config.parameters[key].string_value = value
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        model = self._model(request.model_name, context)
        (tensor,) = request.inputs
        batch = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(tuple(tensor.shape))
        model.batches.append(len(batch))
        if model.max_batch and len(batch) > model.max_batch:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"batch-size must be <= {model.max_batch}")
        try:
            result: Any = model.run(batch)
        except RefusedError as exc:
            context.abort(exc.code, exc.words)
        if not isinstance(result, Raw):
            result = Raw([(model.output[0], model.output[1], result.shape)], [result.tobytes()])
        answer = messages.ModelInferResponse(model_name=request.model_name, raw_output_contents=result.contents)
        for name, datatype, shape in result.outputs:
            answer.outputs.add(name=name, datatype=datatype, shape=shape)
        return answer

    def _model(self, name: str, context: Any) -> Model:
        model = self.models.get(name)
        if model is None or not model.ready:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
            raise AssertionError  # abort has raised
        return model


@contextmanager
def inference_server(models: dict[str, Model], port: int = 0, *, tls: Pair | None = None) -> Iterator[str]:
    """The server on loopback; its URL for ``--upstream``. At the end what is in flight there is cut off."""
    pool = ThreadPoolExecutor(16)
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(models), server)
    address = f"127.0.0.1:{port}"
    if tls is None:
        port = server.add_insecure_port(address)
    else:
        pair = (tls.key.read_bytes(), tls.cert.read_bytes())
        port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        yield f"triton{'s' if tls else ''}://127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()
        pool.shutdown(wait=True)


@contextmanager
def answering_garbage(answer: bytes) -> Iterator[str]:
    """A TCP server that says ``answer`` to whoever connects and then reads on; its URL for ``--upstream``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()
        listener.settimeout(0.05)

        def serve() -> None:
            held = []
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                held.append(connection)
                if answer:
                    connection.sendall(answer)
            for connection in held:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"triton://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


@contextmanager
def malformed_messages() -> Iterator[str]:
    """A gRPC server that knows every method and whose answers are no protobuf; its URL for ``--upstream``."""

    class Anything(grpc.GenericRpcHandler):  # type: ignore[misc]  # the package has no types
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\xff\xff\xff\xff")

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[Anything()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"triton://127.0.0.1:{port}"
        finally:
            server.stop(grace=None).wait()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _model(bundle: Bundle, name: str, path: Path, says_bundle: bool) -> Model:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    source, result = session.get_inputs()[0], session.get_outputs()[0]

    def run(batch: Array) -> Array:
        logits: Array = session.run(None, {source.name: batch})[0]
        return logits

    parameters = {"aecnn_bundle_id": bundle.id, "aecnn_variant": name} if says_bundle else {}
    taken, given = (-1, *source.shape[1:]), (-1, *result.shape[1:])
    return Model(run, (source.name, "UINT8", taken), (result.name, "FP32", given), parameters=parameters)
