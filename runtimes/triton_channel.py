"""A gRPC connection to a Triton server: the calls that an edge makes, with our errors. Any thread may use it."""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aecnn_deploy.errors import CredentialsError, UpstreamError
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.triton_settings import TritonAddress

NOT_FOUND, UNAVAILABLE, CANCELLED, LATE = "not-found", "unavailable", "cancelled", "deadline-exceeded"
WRONG_MODEL, BAD_ANSWER = "wrong-model", "bad-answer"  # codes of ours, beside gRPC's

# A server that restarts is away, then cancels, then knows no model yet, or another one.
PASSING = frozenset({UNAVAILABLE, CANCELLED, NOT_FOUND, WRONG_MODEL})

_MAX_ANSWER_BYTES = 64 << 20  # 1,024 images of 16,000 classes
_MAX_WORDS = 300
_OPTIONS = (
    ("grpc.max_send_message_length", -1),  # what is sent is ours
    ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
    ("grpc.enable_http_proxy", 0),  # proxies of the environment are for the internet
    # A call that hears nothing for so long is on a dead connection. Rarer than Triton complains about.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # gRPC's own 20 s and up to 2 minutes are longer than requests wait.
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # a server that comes back may have another address
)


@dataclass(frozen=True, slots=True)
class TensorFace:
    """What a server says of an input or an output; ``shape`` with the batch axis, -1 where any size will do."""

    name: str
    datatype: str  # of the protocol: UINT8, FP32, …
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class ModelFace:
    """What a server says of a model. ``max_batch`` 0: it does not say. ``parameters``: its configuration's."""

    inputs: tuple[TensorFace, ...]
    outputs: tuple[TensorFace, ...]
    max_batch: int
    parameters: Mapping[str, str]


class TritonChannel:
    """The calls. All raise UpstreamError, whose message names the server and has its words.

    When made: MissingExtraError: the extra ``triton`` is not installed; CredentialsError: ``ca`` cannot be used.
    """

    def __init__(self, address: TritonAddress, ca: Path | None = None) -> None:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it has to say comes with the calls' errors
        client = require("tritonclient.grpc", why=f"the upstream {address}")
        self._grpc = grpc = require("grpc", why=f"the upstream {address}")
        self.messages: Any = client.service_pb2
        self.address = address
        if address.tls:
            credentials = grpc.ssl_channel_credentials(root_certificates=_roots(ca))
            self._channel = grpc.secure_channel(address.target, credentials, options=_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address.target, options=_OPTIONS)
        self._stub = client.service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def live(self, timeout_s: float) -> bool:
        """Whether the server says that it is alive."""
        return bool(self._call(self._stub.ServerLive, self.messages.ServerLiveRequest(), timeout_s).live)

    def model_ready(self, name: str, timeout_s: float) -> bool:
        """Whether the server has the model and can run it."""
        try:
            answer = self._call(self._stub.ModelReady, self.messages.ModelReadyRequest(name=name), timeout_s)
        except UpstreamError as exc:
            if exc.code == NOT_FOUND:
                return False
            raise
        return bool(answer.ready)

    def face(self, name: str, timeout_s: float) -> ModelFace:
        """What the server says of a model; a server without Triton's configurations leaves those parts out."""
        messages = self.messages
        metadata = self._call(self._stub.ModelMetadata, messages.ModelMetadataRequest(name=name), timeout_s)
        max_batch, parameters = 0, dict[str, str]()
        try:
            config = self._call(self._stub.ModelConfig, messages.ModelConfigRequest(name=name), timeout_s).config
        except UpstreamError as exc:
            if exc.code != "unimplemented":
                raise
        else:
            max_batch = int(config.max_batch_size)
            parameters = {key: value.string_value for key, value in config.parameters.items()}
        return ModelFace(_faces(metadata.inputs), _faces(metadata.outputs), max_batch, parameters)

    def infer(self, request: Any, timeout_s: float) -> Any:
        """The answer (a ModelInferResponse) to ``request`` (a ModelInferRequest)."""
        return self._call(self._stub.ModelInfer, request, timeout_s)

    def close(self) -> None:
        """End it; calls that wait for an answer fail."""
        self._channel.close()

    def error(self, code: str, why: str) -> UpstreamError:
        """An error that names the server."""
        return UpstreamError(code, f"{self.address}: {why}", passing=code in PASSING)

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        try:
            return method(request, timeout=timeout_s)
        except self._grpc.RpcError as exc:
            code = str(exc.code().name).lower().replace("_", "-")
            why = f"no answer within {timeout_s:g} s" if code == LATE else _words(exc.details())
            raise self.error(code, f"{why} ({code})") from None
        except ValueError as exc:  # closed meanwhile
            raise self.error(CANCELLED, _words(str(exc))) from None


def _faces(tensors: Any) -> tuple[TensorFace, ...]:
    return tuple(TensorFace(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors)


def _words(text: str | None) -> str:
    """What a server says, as one line that is not too long; of a traceback the end tells most."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text or "").split())
    if len(line) > _MAX_WORDS:
        line = f"{line[: _MAX_WORDS // 3]} … {line[-2 * _MAX_WORDS // 3 :]}"
    return line or "it gives no reason"


def _roots(ca: Path | None) -> bytes | None:
    """CAs in PEM form; None: gRPC's own list, where the system has none."""
    paths = ssl.get_default_verify_paths()
    file = ca if ca is not None else Path(paths.cafile or paths.openssl_cafile)
    try:
        content = file.read_bytes()
    except OSError as exc:
        if ca is None:
            return None
        raise CredentialsError(f"cannot read --upstream-ca {ca}: {exc.strerror}") from None
    try:
        ssl.create_default_context(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError):
        if ca is None:
            return None
        raise CredentialsError(f"--upstream-ca {ca} holds no CA certificate in PEM form") from None
    return content
