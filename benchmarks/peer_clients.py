"""Clients of the peers' protocols, one request in flight each, with as little work for each message as can be.

What is sent is made before: a request is one ``send``, an answer some ``recv`` and one small document. So that every
peer's client costs its core about as much, all but gRPC's are plain sockets of this module; the load generator reports
what each took.
"""

import json
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import httptools
import msgspec
import numpy as np

from aecnn_deploy.errors import AecnnError
from benchmarks.stream_client import StreamClient
from benchmarks.traffic import Traffic

Way = Literal["stream", "classify", "http", "triton-http", "triton-grpc"]

_READ_BYTES = 1 << 18
_TIMEOUT_S = 30.0
_GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
# linux/tcp.h, struct tcp_info: tcpi_bytes_acked and tcpi_bytes_received, which the kernel counts in any case
_TCP_INFO = struct.Struct("120xQQ")


class ClientError(AecnnError):
    """A peer did not answer a request with classes: ``kind`` is short, for counting. The connection goes on."""

    def __init__(self, kind: str, reason: str = "") -> None:
        self.kind = kind
        super().__init__(f"{kind}: {reason}" if reason else kind)


class Work(msgspec.Struct, frozen=True):
    """What clients send: bodies in turn, and of each the classes that may be the answer's first.

    ``traffic``: for the way "stream", which sends its requests. ``shape``: of the planes (C, H, W), where the bodies
    are those and not bytes of which only the peer's own function knows what they are.
    """

    bodies: list[bytes]
    classes: list[list[int]]
    traffic: Traffic | None = None
    shape: list[int] | None = None


class Target(msgspec.Struct, frozen=True):
    """Where and how to ask on this machine: ``path`` is HTTP's, or the model's name for Triton."""

    way: Way
    port: int
    path: str = ""


class Client(Protocol):
    """One connection with at most one request in flight."""

    def fileno(self) -> int:
        """Readable when there may be an answer."""

    def ask(self, number: int) -> None:
        """Send body ``number`` of the work. Raises OSError: the connection is gone."""

    def answer(self) -> int | None:
        """The best class of what was asked, None while it has not come whole. Call it when it is readable.

        Raises ClientError: the request failed. OSError, WireError: the connection is gone.
        """

    def close(self) -> None:
        """End the connection."""


def connect(target: Target, work: Work) -> Client:
    """A client of ``target``. Raises OSError, EdgeUnreachableError: nobody answers there."""
    return _CLIENTS[target.way](target, work)


def wire_bytes(port: int) -> tuple[int, int]:
    """Bytes sent (and acknowledged) and received on all of this process's connections to ``port``.

    All of TCP's stream: the payloads and what each protocol puts around them, handshakes included; the headers of TCP
    and IP are not in it.
    """
    sent = received = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            if not str(link.readlink()).startswith("socket:"):
                continue
            duplicate = os.dup(int(link.name))
        except OSError:  # closed meanwhile
            continue
        with socket.socket(fileno=duplicate) as each:
            if each.family not in (socket.AF_INET, socket.AF_INET6) or each.type != socket.SOCK_STREAM:
                continue
            try:
                if each.getpeername()[1] != port:
                    continue
            except OSError:  # it listens, or is not connected yet
                continue
            one_sent, one_received = _TCP_INFO.unpack_from(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256))
            sent, received = sent + one_sent, received + one_received
    return sent, received


class _Stream:
    """Our own: a device's session on a WebSocket."""

    def __init__(self, target: Target, work: Work) -> None:
        assert work.traffic is not None
        self._requests = work.traffic.requests
        self._client = StreamClient(f"ws://127.0.0.1:{target.port}", work.traffic, timeout_s=_TIMEOUT_S)

    def fileno(self) -> int:
        return self._client.fileno()

    def ask(self, number: int) -> None:
        self._client.ask(self._requests[number])

    def answer(self) -> int | None:
        for _, outcome in self._client.answers():
            if outcome.code:
                raise ClientError(outcome.code)
            return outcome.top[0][0]
        return None

    def close(self) -> None:
        self._client.close()


class _Http:
    """HTTP/1.1 on one connection that is kept."""

    def __init__(self, target: Target, requests: list[bytes], read: Callable[[bytes, dict[str, str]], int]) -> None:
        self._requests, self._read = requests, read
        self._socket = socket.create_connection(("127.0.0.1", target.port), _TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._headers: dict[str, str] = {}
        self._whole = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(self, number: int) -> None:
        self._body, self._headers, self._whole = [], {}, False
        self._socket.sendall(self._requests[number])

    def answer(self) -> int | None:
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionResetError("the peer closed the connection")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            raise ConnectionAbortedError(f"no HTTP came: {exc}") from None
        if not self._whole:
            return None
        status, body = self._parser.get_status_code(), b"".join(self._body)
        if status != 200:
            raise ClientError(f"http-{status}", body[:200].decode(errors="replace"))
        return self._read(body, self._headers)

    def close(self) -> None:
        self._socket.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools calls it, and the two below."""
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._whole = True


def _post(path: str, body: bytes, *more: str) -> bytes:
    head = (
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/octet-stream",
        f"Content-Length: {len(body)}",
        *more,
    )
    return "\r\n".join((*head, "", "")).encode() + body


def _classify(target: Target, work: Work) -> Client:
    def read(body: bytes, headers: dict[str, str]) -> int:
        best: int = json.loads(body)["top"][0]["index"]
        return best

    return _Http(target, [_post(target.path, body) for body in work.bodies], read)


def _http(target: Target, work: Work) -> Client:
    def read(body: bytes, headers: dict[str, str]) -> int:
        best: int = json.loads(body)["top"][0][0]
        return best

    return _Http(target, [_post(target.path, body) for body in work.bodies], read)


def _triton_http(target: Target, work: Work) -> Client:
    """Triton's binary extension of the Open Inference Protocol, its bytes made and read by tritonclient."""
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

    outputs = [InferRequestedOutput(name, binary_data=True) for name in ("index", "score")]
    requests = []
    for tensor in _tensors(work):
        taken = InferInput(tensor.name, list(tensor.values.shape), tensor.datatype)
        taken.set_data_from_numpy(tensor.values, binary_data=True)
        body, header_bytes = InferenceServerClient.generate_request_body([taken], outputs=outputs)
        path = f"/v2/models/{target.path}/infer"
        requests.append(_post(path, body, f"Inference-Header-Content-Length: {header_bytes}"))

    def read(body: bytes, headers: dict[str, str]) -> int:
        size = int(headers["inference-header-content-length"])
        found = InferenceServerClient.parse_response_body(body, header_length=size)
        return int(found.as_numpy("index")[0, 0])

    return _Http(target, requests, read)


class _TritonGrpc:
    """The same by gRPC: one channel, so one connection, a client; messages are serialised before."""

    def __init__(self, target: Target, work: Work) -> None:
        import grpc
        from tritonclient.grpc import service_pb2

        self._requests = []
        for tensor in _tensors(work):
            request = service_pb2.ModelInferRequest(model_name=target.path)
            taken = request.inputs.add(name=tensor.name, datatype=tensor.datatype)
            taken.shape.extend(tensor.values.shape)
            request.raw_input_contents.append(tensor.raw)
            for name in ("index", "score"):
                request.outputs.add(name=name)
            self._requests.append(request.SerializeToString())
        self._parse = service_pb2.ModelInferResponse.FromString
        self._error: type[Exception] = grpc.RpcError
        own = [("grpc.use_local_subchannel_pool", 1)]  # else all channels of a process share one connection
        self._channel = grpc.insecure_channel(f"127.0.0.1:{target.port}", options=own)
        grpc.channel_ready_future(self._channel).result(timeout=_TIMEOUT_S)
        self._call = self._channel.unary_unary(_GRPC_METHOD)
        self._done: deque[Any] = deque()
        self._ours, self._bell = socket.socketpair()

    def fileno(self) -> int:
        return self._ours.fileno()

    def ask(self, number: int) -> None:
        self._call.future(self._requests[number], timeout=_TIMEOUT_S).add_done_callback(self._ring)

    def answer(self) -> int | None:
        self._ours.recv(1)
        try:
            answer = self._parse(self._done.popleft().result())
        except self._error as exc:
            raise ClientError(f"grpc-{exc.code().name.lower()}", exc.details()) from None  # type: ignore[attr-defined]
        return int(np.frombuffer(answer.raw_output_contents[0], np.int32)[0])

    def close(self) -> None:
        self._channel.close()
        self._ours.close()
        self._bell.close()

    def _ring(self, done: Any) -> None:
        """On a thread of gRPC's."""
        self._done.append(done)
        try:
            self._bell.send(b"!")
        except OSError:  # the client was closed meanwhile
            return


class _Tensor(msgspec.Struct, frozen=True):
    """One request's input as Triton takes it; ``raw`` are its bytes on the wire."""

    name: str
    datatype: str
    values: "np.ndarray[Any, Any]"
    raw: bytes


def _tensors(work: Work) -> list[_Tensor]:
    if work.shape is None:
        return [
            _Tensor("body", "BYTES", np.array([[body]], np.object_), len(body).to_bytes(4, "little") + body)
            for body in work.bodies
        ]
    return [
        _Tensor("planes", "UINT8", np.frombuffer(body, np.uint8).reshape(1, *work.shape), body) for body in work.bodies
    ]


_CLIENTS: Mapping[Way, Callable[[Target, Work], Client]] = MappingProxyType(
    {
        "stream": _Stream,
        "classify": _classify,
        "http": _http,
        "triton-http": _triton_http,
        "triton-grpc": _TritonGrpc,
    }
)
