"""What a path of the Open Inference Protocol asks for. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from aecnn_deploy.errors import RequestFailedError
from aecnn_deploy.runtimes.oip_failures import NOT_FOUND, NOT_IMPLEMENTED, shown
from aecnn_deploy.runtimes.oip_models import VERSION

PREFIX = "/v2"


class What(Enum):
    """What is asked for."""

    LIVE = "live"
    READY = "ready"
    SERVER = "server"
    MODEL = "model"
    MODEL_READY = "model-ready"
    CONFIG = "config"
    STATISTICS = "statistics"
    INDEX = "index"
    INFER = "infer"


@dataclass(frozen=True, slots=True)
class Call:
    """One request's path. ``model`` is "" where the path names none."""

    what: What
    model: str = ""

    @property
    def methods(self) -> tuple[str, ...]:
        """The HTTP methods that it takes."""
        return ("POST",) if self.what in (What.INFER, What.INDEX) else ("GET", "HEAD")


_OF_SERVER: Mapping[tuple[str, ...], What] = MappingProxyType(
    {
        (): What.SERVER,
        ("health", "live"): What.LIVE,
        ("health", "ready"): What.READY,
        ("models", "stats"): What.STATISTICS,
        ("repository", "index"): What.INDEX,
    }
)
_OF_MODEL: Mapping[tuple[str, ...], What] = MappingProxyType(
    {
        (): What.MODEL,
        ("ready",): What.MODEL_READY,
        ("config",): What.CONFIG,
        ("stats",): What.STATISTICS,
        ("infer",): What.INFER,
    }
)
# What other servers of the protocol have and this one has not, by the path's first part, or a model's
_MISSING: Mapping[str, str] = MappingProxyType(
    {
        "systemsharedmemory": "shared memory is not implemented; send and take tensors as binary data",
        "cudasharedmemory": "shared memory is not implemented; send and take tensors as binary data",
        "trace": "trace settings are not implemented; the edge takes OpenTelemetry's environment variables",
        "logging": "log settings are not implemented; see the options of serve-edge",
        "repository": "models are not loaded or unloaded by request: each is loaded at its first request, or --preload",
        "generate": "generate is not implemented; POST to infer",
        "generate_stream": "generate_stream is not implemented; POST to infer",
    }
)


def call_of(path: str) -> Call:
    """What ``path``, from ``/v2`` on, asks for. Raises RequestFailedError: nothing, or what is not implemented."""
    parts = tuple(path.removeprefix(PREFIX).strip("/").split("/")) if path.strip("/") != PREFIX[1:] else ()
    what, model = _OF_SERVER.get(parts), ""
    if what is None and parts[0] == "models" and len(parts) > 1:
        model, rest = parts[1], parts[2:]
        if rest[:1] == ("versions",) and len(rest) > 1:
            if rest[1] != VERSION:
                raise RequestFailedError(
                    NOT_FOUND, f"no version '{shown(rest[1])}' of '{shown(model)}'; the version is {VERSION}"
                )
            rest = rest[2:]
        what = _OF_MODEL.get(rest)
        _refuse_missing(rest)
    if what is None:
        _refuse_missing(parts)
        raise RequestFailedError(NOT_FOUND, f"nothing is at {shown(path)}; see docs/open-inference.md")
    return Call(what, model)


def _refuse_missing(parts: tuple[str, ...]) -> None:
    if parts and parts[0] in _MISSING:
        raise RequestFailedError(NOT_IMPLEMENTED, _MISSING[parts[0]])
