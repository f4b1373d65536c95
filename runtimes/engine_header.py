"""The first bytes of a TensorRT-RTX engine: enough to refuse a wrong one before a GPU is touched."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from aecnn_deploy.errors import RunnerError

# Offsets: 0x00 magic; 0x18 major, minor, patch and build, one byte each; 0x20 architecture mask. Found by building an
# engine for each member of tensorrt_rtx.ComputeCapability (1.7.1) and reading it back; tests/test_engines.py does so
# again. Engines of full TensorRT are not read here: their format was not seen.
_HEADER = struct.Struct("<4s20x4B4xI")
_MAGIC = b"vtrt"
ARCHITECTURE_BITS: Mapping[int, str] = MappingProxyType(
    {0: "sm75", 1: "sm80", 2: "sm86", 3: "sm89", 4: "sm120", 5: "sm121"}
)


@dataclass(frozen=True, slots=True)
class EngineHeader:
    """What a TensorRT-RTX engine says of itself."""

    version: str  # "major.minor.patch.build"
    architectures: tuple[str, ...]  # "sm75", ...; a bit of no known architecture is "bit6"


def read_engine_header(path: Path) -> EngineHeader:
    """Header of the TensorRT-RTX engine ``path``. Raises RunnerError: it cannot be read or is no such engine."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(_HEADER.size)
    except OSError as exc:
        raise RunnerError(f"cannot read the engine {path}: {exc.strerror}") from None
    if len(raw) < _HEADER.size or raw[:4] != _MAGIC:
        raise RunnerError(
            f"{path} is no TensorRT-RTX engine: it begins with {raw[:4]!r}, not with {_MAGIC!r}; export it again"
        )
    _, major, minor, patch, build, mask = _HEADER.unpack(raw)
    names = tuple(ARCHITECTURE_BITS.get(bit, f"bit{bit}") for bit in range(32) if mask >> bit & 1)
    return EngineHeader(f"{major}.{minor}.{patch}.{build}", names)
