"""Messages between an edge and its replicas on a Ray cluster: a JSON head and a tensor, on a TCP connection.

A request through a Serve handle or an actor call takes several event loops, threads and pickles on its way, which cost
milliseconds; a socket that a thread waits on costs a tenth of one. docs/ray.md has the figures.

A message is ``>II`` (bytes of the head, bytes of the tensor), the head as JSON, and the tensor's bytes as they are.
"""

import hashlib
import hmac
import math
import secrets
import socket
import struct
from typing import TypeVar

import msgspec
import numpy as np

from aecnn_deploy.runtimes.base import Array

SECRET_BYTES = 32
MAX_HEAD_BYTES = 1 << 20
MAX_TENSOR_BYTES = 1 << 30

_PREFIX = struct.Struct(">II")
_KEEP_ALIVE = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 2,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 11_000,
}  # a node that is gone

HeadT = TypeVar("HeadT", bound=msgspec.Struct)


class Introduction(msgspec.Struct, frozen=True):
    """A replica's first words on a connection. ``data``: it takes batches here; else it says what it has loaded."""

    replica: str
    data: bool
    node: str = ""  # what an operator calls its node
    pid: int = 0


class Orders(msgspec.Struct, frozen=True):
    """All models, by key, that a replica shall have loaded: what the edge says when that changes."""

    models: tuple[str, ...]


class ModelInfo(msgspec.Struct, frozen=True):
    """A model that a replica has loaded: shapes without the batch axis, numpy's dtypes, the bundle's target."""

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    input_dtype: str
    output_dtype: str
    target: str


class Inventory(msgspec.Struct, frozen=True):
    """All that a replica has loaded, by key, and why others could not be. ``leaving``: give it nothing new."""

    loaded: dict[str, ModelInfo] = {}
    failed: dict[str, str] = {}
    leaving: bool = False


class BatchHead(msgspec.Struct, frozen=True):
    """A batch: ``waiting`` is this replica's share of the batches that wait in the edge for any replica."""

    model: str
    shape: tuple[int, ...]
    waiting: float = 0.0


class LogitsHead(msgspec.Struct, frozen=True):
    """What came of a batch: logits of ``shape``, or ``error``. ``run_s``: the model's own time.

    ``absent``: the replica has freed the model, another one has it.
    """

    shape: tuple[int, ...] = ()
    run_s: float = 0.0
    error: str = ""
    absent: bool = False


def tune(connection: socket.socket) -> None:
    """No waiting for more to send, and an end within seconds when the other machine is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):  # Linux has them all
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def send(connection: socket.socket, head: msgspec.Struct, tensor: Array | None = None) -> None:
    """Send one message without copying ``tensor``. Raises OSError: the connection is gone."""
    text = msgspec.json.encode(head)
    body = memoryview(b"") if tensor is None else np.ascontiguousarray(tensor).data.cast("B")
    prefix = _PREFIX.pack(len(text), len(body)) + text
    sent = connection.sendmsg([prefix, body])
    if sent < len(prefix):
        connection.sendall(prefix[sent:])
        sent = len(prefix)
    if sent - len(prefix) < len(body):
        connection.sendall(body[sent - len(prefix) :])


def receive(connection: socket.socket, kind: type[HeadT]) -> tuple[HeadT, bytearray]:
    """Wait for one message. Raises OSError: the connection is gone, or what comes is no such message."""
    head_bytes, tensor_bytes = _PREFIX.unpack(_exactly(connection, _PREFIX.size))
    if head_bytes > MAX_HEAD_BYTES or tensor_bytes > MAX_TENSOR_BYTES:
        raise ConnectionAbortedError(f"a message declares {head_bytes} and {tensor_bytes} bytes, over the limits")
    try:
        head = msgspec.json.decode(_exactly(connection, head_bytes), type=kind)
    except (msgspec.ValidationError, msgspec.DecodeError) as exc:
        raise ConnectionAbortedError(f"a message is no {kind.__name__}: {exc}") from None
    return head, _exactly(connection, tensor_bytes)


def tensor_of(body: bytearray, dtype: str, shape: tuple[int, ...]) -> Array:
    """``body`` seen as an array. Raises OSError: it has another size."""
    found = np.dtype(dtype)
    if min(shape, default=0) < 0 or math.prod(shape) * found.itemsize != len(body):
        raise ConnectionAbortedError(f"a tensor of {shape} in {dtype} has {len(body)} bytes")
    return np.frombuffer(body, found).reshape(shape)


def challenge(connection: socket.socket, secret: bytes) -> None:
    """Let in only who has ``secret``. Raises OSError: the other side has not, or says nothing."""
    nonce = secrets.token_bytes(SECRET_BYTES)
    connection.sendall(nonce)
    if not hmac.compare_digest(_exactly(connection, SECRET_BYTES), _answer(secret, nonce)):
        raise ConnectionAbortedError("whoever connected does not know the secret of this application")


def prove(connection: socket.socket, secret: bytes) -> None:
    """Answer ``challenge``. Raises OSError: the connection is gone."""
    connection.sendall(_answer(secret, bytes(_exactly(connection, SECRET_BYTES))))


def _answer(secret: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, nonce, hashlib.sha256)


def _exactly(connection: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        more = connection.recv_into(view[got:])
        if not more:
            raise ConnectionResetError("the other side closed the connection")
        got += more
    return data
