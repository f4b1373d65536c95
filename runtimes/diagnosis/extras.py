"""The package's extras: what each is for, and whether it is installed."""

import importlib.metadata
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

# extra -> (what it is for, the distributions that make it)
EXTRAS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "device": ("run-device", ("onnxruntime", "pyjpegls", "websockets")),
        "video": ("run-device: video files, cameras, streams", ("av",)),
        "edge": (
            "serve-edge",
            ("onnxruntime", "prometheus-client", "pyjpegls", "starlette", "uvicorn", "websockets"),
        ),
        "tracing": (
            "traces of run-device and serve-edge",
            ("opentelemetry-exporter-otlp-proto-http", "opentelemetry-sdk"),
        ),
        "train": (
            "train, evaluate, export",
            ("onnx", "onnxscript", "safetensors", "timm", "torch", "torchvision"),
        ),
        "demo": ("demo", ("scikit-image", "scikit-learn")),
        "tensorrt-rtx": ("export --engine tensorrt-rtx", ("tensorrt-rtx",)),
        "tensorrt": ("export --engine tensorrt", ("tensorrt",)),
        "cuda": ("serve-edge on a GPU", ("pycuda",)),
    }
)


class Extra(msgspec.Struct, frozen=True):
    """One extra: ``versions`` by distribution, None where it is missing."""

    purpose: str = msgspec.field(name="for")
    versions: dict[str, str | None]
    missing: list[str]


def installed_extras() -> dict[str, Extra]:
    """Every extra that a command needs, by name."""
    found = {}
    for name, (purpose, distributions) in EXTRAS.items():
        versions = {distribution: _version(distribution) for distribution in distributions}
        missing = [distribution for distribution, version in versions.items() if version is None]
        found[name] = Extra(purpose, versions, missing)
    return found


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except Exception:  # PackageNotFoundError, and whatever a half-removed package's metadata lead to
        return None
