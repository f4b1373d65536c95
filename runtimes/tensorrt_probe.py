"""Which of the two TensorRT products can run here, and in which version."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from aecnn_deploy.errors import AecnnError, RunnerError, SettingsError
from aecnn_deploy.optional import require
from aecnn_deploy.runtimes.cuda_worker import gpu_architecture

RTX = "tensorrt-rtx"

# product, which is also the extra's name -> the module that it installs
PRODUCTS: Mapping[str, str] = MappingProxyType({"tensorrt": "tensorrt", RTX: "tensorrt_rtx"})


def load_product(product: str) -> Any:
    """The module of ``product``. Raises MissingExtraError: not installed. RunnerError: its libraries do not load.

    SettingsError: there is no such product.
    """
    if product not in PRODUCTS:
        raise SettingsError(f"no TensorRT product {product!r}; known: {', '.join(PRODUCTS)}")
    try:
        return require(PRODUCTS[product], why=f"the target {product}", extra=product)
    except AecnnError:
        raise
    except (ImportError, OSError) as exc:  # the bindings without their shared libraries
        raise RunnerError(f"{product} is installed but does not load: {exc}") from exc


def supported_architectures(module: Any) -> tuple[str, ...]:
    """What a loaded TensorRT-RTX knows, oldest first: "sm75", .... It runs on no other, data-centre Hopper included."""
    names = [name.lower() for name in module.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(sorted(names, key=lambda name: int(name.removeprefix("sm"))))


def usable(product: str) -> str | None:
    """None when engines of ``product`` can run here, else the reason in words. Makes no CUDA context."""
    try:
        module = load_product(product)
        architecture = gpu_architecture()
    except AecnnError as exc:
        return str(exc)
    if product == RTX and architecture not in (known := supported_architectures(module)):
        return f"{RTX} {module.__version__} runs on {', '.join(known)}; this GPU is {architecture}"
    return None
